"""Centers of objects: maps that mark them, peaks that betray them, and the track of one through a video (F2Net).

Positions are ``(x, y)``, float32, in pixels of the map they belong to; the middle of a pixel is a whole number.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.ops.pooling import max_pool

_FADE = 0.9  # how much less of its motion a lost object is expected to go on with, per frame

RULES = ("motion", "maximum")


@flax.struct.dataclass
class Track:
    """The last centers of one object per example; nothing in it depends on how long the video is.

    Attributes:
      centers: ``[b, n, 2]`` float32, oldest first; only the last ``count`` mean anything.
      count: ``[b]`` int32 in 0..n, how many are known.
      lost: ``[b]`` int32, frames since the object was last seen.
    """

    centers: jax.Array
    count: jax.Array
    lost: jax.Array


def gaussian_radius(height: jax.Array, width: jax.Array, overlap: float = 0.7) -> jax.Array:
    """How far a heat map's spot reaches around the center of a box.

    CornerNet's radius as CenterNet's and F2Net's published code compute it: the smallest of three roots, of which none
    is divided by twice its leading coefficient, so that the third is the smallest of any box. It is ``4 * overlap``
    times the distance by which all sides of a box can move outwards until it overlaps the old one by ``overlap`` only.

    Args:
      height: of boxes, in pixels, any shape.
      width: of boxes, the same shape.
      overlap: intersection over union in (0, 1).

    Returns:
      Radii in pixels, float32 of that shape; nobody has rounded them yet.
    """
    height, width = jnp.asarray(height, jnp.float32), jnp.asarray(width, jnp.float32)
    half = overlap * (height + width)
    product = 4 * overlap * (1 - overlap) * height * width
    # The root -half + sqrt(half^2 + product), without the difference of two nearly equal numbers.
    return product / jnp.maximum(half + jnp.sqrt(half**2 + product), 1e-12)


def gaussian_map(centers: jax.Array, sigma: jax.Array | float, size: tuple[int, int],
                 radius: jax.Array | float | None = None) -> jax.Array:
    """Maps with a Gauss bell at one center each: 1 there, falling to 0.

    Args:
      centers: ``[b, 2]``, anywhere, also outside the map.
      sigma: above 0, in pixels; one for all or ``[b]``.
      size: (height, width) of the map in pixels.
      radius: further than this from the center, in x or in y, the map is 0; in pixels, one for all or ``[b]``.
        None: nowhere.

    Returns:
      ``[b, h, w, 1]`` float32 in 0..1.
    """
    def profile(center, length):
        away = jnp.arange(length, dtype=jnp.float32) - center[:, None]
        bell = jnp.exp(-0.5 * jnp.square(away / _column(sigma)))
        return bell if radius is None else jnp.where(jnp.abs(away) <= _column(radius), bell, 0)

    centers = centers.astype(jnp.float32)
    rows, columns = profile(centers[:, 1], size[0]), profile(centers[:, 0], size[1])
    return (rows[:, :, None] * columns[:, None, :])[..., None]


def foreground_box(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest box around all foreground of each mask.

    Args:
      mask: ``[b, h, w]`` bool.

    Returns:
      Boxes ``[b, 4]`` int32 (left, top, right, bottom; the last two are the first column and row outside), all zero
      for an empty mask; and ``[b]`` bool, whether there is any foreground.
    """
    columns, rows = mask.any(1), mask.any(2)
    present = rows.any(1)
    ends = [columns.argmax(1), rows.argmax(1),
            columns.shape[1] - columns[:, ::-1].argmax(1), rows.shape[1] - rows[:, ::-1].argmax(1)]
    return jnp.where(present[:, None], jnp.stack(ends, 1), 0).astype(jnp.int32), present


def center_map(mask: jax.Array, centers: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The heat map that the center branch learns: one bell, as wide as the foreground's box allows.

    Args:
      mask: ``[b, h, w]`` bool, at the map's own size.
      centers: ``[b, 2]``, where to put the bells, rounded to whole pixels; None: the middles of the boxes, rounded
        towards the lower right where a box has no middle pixel.

    Returns:
      Maps ``[b, h, w, 1]`` float32 in 0..1, exactly 1 at the center, all 0 for an empty mask; centers ``[b, 2]``
      float32, whole numbers, (0, 0) for an empty mask if none were given; and ``[b]`` bool, whether there is any
      foreground.
    """
    box, present = foreground_box(mask)
    height, width = box[:, 3] - box[:, 1], box[:, 2] - box[:, 0]
    if centers is None:
        centers = ((box[:, :2] + box[:, 2:]) // 2).astype(jnp.float32)
    else:
        centers = jnp.round(centers.astype(jnp.float32))
    # Of some boxes the radius is a whole number, which float32 may miss by a rounding from below.
    radius = jnp.floor(gaussian_radius(height, width) * (1 + 1e-6))
    heat = gaussian_map(centers, (2 * radius + 1) / 6, mask.shape[1:], radius)
    return jnp.where(present[:, None, None, None], heat, 0), centers, present


def center_prior(centers: jax.Array, size: tuple[int, int], sigma: float) -> jax.Array:
    """Where an object around a known center is to be expected: the prior G of F2Net's center-guided matching.

    Args:
      centers: ``[b, 2]``.
      size: (height, width) of the map in pixels.
      sigma: above 0, in pixels of the map.

    Returns:
      ``[b, h, w, 1]`` float32 in 0..1, a bell that is nowhere cut off.
    """
    return gaussian_map(centers, sigma, size)


def peaks(heat: jax.Array, count: int, window: int = 3) -> tuple[jax.Array, jax.Array]:
    """The best local maxima: pixels that none in their window exceeds (so each pixel of a plateau is one).

    Args:
      heat: ``[b, h, w, 1]`` float in 0..1.
      count: K, how many to return, at most ``h * w``.
      window: side of the square window in pixels, odd.

    Returns:
      Scores ``[b, K]`` float32, best first, of equals the one further up (then left); and centers ``[b, K, 2]``
      float32, whole numbers. Where there are fewer peaks than K, the rest score 0 and their places mean nothing.
    """
    # The barrier keeps a compiler from computing the heat twice, as it may where a sigmoid comes before: two kernels
    # may round differently, and then no pixel equals its own maximum.
    heat = lax.optimization_barrier(heat.astype(jnp.float32))
    highest = max_pool(heat, window=window, stride=1, padding=window // 2)
    scores, index = lax.top_k(jnp.where(heat == highest, heat, 0).reshape(heat.shape[0], -1), count)
    y, x = jnp.divmod(index, heat.shape[2])
    return scores, jnp.stack([x, y], -1).astype(jnp.float32)


def new_track(b: int, n: int) -> Track:
    """A track of ``b`` objects that nobody has seen yet; it will remember ``n`` centers of each."""
    return Track(jnp.zeros((b, n, 2), jnp.float32), count=jnp.zeros(b, jnp.int32), lost=jnp.zeros(b, jnp.int32))


def expected_center(track: Track) -> jax.Array:
    """Where the object should be now: it goes on as it did on average, and ever less so while it is lost.

    Returns:
      ``[b, 2]`` float32: the last center plus ``0.9**lost`` of the mean difference between neighbors among the known
      centers. With one known center that one; with none it means nothing.
    """
    last = track.centers[:, -1]
    steps = jnp.maximum(track.count - 1, 0)
    # Differences between neighbors add up to the one between the ends.
    first = jnp.take_along_axis(track.centers, (track.centers.shape[1] - 1 - steps)[:, None, None], axis=1)[:, 0]
    motion = (last - first) / jnp.maximum(steps, 1)[:, None]
    return last + (_FADE ** track.lost.astype(jnp.float32))[:, None] * motion


def choose_center(track: Track, scores: jax.Array, centers: jax.Array, threshold: float, rule: str,
                  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which of the peaks is the object's center.

    Args:
      track: of the frames before this one.
      scores: ``[b, K]`` of this frame's peaks, best first.
      centers: ``[b, K, 2]`` of them.
      threshold: what a peak must score to count, in 0..1.
      rule: ``"maximum"``, the best peak; or ``"motion"``, the nearest one to where the track goes on, and the best
        while no center is known.

    Returns:
      Centers ``[b, 2]`` float32, their scores ``[b]`` float32, and ``[b]`` bool, whether any peak reached the
      threshold. If none did: the expected center (the best peak's if none is known), and the best score.

    Raises:
      ValueError: for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"the rule must be one of {', '.join(RULES)}, not {rule!r}")
    expected, tracked = expected_center(track), track.count > 0
    choice = jnp.zeros(scores.shape[0], jnp.int32)
    if rule == "motion":
        distance = jnp.square(centers - expected[:, None]).sum(-1)
        nearest = jnp.where(scores >= threshold, distance, jnp.inf).argmin(1)
        choice = jnp.where(tracked, nearest, choice)
    found = scores[:, 0] >= threshold
    chosen = jnp.take_along_axis(centers, choice[:, None, None], axis=1)[:, 0]
    score = jnp.take_along_axis(scores, choice[:, None], axis=1)[:, 0]
    # With nothing above the threshold all distances are infinite, so that the first, best peak is the chosen one.
    return jnp.where((found | ~tracked)[:, None], chosen, expected), score, found


def extend_track(track: Track, center: jax.Array, found: jax.Array) -> Track:
    """The track after one more frame.

    Args:
      track: before it.
      center: ``[b, 2]``.
      found: ``[b]`` bool, whether the object was seen at ``center``. Where it was not, ``center`` is not used; after
        ``n`` such frames in a row all centers are forgotten.
    """
    n = track.centers.shape[1]
    pushed = jnp.concatenate([track.centers[:, 1:], center[:, None].astype(jnp.float32)], axis=1)
    lost = jnp.where(found, 0, track.lost + 1)
    count = jnp.where(found, jnp.minimum(track.count + 1, n), jnp.where(lost >= n, 0, track.count))
    return Track(jnp.where(found[:, None, None], pushed, track.centers), count, lost)


def _column(value):
    return jnp.asarray(value, jnp.float32).reshape(-1, 1)
