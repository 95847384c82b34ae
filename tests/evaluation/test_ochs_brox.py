"""Region measure of FBMS against brute force and hand-computed values, and its definition files."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.evaluation.ochs_brox import (
    Definition,
    LabeledFrame,
    RegionScores,
    average_scores,
    read_definition,
    region_labels,
    score_sequence,
)


def labels(*rows: str) -> np.ndarray:
    """A prediction from one digit per pixel; '.' is unlabeled (255)."""
    return np.array([[255 if c == "." else int(c) for c in row] for row in rows], np.uint8)


def regions(*rows: str) -> np.ndarray:
    """Ground truth from one digit per pixel; '.' is void (-1)."""
    return np.array([[-1 if c == "." else int(c) for c in row] for row in rows], np.int16)


def by_all_assignments(pairs: list) -> list[RegionScores]:
    """Returns the scores of every optimal assignment by brute force over lists of pixels."""
    pixels = [
        (int(t), int(p))
        for prediction, truth in pairs
        for p, t in zip(prediction.ravel(), truth.ravel(), strict=True)
        if t >= 0
    ]
    visible = sorted({t for t, _ in pixels})
    labeled = [(t, p) for t, p in pixels if p != 255]
    clusters: list = sorted({p for _, p in labeled})
    size = max(len(visible), len(clusters))

    def score(region: int, cluster: int) -> tuple[float, float, float]:
        common = labeled.count((region, cluster))
        if not common:
            return 0.0, 0.0, 0.0
        precision = common / sum(p == cluster for _, p in labeled)
        recall = common / sum(t == region for t, _ in labeled)
        return precision, recall, 2 * precision * recall / (precision + recall)

    candidates = []
    for order in permutations(range(size), len(visible)):
        chosen = []
        for region, index in zip(visible, order, strict=True):
            chosen.append(score(region, clusters[index]) if index < len(clusters) else (1.0, 0.0, 0.0))
        # The offset keeps values such as 0.7, slightly smaller in floating point, from being truncated to 0.6999.
        candidates.append((sum(int(f * 10000 + 1e-6) for _, _, f in chosen), chosen))
    best = max(total for total, _ in candidates)
    results = []
    for total, chosen in candidates:
        if total == best:
            p, r = (sum(c[i] for c in chosen) / len(chosen) for i in (0, 1))
            extracted = max(0, sum(f >= 0.75 for _, _, f in chosen) - 1)
            f = 2 * p * r / (p + r) if p + r else 0
            results.append(RegionScores(p, r, f, len(labeled) / len(pixels), len(visible) - 1, extracted))
    return results


@pytest.mark.parametrize("seed", range(40))
def test_scores_equal_brute_force_over_assignments(seed):
    rng = np.random.default_rng(seed)
    n_regions, n_clusters = rng.integers(1, 6), rng.integers(1, 6)
    pairs = []
    for _ in range(rng.integers(1, 4)):
        truth = rng.integers(-1, n_regions, (5, 6)).astype(np.int16)
        prediction = np.where(rng.random((5, 6)) < 0.6, truth % n_clusters, rng.integers(0, n_clusters, (5, 6)))
        prediction[rng.random((5, 6)) < 0.15] = 255
        pairs.append((prediction.astype(np.uint8), truth))
    result = score_sequence(iter(pairs))
    assert any(result == pytest.approx(expected, abs=1e-12) for expected in by_all_assignments(pairs))


@pytest.mark.parametrize("seed", range(3))
def test_permuted_labels_score_one(seed):
    rng = np.random.default_rng(seed)
    truths = [rng.integers(0, 6, (8, 9)).astype(np.int32) for _ in range(3)]
    names = rng.choice(255, 6, replace=False).astype(np.uint8)
    assert score_sequence((names[t], t) for t in truths) == RegionScores(1, 1, 1, 1, 5, 5)


def test_two_regions_by_hand():
    # Cluster 5 covers 6 pixels, 5 of them background (of 6); cluster 3 covers 2, 1 of them the object (of 2).
    result = score_sequence([(labels("5553", "5553"), regions("0001", "0010"))])
    assert result == pytest.approx(RegionScores((5 / 6 + 1 / 2) / 2, (5 / 6 + 1 / 2) / 2, 2 / 3, 1, 1, 0))


def test_pixel_counts_are_summed_over_frames_before_division():
    # Each frame alone is perfect, but the labels swap between frames: 4 of 8 pixels agree.
    truth = regions("0011", "0011")
    swapped = score_sequence([(labels("0011", "0011"), truth), (labels("1100", "1100"), truth)])
    assert swapped == RegionScores(0.5, 0.5, 0.5, 1, 1, 0)
    # A large frame weighs more than a small one: 5 of 6 object pixels hit, 1 false positive in the background.
    pairs = [(labels("00011111"), regions("00111111")), (labels("10"), regions("00"))]
    result = score_sequence(pairs)
    assert result.precision == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert result.recall == pytest.approx((3 / 4 + 5 / 6) / 2)


def test_region_without_cluster():
    # One cluster over both regions: it is matched to the larger (P = 6/8, R = 1), the other gets P = 1, R = 0.
    result = score_sequence([(labels("0000", "0000"), regions("0001", "0001"))])
    assert result == pytest.approx(RegionScores(7 / 8, 1 / 2, 2 * 7 / 16 / (11 / 8), 1, 1, 0))
    # The larger region's F is 6/7; it counts as the background, so no object is extracted.


def test_region_matched_without_overlap():
    # As many clusters as regions, but region 1 does not overlap the second: P and R are 0, not 1 and 0.
    result = score_sequence([(labels("0002", "0000"), regions("0000", "0011"))])
    # Cluster 0 to region 0 (5 of 7 and of 6), cluster 2 to region 1 (no overlap).
    assert result == pytest.approx(RegionScores(5 / 14, 5 / 12, 2 * 5 / 14 * 5 / 12 / (5 / 14 + 5 / 12), 1, 1, 0))


def test_more_clusters_than_regions():
    # Region 0 is split into clusters 0 (4 pixels) and 7 (2); the smaller is ignored and not penalized.
    result = score_sequence([(labels("0011", "0011", "77.."), regions("0011", "0011", "00.."))])
    assert result == pytest.approx(RegionScores(1, (4 / 6 + 1) / 2, 2 * (5 / 6) / (11 / 6), 1, 1, 1))


def test_assignment_maximizes_the_sum_not_the_best_pair():
    # F is 2/3 + 0 with cluster 0 on the first region, but 1/2 + 1/2 the other way round.
    result = score_sequence([(labels("000011", "00...."), regions("000000", "11...."))])
    assert result == pytest.approx(RegionScores((1 + 2 / 6) / 2, (2 / 6 + 1) / 2, 2 / 3, 1, 1, 0))


def test_unlabeled_pixels_lower_only_the_density():
    truth = regions("000111", "000111")
    perfect = score_sequence([(labels("0.0.1.", ".0.1.1"), truth)])
    assert perfect == RegionScores(1, 1, 1, 0.5, 1, 1)
    full = score_sequence([(labels("000011", "000011"), truth)])
    sparse = score_sequence([(labels("000011", "......"), truth)])
    assert full.density == 1 and sparse.density == 0.5
    assert full._replace(density=0.5) == sparse


def test_prediction_without_labels():
    assert score_sequence([(labels("...."), regions("0112"))]) == RegionScores(1, 0, 0, 0, 2, 0)
    # A region without labels next to a labeled one.
    assert score_sequence([(labels("00.."), regions("0011"))]) == RegionScores(1, 0.5, 2 / 3, 0.5, 1, 0)


def test_void_pixels_are_ignored():
    inside = score_sequence([(labels("0011"), regions("0001"))])
    around = score_sequence([(labels("390011"), regions("..0001")), (labels("12"), regions(".."))])
    assert around == inside


def test_objects_are_extracted_from_f_of_three_quarters():
    # Background and object each overlap in 3 of 4 pixels, so F is exactly 0.75.
    result = score_sequence([(labels("00011110"), regions("00001111"))])
    assert result == RegionScores(0.75, 0.75, 0.75, 1, 1, 1)
    result = score_sequence([(labels("0000000011"), regions("0000000111"))])
    assert result.objects == 1 and result.extracted == 1  # F = 14/15 and 4/5
    result = score_sequence([(labels("0000000001"), regions("0000000111"))])
    assert result.extracted == 0  # F = 14/16 and 2/4


def test_regions_without_pixels_are_ignored():
    expected = score_sequence([(labels("0011", "0022"), regions("0011", "0022"))])
    apart = score_sequence([(labels("0011", "0022"), regions("0077", "0099"))])
    assert apart == expected and expected.objects == 2


def test_later_frames_may_add_regions_and_change_size():
    first, second = (labels("01"), regions("01")), (labels("012", "012"), regions("012", "012"))
    assert score_sequence([first, second]) == score_sequence([second, first]) == RegionScores(1, 1, 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("prediction", "truth", "match"),
    [
        (np.zeros((2, 3), np.int64), np.zeros((2, 3), np.int16), "must be uint8 and"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3)), "must be uint8 and"),
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.int16), "same shape"),
        (np.zeros((2, 3), np.uint8), np.full((2, 3), -2), "ground truth must be in -1..32767"),
        (np.zeros((2, 3), np.uint8), np.full((2, 3), 16777215), "ground truth must be in -1..32767"),
        (np.zeros((2, 3), np.uint8), np.full((2, 3), -1), "no labeled pixels"),
    ],
)
def test_invalid_arrays_are_errors(prediction, truth, match):
    with pytest.raises(ValueError, match=match):
        score_sequence([(prediction, truth)])
    with pytest.raises(ValueError, match="no labeled pixels"):
        score_sequence([])


def test_overall_f_is_computed_from_mean_precision_and_recall():
    result = average_scores(s for s in [RegionScores(1, 0.2, 1 / 3, 1, 3, 2), RegionScores(0.5, 1, 2 / 3, 0.5, 1, 0)])
    assert result == pytest.approx(RegionScores(0.75, 0.6, 2 * 0.75 * 0.6 / 1.35, 0.75, 4, 2))
    assert result.f == pytest.approx(2 / 3) and isinstance(result.objects, int)
    assert average_scores([RegionScores(0, 0, 0, 0, 1, 0)]).f == 0
    with pytest.raises(ValueError, match="no sequences"):
        average_scores([])


PUBLIC = """Ground truth definition file; do not change!

Total number of regions:
3

16777215

255

8421504

Confusion penality matrix
0 1 1
1 0 1
1 1 0

Total number of frames in this shot:
40
Total number of labeled frames for this shot:
2
Frame number:
0
File name:
cats_0001_gt.ppm
Input file name:
cats_0001.jpg
Frame number:
19
File name:
cats_0020_gt.ppm
Input file name:
cats_0020.jpg
"""
EXPECTED = Definition(
    (16777215, 255, 8421504), 40, (LabeledFrame(0, "cats_0001_gt.ppm"), LabeledFrame(19, "cats_0020_gt.ppm"))
)


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("latin-1"))
    return path


@pytest.mark.parametrize(
    "text",
    [
        PUBLIC,
        PUBLIC.replace("\n", "\r\n"),
        PUBLIC.replace("\n\n", "\n"),
        PUBLIC.replace("\n", "\n\n"),
        PUBLIC.replace("\n\n255", "\nColor of region 1:\n  255  (blue)"),
        PUBLIC.replace("0 1 1\n1 0 1\n1 1 0", "0 1.0 1 1 0 1 1 1 0"),
        PUBLIC.replace("Input file name:\ncats_0001.jpg\n", ""),
        PUBLIC.replace("cats_0001.jpg", ""),
        PUBLIC.replace("cats_0001.jpg", "20"),
        PUBLIC.rstrip("\n"),
        PUBLIC + "\nK\xf6ln 7\n",
    ],
)
def test_definition_file_variants_are_read(tmp_path, text):
    assert read_definition(written(tmp_path / "catsDef.dat", text)) == EXPECTED


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (PUBLIC, "", "the file ends before the number of regions"),
        (PUBLIC, "\x89PNG\x00\x01", "the number of regions is"),
        ("regions:\n3", "regions:\nthree", "the number of regions is 'three'"),
        ("regions:\n3", "regions:\n0", "the number of regions is 0"),
        ("\n255\n", "\n16777216\n", "the color of region 1 is 16777216"),
        ("\n255\n", "\n-1\n", "the color of region 1 is -1"),
        ("\n255\n", "\n16777215\n", "two regions have the same color"),
        ("1 1 0\n", "1 1\n", "not a 3 by 3 matrix"),
        ("1 1 0\n", "1 1 0 0\n", "not a 3 by 3 matrix"),
        (PUBLIC[PUBLIC.index("1 1 0\n") :], "", "the file ends before the confusion penalties"),
        ("shot:\n40", "shot:", "the number of frames is missing"),
        ("shot:\n2", "shot:\ntwo", "the number of labeled frames is 'two'"),
        ("shot:\n2", "shot:\n41", "the number of labeled frames is 41"),
        ("shot:\n2", "shot:\n3", "the file ends before the number of labeled frame 3"),
        ("Frame number:\n19", "Frame number:\n-19", "the number of labeled frame 2 is -19"),
        ("File name:\ncats_0020_gt.ppm\nInput file name:\ncats_0020.jpg\n", "", "labeled frame 2 has no file"),
        ("\ncats_0020_gt.ppm", "", "labeled frame 2 has no file"),
    ],
)
def test_error_for_broken_definition_names_the_file(tmp_path, old, new, match):
    assert old in PUBLIC
    path = written(tmp_path / "catsDef.dat", PUBLIC.replace(old, new))
    with pytest.raises(UserError, match=match) as caught:
        read_definition(path)
    assert repr(str(path)) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_definition_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"^Cannot read the definition file .*noDef\.dat': No such file"):
        read_definition(tmp_path / "noDef.dat")
    with pytest.raises(UserError, match="Is a directory"):
        read_definition(tmp_path)


def test_region_labels_of_a_color_image():
    image = np.array([[(255, 255, 255), (0, 0, 255)], [(128, 128, 128), (1, 2, 3)]], np.uint8)
    numbers = region_labels(image, (16777215, 255, 8421504, 66051))
    assert numbers.dtype == np.int16
    assert numbers.tolist() == [[0, 1], [2, 3]]
    # An unknown color maps to the first region.
    assert region_labels(image, (255, 16777215)).tolist() == [[1, 0], [0, 0]]


def test_region_labels_of_a_gray_image():
    gray = np.array([[0, 85], [255, 170]], np.uint8)
    assert region_labels(np.dstack([gray] * 3), (0, 255, 85, 170)).tolist() == [[0, 2], [1, 3]]
    # A blue-only image is a color image, even if no color code exceeds 255.
    blue = np.dstack([np.zeros_like(gray), np.zeros_like(gray), gray])
    assert region_labels(blue, (0, 255, 85, 170)).tolist() == [[0, 2], [1, 3]]
    mixed = np.array([[(0, 0, 85), (85, 85, 85)]], np.uint8)
    assert region_labels(mixed, (0, 85)).tolist() == [[1, 0]]


@pytest.mark.parametrize("image", [np.zeros((2, 3), np.uint8), np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 3))])
def test_invalid_images_are_errors(image):
    with pytest.raises(ValueError, match="must be uint8"):
        region_labels(image, (0, 255))


def test_ground_truth_scores_one_against_itself(tmp_path):
    definition = read_definition(written(tmp_path / "catsDef.dat", PUBLIC))
    image = np.zeros((4, 6, 3), np.uint8)
    image[:] = 255
    image[:2, :3] = 0, 0, 255
    image[2:, 3:] = 128
    truth = region_labels(image, definition.colors)
    assert np.bincount(truth.ravel()).tolist() == [12, 6, 6]
    assert score_sequence([(truth.astype(np.uint8), truth)]) == RegionScores(1, 1, 1, 1, 2, 2)
