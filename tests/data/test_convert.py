"""Converted datasets equal their source archives."""

import shutil

import cv2
import numpy as np
import pytest

from tests.helpers import archives

pytest.importorskip("tensorflow")

from uvos_jax.data.storage import tfds_builders as builders
from uvos_jax.data.storage.convert import DATASETS, convert
from uvos_jax.data.storage.store import open_store

ARCHIVES = tuple(name for name in DATASETS if name != "synthetic")


def converted(name, tmp_path, split, config=""):
    """Converts the small archive of a dataset; returns the store of a split and the folder of the archive."""
    source = tmp_path / "source"
    getattr(archives, name)(source)
    convert(f"{name}{config}", source, tmp_path / "data")
    return open_store(tmp_path / "data", f"{name}{config}", split), source


def labels(store, v):
    return [store.labels(v, t) for t in range(store.videos[v].length)]


@pytest.mark.parametrize("name", ARCHIVES)
def test_metadata_table_matches_records(name, tmp_path):
    counts = getattr(archives, name)(tmp_path / "source")
    for row in convert(name, tmp_path / "source", tmp_path / "data"):
        assert {split: frames for split, (_, frames, _) in row.splits.items()} == counts
        for split in counts:
            store = open_store(tmp_path / "data", row.name, split)
            starts = np.cumsum([0, *(video.length for video in store.videos)])
            assert [video.start for video in store.videos] == starts[:-1].tolist() and starts[-1] == counts[split]
            for v, video in enumerate(store.videos):
                for t, found in enumerate(labels(store, v)):
                    assert found.shape == video.size == store.image(v, t).shape[:2]
                    assert tuple(set(np.unique(found).tolist()) - {0, 255}) == tuple(set(video.objects[t]))
                    assert (t in video.labeled) or (found == 255).all()


def test_davis2016_keeps_the_bytes_of_images_and_every_label(tmp_path):
    store, source = converted("davis2016", tmp_path, "train")
    assert [video.name for video in store.videos] == ["bear", "boat"]
    record = store._record(1, 2)
    assert record["image"].bytes_list.value[0] == (source / "JPEGImages/480p/boat/00002.jpg").read_bytes()
    assert record["frame"].bytes_list.value[0] == b"00002" and record["video"].bytes_list.value[0] == b"boat"
    assert record["index"].int64_list.value[0] == 2 and record["length"].int64_list.value[0] == 3
    assert store.videos[1].labeled == (0, 1, 2) and not store.has_flow and store.flow(1, 0) is None
    for t, found in enumerate(labels(store, 1)):
        np.testing.assert_array_equal(found, archives.box(1, shift=t))


def test_davis2017_configs_have_separate_ids_and_void(tmp_path):
    archives.davis2017(tmp_path / "source")
    rows = convert("davis2017", tmp_path / "source", tmp_path / "data")
    assert [row.name for row in rows] == ["davis2017/semi", "davis2017/unsupervised"]
    semi, unsupervised = (open_store(tmp_path / "data", row.name, "train") for row in rows)
    np.testing.assert_array_equal(semi.labels(0, 1), archives.box(1, 2, shift=1))
    np.testing.assert_array_equal(unsupervised.labels(0, 1), archives.box(3, 255, 1, shift=1))
    assert semi.videos[0].objects[0] == (1, 2) and unsupervised.videos[0].objects[0] == (1, 3)
    assert open_store(tmp_path / "data", "davis2017/semi", "test-dev").videos[0].labeled == (0,)
    assert open_store(tmp_path / "data", "davis2017/unsupervised", "test-dev").videos[0].labeled == ()


def test_davis2017_with_one_kind_of_annotations(tmp_path):
    archives.davis2017(tmp_path / "source")
    (tmp_path / "source/Annotations_unsupervised").rename(tmp_path / "elsewhere")
    assert [row.name for row in convert("davis2017", tmp_path / "source", tmp_path / "data")] == ["davis2017/semi"]


def test_youtube_vos_has_sparse_labels_and_late_objects(tmp_path):
    store, _ = converted("youtube_vos", tmp_path, "train", "/2018")
    video = store.videos[0]
    assert video.length == 11 and video.labeled == (0, 5, 10)
    assert [video.objects[t] for t in (0, 1, 5, 10)] == [(1,), (), (1, 2), (2,)]
    assert (store.labels(0, 3) == 255).all()
    valid = open_store(tmp_path / "data", "youtube_vos/2018", "valid").videos[0]
    assert valid.labeled == (0, 1) and valid.objects == ((1,), (2,), ())
    table = (tmp_path / "data/uvos_youtube_vos/2018/1.0.0/metadata.json").read_text()
    assert '"categories": {"1": "dog", "2": "ape"}' in table


def test_youtube_vis_draws_the_smaller_object_on_top_and_crowds_as_void(tmp_path):
    store, _ = converted("youtube_vis", tmp_path, "train")
    small = archives.box(1) > 0
    np.testing.assert_array_equal(store.labels(0, 0), np.where(small, 1, 2))
    assert not store.labels(0, 1).any()
    np.testing.assert_array_equal(store.labels(0, 2), archives.box(1, 0, 255))
    assert store.videos[0].name == "0065b171f9" and store.videos[0].labeled == (0, 1, 2)
    valid = open_store(tmp_path / "data", "youtube_vis", "valid")
    assert valid.videos[0].labeled == () and (valid.labels(0, 0) == 255).all()


def test_duts_foreground_is_gray_128_and_above(tmp_path):
    store, _ = converted("duts", tmp_path, "train")
    assert [video.length for video in store.videos] == [1, 1, 1] and store.videos[2].size == (24, 34)
    np.testing.assert_array_equal(store.labels(0, 0), archives.box(0, 1, 1))


def test_fbms_has_all_frames_and_both_kinds_of_ground_truth(tmp_path):
    store, _ = converted("fbms59", tmp_path, "train")
    cars, marple = store.videos
    assert cars.length == 4 and cars.labeled == marple.labeled == (0, 3)
    np.testing.assert_array_equal(store.labels(0, 3), archives.box(0, 1, shift=4))  # 20 / 255 is below 0.1 ..
    np.testing.assert_array_equal(store.labels(1, 3), archives.box(1, 1, shift=4))  # .. but above marple7's 0.05
    color = open_store(tmp_path / "data", "fbms59", "test")
    assert color.videos[0].labeled == (1,)
    np.testing.assert_array_equal(color.labels(0, 1), archives.box(1, 1))


def test_visal_keeps_sequences_with_similar_names_apart(tmp_path):
    store, _ = converted("visal", tmp_path, "test")
    assert [(video.name, video.length, video.labeled) for video in store.videos] == [
        ("boat", 3, (0, 2)), ("boat2", 3, (0, 2))]
    np.testing.assert_array_equal(store.labels(1, 2), archives.box(1, shift=3))


def test_segtrack_keeps_object_ids_with_smaller_objects_on_top(tmp_path):
    store, source = converted("segtrack_v2", tmp_path, "test")
    assert [video.objects[0] for video in store.videos] == [(1, 2), (1,)]
    np.testing.assert_array_equal(store.labels(0, 1), archives.box(2, 1, shift=1))
    expected = cv2.imread(str(source / "JPEGImages/drift/drift_0001.bmp"))[..., ::-1]
    np.testing.assert_array_equal(store.image(0, 1), expected)  # formats that are not stored become PNG (lossless)


def test_youtube_objects_skips_videos_without_masks(tmp_path):
    archives.youtube_objects(tmp_path / "source")
    folder = tmp_path / "source/JPEGImages/dog/0007"
    folder.mkdir(parents=True)
    shutil.copy(next((tmp_path / "source/JPEGImages").rglob("*.jpg")), folder / "00001.jpg")
    (row,) = convert("youtube_objects", tmp_path / "source", tmp_path / "data")
    assert row.notes == ("left out, no masks: dog/0007",)


def test_youtube_objects_stores_the_class(tmp_path):
    store, _ = converted("youtube_objects", tmp_path, "test")
    assert [(video.name, video.labeled) for video in store.videos] == [("cat/0003", (1,)), ("train/0001", (1,))]
    assert '"categories": {"1": "train"}' in (tmp_path / "data/uvos_youtube_objects/1.0.0/metadata.json").read_text()


def test_custom_folder_keeps_object_ids_across_frames(tmp_path):
    store, _ = converted("folder", tmp_path, "train", "/mine")
    assert store.videos[0].labeled == (1, 2)  # frame2 and frame10, in natural order
    np.testing.assert_array_equal(store.labels(0, 1), archives.box(2, 1))
    np.testing.assert_array_equal(store.labels(0, 2), archives.box(2))  # gray {0, 2} alone might be any one object


@pytest.mark.parametrize(("write", "one", "two", "expected"), [
    (archives.gray, (255,), (255, 255), ((1,), (1, 1))),  # black and white
    (archives.gray, (100,), (100, 100), ((1,), (1, 1))),
    (archives.gray, (1, 255), (255,), ((1, 255), (255,))),  # object ids in one frame, so 255 is void in the other
    (archives.gray, (2,), (3, 2), ((2,), (3, 2))),
    (archives.mask, (255,), (255, 255), ((1,), (1, 1))),
    (archives.mask, (1, 255), (255,), ((1, 255), (255,))),
])
def test_mask_convention_is_the_same_in_every_frame_of_a_video(write, one, two, expected, tmp_path):
    archives.folder(tmp_path / "source")
    for name, numbers in (("frame2", one), ("frame10", two)):
        write(tmp_path / f"source/Annotations/one/{name}.png", archives.box(*numbers))
    row, = convert("folder", tmp_path / "source", tmp_path / "data")
    assert any("255 was read as object 1" in note and "one" in note for note in row.notes) == (
        write is archives.mask and one == (255,))
    store = open_store(tmp_path / "data", "folder", "train")
    for t, numbers in zip((1, 2), expected, strict=True):
        np.testing.assert_array_equal(store.labels(0, t), archives.box(*numbers))


def test_custom_folder_with_flow_and_lists(tmp_path):
    source = tmp_path / "source"
    archives.folder(source)
    flow = np.random.default_rng(0).normal(size=(2, *archives.SIZE, 2)).astype("<f4")
    for name in ("one", "two"):
        (source / "Flow" / name).mkdir(parents=True)
        height, width = archives.SIZE
        (source / f"Flow/{name}/frame1.flo").write_bytes(b"PIEH" + np.array([width, height], "<i4").tobytes()
                                                         + flow[0].tobytes())
        np.save(source / f"Flow/{name}/frame2.npy", flow[1])
    archives.lines(source / "ImageSets/train.txt", "two")
    archives.lines(source / "ImageSets/val.txt", "one")
    convert("folder", source, tmp_path / "data")
    store = open_store(tmp_path / "data", "folder", "val")
    assert store.has_flow and [video.name for video in store.videos] == ["one"]
    for t, expected in enumerate((flow[0], flow[1], flow[1])):
        np.testing.assert_array_equal(store.flow(0, t), expected.astype(np.float16))


def test_converted_synthetic_clips_equal_generated_clips(tmp_path, monkeypatch):
    from uvos_jax.data.synthetic.clip import make_clip

    monkeypatch.setattr(builders.UvosSynthetic, "CLIPS", {"train": (5, 2)})
    monkeypatch.setattr(builders.UvosSynthetic, "LENGTH", 2)
    monkeypatch.setattr(builders.UvosSynthetic, "SIZE", (48, 64))
    convert("synthetic", None, tmp_path)
    store = open_store(tmp_path, "synthetic", "train")
    clip = make_clip(6, 2, (48, 64))
    np.testing.assert_array_equal(store.image(1, 1), clip.frames[1])
    np.testing.assert_array_equal(store.labels(1, 1), clip.labels[1])
    np.testing.assert_allclose(store.flow(1, 1), clip.flow[1], rtol=2**-11, atol=1e-6)  # half of float16's last digit


def test_dataset_larger_than_memory_keeps_its_order(tmp_path, monkeypatch):
    from tensorflow_datasets.core import shuffle

    archives.davis2016(tmp_path / "source")
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
    used = set()
    number = shuffle.get_bucket_number
    monkeypatch.setattr(shuffle, "get_bucket_number", lambda **given: used.add(number(**given)) or number(**given))
    convert("davis2016", tmp_path / "source", tmp_path / "data")
    assert len(used) == 6  # one bucket per frame of train
    store = open_store(tmp_path / "data", "davis2016", "train")
    for v, name in enumerate(("bear", "boat")):
        for t in range(3):
            expected = (tmp_path / f"source/JPEGImages/480p/{name}/{t:05d}.jpg").read_bytes()
            assert store._record(v, t)["image"].bytes_list.value[0] == expected


def test_examples_contain_object_categories(tmp_path):
    from uvos_jax.data.examples import pipeline

    converted("youtube_vis", tmp_path, "train")  # object 1 is a dog, 2 a person
    config = {"mixture": [{"name": "youtube_vis"}], "recipe": {"name": "neighbor"}, "size": (24, 32), "batch_size": 3,
              "objects": 4, "categories": ["cat", "person", "dog"], "seed": 0}
    for paste in (0.0, 1.0):
        clips, seen = pipeline.from_config(config | {"paste": paste}, tmp_path / "data"), set()
        for engine in ("threads", "tensorflow"):
            batches = pipeline.batches(clips, engine=engine)
            for step, batch in zip(range(4), batches, strict=False):
                np.testing.assert_array_equal(batch["categories"], clips.batch(step)["categories"])
                assert batch["categories"].shape == (3, 4) and batch["categories"].dtype == np.uint8
                for labels, kinds in zip(batch["labels"], batch["categories"], strict=True):
                    there = set(np.unique(labels).tolist()) - {0, 255}
                    assert {k + 1 for k in np.flatnonzero(kinds)} >= there and set(kinds) <= {0, 2, 3}
                    # The dog is the small box; the person fills the first frame behind it.
                    areas = np.bincount(labels.ravel(), minlength=5)[1:5]
                    if not paste and len(there) == 2:
                        assert kinds[areas.argmax()] == 2 and sorted(kinds) == [0, 0, 2, 3]
                    seen |= there
            batches.close()
        assert max(seen) >= (3 if paste else 2)


@pytest.mark.parametrize(("change", "message"), [
    ({"categories": ["dog"]}, "has the category 'person', missing from the configuration's categories"),
    ({"mixture": [{"name": "synthetic", "count": 2, "length": 2, "size": (32, 48)}]}, "has no categories for"),
    ({"objects": "foreground"}, "set objects to a number"),
    ({"categories": ["dog", "dog"]}, "different names"),
])
def test_missing_or_invalid_categories_are_an_error(tmp_path, change, message):
    from uvos_jax.data.examples import pipeline
    from uvos_jax.errors import UserError

    converted("youtube_vis", tmp_path, "train")
    config = {"mixture": [{"name": "youtube_vis"}], "recipe": {"name": "neighbor"}, "size": (24, 32), "batch_size": 2,
              "objects": 4, "categories": ["person", "dog"], "seed": 0}
    with pytest.raises(UserError, match=message):
        pipeline.from_config(config | change, tmp_path / "data")
