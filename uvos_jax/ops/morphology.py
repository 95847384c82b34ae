"""Binary morphology with square structuring elements, on the device, with OpenCV's borders."""

import jax
import jax.numpy as jnp


def dilate(mask: jax.Array, side: int) -> jax.Array:
    """Dilation by a ``side x side`` square of ones; outside the image is background.

    Args:
      mask: ``[..., h, w]`` bool.
      side: odd side of the square, in pixels.

    Returns:
      ``[..., h, w]`` bool.
    """
    if side % 2 == 0:
        raise ValueError(f"dilate wants an odd side, got {side}")
    for axis in (-2, -1):
        mask = _running_any(mask, side, axis)
    return mask


def erode(mask: jax.Array, side: int) -> jax.Array:
    """Erosion by a ``side x side`` square; outside the image counts as foreground, as in OpenCV. See :func:`dilate`."""
    return ~dilate(~mask, side)


def opening(mask: jax.Array, side: int) -> jax.Array:
    """Erosion, then dilation: removes parts that the ``side x side`` square does not fit in."""
    return dilate(erode(mask, side), side)


def _running_any(mask, side, axis):
    """``out[i] = any(mask[i - side // 2 : i + side // 2 + 1])`` in log2(side) steps of doubling windows."""
    pad = [(0, 0)] * mask.ndim
    pad[axis] = (side // 2, side // 2)
    window = jnp.pad(mask, pad)
    covered = 1  # window[i] = any(padded[i : i + covered])
    while covered < side:
        step = min(covered, side - covered)
        n = window.shape[axis] - step
        window = (jax.lax.slice_in_dim(window, 0, n, axis=axis)
                  | jax.lax.slice_in_dim(window, step, step + n, axis=axis))
        covered += step
    return window
