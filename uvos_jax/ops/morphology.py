"""Binary morphology with square structuring elements, on the device, with OpenCV's borders."""

import jax
import jax.numpy as jnp


def dilate(mask: jax.Array, side: int) -> jax.Array:
    """Dilates by a ``side x side`` square of ones; pixels outside the image count as background.

    Args:
        mask: ``[..., h, w]`` bool.
        side: Odd side of the square in pixels.

    Returns:
        ``[..., h, w]`` bool.

    Raises:
        ValueError: ``side`` is even.
    """
    if side % 2 == 0:
        raise ValueError(f"Side {side} is even. Use an odd side.")
    for axis in (-2, -1):
        mask = _running_any(mask, side, axis)
    return mask


def erode(mask: jax.Array, side: int) -> jax.Array:
    """Erodes by a ``side x side`` square; pixels outside the image count as foreground, as in OpenCV."""
    return ~dilate(~mask, side)


def opening(mask: jax.Array, side: int) -> jax.Array:
    """Erodes, then dilates: removes parts that do not contain the ``side x side`` square."""
    return dilate(erode(mask, side), side)


def _running_any(mask, side, axis):
    """Computes ``any(mask[i - side // 2 : i + side // 2 + 1])`` in log2(side) steps of doubling windows."""
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
