"""Resizing with PyTorch's sampling rules (``torch.nn.functional.interpolate``).

Source coordinate of output index ``i`` (coordinates are clamped to the image; no antialiasing):

- ``align_corners=True``: ``i * (n_in - 1) / (n_out - 1)``; an output of one pixel reads index 0.
- ``align_corners=False``: ``(i + 0.5) * n_in / n_out - 0.5`` (half-pixel centers; also OpenCV's INTER_LINEAR).
- nearest: ``floor(i * n_in / n_out)``, *not* the center of the output pixel, in float32 arithmetic, whose rounding puts
  a few indices one pixel lower than the exact quotient (14 to 46 pixels is such a case).

Coordinates and weights are computed in NumPy float64 at trace time, so sizes are compile-time constants. Interpolation
is always float32 and cast back: half-precision weights would shift edges.
"""

import jax
import jax.numpy as jnp
import numpy as np

Size = tuple[int, int]
_BLOCK = 128  # rows per block of a banded matrix product


def resize_nearest(x: jax.Array, size: Size, *, align_corners: bool = False) -> jax.Array:
    """Nearest-neighbor resize, by PyTorch's floor rule unless corners are aligned.

    Args:
        x: ``[..., h, w, c]``, any dtype.
        size: Output ``(height, width)`` in pixels.
        align_corners: Whether to take the pixel nearest to the coordinate of ``resize_bilinear`` with aligned corners;
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
    """Bilinear resize; see the module's coordinate rules.

    Args:
        x: ``[..., h, w, c]``; integers are converted to float32.
        size: Output ``(height, width)`` in pixels.
        align_corners: Which of the two coordinate rules.

    Returns:
        ``[..., height, width, c]``: float32, or the dtype of ``x`` if it is floating.
    """
    return _resize(x, size, align_corners, "bilinear")


def resize_bicubic(x: jax.Array, size: Size, *, align_corners: bool) -> jax.Array:
    """Bicubic resize with PyTorch's kernel (Keys, a = -0.75, four clamped taps).

    Args:
        x: ``[..., h, w, c]``; integers are converted to float32.
        size: Output ``(height, width)`` in pixels.
        align_corners: Which of the two coordinate rules.

    Returns:
        ``[..., height, width, c]``: float32, or the dtype of ``x`` if it is floating.
    """
    return _resize(x, size, align_corners, "bicubic")


def resize_matrix(n_in: int, n_out: int, kind: str, *, align_corners: bool) -> np.ndarray:
    """Returns the resizing of one axis as a sparse matrix, ``[n_out, n_in]`` float32.

    Args:
        n_in: Input pixels.
        n_out: Output pixels.
        kind: ``"bilinear"`` or ``"bicubic"``.
        align_corners: Which of the module's coordinate rules.
    """
    matrix = np.zeros((n_out, n_in))
    for index, weight in _taps(n_in, n_out, align_corners, kind):
        np.add.at(matrix, (np.arange(n_out), index), weight)
    return matrix.astype(np.float32)


def multiply_banded(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """Multiplies a banded matrix with the last axis of ``x``.

    Blocks of rows are multiplied only with the columns in which they are not zero.

    Args:
        x: ``[..., n_in]`` float32.
        matrix: ``[n_out, n_in]`` float32, e.g. from :func:`resize_matrix`.

    Returns:
        ``[..., n_out]`` float32.
    """
    products = []
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start:start + _BLOCK]
        columns = np.flatnonzero(rows.any(0))
        first, end = columns[0], columns[-1] + 1
        products.append(jnp.dot(x[..., first:end], rows[:, first:end].T, precision="highest"))
    return jnp.concatenate(products, -1)


def resize_uint8_as_opencv(x: jax.Array, size: Size) -> jax.Array:
    """Reproduces ``cv2.resize(..., INTER_LINEAR)`` of uint8 images bit for bit.

    OpenCV uses 11-bit integer weights and drops bits on the way, so its images are 0.1 gray levels darker than exact
    interpolation. One exception is not reproduced: where both sides are exactly halved, OpenCV averages 2x2 pixels.

    Args:
        x: ``[..., h, w, c]`` uint8.
        size: Output ``(height, width)`` in pixels.

    Returns:
        ``[..., height, width, c]`` int32 in 0..255.
    """
    if x.shape[-3:-1] == tuple(size):
        return x.astype(jnp.int32)
    one = 2048
    (top, v), (left, u) = (_source_floor(n_in, n_out) for n_in, n_out in zip(x.shape[-3:-1], size, strict=True))
    last_row, last_column = x.shape[-3] - 1, x.shape[-2] - 1
    # Past the border OpenCV mixes a row with itself but takes a column with full weight: the dropped bits differ.
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
    """Reproduces ``PIL.Image.resize(..., BILINEAR)`` of uint8 images: bilinear with antialiasing.

    Like Pillow it rounds to integers between the column and the row pass; Pillow's fixed-point weights may round a rare
    exact half the other way. Newer versions of Pillow start with the rows where only the height shrinks; this does not.

    Args:
        x: ``[b, h, w, c]``, uint8 or integers from 0 to 255.
        size: Output ``(height, width)`` in pixels.

    Returns:
        ``[b, height, width, c]`` float32, integers from 0 to 255.
    """
    x = x.astype(jnp.float32)
    for shape in ((*x.shape[:2], size[1], x.shape[3]), (len(x), *size, x.shape[3])):
        if shape != x.shape:
            x = jnp.floor(jax.image.resize(x, shape, "linear", antialias=True, precision="highest") + 0.5)
    return x


def _source_floor(n_in, n_out):
    """Returns half-pixel source coordinates as OpenCV rounds them: int pixel and float32 fraction."""
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
    """Returns ``(index [n_out] int32, weight [n_out] float64)`` for every tap of one axis."""
    source = _source_coordinates(n_in, n_out, align_corners)
    if kind == "bilinear":  # clamps the coordinate itself; bicubic clamps only the taps
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
