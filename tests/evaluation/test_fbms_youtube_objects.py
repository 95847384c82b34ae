"""FBMS-59 and YouTube-Objects: synthetic datasets with hand-computed scores, and real masks."""

import math
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.synthetic_store import eroded, rectangle, save_masks, shifted
from uvos_jax.errors import UserError
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.evaluation.report import flatten
from uvos_jax.video import read_mask

TRUTH = rectangle(10, 30, 10, 50)  # 800 pixels
EMPTY = np.zeros_like(TRUTH)
# Masks of known J with TRUTH: a half of it, a quarter of it, and a disjoint one.
HALF, QUARTER, BESIDE = rectangle(10, 30, 10, 30), rectangle(10, 30, 10, 20), rectangle(31, 40, 10, 50)


def fbms(folder: Path, images: list[str], truths: dict[str, np.ndarray]) -> Path:
    """Writes a sequence of FBMS-59 as published, with gray [h, w] or colored [h, w, 3] ground truth."""
    (folder / "GroundTruth").mkdir(parents=True)
    for name in images:
        cv2.imwrite(str(folder / f"{name}.jpg"), np.full((40, 60, 3), 90, np.uint8))
    for name, pixels in truths.items():
        Image.fromarray(pixels).save(folder / "GroundTruth" / name)
    return folder


def colored(labels: np.ndarray, colors: dict[int, tuple]) -> np.ndarray:
    picture = np.full((*labels.shape, 3), 255, np.uint8)
    for number, color in colors.items():
        picture[labels == number] = color
    return picture


def test_fbms_j_in_the_published_layout(tmp_path):
    testset = tmp_path / "FBMS" / "Testset"
    # Zero padding differs from the images', images do not start at 0 or 1, some files must be skipped.
    fbms(testset / "cars1", [f"cars1_{number:02d}" for number in (3, 4, 9, 10)],
         {"cars1_0003_gt.ppm": colored(TRUTH, {1: (0, 0, 255)}), "cars1_0010_gt.ppm": colored(TRUTH, {1: (9, 99, 9)}),
          "cars1_0004_PROB.pgm": TRUTH * 255, "cars1_0009_PROB_gt.ppm": colored(EMPTY, {})})
    fbms(testset / "lion01", ["lion01_0120", "lion01_0121", "lion01_0122"],
         {"lion01_120.pgm": TRUTH * 255, "lion01_121.pgm": EMPTY})
    (testset / "lion01" / "GroundTruth" / "lion01Def.dat").write_text("of no use here")
    predictions = tmp_path / "predictions"
    save_masks(predictions / "cars1", [HALF, TRUTH], ["cars1_03", "cars1_10"])
    save_masks(predictions / "lion01", [BESIDE, TRUTH], ["lion01_0120", "lion01_0121"])
    result = evaluate("fbms-j", predictions, tmp_path / "FBMS")
    assert result.frames == {"cars1": {"cars1_03": {"J": 0.5}, "cars1_10": {"J": 1.0}},
                             "lion01": {"lion01_0120": {"J": 0.0}}}  # the frame with empty ground truth is ignored
    assert {name: entry["J"]["mean"] for name, entry in result.sequences.items()} == {"cars1": 0.75, "lion01": 0.0}
    assert result.sequences["cars1"]["counted_frames"] == 2 and result.sequences["lion01"]["counted_frames"] == 1
    assert result.scores == {"J": {"mean": 0.375, "mean_over_frames": 0.5}}
    # The folder of the split is accepted too.
    assert evaluate("fbms-j", predictions, testset).scores == result.scores


@pytest.mark.parametrize(("sequence", "background", "foreground"), [
    ("cars1", 25, 26),  # 0.1 of 255 is 25.5
    ("marple7", 12, 13),  # 0.05 is 12.75
    ("marple2", 102, 103),  # 0.4 is exactly 102, which is not above the threshold
])
def test_fbms_gray_threshold_of_each_sequence(tmp_path, sequence, background, foreground):
    truth = TRUTH * np.uint8(foreground) + BESIDE * np.uint8(background)
    fbms(tmp_path / "Testset" / sequence, [f"{sequence}_001"], {f"{sequence}_001.pgm": truth})
    save_masks(tmp_path / "predictions" / sequence, [TRUTH], [f"{sequence}_001"])
    assert evaluate("fbms-j", tmp_path / "predictions", tmp_path).scores["J"]["mean"] == 1


def test_fbms_white_is_background_only_in_color_files(tmp_path):
    white = TRUTH * np.uint8(255)
    fbms(tmp_path / "Testset" / "cars4", ["cars4_01", "cars4_02"],
         {"cars4_01.pgm": white, "cars4_0002_gt.ppm": colored(1 - TRUTH, {1: (0, 200, 0)})})
    save_masks(tmp_path / "predictions" / "cars4", [TRUTH, 1 - TRUTH], ["cars4_01", "cars4_02"])
    assert evaluate("fbms-j", tmp_path / "predictions", tmp_path).scores["J"]["mean"] == 1


def test_fbms_frames_are_sorted_numerically(tmp_path):
    fbms(tmp_path / "Testset" / "dogs01", [f"dogs01_{number}" for number in (8, 9, 10)],
         {f"dogs01_{number}.pgm": TRUTH * 255 for number in (8, 9, 10)})
    save_masks(tmp_path / "predictions" / "dogs01", [TRUTH] * 3, ["dogs01_8", "dogs01_9", "dogs01_10"])
    result = evaluate("fbms-j", tmp_path / "predictions", tmp_path)
    assert list(result.frames["dogs01"]) == ["dogs01_8", "dogs01_9", "dogs01_10"]


def test_fbms_ground_truth_with_offset_frame_numbers(tmp_path):
    """Ground truth numbered 0 and 2 with images numbered from 3 belongs to images 3 and 5."""
    truths = {"cars1_0000_gt.ppm": colored(TRUTH, {1: (0, 0, 255)}), "cars1_0002_gt.ppm": colored(EMPTY, {})}
    fbms(tmp_path / "Testset" / "cars1", ["cars1_03", "cars1_04", "cars1_05"], truths)
    save_masks(tmp_path / "p" / "cars1", [TRUTH, EMPTY], ["cars1_03", "cars1_05"])
    result = evaluate("fbms-j", tmp_path / "p", tmp_path)
    assert result.frames == {"cars1": {"cars1_03": {"J": 1.0}}}


def test_fbms_ground_truth_without_image_is_an_error(tmp_path):
    truths = {"cars1_01.pgm": TRUTH, "cars1_0007_gt.ppm": colored(EMPTY, {})}
    fbms(tmp_path / "Testset" / "cars1", ["cars1_01"], truths)
    with pytest.raises(UserError, match="no image for the ground truth cars1_0007_gt.ppm"):
        evaluate("fbms-j", tmp_path, tmp_path)
    fbms(tmp_path / "other" / "Testset" / "cars4", ["cars4_01"], {"cars4_01_PROB.pgm": TRUTH})
    with pytest.raises(UserError, match="no ground-truth masks"):
        evaluate("fbms-j", tmp_path, tmp_path / "other")


def test_fbms_unknown_split_is_an_error(tmp_path):
    with pytest.raises(UserError, match="Unknown split 'val' of FBMS-59; valid splits: test, train"):
        evaluate("fbms-j", tmp_path, tmp_path, "val")


@pytest.mark.parametrize("inside", ["", "TestSet"])
def test_fbms_j_in_the_plain_layout(tmp_path, inside):
    data, predictions = tmp_path / "data", tmp_path / "predictions"
    # First and last frame are scored too; every nonzero level is foreground.
    save_masks(data / inside / "Annotations" / "cars1", [TRUTH * 3, EMPTY, TRUTH])
    save_masks(data / inside / "Annotations" / "lion01", [TRUTH])
    save_masks(data / inside / "Annotations" / "tennis", [EMPTY, EMPTY])
    save_masks(predictions / "cars1" / "masks", [HALF * 2, TRUTH, TRUTH])  # the layout of `uvos segment`
    save_masks(predictions / "lion01", [QUARTER])
    save_masks(predictions / "tennis", [EMPTY, TRUTH])
    result = evaluate("fbms-j", predictions, data)
    # Mean of (1/2 + 1) / 2 and 1/4; tennis has no scored frame and is left out.
    assert result.scores["J"]["mean"] == 0.5
    assert result.scores["J"]["mean_over_frames"] == pytest.approx(1.75 / 3)
    assert math.isnan(result.sequences["tennis"]["J"]["mean"]) and result.sequences["tennis"]["counted_frames"] == 0
    assert evaluate("fbms-j", predictions, data, sequences=("lion01",)).scores["J"]["mean"] == 0.25


def test_plain_dataset_in_folder_ground_truth_is_not_read_as_fbms(tmp_path):
    # Gray level 20 is foreground by the plain rule, but background by that of FBMS's gray files.
    (tmp_path / "GroundTruth").mkdir()
    Image.fromarray(TRUTH * np.uint8(20)).save(tmp_path / "GroundTruth" / "cars_0001.png")
    save_masks(tmp_path / "predictions" / "cars", [HALF], ["cars_0001"])
    assert evaluate("fbms-j", tmp_path / "predictions", tmp_path).scores["J"]["mean"] == 0.5


# Two objects, top left and bottom left, 600 pixels each; the background has 1200.
OBJECTS = rectangle(0, 20, 0, 30) + rectangle(20, 40, 0, 30, number=2)
COLORS = {1: (255, 0, 0), 2: (0, 255, 0)}
DEFINITION = """Total number of regions:
3

Color of region 0:
16777215
Color of region 1:
16711680
Color of region 2:
65280

Confusion penality matrix
0 1 1
1 0 1
1 1 0

Total number of frames in this shot:
10
Total number of labeled frames:
2
Frame number:
0
File name:
x_0001_gt.ppm
Input file name:
x_0001.jpg
Frame number:
9
File name:
x_0010_gt.ppm
Input file name:
x_0010.jpg
"""


def regions(root: Path, sequences: tuple, as_published: bool) -> Path:
    """Writes two labeled frames of OBJECTS, 0001 and 0010, for each sequence."""
    for name in sequences:
        frames = [f"{name}_0001", f"{name}_0010"]
        if as_published:
            folder = fbms(root / "Testset" / name, frames,
                          {f"{frame}_gt.ppm": colored(OBJECTS, COLORS) for frame in frames})
            (folder / "GroundTruth" / f"{name}Def.dat").write_text(DEFINITION)
        else:
            save_masks(root / "Annotations" / name, [OBJECTS] * 2, frames)
    return root


def clusters(values: tuple) -> np.ndarray:
    """A label map with the given labels for background, first and second object."""
    return np.array(values, np.uint8)[OBJECTS]


def score_regions(root: Path, as_published: bool, **predicted) -> dict:
    data = regions(root / "data", tuple(predicted), as_published)
    for name, (first, second) in predicted.items():
        save_masks(root / "predictions" / name, [first, second], [f"{name}_0001", f"{name}_0010"])
    return flatten(evaluate("fbms-f", root / "predictions", data).scores)


@pytest.mark.parametrize("as_published", [True, False])
class TestRegions:
    def test_permuted_labels_score_one(self, tmp_path, as_published):
        permuted = clusters((7, 200, 0))
        assert score_regions(tmp_path, as_published, x=(permuted, permuted)) == {
            "P": 1, "R": 1, "F-Mean": 1, "density": 1, "objects": 2, "extracted": 2}

    def test_255_lowers_only_the_density(self, tmp_path, as_published):
        part = clusters((0, 1, 2))
        part[:10, :30] = 255  # half of the first object: 300 of 2400 pixels
        scores = score_regions(tmp_path, as_published, x=(part, part))
        assert scores == {"P": 1, "R": 1, "F-Mean": 1, "density": 0.875, "objects": 2, "extracted": 2}

    def test_missed_object_and_mean_over_sequences(self, tmp_path, as_published):
        perfect, missed = clusters((0, 1, 2)), clusters((0, 1, 0))
        scores = score_regions(tmp_path, as_published, x=(perfect, perfect), y=(missed, missed))
        # In y: the background has P = 1200/1800 and R = 1, the first object 1 and 1, the second P = 1 and R = 0.
        p, r = (1 + 8 / 9) / 2, (1 + 2 / 3) / 2
        assert scores["P"] == pytest.approx(p) and scores["R"] == pytest.approx(r)
        assert scores["F-Mean"] == pytest.approx(2 * p * r / (p + r))  # not the mean of 1 and 0.7619
        assert (scores["objects"], scores["extracted"]) == (4, 3)

    def test_object_with_changing_labels_is_not_extracted(self, tmp_path, as_published):
        scores = score_regions(tmp_path, as_published, x=(clusters((0, 1, 2)), clusters((0, 2, 1))))
        # The background is perfect; each object shares its two clusters with the other.
        assert scores["P"] == scores["R"] == scores["F-Mean"] == pytest.approx((1 + 0.5 + 0.5) / 3)
        assert scores["extracted"] == 0


def test_void_in_plain_ground_truth_is_ignored(tmp_path):
    truth = OBJECTS.copy()
    truth[:, 50:] = 255
    predicted = OBJECTS.copy()
    predicted[:, 50:] = 3
    save_masks(tmp_path / "Annotations" / "x", [truth])
    save_masks(tmp_path / "predictions" / "x", [predicted])
    scores = evaluate("fbms-f", tmp_path / "predictions", tmp_path).scores
    assert scores["F"]["mean"] == 1 and scores["density"] == 1


def test_plain_sequences_have_their_own_definition_files(tmp_path):
    # The objects' gray levels differ, so a definition does not fit the other sequence.
    for name, levels in (("a", (10, 20)), ("b", (30, 40))):
        gray = np.array([0, *levels], np.uint8)[OBJECTS]
        (tmp_path / "Annotations" / name).mkdir(parents=True)
        Image.fromarray(gray).save(tmp_path / "Annotations" / name / "0001.png")
        numbers = "3\n0\n{}\n{}\n0 0 0\n0 0 0\n0 0 0\n1\n1\n0\n0001.png\n".format(*levels)
        (tmp_path / "Annotations" / f"{name}Def.dat").write_text(numbers)
        save_masks(tmp_path / "predictions" / name, [OBJECTS], ["0001"])
    assert evaluate("fbms-f", tmp_path / "predictions", tmp_path).scores["F"]["mean"] == 1


def test_masks_of_only_0_and_255_are_errors(tmp_path):
    # 255 means unlabeled, so such masks would score as background only. Beside other labels 255 is accepted.
    save_masks(tmp_path / "Annotations" / "x", [OBJECTS] * 2)
    save_masks(tmp_path / "predictions" / "x", [clusters((0, 255, 255)), clusters((0, 255, 0))])
    with pytest.raises(UserError, match="x 00000-00001 contains 0 and 255 only"):
        evaluate("fbms-f", tmp_path / "predictions", tmp_path)
    save_masks(tmp_path / "predictions" / "x", [clusters((0, 255, 255)), clusters((0, 1, 2))])
    scores = evaluate("fbms-f", tmp_path / "predictions", tmp_path).scores
    assert scores["F"]["mean"] == 1 and scores["density"] == 0.75


def test_fbms_f_in_the_published_layout_needs_definition_files(tmp_path):
    data = regions(tmp_path, ("x", "y", "z"), as_published=True)
    for name in ("x", "z"):
        (data / "Testset" / name / "GroundTruth" / f"{name}Def.dat").unlink()
    with pytest.raises(UserError, match="Def.dat.* missing in x, z"):
        evaluate("fbms-f", tmp_path, data)


@pytest.mark.parametrize("flat", [False, True])
def test_youtube_objects_means_over_sequences_and_classes(tmp_path, flat):
    def name(text):
        return text.replace("/", "_") if flat else text

    data, predictions = tmp_path / "data", tmp_path / "predictions"
    for sequence, truths, predicted in [
        ("cat/0001", [TRUTH, EMPTY, TRUTH], [HALF, TRUTH, TRUTH]),  # the empty ground truth is ignored
        ("cat/0002", [TRUTH], [TRUTH]),
        ("dog/0001", [TRUTH, TRUTH], [QUARTER, QUARTER]),
    ]:
        frames = [f"frame{10 * t + 1:04d}" for t in range(len(truths))]
        save_masks(data / "Annotations" / name(sequence), truths, frames)
        save_masks(predictions / name(sequence), predicted, frames)
    result = evaluate("youtube-objects", predictions, data)
    assert result.scores["J"] == {
        "mean": pytest.approx((0.75 + 1 + 0.25) / 3),
        "mean_over_classes": (0.875 + 0.25) / 2,
        "classes": {"cat": 0.875, "dog": 0.25},
    }
    assert {entry["class"] for entry in result.sequences.values()} == {"cat", "dog"}
    assert result.sequences[name("cat/0001")] == {"class": "cat", "J": {"mean": 0.75}, "counted_frames": 2}


def test_youtube_objects_folders_without_class_are_errors(tmp_path):
    save_masks(tmp_path / "Annotations" / "sofa_0001", [TRUTH])
    with pytest.raises(UserError, match="classes aeroplane, bird"):
        evaluate("youtube-objects", tmp_path, tmp_path)


def test_real_masks(tmp_path, real_data):
    expected = []
    for name, change in (("bear", shifted), ("bmx-bumps", partial(eroded, size=7)), ("boat", shifted)):
        paths = sorted((real_data / "davis2016/Annotations/480p" / name).glob("*.png"))[:: 8 if name == "bear" else 16]
        truths = [(read_mask(path) > 0).astype(np.uint8) for path in paths]
        predicted = [change(mask) for mask in truths]
        save_masks(tmp_path / "Annotations" / name, truths, [path.stem for path in paths])
        save_masks(tmp_path / "predictions" / name, predicted, [path.stem for path in paths])
        expected.append([np.sum((p > 0) & (t > 0)) / np.sum((p > 0) | (t > 0))
                         for p, t in zip(predicted, truths, strict=True) if t.any()])
    assert len(expected[1]) == 5  # of 6: the bike is not visible in one
    scores = evaluate("fbms-j", tmp_path / "predictions", tmp_path).scores["J"]
    assert scores["mean"] == pytest.approx(np.mean([np.mean(values) for values in expected]), abs=1e-12)
    assert scores["mean_over_frames"] == pytest.approx(np.mean(np.concatenate(expected)), abs=1e-12)
    assert scores["mean"] == pytest.approx(0.742977, abs=1e-6)
    assert scores["mean_over_frames"] == pytest.approx(0.794618, abs=1e-6)


def test_fbms_ground_truth_of_missing_image_is_not_reassigned(tmp_path):
    """Ground truth and images share their numbering, so image 5 is missing and no offset is assumed."""
    truths = {f"cars1_{number:02d}.pgm": TRUTH for number in (1, 5, 7)}
    fbms(tmp_path / "Testset" / "cars1", [f"cars1_{number:02d}" for number in (1, 2, 3, 4, 6, 7)], truths)
    with pytest.raises(UserError, match="no image for the ground truth cars1_05.pgm"):
        evaluate("fbms-j", tmp_path, tmp_path)
