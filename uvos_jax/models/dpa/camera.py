"""Compensation of camera motion in DPA's flow input; not part of the paper."""

import jax
import jax.numpy as jnp

from uvos_jax.ops.optical_flow import percentile, resize_flow, subtract_camera

_STEP = 2  # pixels between the vectors from which the percentile of the magnitude is computed


def compensate_camera(flow: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Subtracts smooth camera motion from flow and returns the magnitude that gets full color.

    The magnitude is the 99th percentile, so that a few outliers do not make all other colors pale; at least 1/500 of
    the width, for frames without independent motion.

    Args:
        flow: ``[t, h, w, 2]`` in pixels of any grid.
        size: ``(height, width)`` to resize to first, the network's, as in training.

    Returns:
        Flow ``[t, height, width, 2]`` and magnitudes ``[t, 1, 1]``, float32 in pixels of the new grid.
    """
    flow = subtract_camera(resize_flow(flow, size))
    length = jnp.sqrt(jnp.square(flow[:, ::_STEP, ::_STEP]).sum(-1))
    return flow, jnp.maximum(percentile(length.reshape(len(flow), -1), 99), size[1] / 500)[:, None, None]
