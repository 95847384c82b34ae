"""Temporal stability: contours, shape contexts and matching against brute force and official values."""

import csv
import itertools
import math

import numpy as np
import pytest

from uvos_jax.evaluation.polygon_contours import longest_contour, mask_polygons
from uvos_jax.evaluation.temporal_stability import (
    cheapest_path,
    histogram_distance,
    matching_cost,
    sequence_instability,
    shape_context,
    temporal_instability,
)

Y, X = np.mgrid[:120, :160]


def disk(radius: int, x: int = 80, y: int = 60) -> np.ndarray:
    return (X - x) ** 2 + (Y - y) ** 2 <= radius**2


def ellipse(a: int, b: int) -> np.ndarray:
    return ((X - 80) / a) ** 2 + ((Y - 60) / b) ** 2 <= 1


def box(left: int, right: int, top: int, bottom: int) -> np.ndarray:
    return (left <= X) & (right > X) & (top <= Y) & (bottom > Y)


def area(loop: np.ndarray) -> float:
    """Enclosed area, positive for a clockwise loop (y points down)."""
    x, y = loop.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def pictured(*rows: str) -> np.ndarray:
    """A mask of 6x6 blocks, large enough to survive polygon simplification."""
    return np.kron([[c == "#" for c in row] for row in rows], np.ones((6, 6))).astype(bool)


def test_polygon_of_a_disk():
    (loop,) = mask_polygons(disk(30))
    assert len(loop) == 14
    assert loop[:2].tolist() == [[80, 30], [99, 36]]
    points = longest_contour(disk(30))
    assert points.dtype == np.float64 and points.shape == (72, 2)
    assert points[0].tolist() == points[-1].tolist()
    assert np.hypot(*np.diff(points, axis=0).T).max() <= 3


def test_polygon_of_a_box_touching_the_frame():
    (loop,) = mask_polygons(np.ones((7, 9), bool))
    assert loop.tolist() == [[0, 0], [9, 0], [9, 7], [0, 7], [0, 0]]


def test_holes_are_counterclockwise():
    mask = box(20, 100, 20, 100) & ~box(40, 60, 30, 80)
    loops = mask_polygons(mask)
    assert sorted(area(loop) for loop in loops) == [-1000, 6400]


@pytest.mark.parametrize(
    ("mask", "areas"),
    [
        (pictured("#.", ".#"), [36, 36]),
        (pictured(".#.", "#.#", ".#."), [36, 36, 36, 36]),
        (pictured("##.", "#.#", "###"), [-36, 288]),
        (pictured("###", "#.#", "##."), [-36, 288]),
    ],
)
def test_diagonal_neighbors_are_separate_contours(mask, areas):
    assert sorted(area(loop) for loop in mask_polygons(mask)) == areas


@pytest.mark.parametrize("seed", range(5))
def test_signed_area_of_polygons_approximates_the_mask(seed):
    noise = np.random.default_rng(seed).random((15, 20)) > 0.5
    mask = np.kron(noise, np.ones((8, 8))).astype(bool)
    # A missing or wrongly oriented loop changes the area by 64 pixels or more, a cut corner by two.
    assert sum(area(loop) for loop in mask_polygons(mask)) == pytest.approx(mask.sum(), abs=20)


@pytest.mark.parametrize("density", [0.5, 0.98])
def test_contour_of_noise_is_closed(density):
    mask = np.random.default_rng(0).random((120, 160)) < density
    points = longest_contour(mask)
    assert points[0].tolist() == points[-1].tolist()
    assert 0 < temporal_instability(mask, mask[::-1]) < 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (disk(30), disk(20), 0.0359175828981334),
        (disk(30), box(50, 110, 30, 90), 0.13802919211837228),
        (box(50, 110, 30, 90), box(30, 130, 45, 75), 0.36323424058389187),
        (ellipse(40, 20), ellipse(20, 40), 0.5141409960176248),
        (ellipse(40, 20), ellipse(36, 24), 0.09626588428857519),
    ],
)
def test_synthetic_shapes_equal_the_published_python_code(first, second, expected):
    assert temporal_instability(first, second) == pytest.approx(expected, abs=1e-12)


def test_matlab_variant_measures_angles_from_the_other_axis():
    pair = disk(30), box(50, 110, 30, 90)
    assert temporal_instability(*pair, matlab=True) == pytest.approx(0.1617, abs=1e-4)
    points = np.random.default_rng(2).random((20, 2))
    np.testing.assert_array_equal(shape_context(points, matlab=True), shape_context(points[:, ::-1]))
    assert (shape_context(points, matlab=True) != shape_context(points)).any()


def test_instability_of_translation_is_zero():
    assert temporal_instability(disk(30), disk(30, 87, 63)) == 0
    assert temporal_instability(disk(30), disk(20)) > 0


@pytest.mark.parametrize("nothing", [np.zeros((120, 160), bool), disk(0), disk(0) | disk(0, 81, 61)])
def test_masks_without_contour_give_nan(nothing):
    assert longest_contour(nothing) is None
    assert math.isnan(temporal_instability(disk(30), nothing))
    assert math.isnan(temporal_instability(nothing, disk(30)))


def test_sequence_instability_equals_pairwise_instability():
    masks = [disk(30), disk(20), np.zeros((120, 160), bool), disk(20), box(50, 110, 30, 90)]
    values = sequence_instability(iter(masks))
    assert values.dtype == np.float64
    expected = [temporal_instability(*pair) for pair in itertools.pairwise(masks)]
    np.testing.assert_array_equal(values, expected)
    assert np.isnan(values).tolist() == [False, True, True, False]
    assert sequence_instability([]).shape == sequence_instability(masks[:1]).shape == (0,)


@pytest.mark.parametrize("mask", [np.ones((4, 5), np.uint8), np.ones((4, 5, 1), bool)])
def test_invalid_masks_are_errors(mask):
    with pytest.raises(ValueError, match="mask must be bool"):
        longest_contour(mask)


def slow_context(points: np.ndarray) -> list[list[float]]:
    n = len(points)
    mean = sum(math.dist(p, q) for p in points for q in points) / n**2
    rows = []
    for p in points:
        row = [0.0] * 60
        for q in points:
            rings = sum(math.dist(p, q) / mean < edge for edge in (0.125, 0.25, 0.5, 1, 2))
            degrees = math.degrees(math.atan2(q[1] - p[1], q[0] - p[0])) % 360
            if rings:
                row[(5 - rings) * 12 + int(degrees // 30)] += 1
        rows.append([count / sum(row) for count in row])
    return rows


def test_shape_context_and_distance_equal_brute_force():
    rng = np.random.default_rng(0)
    first, second = rng.random((9, 2)), rng.random((12, 2))
    first[0] = second[0] = (8, 8)  # beyond the outermost ring of all other points
    a, b = slow_context(first), slow_context(second)
    np.testing.assert_allclose(shape_context(first), a, atol=1e-14)
    slow = [[sum((p - q) ** 2 / (p + q) for p, q in zip(i, j, strict=True) if p + q) / 2 for j in b] for i in a]
    np.testing.assert_allclose(histogram_distance(shape_context(first), shape_context(second)), slow, atol=1e-14)


def all_paths(i: int, j: int):
    if i == j == 0:
        yield [(0, 0)]
    for di, dj in ((1, 0), (0, 1), (1, 1)):
        if i >= di and j >= dj:
            for path in all_paths(i - di, j - dj):
                yield [(i, j), *path]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 2), (3, 5), (5, 4)])
def test_cheapest_path_equals_brute_force(shape):
    cost = np.random.default_rng(sum(shape)).random(shape)

    def price(path) -> float:
        return sum(cost[i, j] for i, j in path[:-1])

    best = min(all_paths(shape[0] - 1, shape[1] - 1), key=price)
    assert [tuple(cell) for cell in cheapest_path(cost).tolist()] == best


def test_matching_by_hand():
    # The first path is the diagonal and its cheapest cell is the last, so the cost matrix is not rolled.
    assert matching_cost(np.array([[0.5, 0.9], [0.9, 0.1]])) == pytest.approx(0.3)
    # Row 0 is matched to columns 0 and 1; the cheaper one counts.
    assert matching_cost(np.array([[0.5, 0.2, 0.9], [0.9, 0.9, 0.1]])) == pytest.approx(0.15)


def test_matching_cost_does_not_depend_on_contour_start():
    cost = np.random.default_rng(1).random((6, 7)) + 1
    cost[np.arange(6), np.arange(6)] = 0.01 * np.arange(1, 7)
    for shift in range(6):
        rolled = np.roll(cost, (shift, shift), axis=(0, 1))
        assert matching_cost(rolled) == pytest.approx(0.035)  # mean of the six cheap cells


@pytest.mark.slow
def test_real_ground_truth_against_official_values(golden, real_data):
    from uvos_jax.video import read_mask

    with open(golden / "davis_train_T.csv", newline="") as file:
        official = {row[0]: np.array(row[1:], float) for row in csv.reader(file)}
    differences = []
    for name in ("bmx-bumps", "dog-agility", "soccerball", "rollerblade"):
        # The official values pair the frames 0 and 1, 1 and 2, and so on, without the last frame.
        paths = sorted((real_data / "davis2016/Annotations/480p" / name).glob("*.png"))[:-1]
        values = sequence_instability((read_mask(path) > 0 for path in paths), matlab=True)
        np.testing.assert_array_equal(np.isnan(values), np.isnan(official[name]))
        assert np.nanmean(values) == pytest.approx(np.nanmean(official[name]), rel=0.01)
        differences.append(np.abs(values - official[name]))
    differences = np.concatenate(differences)
    differences = differences[~np.isnan(differences)]
    # The rest are contours with junctions, and points that rounding moves across a bin edge on an axis.
    assert np.mean(differences < 1e-6) > 0.75
    assert np.mean(differences < 1e-3) > 0.88
