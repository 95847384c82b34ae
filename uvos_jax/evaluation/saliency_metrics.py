"""Salient object detection metrics: MAE, F curve, adaptive F and S-measure; and AD-Net's pooled F.

The per-frame metrics follow the evaluation scripts of DAVSOD (Fan et al., "Shifting More Attention to Video Salient
Object Detection", CVPR 2019): each map is rescaled to [0, 1], and scores are averaged over the frames of a sequence,
then over sequences. The scripts exclude the first and last frame of a sequence; here the caller selects the frames.
PySODMetrics differs in two ways: it averages over all images without a sequence level, and it rescales the gray levels
divided by 255, so rounding may put a pixel below a threshold that it mathematically equals.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_BETA_SQUARED = 0.3
_ALPHA = 0.5
_EPS = np.finfo(np.float64).eps
# Thresholds of the curves: 1, 254/255, ..., 0.
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
    """Means of the frame scores of a sequence, under the same names."""


class DatasetSaliency(NamedTuple):
    """Means of the sequence scores, and the maximum of the mean F curve with its threshold."""

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

    The map is rescaled to S with minimum 0 and maximum 1; a constant map is not rescaled (uint8 is divided by 255). A
    pixel is selected if S >= t. F = (1 + b) P R / (b P + R) with b = beta^2 = 0.3 (Achanta et al., CVPR 2009). As in
    the scripts of DAVSOD, precision, recall and F are all 0 if no object pixel is selected, whether the ground truth
    is empty, the selection is empty, or they do not overlap. The adaptive threshold is twice the mean of S, at most 1;
    for an all-zero map it is 0, which selects every pixel.

    Args:
        prediction: uint8 [h, w], or float [h, w] in [0, 1].
        truth: bool [h, w].

    Returns:
        Scores of the frame.

    Raises:
        ValueError: An array has a wrong shape, dtype or range.
    """
    _check(prediction, truth)
    saliency = _rescale(prediction)
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
    """Computes the structure measure: S = a S_o + (1 - a) S_r with a = 0.5, clipped at 0.

    Fan et al., "Structure-measure: A New Way to Evaluate Foreground Maps", ICCV 2017, with the details of the authors'
    MATLAB code:

    - An empty ground truth scores 1 - mean S, a ground truth that fills the frame scores mean S.
    - S_o is the mean of the object's score (of S) and the background's score (of 1 - S), weighted by their fractions of
      the frame. A score is 2m / (m^2 + 1 + d + eps) with the mean m and the standard deviation d (N - 1; 0 for one
      pixel).
    - S_r divides the frame after the row and the column of the object's centroid, counted from 1 and rounded half up,
      and is the mean of the SSIM of the four parts weighted by their areas. (Co)variances are divided by N - 1 + eps.
      With A = 4 x y cov and B = (x^2 + y^2)(var_x + var_y), SSIM is A / (B + eps); 1 if A = B = 0; 0 if only A = 0.

    Two cases are defined here: a part without pixels adds nothing (NaN in MATLAB), and a part with constant S has
    variance exactly 0 (in MATLAB the rounding of its mean can turn an SSIM of 1 into 0). PySODMetrics rounds the
    centroid half to even, and returns NaN if the object, the background or a part has one pixel.

    Args:
        saliency: float64 [h, w] in [0, 1].
        truth: bool [h, w].

    Returns:
        S in [0, 1].
    """
    share = truth.mean()
    if share in (0, 1):
        return float(saliency.mean() if share else 1 - saliency.mean())
    object_term = share * _object_score(saliency[truth]) + (1 - share) * _object_score(1 - saliency[~truth])
    return max(0.0, float(_ALPHA * object_term + (1 - _ALPHA) * _region_score(saliency, truth)))


def sequence_mean(frames: Iterable[FrameSaliency]) -> SequenceSaliency:
    """Averages the frame scores of a sequence, with one frame in memory at a time.

    Args:
        frames: Scores of at least one frame; may be a generator.

    Returns:
        Mean of each score and of each point of the curves.

    Raises:
        ValueError: There are no frames.
    """
    return SequenceSaliency(*_mean(frames, "frames"))


def dataset_mean(frames_by_sequence: Iterable[Iterable[FrameSaliency] | SequenceSaliency]) -> DatasetSaliency:
    """Averages over frames, then over sequences; max F is the maximum of the mean curve.

    The mean of the maxima of frames or sequences would be higher.

    Args:
        frames_by_sequence: At least one sequence, each given as its frame scores (may be a generator) or their mean.

    Returns:
        Scores of the dataset. If several thresholds reach the maximum F, the highest is returned.

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
    """Computes the histograms of predicted gray levels inside and outside the object; sum them over frames.

    Args:
        prediction: uint8 [h, w], not rescaled.
        truth: bool [h, w].

    Returns:
        int64 [2, 256]: pixel counts inside the object, then outside.

    Raises:
        ValueError: An array has a wrong shape or dtype.
    """
    _check(prediction, truth)
    if prediction.dtype != np.uint8:
        raise ValueError(f"prediction must be uint8, not {prediction.dtype}")
    return _joint_counts(prediction, truth)


def pooled_curve(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes precision and recall over all pooled pixels at every gray level that occurs.

    The points equal those of scikit-learn's ``precision_recall_curve`` without the final (1, 0).

    Args:
        histogram: int64 [2, 256], a sum of ``pooled_histogram`` arrays.

    Returns:
        Precision and recall, float64 [k], and thresholds, int64 [k] in 0..255, ascending. A pixel is selected if it is
        at least the threshold. Recall is 0 if there are no object pixels.

    Raises:
        ValueError: The histogram is empty.
    """
    levels = np.flatnonzero(histogram.any(axis=0))
    if not levels.size:
        raise ValueError("the histogram has no pixels")
    hits, selected, objects = _count_selected(histogram)
    hits, selected = hits[255 - levels], selected[255 - levels]
    return hits / selected, hits / max(objects, 1), levels


def pooled_f(histogram: np.ndarray) -> dict[str, float]:
    """Computes AD-Net's metrics: maximum F with beta^2 = 1, and MAE, over the pooled pixels of a dataset.

    Yang et al., "Anchor Diffusion for Unsupervised Video Object Segmentation", ICCV 2019, and its evaluation code,
    which excludes the first and last frame of a sequence (here the caller selects the frames). F = 2 P R / (P + R), so
    it is not comparable with F of ``dataset_mean``. The published code uses the floating-point output of the network,
    this function its 8-bit quantization. The published code prints NaN if no object pixel has the highest score; F is 0
    at that threshold here.

    Args:
        histogram: int64 [2, 256], a sum of ``pooled_histogram`` arrays.

    Returns:
        ``max_f`` with its ``threshold`` (0..255; the lowest of several), ``precision`` and ``recall``; and ``mae``, the
        mean absolute error over all pixels in [0, 1].

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
        raise ValueError(f"prediction must be uint8 or float, not {prediction.dtype}")
    if truth.dtype != bool:
        raise ValueError(f"ground truth must be bool, not {truth.dtype}")
    if prediction.shape != truth.shape or truth.ndim != 2 or not truth.size:
        raise ValueError("prediction and ground truth must have the same shape [h, w], not"
                         f" {prediction.shape} and {truth.shape}")


def _rescale(prediction: np.ndarray) -> np.ndarray:
    lowest, highest = float(prediction.min()), float(prediction.max())
    levels = prediction.astype(np.float64)
    if prediction.dtype != np.uint8 and not 0 <= lowest <= highest <= 1:  # also false for NaN
        raise ValueError(f"prediction must be in [0, 1], not {lowest}..{highest}")
    if lowest == highest:
        return levels / 255 if prediction.dtype == np.uint8 else levels
    # Rescaling the integers, not the integers divided by 255, rounds once, so S = t holds where it does mathematically.
    return (levels - lowest) / (highest - lowest)


def _joint_counts(levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts the levels 0..255 inside the object, then outside, int64 [2, 256]."""
    return np.bincount((levels + 256 * ~truth).ravel(), minlength=512).reshape(2, 256)


def _count_selected(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the counts of object pixels and of all pixels at or above 255, 254, ..., 0, and the object's size."""
    above = counts[:, ::-1].cumsum(axis=1)
    return above[0], above.sum(axis=0), int(above[0, -1])


def _curves(saliency: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # The largest k with S >= k / 255. This is exact in floating point: for each k the product is at least k at k / 255
    # and below k at the next smaller number.
    levels = (saliency * 255).astype(np.int64)
    hits, selected, objects = _count_selected(_joint_counts(levels, truth))
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
    """Returns the mean position of ``counts``, counted from 1 and rounded half up, in integer arithmetic."""
    moment, total = int(counts @ np.arange(1, counts.size + 1)), int(counts.sum())
    return (2 * moment + total) // (2 * total)


def _ssim(saliency: np.ndarray, truth: np.ndarray) -> float:
    mean_s, mean_t = saliency.mean(), truth.mean()
    if saliency.min() == saliency.max():
        mean_s = saliency[0, 0]  # exact, unlike the rounded mean: a variance of exactly 0 decides between SSIM 1 and 0
    centered_s, centered_t = saliency - mean_s, truth - mean_t
    freedom = truth.size - 1 + _EPS
    # Sums instead of dot products: on so few numbers BLAS threads cost more time than they save.
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
        raise ValueError(f"no {what} to average")
    return [each / count for each in total]
