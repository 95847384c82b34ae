"""Per-example losses: float32 ``[b]`` vectors, never a batch mean, so that any sharding averages them alike."""

import jax
import jax.numpy as jnp


def binary_cross_entropy(logits: jax.Array, target_mask: jax.Array, valid_mask: jax.Array | None = None) -> jax.Array:
    """Mean binary cross-entropy of each example, computed from logits.

    Args:
      logits: ``[b, ...]`` float.
      target_mask: same shape, bool or a float in [0, 1].
      valid_mask: same shape, bool; pixels that count (None: all). An example without any gives 0.

    Returns:
      ``[b]`` float32.
    """
    logits, target = logits.astype(jnp.float32), target_mask.astype(jnp.float32)
    per_pixel = jax.nn.softplus(logits) - logits * target
    axes = tuple(range(1, logits.ndim))
    if valid_mask is None:
        return per_pixel.mean(axes)
    valid = valid_mask.astype(jnp.float32)
    return (per_pixel * valid).sum(axes) / jnp.maximum(valid.sum(axes), 1)
