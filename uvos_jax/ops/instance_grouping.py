"""Instances from center heat maps, offsets and saliency (Panoptic-DeepLab, Cheng et al. 2020).

Positions and offsets are ``(y, x)`` float32 in pixels of the map; pixel centers are at integers.
"""

import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.ops.center_heatmaps import gaussian_map
from uvos_jax.ops.pooling import max_pool


def center_targets(labels: jax.Array, objects: int, sigma: float = 10.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the training targets of the instance head.

    Panoptic-DeepLab's rule: every object has a bell whose peak is the pixel containing the object's mean position,
    truncated at ``3 * sigma + 1`` pixels in either direction; where bells overlap the maximum counts.

    Args:
        labels: ``[b, h, w]`` int32, objects 1 to ``objects``; 0 is background, negative is void. ``h * w * max(h, w)``
            must be below 2**32, since positions are summed exactly.
        objects: Largest object id.
        sigma: Standard deviation of the bells in pixels.

    Returns:
        Heat ``[b, h, w]`` float32 in 0..1; offsets ``[b, h, w, 2]`` float32, (dy, dx) in pixels from a pixel of an
        object to the object's mean position, 0 elsewhere; foreground ``[b, h, w]`` bool, the pixels of objects.
    """
    _, h, w = labels.shape
    rows, columns = jnp.arange(h), jnp.arange(w)

    def add(o, targets):
        heat, offsets = targets
        mask = labels == o
        area = mask.sum((1, 2))
        sums = jnp.stack([(mask.sum(3 - axis) * positions).sum(1) for axis, positions in ((1, rows), (2, columns))], 1)
        present, area = area > 0, jnp.maximum(area, 1)[:, None]
        bell = gaussian_map((sums // area)[:, ::-1], sigma, (h, w), 3 * sigma + 1)[..., 0]
        mean = (sums / area)[:, None, None]
        offset = mean - jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
        return (jnp.where(present[:, None, None], jnp.maximum(heat, bell), heat),
                jnp.where(mask[..., None], offset, offsets))

    start = jnp.zeros(labels.shape, jnp.float32), jnp.zeros((*labels.shape, 2), jnp.float32)
    heat, offsets = lax.fori_loop(1, objects + 1, add, start)
    return heat, offsets, labels > 0


def detect_centers(heat: jax.Array, threshold: float = 0.1, window: int = 7, max_instances: int = 200,
          ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Detects instance centers: local maxima of the heat map above the threshold.

    A center is a pixel that no pixel in its window exceeds. As in the published code of Panoptic-DeepLab, each pixel of
    a plateau counts; with ``max_instances`` or more candidates, only those above the score of number ``max_instances``
    are kept.

    Args:
        heat: ``[b, h, w]`` float.
        threshold: Exclusive lower bound on the heat of a center, 0 or more.
        window: Odd side of the square window in pixels.
        max_instances: Number of centers returned.

    Returns:
        Positions ``[b, max_instances, 2]`` float32, integers, in descending order of score, ties in row-major order;
        scores ``[b, max_instances]`` float32, 0 for an empty entry; and ``[b, max_instances]`` bool, whether the entry
        holds a center.
    """
    b, h, w = heat.shape
    # As in ``center_heatmaps.find_peaks``: the compiler must not compute the compared values twice.
    heat = lax.optimization_barrier(heat.astype(jnp.float32))
    highest = max_pool(heat[..., None], window=window, stride=1, padding=window // 2)[..., 0]
    candidates = jnp.where((heat == highest) & (heat > threshold), heat, 0).reshape(b, -1)
    # Without the barrier XLA optimizes for the separately used last score and sorts all pixels: four times slower.
    score, index = lax.optimization_barrier(lax.top_k(candidates, min(max_instances, h * w)))
    padding = ((0, 0), (0, max_instances - score.shape[1]))
    score, index = jnp.pad(score, padding), jnp.pad(index, padding)
    found = score > score[:, -1:]  # the last score is 0 unless every entry is filled
    return jnp.stack(jnp.divmod(index, w), -1).astype(jnp.float32), jnp.where(found, score, 0), found


def assign_to_centers(offsets: jax.Array, yx: jax.Array, found: jax.Array, foreground: jax.Array) -> jax.Array:
    """Assigns every foreground pixel to the center nearest to where its offset points.

    Args:
        offsets: ``[b, h, w, 2]`` float, (dy, dx) in pixels.
        yx: ``[b, n, 2]`` float, centers.
        found: ``[b, n]`` bool, which of them are valid.
        foreground: ``[b, h, w]`` bool.

    Returns:
        ``[b, h, w]`` int32, the index of the center plus 1 (the first of equally near ones); 0 for background, and
        everywhere if no center is valid.
    """
    b, h, w, _ = offsets.shape
    n = found.shape[1]
    # Separate planes: an innermost axis of length two is eight times slower on a CPU.
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


def select_proposals(labels: jax.Array, score: jax.Array, saliency: jax.Array, max_proposals: int,
                     min_area: float = 0.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Selects the highest-scoring instances of a frame.

    Not stated in the paper; ours: the score of an instance is its center score times the mean saliency inside it, and
    small instances are discarded as noise.

    Args:
        labels: ``[b, h, w]`` int32, instances 1 to ``n``, 0 background.
        score: ``[b, n]`` float32, scores of their centers.
        saliency: ``[b, h, w]`` float in 0..1.
        max_proposals: Number of instances kept, at most 255.
        min_area: Smallest area of an instance as a fraction of the frame; it has at least one pixel in any case.

    Returns:
        Proposal ids ``[b, h, w]`` uint8, 1 to ``max_proposals`` by descending score, 0 elsewhere; scores ``[b,
        max_proposals]`` float32, 0 for an empty slot; and ``[b]`` int32, the number of instances dropped for lack of a
        slot.
    """
    b, h, w = labels.shape
    n = score.shape[1]

    def per_instance(values):
        """Sums ``[b, h, w]`` values over each instance, ``[b, n]``."""
        zeros = jnp.zeros((b, n + 1), jnp.float32)
        return zeros.at[jnp.arange(b)[:, None], labels.reshape(b, -1)].add(values.reshape(b, -1))[:, 1:]

    area = per_instance(jnp.ones(labels.shape, jnp.float32))
    kept = area >= jnp.maximum(1, min_area * h * w)
    score = jnp.where(kept, score * per_instance(saliency.astype(jnp.float32)) / jnp.maximum(area, 1), -1)
    order = jnp.argsort(score, axis=1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=1)
    table = jnp.where(kept & (rank < max_proposals), rank + 1, 0).astype(jnp.uint8)
    table = jnp.pad(table, ((0, 0), (1, 0)))
    best = jnp.take_along_axis(score, order, axis=1)[:, :max_proposals]
    best = jnp.pad(jnp.maximum(best, 0), ((0, 0), (0, max_proposals - best.shape[1])))
    dropped = jnp.maximum(kept.sum(1) - max_proposals, 0).astype(jnp.int32)
    return jnp.take_along_axis(table, labels.reshape(b, -1), axis=1).reshape(b, h, w), best, dropped


def group_instances(heat: jax.Array, offsets: jax.Array, saliency: jax.Array, max_proposals: int, *,
                    threshold: float = 0.1, window: int = 7, max_instances: int = 200, salient_above: float = 0.5,
                    min_area: float = 0.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Detects centers, assigns pixels to them and selects the best instances.

    Args:
        heat: ``[b, h, w]`` float, center heat map.
        offsets: ``[b, h, w, 2]`` float, (dy, dx) in pixels.
        saliency: ``[b, h, w]`` float in 0..1, foreground probability.
        max_proposals: Number of proposals per frame.
        threshold: See :func:`detect_centers`.
        window: See :func:`detect_centers`.
        max_instances: See :func:`detect_centers`.
        salient_above: Pixels with a higher saliency are foreground.
        min_area: See :func:`select_proposals`.

    Returns:
        See :func:`select_proposals`. Without a center there is no proposal.
    """
    yx, score, found = detect_centers(heat, threshold, window, max_instances)
    labels = assign_to_centers(offsets, yx, found, saliency > salient_above)
    return select_proposals(labels, score, saliency, max_proposals, min_area)
