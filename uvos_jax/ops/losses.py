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


def focal_loss(logits: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """CornerNet's focal loss of a heat map, computed from logits.

    Eq. 12 of F2Net (alpha 2, beta 4) with the minus sign that print lacks; the published code differs in clamping
    probabilities to 1e-4..0.9999 and in counting the peaks of a whole batch.

    Args:
      logits: ``[b, ...]`` float.
      target: same shape, float in [0, 1]; 1 exactly at the peaks, and the less a pixel counts the nearer it is to 1.
      weight: same shape, bool or float in [0, 1]; how much each pixel counts (None: all alike). A peak that does not
        count at all is none.

    Returns:
      ``[b]`` float32: the sum over pixels, divided by the number of peaks of the example, or by 1 if it has none.
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
    """Mean cross-entropy of each example's hardest pixels (CFBI, Sec. 3.6).

    As in the published code, void pixels cost nothing but count among all pixels.

    Args:
      logits: ``[b, h, w, n]`` float.
      labels: ``[b, h, w]`` int, 0 to ``n - 1``; 255 is void.
      share: of all pixels, in (0, 1]; may be traced. At least one pixel counts.

    Returns:
      ``[b]`` float32.
    """
    logits = logits.astype(jnp.float32)
    void = labels == 255
    own = jnp.take_along_axis(logits, jnp.where(void, 0, labels).astype(jnp.int32)[..., None], -1)[..., 0]
    losses = jnp.where(void, 0, jax.nn.logsumexp(logits, -1) - own).reshape(len(logits), -1)
    # In float32 a share that means a whole number of pixels may fall just short of it.
    count = jnp.maximum(jnp.floor(jnp.asarray(share, jnp.float32) * losses.shape[1] + 1e-3), 1)
    hardest = jnp.arange(losses.shape[1]) < count
    return jnp.where(hardest, jnp.sort(losses, -1, descending=True), 0).sum(-1) / count


def batch_hard_triplet(embeddings: jax.Array, identities: jax.Array, valid: jax.Array,
                       margin: float | None = 0.2) -> tuple[jax.Array, jax.Array]:
    """How much farther the farthest of one's own is than the nearest of the others ("batch hard", Hermans et al. 2017).

    The one loss here that compares examples: those of all devices must be brought together before. Distances are
    Euclidean; at distance 0 their gradient is 0, where the root's own is infinite.

    Args:
      embeddings: ``[n, d]`` float.
      identities: ``[n]`` int, the same for vectors that shall be near.
      valid: ``[n]`` bool; other vectors are neither anchors nor compared with.
      margin: by which it shall be nearer instead; None: the soft margin ``log(1 + exp(x))``, which never ends.

    Returns:
      Losses ``[n]`` float32 of every anchor; and ``[n]`` bool, which vectors are anchors: valid ones that have both
      another one of their identity and one of another. The others' loss is 0.
    """
    embeddings = embeddings.astype(jnp.float32)
    # Differences rather than one matrix product, which cancels where vectors are near.
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
