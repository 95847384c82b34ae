"""Region similarity J, boundary accuracy F, and their statistics over a sequence, as the DAVIS benchmark defines them.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, and its
published evaluation code, whose edge cases are kept: an empty prediction of an empty truth scores 1 in both measures,
and a prediction that fills the whole frame scores F = 1 against an empty truth, for neither has an inner contour.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from uvos_jax.evaluation import packed_masks as bits

_BOUND = 0.008  # of the image diagonal: 8 pixels at 480x854


class Statistics(NamedTuple):
    """Mean, recall (share of the frames above 0.5) and decay (first quarter minus last) of a per-frame measure."""

    mean: float
    recall: float
    decay: float


def jaccard(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """Region similarity J: intersection over union.

    Args:
        prediction: bool [..., h, w].
        truth: bool [..., h, w]; leading axes broadcast with those of ``prediction``.
        void: bool [..., h, w], pixels that count for neither.

    Returns:
        float64 [...] in [0, 1]; 1 where the union is empty.
    """
    prediction, truth = _packed(prediction, truth, void)
    return _ratio(bits.count(prediction & truth), bits.count(prediction | truth))


def boundary_radius(height: int, width: int) -> int:
    """The distance in pixels within which contour pixels match: 0.008 of the image diagonal, rounded up."""
    return math.ceil(_BOUND * math.hypot(height, width))


def boundary_f(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None,
               radius: int | None = None) -> np.ndarray:
    """Boundary accuracy F: harmonic mean of contour precision and recall.

    A contour pixel is matched if one of the other contour lies within ``radius``. Void pixels are taken out of both
    masks before their contours are drawn, so that the border of a void region is a contour too.

    Args:
        prediction: bool [..., h, w].
        truth: bool [..., h, w]; leading axes broadcast with those of ``prediction``.
        void: bool [..., h, w], or None.
        radius: In pixels; ``boundary_radius`` of the size if None.

    Returns:
        float64 [...] in [0, 1]; 1 where neither has a contour, 0 where only one has.
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
    """J and F of the objects 1..n of a frame, each against the object of the same number.

    Args:
        prediction: Integer [h, w], object numbers; 0 is background.
        truth: Integer [h, w].
        objects: n.
        void: bool [h, w], or None.

    Returns:
        J and F, float64 [n] each.
    """
    radius, width = boundary_radius(*truth.shape), truth.shape[1]
    region, boundary = np.empty(objects), np.empty(objects)
    for index in range(objects):
        p = _without(bits.pack_label(prediction, index + 1), void)
        t = _without(bits.pack_label(truth, index + 1), void)
        region[index] = _ratio(bits.count(p & t), bits.count(p | t))
        boundary[index] = _boundary_f(p[None], t[None], width, radius)[0, 0]
    return region, boundary


def score_all_pairs(prediction: np.ndarray, proposals: int, truth: np.ndarray, objects: int,
                    void: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every proposal 1..k of a frame against every object 1..n.

    Args:
        prediction: Integer [h, w], proposal numbers; 0 is background.
        proposals: k.
        truth: Integer [h, w].
        objects: n.
        void: bool [h, w], or None.

    Returns:
        J and F, float64 [k, n] each.
    """
    p = [_without(bits.pack_label(prediction, number), void) for number in range(1, proposals + 1)]
    t = [_without(bits.pack_label(truth, number), void) for number in range(1, objects + 1)]
    if not p or not t:
        return np.zeros((proposals, objects)), np.zeros((proposals, objects))
    p, t = np.stack(p), np.stack(t)
    both = np.stack([bits.count(p & one) for one in t], axis=1)
    region = _ratio(both, bits.count(p)[:, None] + bits.count(t)[None] - both)
    return region, _boundary_f(p, t, truth.shape[1], boundary_radius(*truth.shape))


def assign(mean: np.ndarray) -> dict[int, int]:
    """Gives each object the proposal it is judged by: the assignment of the best sum (Hungarian).

    Args:
        mean: float [k, n], the score of every proposal and object; k is at least n.

    Returns:
        The index of its proposal for the index of every object.
    """
    return {int(o): int(k) for o, k in zip(*linear_sum_assignment(mean.T, maximize=True), strict=True)}


def statistics(values: np.ndarray, compat_uint8: bool = False) -> Statistics:
    """Mean, recall and decay of a measure over the frames of one object.

    Decay is the mean of the first quarter minus that of the last; quarters share their edge frames. A frame without a
    value (NaN) is left out of means, and in recall counts as not above 0.5.

    Args:
        values: float [t], NaN where a frame has none.
        compat_uint8: Wrap frame numbers at 256 as the published Python code does, which is wrong for longer sequences.

    Returns:
        Three fractions of one; NaN where there is no value at all.
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
    """The mean of the values that are not NaN; NaN, without a warning, if there is none."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _packed(prediction, truth, void):
    return _without(bits.pack(prediction), void), _without(bits.pack(truth), void)


def _without(packed, void):
    return packed if void is None else packed & ~bits.pack(void)


def _ratio(part, whole):
    return np.where(whole == 0, 1.0, part / np.maximum(whole, 1))


def _boundary_f(prediction, truth, width, radius):
    """F of packed masks [k, h, words] and [n, h, words], float64 [k, n]."""
    masks, width = bits.crop(np.concatenate([prediction, truth]), width)
    contours = bits.contour(masks, width)
    near = bits.dilate(contours, radius)
    prediction, truth = np.split(contours, [len(prediction)])
    near_prediction, near_truth = np.split(near, [len(prediction)])
    predicted, true = bits.count(prediction)[:, None], bits.count(truth)[None]
    hits = np.stack([bits.count(prediction & one) for one in near_truth], axis=1)
    found = np.stack([bits.count(truth & one) for one in near_prediction], axis=0)
    # A missing contour: precision is 1 without a prediction, recall is 1 without a truth. One of them missing gives 0.
    precision = np.where(predicted == 0, 1.0, hits / np.maximum(predicted, 1))
    recall = np.where(true == 0, 1.0, found / np.maximum(true, 1))
    total = precision + recall
    return np.where(total == 0, 0.0, 2 * precision * recall / np.where(total == 0, 1.0, total))
