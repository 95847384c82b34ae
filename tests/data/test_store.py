"""Stores: in-memory clips, and random access to converted datasets."""

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from uvos_jax.data.storage.store import MemoryStore, decode_image, open_store, shrink
from uvos_jax.errors import UserError
from uvos_jax.labels import VOID


def _clip(name, length, size, seed, flow=True):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (length, 6, 8, 3)).astype(np.uint8)
    frames = np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_CUBIC) for frame in coarse])
    labels = np.zeros((length, *size), np.uint8)
    for t in range(length):
        labels[t, 3 + t:13 + t, 5:15] = 1
        labels[t, 20:25, 8:20 + t] = 7
    labels[length // 2, :2] = VOID
    return name, frames, labels, rng.normal(0, 5, (*labels.shape, 2)).astype(np.float32) if flow else None


CLIPS = [_clip("swan", 5, (37, 51), 0), _clip("two words", 3, (48, 40), 1)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The clips as a converted dataset; frame 1 of each has no ground truth."""
    pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        "video": tfds.features.Text(), "frame": tfds.features.Text(), "index": np.int32, "length": np.int32,
        "labeled": np.bool_, "flow": tfds.features.Tensor(shape=(None, None, 2), dtype=np.float32, encoding="zlib"),
    }

    class UvosMadeUp(tfds.core.GeneratorBasedBuilder):
        """Two small clips."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, metadata=tfds.core.MetadataDict(table),
                                         features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            number = 0
            for name, frames, labels, flow in CLIPS:
                for t in range(len(frames)):
                    truth = np.full_like(labels[t], VOID) if t == 1 else labels[t]
                    yield number, {"image": frames[t], "labels": truth[..., None], "flow": flow[t], "video": name,
                                   "frame": f"{t:05d}", "index": t, "length": len(frames), "labeled": t != 1}
                    number += 1

    rows, start = [], 0
    for name, frames, labels, _ in CLIPS:
        rows.append({"name": name, "start": start, "length": len(frames), "height": labels.shape[1],
                     "width": labels.shape[2], "objects": [[] if t == 1 else [1, 7] for t in range(len(frames))],
                     "labeled": [t for t in range(len(frames)) if t != 1]})
        start += len(frames)
    table = {"splits": {"train": rows}, "flow": True}
    folder = tmp_path_factory.mktemp("converted")
    UvosMadeUp(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_memory_store_finds_objects_and_labeled_frames():
    name, frames, labels, flow = _clip("clip", 4, (37, 51), 2)
    labels[2] = VOID
    store = MemoryStore("mine", [(name, frames, labels, flow), (name, frames, labels, None)])
    video = store.videos[0]
    assert (video.name, video.length, video.size) == ("clip", 4, (37, 51))
    assert video.objects == ((1, 7), (1, 7), (), (1, 7)) and video.labeled == (0, 1, 3)
    assert not store.has_flow and store.flow(1, 0) is None
    np.testing.assert_array_equal(store.flow(0, 1), flow[1])
    np.testing.assert_array_equal(store.image(0, 3), frames[3])
    with pytest.raises(ValueError, match="do not match"):
        MemoryStore("mine", [(name, frames, labels[:, :-1], None)])


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_shrink_averages_blocks(reduce):
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3)).astype(np.uint8)
    small = shrink(image, reduce)
    assert small.shape == (-(-21 // reduce), -(-30 // reduce), 3)
    for y, x in ((0, 0), (1, 2), (small.shape[0] - 2, small.shape[1] - 2)):
        block = image[y * reduce:(y + 1) * reduce, x * reduce:(x + 1) * reduce]
        assert np.abs(small[y, x] - block.mean((0, 1))).max() <= 0.51
    # The last block is partial and padded by repeating the edge.
    block = np.concatenate([image[21 - 21 % reduce:, :reduce], np.repeat(image[-1:, :reduce], -21 % reduce, 0)])
    assert np.abs(small[-1, 0] - block.mean((0, 1))).max() <= 0.51


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
def test_reduced_decoding_is_aligned(suffix, reduce):
    frame = _clip("", 1, (101, 75), 3)[1][0]
    data = cv2.imencode(suffix, frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    small = decode_image(data, reduce)
    assert small.shape == (-(-101 // reduce), -(-75 // reduce), 3)
    assert np.abs(small.astype(int) - shrink(frame, reduce)).mean() < 2  # a shift of one pixel would give more than 4
    with pytest.raises(UserError, match="Cannot decode"):
        decode_image(data[:40] if suffix == ".png" else b"", reduce)


def test_converted_frames_can_be_read_in_any_order(converted):
    store = open_store(converted, "made_up", "train")
    assert [(video.name, video.length, video.size, video.start) for video in store.videos] == [
        ("swan", 5, (37, 51), 0), ("two words", 3, (48, 40), 5)]
    assert store.videos[0].labeled == (0, 2, 3, 4) and store.videos[0].objects[:2] == ((1, 7), ())
    assert store.has_flow
    asked = [(v, t) for v in (0, 1) for t in range(store.videos[v].length)] * 8
    np.random.default_rng(0).shuffle(asked)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda at: (store.image(*at), store.labels(*at), store.flow(*at)), asked))
    for (v, t), (image, labels, flow) in zip(asked, read, strict=True):
        _, frames, truth, vectors = CLIPS[v]
        np.testing.assert_array_equal(image, frames[t])
        np.testing.assert_array_equal(labels, np.full_like(truth[t], VOID) if t == 1 else truth[t])
        np.testing.assert_array_equal(flow, vectors[t])
    assert store.image(0, 0, 2).shape == (19, 26, 3)
    with pytest.raises(IndexError):
        store.image(0, 5)  # would be the first frame of the next video


def test_open_store_can_be_pickled(converted):
    store = open_store(converted, "made_up", "train")
    image = store.image(1, 2)
    sent = pickle.loads(pickle.dumps(store))
    assert sent.videos == store.videos and sent.name == store.name
    np.testing.assert_array_equal(sent.image(1, 2), image)


def test_reading_does_not_need_tensorflow(converted):
    code = ("from importlib.machinery import PathFinder\n"
            "find = PathFinder.find_spec\n"
            "PathFinder.find_spec = lambda name, *rest: None if name == 'tensorflow' else find(name, *rest)\n"
            "from uvos_jax.data.storage.store import open_store\n"
            f"store = open_store({str(converted)!r}, 'made_up', 'train')\n"
            "print(store.image(1, 2).shape, store.labels(1, 2).max(), store.flow(1, 2).dtype)\n"
            "import tensorflow")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'tensorflow'"
    assert done.stdout.strip() == "(48, 40, 3) 7 float32"


def test_unknown_dataset_or_split_is_an_error(converted, tmp_path):
    with pytest.raises(UserError, match=r"no dataset 'mad_up'; it contains made_up\. .*Did you mean 'made_up'"):
        open_store(converted, "mad_up", "train")
    with pytest.raises(UserError, match="has no split 'trian'; valid splits: train. Did you mean 'train'"):
        open_store(converted, "made_up", "trian")
    with pytest.raises(UserError, match="has no configs, so 'semi' is unknown"):
        open_store(converted, "made_up/semi", "train")
    with pytest.raises(UserError, match="contains no converted dataset"):
        open_store(tmp_path / "nowhere", "davis2016", "train")


def test_versions_and_configs(tmp_path):
    def version(path, file_format="array_record", split="train"):
        path.mkdir(parents=True)
        (path / "dataset_info.json").write_text(json.dumps({"fileFormat": file_format}))
        (path / "metadata.json").write_text(json.dumps({"splits": {split: []}, "flow": False}))

    pytest.importorskip("array_record")
    for config in ("semi", "unsupervised"):
        version(tmp_path / "uvos_davis2017" / config / "1.0.0", split=config)
    with pytest.raises(UserError, match="several configs. Give one of davis2017/semi, davis2017/unsupervised"):
        open_store(tmp_path, "davis2017", "train")
    with pytest.raises(UserError, match="no config 'unsup'.*Did you mean 'unsupervised'"):
        open_store(tmp_path, "davis2017/unsup", "train")
    assert open_store(tmp_path, "davis2017/unsupervised", "unsupervised").videos == ()
    version(tmp_path / "uvos_a" / "9.0.0", split="old")
    version(tmp_path / "uvos_a" / "10.0.0", split="new")
    assert open_store(tmp_path, "a", "new").videos == ()
    (tmp_path / "uvos_b" / "incomplete.X_1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="is incomplete"):
        open_store(tmp_path, "b", "train")
    version(tmp_path / "uvos_c" / "1.0.0", file_format="tfrecord")
    with pytest.raises(UserError, match="tfrecord.*Convert c again"):
        open_store(tmp_path, "c", "train")


def test_datasets_converted_by_version_0_1_can_be_read(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "data")
    (table,) = folder.rglob("metadata.json")
    table.write_text(table.read_text().replace('"labeled"', '"labelled"'))
    assert open_store(folder, "made_up", "train").videos == open_store(converted, "made_up", "train").videos
