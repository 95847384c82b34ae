"""Comparison of result folders: hand-computed scores, order of sequences, written files and errors.

A predicted frame equals the ground truth or is empty, so J and F are both 1 or both 0. A sequence's score is the
fraction of scored frames (all but the first and last) that are correct.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import synthetic_store as made_up
from uvos_jax.errors import UserError
from uvos_jax.evaluation.compare import compare, table, worst_frames
from uvos_jax.evaluation.comparison_report import write
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.video import draw_overlay, write_mask

FRAMES = 6
TRUTH = np.stack([made_up.rectangle(10, 30, 10 + 2 * t, 30 + 2 * t) for t in range(FRAMES)])


def right_until(count: int, truth: np.ndarray = TRUTH) -> np.ndarray:
    """Predictions: the first ``count`` scored frames equal the ground truth, the others are empty."""
    return np.where((np.arange(len(truth)) <= count)[:, None, None], truth, 0)


def save_run(folder: Path, right: dict[str, int], truth: np.ndarray = TRUTH) -> Path:
    for name, count in right.items():
        made_up.save_masks(folder / name, right_until(count, truth))
    return folder


@pytest.fixture
def animals(tmp_path) -> Path:
    return made_up.davis(tmp_path / "DAVIS", dict.fromkeys(["dog", "cat", "bee", "ant"], TRUTH), 2016)


@pytest.fixture
def two_runs(tmp_path) -> list[Path]:
    return [save_run(tmp_path / "old", {"dog": 4, "cat": 3, "bee": 1, "ant": 2}),
            save_run(tmp_path / "new", {"dog": 2, "cat": 3, "bee": 4, "ant": 4})]


def save_images(dataset: Path, sequence: str, count: int, size: tuple[int, int]) -> np.ndarray:
    """Writes frames of colored noise and returns them, uint8 [t, h, w, 3]."""
    images = np.random.default_rng(len(sequence)).integers(0, 256, (count, *size, 3), np.uint8)
    folder = dataset / "JPEGImages" / "480p" / sequence
    folder.mkdir(parents=True)
    for t, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{t:05d}.png")
    return images


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def grid_cells(path: Path, rows: int, columns: int, height: int) -> np.ndarray:
    """The cells of worst_frames.png, all of equal height, uint8 [rows, columns, height, 320, 3]."""
    picture = pixels(path)
    assert picture.shape == (16 + 34 + 26 + rows * (26 + height + 8) - 8 + 16, 16 + columns * 328 - 8 + 16, 3)
    return np.array([[picture[top:top + height, left:left + 320] for left in range(16, 16 + columns * 328, 328)]
                     for top in range(16 + 34 + 26 + 26, 16 + 34 + 26 + rows * (26 + height + 8), 26 + height + 8)])


def test_rows_are_sorted_by_difference_then_name(animals, two_runs):
    comparison = compare(two_runs, animals)
    assert comparison.names == ("old", "new") and comparison.measure == "J&F"
    assert [(row.name, row.scores, row.difference) for row in comparison.rows] == [
        ("bee", (0.25, 1.0), 0.75), ("ant", (0.5, 1.0), 0.5), ("dog", (1.0, 0.5), -0.5), ("cat", (0.75, 0.75), 0.0)]
    assert (comparison.overall.scores, comparison.overall.difference) == ((0.625, 0.8125), 0.1875)


def test_difference_of_three_runs_is_best_minus_worst(tmp_path, animals, two_runs):
    middle = save_run(tmp_path / "middle", {"dog": 0, "cat": 0, "bee": 0, "ant": 4})
    comparison = compare([two_runs[0], middle, two_runs[1]], animals, sequences=("dog", "bee"))
    assert [(row.name, row.scores, row.difference) for row in comparison.rows] == [
        ("bee", (0.25, 0.0, 1.0), 1.0), ("dog", (1.0, 0.0, 0.5), 1.0)]
    assert comparison.overall.scores == (0.625, 0.0, 0.75)


def test_temporal_stability_is_not_computed(animals, two_runs):
    chosen = {"sequences": ("dog",)}
    assert evaluate("davis2016", two_runs[0], animals, **chosen).scores["T"] == 0  # T of a translation is 0
    left_out = evaluate("davis2016", two_runs[0], animals, **chosen, temporal=False)
    assert math.isnan(left_out.scores["T"]) and left_out.scores["J&F"]["mean"] == 1
    assert all(math.isnan(result.scores["T"]) for result in compare(two_runs, animals).results)


def test_run_names_include_parents_until_unique(tmp_path, animals, monkeypatch):
    right = dict.fromkeys(["dog", "cat", "bee", "ant"], 4)
    monkeypatch.chdir(save_run(tmp_path / "a" / "x" / "masks", right))
    runs = [Path("."), save_run(tmp_path / "b" / "x" / "masks", right), save_run(tmp_path / "y" / "masks", right),
            save_run(tmp_path / "z", right), save_run(tmp_path / "c" / "Difference", right)]
    names = compare(runs, animals).names
    assert names == ("a/x/masks", "b/x/masks", "y/masks", "z", "Difference")
    assert list(table(compare(runs, animals))[0])[-2:] == ["J&F Difference", "Difference"]


def test_protocol_with_j_only(tmp_path):
    """Half of a rectangle has J = 0.5. Frames without objects are not scored; first and last frames are."""
    whole, half = made_up.rectangle(10, 30, 10, 30), made_up.rectangle(10, 30, 10, 20)
    empty = np.zeros_like(whole)
    made_up.save_masks(tmp_path / "FBMS" / "Annotations" / "horse", [whole, empty, whole])
    made_up.save_masks(tmp_path / "FBMS" / "Annotations" / "void", [empty])
    for run, masks in (("a", [whole, whole, whole]), ("b", [half, empty, whole])):
        made_up.save_masks(tmp_path / run / "horse", masks)
        made_up.save_masks(tmp_path / run / "void", [whole])
    comparison = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "FBMS", "fbms-j")
    assert comparison.measure == "J" and comparison.split == "test"
    assert [row.name for row in comparison.rows] == ["horse", "void"]  # a sequence without a score comes last
    assert comparison.rows[0].scores == (1.0, 0.75) and all(map(math.isnan, comparison.rows[1].scores))
    assert worst_frames(comparison) == [("horse", "00000", (1.0, 0.5))]
    write(comparison, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["sequences"]["void"]["difference"] is None


def test_fbms_in_its_published_format(tmp_path):
    """In the color files, white is background and every other color is an object."""
    objects = made_up.rectangle(10, 40, 10, 90, (50, 320)) + made_up.rectangle(10, 40, 110, 190, (50, 320), 2)
    folder = tmp_path / "FBMS" / "Testset" / "horse"
    (folder / "GroundTruth").mkdir(parents=True)
    colors = np.array([[255, 255, 255], [255, 0, 0], [0, 160, 0]], np.uint8)
    Image.fromarray(colors[objects]).save(folder / "GroundTruth" / "001_gt.ppm")
    image = np.full((50, 320, 3), 90, np.uint8)
    Image.fromarray(image).save(folder / "horse001.png")
    for run in ("a", "b"):
        made_up.save_masks(tmp_path / run / "horse", [objects > 0], ["horse001"])
    comparison = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "FBMS", "fbms-j")
    assert worst_frames(comparison) == [("horse", "horse001", (1.0, 1.0))]
    write(comparison, tmp_path / "out")
    cells = grid_cells(tmp_path / "out" / "worst_frames.png", 1, 3, 50)[0]
    np.testing.assert_array_equal(cells, [draw_overlay(image, objects > 0)] * 3)


def test_youtube_objects_overall_score_is_a_mean_over_sequences(tmp_path):
    truth = made_up.rectangle(10, 30, 10, 30)
    for folder in (tmp_path / "YTO" / "Annotations", tmp_path / "a", tmp_path / "b"):
        made_up.save_masks(folder / "cat" / "0001", [truth])
        made_up.save_masks(folder / "cat" / "0002", [truth if folder.name != "b" else 0 * truth])
        made_up.save_masks(folder / "dog" / "0001", [truth])
    comparison = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "YTO", "youtube-objects")
    assert comparison.rows[0].name == "cat/0002" and comparison.rows[0].difference == -1
    assert comparison.overall.scores == pytest.approx((1, 2 / 3))  # over classes it would be 3 / 4
    assert len(write(comparison, tmp_path / "out")) == 4


def test_worst_frame_of_each_sequence_is_the_lowest_of_any_run(animals, two_runs):
    assert worst_frames(compare(two_runs, animals)) == [
        ("ant", "00003", (0.0, 1.0)), ("bee", "00002", (0.0, 1.0)), ("cat", "00004", (0.0, 0.0)),
        ("dog", "00003", (1.0, 0.0))]


def test_at_most_eight_worst_frames(tmp_path):
    names = [f"s{index}" for index in range(10)]
    dataset = made_up.davis(tmp_path / "DAVIS", dict.fromkeys(names, TRUTH), 2016)
    runs = [save_run(tmp_path / "a", dict.fromkeys(names, 4)),
            save_run(tmp_path / "b", dict.fromkeys(names, 4) | {"s9": 3})]
    assert [entry[0] for entry in worst_frames(compare(runs, dataset))] == ["s9", *names[:7]]


def test_csv_and_json_files(tmp_path, animals, two_runs):
    comparison = compare(two_runs, animals)
    paths = write(comparison, tmp_path / "deep" / "out")
    assert sorted(path.name for path in paths) == [
        "comparison.csv", "comparison.json", "differences.png", "worst_frames.png"]
    assert sorted(paths) == sorted((tmp_path / "deep" / "out").iterdir())
    with open(tmp_path / "deep" / "out" / "comparison.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["Sequence", "J&F old", "J&F new", "Difference"],
            ["bee", "0.250000", "1.000000", "0.750000"],
            ["ant", "0.500000", "1.000000", "0.500000"],
            ["dog", "1.000000", "0.500000", "-0.500000"],
            ["cat", "0.750000", "0.750000", "0.000000"],
            ["all", "0.625000", "0.812500", "0.187500"]]
    assert table(comparison)[-1] == {"Sequence": "all", "J&F old": 0.625, "J&F new": 0.8125, "Difference": 0.1875}
    written = json.loads((tmp_path / "deep" / "out" / "comparison.json").read_text())
    assert written["runs"] == {"old": str(two_runs[0]), "new": str(two_runs[1])}
    assert written["overall"] == {"scores": {"old": 0.625, "new": 0.8125}, "difference": 0.1875}
    assert list(written["sequences"]) == ["bee", "ant", "dog", "cat"]
    assert written["sequences"]["dog"] == {"scores": {"old": 1, "new": 0.5}, "difference": -0.5}
    assert written["worst_frames"][0] == {"sequence": "ant", "frame": "00003", "scores": {"old": 0, "new": 1}}


def test_grid_overlays_ground_truth_and_masks_on_frames(tmp_path):
    """Frames have the width of a cell, so they are not scaled and every pixel is known."""
    truth = np.stack([made_up.rectangle(10, 40, 10 + 5 * t, 200, (50, 320)) for t in range(FRAMES)])
    dataset = made_up.davis(tmp_path / "DAVIS", {"dog": truth, "cat": truth}, 2016)
    images = save_images(dataset, "dog", FRAMES, (50, 320))  # cat has none
    runs = [save_run(tmp_path / "old", {"dog": 3, "cat": 2}, truth),
            save_run(tmp_path / "new", {"dog": 4, "cat": 4}, truth)]
    write(compare(runs, dataset), tmp_path / "out")
    cat, dog = grid_cells(tmp_path / "out" / "worst_frames.png", 2, 3, 50)
    np.testing.assert_array_equal(dog[0], draw_overlay(images[4], truth[4]))
    np.testing.assert_array_equal(dog[1], images[4])
    np.testing.assert_array_equal(dog[2], dog[0])
    black = np.zeros((50, 320, 3), np.uint8)
    np.testing.assert_array_equal(cat[0], draw_overlay(black, truth[3]))
    np.testing.assert_array_equal(cat[1], black)
    np.testing.assert_array_equal(cat[2], cat[0])


def test_grid_scales_frames_to_cell_width(tmp_path, animals, two_runs):
    for name in ("dog", "cat", "bee", "ant"):
        save_images(animals, name, FRAMES, (80, 120))  # twice the size of the masks
    write(compare(two_runs, animals), tmp_path / "out")
    cells = grid_cells(tmp_path / "out" / "worst_frames.png", 4, 3, 213)  # 40x60 becomes 213x320
    right = np.array([[False, True], [False, True], [False, False], [True, False]])  # of ant, bee, cat, dog
    np.testing.assert_array_equal((cells[:, 1:] == cells[:, :1]).all((2, 3, 4)), right)


def test_grid_colors_proposals_like_their_matched_objects(tmp_path):
    """Run a uses the ids 3 and 1 and has one extra proposal, drawn gray; run b uses the ids of the ground truth."""
    left, right, spare = (made_up.rectangle(10, 40, start, start + 80, (50, 320)) for start in (10, 110, 210))
    made_up.davis(tmp_path / "DAVIS", {"dog": [left + 2 * right] * 3}, annotations="Annotations_unsupervised")
    made_up.save_masks(tmp_path / "a" / "dog", [3 * left + right + 2 * spare] * 3)
    made_up.save_masks(tmp_path / "b" / "dog", [left + 2 * right] * 3)
    comparison = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "DAVIS", "davis2017-unsup")
    assert comparison.rows[0].scores == (1, 1)
    write(comparison, tmp_path / "out")
    truth, run_a, run_b = grid_cells(tmp_path / "out" / "worst_frames.png", 1, 3, 50)[0]
    np.testing.assert_array_equal(truth, draw_overlay(np.zeros_like(truth), left + 2 * right))
    np.testing.assert_array_equal(run_b, truth)
    np.testing.assert_array_equal(run_a[spare == 0], truth[spare == 0])
    gray = run_a[spare > 0]
    assert gray.min() > 0 and np.ptp(gray, axis=1).max() == 0


def test_grid_of_semi_supervised_rule_ignores_void(tmp_path):
    truth = made_up.rectangle(10, 40, 10, 90, (50, 320)) + made_up.rectangle(10, 40, 110, 190, (50, 320), 2)
    with_void = truth + made_up.rectangle(10, 40, 210, 290, (50, 320), 255)
    made_up.davis(tmp_path / "DAVIS", {"dog": [truth, with_void, with_void]})
    made_up.save_masks(tmp_path / "a" / "dog", [truth] * 3)
    made_up.save_masks(tmp_path / "b" / "dog", [np.where(truth == 1, 1, 0)] * 3)
    comparison = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "DAVIS", "davis2017-semi")
    assert comparison.rows[0].scores == (1, 0.5)
    write(comparison, tmp_path / "out")
    cells = grid_cells(tmp_path / "out" / "worst_frames.png", 1, 3, 50)[0]
    np.testing.assert_array_equal(cells[0], cells[1])
    np.testing.assert_array_equal(cells[2], draw_overlay(np.zeros_like(cells[2]), (truth == 1).astype(np.uint8)))


def test_bar_lengths_are_proportional_to_scores(tmp_path, animals, two_runs):
    write(compare(two_runs, animals, sequences=("dog",)), tmp_path / "out")
    picture = pixels(tmp_path / "out" / "differences.png")
    blue, orange = ((picture == color).all(-1).sum(1).max() for color in ((31, 119, 180), (255, 127, 14)))
    assert blue / orange == pytest.approx(2, rel=0.01)  # widest row of each: scores of 1 and 0.5


@pytest.mark.slow
def test_bar_chart_height_is_capped_at_forty_sequences(tmp_path):
    truth = np.stack([made_up.rectangle(2, 8, 2, 10, (12, 16))] * 3)
    names = [f"_s${index:02d}$" for index in range(43)]  # matplotlib hides labels with '_' and parses '$'
    dataset = made_up.davis(tmp_path / "DAVIS", dict.fromkeys(names, truth), 2016)
    runs = [save_run(tmp_path / "_a$b$", dict.fromkeys(names, 1), truth),
            save_run(tmp_path / "b", dict.fromkeys(names, 0), truth)]
    heights = {}
    for count in (2, 20, 40, 43):
        write(compare(runs, dataset, sequences=tuple(names[:count])), tmp_path / "out")
        heights[count] = len(pixels(tmp_path / "out" / "differences.png"))
    assert heights[2] < heights[20] < heights[40] == heights[43] < 4000


def test_error_for_missing_frame_names_the_run(animals, two_runs):
    (two_runs[1] / "bee" / "00003.png").unlink()
    with pytest.raises(UserError, match=r"new' is incomplete: frames are missing: bee 00003"):
        compare(two_runs, animals)


def test_invalid_arguments_are_errors(tmp_path, animals, two_runs):
    alias = tmp_path / "alias"
    alias.symlink_to(two_runs[0])
    for same in (two_runs[0], two_runs[1] / ".." / "old", alias):
        with pytest.raises(UserError, match=r"given twice"):
            compare([*two_runs, same], animals)
    with pytest.raises(UserError, match=r"two or more folders"):
        compare(two_runs[:1], animals)
    with pytest.raises(UserError, match=r"saliency has no per-frame scores.*davis2016"):
        compare(two_runs, animals, "saliency")
    with pytest.raises(UserError, match=r"Unknown protocol 'davis2015'"):
        compare(two_runs, animals, "davis2015")
    with pytest.raises(UserError, match=r"nowhere' are not a folder"):
        compare([two_runs[0], tmp_path / "nowhere"], animals)


def test_unreadable_frame_leaves_no_output(tmp_path, animals, two_runs):
    comparison = compare(two_runs, animals)
    save_images(animals, "cat", FRAMES, (40, 60))
    broken = animals / "JPEGImages" / "480p" / "cat" / "00004.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"Cannot decode the frame '.*00004.png'"):
        write(compare(two_runs, animals), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file")
    broken.unlink()
    with pytest.raises(UserError, match=r"Cannot write '.*out'"):
        write(comparison, tmp_path / "out")


def test_existing_files_are_replaced(tmp_path, animals, two_runs):
    first = write(compare(two_runs, animals), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in first}
    write_mask(two_runs[1] / "dog" / "00001.png", 0 * TRUTH[1])
    write(compare(two_runs, animals), tmp_path / "out")
    assert all(path.read_bytes() != before[path.name] for path in first)
