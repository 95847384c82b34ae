"""From center heat, offsets and saliency to instances, as Panoptic-DeepLab groups pixels (Cheng et al. 2020).

Positions and offsets are ``(y, x)`` in pixels of the map, float32; the middle of a pixel is a whole number.
"""

import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.ops.center_heatmaps import gaussian_map
from uvos_jax.ops.pooling import max_pool


def center_targets(labels: jax.Array, objects: int, sigma: float = 10.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the instance head learns of the true objects.

    Panoptic-DeepLab's rule: every object has a bell, whose peak is the pixel that its mean position falls in and which
    ends ``3 * sigma + 1`` pixels from it in either direction; where bells meet the higher one counts.

    Args:
      labels: ``[b, h, w]`` int32, objects 1 to ``objects``; 0 is background, below 0 void. ``h * w * max(h, w)`` below
        2**32, as positions are summed up exactly.
      objects: how many there may be.
      sigma: of the bells, in pixels.

    Returns:
      Heat ``[b, h, w]`` float32 in 0..1; offsets ``[b, h, w, 2]`` float32, (dy, dx) in pixels from a pixel of an object
      to the object's mean position, 0 elsewhere; foreground ``[b, h, w]`` bool, the pixels of objects.
    """
    _, h, w = labels.shape
    rows, columns = jnp.arange(h), jnp.arange(w)

    def add(o, drawn):
        heat, offsets = drawn
        mask = labels == o
        area = mask.sum((1, 2))
        sums = jnp.stack([(mask.sum(3 - axis) * places).sum(1) for axis, places in ((1, rows), (2, columns))], 1)
        present, area = area > 0, jnp.maximum(area, 1)[:, None]
        bell = gaussian_map((sums // area)[:, ::-1], sigma, (h, w), 3 * sigma + 1)[..., 0]
        mean = (sums / area)[:, None, None]
        way = mean - jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
        return (jnp.where(present[:, None, None], jnp.maximum(heat, bell), heat),
                jnp.where(mask[..., None], way, offsets))

    start = jnp.zeros(labels.shape, jnp.float32), jnp.zeros((*labels.shape, 2), jnp.float32)
    heat, offsets = lax.fori_loop(1, objects + 1, add, start)
    return heat, offsets, labels > 0


def peaks(heat: jax.Array, threshold: float = 0.1, window: int = 7, most: int = 200,
          ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Centers of instances: the best pixels above the threshold that none in their window exceeds.

    As in Panoptic-DeepLab's published code each pixel of a plateau is one; and where there are ``most`` or more, only
    those count that are better than the ``most``-th.

    Args:
      heat: ``[b, h, w]`` float.
      threshold: what a center must exceed, 0 or more.
      window: side of the square window in pixels, odd.
      most: how many to return.

    Returns:
      Positions ``[b, most, 2]`` float32, whole numbers, best first, of equals the one further up (then left); their
      scores ``[b, most]`` float32, 0 where there is none; and ``[b, most]`` bool, whether there is one.
    """
    b, h, w = heat.shape
    # As in ``centers.peaks``: what is compared with its own maximum must not be computed twice.
    heat = lax.optimization_barrier(heat.astype(jnp.float32))
    highest = max_pool(heat[..., None], window=window, stride=1, padding=window // 2)[..., 0]
    candidates = jnp.where((heat == highest) & (heat > threshold), heat, 0).reshape(b, -1)
    # With a barrier, or XLA would see that the last one is looked at alone, and sort all pixels: four times the time.
    score, index = lax.optimization_barrier(lax.top_k(candidates, min(most, h * w)))
    rest = ((0, 0), (0, most - score.shape[1]))
    score, index = jnp.pad(score, rest), jnp.pad(index, rest)
    found = score > score[:, -1:]  # the last one is 0 unless there are enough
    return jnp.stack(jnp.divmod(index, w), -1).astype(jnp.float32), jnp.where(found, score, 0), found


def nearest_center(offsets: jax.Array, yx: jax.Array, found: jax.Array, foreground: jax.Array) -> jax.Array:
    """Gives every foreground pixel to the center that its offset leads closest to.

    Args:
      offsets: ``[b, h, w, 2]`` float, (dy, dx) in pixels.
      yx: ``[b, n, 2]`` float, centers.
      found: ``[b, n]`` bool, which of them count.
      foreground: ``[b, h, w]`` bool.

    Returns:
      ``[b, h, w]`` int32, the index of the center plus 1 (of equally near ones the first); 0 for background, and for
      all pixels where no center was found.
    """
    b, h, w, _ = offsets.shape
    n = found.shape[1]
    # Planes of their own: a CPU takes eight times as long over an innermost axis of two.
    y = offsets[..., 0].astype(jnp.float32) + jnp.arange(h)[:, None]
    x = offsets[..., 1].astype(jnp.float32) + jnp.arange(w)

    def closer(i, nearest):
        distance, labels = nearest
        center = yx[:, i, None, None]
        new = jnp.square(y - center[..., 0]) + jnp.square(x - center[..., 1])
        new = jnp.where(found[:, i, None, None], new, jnp.inf)
        return jnp.minimum(distance, new), jnp.where(new < distance, i + 1, labels)

    last = jnp.where(found, jnp.arange(1, n + 1), 0).max(initial=0)
    start = jnp.full((b, h, w), jnp.inf), jnp.zeros((b, h, w), jnp.int32)
    _, labels = lax.fori_loop(0, last, closer, start)
    return jnp.where(foreground, labels, 0)


def proposals(labels: jax.Array, score: jax.Array, saliency: jax.Array, max_proposals: int, smallest: float = 0.0,
              ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Puts the best instances into max_proposals.

    Ours: an instance scores what its center scores times the mean saliency in it, and small ones are noise.

    Args:
      labels: ``[b, h, w]`` int32, instances 1 to ``n``, 0 background.
      score: ``[b, n]`` float32 of their centers.
      saliency: ``[b, h, w]`` float in 0..1.
      max_proposals: how many instances are kept, at most 255.
      smallest: share of the frame that an instance must fill; an instance without pixels is none.

    Returns:
      ``[b, h, w]`` uint8, max_proposals 1 to ``max_proposals`` by falling score, 0 elsewhere; scores ``[b, max_proposals]`` float32, 0 for
      empty max_proposals; and ``[b]`` int32, how many instances there was no slot for.
    """
    b, h, w = labels.shape
    n = score.shape[1]

    def per_instance(values):
        """Sums ``[b, n]`` of ``[b, h, w]``."""
        zeros = jnp.zeros((b, n + 1), jnp.float32)
        return zeros.at[jnp.arange(b)[:, None], labels.reshape(b, -1)].add(values.reshape(b, -1))[:, 1:]

    area = per_instance(jnp.ones(labels.shape, jnp.float32))
    kept = area >= jnp.maximum(1, smallest * h * w)
    score = jnp.where(kept, score * per_instance(saliency.astype(jnp.float32)) / jnp.maximum(area, 1), -1)
    order = jnp.argsort(score, axis=1, descending=True, stable=True)
    place = jnp.argsort(order, axis=1)
    table = jnp.where(kept & (place < max_proposals), place + 1, 0).astype(jnp.uint8)
    table = jnp.pad(table, ((0, 0), (1, 0)))
    best = jnp.take_along_axis(score, order, axis=1)[:, :max_proposals]
    best = jnp.pad(jnp.maximum(best, 0), ((0, 0), (0, max_proposals - best.shape[1])))
    dropped = jnp.maximum(kept.sum(1) - max_proposals, 0).astype(jnp.int32)
    return jnp.take_along_axis(table, labels.reshape(b, -1), axis=1).reshape(b, h, w), best, dropped


def group(heat: jax.Array, offsets: jax.Array, saliency: jax.Array, max_proposals: int, *, threshold: float = 0.1,
          window: int = 7, most: int = 200, salient_above: float = 0.5, smallest: float = 0.0,
          ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """From what the network says of frames to proposals.

    Args:
      heat: ``[b, h, w]`` float, of centers.
      offsets: ``[b, h, w, 2]`` float, (dy, dx) in pixels.
      saliency: ``[b, h, w]`` float in 0..1, probability of foreground.
      max_proposals: how many proposals there may be in a frame.
      threshold: see :func:`peaks`.
      window: see :func:`peaks`.
      most: see :func:`peaks`.
      salient_above: probability above which a pixel is foreground.
      smallest: see :func:`proposals`.

    Returns:
      What :func:`proposals` returns. Where no center is found there is no proposal.
    """
    yx, score, found = peaks(heat, threshold, window, most)
    labels = nearest_center(offsets, yx, found, saliency > salient_above)
    return proposals(labels, score, saliency, max_proposals, smallest)
