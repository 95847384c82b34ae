"""Average precision and average recall by COCO's rules, computed from precomputed IoUs.

The rules apply to masks in images (COCO) and to tracks in videos (YouTube-VIS); only IoU and area differ.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = (1, 10, 100)
_RECALLS = np.linspace(0, 1, 101)


class DetectionGroup(NamedTuple):
    """Detections and ground-truth objects of one category in one image or video.

    Attributes:
        scores: float [d], scores of the detections.
        areas: real [d], areas of the detections.
        ious: float [d, g] in [0, 1], IoU of each detection and object.
        truth_areas: real [g], areas of the objects.
        crowd: bool [g]. Crowds are not counted as objects, and a detection matched to one is not counted.
    """

    scores: np.ndarray
    areas: np.ndarray
    ious: np.ndarray
    truth_areas: np.ndarray
    crowd: np.ndarray


class PrecisionRecall(NamedTuple):
    """Precision and recall of one category; -1 if the ground truth has no object.

    Attributes:
        precision: float [thresholds, 101, area ranges, max detections], at the recalls 0, 0.01, ..., 1.
        recall: float [thresholds, area ranges, max detections], the largest recall reached.
    """

    precision: np.ndarray
    recall: np.ndarray


def precision_recall(
    groups: Sequence[DetectionGroup],
    area_ranges: Mapping[str, tuple[float, float]],
    max_detections: Sequence[int] = MAX_DETECTIONS,
    thresholds: np.ndarray = THRESHOLDS,
) -> PrecisionRecall:
    """Computes the precision at 101 recalls, and the largest recall, of one category.

    The rules are those of ``COCOeval`` in pycocotools:

    - In each group the detections, in descending order of score, are matched to the unmatched object of largest IoU
      that reaches the threshold (of equal IoUs, the last object); ignored objects are matched only if no other object
      reaches it.
    - Ignored objects are crowds, which can be matched repeatedly, and objects outside the area range.
    - A detection that matches an ignored object, or matches none and is outside the area range, is not counted.
    - The detections of all groups are merged by score. Equal scores keep the given order, within and between groups.

    One difference: pycocotools treats an object whose annotation id is 0 as unmatched; ids are not used here.

    Args:
        groups: Detections and objects of each image or video; empty groups may be omitted.
        area_ranges: Smallest and largest area, both inclusive, by name.
        max_detections: Numbers of best-scored detections per group that count; ascending.
        thresholds: float [t], IoU thresholds of a match; ascending.

    Returns:
        Precision and recall; their axes follow the order of the arguments.
    """
    ranges = np.array(list(area_ranges.values()), float)
    shape = (len(thresholds), len(_RECALLS), len(ranges), len(max_detections))
    precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    matches = [_match(group, ranges, thresholds, max_detections[-1]) for group in groups]
    positives = sum((match.positives for match in matches), np.zeros(len(ranges), int))
    for m, limit in enumerate(max_detections if matches else ()):
        scores = np.concatenate([match.scores[:limit] for match in matches])
        order = np.argsort(-scores, kind="stable")
        for a in np.flatnonzero(positives):
            true_positive = np.concatenate([match.true_positive[a, :, :limit] for match in matches], axis=1)[:, order]
            false_positive = np.concatenate([match.false_positive[a, :, :limit] for match in matches], axis=1)[:, order]
            precision[:, :, a, m], recall[:, a, m] = _precision_at_recalls(true_positive, false_positive, positives[a])
    return PrecisionRecall(precision, recall)


def summarize(
    curves: Sequence[PrecisionRecall],
    area_ranges: Mapping[str, tuple[float, float]],
    max_detections: Sequence[int] = MAX_DETECTIONS,
    thresholds: np.ndarray = THRESHOLDS,
) -> dict[str, float]:
    """Computes COCO's summary scores as means over categories, as pycocotools does.

    Args:
        curves: Precision and recall of each category, computed with the other arguments.
        area_ranges: Area ranges of the curves; the first must include all areas.
        max_detections: Numbers of detections of the curves.
        thresholds: IoU thresholds of the curves; must contain 0.5 and 0.75.

    Returns:
        ``AP`` (mean over the thresholds), ``AP50``, ``AP75`` and ``AP_<name>`` for each further area range, all at the
        largest number of detections, and ``AR<n>`` for each number; in [0, 1], or -1 if there are no objects.
    """
    precision = np.stack([curve.precision for curve in curves])
    recall = np.stack([curve.recall for curve in curves])
    scores = {"AP": _mean_of_valid(precision[..., 0, -1])}
    for percent in (50, 75):
        scores[f"AP{percent}"] = _mean_of_valid(precision[:, np.isclose(thresholds, percent / 100), :, 0, -1])
    for a, name in list(enumerate(area_ranges))[1:]:
        scores[f"AP_{name}"] = _mean_of_valid(precision[..., a, -1])
    return scores | {f"AR{limit}": _mean_of_valid(recall[..., 0, m]) for m, limit in enumerate(max_detections)}


class _Match(NamedTuple):
    """Matched detections of a group in descending order of score; those in neither mask are not counted."""

    scores: np.ndarray  # float [d]
    true_positive: np.ndarray  # bool [area ranges, thresholds, d]
    false_positive: np.ndarray  # bool [area ranges, thresholds, d]
    positives: np.ndarray  # int [area ranges], number of objects that are not ignored


def _match(group: DetectionGroup, ranges: np.ndarray, thresholds: np.ndarray, limit: int) -> _Match:
    order = np.argsort(-group.scores, kind="stable")[:limit]
    ious, crowd = group.ious[order], np.asarray(group.crowd, bool)
    ignored = crowd | _outside(group.truth_areas, ranges)  # [a, g]
    reached = ious[:, None] >= np.minimum(thresholds, 1 - 1e-10)[:, None]  # [d, t, g]
    # The object of highest rank is matched: first by not ignored, then by IoU, then the last in order.
    rank = np.argsort(np.argsort(ious, axis=1, kind="stable"), axis=1)
    rank = rank[:, None] + np.where(ignored, 0, len(crowd))  # [d, a, g]
    matched = np.zeros((len(ranges), len(thresholds), len(order)), bool)
    matched_ignored = np.zeros_like(matched)
    free = np.ones((len(ranges), len(thresholds), len(crowd)), bool)
    rows, columns = np.ogrid[: len(ranges), : len(thresholds)]
    for d in np.flatnonzero(reached.any(axis=(1, 2))):
        candidates = np.where(free & reached[d], rank[d][:, None], -1)
        best = candidates.argmax(axis=2)
        hit = candidates[rows, columns, best] >= 0
        matched[..., d] = hit
        matched_ignored[..., d] = hit & ignored[rows, best]
        free[rows, columns, best] &= ~hit | crowd[best]
    outside = _outside(group.areas[order], ranges)[:, None]
    return _Match(group.scores[order], matched & ~matched_ignored, ~matched & ~outside, (~ignored).sum(axis=1))


def _outside(areas: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    return (areas < ranges[:, :1]) | (areas > ranges[:, 1:])


def _precision_at_recalls(
    true_positive: np.ndarray, false_positive: np.ndarray, positives: int
) -> tuple[np.ndarray, np.ndarray]:
    """Computes precision [t, 101] and recall [t] of detections [t, n] in descending order of score."""
    sampled = np.zeros((len(true_positive), len(_RECALLS)))
    if not true_positive.shape[1]:
        return sampled, np.zeros(len(true_positive))
    true, false = np.cumsum(true_positive, axis=1), np.cumsum(false_positive, axis=1)
    precision = true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / positives
    for t in range(len(true_positive)):
        first = np.searchsorted(recall[t], _RECALLS, side="left")
        first = first[first < recall.shape[1]]  # recalls that are not reached keep a precision of 0
        sampled[t, : len(first)] = precision[t, first]
    return sampled, recall[:, -1]


def _mean_of_valid(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
