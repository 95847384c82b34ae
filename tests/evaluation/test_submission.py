"""Archives for the evaluation servers: contents, byte for byte, and errors."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.helpers.synthetic_store import davis, rectangle, save_masks
from uvos_jax.errors import UserError
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.evaluation.submission import pack
from uvos_jax.video import PALETTE

SQUARE = rectangle(10, 30, 10, 30)
SECOND = rectangle(5, 35, 40, 50, number=2)
TASKS = {"davis2017-semi": (2017, "Annotations"), "davis2017-unsup": (2019, "Annotations_unsupervised")}
NAMES = ["00000", "00005", "00010", "00015"]


def pictures(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (60, 40)).save(folder / f"{name}.jpg")


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


def on_test_dev(root, task, sequences=("bear", "bus"), frames=4):
    """Writes DAVIS test-dev (frames and first masks) and predictions; returns label maps by archive entry."""
    year, annotations = TASKS[task]
    davis(root / "d", {name: [SQUARE + SECOND] for name in sequences}, year, "test-dev", annotations)
    labels = {}
    for shift, name in enumerate(sequences):
        pictures(root / "d/JPEGImages/480p" / name, [f"{t:05d}" for t in range(frames)])
        masks = [np.roll(SQUARE, shift + t, axis=1) + SECOND for t in range(frames)]
        save_masks(root / "p" / name, masks)
        labels |= {f"{name}/{t:05d}.png": mask for t, mask in enumerate(masks)}
    return labels


def contents(archive):
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        return {name: packed.read(name) for name in packed.namelist()}


def assert_masks(found, expected):
    """Checks that the archive holds the label maps as indexed PNG files in the palette of DAVIS."""
    assert sorted(found) == sorted(expected)
    for name, labels in expected.items():
        with Image.open(io.BytesIO(found[name])) as image:
            assert image.format == "PNG" and image.mode == "P" and image.size == labels.shape[::-1]
            assert image.getpalette()[: 3 * 3] == PALETTE[:3].ravel().tolist()
            np.testing.assert_array_equal(np.asarray(image), labels)


def refused(root, task, match, split="test-dev", archive="out.zip"):
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match=match) as caught:
        pack(task, root / "p", root / "d", split, root / archive)
    assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before  # no file is added or removed


# DAVIS ----------------------------------------------------------------------------------------------------------------


def test_davis_archive_has_every_frame_in_top_level_folders(tmp_path, task):
    labels = on_test_dev(tmp_path, task)
    save_masks(tmp_path / "p/bear", [SQUARE], ["00004"])  # not a frame of the dataset
    save_masks(tmp_path / "p/cat", [SQUARE])  # not a sequence of the split
    assert pack(task, tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "out.zip") == 8
    assert_masks(contents(tmp_path / "out.zip"), labels)
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.zip"] and not list(tmp_path.glob(".*"))


def test_archives_are_reproducible(tmp_path, task):
    on_test_dev(tmp_path, task)
    pack(task, tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "one.zip")
    with zipfile.ZipFile(tmp_path / "one.zip") as packed:  # no timestamps, even if both runs share one
        assert {entry.date_time for entry in packed.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    for path in (tmp_path / "p").rglob("*.png"):  # the same labels, encoded differently
        labels = np.asarray(Image.open(path))
        Image.fromarray(labels).save(path, compress_level=0)
    pack(task, tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_extracted_archive_scores_and_packs_identically(tmp_path):
    davis(tmp_path / "d", {"bear": [SQUARE + SECOND] * 4, "bus": [SQUARE] * 4})
    save_masks(tmp_path / "p/bear/masks", [SQUARE + SECOND, SQUARE, SQUARE, SECOND])
    save_masks(tmp_path / "p/bus/masks", [SQUARE] * 4)
    pack("davis2017-semi", tmp_path / "p", tmp_path / "d", "val", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        packed.extractall(tmp_path / "again")
    first, again = (evaluate("davis2017-semi", tmp_path / name, tmp_path / "d") for name in ("p", "again"))
    assert first.scores == again.scores and first.scores["J"]["mean"] == pytest.approx(2 / 3)
    pack("davis2017-semi", tmp_path / "again", tmp_path / "d", "val", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()


def test_existing_archive_is_replaced_only_on_success(tmp_path, task):
    labels = on_test_dev(tmp_path, task)
    archive = tmp_path / "out.zip"
    archive.write_text("earlier")
    (tmp_path / "p/bus/00002.png").rename(tmp_path / "kept.png")
    refused(tmp_path, task, "bus 00002")
    assert archive.read_text() == "earlier"
    (tmp_path / "kept.png").rename(tmp_path / "p/bus/00002.png")
    pack(task, tmp_path / "p", tmp_path / "d", "test-dev", archive)
    assert_masks(contents(archive), labels)


def test_split_with_one_sequence_is_an_error(tmp_path, task):
    on_test_dev(tmp_path, task, ("bear",))
    refused(tmp_path, task, "rejects archives with a single folder, and the test-dev split has only 'bear'")


def test_missing_frames_and_sequences_are_errors(tmp_path, task):
    on_test_dev(tmp_path, task, ("bear", "bus", "cat"))
    for name in ("bear/00000", "bear/00002", "bear/00003", *(f"bus/{t:05d}" for t in range(4))):
        (tmp_path / "p" / f"{name}.png").unlink()
    refused(tmp_path, task, "1 of 3 sequences are missing: bus; frames are missing: bear 00000, 00002-00003")


def test_masks_of_wrong_size_are_errors(tmp_path, task):
    on_test_dev(tmp_path, task)
    save_masks(tmp_path / "p/bear", [SQUARE[:20]] * 2, ["00001", "00002"])
    save_masks(tmp_path / "p/bus", [SQUARE.T], ["00000"])
    refused(tmp_path, task, "bear 00001-00002 is 60x20 where .* 60x40; bus 00000 is 40x60 where ")


def test_object_ids_above_20_and_void_are_errors(tmp_path, task):
    on_test_dev(tmp_path, task)
    save_masks(tmp_path / "p/bear", [SQUARE * 21, SQUARE * 255], ["00001", "00002"])
    refused(tmp_path, task, "bear 00001 contains object id 21; the largest valid id is 20.*; bear 00002 contains 255")


def test_unknown_object_ids_are_errors_in_semi_supervised_task(tmp_path, task):
    on_test_dev(tmp_path, task)
    save_masks(tmp_path / "p/bus", [SQUARE * 3] * 2, ["00002", "00003"])
    if task == "davis2017-semi":
        refused(tmp_path, task, "bus 00002-00003 contains object id 3; the largest given id is 2")
    else:
        assert pack(task, tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "out.zip") == 8


def test_unsupervised_archive_may_have_20_proposals(tmp_path):
    labels = on_test_dev(tmp_path, "davis2017-unsup")
    labels["bus/00003.png"] = rectangle(0, 9, 0, 9, number=20)
    save_masks(tmp_path / "p/bus", [labels["bus/00003.png"]], ["00003"])
    pack("davis2017-unsup", tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "out.zip")
    assert_masks(contents(tmp_path / "out.zip"), labels)


def test_unwritable_archive_is_an_error(tmp_path, task):
    on_test_dev(tmp_path, task)
    refused(tmp_path, task, "absent/out.zip", archive="absent/out.zip")


@pytest.mark.parametrize("archive", ["out", "out.tar", "out.zip.partial"])
def test_archive_name_must_end_in_zip(tmp_path, archive):
    on_test_dev(tmp_path, "davis2017-semi")
    refused(tmp_path, "davis2017-semi", "needs the name of a .zip file", archive=archive)


@pytest.mark.parametrize("name", ["davis2016", "saliency", "youtube-vis", "nothing"])
def test_protocols_without_evaluation_server_are_errors(tmp_path, name):
    message = f"{name} has no evaluation server; --pack supports davis2017-semi, davis2017-unsup, youtube-vos"
    refused(tmp_path, name, message)


def test_real_first_frames_of_test_dev(real_data, tmp_path):
    source = real_data / "davis2017_first_frames"
    # Two of the three are wider than 854 pixels.
    labels = {f"{name}/00000.png": np.asarray(Image.open(source / "Annotations/480p" / name / "00000.png"))
              for name in ("tackle", "inflatable", "dolphins")}
    listing = tmp_path / "ImageSets/2017/test-dev.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("tackle\ninflatable\ndolphins\n")
    (tmp_path / "Annotations").symlink_to(source / "Annotations")
    for name in ("tackle", "inflatable", "dolphins"):
        images, masks = tmp_path / "JPEGImages/480p" / name, tmp_path / "p" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        shutil.copy(source / "JPEGImages/480p" / name / "00000.jpg", images)
        shutil.copy(source / "Annotations/480p" / name / "00000.png", masks)
    with pytest.raises(UserError, match="there is only one of tackle, inflatable, dolphins"):
        pack("davis2017-semi", tmp_path / "p", tmp_path, "test-dev", tmp_path / "out.zip")
    for path in [*tmp_path.glob("JPEGImages/480p/*/00000.jpg"), *tmp_path.glob("p/*/00000.png")]:
        shutil.copy(path, path.with_stem("00001"))
    pack("davis2017-semi", tmp_path / "p", tmp_path, "test-dev", tmp_path / "out.zip")
    assert_masks(contents(tmp_path / "out.zip"), labels | {
        name.replace("00000", "00001"): mask for name, mask in labels.items()})
    assert {mask.shape[1] for mask in labels.values()} == {1301, 910, 854}


# YouTube-VOS ----------------------------------------------------------------------------------------------------------


def valid(root):
    """Writes the valid split, where object 2 of b appears in frame 3, and predictions; returns labels by entry."""
    folder = root / "d/valid"
    objects = {"1": {"category": "dog", "frames": NAMES[:3]}, "2": {"category": "yak", "frames": NAMES[2:]}}
    meta = {"videos": {"b": {"objects": objects}, "a": {"objects": {"1": objects["1"]}}}}
    save_masks(folder / "Annotations/a", [SQUARE], NAMES[:1])
    save_masks(folder / "Annotations/b", [SQUARE], NAMES[:1])
    # Given masks are packed unchanged, so this one is encoded differently from ours.
    Image.open(folder / "Annotations/b/00000.png").save(folder / "Annotations/b/00000.png", compress_level=0)
    save_masks(folder / "Annotations/b", [SECOND], NAMES[2:3])
    (folder / "meta.json").write_text(json.dumps(meta))
    for name in "ab":
        pictures(folder / "JPEGImages" / name, NAMES)
        # All frames of the 30-fps input are predicted; the first prediction is wrong.
        save_masks(root / "p" / name, [0 * SQUARE] + [SQUARE] * 15, [f"{t:05d}" for t in range(16)])
    save_masks(root / "p/b", [SQUARE + SECOND] * 2, NAMES[2:])
    labels = {f"Annotations/a/{name}.png": SQUARE for name in NAMES[:3]}
    return labels | {f"Annotations/b/{name}.png": SQUARE + SECOND * (t > 1) for t, name in enumerate(NAMES)}


def test_youtube_vos_archive_has_listed_frames_under_annotations(tmp_path):
    labels = valid(tmp_path)
    assert pack("youtube-vos", tmp_path / "p", tmp_path / "d", "valid", tmp_path / "out.zip") == 7
    found = contents(tmp_path / "out.zip")
    assert_masks(found, labels)
    for name in "ab":
        given = tmp_path / "d/valid/Annotations" / name / "00000.png"
        assert found[f"Annotations/{name}/00000.png"] == given.read_bytes()


def test_youtube_vos_first_frame_needs_no_prediction(tmp_path):
    labels = valid(tmp_path)
    for name in "ab":
        (tmp_path / "p" / name / "00000.png").unlink()
    pack("youtube-vos", tmp_path / "p", tmp_path / "d", "valid", tmp_path / "out.zip")
    assert_masks(contents(tmp_path / "out.zip"), labels)


def test_youtube_vos_predictions_may_be_under_annotations(tmp_path):
    labels = valid(tmp_path)
    (tmp_path / "p").rename(tmp_path / "Annotations")
    pack("youtube-vos", tmp_path, tmp_path / "d", "valid", tmp_path / "out.zip")
    assert_masks(contents(tmp_path / "out.zip"), labels)


def test_youtube_vos_may_have_a_single_video(tmp_path):
    valid(tmp_path)
    meta = tmp_path / "d/valid/meta.json"
    meta.write_text(json.dumps({"videos": {"a": json.loads(meta.read_text())["videos"]["a"]}}))
    assert pack("youtube-vos", tmp_path / "p", tmp_path / "d", "valid", tmp_path / "out.zip") == 3


def test_youtube_vos_missing_frames_and_unknown_ids_are_errors(tmp_path):
    valid(tmp_path)
    (tmp_path / "p/a/00005.png").rename(tmp_path / "kept.png")
    refused(tmp_path, "youtube-vos", r"frames are missing: a 00005\.", "valid")
    (tmp_path / "kept.png").rename(tmp_path / "p/a/00005.png")
    save_masks(tmp_path / "p/a", [SQUARE + SECOND], ["00010"])
    save_masks(tmp_path / "p/b", [SQUARE.T], ["00005"])
    message = "a 00010 contains object id 2; the largest given id is 1; b 00005 is 40x60"
    refused(tmp_path, "youtube-vos", message, "valid")
    (tmp_path / "d/valid/Annotations/a/00000.png").unlink()
    refused(tmp_path, "youtube-vos", "First-frame masks are missing in .*: a", "valid")
