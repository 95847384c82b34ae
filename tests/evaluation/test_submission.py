"""Archives for the servers: what is inside, byte for byte, and what is refused."""

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
    """DAVIS test-dev, with frames and first masks only, beside predictions; returns its name, and labels by entry."""
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
    """Compares the files of an archive with labels: indexed PNG, in the colors of DAVIS."""
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
    assert sorted(root.rglob("*")) == before  # nothing is left behind, and nothing lost


# DAVIS ----------------------------------------------------------------------------------------------------------------


def test_davis_has_folders_at_the_top_and_every_frame(tmp_path, task):
    labels = on_test_dev(tmp_path, task)
    save_masks(tmp_path / "p/bear", [SQUARE], ["00004"])  # there is no such frame
    save_masks(tmp_path / "p/cat", [SQUARE])  # nor such a sequence
    assert pack(task, tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "out.zip") == 8
    assert_masks(contents(tmp_path / "out.zip"), labels)
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.zip"] and not list(tmp_path.glob(".*"))


def test_the_same_masks_make_the_same_file(tmp_path, task):
    on_test_dev(tmp_path, task)
    pack(task, tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "one.zip")
    with zipfile.ZipFile(tmp_path / "one.zip") as packed:  # nothing of the clock, which may stand still between the two
        assert {entry.date_time for entry in packed.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    for path in (tmp_path / "p").rglob("*.png"):  # the same labels, stored otherwise
        labels = np.asarray(Image.open(path))
        Image.fromarray(labels).save(path, compress_level=0)
    pack(task, tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_what_was_packed_can_be_scored_and_packed_again(tmp_path):
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


def test_an_earlier_archive_is_replaced_or_kept_whole(tmp_path, task):
    labels = on_test_dev(tmp_path, task)
    archive = tmp_path / "out.zip"
    archive.write_text("earlier")
    (tmp_path / "p/bus/00002.png").rename(tmp_path / "kept.png")
    refused(tmp_path, task, "bus 00002")
    assert archive.read_text() == "earlier"
    (tmp_path / "kept.png").rename(tmp_path / "p/bus/00002.png")
    pack(task, tmp_path / "p", tmp_path / "d", "test-dev", archive)
    assert_masks(contents(archive), labels)


def test_a_split_of_one_sequence_is_refused(tmp_path, task):
    on_test_dev(tmp_path, task, ("bear",))
    refused(tmp_path, task, "rejects archives with a single folder, and the test-dev split has only 'bear'")


def test_missing_frames_and_sequences_are_refused(tmp_path, task):
    on_test_dev(tmp_path, task, ("bear", "bus", "cat"))
    for name in ("bear/00000", "bear/00002", "bear/00003", *(f"bus/{t:05d}" for t in range(4))):
        (tmp_path / "p" / f"{name}.png").unlink()
    refused(tmp_path, task, "1 of 3 sequences are missing: bus; frames are missing: bear 00000, 00002-00003")


def test_masks_of_another_size_are_refused(tmp_path, task):
    on_test_dev(tmp_path, task)
    save_masks(tmp_path / "p/bear", [SQUARE[:20]] * 2, ["00001", "00002"])
    save_masks(tmp_path / "p/bus", [SQUARE.T], ["00000"])
    refused(tmp_path, task, "bear 00001-00002 is 60x20 where .* 60x40; bus 00000 is 40x60 where ")


def test_numbers_above_20_and_void_are_refused(tmp_path, task):
    on_test_dev(tmp_path, task)
    save_masks(tmp_path / "p/bear", [SQUARE * 21, SQUARE * 255], ["00001", "00002"])
    refused(tmp_path, task, "bear 00001 contains object id 21; the largest valid id is 20.*; bear 00002 contains 255")


def test_objects_that_were_not_given_are_refused_where_they_are_given(tmp_path, task):
    on_test_dev(tmp_path, task)
    save_masks(tmp_path / "p/bus", [SQUARE * 3] * 2, ["00002", "00003"])
    if task == "davis2017-semi":
        refused(tmp_path, task, "bus 00002-00003 contains object id 3; the largest given id is 2")
    else:
        assert pack(task, tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "out.zip") == 8


def test_20_proposals_are_allowed(tmp_path):
    labels = on_test_dev(tmp_path, "davis2017-unsup")
    labels["bus/00003.png"] = rectangle(0, 9, 0, 9, number=20)
    save_masks(tmp_path / "p/bus", [labels["bus/00003.png"]], ["00003"])
    pack("davis2017-unsup", tmp_path / "p", tmp_path / "d", "test-dev", tmp_path / "out.zip")
    assert_masks(contents(tmp_path / "out.zip"), labels)


def test_an_archive_that_cannot_be_written(tmp_path, task):
    on_test_dev(tmp_path, task)
    refused(tmp_path, task, "absent/out.zip", archive="absent/out.zip")


@pytest.mark.parametrize("archive", ["out", "out.tar", "out.zip.partial"])
def test_an_archive_that_is_not_called_zip_is_refused(tmp_path, archive):
    on_test_dev(tmp_path, "davis2017-semi")
    refused(tmp_path, "davis2017-semi", "needs the name of a .zip file", archive=archive)


@pytest.mark.parametrize("name", ["davis2016", "saliency", "youtube-vis", "nothing"])
def test_protocols_without_a_server_are_refused(tmp_path, name):
    message = f"{name} has no evaluation server; --pack supports davis2017-semi, davis2017-unsup, youtube-vos"
    refused(tmp_path, name, message)


def test_real_first_frames_of_test_dev(real_data, tmp_path):
    source = real_data / "davis2017_first_frames"
    # Two of them are wider than the others.
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
    """The valid split: first masks of the objects, the second of which comes in the third frame; and predictions."""
    folder = root / "d/valid"
    objects = {"1": {"category": "dog", "frames": NAMES[:3]}, "2": {"category": "yak", "frames": NAMES[2:]}}
    meta = {"videos": {"b": {"objects": objects}, "a": {"objects": {"1": objects["1"]}}}}
    save_masks(folder / "Annotations/a", [SQUARE], NAMES[:1])
    save_masks(folder / "Annotations/b", [SQUARE], NAMES[:1])
    # Given masks are handed back as they came, so this one is stored in a way that is not ours.
    Image.open(folder / "Annotations/b/00000.png").save(folder / "Annotations/b/00000.png", compress_level=0)
    save_masks(folder / "Annotations/b", [SECOND], NAMES[2:3])
    (folder / "meta.json").write_text(json.dumps(meta))
    for name in "ab":
        pictures(folder / "JPEGImages" / name, NAMES)
        # All frames of the 30-fps input are predicted, the first one wrongly.
        save_masks(root / "p" / name, [0 * SQUARE] + [SQUARE] * 15, [f"{t:05d}" for t in range(16)])
    save_masks(root / "p/b", [SQUARE + SECOND] * 2, NAMES[2:])
    labels = {f"Annotations/a/{name}.png": SQUARE for name in NAMES[:3]}
    return labels | {f"Annotations/b/{name}.png": SQUARE + SECOND * (t > 1) for t, name in enumerate(NAMES)}


def test_youtube_vos_has_annotations_at_the_top_and_the_named_frames(tmp_path):
    labels = valid(tmp_path)
    assert pack("youtube-vos", tmp_path / "p", tmp_path / "d", "valid", tmp_path / "out.zip") == 7
    found = contents(tmp_path / "out.zip")
    assert_masks(found, labels)
    for name in "ab":
        given = tmp_path / "d/valid/Annotations" / name / "00000.png"
        assert found[f"Annotations/{name}/00000.png"] == given.read_bytes()


def test_youtube_vos_needs_no_prediction_of_the_first_frame(tmp_path):
    labels = valid(tmp_path)
    for name in "ab":
        (tmp_path / "p" / name / "00000.png").unlink()
    pack("youtube-vos", tmp_path / "p", tmp_path / "d", "valid", tmp_path / "out.zip")
    assert_masks(contents(tmp_path / "out.zip"), labels)


def test_youtube_vos_takes_masks_as_they_are_submitted(tmp_path):
    labels = valid(tmp_path)
    (tmp_path / "p").rename(tmp_path / "Annotations")
    pack("youtube-vos", tmp_path, tmp_path / "d", "valid", tmp_path / "out.zip")
    assert_masks(contents(tmp_path / "out.zip"), labels)


def test_youtube_vos_may_have_a_single_video(tmp_path):
    valid(tmp_path)
    meta = tmp_path / "d/valid/meta.json"
    meta.write_text(json.dumps({"videos": {"a": json.loads(meta.read_text())["videos"]["a"]}}))
    assert pack("youtube-vos", tmp_path / "p", tmp_path / "d", "valid", tmp_path / "out.zip") == 3


def test_youtube_vos_refuses_what_is_missing_or_was_not_given(tmp_path):
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
