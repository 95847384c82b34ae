"""J, F and their statistics against the published tool and brute force."""

import csv
import warnings

import numpy as np
import pytest
from PIL import Image

from uvos_jax.evaluation import packed_masks
from uvos_jax.evaluation.region_boundary import (
    boundary_f,
    boundary_radius,
    jaccard,
    score_all_pairs,
    score_labels,
    statistics,
)

HEIGHT, WIDTH = 480, 854


def disk(x, radius=100, y=240):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def box(left, right, top, bottom):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


EMPTY, FULL = np.zeros((HEIGHT, WIDTH), bool), np.ones((HEIGHT, WIDTH), bool)


@pytest.mark.parametrize(("prediction", "truth", "void", "region", "boundary"), [
    (disk(405), disk(400), None, .938483, 1.0),
    (disk(420), disk(400), None, .775022, .256219),
    (disk(400, 110), disk(400), None, .827177, 0.0),
    (box(300, 500, 140, 340), disk(400), None, .785336, .450456),
    (box(700, 854, 400, 480), box(705, 854, 395, 480), None, .912361, 1.0),
    (EMPTY, disk(400), None, 0.0, 0.0),
    (disk(400), EMPTY, None, 0.0, 0.0),
    (disk(420), disk(400), box(480, 854, 0, 480), .834522, .483915),
    (EMPTY, EMPTY, None, 1.0, 1.0),
    (FULL, FULL, None, 1.0, 1.0),
    (FULL, EMPTY, None, 0.0, 1.0),
    (disk(420), disk(400), FULL, 1.0, 1.0),
])
def test_j_and_f_equal_the_published_tool(prediction, truth, void, region, boundary):
    assert jaccard(prediction, truth, void) == pytest.approx(region, abs=5e-7)
    assert boundary_f(prediction, truth, void) == pytest.approx(boundary, abs=5e-7)


@pytest.mark.parametrize(("size", "radius"), [((480, 854), 8), ((1080, 1920), 18), ((10, 10), 1), ((240, 427), 4)])
def test_boundary_radius(size, radius):
    assert boundary_radius(*size) == radius


def plain_contour(mask):
    """The boundary map, pixel by pixel."""
    height, width = mask.shape
    contour = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            neighbors = {(y, x + 1), (y + 1, x), (y + 1, x + 1)}
            if y == height - 1:
                neighbors = {(y, x + 1)}
            if x == width - 1:
                neighbors = {(y + 1, x)}
            if (y, x) == (height - 1, width - 1):
                neighbors = set()
            values = [mask[p] if p[0] < height and p[1] < width else False for p in neighbors]
            contour[y, x] = any(value != mask[y, x] for value in values)
    return contour


def plain_f(prediction, truth, void, radius):
    """F from the distances of all pairs of contour pixels."""
    a, b = (np.argwhere(plain_contour(mask & ~void)) for mask in (prediction, truth))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    near = ((a[:, None] - b[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 11), (12, 64), (9, 65), (6, 130)])
@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_boundary_f_equals_brute_force(size, radius):
    rng = np.random.default_rng(size[0] * 1000 + size[1] + radius)
    for density in (0.03, 0.3, 0.7):
        prediction, truth, void = rng.random((3, *size)) < np.array([density, density, 0.2])[:, None, None]
        expected = plain_f(prediction, truth, void, radius)
        assert boundary_f(prediction, truth, void, radius) == pytest.approx(expected, abs=1e-12)
        union = (prediction | truth) & ~void
        expected = (prediction & truth & ~void).sum() / union.sum() if union.any() else 1.0
        assert jaccard(prediction, truth, void) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("radius", [0, 1, 3, 8, 18, 40, 90])
def test_dilation_equals_brute_force(radius):
    rng = np.random.default_rng(radius)
    mask = rng.random((45, 150)) < 0.002
    mask[0, 0] = mask[-1, -1] = True
    points = np.argwhere(mask)
    grid = np.stack(np.mgrid[:45, :150], -1)
    expected = (((grid[:, :, None] - points) ** 2).sum(-1) <= radius**2).any(-1)
    packed = packed_masks.dilate(packed_masks.pack(mask), radius)
    dilated = np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")[:, :150]
    np.testing.assert_array_equal(dilated.astype(bool), expected)


@pytest.mark.parametrize("width", [1, 8, 63, 64, 65, 200])
def test_pack_label_equals_pack_of_its_mask(width):
    labels = np.random.default_rng(width).integers(0, 4, (700, width)).astype(np.uint8)
    np.testing.assert_array_equal(packed_masks.pack_label(labels, 3), packed_masks.pack(labels == 3))
    assert packed_masks.count(packed_masks.pack_label(labels, 3)) == (labels == 3).sum()


def test_cropping_preserves_contours():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 40), rng.integers(1, 300)
        mask = np.zeros((2, height, width), bool)
        top, left = rng.integers(0, height), rng.integers(0, width)
        part = mask[:, top : top + rng.integers(1, 9), left : left + rng.integers(1, 90)]
        part[:] = rng.random(part.shape) < 0.6
        whole = packed_masks.contour(packed_masks.pack(mask), width)
        cropped, left_over = packed_masks.crop(packed_masks.pack(mask), width)
        cropped_contour = packed_masks.contour(cropped, left_over)
        np.testing.assert_array_equal(packed_masks.count(cropped_contour), packed_masks.count(whole))


def test_leading_axes_broadcast():
    rng = np.random.default_rng(3)
    prediction, truth = rng.random((2, 3, 20, 70)) < 0.5, rng.random((3, 20, 70)) < 0.5
    for measure in (jaccard, boundary_f):
        together = measure(prediction, truth)
        assert together.shape == (2, 3)
        for i in range(2):
            for j in range(3):
                assert together[i, j] == measure(prediction[i, j], truth[j])


def test_score_labels_and_score_all_pairs_equal_single_scores():
    rng = np.random.default_rng(4)
    prediction, truth = (np.kron(rng.integers(0, 4, (6, 8)), np.ones((9, 11))).astype(np.uint8) for _ in range(2))
    void = rng.random(truth.shape) < 0.1
    region, boundary = score_labels(prediction, truth, 3, void)
    all_region, all_boundary = score_all_pairs(prediction, 5, truth, 3, void)
    assert all_region.shape == all_boundary.shape == (5, 3)
    for k in range(5):
        for o in range(3):
            pair = prediction == k + 1, truth == o + 1, void
            assert all_region[k, o] == pytest.approx(jaccard(*pair), abs=1e-12)
            assert all_boundary[k, o] == pytest.approx(boundary_f(*pair), abs=1e-12)
    np.testing.assert_allclose(np.diag(all_region), region)
    np.testing.assert_allclose(np.diag(all_boundary), boundary)
    assert region.min() < 1 and len(np.unique(boundary)) == 3


@pytest.mark.parametrize(("frames", "recall", "decay"), [
    (4, .5, .666667), (5, .4, .75), (7, 3 / 7, .75), (10, .5, .777778), (48, .5, .744681), (67, .492537, .75),
    (98, .5, .752577)])
def test_statistics_of_a_linear_decrease(frames, recall, decay):
    result = statistics(np.linspace(1, 0, frames))
    assert result == pytest.approx((0.5, recall, decay), abs=5e-7)


def test_recall_threshold_is_strict_and_nan_counts_as_a_miss():
    assert statistics([0.5, 0.5, 0.6, np.nan]).recall == 0.25
    assert statistics([0.5, 0.7, np.nan]).mean == pytest.approx(0.6)


def test_compat_uint8_reproduces_published_overflow_at_256_frames():
    line = np.linspace(1, 0, 300)
    assert statistics(line).decay == pytest.approx(0.75, abs=2e-3)
    assert np.isnan(statistics(line, compat_uint8=True).decay)
    assert statistics(line[:256], compat_uint8=True) == statistics(line[:256])


def test_statistics_of_few_values_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(statistics([])).all()
        assert statistics([np.nan]).recall == 0
        assert statistics([0.8]) == (0.8, 1.0, 0.0)


@pytest.mark.slow
def test_previous_frame_as_prediction_on_real_masks(real_data, golden):
    """Values of the published tool on all 30 DAVIS-2016 training sequences."""
    with open(golden / "davis_train_previous_frame_JF.csv") as file:
        expected = {row.pop("sequence"): [float(value) for value in row.values()] for row in csv.DictReader(file)}
    measured = {}
    for name in expected.keys() - {"MEAN"}:
        masks = []
        for path in sorted((real_data / "davis2016/Annotations/480p" / name).glob("*.png")):
            with Image.open(path) as image:
                masks.append((np.array(image.convert("L")) > 0).astype(np.uint8))
        values = np.array([score_labels(masks[t - 1], masks[t], 1) for t in range(1, len(masks) - 1)])
        measured[name] = [*statistics(values[:, 0, 0]), *statistics(values[:, 1, 0])]
        np.testing.assert_allclose(measured[name], expected[name], rtol=0, atol=1e-6, err_msg=name)
    assert len(measured) == 30
    np.testing.assert_allclose(np.mean(list(measured.values()), axis=0), expected["MEAN"], rtol=0, atol=1e-6)
