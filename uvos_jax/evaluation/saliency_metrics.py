"""Salient-object measures: MAE, F curve and adaptive F, S-measure; and AD-Net's pooled F.

The per-frame measures follow the evaluation scripts of DAVSOD (Fan et al., "Shifting More Attention to Video Salient
Object Detection", CVPR 2019): a map is stretched to [0, 1] frame by frame, and scores are averaged over the frames of a
sequence, then over sequences. The scripts leave out the first and last frame of a sequence; that is up to the caller.
PySODMetrics differs in two ways: it averages over all images without a sequence level, and it stretches the 255ths of
the gray levels, so that by rounding a pixel may fall below a threshold it equals on paper.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_BETA_SQUARED = 0.3
_ALPHA = 0.5
_EPS = np.finfo(np.float64).eps
# The thresholds of the curves: 1, 254/255, .., 0.
THRESHOLDS = np.arange(255, -1, -1) / 255


class FrameSaliency(NamedTuple):
    """Scores of one frame; the curves are float64 [256] over ``THRESHOLDS``."""

    mae: float
    precision: np.ndarray
    recall: np.ndarray
    f_beta: np.ndarray
    adaptive_f: float
    s_measure: float


class SequenceSaliency(FrameSaliency):
    """Means of the frames' scores, under the same names."""


class DatasetSaliency(NamedTuple):
    """Means of the sequences' scores, and the highest point of their mean F curve."""

    mae: float
    max_f: float
    max_f_threshold: float
    adaptive_f: float
    s_measure: float
    precision: np.ndarray
    recall: np.ndarray
    f_beta: np.ndarray


def frame_saliency(prediction: np.ndarray, truth: np.ndarray) -> FrameSaliency:
    """Scores one saliency map.

    The map is stretched so that its minimum becomes 0 and its maximum 1; a map of one value stays as it is (uint8
    divided by 255). A pixel is selected where S >= t. F = (1 + b) P R / (b P + R) with b = 0.3 (Achanta et al., CVPR
    2009). As in the scripts, precision, recall and F are all 0 where no object pixel is selected, be it that the
    truth is empty, the selection is, or they do not meet. The adaptive threshold is twice the mean of S, at most 1;
    an all-zero map has the threshold 0 and so selects every pixel.

    Args:
        prediction: uint8 [h, w], or float [h, w] in [0, 1].
        truth: bool [h, w].

    Returns:
        The scores of the frame.

    Raises:
        ValueError: The arrays are of another shape, dtype or range.
    """
    _check(prediction, truth)
    saliency = _stretched(prediction)
    precision, recall, f_beta = _curves(saliency, truth)
    return FrameSaliency(
        mae=float(np.abs(saliency - truth).mean()),
        precision=precision,
        recall=recall,
        f_beta=f_beta,
        adaptive_f=_adaptive_f(saliency, truth),
        s_measure=s_measure(saliency, truth),
    )


def s_measure(saliency: np.ndarray, truth: np.ndarray) -> float:
    """Structure measure: S = a S_o + (1 - a) S_r with a = 0.5, and 0 where that is negative.

    Fan et al., "Structure-measure: A New Way to Evaluate Foreground Maps", ICCV 2017; the details are those of the
    authors' MATLAB code:

    - an empty truth scores 1 - mean S, a truth of the whole frame mean S;
    - S_o is the mean of the object's score and of the background's (of 1 - S), weighted by their shares of the
      frame; a score is 2m / (m^2 + 1 + d + eps), m the mean and d the standard deviation (N - 1; 0 for one pixel);
    - S_r cuts the frame behind the row and the column of the object's centroid, counted from 1 and rounded half up,
      and is the mean of the four parts' SSIM weighted by their areas. (Co)variances are divided by N - 1 + eps. With
      A = 4 x y cov and B = (x^2 + y^2)(var_x + var_y), SSIM is A / (B + eps), 1 where A = B = 0, 0 where only A = 0.

    Two cases are settled here: a part without pixels adds nothing (MATLAB gives NaN), and a part where S has one value
    has variance 0 exactly (in MATLAB the rounding of its mean can turn an SSIM of 1 into 0). PySODMetrics rounds
    the centroid half to even, and gives NaN for an object, a background or a part of one pixel.

    Args:
        saliency: float64 [h, w] in [0, 1].
        truth: bool [h, w].

    Returns:
        S in [0, 1].
    """
    share = truth.mean()
    if share in (0, 1):
        return float(saliency.mean() if share else 1 - saliency.mean())
    of_objects = share * _object_score(saliency[truth]) + (1 - share) * _object_score(1 - saliency[~truth])
    return max(0.0, float(_ALPHA * of_objects + (1 - _ALPHA) * _region_score(saliency, truth)))


def sequence_mean(frames: Iterable[FrameSaliency]) -> SequenceSaliency:
    """Averages the scores of a sequence, one frame at a time.

    Args:
        frames: At least one; may be a generator.

    Returns:
        The mean of each score and of each point of the curves.

    Raises:
        ValueError: There are no frames.
    """
    return SequenceSaliency(*_mean(frames, "frames"))


def combine(frames_by_sequence: Iterable[Iterable[FrameSaliency] | SequenceSaliency]) -> DatasetSaliency:
    """Averages over frames, then over sequences; the maximum of F is taken on the mean curve.

    Taking the maximum of each frame or sequence first would give a higher number.

    Args:
        frames_by_sequence: At least one sequence, each given by its frames (may be a generator) or by its mean.

    Returns:
        The scores of the dataset. Of several thresholds that share the maximal F, the highest is given.

    Raises:
        ValueError: There are no sequences, or one has no frames.
    """
    means = (each if isinstance(each, SequenceSaliency) else sequence_mean(each) for each in frames_by_sequence)
    mean = SequenceSaliency(*_mean(means, "sequences"))
    best = int(mean.f_beta.argmax())
    return DatasetSaliency(
        mae=mean.mae,
        max_f=float(mean.f_beta[best]),
        max_f_threshold=float(THRESHOLDS[best]),
        adaptive_f=mean.adaptive_f,
        s_measure=mean.s_measure,
        precision=mean.precision,
        recall=mean.recall,
        f_beta=mean.f_beta,
    )


def pooled_histogram(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts the gray levels of the object's pixels and of the others; the counts of frames add up.

    Args:
        prediction: uint8 [h, w], as it is, without stretching.
        truth: bool [h, w].

    Returns:
        int64 [2, 256], the object's pixels first.

    Raises:
        ValueError: The arrays are of another shape or dtype.
    """
    _check(prediction, truth)
    if prediction.dtype != np.uint8:
        raise ValueError(f"the prediction must be uint8, not {prediction.dtype}")
    return _joint_counts(prediction, truth)


def pooled_curve(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall of all pixels pooled, at every gray level that occurs.

    The points are those of scikit-learn's ``precision_recall_curve``, without the (1, 0) it adds at the end.

    Args:
        histogram: int64 [2, 256], a sum of ``pooled_histogram``.

    Returns:
        Precision and recall, float64 [k], and the thresholds, int64 [k] in 0..255 and ascending: a pixel is selected
        where it is at least the threshold. Recall is 0 if there are no object pixels.

    Raises:
        ValueError: The histogram is empty.
    """
    levels = np.flatnonzero(histogram.any(axis=0))
    if not levels.size:
        raise ValueError("the histogram holds no pixels")
    hits, selected, objects = _selected(histogram)
    hits, selected = hits[255 - levels], selected[255 - levels]
    return hits / selected, hits / max(objects, 1), levels


def pooled_f(histogram: np.ndarray) -> dict[str, float]:
    """AD-Net's measures: maximal F with equal weights, and MAE, over the pixels of a whole dataset.

    Yang et al., "Anchor Diffusion for Unsupervised Video Object Segmentation", ICCV 2019, and its evaluation code,
    which leaves out the first and last frame of a sequence (up to the caller). F = 2 P R / (P + R), so the number is
    not comparable with the F of ``combine``. The published code works on the floating-point output of the network; here
    it is in 8 bits. It also prints NaN when the highest score belongs to no object; F is 0 there.

    Args:
        histogram: int64 [2, 256], a sum of ``pooled_histogram``.

    Returns:
        ``max_f`` and, where it is reached, ``threshold`` (0..255; the lowest if there are several), ``precision`` and
        ``recall``; and ``mae``, the mean over all pixels.

    Raises:
        ValueError: The histogram is empty.
    """
    precision, recall, thresholds = pooled_curve(histogram)
    scores = _f_measure(precision, recall, 1)
    best = int(scores.argmax())
    error = np.arange(256)
    return {
        "max_f": float(scores[best]),
        "threshold": int(thresholds[best]),
        "precision": float(precision[best]),
        "recall": float(recall[best]),
        "mae": float((histogram[0] @ (255 - error) + histogram[1] @ error) / (255 * histogram.sum())),
    }


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.dtype != np.uint8 and prediction.dtype.kind != "f":
        raise ValueError(f"the prediction must be uint8 or float, not {prediction.dtype}")
    if truth.dtype != bool:
        raise ValueError(f"the truth must be bool, not {truth.dtype}")
    if prediction.shape != truth.shape or truth.ndim != 2 or not truth.size:
        raise ValueError(f"prediction and truth must be [h, w] alike, not {prediction.shape} and {truth.shape}")


def _stretched(prediction: np.ndarray) -> np.ndarray:
    lowest, highest = float(prediction.min()), float(prediction.max())
    levels = prediction.astype(np.float64)
    if prediction.dtype != np.uint8 and not 0 <= lowest <= highest <= 1:  # also false for NaN
        raise ValueError(f"the prediction must lie in [0, 1], not {lowest}..{highest}")
    if lowest == highest:
        return levels / 255 if prediction.dtype == np.uint8 else levels
    # From the integers, not from their 255ths: one rounding, so that S = t holds wherever it does on paper.
    return (levels - lowest) / (highest - lowest)


def _joint_counts(levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns int64 [2, 256], the counts of the levels 0..255 within the object, then outside of it."""
    return np.bincount((levels + 256 * ~truth).ravel(), minlength=512).reshape(2, 256)


def _selected(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the object's pixels and all pixels at or above 255, 254, .., 0, and the size of the object."""
    above = counts[:, ::-1].cumsum(axis=1)
    return above[0], above.sum(axis=0), int(above[0, -1])


def _curves(saliency: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # The largest k with S >= k / 255. Exact in floating point too: for each k, the product reaches k at k / 255, and
    # not at the number next below it.
    levels = (saliency * 255).astype(np.int64)
    hits, selected, objects = _selected(_joint_counts(levels, truth))
    precision, recall = hits / np.maximum(selected, 1), hits / max(objects, 1)
    return precision, recall, _f_measure(precision, recall, _BETA_SQUARED)


def _f_measure(precision: np.ndarray, recall: np.ndarray, beta_squared: float) -> np.ndarray:
    weighted = beta_squared * precision + recall
    return (1 + beta_squared) * precision * recall / np.where(weighted > 0, weighted, 1)


def _adaptive_f(saliency: np.ndarray, truth: np.ndarray) -> float:
    selection = saliency >= min(2 * saliency.mean(), 1)
    hits = np.count_nonzero(selection & truth)
    if not hits:
        return 0.0
    precision, recall = hits / np.count_nonzero(selection), hits / np.count_nonzero(truth)
    return float(_f_measure(precision, recall, _BETA_SQUARED))


def _object_score(values: np.ndarray) -> float:
    mean = values.mean()
    spread = values.std(ddof=1) if values.size > 1 else 0
    return 2 * mean / (mean**2 + 1 + spread + _EPS)


def _region_score(saliency: np.ndarray, truth: np.ndarray) -> float:
    bottom, right = _centroid(truth.sum(axis=1)), _centroid(truth.sum(axis=0))
    score = 0.0
    for rows in (slice(bottom), slice(bottom, None)):
        for columns in (slice(right), slice(right, None)):
            part = truth[rows, columns]
            if part.size:
                score += part.size / truth.size * _ssim(saliency[rows, columns], part)
    return score


def _centroid(counts: np.ndarray) -> int:
    """Returns the mean position of ``counts``, the first being 1, rounded half up, in integers."""
    moment, total = int(counts @ np.arange(1, counts.size + 1)), int(counts.sum())
    return (2 * moment + total) // (2 * total)


def _ssim(saliency: np.ndarray, truth: np.ndarray) -> float:
    mean_s, mean_t = saliency.mean(), truth.mean()
    if saliency.min() == saliency.max():
        mean_s = saliency[0, 0]  # not a rounded sum: that this part has no variance decides between 1 and 0
    centered_s, centered_t = saliency - mean_s, truth - mean_t
    freedom = truth.size - 1 + _EPS
    # Sums, not dot products: the threads of a BLAS cost more than they save on so few numbers.
    variances = ((centered_s**2).sum() + (centered_t**2).sum()) / freedom
    alpha = 4 * mean_s * mean_t * (centered_s * centered_t).sum() / freedom
    beta = (mean_s**2 + mean_t**2) * variances
    if alpha == 0:
        return float(beta == 0)
    return alpha / (beta + _EPS)


def _mean(scores: Iterable[tuple], what: str) -> list:
    total, count = None, 0
    for score in scores:
        total = score if total is None else [a + b for a, b in zip(total, score, strict=True)]
        count += 1
    if total is None:
        raise ValueError(f"there are no {what} to average")
    return [each / count for each in total]
