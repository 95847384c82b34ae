"""Locating predictions, and errors for predictions that cannot be scored, reported all at once."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers.synthetic_store import davis, rectangle, save_masks
from uvos_jax.errors import UserError
from uvos_jax.evaluation.predictions import format_ranges
from uvos_jax.evaluation.protocols import evaluate

SQUARE = rectangle(10, 30, 10, 30)
EMPTY = np.zeros_like(SQUARE)


def dataset(root, *names, frames=5, year=2017):
    return davis(root / "d", dict.fromkeys(names, [SQUARE] * frames), year)


def refused(root, match, name="davis2017-semi", split=None, **options):
    """Returns the one-line error message of an evaluation."""
    with pytest.raises(UserError, match=match) as caught:
        evaluate(name, root / "p", root / "d", split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def gray(path, *values):
    """Saves a gray image, 60 pixels wide, in which each value fills an equal share of the columns."""
    Image.fromarray(np.tile(np.repeat(np.array(values, np.uint8), 60 // len(values)), (40, 1))).save(path)


# Missing --------------------------------------------------------------------------------------------------------------


def test_one_error_names_all_missing_sequences_and_frames(tmp_path):
    dataset(tmp_path, "bear", "bus", "cat", "cow", "dog", "hike", frames=14)
    names = [f"{t:05d}" for t in range(14)]
    there = [name for name in names if name not in ("00003", "00004", "00005", "00006", "00007", "00009", "00012")]
    save_masks(tmp_path / "p/bear", [SQUARE] * len(there), there)
    (tmp_path / "p/cat").mkdir()
    (tmp_path / "p/cow").mkdir()
    (tmp_path / "p/cow/notes.txt").write_text("no masks")
    save_masks(tmp_path / "p/dog", [SQUARE] * 14, [f"frame_{t:04d}" for t in range(1, 15)])
    save_masks(tmp_path / "p/hike", [SQUARE] * 14)
    assert refused(tmp_path, "is incomplete") == (
        f"'{tmp_path / 'p'}' is incomplete: 3 of 6 sequences are missing: bus, cat, cow; frames are missing:"
        " bear 00003-00007, 00009, 00012; dog (file names differ: 'frame_0001' where the ground truth has"
        " '00001'). Masks are expected at <sequence>/<frame>.png, with the frame names of the ground truth.")


def test_ignored_frames_may_be_missing(tmp_path):
    dataset(tmp_path, "bear")
    davis(tmp_path / "d", {"bear": [SQUARE] * 5}, annotations="Annotations_unsupervised")
    save_masks(tmp_path / "p/bear", [SQUARE] * 3, ["00001", "00002", "00003"])
    assert evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d").scores["J"]["mean"] == 1
    refused(tmp_path, "frames are missing: bear 00000, 00004", "davis2017-unsup")


def test_error_names_missing_frame_of_a_real_sequence(real_data, tmp_path):
    masks = sorted((real_data / "davis2016/Annotations/480p/bear").glob("*.png"))[:6]
    for folder in ("d/Annotations/480p/bear", "p/bear"):
        (tmp_path / folder).mkdir(parents=True)
        for path in masks:
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "d/ImageSets/2016").mkdir(parents=True)
    (tmp_path / "d/ImageSets/2016/train.txt").write_text("bear\n")
    assert evaluate("davis2016", tmp_path / "p", tmp_path / "d", "train").scores["J&F"]["mean"] == 1
    (tmp_path / "p/bear/00003.png").unlink()
    refused(tmp_path, r"frames are missing: bear 00003\.", "davis2016", "train")


def test_predictions_must_be_a_folder(tmp_path):
    dataset(tmp_path, "bear")
    refused(tmp_path, "p' are not a folder")
    (tmp_path / "p").write_text("a file")
    refused(tmp_path, "p' are not a folder")


def test_format_ranges_joins_consecutive_names():
    order = ["a", "c", "b", "f", "e"]
    assert format_ranges(["b", "a", "e", "c"], order) == "a-b, e"
    assert format_ranges(["f"], order) == "f"
    assert format_ranges(order, order) == "a-e"
    assert format_ranges(["a", "b", "e"], order) == "a, b, e"


# Layouts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["bear", "bear/masks", "Annotations/bear", "Annotations/bear/masks", ".", "masks"])
def test_layouts_of_a_single_sequence(tmp_path, folder):
    dataset(tmp_path, "bear")
    save_masks(tmp_path / "p" / folder, [SQUARE] * 5)
    assert evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d").scores["J"]["mean"] == 1


def test_masks_take_precedence_over_overlays_of_uvos_segment(tmp_path):
    dataset(tmp_path, "bear", "bus")
    for name in ("bear", "bus"):
        save_masks(tmp_path / "p" / name / "masks", [SQUARE] * 5)
        for t in range(5):
            Image.new("RGB", (60, 40)).save(tmp_path / "p" / name / f"{t:05d}.jpg")
            Image.new("RGB", (60, 40)).save(tmp_path / "p" / name / "masks" / f"{t:05d}.jpg")
    assert evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d").scores["J"]["mean"] == 1


def test_folder_of_one_sequence_needs_its_name(tmp_path):
    dataset(tmp_path, "bear", "bus")
    save_masks(tmp_path / "p", [SQUARE] * 5)
    result = evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d", sequences=("bus",))
    assert list(result.sequences) == ["bus"]
    # Both sequences have frames of these names, so the masks are ambiguous.
    refused(tmp_path, "2 of 2 sequences are missing: bear, bus")


def test_one_folder_may_hold_all_sequences_with_distinct_frame_names(tmp_path):
    names = [f"{name}_{t:04d}" for name in ("bird", "lion") for t in range(4)]
    save_masks(tmp_path / "d/GT", [SQUARE * 255] * 8, names)
    save_masks(tmp_path / "p", [SQUARE] * 8, names)
    assert evaluate("saliency", tmp_path / "p", tmp_path / "d").scores["mae"] == 0
    (tmp_path / "p/lion_0002.png").unlink()
    refused(tmp_path, r"is incomplete: frames are missing: lion lion_0002\.", "saliency")


# The dataset ----------------------------------------------------------------------------------------------------------


def test_davis_2016_split_files_list_pairs_of_paths(tmp_path):
    dataset(tmp_path, "bear", "bus", year=2016)
    lines = [f"/JPEGImages/480p/{name}/{t:05d}.jpg /Annotations/480p/{name}/{t:05d}.png" for name in ("bus", "bear")
             for t in range(5)]
    (tmp_path / "d/ImageSets/2016/val.txt").write_text("\n".join(lines) + " \n\n")
    for name in ("bear", "bus"):
        save_masks(tmp_path / "p" / name, [SQUARE] * 5)
    assert list(evaluate("davis2016", tmp_path / "p", tmp_path / "d").sequences) == ["bus", "bear"]


def test_parent_folder_of_davis_is_accepted(tmp_path):
    dataset(tmp_path, "bear").rename(tmp_path / "DAVIS")
    save_masks(tmp_path / "p/bear", [SQUARE] * 5)
    assert evaluate("davis2017-semi", tmp_path / "p", tmp_path).scores["J"]["mean"] == 1


def test_error_for_unknown_split_lists_available_splits(tmp_path):
    dataset(tmp_path, "bear")
    davis(tmp_path / "d", {"bear": [SQUARE] * 5}, split="train")
    refused(tmp_path, r"no ImageSets/2017/vall.txt; it has the splits train, val\. .* Did you mean 'val'", split="vall")
    refused(tmp_path, "has no ImageSets/2016/val.txt. Give the folder of DAVIS", "davis2016")


def test_bad_datasets_split_files_and_protocols_are_errors(tmp_path):
    refused(tmp_path, "d' is not a folder")
    dataset(tmp_path, "bear", "bus")
    (tmp_path / "d/ImageSets/2017/val.txt").write_text("bear\ncow\nbus\nyak\n")
    refused(tmp_path, "lists sequences that have neither masks in .* nor frames in .*: cow, yak")
    (tmp_path / "d/ImageSets/2017/val.txt").write_text("\n\n")
    refused(tmp_path, r"ImageSets/2017/val\.txt' lists no sequences\.$")
    refused(tmp_path, "Unknown protocol 'davis2017'. Did you mean 'davis20.* Valid protocols: davis2016, ", "davis2017")


def test_error_for_unknown_sequence_suggests_the_nearest_name(tmp_path):
    dataset(tmp_path, "bear", "bus")
    refused(tmp_path, "The val split has no sequence 'beer'. Did you mean 'bear'", sequences=("bus", "beer"))


@pytest.mark.parametrize(("name", "year", "folder"), [
    ("davis2017-semi", 2017, "Annotations"), ("davis2017-unsup", 2019, "Annotations_unsupervised")])
def test_error_for_split_without_ground_truth_suggests_packing(tmp_path, name, year, folder):
    davis(tmp_path / "d", {"bear": [SQUARE], "bus": [SQUARE]}, year, "test-dev", folder)
    for sequence in ("bear", "bus"):
        save_masks(tmp_path / "d/JPEGImages/480p" / sequence, [SQUARE] * 4)
    refused(tmp_path, r"test-dev split has no public ground truth \(bear, bus\)\. .*--pack", name, "test-dev")


# Mask contents --------------------------------------------------------------------------------------------------------


def test_one_error_reports_problems_of_several_sequences(tmp_path):
    dataset(tmp_path, "bear", "bus", frames=8)
    save_masks(tmp_path / "p/bear", [SQUARE] * 8)
    save_masks(tmp_path / "p/bear", [SQUARE[:, :50]] * 3, ["00001", "00002", "00003"])
    save_masks(tmp_path / "p/bear", [SQUARE * 21, SQUARE * 255], ["00004", "00005"])
    save_masks(tmp_path / "p/bus", [SQUARE] * 8)
    Image.new("RGB", (60, 40)).save(tmp_path / "p/bus/00003.png")
    gray(tmp_path / "p/bus/00004.png", *range(0, 240, 12))
    (tmp_path / "p/bus/00005.png").write_bytes((tmp_path / "p/bus/00006.png").read_bytes()[:100])
    (tmp_path / "p/bus/00006.png").write_text("no picture")
    text = refused(tmp_path, "p' cannot be used: ")
    assert "; bear 00004 contains object id 21; the largest valid id is 20, relabel from 1; " in text
    assert "; bear 00005 contains 255 (void), which predictions must not contain; write object ids" in text
    assert "bear 00001-00003 is 50x40 where the ground truth is 60x40; " in text
    assert "; bus 00003 is an RGB image, not a label image. Save it as an indexed (palette) PNG" in text
    assert "; bus 00004 has too many gray levels, so it was antialiased or saved as JPEG. " in text
    assert "; bus 00005 cannot be read: " in text and text.endswith("; bus 00006 is not an image file.")
    assert "  " not in text and ".;" not in text


@pytest.mark.parametrize(("values", "match"), [
    ((0, 2), "bear 00002 contains object id 2; the largest in the first ground-truth frame is 1"),
    ((0, 255), "bear 00002 contains 255 \\(void\\), .*; write object ids, or 0"),
    ((0, 100, 200), "bear 00002 has the gray levels 0, 100, 200"),
])
def test_gray_levels_are_object_ids_in_multi_object_protocols(tmp_path, values, match):
    dataset(tmp_path, "bear")
    save_masks(tmp_path / "p/bear", [SQUARE] * 5)
    gray(tmp_path / "p/bear/00002.png", *values)
    refused(tmp_path, match)


def test_gray_level_2_is_object_2(tmp_path):
    truth = np.repeat(np.arange(3, dtype=np.uint8), 20)[None].repeat(40, 0)
    davis(tmp_path / "d", {"bear": [truth] * 3})
    save_masks(tmp_path / "p/bear", [truth] * 3)
    gray(tmp_path / "p/bear/00001.png", 0, 0, 2)
    objects = evaluate("davis2017-semi", tmp_path / "p", tmp_path / "d").sequences["bear"]["objects"]
    assert [objects[number]["J"]["mean"] for number in "12"] == [0, 1]


@pytest.mark.parametrize("level", [1, 2, 128, 255])
def test_any_gray_level_is_foreground_in_single_object_protocols(tmp_path, level):
    dataset(tmp_path, "bear", year=2016)
    save_masks(tmp_path / "p/bear", [SQUARE] * 5)
    Image.fromarray(SQUARE * np.uint8(level)).save(tmp_path / "p/bear/00002.png")
    assert evaluate("davis2016", tmp_path / "p", tmp_path / "d").scores["J"]["mean"] == 1


def test_antialiased_and_void_masks_are_errors_in_davis_2016(tmp_path):
    dataset(tmp_path, "bear", frames=6, year=2016)
    save_masks(tmp_path / "p/bear", [SQUARE * 255] * 6)
    Image.fromarray(SQUARE * 255).resize((120, 80)).resize((60, 40), Image.Resampling.BICUBIC).save(
        tmp_path / "p/bear/00004.png")
    text = refused(tmp_path, "bear 00001-00003 contains 255 .void.", "davis2016")
    assert "; bear 00004 has " in text and "Threshold it at 128" in text


def test_dataset_with_missing_annotations_is_an_error(tmp_path):
    root = dataset(tmp_path, "bear", "bus")
    for name in ("bear", "bus"):
        save_masks(root / "JPEGImages" / "480p" / name, [SQUARE] * 5)  # any image works
        save_masks(tmp_path / "p" / name, [SQUARE] * 5)
    (root / "Annotations" / "480p" / "bus" / "00001.png").unlink()
    refused(tmp_path, "^The dataset is incomplete, frames have no ground truth: bus 00001.$")
    assert evaluate("davis2017-semi", tmp_path / "p", root, sequences=("bear",)).scores["J"]["mean"] == 1


def test_other_images_beside_ground_truth_are_ignored(tmp_path):
    """JPEG files are not masks, whether they have the name of a mask or another one."""
    root = dataset(tmp_path, "bear", year=2016)
    save_masks(tmp_path / "p/bear", [EMPTY, SQUARE, EMPTY, SQUARE, EMPTY])
    expected = evaluate("davis2016", tmp_path / "p", root).scores["J"]["mean"]
    for name in ("00000", "00002", "preview"):
        Image.fromarray(255 * SQUARE).save(root / "Annotations/480p/bear" / f"{name}.jpg")
    assert evaluate("davis2016", tmp_path / "p", root).scores["J"]["mean"] == expected == pytest.approx(2 / 3)


def test_jpeg_ground_truth_is_an_error(tmp_path):
    (tmp_path / "d/GT/bear").mkdir(parents=True)
    Image.fromarray(255 * SQUARE).save(tmp_path / "d/GT/bear/00000.jpg")
    save_masks(tmp_path / "p/bear", [SQUARE])
    refused(tmp_path, "no ground-truth masks.*JPEG files are not read as masks", "fbms-j")


def test_error_for_missing_annotation_folder_names_it(tmp_path):
    root = dataset(tmp_path, "bear")
    refused(tmp_path, "has no ground truth Annotations_unsupervised/480p", "davis2017-unsup")
    (root / "Annotations").rename(root / "elsewhere")
    refused(tmp_path, "has no ground truth Annotations/480p")


def test_split_file_with_spaces_and_byte_order_mark(tmp_path):
    root = dataset(tmp_path, "my dog")
    (root / "ImageSets/2017/val.txt").write_text("\ufeffmy dog\n", encoding="utf-8")
    save_masks(tmp_path / "p/my dog", [SQUARE] * 5)
    assert set(evaluate("davis2017-semi", tmp_path / "p", root).sequences) == {"my dog"}


def test_split_name_must_not_be_a_path(tmp_path):
    dataset(tmp_path, "bear")
    refused(tmp_path, "plain name, such as val; got 'a/b'", split="a/b")


def test_frames_with_the_same_problem_are_grouped(tmp_path):
    dataset(tmp_path, "bear", "bus")
    for name in ("bear", "bus"):
        save_masks(tmp_path / "p" / name, [SQUARE] * 5)
        for frame in ("00001", "00002"):
            Image.new("RGB", (60, 40)).save(tmp_path / "p" / name / f"{frame}.png")
    text = refused(tmp_path, "bear 00001-00002, bus 00001-00002 is an RGB image")
    assert text.count("RGB") == 1


def test_frame_numbers_without_leading_zeros_are_sorted_numerically(tmp_path):
    """The ignored first and last frame are 1 and 12, not 1 and 9."""
    root = dataset(tmp_path, "bear", frames=0, year=2016)
    names = [str(number) for number in range(1, 13)]
    save_masks(root / "Annotations/480p/bear", [SQUARE] * 12, names)
    save_masks(tmp_path / "p/bear", [EMPTY, *[SQUARE] * 10, EMPTY], names)
    result = evaluate("davis2016", tmp_path / "p", root)
    assert list(result.frames["bear"]) == names[1:-1] and result.scores["J"]["mean"] == 1
