"""Cut-outs of objects, all of one size: what a re-identification network looks at (PReMVOS, Luiten et al. 2018).

Boxes are ``(y0, x0, y1, x1)`` in whole pixels: the first row and column inside, the first ones outside.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CONTEXT = 1.2
_WORD = 32  # bits of an integer


def boxes_of(labels: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The smallest box around each object of a label map.

    Every pixel becomes a bit of its object, and bits are united along rows and columns: the time does not go with the
    number of objects (on a CPU a twentieth of what twenty masks take).

    Args:
      labels: ``[h, w]`` int, 1 to ``count``; other numbers, also negative ones, are no object.
      count: objects there may be.

    Returns:
      ``[count, 4]`` float32, zeros for an object without a pixel; and ``[count]`` bool, whether it has one.
    """
    place = labels.astype(jnp.int32) - 1
    words = jnp.arange(-(-count // _WORD))[:, None, None]
    bits = jnp.where(place // _WORD == words, jnp.uint32(1) << (place % _WORD).astype(jnp.uint32), jnp.uint32(0))
    shift = jnp.arange(_WORD, dtype=jnp.uint32)[:, None]

    def extent(axis):
        """First and first later line of every object, ``[count]`` each, and whether there is one."""
        lines = lax.reduce(bits, np.uint32(0), lax.bitwise_or, (axis,))
        seen = ((lines[:, None] >> shift) & 1).astype(bool).reshape(-1, lines.shape[-1])[:count]
        return seen.argmax(1), seen.shape[1] - seen[:, ::-1].argmax(1), seen.any(1)

    (y0, y1, present), (x0, x1, _) = extent(2), extent(1)
    return jnp.where(present[:, None], jnp.stack([y0, x0, y1, x1], 1), 0).astype(jnp.float32), present


def with_context(boxes: jax.Array, size: tuple[int, int], factor: float = CONTEXT) -> jax.Array:
    """Widens boxes about their middles.

    As in the published training code, corner and sides are rounded (halves to even numbers) each by itself, and what
    the left and upper borders cut off is not taken from the sides: such a box reaches further to the right and down.
    (The published test code then cuts off one more row and column.)

    Args:
      boxes: ``[n, 4]``.
      size: of the image, ``(height, width)`` in pixels.
      factor: by which the sides grow.

    Returns:
      ``[n, 4]`` float32, whole numbers within the image.
    """
    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    start = jnp.maximum(jnp.round(corner - sides * ((factor - 1) / 2)), 0)
    end = jnp.minimum(start + jnp.round(sides * factor), jnp.asarray(size, jnp.float32))
    return jnp.concatenate([start, end], 1)


def crop_and_resize(image: jax.Array, boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Cuts boxes out of an image and brings all to one size.

    Bilinear with half-pixel centers and without a filter where a box shrinks, as OpenCV's INTER_LINEAR resizes the
    cut-out; nothing outside a box is read. Ours: the published code leaves half-pixel centers out, as TensorFlow 1.

    Args:
      image: ``[h, w, c]``.
      boxes: ``[n, 4]``, whole numbers within the image; an empty box gives copies of one pixel.
      size: of the crops, ``(height, width)`` in pixels.

    Returns:
      ``[n, *size, c]`` float32.
    """
    image = jnp.asarray(image, jnp.float32)

    def crop(box):
        y, below, down = (x[:, None] for x in _taps(box[0], box[2], size[0]))
        x, right, across = _taps(box[1], box[3], size[1])
        across, down = across[:, None], down[..., None]
        upper, lower = (image[line, x] + (image[line, right] - image[line, x]) * across for line in (y, below))
        return upper + (lower - upper) * down

    return jax.vmap(crop)(boxes.astype(jnp.int32))


def object_crops(image: jax.Array, labels: jax.Array, count: int, size: tuple[int, int]
                 ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Crops of all objects of an image, with context.

    Args:
      image: ``[h, w, c]``.
      labels: ``[h, w]`` int, see :func:`boxes_of`.
      count: objects there may be.
      size: of the crops, ``(height, width)`` in pixels.

    Returns:
      ``[count, *size, c]`` float32, copies of the first pixel for an object that is not there; boxes without context,
      ``[count, 4]`` float32; and ``[count]`` bool, whether it is there.
    """
    boxes, present = boxes_of(labels, count)
    return crop_and_resize(image, with_context(boxes, labels.shape), size), boxes, present


def _taps(start, end, n_out):
    """Of one axis: the pixels before and behind where every output pixel reads, and the latter's weight, ``[n_out]``.

    Sources are fractions over ``2 * n_out``, and so exact in whole numbers, which float32 in a large image is not.
    """
    side = jnp.maximum(end - start, 1)
    parts = 2 * n_out
    source = jnp.maximum((2 * jnp.arange(n_out) + 1) * side - n_out, 0)
    first = source // parts
    behind = jnp.minimum(first + 1, side - 1)
    return start + first, start + behind, (source - first * parts).astype(jnp.float32) / parts
