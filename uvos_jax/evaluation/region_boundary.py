"""Region similarity J, boundary accuracy F and their statistics over a sequence, as defined by the DAVIS benchmark.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, and its
published evaluation code. Its edge cases are kept: an empty prediction of an empty ground truth scores 1 in both
measures, and a prediction that fills the frame scores F = 1 against an empty ground truth, because neither has an inner
contour.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from uvos_jax.evaluation import packed_masks

_RADIUS_FRACTION = 0.008  # of the image diagonal: 8 pixels at 480x854


class Statistics(NamedTuple):
    """Mean, recall (fraction of frames above 0.5) and decay (first quarter minus last) of a per-frame measure."""

    mean: float
    recall: float
    decay: float


def jaccard(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """Computes the region similarity J: intersection over union (Perazzi et al., CVPR 2016).

    Args:
        prediction: bool [..., h, w].
        truth: bool [..., h, w]; leading axes broadcast with those of ``prediction``.
        void: bool [..., h, w], pixels to ignore, or None.

    Returns:
        float64 [...] in [0, 1]; 1 where the union is empty.
    """
    prediction, truth = _packed(prediction, truth, void)
    return _iou(packed_masks.count(prediction & truth), packed_masks.count(prediction | truth))


def boundary_radius(height: int, width: int) -> int:
    """Returns the matching tolerance of contour pixels: 0.008 of the image diagonal, rounded up to whole pixels."""
    return math.ceil(_RADIUS_FRACTION * math.hypot(height, width))


def boundary_f(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None,
               radius: int | None = None) -> np.ndarray:
    """Computes the boundary accuracy F: the F-measure of contour precision and recall (Perazzi et al., CVPR 2016).

    A contour pixel is matched if a pixel of the other contour lies within ``radius``. Void pixels are removed from both
    masks before the contours are extracted, so the border of a void region is part of the contours.

    Args:
        prediction: bool [..., h, w].
        truth: bool [..., h, w]; leading axes broadcast with those of ``prediction``.
        void: bool [..., h, w], pixels to ignore, or None.
        radius: Matching tolerance in pixels; None selects ``boundary_radius(h, w)``.

    Returns:
        float64 [...] in [0, 1]; 1 if neither mask has a contour, 0 if only one has.
    """
    height, width = prediction.shape[-2:]
    radius = boundary_radius(height, width) if radius is None else radius
    pair = np.broadcast_arrays(*_packed(prediction, truth, void))
    leading = pair[0].shape[:-2]
    pairs = zip(*(masks.reshape(-1, *masks.shape[-2:]) for masks in pair), strict=True)
    values = [_boundary_f(p[None], t[None], width, radius)[0, 0] for p, t in pairs]
    return np.array(values).reshape(leading)


def score_labels(prediction: np.ndarray, truth: np.ndarray, objects: int,
                 void: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Computes J and F of the objects 1..n of a frame, each against the object with the same id.

    Args:
        prediction: Integer [h, w], object ids; 0 is background.
        truth: Integer [h, w], object ids.
        objects: Number of objects n.
        void: bool [h, w], pixels to ignore, or None.

    Returns:
        J and F, float64 [n] each.
    """
    radius, width = boundary_radius(*truth.shape), truth.shape[1]
    region, boundary = np.empty(objects), np.empty(objects)
    for index in range(objects):
        p = _remove_void(packed_masks.pack_label(prediction, index + 1), void)
        t = _remove_void(packed_masks.pack_label(truth, index + 1), void)
        region[index] = _iou(packed_masks.count(p & t), packed_masks.count(p | t))
        boundary[index] = _boundary_f(p[None], t[None], width, radius)[0, 0]
    return region, boundary


def score_all_pairs(prediction: np.ndarray, proposals: int, truth: np.ndarray, objects: int,
                    void: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Computes J and F of every proposal 1..k of a frame against every object 1..n.

    Args:
        prediction: Integer [h, w], proposal ids; 0 is background.
        proposals: Number of proposals k.
        truth: Integer [h, w], object ids.
        objects: Number of objects n.
        void: bool [h, w], pixels to ignore, or None.

    Returns:
        J and F, float64 [k, n] each.
    """
    p = [_remove_void(packed_masks.pack_label(prediction, number), void) for number in range(1, proposals + 1)]
    t = [_remove_void(packed_masks.pack_label(truth, number), void) for number in range(1, objects + 1)]
    if not p or not t:
        return np.zeros((proposals, objects)), np.zeros((proposals, objects))
    p, t = np.stack(p), np.stack(t)
    both = np.stack([packed_masks.count(p & one) for one in t], axis=1)
    region = _iou(both, packed_masks.count(p)[:, None] + packed_masks.count(t)[None] - both)
    return region, _boundary_f(p, t, truth.shape[1], boundary_radius(*truth.shape))


def assign_proposals(mean: np.ndarray) -> dict[int, int]:
    """Assigns one proposal to each object so that the sum of the scores is largest (Hungarian algorithm).

    Args:
        mean: float [k, n], mean score of each pair of proposal and object; k is at least n.

    Returns:
        Index of the assigned proposal, by index of the object.
    """
    return {int(o): int(k) for o, k in zip(*linear_sum_assignment(mean.T, maximize=True), strict=True)}


def statistics(values: np.ndarray, compat_uint8: bool = False) -> Statistics:
    """Computes mean, recall and decay of a measure over the frames of one object.

    Decay is the mean of the first quarter minus the mean of the last; neighboring quarters share a frame. Frames
    without a value (NaN) are excluded from means and count as not above 0.5 in recall.

    Args:
        values: float [t], NaN for frames without a value.
        compat_uint8: Wrap frame numbers at 256 as the published Python code does, which is wrong for longer sequences.

    Returns:
        The statistics as fractions of one; NaN if there are no values.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        return Statistics(math.nan, math.nan, math.nan)
    edges = np.round(np.linspace(1, values.size, 5) + 1e-10).astype(np.int64) - 1
    if compat_uint8:
        edges = edges.astype(np.uint8).astype(np.int64)
    quarters = [values[first : last + 1] for first, last in itertools.pairwise(edges)]
    decay = nan_mean(quarters[0]) - nan_mean(quarters[3])
    return Statistics(nan_mean(values), float(np.mean(values > 0.5)), decay)


def nan_mean(values) -> float:
    """Returns the mean of the values that are not NaN; NaN, without a warning, if there are none."""
    values = np.asarray(values, np.float64)
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else math.nan


def _packed(prediction, truth, void):
    return _remove_void(packed_masks.pack(prediction), void), _remove_void(packed_masks.pack(truth), void)


def _remove_void(packed, void):
    return packed if void is None else packed & ~packed_masks.pack(void)


def _iou(intersection, union):
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def _boundary_f(prediction, truth, width, radius):
    """Returns F of all pairs of packed masks [k, h, words] and [n, h, words], float64 [k, n]."""
    masks, width = packed_masks.crop(np.concatenate([prediction, truth]), width)
    contours = packed_masks.contour(masks, width)
    near = packed_masks.dilate(contours, radius)
    prediction, truth = np.split(contours, [len(prediction)])
    near_prediction, near_truth = np.split(near, [len(prediction)])
    predicted, true = packed_masks.count(prediction)[:, None], packed_masks.count(truth)[None]
    hits = np.stack([packed_masks.count(prediction & one) for one in near_truth], axis=1)
    found = np.stack([packed_masks.count(truth & one) for one in near_prediction], axis=0)
    # Without a predicted contour precision is 1, without a true contour recall is 1; F is 0 if only one is missing.
    precision = np.where(predicted == 0, 1.0, hits / np.maximum(predicted, 1))
    recall = np.where(true == 0, 1.0, found / np.maximum(true, 1))
    total = precision + recall
    return np.where(total == 0, 0.0, 2 * precision * recall / np.where(total == 0, 1.0, total))
