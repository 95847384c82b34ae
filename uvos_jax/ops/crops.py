"""Object crops of one size, the input of re-identification networks (PReMVOS, Luiten et al. 2018).

Boxes are ``(y0, x0, y1, x1)`` in whole pixels; ``y1`` and ``x1`` are exclusive.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CONTEXT = 1.2  # factor on the sides of a box, as published
_WORD = 32  # bits per integer


def bounding_boxes(labels: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Computes the bounding box of each object of a label map.

    Each pixel sets the bit of its object, and bits are combined by OR along rows and columns, so the time does not grow
    with the number of objects (on a CPU a twentieth of the time of twenty masks).

    Args:
        labels: ``[h, w]`` int, 1 to ``count``; other values, including negative ones, belong to no object.
        count: Number of object slots.

    Returns:
        ``[count, 4]`` float32, zeros for an object without pixels; and ``[count]`` bool, whether it has any.
    """
    index = labels.astype(jnp.int32) - 1
    words = jnp.arange(-(-count // _WORD))[:, None, None]
    bits = jnp.where(index // _WORD == words, jnp.uint32(1) << (index % _WORD).astype(jnp.uint32), jnp.uint32(0))
    shift = jnp.arange(_WORD, dtype=jnp.uint32)[:, None]

    def extent(axis):
        """Returns first and exclusive last line of every object and whether it has any, ``[count]`` each."""
        lines = lax.reduce(bits, np.uint32(0), lax.bitwise_or, (axis,))
        seen = ((lines[:, None] >> shift) & 1).astype(bool).reshape(-1, lines.shape[-1])[:count]
        return seen.argmax(1), seen.shape[1] - seen[:, ::-1].argmax(1), seen.any(1)

    (y0, y1, present), (x0, x1, _) = extent(2), extent(1)
    return jnp.where(present[:, None], jnp.stack([y0, x0, y1, x1], 1), 0).astype(jnp.float32), present


def expand_boxes(boxes: jax.Array, size: tuple[int, int], factor: float = CONTEXT) -> jax.Array:
    """Scales boxes about their centers and clips them to the image.

    As in the published training code, corner and sides are rounded separately (halves to even), and what the left and
    upper borders clip is not subtracted from the sides: such a box extends further to the right and down. (The
    published test code additionally clips one more row and column.)

    Args:
        boxes: ``[n, 4]``.
        size: Image ``(height, width)`` in pixels.
        factor: Factor on the sides.

    Returns:
        ``[n, 4]`` float32, integers within the image.
    """
    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    start = jnp.maximum(jnp.round(corner - sides * ((factor - 1) / 2)), 0)
    end = jnp.minimum(start + jnp.round(sides * factor), jnp.asarray(size, jnp.float32))
    return jnp.concatenate([start, end], 1)


def crop_and_resize(image: jax.Array, boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Crops boxes from an image and resizes all crops to one size.

    Bilinear with half-pixel centers and without antialiasing, as OpenCV's INTER_LINEAR resizes the crop; pixels outside
    the box are not read. The published code has no half-pixel centers, as TensorFlow 1.

    Args:
        image: ``[h, w, c]``.
        boxes: ``[n, 4]``, integers within the image; an empty box gives copies of one pixel.
        size: Crop ``(height, width)`` in pixels.

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
    """Crops all objects of an image, with context.

    Args:
        image: ``[h, w, c]``.
        labels: ``[h, w]`` int, see :func:`bounding_boxes`.
        count: Number of object slots.
        size: Crop ``(height, width)`` in pixels.

    Returns:
        Crops ``[count, *size, c]`` float32, copies of the first pixel for an absent object; boxes without context,
        ``[count, 4]`` float32; and ``[count]`` bool, whether the object is present.
    """
    boxes, present = bounding_boxes(labels, count)
    return crop_and_resize(image, expand_boxes(boxes, labels.shape), size), boxes, present


def _taps(start, end, n_out):
    """Returns both source pixels of every output pixel and the weight of the second, ``[n_out]`` each.

    Source coordinates are fractions over ``2 * n_out``, exact in integers; float32 is not exact in a large image.
    """
    side = jnp.maximum(end - start, 1)
    denominator = 2 * n_out
    source = jnp.maximum((2 * jnp.arange(n_out) + 1) * side - n_out, 0)
    first = source // denominator
    second = jnp.minimum(first + 1, side - 1)
    return start + first, start + second, (source - first * denominator).astype(jnp.float32) / denominator
