"""Edge-preserving smoothing (He, Sun, Tang: Guided image filtering, TPAMI 2013)."""

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.ops.pooling import average_pool, average_unpool


def guided_filter(guide: jax.Array, x: jax.Array, *, radius: int, epsilon: float, step: int = 1) -> jax.Array:
    """Filters a map by a linear regression on the colors of the guide in every window.

    Eq. 19 to 21 of the paper, with a color guide. The linear functions may be computed on a subsampled copy and are
    then applied at full resolution (He and Sun: Fast guided filter, 2015), so edges are as sharp as the guide's.

    Args:
        guide: ``[h, w, 3]`` float32 in [0, 1].
        x: ``[h, w]`` float32, the map to filter.
        radius: Radius of the windows, whose sides are ``2 * radius + 1`` pixels of the copy; windows are clipped at the
            border.
        epsilon: Regularization: color variances well below it are smoothed; in squared units of the guide.
        step: Subsampling factor of the copy.

    Returns:
        ``[h, w]`` float32; values may exceed the range of ``x``.
    """
    # Maps are stacked along the first axis and summed one by one, which XLA compiles to a few loops over whole rows.
    colors, y = jnp.moveaxis(average_pool(guide, step), -1, 0), average_pool(x, step)[None]
    # Centered to avoid cancellation in the variances.
    color, level = colors.mean((1, 2)), y.mean()
    colors, y = colors - color[:, None, None], y - level
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    squares = jnp.stack([colors[i] * colors[j] for i, j in pairs])
    means = box_filter(jnp.concatenate([colors, y, squares, colors * y]), radius)
    of_colors, of_y = means[:3], means[3]
    spread = [means[4 + n] - of_colors[i] * of_colors[j] + epsilon * (i == j) for n, (i, j) in enumerate(pairs)]
    slopes = _solve(spread, means[10:] - of_colors * of_y)
    start = of_y - sum(slopes[i] * of_colors[i] for i in range(3))
    *slopes, start = average_unpool(box_filter(jnp.stack([*slopes, start]), radius), step, x.shape)
    return sum((guide[..., i] - color[i]) * slopes[i] for i in range(3)) + start + level


def box_filter(maps: jax.Array, radius: int) -> jax.Array:
    """Computes means over square windows, clipped at the border.

    Args:
        maps: ``[..., h, w]`` float32.
        radius: Radius of the windows in pixels; their sides are ``2 * radius + 1``.

    Returns:
        The same shape.
    """
    for axis in (maps.ndim - 1, maps.ndim - 2):
        side = maps.shape[axis]
        padded = jnp.pad(maps, [(radius * (axis == other),) * 2 for other in range(maps.ndim)])
        # A sum of shifted copies compiles to one loop; running sums would lose precision.
        maps = sum(jax.lax.slice_in_dim(padded, at, at + side, axis=axis) for at in range(2 * radius + 1))
    counts = [np.minimum(np.arange(side) + radius, side - 1) - np.maximum(np.arange(side) - radius, 0) + 1
              for side in maps.shape[-2:]]
    return maps / np.outer(*counts).astype(np.float32)


def _solve(a, b):
    """Solves ``a x = b`` at every pixel; ``a`` is the upper triangle of a symmetric 3x3 matrix."""
    a00, a01, a02, a11, a12, a22 = a
    c00, c01, c02 = a11 * a22 - a12 * a12, a02 * a12 - a01 * a22, a01 * a12 - a02 * a11
    c11, c12, c22 = a00 * a22 - a02 * a02, a01 * a02 - a00 * a12, a00 * a11 - a01 * a01
    determinant = a00 * c00 + a01 * c01 + a02 * c02
    return [(row[0] * b[0] + row[1] * b[1] + row[2] * b[2]) / determinant
            for row in ((c00, c01, c02), (c01, c11, c12), (c02, c12, c22))]
