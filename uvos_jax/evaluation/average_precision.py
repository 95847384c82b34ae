"""Average precision and recall by the rules of COCO, from IoUs that are given.

The same rules serve masks in images (COCO) and tracks in videos (YouTube-VIS); only IoU and area differ.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = (1, 10, 100)
_RECALLS = np.linspace(0, 1, 101)


class Group(NamedTuple):
    """What one image or video holds of one category: ``d`` detections and ``g`` true objects."""

    scores: np.ndarray
    """Float [d]."""
    areas: np.ndarray
    """Real [d], areas of the detections."""
    ious: np.ndarray
    """Float [d, g], 0..1."""
    truth_areas: np.ndarray
    """Real [g]."""
    crowd: np.ndarray
    """Bool [g]. A crowd is never to be found, and a detection that matches it is neither right nor wrong."""


class Curve(NamedTuple):
    """Precision and recall of one category; -1 where there is no true object to find."""

    precision: np.ndarray
    """Float [thresholds, 101, area ranges, max detections], at the recalls 0, 0.01, .. 1."""
    recall: np.ndarray
    """Float [thresholds, area ranges, max detections], the largest recall reached."""


def precision_recall(
    groups: Sequence[Group],
    area_ranges: Mapping[str, tuple[float, float]],
    max_detections: Sequence[int] = MAX_DETECTIONS,
    thresholds: np.ndarray = THRESHOLDS,
) -> Curve:
    """Computes precision at 101 recalls, and the recall reached, of one category.

    The rules are those of ``COCOeval`` in pycocotools. In each group the detections, best first, take the free
    object of largest IoU that reaches the threshold (of equal ones the last), an ignored object only where no
    other does. Ignored are crowds, which may be taken many times, and objects outside the area range. What takes
    an ignored object, or takes none and is itself outside the range, is not counted. Then all groups are merged
    by score. Equal scores keep the order given, in a group and between groups. One difference: pycocotools takes
    an object whose annotation has the id 0 for one that was not matched; ids play no part here.

    Args:
        groups: Any number of groups; those with neither detections nor objects may be left out.
        area_ranges: Name to smallest and largest area, both inclusive.
        max_detections: How many of the best detections of each group count; ascending.
        thresholds: Float [t], ascending, the IoU that makes a match.

    Returns:
        The curve; its axes follow the order of the arguments.
    """
    ranges = np.array(list(area_ranges.values()), float)
    shape = (len(thresholds), len(_RECALLS), len(ranges), len(max_detections))
    precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    matches = [_match(group, ranges, thresholds, max_detections[-1]) for group in groups]
    to_find = sum((match.to_find for match in matches), np.zeros(len(ranges), int))
    for m, most in enumerate(max_detections if matches else ()):
        scores = np.concatenate([match.scores[:most] for match in matches])
        order = np.argsort(-scores, kind="stable")
        for a in np.flatnonzero(to_find):
            right = np.concatenate([match.right[a, :, :most] for match in matches], axis=1)[:, order]
            wrong = np.concatenate([match.wrong[a, :, :most] for match in matches], axis=1)[:, order]
            precision[:, :, a, m], recall[:, a, m] = _sample(right, wrong, to_find[a])
    return Curve(precision, recall)


def summarize(
    curves: Sequence[Curve],
    area_ranges: Mapping[str, tuple[float, float]],
    max_detections: Sequence[int] = MAX_DETECTIONS,
    thresholds: np.ndarray = THRESHOLDS,
) -> dict[str, float]:
    """Computes the usual scores as means over categories, as pycocotools does.

    Args:
        curves: One curve for each category, all made with the other arguments.
        area_ranges: As for the curves, the first one holding every area.
        max_detections: As for the curves.
        thresholds: As for the curves, with 0.5 and 0.75 among them.

    Returns:
        ``AP`` (over the thresholds), ``AP50``, ``AP75``, ``AP_<name>`` for each further area range, all with the
        largest of the max detections, and ``AR<n>`` for each of them; 0..1, or -1 where there is nothing to find.
    """
    precision = np.stack([curve.precision for curve in curves])
    recall = np.stack([curve.recall for curve in curves])
    scores = {"AP": _mean_of_valid(precision[..., 0, -1])}
    for percent in (50, 75):
        scores[f"AP{percent}"] = _mean_of_valid(precision[:, np.isclose(thresholds, percent / 100), :, 0, -1])
    for a, name in list(enumerate(area_ranges))[1:]:
        scores[f"AP_{name}"] = _mean_of_valid(precision[..., a, -1])
    return scores | {f"AR{most}": _mean_of_valid(recall[..., 0, m]) for m, most in enumerate(max_detections)}


class _Match(NamedTuple):
    """The detections of a group, best first."""

    scores: np.ndarray  # float [d]
    right: np.ndarray  # bool [area ranges, thresholds, d]
    wrong: np.ndarray  # bool [area ranges, thresholds, d]; what is neither right nor wrong is not counted
    to_find: np.ndarray  # int [area ranges], number of objects that are not ignored


def _match(group: Group, ranges: np.ndarray, thresholds: np.ndarray, most: int) -> _Match:
    order = np.argsort(-group.scores, kind="stable")[:most]
    ious, crowd = group.ious[order], np.asarray(group.crowd, bool)
    ignored = crowd | _outside(group.truth_areas, ranges)  # [a, g]
    reached = ious[:, None] >= np.minimum(thresholds, 1 - 1e-10)[:, None]  # [d, t, g]
    # The object with the highest rank is taken: not ignored, then large IoU, then last in order.
    rank = np.argsort(np.argsort(ious, axis=1, kind="stable"), axis=1)
    rank = rank[:, None] + np.where(ignored, 0, len(crowd))  # [d, a, g]
    matched = np.zeros((len(ranges), len(thresholds), len(order)), bool)
    to_ignored = np.zeros_like(matched)
    free = np.ones((len(ranges), len(thresholds), len(crowd)), bool)
    rows, columns = np.ogrid[: len(ranges), : len(thresholds)]
    for d in np.flatnonzero(reached.any(axis=(1, 2))):
        candidates = np.where(free & reached[d], rank[d][:, None], -1)
        best = candidates.argmax(axis=2)
        hit = candidates[rows, columns, best] >= 0
        matched[..., d] = hit
        to_ignored[..., d] = hit & ignored[rows, best]
        free[rows, columns, best] &= ~hit | crowd[best]
    outside = _outside(group.areas[order], ranges)[:, None]
    return _Match(group.scores[order], matched & ~to_ignored, ~matched & ~outside, (~ignored).sum(axis=1))


def _outside(areas: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    return (areas < ranges[:, :1]) | (areas > ranges[:, 1:])


def _sample(right: np.ndarray, wrong: np.ndarray, to_find: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns precision [t, 101] and recall [t] of detections [t, n] in the order of their scores."""
    sampled = np.zeros((len(right), len(_RECALLS)))
    if not right.shape[1]:
        return sampled, np.zeros(len(right))
    true, false = np.cumsum(right, axis=1), np.cumsum(wrong, axis=1)
    precision = true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / to_find
    for t in range(len(right)):
        first = np.searchsorted(recall[t], _RECALLS, side="left")
        first = first[first < recall.shape[1]]  # recalls never reached keep a precision of 0
        sampled[t, : len(first)] = precision[t, first]
    return sampled, recall[:, -1]


def _mean_of_valid(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
