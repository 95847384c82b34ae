"""Broken datasets: all faults are reported together, and nothing is written."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.helpers import archives
from tests.helpers.command_line import uvos

pytest.importorskip("tensorflow")

from uvos_jax.data.datasets.youtube_vis import Segments, read_segments
from uvos_jax.data.storage.convert import convert
from uvos_jax.data.storage.store import open_store
from uvos_jax.errors import UserError


def conversion_error(name, tmp_path):
    """Converts ``tmp_path/source``, which must fail; returns the error message."""
    with pytest.raises(UserError) as caught:
        convert(name, tmp_path / "source", tmp_path / "data", workers=2)
    assert not (tmp_path / "data").exists()
    return str(caught.value)


def truncate(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])


def test_all_faults_are_reported_together(tmp_path):
    root = tmp_path / "source"
    archives.davis2017(root)
    shutil.rmtree(root / "Annotations_unsupervised")
    images, masks = root / "JPEGImages/480p", root / "Annotations/480p"
    for name in ("blur", "size", "odd", "color"):
        for t in range(3):
            archives.image(images / f"{name}/{t:05d}.jpg")
            archives.mask(masks / f"{name}/{t:05d}.png", archives.box(1))
    archives.lines(root / "ImageSets/2017/train.txt", "dogs", "blur", "size", "odd", "color", "absent", "dogs")
    (masks / "dogs/00001.png").unlink()
    (images / "dogs/00002.jpg").unlink()
    truncate(images / "blur/00000.jpg", 0.9)
    truncate(masks / "blur/00001.png")
    (images / "blur/00002.jpg").write_text("no image")
    for t in (1, 2):
        archives.mask(masks / f"size/{t:05d}.png", archives.box(1, size=(20, 32)))
    archives.image(images / "odd/00001.jpg", (30, 32))
    archives.mask(masks / "odd/00001.png", archives.box(1, size=(30, 32)))
    archives.gray(masks / "color/00000.png", archives.picture("colors"))
    archives.gray(masks / "color/00001.png", np.linspace(0, 255, 24 * 32).astype(np.uint8).reshape(24, 32))
    text = conversion_error("davis2017", tmp_path)
    assert "davis2017/semi" in text and "has 11 faults, and nothing was written" in text
    for fault in ("dogs has no mask for 00001", "dogs has no image for the mask 00002", "lists sequences twice: dogs",
                  "without a folder", "absent", "blur 00000: the image", "truncated", "blur/00001.png",
                  "is not an image file",
                  "size 00001, 00002: the mask is 20x32, but the image 24x32",
                  "odd has frames of several sizes: 24x32 (2 frames, first 00000), 30x32 (1 frame, first 00001)",
                  "color/00000.png' is an RGB image", "color/00001.png' has too many gray levels"):
        assert fault in text, (fault, text)


def test_repaired_dataset_converts(tmp_path):
    archives.davis2016(tmp_path / "source")
    broken = tmp_path / "source/JPEGImages/480p/bear/00001.jpg"
    whole = broken.read_bytes()
    truncate(broken, 0.9)
    assert "bear 00001" in conversion_error("davis2016", tmp_path)
    broken.write_bytes(whole)
    convert("davis2016", tmp_path / "source", tmp_path / "data")
    assert open_store(tmp_path / "data", "davis2016", "train").videos[0].length == 3


def test_message_lists_20_faults_and_counts_the_rest(tmp_path):
    archives.duts(tmp_path / "source")
    for k in range(30):
        archives.image(tmp_path / f"source/DUTS-TR/DUTS-TR-Image/x{k}.jpg")
        (tmp_path / f"source/DUTS-TR/DUTS-TR-Mask/x{k}.png").write_text("")
    text = conversion_error("duts", tmp_path)
    assert "30 faults" in text and text.count("cannot be read as an image") == 20 and "and 10 more" in text


@pytest.mark.parametrize(("name", "spoil", "fault"), [
    ("youtube_vos", "train/Annotations/003234408d/00005.png", "003234408d has no mask for 00005"),
    ("youtube_vos", "valid/Annotations/00f88c4f0a/00005.png", "00f88c4f0a has no mask for 00005"),
    ("youtube_vos", "train_all_frames/JPEGImages/003234408d/00010.jpg", "no image for the mask 00010"),
    ("youtube_vis", "valid/JPEGImages/00f88c4f0a/00005.jpg", "00f88c4f0a has no image 00f88c4f0a/00005.jpg"),
    ("duts", "DUTS-TE/DUTS-TE-Mask/ILSVRC_TE_0.png", "DUTS-TE has no mask for ILSVRC_TE_0"),
    ("msra10k", "MSRA10K_Imgs_GT/Imgs/1.jpg", "MSRA10K has no image for the mask 1"),
    ("fbms59", "Trainingset/cars2/cars2_04.jpg", "has no image for the ground truth cars2_04.pgm"),
    ("visal", "Imgs/boat/boat_001.jpg", "boat has no image for the mask boat_001"),
    ("segtrack_v2", "GroundTruth/drift/2/drift_0001.png", "drift has no mask of object 2 for drift_0001"),
    ("folder", "JPEGImages/two/frame2.png", "two has no image for the mask frame2"),
])
def test_missing_file_is_a_fault(name, spoil, fault, tmp_path):
    getattr(archives, name)(tmp_path / "source")
    (tmp_path / "source" / spoil).unlink()
    assert fault in conversion_error(name, tmp_path)


def test_youtube_vis_malformed_masks_are_faults(tmp_path):
    archives.youtube_vis(tmp_path / "source")
    path = tmp_path / "source/train.json"
    content = json.loads(path.read_text())
    entries = content["annotations"]
    entries[0]["segmentations"][0]["counts"] = "zzzz"
    entries[0]["segmentations"][2]["counts"][-1] += 1
    entries[1]["segmentations"][0] = [[1, 2, 3]]
    path.write_text(json.dumps(content))
    text = conversion_error("youtube_vis", tmp_path)
    assert "frame 00000, object 1" in text and "frame 00010, object 1" in text
    assert text.count("not a compressed RLE") == 1 and text.count("do not sum to the 768 pixels") == 1
    entries[1]["segmentations"].pop()
    path.write_text(json.dumps(content))
    assert "objects 2 need one mask per frame (3 frames)" in conversion_error("youtube_vis", tmp_path)


def test_youtube_vis_inconsistent_annotations_are_faults(tmp_path):
    archives.youtube_vis(tmp_path / "source")
    path = tmp_path / "source/train.json"
    content = json.loads(path.read_text())
    counts = content["annotations"][0]["segmentations"][2]["counts"]
    counts[:2] = [counts[0] - 0.5, counts[1] + 0.5]  # the sum is right
    content["annotations"][1]["category_id"] = 5
    content["annotations"][2]["video_id"] = 70
    content["videos"].append(content["videos"][0])
    path.write_text(json.dumps(content))
    text = conversion_error("youtube_vis", tmp_path)
    for fault in ("neither a string nor a list of integers", "annotations 2 refer to a category that is not listed",
                  "annotations 3 refer to a video that is not listed", "two videos of the same id: 7",
                  "two videos of the same name: 0065b171f9"):
        assert fault in text, (fault, text)
    content["videos"].pop()
    content["videos"][0]["file_names"][1] = content["videos"][0]["file_names"][2]
    path.write_text(json.dumps(content))
    assert "video 0065b171f9: frames are listed twice: 00010" in conversion_error("youtube_vis", tmp_path)


def test_youtube_vos_mask_with_unlisted_object_is_a_fault(tmp_path):
    archives.youtube_vos(tmp_path / "source")
    archives.mask(tmp_path / "source/train/Annotations/003234408d/00005.png", archives.box(1, 7, 2, 255))
    assert "00005.png' contains object ids that are not in meta.json: 7" in conversion_error("youtube_vos", tmp_path)


@pytest.mark.parametrize(("name", "picture", "fault"), [
    ("fbms59", "Trainingset/cars9/cars9_01.jpg", "have no folder GroundTruth: cars9"),
    ("segtrack_v2", "JPEGImages/girl/girl_0001.png", "girl has no folder in"),
    ("visal", "Imgs/lion/lion_001.jpg", "have no masks: lion"),
])
def test_sequence_without_ground_truth_is_a_fault_unless_hidden(name, picture, fault, tmp_path):
    getattr(archives, name)(tmp_path / "source")
    path = tmp_path / "source" / picture
    for hidden in (".thumbs", "__MACOSX"):
        archives.image(path.parents[1] / hidden / path.name)
    convert(name, tmp_path / "source", tmp_path / "elsewhere")
    archives.image(path)
    text = conversion_error(name, tmp_path)
    assert "has 1 fault," in text and fault in text


@pytest.mark.parametrize("number", ["0", "255", "1000"])
def test_segtrack_invalid_object_id_is_a_fault(number, tmp_path):
    archives.segtrack_v2(tmp_path / "source")
    (tmp_path / "source/GroundTruth/drift/2").rename(tmp_path / "source/GroundTruth/drift" / number)
    assert "drift has object ids outside 1 to 254" in conversion_error("segtrack_v2", tmp_path)


def test_duplicate_line_in_frame_list_is_a_fault(tmp_path):
    archives.davis2016(tmp_path / "source")
    path = tmp_path / "source/ImageSets/2016/val.txt"
    lines = path.read_text().splitlines()
    archives.lines(path, *lines, lines[1])
    text = conversion_error("davis2016", tmp_path)
    assert "has 1 fault," in text and f"has duplicate lines: {lines[1]}" in text


def test_same_fault_of_many_files_is_reported_once(tmp_path):
    archives.davis2016(tmp_path / "source")
    archives.davis2017(tmp_path / "source")
    for t in range(3):
        archives.gray(tmp_path / f"source/Annotations/480p/dogs/{t:05d}.png", archives.picture("colors"))
    text = conversion_error("davis2017/semi", tmp_path)
    assert "has 1 fault," in text and "dogs 00000, 00001, 00002: " in text and "dogs/*.png' is an RGB image" in text


def test_rle_with_empty_runs_is_decoded():
    """An RLE may have empty runs: pycocotools decodes them, although it never writes them."""
    from pycocotools import mask as mask_utils

    rng = np.random.default_rng(0)
    for _ in range(20):
        runs = np.where(rng.random(40) < 0.3, 0, rng.geometric(0.02, 40)).tolist()
        size = (int(sum(runs)), 1)
        rle = mask_utils.frPyObjects({"size": list(size), "counts": runs}, *size)
        expected = np.repeat(np.arange(40) % 2, runs)[:, None]
        np.testing.assert_array_equal(read_segments(Segments("here", size, ((1, rle),))), expected)
        short = mask_utils.frPyObjects({"size": list(size), "counts": [*runs, 0, 0]}, *size)
        short["size"] = [size[0] + 1, 1]
        with pytest.raises(UserError, match="do not sum"):
            read_segments(Segments("here", (size[0] + 1, 1), ((1, short),)))


def test_faults_of_custom_folder(tmp_path):
    root = tmp_path / "source"
    archives.folder(root)
    archives.image(root / "JPEGImages/one/frame2.jpg")
    archives.image(root / "Annotations/two/frame1.jpg")
    archives.image(root / "JPEGImages/three/00000.jpg")
    archives.mask(root / "Annotations/four/00000.png", archives.box(1))
    (root / "Flow/one").mkdir(parents=True)
    np.save(root / "Flow/one/frame1.npy", np.zeros((5, 5, 2), np.float32))
    np.save(root / "Flow/one/frame2.npy", np.zeros((24, 32), np.float32))
    text = conversion_error("folder", tmp_path)
    for fault in ("two images of the same name: frame2", "save them as PNG: frame1.jpg", "three has no masks",
                  "four has masks, but no images", "two has no flow", "the flow is 5x5, but the image 24x32",
                  "is not flow [h, w, 2]"):
        assert fault in text, (fault, text)
    archives.lines(root / "ImageSets/train.txt", "one")
    archives.lines(root / "ImageSets/val.txt", "one", "too")
    text = conversion_error("folder", tmp_path)
    assert "list sequences twice: one" in text and "Did you mean 'two'?" in text
    (root / "ImageSets/val.txt").unlink()
    (root / "ImageSets/val.txt").mkdir()
    assert "Cannot read the list" in conversion_error("folder", tmp_path)


def test_inconsistent_gray_masks_are_a_fault(tmp_path):
    archives.folder(tmp_path / "source")
    archives.gray(tmp_path / "source/Annotations/one/frame2.png", archives.box(100))
    archives.gray(tmp_path / "source/Annotations/one/frame10.png", archives.box(200))
    text = conversion_error("folder", tmp_path)
    assert "has 1 fault," in text and "100 in frame2, 200 in frame10" in text


@pytest.mark.parametrize(("name", "words"), [
    ("davis2018", "Did you mean 'davis201"), ("davis2017/semy", "Did you mean 'semi'?"), ("duts/x", "it has none"),
    ("folder/a b", "letters, digits"), ("folder/" + "a" * 300, "too long"),
    ("synthetic", "Leave --source out"), ("davis2016", "ImageSets/2016/train.txt"),
    ("davis2017", "neither Annotations"), ("youtube_vos", "meta.json"), ("youtube_vis", "instances.json"),
    ("duts", "DUTS-TR-Image"), ("msra10k", "Imgs/*.jpg"), ("fbms59", "Trainingset"), ("visal", "no ground-truth masks"),
    ("youtube_objects", "no ground-truth masks"), ("segtrack_v2", "GroundTruth"), ("folder", "JPEGImages"),
])
def test_wrong_folder_or_name_is_an_error(name, words, tmp_path):
    (tmp_path / "source").mkdir()
    assert words in conversion_error(name, tmp_path)


def test_images_outside_sequence_folders_are_an_error(tmp_path):
    archives.image(tmp_path / "source/JPEGImages/00000.jpg")
    archives.mask(tmp_path / "source/Annotations/00000.png", archives.box(1))
    assert "has no sequence folders" in conversion_error("folder", tmp_path)


def test_missing_tensorflow_error_names_the_extra(tmp_path, monkeypatch):
    archives.duts(tmp_path / "source")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert ("Conversion needs tensorflow, tensorflow_datasets, array_record, not installed here."
            " Run: pip install 'uvos-jax[train]'") in conversion_error("duts", tmp_path)


def test_importing_convert_does_not_import_tensorflow():
    code = "import uvos_jax.data.storage.convert, sys; print([m for m in ('tensorflow', 'jax') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_exif_rotated_image_is_stored_upright(tmp_path):
    from PIL import Image

    archives.folder(tmp_path / "source")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    pixels = archives.picture("x", (32, 24))
    for t in (1, 2, 10):
        path = tmp_path / f"source/JPEGImages/one/frame{t}.png"
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(".jpg"), exif=exif, quality=95)
    convert("folder", tmp_path / "source", tmp_path / "data")
    store = open_store(tmp_path / "data", "folder", "train")
    assert store.videos[0].size == (24, 32)
    difference = store.image(0, 0).astype(int) - np.rot90(pixels, -1)
    assert np.abs(difference).mean() < 4  # JPEG compression error


def test_convert_data_command_on_real_videos(real_data, tmp_path):
    root, source = real_data / "davis2016", tmp_path / "DAVIS"
    for kind in ("JPEGImages", "Annotations"):
        for name in ("bear", "bus"):
            (source / kind / "480p" / name).mkdir(parents=True)
            for path in sorted((root / kind / "480p" / name).iterdir())[:6]:
                (source / kind / "480p" / name / path.name).symlink_to(path)
    archives.lines(source / "ImageSets/2016/train.txt", "bear", "bus")
    code, out, err = uvos("convert-data", "davis2016", "--source", source, "--data-dir", tmp_path / "data")
    assert code == 0, err
    assert out.splitlines() == ["davis2016 train: 2 videos, 12 frames, 12 with ground truth",
                                str(tmp_path / "data/uvos_davis2016/1.0.0")]
    store = open_store(tmp_path / "data", "davis2016", "train")
    path = root / "Annotations/480p/bus/00005.png"
    np.testing.assert_array_equal(store.labels(1, 5), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0)
    np.testing.assert_array_equal(store.image(1, 5)[..., ::-1], cv2.imread(str(root / "JPEGImages/480p/bus/00005.jpg")))
    code, out, err = uvos("convert-data", "davis2016", "--source", source, "--data-dir", tmp_path / "data")
    assert code == 2 and "already exists" in err and out == ""
    code, out, err = uvos("convert-data", "davis2016", "--data-dir", tmp_path / "other")
    assert code == 2 and "--source is missing" in err
