"""Per-example losses, float32 ``[b]``; never a batch mean, so that any sharding averages them alike."""

import jax
import jax.numpy as jnp


def binary_cross_entropy(logits: jax.Array, target_mask: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Computes the mean binary cross-entropy of each example from logits.

    Args:
        logits: ``[b, ...]`` float.
        target_mask: The same shape, bool or float in [0, 1].
        weight: The same shape, bool or float in [0, 1]: weight of each pixel in the mean; None for equal weights. An
            example of total weight 0 has loss 0.

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
    """Computes one minus the soft IoU of each example: the sum of minima over the sum of maxima.

    Args:
        probability: ``[b, ...]`` float in [0, 1].
        target_mask: The same shape, bool or float in [0, 1].
        weight: The same shape, bool or float in [0, 1]: weight of each pixel; None for equal weights.

    Returns:
        ``[b]`` float32; 0 where both target and prediction are empty.
    """
    probability, target = probability.astype(jnp.float32), target_mask.astype(jnp.float32)
    axes = tuple(range(1, probability.ndim))
    weight = 1.0 if weight is None else weight.astype(jnp.float32)
    both = (jnp.minimum(probability, target) * weight).sum(axes)
    either = (jnp.maximum(probability, target) * weight).sum(axes)
    return jnp.where(either > 0, 1 - both / jnp.where(either > 0, either, 1), 0)


def focal_loss(logits: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Computes CornerNet's focal loss of a heat map from logits.

    Eq. 12 of F2Net (alpha 2, beta 4), with the minus sign missing in print. The published code differs: it clamps
    probabilities to 1e-4..0.9999 and counts the peaks of a whole batch.

    Args:
        logits: ``[b, ...]`` float.
        target: The same shape, float in [0, 1]: 1 exactly at the peaks; the nearer to 1, the less a pixel counts.
        weight: The same shape, bool or float in [0, 1]: weight of each pixel; None for equal weights. A peak of weight
            0 is not counted as one.

    Returns:
        ``[b]`` float32: the sum over pixels, divided by the number of peaks of the example, at least 1.
    """
    logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
    weight = jnp.ones_like(target) if weight is None else weight.astype(jnp.float32)
    peak = target == 1
    missed = jnp.square(jax.nn.sigmoid(-logits)) * jax.nn.softplus(-logits)
    wrong = (1 - target) ** 4 * jnp.square(jax.nn.sigmoid(logits)) * jax.nn.softplus(logits)
    axes = tuple(range(1, logits.ndim))
    total = (jnp.where(peak, missed, wrong) * weight).sum(axes)
    return total / jnp.maximum((peak & (weight > 0)).sum(axes), 1)


def bootstrapped_cross_entropy(logits: jax.Array, labels: jax.Array, share: jax.Array | float) -> jax.Array:
    """Computes the mean cross-entropy of each example's hardest pixels (CFBI, Sec. 3.6).

    As in the published code, void pixels have loss 0 but count in the number of pixels.

    Args:
        logits: ``[b, h, w, n]`` float.
        labels: ``[b, h, w]`` int, 0 to ``n - 1``; 255 is void.
        share: Fraction of the pixels that are averaged, in (0, 1]; may be traced. At least one pixel is used.

    Returns:
        ``[b]`` float32.
    """
    logits = logits.astype(jnp.float32)
    void = labels == 255
    own = jnp.take_along_axis(logits, jnp.where(void, 0, labels).astype(jnp.int32)[..., None], -1)[..., 0]
    losses = jnp.where(void, 0, jax.nn.logsumexp(logits, -1) - own).reshape(len(logits), -1)
    # In float32 a fraction that yields an integer number of pixels may be slightly too small.
    count = jnp.maximum(jnp.floor(jnp.asarray(share, jnp.float32) * losses.shape[1] + 1e-3), 1)
    hardest = jnp.arange(losses.shape[1]) < count
    return jnp.where(hardest, jnp.sort(losses, -1, descending=True), 0).sum(-1) / count


def batch_hard_triplet(embeddings: jax.Array, identities: jax.Array, valid: jax.Array,
                       margin: float | None = 0.2) -> tuple[jax.Array, jax.Array]:
    """Computes the batch-hard triplet loss (Hermans et al. 2017).

    For each anchor it compares the farthest vector of the same identity with the nearest one of another. It is the only
    loss here that compares examples: gather those of all devices first. Distances are Euclidean; at distance 0 their
    gradient is 0, where that of the square root is infinite.

    Args:
        embeddings: ``[n, d]`` float.
        identities: ``[n]`` int; vectors of equal identity should be near.
        valid: ``[n]`` bool; invalid vectors are neither anchors nor compared with.
        margin: Required margin between the two distances; None for the soft margin ``log(1 + exp(x))``.

    Returns:
        Losses ``[n]`` float32, 0 except for anchors; and ``[n]`` bool, which vectors are anchors: valid ones with
        another valid vector of their identity and one of another identity.
    """
    embeddings = embeddings.astype(jnp.float32)
    # Differences rather than a matrix product, which suffers from cancellation for near vectors.
    squared = jnp.square(embeddings[:, None] - embeddings[None]).sum(-1)
    distance = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    same, both = identities[:, None] == identities[None], valid[:, None] & valid[None]
    own, other = same & both & ~jnp.eye(len(valid), dtype=bool), ~same & both
    anchor = own.any(1) & other.any(1)
    farthest = jnp.where(own, distance, 0).max(1)
    nearest = jnp.where(other, distance, jnp.inf).min(1)
    excess = jnp.where(anchor, farthest - jnp.where(anchor, nearest, 0), 0)
    loss = jax.nn.softplus(excess) if margin is None else jax.nn.relu(excess + margin)
    return jnp.where(anchor, loss, 0), anchor
