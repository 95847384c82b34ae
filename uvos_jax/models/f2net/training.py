"""Training targets and losses of F2Net."""

import jax
import jax.numpy as jnp

from uvos_jax.labels import VOID
from uvos_jax.models.f2net.modules import STRIDE
from uvos_jax.ops.center_heatmaps import center_map, find_peaks
from uvos_jax.ops.losses import binary_cross_entropy


def center_targets(labels: jax.Array, still: jax.Array) -> dict[str, jax.Array]:
    """Returns the targets of the center branch.

    Args:
        labels: ``[b, 2, h, w]`` uint8 labels of the previous frame and the frame; any object is foreground, 255 void.
        still: ``[b]`` bool, frames without a previous one.

    Returns:
        At stride 4: ``"previous_mask"`` ``[b, h', w']`` bool; the center maps ``"previous"`` of the previous frame and
        ``"heat"`` of the frame, ``[b, h', w', 1]`` float32 in 0..1; ``"center"`` ``[b, 2]``, the true center (x, y) of
        the frame, and ``"present"`` ``[b]`` bool, whether it has one.
    """
    # Every fourth pixel, so that corners are aligned; the published code's nearest pixels are up to 3 pixels off.
    small = labels[..., ::STRIDE, ::STRIDE]
    small = (small > 0) & (small != VOID)
    previous, _, _ = center_map(small[:, 0])
    heat, center, present = center_map(small[:, 1])
    return {"previous_mask": small[:, 0] & ~still[:, None, None],
            "previous": jnp.where(still[:, None, None, None], 0.0, previous),
            "heat": heat, "center": center, "present": present}


def best_peak(heat: jax.Array, threshold: float) -> tuple[jax.Array, jax.Array]:
    """Returns the center with the highest score, without a gradient.

    Args:
        heat: ``[b, h, w, 1]`` in 0..1.
        threshold: Lowest score of a center.

    Returns:
        ``[b, 2]`` (x, y) in pixels of the map; and ``[b]`` bool, whether its score reaches the threshold.
    """
    scores, candidates = find_peaks(jax.lax.stop_gradient(heat), 1)
    return candidates[:, 0], scores[:, 0] >= threshold


def mask_loss(logits: jax.Array, mask: jax.Array, valid: jax.Array, background_weight: float) -> jax.Array:
    """Returns the cross-entropy of a mask.

    Args:
        logits: ``[b, h, w, 1]`` float32.
        mask: ``[b, h, w, 1]`` bool.
        valid: ``[b, h, w, 1]`` bool; False for void pixels.
        background_weight: Weight of background pixels.

    Returns:
        ``[b]`` float32.
    """
    weight = jnp.where(mask, 1.0, background_weight) * valid if background_weight != 1 else valid
    return binary_cross_entropy(logits, mask, weight)
