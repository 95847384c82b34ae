"""Smoothing that follows the edges of a picture (He, Sun, Tang: Guided image filtering, TPAMI 2013)."""

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.ops.pooling import average_pool, average_unpool


def guided_filter(guide: jax.Array, x: jax.Array, *, radius: int, epsilon: float, step: int = 1) -> jax.Array:
    """In every window the map that a linear function of the picture's colors explains best.

    Eq. 19 to 21 of the paper, with a color picture. The functions may be found on a smaller copy and are then applied
    to the picture as it is (He and Sun: Fast guided filter, 2015): edges stay as sharp as the picture's.

    Args:
      guide: ``[h, w, 3]`` float32 in [0, 1], the picture.
      x: ``[h, w]`` float32, what is to be filtered.
      radius: of the windows, whose sides are ``2 * radius + 1`` pixels of the copy; the border cuts them off.
      epsilon: variances of color below it are no edges, in squared units of the picture.
      step: the copy's pixels have sides of so many pixels.

    Returns:
      ``[h, w]`` float32; what the functions say may lie beyond the range of ``x``.
    """
    # Maps lie one behind the other, and are summed one by one: so XLA makes a few loops over whole rows of them.
    colors, y = jnp.moveaxis(average_pool(guide, step), -1, 0), average_pool(x, step)[None]
    # Centered, so that variances are no small differences of large numbers.
    color, level = colors.mean((1, 2)), y.mean()
    colors, y = colors - color[:, None, None], y - level
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    squares = jnp.stack([colors[i] * colors[j] for i, j in pairs])
    means = window_means(jnp.concatenate([colors, y, squares, colors * y]), radius)
    of_colors, of_y = means[:3], means[3]
    spread = [means[4 + n] - of_colors[i] * of_colors[j] + epsilon * (i == j) for n, (i, j) in enumerate(pairs)]
    slopes = _solve(spread, means[10:] - of_colors * of_y)
    start = of_y - sum(slopes[i] * of_colors[i] for i in range(3))
    *slopes, start = average_unpool(window_means(jnp.stack([*slopes, start]), radius), step, x.shape)
    return sum((guide[..., i] - color[i]) * slopes[i] for i in range(3)) + start + level


def window_means(maps: jax.Array, radius: int) -> jax.Array:
    """Means over windows of ``2 * radius + 1`` pixels along both axes; the border cuts them off.

    Args:
      maps: ``[..., h, w]`` float32.
      radius: of the windows, in pixels.

    Returns:
      The same shape.
    """
    for axis in (maps.ndim - 1, maps.ndim - 2):
        side = maps.shape[axis]
        padded = jnp.pad(maps, [(radius * (each == axis),) * 2 for each in range(maps.ndim)])
        # A sum of shifted copies becomes one loop; running sums would lose digits.
        maps = sum(jax.lax.slice_in_dim(padded, at, at + side, axis=axis) for at in range(2 * radius + 1))
    counts = [np.minimum(np.arange(side) + radius, side - 1) - np.maximum(np.arange(side) - radius, 0) + 1
              for side in maps.shape[-2:]]
    return maps / np.outer(*counts).astype(np.float32)


def _solve(a, b):
    """``x`` of ``a x = b`` at every pixel: ``a`` symmetric, its upper triangle row by row, and ``b`` three maps."""
    a00, a01, a02, a11, a12, a22 = a
    c00, c01, c02 = a11 * a22 - a12 * a12, a02 * a12 - a01 * a22, a01 * a12 - a02 * a11
    c11, c12, c22 = a00 * a22 - a02 * a02, a01 * a02 - a00 * a12, a00 * a11 - a01 * a01
    determinant = a00 * c00 + a01 * c01 + a02 * c02
    return [(row[0] * b[0] + row[1] * b[1] + row[2] * b[2]) / determinant
            for row in ((c00, c01, c02), (c01, c11, c12), (c02, c12, c22))]
