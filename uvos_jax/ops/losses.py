"""Per-example losses: float32 ``[b]`` vectors, never a batch mean, so that any sharding averages them alike."""

import jax
import jax.numpy as jnp


def binary_cross_entropy(logits: jax.Array, target_mask: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean binary cross-entropy of each example, computed from logits.

    Args:
      logits: ``[b, ...]`` float.
      target_mask: same shape, bool or a float in [0, 1].
      weight: same shape, bool or float in [0, 1]; how much each pixel counts in the mean (None: all alike). An example
        in which none counts gives 0.

    Returns:
      ``[b]`` float32.
    """
    logits, target = logits.astype(jnp.float32), target_mask.astype(jnp.float32)
    per_pixel = jax.nn.softplus(logits) - logits * target
    axes = tuple(range(1, logits.ndim))
    if weight is None:
        return per_pixel.mean(axes)
    weight = weight.astype(jnp.float32)
    total = weight.sum(axes)
    return (per_pixel * weight).sum(axes) / jnp.where(total > 0, total, 1)


def soft_iou(probability: jax.Array, target_mask: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """One minus the soft intersection over union of each example: sum of minima over sum of maxima.

    Args:
      probability: ``[b, ...]`` float in [0, 1].
      target_mask: same shape, bool or a float in [0, 1].
      weight: same shape, bool or float in [0, 1]; how much each pixel counts (None: all alike).

    Returns:
      ``[b]`` float32; 0 where there is neither target nor prediction.
    """
    probability, target = probability.astype(jnp.float32), target_mask.astype(jnp.float32)
    axes = tuple(range(1, probability.ndim))
    weight = 1.0 if weight is None else weight.astype(jnp.float32)
    both = (jnp.minimum(probability, target) * weight).sum(axes)
    either = (jnp.maximum(probability, target) * weight).sum(axes)
    return jnp.where(either > 0, 1 - both / jnp.where(either > 0, either, 1), 0)
