"""Saliency metrics against brute force, exact fractions, scikit-learn and hand-computed values."""

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from uvos_jax.evaluation.saliency_metrics import (
    THRESHOLDS,
    FrameSaliency,
    SequenceSaliency,
    dataset_mean,
    frame_saliency,
    pooled_curve,
    pooled_f,
    pooled_histogram,
    s_measure,
    sequence_mean,
)


def random_truth(rng: np.random.Generator, height: int = 7, width: int = 9) -> np.ndarray:
    truth = rng.random((height, width)) < rng.uniform(0.1, 0.9)
    truth[rng.integers(height), rng.integers(width)] = True
    truth[rng.integers(height), rng.integers(width)] = False
    return truth


def random_prediction(rng: np.random.Generator, kind: str, height: int = 7, width: int = 9) -> np.ndarray:
    if kind == "uint8":
        return rng.integers(*sorted(rng.choice(257, 2, replace=False)), (height, width)).astype(np.uint8)
    if kind == "levels":  # every value is one of the thresholds, as float
        return np.concatenate([[0, 1], rng.integers(0, 256, height * width - 2) / 255]).reshape(height, width)
    return rng.random((height, width)).astype(kind)


def by_comparison(saliency: list[float], truth: list[bool], threshold: float) -> tuple[float, float, float]:
    """Precision, recall and F at one threshold, pixel by pixel."""
    selected = [s >= threshold for s in saliency]
    hits = sum(s and t for s, t in zip(selected, truth, strict=True))
    if not hits:
        return 0, 0, 0
    precision, recall = hits / sum(selected), hits / sum(truth)
    return precision, recall, 1.3 * precision * recall / (0.3 * precision + recall)


def by_fractions(saliency: np.ndarray, truth: np.ndarray) -> float:
    """S-measure of the paper in exact fractions; only square roots are rounded."""
    height, width = truth.shape
    pixels = [(y, x) for y in range(1, height + 1) for x in range(1, width + 1)]
    s = {(y, x): Fraction(float(saliency[y - 1, x - 1])) for y, x in pixels}
    g = {(y, x): int(truth[y - 1, x - 1]) for y, x in pixels}

    def moments(a: list, b: list) -> tuple:
        n = len(a)
        mean_a, mean_b = Fraction(sum(a), n), Fraction(sum(b), n)
        products = [(p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True)]
        return mean_a, mean_b, sum(products) / (n - 1) if n > 1 else Fraction(0)

    def of_object(values: list) -> float:
        mean, _, variance = moments(values, values)
        return float(2 * mean) / (float(mean**2 + 1) + math.sqrt(variance))

    def ssim(part: list) -> float:
        a, b = [s[p] for p in part], [g[p] for p in part]
        x, y, covariance = moments(a, b)
        spread = moments(a, a)[2] + moments(b, b)[2]
        alpha, beta = 4 * x * y * covariance, (x**2 + y**2) * spread
        if alpha == 0:
            return 1.0 if beta == 0 else 0.0
        return float(alpha) / (float(beta) + 2.0**-52)

    inside = [p for p in pixels if g[p]]
    share = Fraction(len(inside), len(pixels))
    object_term = float(share) * of_object([s[p] for p in inside])
    object_term += float(1 - share) * of_object([1 - s[p] for p in pixels if not g[p]])
    cut_y, cut_x = (math.floor(Fraction(sum(p[axis] for p in inside), len(inside)) + Fraction(1, 2)) for axis in (0, 1))
    region_term = 0.0
    for above in (True, False):
        for left in (True, False):
            part = [(y, x) for y, x in pixels if (y <= cut_y) == above and (x <= cut_x) == left]
            if part:
                region_term += len(part) / len(pixels) * ssim(part)
    return max(0.0, (object_term + region_term) / 2)


def scores(mae: float, f_beta: np.ndarray) -> FrameSaliency:
    return FrameSaliency(mae, f_beta / 2, f_beta / 4, f_beta, mae / 2, mae / 4)


def step(*heights: float) -> np.ndarray:
    """A piecewise-constant curve of 256 points with equally long steps."""
    return np.repeat(np.array(heights, float), 256 // len(heights))


def test_thresholds():
    assert THRESHOLDS[0] == 1 and THRESHOLDS[1] == 254 / 255 and THRESHOLDS[-1] == 0 and len(THRESHOLDS) == 256


@pytest.mark.parametrize("kind", ["uint8", "levels", "float32", "float64"])
@pytest.mark.parametrize("seed", range(5))
def test_curves_equal_brute_force(kind, seed):
    rng = np.random.default_rng(seed)
    prediction, truth = random_prediction(rng, kind), random_truth(rng)
    result = frame_saliency(prediction, truth)
    values = [float(v) for v in prediction.ravel()]
    low, high = min(values), max(values)
    values = [(v - low) / (high - low) for v in values]
    for index in range(256):
        expected = by_comparison(values, truth.ravel().tolist(), (255 - index) / 255)
        got = (result.precision[index], result.recall[index], result.f_beta[index])
        assert got == pytest.approx(expected, rel=1e-14)
    threshold = min(2 * math.fsum(values) / len(values), 1)
    assert result.adaptive_f == pytest.approx(by_comparison(values, truth.ravel().tolist(), threshold)[2], rel=1e-14)
    errors = [abs(v - t) for v, t in zip(values, truth.ravel().tolist(), strict=True)]
    assert result.mae == pytest.approx(math.fsum(errors) / len(errors), rel=1e-13)


def test_gray_level_is_selected_at_its_own_threshold():
    # The pixel of level k is selected from threshold k / 255 on, so one more pixel at each of the 256.
    truth = np.ones((16, 16), bool)
    for prediction in (np.arange(256).astype(np.uint8), np.arange(256) / 255):
        recall = frame_saliency(prediction.reshape(16, 16), truth).recall
        np.testing.assert_array_equal(recall, np.arange(1, 257) / 256)
    # 0..51 normalized is 0, 5/255, 10/255, ..: again on the thresholds.
    recall = frame_saliency(np.arange(52).astype(np.uint8).reshape(4, 13), np.ones((4, 13), bool)).recall
    np.testing.assert_array_equal(recall, np.minimum(np.arange(256) // 5 + 1, 52) / 52)


def test_floats_adjacent_to_a_threshold():
    # The largest float below a threshold is not selected at it. 255 S is monotonic in S, so this covers all floats.
    for level in range(1, 255):
        threshold = level / 255
        values = np.array([[0, 1, threshold, np.nextafter(threshold, 0), np.nextafter(threshold, 1)]])
        recall = frame_saliency(values, np.ones((1, 5), bool)).recall
        assert recall[254 - level : 257 - level].tolist() == [1 / 5, 3 / 5, 4 / 5 if level > 1 else 1]


@pytest.mark.parametrize("value", [255, 1, np.float32(1), 0.4])
def test_perfect_prediction(value):
    truth = np.zeros((8, 10), bool)
    truth[2:5, 3:8] = True
    result = frame_saliency(truth * np.asarray(value, np.uint8 if value in (1, 255) else float), truth)
    assert result.mae == 0
    assert result.adaptive_f == 1
    assert result.s_measure == pytest.approx(1, abs=1e-12)
    assert (result.f_beta[:255] == 1).all() and (result.recall == 1).all()
    # At threshold 0 all 80 pixels are selected; the object has 15.
    assert result.precision[255] == 15 / 80
    assert result.f_beta[255] == pytest.approx(1.3 * 0.1875 / (0.3 * 0.1875 + 1), rel=1e-15)


def test_inverted_prediction():
    truth = np.zeros((8, 10), bool)
    truth[2:5, 3:8] = True
    result = frame_saliency(np.where(truth, 0, 255).astype(np.uint8), truth)
    assert result.mae == 1
    assert not result.f_beta[:255].any() and not result.precision[:255].any() and not result.recall[:255].any()
    assert result.recall[255] == 1
    assert result.adaptive_f == 0
    assert result.s_measure == 0  # S_o is 0 and S_r negative


def test_constant_map_is_not_normalized():
    truth = np.zeros((2, 4), bool)
    truth[:, :3] = True
    result = frame_saliency(np.full((2, 4), 51, np.uint8), truth)  # S = 0.2
    assert result.mae == pytest.approx((6 * 0.8 + 2 * 0.2) / 8)
    full = 1.3 * 0.75 / (0.3 * 0.75 + 1)
    assert not result.f_beta[: 255 - 51].any()
    np.testing.assert_allclose(result.f_beta[255 - 51 :], full, rtol=1e-15)
    assert result.adaptive_f == 0  # 0.2 is below twice the mean
    for ours, theirs in zip(frame_saliency(np.full((2, 4), 0.2), truth), result, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The adaptive threshold, twice the mean, is 0 for a black map and selects everything; for a white one it is 1.
    assert frame_saliency(np.zeros((2, 4), np.uint8), truth).adaptive_f == pytest.approx(full, rel=1e-15)
    assert frame_saliency(np.full((2, 4), 255, np.uint8), truth).adaptive_f == pytest.approx(full, rel=1e-15)


def test_empty_and_full_truth():
    prediction = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)  # S = 0, 0.2, .., 1; mean 0.5
    empty = frame_saliency(prediction, np.zeros((2, 3), bool))
    assert not empty.precision.any() and not empty.recall.any() and not empty.f_beta.any() and empty.adaptive_f == 0
    assert empty.mae == pytest.approx(0.5) and empty.s_measure == pytest.approx(0.5)
    full = frame_saliency(prediction, np.ones((2, 3), bool))
    assert (full.precision == 1).all()
    assert full.recall[0] == 1 / 6 and full.recall[-1] == 1
    assert full.adaptive_f == pytest.approx(1.3 / 6 / (0.3 + 1 / 6), rel=1e-14)  # the threshold 1 selects one pixel
    assert full.mae == pytest.approx(0.5) and full.s_measure == pytest.approx(0.5)
    dark = np.full((2, 3), 51, np.uint8)
    assert frame_saliency(dark, np.zeros((2, 3), bool)).s_measure == pytest.approx(0.8)
    assert frame_saliency(dark, np.ones((2, 3), bool)).s_measure == pytest.approx(0.2)


def test_s_measure_by_hand():
    # The centroid 3.5 is rounded to 4, so one part holds all pixels: means 0.375 and 0.5, variances 0.6875 / 3 and
    # 1 / 3, covariance 0.25, SSIM = 0.1875 / (0.390625 * 0.5625). Object term: mean 0.75, standard deviation
    # sqrt(1 / 8). Background term: 1.
    value = s_measure(np.array([[0, 0, 0.5, 1]]), np.array([[False, False, True, True]]))
    object_term = 0.5 * 1.5 / (1.5625 + math.sqrt(0.125)) + 0.5
    assert value == pytest.approx(0.5 * object_term + 0.5 * 0.1875 / (0.390625 * 0.5625), rel=1e-14)
    assert value == pytest.approx(0.8723815, abs=1e-7)


def test_s_measure_of_constant_regions_is_exact():
    # Three of the four parts are constant and hold no object, so their SSIM is 1, although the floating-point mean of
    # many values 0.1 may differ from 0.1.
    truth = np.zeros((14, 15), bool)
    truth[:2, :2] = [[False, False], [False, True]]
    saliency = np.where(truth, 0.9, 0.1)
    assert s_measure(saliency, truth) == pytest.approx(by_fractions(saliency, truth), rel=1e-12)


@pytest.mark.parametrize("shape", [(7, 9), (1, 6), (5, 1), (2, 2), (3, 4)])
@pytest.mark.parametrize("seed", range(6))
def test_s_measure_equals_exact_fractions(shape, seed):
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, *shape)
    if not 0 < truth.sum() < truth.size:
        truth.flat[:] = np.arange(truth.size) == seed % truth.size
    for saliency in (rng.random(shape), np.where(truth, 0.8, 0.1) + rng.random(shape) / 10, rng.integers(0, 2, shape)):
        assert s_measure(saliency.astype(float), truth) == pytest.approx(by_fractions(saliency, truth), abs=1e-12)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (4, 5), (0, 5), (4, 0), (2, 3)])
def test_s_measure_of_one_pixel_objects(row, column):
    truth = np.zeros((5, 6), bool)
    truth[row, column] = True
    saliency = np.random.default_rng(0).random((5, 6))
    for object_map in (truth, ~truth):
        assert s_measure(saliency, object_map) == pytest.approx(by_fractions(saliency, object_map), abs=1e-12)


def test_s_measure_of_a_small_object():
    # Means and variances near 1 / N make the denominator so small that its epsilon matters.
    truth = np.zeros((40, 50), bool)
    truth[19, 24] = True
    value = s_measure(truth.astype(float), truth)
    assert value == pytest.approx(by_fractions(truth, truth), rel=1e-13)
    assert 1 - value > 1e-10


def test_s_measure_is_transposition_invariant_and_monotonic():
    rng = np.random.default_rng(0)
    truth = np.zeros((9, 12), bool)
    truth[2:6, 3:9] = True
    noise = rng.random(truth.shape)
    assert s_measure(noise, truth) == pytest.approx(s_measure(noise.T, truth.T), rel=1e-13)
    values = [s_measure(w * truth + (1 - w) * noise, truth) for w in (0, 0.3, 0.6, 0.9, 1)]
    assert values == sorted(values) and values[-1] == pytest.approx(1, abs=1e-12)


def test_normalization_removes_brightness_and_contrast():
    rng = np.random.default_rng(0)
    truth, base = random_truth(rng), rng.integers(0, 52, (7, 9))
    base[0, :2] = 0, 51
    variants = [base, base + 100, 5 * base, 4 * base + 3]
    results = [frame_saliency(v.astype(np.uint8), truth) for v in variants]
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("prediction", "truth", "match"),
    [
        (np.zeros((2, 3), np.int64), np.zeros((2, 3), bool), "uint8 or float"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), bool), "uint8 or float"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8), "truth must be bool"),
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), bool), "same shape"),
        (np.zeros((2, 3, 1), np.uint8), np.zeros((2, 3, 1), bool), "same shape"),
        (np.zeros((0, 3), np.uint8), np.zeros((0, 3), bool), "same shape"),
        (np.full((2, 3), 1.5), np.zeros((2, 3), bool), r"be in \[0, 1\]"),
        (np.array([[0, np.nan]]), np.zeros((1, 2), bool), r"be in \[0, 1\]"),
    ],
)
def test_invalid_saliency_maps_are_errors(prediction, truth, match):
    with pytest.raises(ValueError, match=match):
        frame_saliency(prediction, truth)


def test_means_are_over_frames_then_sequences():
    # A sequence of three frames has the same weight as one of a single frame.
    first = [scores(0.1, step(1, 0)), scores(0.2, step(1, 0)), scores(0.6, step(0.4, 0))]
    second = [scores(0.5, step(0, 0.9))]
    mean = sequence_mean(first)
    assert mean.mae == pytest.approx(0.3)
    np.testing.assert_allclose(mean.f_beta, step(0.8, 0))
    result = dataset_mean([first, second])
    assert result.mae == pytest.approx(0.4)
    assert result.adaptive_f == pytest.approx(0.2) and result.s_measure == pytest.approx(0.1)
    np.testing.assert_allclose(result.f_beta, step(0.4, 0.45))
    np.testing.assert_allclose(result.precision, step(0.2, 0.225))
    np.testing.assert_allclose(result.recall, step(0.1, 0.1125))
    # The maximum of the mean curve, not the mean of the maxima (0.85); first reached at index 128.
    assert result.max_f == pytest.approx(0.45)
    assert result.max_f_threshold == 127 / 255


def test_dataset_mean_accepts_generators_and_sequence_means():
    rng = np.random.default_rng(0)
    sequences = [[scores(rng.random(), rng.random(256)) for _ in range(n)] for n in (3, 1, 2)]
    expected = dataset_mean(sequences)
    lazily = dataset_mean((frame for frame in frames) for frames in sequences)
    reduced = dataset_mean([sequence_mean(sequences[0]), sequences[1], sequence_mean(sequences[2])])
    for other in (lazily, reduced):
        for ours, theirs in zip(other, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_dataset_mean_of_computed_frames():
    rng = np.random.default_rng(0)
    frames = [frame_saliency(random_prediction(rng, "uint8"), random_truth(rng)) for _ in range(4)]
    result = dataset_mean([frames[:3], frames[3:]])
    for name in ("mae", "adaptive_f", "s_measure", "precision", "recall", "f_beta"):
        values = [np.asarray(getattr(frame, name)) for frame in frames]
        np.testing.assert_allclose(getattr(result, name), (sum(values[:3]) / 3 + values[3]) / 2, rtol=1e-13)
    assert result.max_f == result.f_beta.max()
    assert result.f_beta[np.flatnonzero(result.max_f_threshold == THRESHOLDS)[0]] == result.max_f


def test_mean_of_no_frames_is_an_error():
    with pytest.raises(ValueError, match="no frames"):
        sequence_mean([])
    with pytest.raises(ValueError, match="no sequences"):
        dataset_mean([])
    with pytest.raises(ValueError, match="no frames"):
        dataset_mean([[scores(0.1, step(1))], []])
    assert isinstance(sequence_mean([scores(0.1, step(1))]), SequenceSaliency)


@pytest.mark.parametrize("levels", [256, 7, 1])
@pytest.mark.parametrize("seed", range(3))
def test_pooled_measures_equal_scikit_learn(levels, seed):
    rng = np.random.default_rng(seed)
    sizes = [(7, 9), (5, 4), (1, 3)]
    predictions = [rng.integers(256 - levels, 256, size).astype(np.uint8) for size in sizes]
    truths = [random_truth(rng, *size) for size in sizes]
    histogram = sum(pooled_histogram(p, t) for p, t in zip(predictions, truths, strict=True))
    pixels, labels = (np.concatenate([each.ravel() for each in group]) for group in (predictions, truths))
    expected_p, expected_r, expected_t = precision_recall_curve(labels, pixels)
    precision, recall, thresholds = pooled_curve(histogram)
    np.testing.assert_array_equal(precision, expected_p[:-1])
    np.testing.assert_array_equal(recall, expected_r[:-1])
    np.testing.assert_array_equal(thresholds, expected_t)
    result = pooled_f(histogram)
    f = [2 * p * r / (p + r) if p + r else 0 for p, r in zip(expected_p, expected_r, strict=True)]
    best = f.index(max(f))
    assert result["max_f"] == f[best]
    assert (result["precision"], result["recall"]) == (expected_p[best], expected_r[best])
    assert result["threshold"] == expected_t[best]
    assert result["mae"] == pytest.approx(np.abs(pixels / 255 - labels).mean(), rel=1e-13)


def test_pooled_histogram_by_hand():
    prediction = np.array([[0, 0, 255], [7, 7, 255]], np.uint8)
    truth = np.array([[False, True, True], [False, False, True]])
    histogram = pooled_histogram(prediction, truth)
    assert histogram.shape == (2, 256) and histogram.dtype == np.int64
    assert {k: histogram[:, k].tolist() for k in np.flatnonzero(histogram.any(axis=0))} == {
        0: [1, 1],
        7: [0, 2],
        255: [2, 0],
    }
    assert pooled_f(histogram) == pytest.approx(
        {"max_f": 0.8, "threshold": 255, "precision": 1, "recall": 2 / 3, "mae": (1 + 14 / 255) / 6}
    )


def test_pooled_f_weights_pixels_equally_without_normalization():
    # A perfect dim frame of 4 pixels and a wrong frame of 1 pixel: pooled F is computed over all 5 pixels.
    dim = pooled_histogram(np.array([[0, 0, 100, 100]], np.uint8), np.array([[False, False, True, True]]))
    bright = pooled_histogram(np.array([[200]], np.uint8), np.array([[False]]))
    assert pooled_f(dim)["max_f"] == 1 and pooled_f(dim)["mae"] == pytest.approx(2 * 155 / 255 / 4)
    result = pooled_f(dim + bright)
    assert result["max_f"] == pytest.approx(2 * (2 / 3) / (2 / 3 + 1)) and result["threshold"] == 100


def test_pooled_f_ties_use_the_lowest_threshold():
    # P = 1, R = 1/2 from 100 on; P = 1/2, R = 1 from 50 on.
    result = pooled_f(pooled_histogram(np.array([[100, 50, 50, 50, 7]], np.uint8), np.array([[1, 1, 0, 0, 0]], bool)))
    assert result["threshold"] == 50 and (result["precision"], result["recall"]) == (0.5, 1)


def test_pooled_without_objects_or_pixels():
    nothing = pooled_histogram(np.array([[3, 9]], np.uint8), np.zeros((1, 2), bool))
    result = pooled_f(nothing)
    assert (result["max_f"], result["recall"]) == (0, 0) and result["mae"] == pytest.approx(12 / 255 / 2)
    with pytest.raises(ValueError, match="no pixels"):
        pooled_f(np.zeros((2, 256), np.int64))
    with pytest.raises(ValueError, match="must be uint8, not float64"):
        pooled_histogram(np.zeros((2, 3)), np.zeros((2, 3), bool))
