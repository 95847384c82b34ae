"""Optical flow as network input: resizing, color coding and camera motion compensation.

Flow is ``[..., h, w, 2]``, ``(dx, dy)`` in pixels of its own grid.
"""

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.color_wheel import color_wheel
from uvos_jax.ops.resize import Size, resize_bilinear

_FIT_POINTS = 1024  # largest number of vectors, on a grid, that the camera motion is fitted to
_FIT_ROUNDS = 12
_LEAST_SPREAD = 0.02  # pixels; residuals below it are rounding errors, not motion


def resize_flow(flow: jax.Array, size: Size) -> jax.Array:
    """Resizes a flow field and scales its vectors accordingly.

    Args:
        flow: ``[b, h, w, 2]`` float32.
        size: Output ``(height, width)``.

    Returns:
        ``[b, height, width, 2]`` float32, vectors in pixels of the new grid. Downsampling is antialiased.
    """
    h, w = flow.shape[1:3]
    if size[0] >= h and size[1] >= w:
        resized = resize_bilinear(flow, size, align_corners=False)
    else:
        resized = jax.image.resize(flow, (len(flow), *size, 2), "linear", antialias=True)
    return resized * np.asarray([size[1] / w, size[0] / h], np.float32)


def flow_to_rgb(flow: jax.Array, radius: jax.Array | float | None = None) -> jax.Array:
    """Draws flow on the color wheel of Baker et al. (IJCV 2011) as RAFT's code does.

    The result is the input of DPA's motion stream.

    Args:
        flow: ``[..., h, w, 2]`` float32.
        radius: Length of a vector of full saturation, ``[..., 1, 1]``; None takes the longest vector of each field plus
            1e-5, as published. Longer vectors are drawn darker.

    Returns:
        ``[..., h, w, 3]`` float32 RGB, integers from 0 to 255; white is no motion, hue is direction.
    """
    length = jnp.sqrt(jnp.square(flow).sum(-1))
    if radius is None:
        radius = length.max((-2, -1), keepdims=True) + 1e-5
    x, y, length = flow[..., 0] / radius, flow[..., 1] / radius, (length / radius)[..., None]
    wheel = color_wheel().astype(np.float32)
    position = (jnp.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = jnp.floor(position).astype(jnp.int32)
    share = (position - low)[..., None]
    color = (1 - share) * jnp.take(wheel, low, 0) + share * jnp.take(wheel, (low + 1) % len(wheel), 0)
    return jnp.floor(255 * jnp.where(length <= 1, 1 - length * (1 - color), 0.75 * color))


def percentile(x: jax.Array, q: float) -> jax.Array:
    """Computes ``jnp.percentile`` over the last axis of non-negative values without sorting.

    The bit patterns of non-negative floats, read as integers, are ordered like the floats, so 31 bisection steps find
    the n-th value. On a CPU that takes a tenth of the time of XLA's sort.

    Args:
        x: ``[..., n]``, non-negative.
        q: Percentile in 0..100.

    Returns:
        ``[...]`` float32, linearly interpolated between the two nearest ranks.
    """
    rank = q / 100 * (x.shape[-1] - 1)
    low = int(rank)
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)

    def smallest(n):
        def bisect(i, found):
            candidate = found | jnp.left_shift(1, 30 - i)
            return jnp.where((bits < candidate[..., None]).sum(-1) <= n, candidate, found)

        found = jax.lax.fori_loop(0, 31, bisect, jnp.zeros(x.shape[:-1], jnp.int32))
        return jax.lax.bitcast_convert_type(found, jnp.float32)

    first = smallest(low)
    return first if rank == low else first + np.float32(rank - low) * (smallest(low + 1) - first)


def warp(maps: jax.Array, flow: jax.Array) -> jax.Array:
    """Samples maps where a flow field points, bilinearly; coordinates are clamped to the image.

    Args:
        maps: ``[h, w, c]`` float32.
        flow: ``[h, w, 2]`` float32, from output pixels to positions in ``maps``.

    Returns:
        ``[h, w, c]`` float32.
    """
    h, w, channels = maps.shape
    y = jnp.clip(np.arange(h, dtype=np.float32)[:, None] + flow[..., 1], 0, h - 1)
    x = jnp.clip(np.arange(w, dtype=np.float32) + flow[..., 0], 0, w - 1)
    top, left = y.astype(jnp.int32), x.astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, h - 1), jnp.minimum(left + 1, w - 1)
    down, along = (y - top)[..., None], (x - left)[..., None]
    flat = maps.reshape(h * w, channels)  # with a single index XLA's gather takes a fraction of the time on a CPU

    def at(row, column):
        return flat.at[row * w + column].get(mode="promise_in_bounds")

    return ((1 - down) * ((1 - along) * at(top, left) + along * at(top, right))
            + down * ((1 - along) * at(bottom, left) + along * at(bottom, right)))


def subtract_camera(flow: jax.Array) -> jax.Array:
    """Subtracts the background motion caused by a moving camera.

    Fits the flow of a plane under a moving camera (eight parameters, Longuet-Higgins 1984) by iteratively reweighted
    least squares with the robust weights of Geman and McClure (1985).

    Args:
        flow: ``[b, h, w, 2]`` float32.

    Returns:
        ``[b, h, w, 2]`` float32, the flow minus the fitted one.
    """
    h, w = flow.shape[1:3]
    y, x = np.linspace(-1, 1, h, dtype=np.float32), np.linspace(-1, 1, w, dtype=np.float32) * np.float32(w / h)
    step = max(1, int(np.ceil(np.sqrt(h * w / _FIT_POINTS))))
    seen_y, seen_x = (side.ravel() for side in np.meshgrid(y[step // 2::step], x[step // 2::step], indexing="ij"))
    one, zero = np.ones_like(seen_x), np.zeros_like(seen_x)
    seen = np.stack([np.stack([one, seen_x, seen_y, zero, zero, zero, seen_x * seen_x, seen_x * seen_y], -1),
                     np.stack([zero, zero, zero, one, seen_x, seen_y, seen_x * seen_y, seen_y * seen_y], -1)], 1)

    def fit(vectors):
        def solve(weights):
            weighted = seen * weights[:, None, None]
            normal = jnp.einsum("npi,npj->ij", weighted, seen) + 1e-4 * jnp.eye(8)
            return jnp.linalg.solve(normal, jnp.einsum("npi,np->i", weighted, vectors))

        def reweight(parameters, _):
            error = jnp.sqrt(jnp.square(vectors - seen @ parameters).sum(-1))
            spread = jnp.maximum(1.5 * percentile(error, 50), _LEAST_SPREAD)
            return solve(jnp.square(spread**2 / (spread**2 + error**2))), None

        # The median vector is a good start where objects cover less than half of the frame.
        start = jnp.zeros(8).at[np.array([0, 3])].set(jnp.median(vectors, 0))
        return jax.lax.scan(reweight, start, None, length=_FIT_ROUNDS)[0]

    sampled = flow[:, step // 2::step, step // 2::step].astype(jnp.float32).reshape(len(flow), -1, 2)
    with jax.default_matmul_precision("highest"):
        a = jax.vmap(fit)(sampled).T[..., None, None]
    x, y = x[None, :], y[:, None]
    quadratic = a[6] * x + a[7] * y
    return flow - jnp.stack([a[0] + a[1] * x + a[2] * y + quadratic * x,
                             a[3] + a[4] * x + a[5] * y + quadratic * y], -1)
