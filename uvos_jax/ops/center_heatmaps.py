"""Object center heat maps, peak detection and the center track of one object (F2Net).

Positions are ``(x, y)`` float32 in pixels of their map; pixel centers are at integers.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.ops.pooling import max_pool

_MOTION_DECAY = 0.9  # factor on the extrapolated motion per frame in which the object is lost

SELECTION_RULES = ("motion", "maximum")


@flax.struct.dataclass
class Track:
    """The last centers of one object per example; its size does not depend on the length of the video.

    Attributes:
        centers: ``[b, n, 2]`` float32, oldest first; only the last ``count`` are valid.
        count: ``[b]`` int32 in 0..n, the number of known centers.
        lost: ``[b]`` int32, the number of frames since the object was last detected.
    """

    centers: jax.Array
    count: jax.Array
    lost: jax.Array


def gaussian_radius(height: jax.Array, width: jax.Array, overlap: float = 0.7) -> jax.Array:
    """Computes the radius of the heat map bell around the center of a box.

    This is CornerNet's radius as computed by the published code of CenterNet and F2Net: the smallest of three roots,
    none of which is divided by twice its leading coefficient, so that the third one is the smallest for every box. It
    is ``4 * overlap`` times the distance by which all sides of a box can move outwards before the IoU with the original
    box falls to ``overlap``.

    Args:
        height: Box heights in pixels, any shape.
        width: Box widths in pixels, the same shape.
        overlap: Intersection over union in (0, 1).

    Returns:
        Unrounded radii in pixels, float32 of that shape.
    """
    height, width = jnp.asarray(height, jnp.float32), jnp.asarray(width, jnp.float32)
    half = overlap * (height + width)
    product = 4 * overlap * (1 - overlap) * height * width
    # The root -half + sqrt(half^2 + product), rewritten to avoid cancellation.
    return product / jnp.maximum(half + jnp.sqrt(half**2 + product), 1e-12)


def gaussian_map(centers: jax.Array, sigma: jax.Array | float, size: tuple[int, int],
                 radius: jax.Array | float | None = None) -> jax.Array:
    """Draws a Gaussian bell around one center per map, with value 1 at the center.

    Args:
        centers: ``[b, 2]``; centers may lie outside the map.
        sigma: Standard deviation in pixels, above 0; a scalar or ``[b]``.
        size: Map ``(height, width)`` in pixels.
        radius: The map is 0 where the distance to the center in x or y exceeds the radius; in pixels, a scalar or
            ``[b]``. None does not truncate the bell.

    Returns:
        ``[b, h, w, 1]`` float32 in 0..1.
    """
    def profile(center, length):
        distance = jnp.arange(length, dtype=jnp.float32) - center[:, None]
        bell = jnp.exp(-0.5 * jnp.square(distance / _column(sigma)))
        return bell if radius is None else jnp.where(jnp.abs(distance) <= _column(radius), bell, 0)

    centers = centers.astype(jnp.float32)
    rows, columns = profile(centers[:, 1], size[0]), profile(centers[:, 0], size[1])
    return (rows[:, :, None] * columns[:, None, :])[..., None]


def foreground_box(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the bounding box of all foreground of each mask.

    Args:
        mask: ``[b, h, w]`` bool.

    Returns:
        Boxes ``[b, 4]`` int32 (left, top, right, bottom), right and bottom exclusive, all zero for an empty mask; and
        ``[b]`` bool, whether there is any foreground.
    """
    columns, rows = mask.any(1), mask.any(2)
    present = rows.any(1)
    ends = [columns.argmax(1), rows.argmax(1),
            columns.shape[1] - columns[:, ::-1].argmax(1), rows.shape[1] - rows[:, ::-1].argmax(1)]
    return jnp.where(present[:, None], jnp.stack(ends, 1), 0).astype(jnp.int32), present


def center_map(mask: jax.Array, centers: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the training target of the center branch.

    It is one bell per mask, whose width follows from the bounding box of the foreground.

    Args:
        mask: ``[b, h, w]`` bool, at the size of the map.
        centers: ``[b, 2]`` bell centers, rounded to whole pixels; None takes the centers of the bounding boxes, rounded
            towards the lower right where a box has no central pixel.

    Returns:
        Maps ``[b, h, w, 1]`` float32 in 0..1, exactly 1 at the center, all 0 for an empty mask; centers ``[b, 2]``
        float32, integers, (0, 0) for an empty mask without given centers; and ``[b]`` bool, whether there is any
        foreground.
    """
    box, present = foreground_box(mask)
    height, width = box[:, 3] - box[:, 1], box[:, 2] - box[:, 0]
    if centers is None:
        centers = ((box[:, :2] + box[:, 2:]) // 2).astype(jnp.float32)
    else:
        centers = jnp.round(centers.astype(jnp.float32))
    # For some boxes the radius is an integer, which float32 may round to slightly less.
    radius = jnp.floor(gaussian_radius(height, width) * (1 + 1e-6))
    heat = gaussian_map(centers, (2 * radius + 1) / 6, mask.shape[1:], radius)
    return jnp.where(present[:, None, None, None], heat, 0), centers, present


def gaussian_prior(centers: jax.Array, size: tuple[int, int], sigma: float) -> jax.Array:
    """Draws the Gaussian prior G around a known center (center-guided matching of F2Net).

    Args:
        centers: ``[b, 2]``.
        size: Map ``(height, width)`` in pixels.
        sigma: Standard deviation in pixels of the map, above 0.

    Returns:
        ``[b, h, w, 1]`` float32 in 0..1, a bell that is not truncated.
    """
    return gaussian_map(centers, sigma, size)


def find_peaks(heat: jax.Array, count: int, window: int = 3) -> tuple[jax.Array, jax.Array]:
    """Finds the highest local maxima of a heat map.

    A peak is a pixel that no pixel within its window exceeds, so every pixel of a plateau is one.

    Args:
        heat: ``[b, h, w, 1]`` float in 0..1.
        count: K, the number of peaks returned, at most ``h * w``.
        window: Odd side of the square window in pixels.

    Returns:
        Scores ``[b, K]`` float32 in descending order, ties in row-major order; and centers ``[b, K, 2]`` float32,
        integers. With fewer than K peaks the remaining scores are 0 and their centers undefined.
    """
    # The barrier prevents the compiler from computing the heat twice, e.g. after a sigmoid: two kernels may round
    # differently, and then no pixel equals its own maximum.
    heat = lax.optimization_barrier(heat.astype(jnp.float32))
    highest = max_pool(heat, window=window, stride=1, padding=window // 2)
    scores, index = lax.top_k(jnp.where(heat == highest, heat, 0).reshape(heat.shape[0], -1), count)
    y, x = jnp.divmod(index, heat.shape[2])
    return scores, jnp.stack([x, y], -1).astype(jnp.float32)


def new_track(b: int, n: int) -> Track:
    """Creates a track of ``b`` objects without known centers, with room for ``n`` centers each."""
    return Track(jnp.zeros((b, n, 2), jnp.float32), count=jnp.zeros(b, jnp.int32), lost=jnp.zeros(b, jnp.int32))


def expected_center(track: Track) -> jax.Array:
    """Extrapolates the center by the average motion, damped while the object is lost.

    Returns:
        ``[b, 2]`` float32: the last center plus ``0.9**lost`` times the mean difference of consecutive known centers.
        With one known center, that center; with none, undefined.
    """
    last = track.centers[:, -1]
    steps = jnp.maximum(track.count - 1, 0)
    # Consecutive differences sum to the difference between the ends.
    first = jnp.take_along_axis(track.centers, (track.centers.shape[1] - 1 - steps)[:, None, None], axis=1)[:, 0]
    motion = (last - first) / jnp.maximum(steps, 1)[:, None]
    return last + (_MOTION_DECAY ** track.lost.astype(jnp.float32))[:, None] * motion


def choose_center(track: Track, scores: jax.Array, centers: jax.Array, threshold: float, rule: str,
                  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Selects the object's center among the peaks of a frame.

    Args:
        track: Track of the previous frames.
        scores: ``[b, K]`` scores of this frame's peaks in descending order.
        centers: ``[b, K, 2]`` centers of these peaks.
        threshold: Smallest score of a valid peak, in 0..1.
        rule: ``"maximum"`` selects the highest peak; ``"motion"`` selects the valid peak nearest to the expected
            center, or the highest peak while no center is known.

    Returns:
        Centers ``[b, 2]`` float32, their scores ``[b]`` float32, and ``[b]`` bool, whether any peak reached the
        threshold. If none did, the center is the expected one (the highest peak if none is known) and the score the
        highest.

    Raises:
        ValueError: Unknown rule.
    """
    if rule not in SELECTION_RULES:
        raise ValueError(f"Unknown rule {rule!r}. Use one of {', '.join(SELECTION_RULES)}.")
    expected, tracked = expected_center(track), track.count > 0
    choice = jnp.zeros(scores.shape[0], jnp.int32)
    if rule == "motion":
        distance = jnp.square(centers - expected[:, None]).sum(-1)
        nearest = jnp.where(scores >= threshold, distance, jnp.inf).argmin(1)
        choice = jnp.where(tracked, nearest, choice)
    found = scores[:, 0] >= threshold
    chosen = jnp.take_along_axis(centers, choice[:, None, None], axis=1)[:, 0]
    score = jnp.take_along_axis(scores, choice[:, None], axis=1)[:, 0]
    # Without a valid peak all distances are infinite, so argmin selects the first and highest peak.
    return jnp.where((found | ~tracked)[:, None], chosen, expected), score, found


def extend_track(track: Track, center: jax.Array, found: jax.Array) -> Track:
    """Appends the center of one more frame to a track.

    Args:
        track: Track of the previous frames.
        center: ``[b, 2]``.
        found: ``[b]`` bool, whether the object was detected at ``center``; otherwise ``center`` is ignored. After ``n``
            consecutive misses all centers are dropped.
    """
    n = track.centers.shape[1]
    pushed = jnp.concatenate([track.centers[:, 1:], center[:, None].astype(jnp.float32)], axis=1)
    lost = jnp.where(found, 0, track.lost + 1)
    count = jnp.where(found, jnp.minimum(track.count + 1, n), jnp.where(lost >= n, 0, track.count))
    return Track(jnp.where(found[:, None, None], pushed, track.centers), count, lost)


def _column(value):
    return jnp.asarray(value, jnp.float32).reshape(-1, 1)
