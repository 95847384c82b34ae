"""Smoothing that follows the edges of a picture (He, Sun, Tang: Guided image filtering, TPAMI 2013)."""

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.ops.pool import average_pool, average_unpool


def guided_filter(guide: jax.Array, x: jax.Array, *, radius: int, epsilon: float, step: int = 1) -> jax.Array:
    """In every window the map that a linear function of the picture's colours explains best.

    Eq. 19 to 21 of the paper, with a colour picture. The functions may be found on a smaller copy and are then applied
    to the picture as it is (He and Sun: Fast guided filter, 2015): edges stay as sharp as the picture's.

    Args:
      guide: ``[h, w, 3]`` float32 in [0, 1], the picture.
      x: ``[h, w]`` float32, what is to be filtered.
      radius: of the windows, whose sides are ``2 * radius + 1`` pixels of the copy; the border cuts them off.
      epsilon: variances of colour below it are no edges, in squared units of the picture.
      step: the copy's pixels have sides of so many pixels.

    Returns:
      ``[h, w]`` float32; what the functions say may lie beyond the range of ``x``.
    """
    picture, y = average_pool(guide, step), average_pool(x, step)
    rows, columns = (window_means(side, radius) for side in y.shape)

    def mean(maps):
        maps = jnp.einsum("yh,hwc->ywc", rows, maps, precision="highest")
        return jnp.einsum("xw,ywc->yxc", columns, maps, precision="highest")

    # Centred, so that variances are no small differences of large numbers.
    centred, level = picture - picture.mean((0, 1)), y.mean()
    y = (y - level)[..., None]
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    products = jnp.stack([centred[..., i] * centred[..., j] for i, j in pairs], -1)
    means = mean(jnp.concatenate([centred, y, products, centred * y], -1))
    of_colour, of_y = means[..., :3], means[..., 3:4]
    spread = {pair: means[..., 4 + n] - of_colour[..., pair[0]] * of_colour[..., pair[1]] + epsilon * (
        pair[0] == pair[1]) for n, pair in enumerate(pairs)}
    slopes = _solve(spread, means[..., 10:] - of_colour * of_y)
    start = of_y[..., 0] - (slopes * of_colour).sum(-1)
    functions = mean(jnp.concatenate([slopes, start[..., None]], -1))
    functions = average_unpool(functions, step, x.shape)
    guide = guide - picture.mean((0, 1))
    # Channel by channel: XLA would make the functions anew for every channel of a sum over the axis.
    return sum(guide[..., i] * functions[..., i] for i in range(3)) + functions[..., 3] + level


def window_means(side: int, radius: int) -> np.ndarray:
    """``[side, side]`` float32: means along an axis over windows of ``2 * radius + 1`` that the border cuts off."""
    inside = np.abs(np.subtract.outer(np.arange(side), np.arange(side))) <= radius
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def _solve(a, b):
    """``x`` of ``a x = b``: ``a`` symmetric 3x3 as maps by (row, column), ``b`` ``[h, w, 3]``."""
    c00 = a[1, 1] * a[2, 2] - a[1, 2] ** 2
    c01 = a[0, 2] * a[1, 2] - a[0, 1] * a[2, 2]
    c02 = a[0, 1] * a[1, 2] - a[0, 2] * a[1, 1]
    c11 = a[0, 0] * a[2, 2] - a[0, 2] ** 2
    c12 = a[0, 1] * a[0, 2] - a[0, 0] * a[1, 2]
    c22 = a[0, 0] * a[1, 1] - a[0, 1] ** 2
    determinant = a[0, 0] * c00 + a[0, 1] * c01 + a[0, 2] * c02
    inverse = ((c00, c01, c02), (c01, c11, c12), (c02, c12, c22))
    return jnp.stack([sum(c * b[..., n] for n, c in enumerate(row)) for row in inverse], -1) / determinant[..., None]
