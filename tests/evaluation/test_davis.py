"""DAVIS protocols against hand-computed scores, brute force and real masks."""

import itertools
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.synthetic_store import davis, rectangle, save_masks
from uvos_jax.errors import UserError
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.evaluation.temporal_stability import temporal_instability

# Frames are 40x60 with a diagonal of 72.1 pixels, so contours match within ceil(0.58) = 1 pixel.
# A rectangle's contour is the ring of pixels from one above and left of it to its last row and column. For this 20x20
# square: rows and columns 9 to 29, 80 pixels.
SQUARE = rectangle(10, 30, 10, 30)
EMPTY = np.zeros_like(SQUARE)
# Each prediction of SQUARE with its J and F.
EXACT = SQUARE, 1, 1
# Overlap 15x20 of 25x20. Ring columns 14 to 34: the two long sides match up to column 30, 17 pixels each, and 2 pixels
# of the left side (column 14) next to them: 36 of 80, and as many of the ground truth.
SHIFTED = rectangle(10, 30, 15, 35), 0.6, 36 / 80
# Overlap 14x14 of 20x20; the rings are 3 pixels apart.
INSET = rectangle(13, 27, 13, 27), 0.49, 0
# Half of the area, so J is not above 0.5. Ring columns 9 to 19, 60 pixels; the right side does not match except for 2
# pixels at its ends (17 of 19 unmatched). Of the ground truth's ring, the left side (19) and 12 pixels of each long
# side match: 43 of 80. F = 2*43/(60+80).
HALF = rectangle(10, 30, 10, 20), 0.5, 86 / 140


def by_hand(*cases):
    """Returns the label maps, J and F of the given cases."""
    return [case[0] for case in cases], [case[1] for case in cases], [case[2] for case in cases]


# Independent J and F: whole frames, OpenCV dilation with a rasterized disk.
def contour(mask):
    padded = np.pad(mask, ((0, 1), (0, 1)), "edge")  # the frame border is not a contour
    here = padded[:-1, :-1]
    ring = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    ring[-1, -1] = False
    return ring


def j_and_f(prediction, truth, void=None):
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (rows**2 + columns**2 <= radius**2).astype(np.uint8)
    rings = contour(prediction), contour(truth)
    near = [cv2.dilate(ring.astype(np.uint8), disk) > 0 for ring in rings]
    counts = [int(ring.sum()) for ring in rings]
    if 0 in counts:
        f = float(counts[0] == counts[1])
    else:
        precision, recall = (rings[0] & near[1]).sum() / counts[0], (rings[1] & near[0]).sum() / counts[1]
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    union = (prediction | truth).sum()
    return (prediction & truth).sum() / union if union else 1.0, f


def mean_j_and_f(predictions, truths):
    return np.mean([j_and_f(p, t) for p, t in zip(predictions, truths, strict=True)], axis=0)


def expect(scores, j, f):
    """Compares mean, recall and decay of J and F."""
    assert list(scores["J"].values()) == pytest.approx(j, abs=1e-12)
    assert list(scores["F"].values()) == pytest.approx(f, abs=1e-12)


def test_2016_ignores_first_and_last_frame(tmp_path):
    masks, j, f = by_hand(EXACT, SHIFTED, INSET, HALF)
    davis(tmp_path / "d", {"lucia": [SQUARE] * 6, "swing": [SQUARE] * 4}, 2016)
    save_masks(tmp_path / "p/lucia", [EMPTY, *masks, EMPTY])
    save_masks(tmp_path / "p/swing", [EMPTY, SQUARE, SQUARE, EMPTY])
    result = evaluate("davis2016", tmp_path / "p", tmp_path / "d")
    # Quarters of four frames: the first two, and the last two. Above 0.5 are 1 and 0.6, and 1 and 86/140.
    expect(result.sequences["lucia"], (sum(j) / 4, 0.5, (1 + 0.6) / 2 - (0.49 + 0.5) / 2),
           (sum(f) / 4, 0.5, (1 + 0.45) / 2 - (0 + 86 / 140) / 2))
    expect(result.sequences["swing"], (1, 1, 0), (1, 1, 0))
    expect(result.scores, ((2.59 / 4 + 1) / 2, 0.75, 0.305 / 2),
           (((1.45 + 86 / 140) / 4 + 1) / 2, 0.75, (1.45 - 86 / 140) / 4))
    assert result.scores["J&F"]["mean"] == pytest.approx((result.scores["J"]["mean"] + result.scores["F"]["mean"]) / 2)
    assert [entry["J"] for entry in result.frames["lucia"].values()] == pytest.approx(j, abs=1e-12)
    assert list(result.frames["lucia"]) == ["00001", "00002", "00003", "00004"]


def test_2016_needs_no_predictions_for_ignored_frames(tmp_path):
    davis(tmp_path / "d", {"lucia": [SQUARE] * 4}, 2016)
    save_masks(tmp_path / "p/lucia", [SQUARE] * 2, ["00001", "00002"])
    assert evaluate("davis2016", tmp_path / "p", tmp_path / "d").scores["J"]["mean"] == 1


def test_2016_merges_objects_and_channels_into_foreground(tmp_path):
    davis(tmp_path / "d", {"bear": [SQUARE] * 3}, 2016)
    color = np.zeros((40, 60, 4), np.uint8)
    color[10:30, 10:20, 0], color[10:30, 20:30, 2], color[..., 3] = 255, 1, 255  # opaque everywhere
    Image.fromarray(color).save(tmp_path / "d/Annotations/480p/bear/00001.png")
    save_masks(tmp_path / "p/bear", [EMPTY, HALF[0] + 2 * (SQUARE - HALF[0]), EMPTY])  # objects 1 and 2, side by side
    scores = evaluate("davis2016", tmp_path / "p", tmp_path / "d").scores
    assert scores["J"]["mean"] == scores["F"]["mean"] == 1


def moving(frames):
    return [rectangle(10, 30, 5 + 3 * t, 20 + 3 * t) for t in range(frames)]


def test_2016_t_of_translation_is_zero_and_some_sequences_have_no_t(tmp_path):
    davis(tmp_path / "d", {"bear": [SQUARE] * 6, "bmx-bumps": [SQUARE] * 6}, 2016)
    save_masks(tmp_path / "p/bear", [EMPTY, *moving(4), INSET[0]])  # first and last frame are ignored
    save_masks(tmp_path / "p/bmx-bumps", [SQUARE, INSET[0], HALF[0]] * 2)
    result = evaluate("davis2016", tmp_path / "p", tmp_path / "d")
    assert result.sequences["bear"]["T"] == 0
    assert math.isnan(result.sequences["bmx-bumps"]["T"])
    assert result.scores["T"] == 0


def test_2016_t_is_five_times_the_mean_over_frame_pairs(tmp_path):
    size = (120, 160)
    sides = (30, 90, 50, 110), (45, 75, 30, 130), (55, 65, 20, 140)
    square, flat, thin = (rectangle(*edges, size) for edges in sides)
    davis(tmp_path / "d", {"own": [square] * 5, "still": [square] * 5, "gone": [square] * 5}, 2016)
    save_masks(tmp_path / "p/own", [flat, square, flat, thin, square])
    save_masks(tmp_path / "p/still", [flat, square, square, square, flat])
    save_masks(tmp_path / "p/gone", [flat, square, np.zeros(size), flat, flat])  # no contour, so T is NaN
    result = evaluate("davis2016", tmp_path / "p", tmp_path / "d")  # not DAVIS names, so T is computed for all
    pairs = temporal_instability(square > 0, flat > 0), temporal_instability(flat > 0, thin > 0)
    assert 0 < pairs[1] != pairs[0] > 0
    assert result.sequences["own"]["T"] == pytest.approx(5 * sum(pairs) / 2, abs=1e-12)
    assert result.sequences["still"]["T"] == 0
    assert math.isnan(result.sequences["gone"]["T"])
    assert result.scores["T"] == pytest.approx(5 * sum(pairs) / 4, abs=1e-12)


def test_2017_semi_averages_over_objects_not_sequences(tmp_path):
    second = rectangle(5, 35, 40, 50, number=2)
    masks, _, _ = by_hand(EXACT, HALF, INSET)
    davis(tmp_path / "d", {"two": [SQUARE + second] * 5, "one": [SQUARE] * 5})
    save_masks(tmp_path / "p/two", [EMPTY, *masks, EMPTY])  # object 2 is never predicted
    save_masks(tmp_path / "p/one", [EMPTY, *[SQUARE] * 3, EMPTY])
    result = evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d")
    objects = result.sequences["two"]["objects"]
    # Quarters of three frames: the first two, and the last. Recall counts values above 0.5; J = 0.5 is not.
    j, f = (1.99 / 3, 1 / 3, 1.5 / 2 - 0.49), ((1 + 86 / 140) / 3, 2 / 3, (1 + 86 / 140) / 2)
    expect(objects["1"], j, f)
    expect(objects["2"], (0, 0, 0), (0, 0, 0))
    expect(result.scores, ((j[0] + 1) / 3, (j[1] + 1) / 3, j[2] / 3), ((f[0] + 1) / 3, (f[1] + 1) / 3, f[2] / 3))
    expect(result.sequences["two"], (j[0] / 2, j[1] / 2, j[2] / 2), (f[0] / 2, f[1] / 2, f[2] / 2))
    assert [name for name, _ in result.rows] == ["two_1", "two_2", "one_1"]
    # A frame's value is the mean over its objects.
    assert [entry["J"] for entry in result.frames["two"].values()] == pytest.approx([0.5, 0.25, 0.245], abs=1e-12)


def test_2017_semi_objects_are_those_of_first_frame_and_255_is_background(tmp_path):
    void = rectangle(10, 30, 30, 50, number=255)
    late = rectangle(0, 5, 0, 5, number=2)
    davis(tmp_path / "d", {"dog": [SQUARE + void, SQUARE + void + late, SQUARE + void, SQUARE]})
    save_masks(tmp_path / "p/dog", [EMPTY, SQUARE, SQUARE + void // 255, EMPTY])
    result = evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d")
    assert list(result.sequences["dog"]["objects"]) == ["1"]
    assert [entry["J"] for entry in result.frames["dog"].values()] == [1, 0.5]


def test_2017_semi_rejects_unknown_object_ids(tmp_path):
    davis(tmp_path / "d", {"dog": [SQUARE] * 5})
    save_masks(tmp_path / "p/dog", [SQUARE * 3, SQUARE, SQUARE * 2, SQUARE * 2, SQUARE * 3])
    with pytest.raises(UserError, match=r"dog 00002-00003 contains object id 2; the largest in .* frame is 1\.$"):
        evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d")


@pytest.mark.parametrize(("name", "year"), [("davis2016", 2016), ("davis2017-semi", 2017)])
def test_too_short_sequences_are_errors(tmp_path, name, year):
    davis(tmp_path / "d", {"bear": [SQUARE] * 3, "bus": [SQUARE] * 2}, year)
    for sequence in ("bear", "bus"):
        save_masks(tmp_path / "p" / sequence, [SQUARE] * 3)
    with pytest.raises(UserError, match=r"are not scored. Too short: bus\.$"):
        evaluate(name, tmp_path / "p", tmp_path / "d")


@pytest.mark.parametrize("name", ["davis2017-semi", "davis2017-unsup"])
def test_2017_rejects_ground_truth_without_objects(tmp_path, name):
    davis(tmp_path / "d", {"dog": [EMPTY] * 4}, annotations="Annotations")
    davis(tmp_path / "d", {"dog": [EMPTY] * 4}, annotations="Annotations_unsupervised")
    save_masks(tmp_path / "p/dog", [EMPTY] * 4)
    with pytest.raises(UserError, match="dog 00000 has no object"):
        evaluate(name, tmp_path / "p", tmp_path / "d")


def unsupervised(root, truths, predictions):
    """The scores of one sequence."""
    davis(root / "d", {"dog": truths}, annotations="Annotations_unsupervised")
    save_masks(root / "p/dog", predictions)
    return evaluate("davis2017-unsup", root / "p", root / "d").sequences["dog"]


def test_unsupervised_scores_every_frame(tmp_path):
    masks, j, f = by_hand(HALF, EXACT, SHIFTED, INSET)
    scores = unsupervised(tmp_path, [SQUARE] * 4, masks)
    expect(scores, (sum(j) / 4, 0.5, 0.75 - (0.6 + 0.49) / 2), (sum(f) / 4, 0.5, (86 / 140 + 1) / 2 - 0.45 / 2))


def test_unsupervised_ignores_void_pixels(tmp_path):
    void = rectangle(10, 30, 30, 50, number=255)
    scores = unsupervised(tmp_path, [SQUARE + void, SQUARE], [SQUARE + void // 255, SQUARE])
    assert scores["J"]["mean"] == scores["F"]["mean"] == 1


def test_unsupervised_extra_proposals_are_not_penalized(tmp_path):
    extra = rectangle(0, 40, 40, 60, number=1)
    scores = unsupervised(tmp_path, [SQUARE] * 3, [SQUARE * 2 + extra] * 3)
    assert scores["J"]["mean"] == scores["F"]["mean"] == 1
    assert scores["objects"]["1"]["proposal"] == 2


def test_unsupervised_missing_proposals_score_as_empty_masks(tmp_path):
    second = rectangle(5, 35, 40, 50, number=2)
    scores = unsupervised(tmp_path, [SQUARE + second, SQUARE, SQUARE, SQUARE + second], [SQUARE * 1] * 4)
    # Object 2 is visible in two frames, where an empty mask scores 0; in the other two, empty against empty scores 1.
    expect(scores["objects"]["1"], (1, 1, 0), (1, 1, 0))
    assert scores["objects"]["2"]["J"]["mean"] == scores["objects"]["2"]["F"]["mean"] == 0.5


def test_unsupervised_assignment_is_optimal_not_greedy(tmp_path):
    # Proposal 1 covers object 1 in six frames and object 2 in four; in those four, proposal 2 covers object 1. Greedy
    # assignment gives 0.6 + 0, the optimum is 0.4 + 0.4.
    one, two = rectangle(5, 35, 5, 15), rectangle(5, 35, 40, 50)
    scores = unsupervised(tmp_path, [one + 2 * two] * 10, [one] * 6 + [two + 2 * one] * 4)
    assert {number: entry["proposal"] for number, entry in scores["objects"].items()} == {"1": 2, "2": 1}
    assert scores["objects"]["1"]["J"]["mean"] == scores["objects"]["2"]["F"]["mean"] == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(6))
def test_unsupervised_assignment_equals_brute_force(tmp_path, seed):
    rng = np.random.default_rng(seed)
    objects, proposals = map(int, rng.integers(1, 5, 2))
    shape = (3, 8, 9)
    truths, masks = rng.integers(0, objects + 1, shape), rng.integers(0, proposals + 1, shape)
    truths[0, 0, 0], masks[0, 0, 0] = objects, proposals  # the largest id occurs
    truths[1:][rng.random((2, 8, 9)) < 0.2] = 255
    width = max(objects, proposals)
    table = np.mean([[[j_and_f(mask == k, truth == o, truth == 255) for o in range(1, objects + 1)]
                      for k in range(1, width + 1)] for truth, mask in zip(truths, masks, strict=True)], axis=(0, 3))
    best = max(sum(table[k, o] for o, k in enumerate(order)) for order in itertools.permutations(range(width), objects))
    assert unsupervised(tmp_path, truths, masks)["J&F"]["mean"] == pytest.approx(best / objects, abs=1e-12)


def test_unsupervised_allows_at_most_20_proposals(tmp_path):
    stripes = np.zeros_like(SQUARE)
    for number in range(1, 21):
        stripes[2 * number - 2, :10] = number
    assert unsupervised(tmp_path, [stripes // 20] * 2, [stripes] * 2)["J"]["mean"] == 1
    stripes[39, 0] = 21
    with pytest.raises(UserError, match="dog 00001 contains object id 21; the largest valid id is 20"):
        unsupervised(tmp_path, [SQUARE] * 3, [SQUARE, stripes, SQUARE])


def test_unsupervised_test_dev_uses_the_2019_split(tmp_path):
    davis(tmp_path / "d", {"dog": [SQUARE] * 2}, 2019, "test-dev", "Annotations_unsupervised")
    davis(tmp_path / "d", {"cat": [SQUARE] * 2}, 2017, "test-dev", "Annotations_unsupervised")
    save_masks(tmp_path / "p/dog", [SQUARE] * 2)
    assert list(evaluate("davis2017-unsup", tmp_path / "p", tmp_path / "d", "test-dev").sequences) == ["dog"]


def test_scores_do_not_depend_on_worker_count(tmp_path):
    rng = np.random.default_rng(0)
    truths = {name: rng.integers(0, 3, (5, 12, 16)) for name in ("bear", "bus", "dog")}
    davis(tmp_path / "d", truths)
    for name, labels in truths.items():
        save_masks(tmp_path / "p" / name, labels * (rng.random(labels.shape) < 0.8))
    one, two = (evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d", workers=n) for n in (1, 2))
    assert 0 < one.scores["J"]["mean"] < 1
    assert one.scores == two.scores and one.sequences == two.sequences and one.frames == two.frames


# Real masks -----------------------------------------------------------------------------------------------------------

STEP = 8  # every eighth frame, including frames of bmx-bumps without objects


def real_masks(real_data, name):
    paths = sorted((real_data / "davis2016/Annotations/480p" / name).glob("*.png"))[::STEP]
    images = [np.asarray(Image.open(path)) for path in paths]
    return np.array([(image if image.ndim == 2 else image[..., :3].max(-1)) > 0 for image in images])


def shifted(masks):
    return np.pad(masks, ((0, 0), (0, 0), (5, 0)))[..., :-5]


def eroded(masks):
    return np.array([cv2.erode(mask.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0 for mask in masks])


def with_disk(masks):
    rows, columns = np.mgrid[: masks.shape[1], : masks.shape[2]]
    return masks | ((rows - 40) ** 2 + (columns - 40) ** 2 <= 30**2)


@pytest.mark.parametrize(("name", "change", "j", "f"), [
    ("bear", shifted, 0.923965534, 1.000000000),
    ("bear", eroded, 0.766683377, 0.294841552),
    ("bear", with_disk, 0.941974467, 0.939335498),
    ("bus", shifted, 0.888659100, 1.000000000),
    ("bus", eroded, 0.777226837, 0.268598425),
    ("bus", with_disk, 0.961823567, 0.964257326),
    ("bmx-bumps", shifted, 0.691913774, 0.999202128),
    ("bmx-bumps", eroded, 0.408278731, 0.290493168),
    ("bmx-bumps", with_disk, 0.575184587, 0.707388674),
    ("flamingo", shifted, 0.757086152, 1.000000000),
    ("flamingo", eroded, 0.504775837, 0.194584265),
])
def test_2016_on_real_masks(real_data, tmp_path, name, change, j, f):
    truths = real_masks(real_data, name)
    masks = change(truths)
    davis(tmp_path / "d", {name: truths}, 2016, "train")
    save_masks(tmp_path / "p" / name, masks)
    scores = evaluate("davis2016", tmp_path / "p", tmp_path / "d", "train").scores
    found = scores["J"]["mean"], scores["F"]["mean"]
    assert found == pytest.approx(mean_j_and_f(masks[1:-1], truths[1:-1]), abs=1e-12)
    assert found == pytest.approx((j, f), abs=1e-6)


def test_2016_false_positive_area_lowers_j_proportionally(real_data, tmp_path):
    truths = real_masks(real_data, "bear")
    masks = with_disk(truths)
    areas, extra = truths[1:-1].sum((1, 2)), (masks & ~truths)[1:-1].sum((1, 2))
    assert (extra == 2821).all()  # the number of grid points within 30 of a grid point
    davis(tmp_path / "d", {"bear": truths}, 2016, "train")
    save_masks(tmp_path / "p/bear", masks)
    scores = evaluate("davis2016", tmp_path / "p", tmp_path / "d", "train").scores
    assert scores["J"]["mean"] == pytest.approx(np.mean(areas / (areas + 2821)), abs=1e-12)


def halved(masks):
    """The left half of each mask as object 1, the right half as object 2."""
    middle = [int(np.flatnonzero(mask.any(0)).mean()) for mask in masks]
    return np.where(masks, 1 + (np.arange(masks.shape[2]) >= np.array(middle)[:, None, None]), 0)


def test_2017_semi_on_real_masks(real_data, tmp_path):
    truths = real_masks(real_data, "bus")
    halves = halved(truths)
    masks = halves * eroded(truths)
    davis(tmp_path / "d", {"bus": halves})
    save_masks(tmp_path / "p/bus", masks)
    result = evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d")
    expected = [mean_j_and_f(masks[1:-1] == number, halves[1:-1] == number) for number in (1, 2)]
    written = np.array([(0.792367254, 0.412490737), (0.720582386, 0.311892782)])
    assert np.array(expected) == pytest.approx(written, abs=1e-6)
    for number, (j, f) in zip("12", expected, strict=True):
        scores = result.sequences["bus"]["objects"][number]
        assert (scores["J"]["mean"], scores["F"]["mean"]) == pytest.approx((j, f), abs=1e-12)


def test_unsupervised_on_real_masks(real_data, tmp_path):
    masks = real_masks(real_data, "bear")
    halves = halved(masks)
    disk = with_disk(masks) & ~masks
    scores = unsupervised(tmp_path, halves, np.where(disk, 1, halves * 2))  # proposals 2 and 4; 1 is extra
    assert scores["J"]["mean"] == scores["F"]["mean"] == 1
    assert [entry["proposal"] for entry in scores["objects"].values()] == [2, 4]


@pytest.mark.parametrize("folder", ["gold-fish/Annotations", "davis2017_first_frames/Annotations/480p/dolphins"])
def test_unsupervised_recovers_a_permutation_of_real_objects(real_data, tmp_path, folder):
    labels = np.asarray(Image.open(next(iter(sorted((real_data / folder).rglob("*.png"))))))
    count = int(labels.max())
    permuted = np.random.default_rng(1).permutation(np.arange(1, count + 1))
    scores = unsupervised(tmp_path, [labels] * 2, [np.append(0, permuted)[labels]] * 2)
    assert count >= 5 and scores["J"]["mean"] == scores["F"]["mean"] == 1
    assert [entry["proposal"] for entry in scores["objects"].values()] == permuted.tolist()
