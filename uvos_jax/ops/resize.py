"""Resizing with PyTorch's sampling rules (``torch.nn.functional.interpolate``).

Source coordinate of output index ``i`` (all borders are clamped, no filter widens when shrinking):

- ``align_corners=True``: ``i * (n_in - 1) / (n_out - 1)``; an output of one pixel reads index 0.
- ``align_corners=False``: ``(i + 0.5) * n_in / n_out - 0.5`` (half-pixel centers; also OpenCV's INTER_LINEAR).
- nearest: ``floor(i * n_in / n_out)``, *not* the center of the output pixel, in float32 arithmetic, whose rounding
  puts a few indices one pixel lower than the exact quotient (14 to 46 pixels is such a case).

Coordinates and weights are computed in NumPy float64 at trace time, so a size is a compile-time constant.
Interpolation is always done in float32 and cast back: half-precision weights would shift edges.
"""

import jax
import jax.numpy as jnp
import numpy as np

Size = tuple[int, int]
_BLOCK = 128  # rows of a banded matrix that are multiplied together


def resize_nearest(x: jax.Array, size: Size, *, align_corners: bool = False) -> jax.Array:
    """Nearest-neighbor resize, by PyTorch's floor rule if corners are not aligned.

    Args:
      x: ``[..., h, w, c]``, any dtype.
      size: output ``(height, width)`` in pixels.
      align_corners: whether the pixel nearest to where ``resize_bilinear`` with aligned corners would read is taken;
        PyTorch has no such rule.

    Returns:
      ``[..., height, width, c]``, dtype of ``x``.
    """
    for axis, n_out in zip((-3, -2), size, strict=True):
        n_in = x.shape[axis]
        if n_in != n_out:
            if align_corners:
                source = np.round(_source_coordinates(n_in, n_out, True))
            else:
                source = np.floor(np.arange(n_out, dtype=np.float32) * (np.float32(n_in) / np.float32(n_out)))
            x = jnp.take(x, np.minimum(source, n_in - 1).astype(np.int32), axis=axis)
    return x


def resize_bilinear(x: jax.Array, size: Size, *, align_corners: bool) -> jax.Array:
    """Bilinear resize, see the module's coordinate rules.

    Args:
      x: ``[..., h, w, c]``; integers are read as float32.
      size: output ``(height, width)`` in pixels.
      align_corners: which of the two coordinate rules.

    Returns:
      ``[..., height, width, c]``: float32, or the dtype of ``x`` if that is a floating type.
    """
    return _resize(x, size, align_corners, "bilinear")


def resize_bicubic(x: jax.Array, size: Size, *, align_corners: bool) -> jax.Array:
    """Bicubic resize with PyTorch's kernel (Keys, a = -0.75, four clamped taps); arguments as ``resize_bilinear``."""
    return _resize(x, size, align_corners, "bicubic")


def resize_matrix(n_in: int, n_out: int, kind: str, *, align_corners: bool) -> np.ndarray:
    """What resizing one axis does, as a matrix: ``[n_out, n_in]`` float32, few of its numbers not zero.

    Args:
      n_in: pixels before.
      n_out: pixels after.
      kind: ``"bilinear"`` or ``"bicubic"``.
      align_corners: which of the module's coordinate rules.
    """
    matrix = np.zeros((n_out, n_in))
    for index, weight in _taps(n_in, n_out, align_corners, kind):
        np.add.at(matrix, (np.arange(n_out), index), weight)
    return matrix.astype(np.float32)


def multiply_banded(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """A matrix times the last axis of ``x``, where each of its rows has its numbers in a few columns side by side.

    Blocks of rows are multiplied with what they read, and not with all the rest that they weigh with 0.

    Args:
      x: ``[..., n_in]`` float32.
      matrix: ``[n_out, n_in]`` float32, as of :func:`resize_matrix`.

    Returns:
      ``[..., n_out]`` float32.
    """
    products = []
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start:start + _BLOCK]
        read = np.flatnonzero(rows.any(0))
        first, end = read[0], read[-1] + 1
        products.append(jnp.dot(x[..., first:end], rows[:, first:end].T, precision="highest"))
    return jnp.concatenate(products, -1)


def resize_uint8_as_opencv(x: jax.Array, size: Size) -> jax.Array:
    """``cv2.resize(..., INTER_LINEAR)`` of uint8 images to the last bit.

    OpenCV weighs with 11-bit integers and drops bits on the way, which makes its pictures 0.1 gray levels darker than
    exact interpolation. The one exception: where both sides are exactly halved it averages 2x2 pixels instead, which
    is not done here.

    Args:
      x: ``[..., h, w, c]`` uint8.
      size: output ``(height, width)`` in pixels.

    Returns:
      ``[..., height, width, c]`` int32 in 0..255.
    """
    if x.shape[-3:-1] == tuple(size):
        return x.astype(jnp.int32)
    one = 2048
    (top, v), (left, u) = (_source_floor(n_in, n_out) for n_in, n_out in zip(x.shape[-3:-1], size, strict=True))
    last_row, last_column = x.shape[-3] - 1, x.shape[-2] - 1
    # Beyond the border a row is mixed with itself, while a column counts whole: the dropped bits differ.
    u = np.where((left < 0) | (left >= last_column), np.float32(0), u)
    left = np.clip(left, 0, last_column)
    wide = (jnp.take(x, left, axis=-2).astype(jnp.int32) * np.rint((1 - u) * one).astype(np.int32)[:, None]
            + jnp.take(x, np.minimum(left + 1, last_column), axis=-2).astype(jnp.int32)
            * np.rint(u * one).astype(np.int32)[:, None]) >> 4

    def rows(index, weight):
        weight = np.rint(weight * one).astype(np.int32)[:, None, None]
        return (jnp.take(wide, np.clip(index, 0, last_row), axis=-3) * weight) >> 16

    return (rows(top, 1 - v) + rows(top + 1, v) + 2) >> 2


def resize_uint8_as_pillow(x: jax.Array, size: Size) -> jax.Array:
    """``PIL.Image.resize(..., BILINEAR)`` of uint8 images: a triangle that widens as the image shrinks.

    Pillow rounds to whole numbers between columns and rows, as this does; its fixed-point weights may round a rare
    exact half the other way. Its newer versions begin with the rows where only the height shrinks, unlike this.

    Args:
      x: ``[b, h, w, c]``, uint8 or whole numbers from 0 to 255.
      size: output ``(height, width)`` in pixels.

    Returns:
      ``[b, height, width, c]`` float32, whole numbers from 0 to 255.
    """
    x = x.astype(jnp.float32)
    for shape in ((*x.shape[:2], size[1], x.shape[3]), (len(x), *size, x.shape[3])):
        if shape != x.shape:
            x = jnp.floor(jax.image.resize(x, shape, "linear", antialias=True, precision="highest") + 0.5)
    return x


def _source_floor(n_in, n_out):
    """Half-pixel source coordinates as OpenCV rounds them: the pixel before, int, and the float32 way to the next."""
    source = _source_coordinates(n_in, n_out, align_corners=False).astype(np.float32)
    before = np.floor(source)
    return before.astype(np.int32), source - before


def _keys_weights(t, a=-0.75):
    def near(d):  # |d| <= 1
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d):  # 1 < |d| < 2
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return far(1 + t), near(t), near(1 - t), far(2 - t)


def _resize(x, size, align_corners, kind):
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    x = x.astype(jnp.float32)
    for axis, n_out in zip((-3, -2), size, strict=True):
        n_in = x.shape[axis]
        if n_in == n_out:
            continue
        shape = (n_out,) + (1,) * (-axis - 1)
        x = sum(jnp.take(x, index, axis=axis) * weight.astype(np.float32).reshape(shape)
                for index, weight in _taps(n_in, n_out, align_corners, kind))
    return x.astype(dtype)


def _taps(n_in, n_out, align_corners, kind):
    """Of one axis, for every pixel that an output pixel reads: ``(index [n_out] int32, weight [n_out] float64)``."""
    source = _source_coordinates(n_in, n_out, align_corners)
    if kind == "bilinear":  # clamps the coordinate itself, bicubic only the pixels it reads
        source = np.clip(source, 0, n_in - 1)
    base = np.floor(source)
    t = source - base
    first, weights = (0, (1 - t, t)) if kind == "bilinear" else (-1, _keys_weights(t))
    return [(np.clip(base + tap, 0, n_in - 1).astype(np.int32), weight) for tap, weight in enumerate(weights, first)]


def _source_coordinates(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    i = np.arange(n_out, dtype=np.float64)
    if align_corners:
        return i * ((n_in - 1) / (n_out - 1)) if n_out > 1 else np.zeros(1)
    return (i + 0.5) * (n_in / n_out) - 0.5
