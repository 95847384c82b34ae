import json
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from tests.helpers import recurrent_model as helper
from tests.helpers.paths import REPOSITORY
from tests.helpers.recurrent_model import noise, recurrent_segmenter, save_frames
from uvos_jax import UserError
from uvos_jax.inference.engine import shared
from uvos_jax.inference.jobs.batch import assign_folders, segment_batch
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.interrupts import Interrupted
from uvos_jax.video import OutputOptions, open_source, read_mask


@pytest.mark.parametrize(("sources", "names"), [
    (["a/cat.mp4", "b/dog.mov"], ["cat", "dog"]),
    (["a/cat.mp4", "b/cat.mp4", "b/dog.mp4"], ["a_cat", "b_cat", "dog"]),
    (["a/Cat.mp4", "b/cat.mp4"], ["a_Cat", "b_cat"]),  # equal names on case-insensitive file systems
    (["a/frames", "b.c/frames"], ["a_frames", "b.c_frames"]),  # folders
    (["shots/*.png", "a/cat.mp4"], ["shots", "cat"]),
    (["a/cat.mp4", "a/cat.mov", "a/dog.mp4"], ["cat.mp4", "cat.mov", "dog"]),  # same stem, as written by some cameras
    (["a/cat.mp4", "a/Cat.mov", "b/cat.mp4", "c/cat.mp4"], ["cat.mp4", "Cat.mov", "b_cat", "c_cat"]),
    (["rtsp://me:secret@house/door", "a/cat.mp4"], ["door", "cat"]),
    (["0", "1"], ["0", "1"]),
])
def test_each_video_gets_a_unique_output_folder(tmp_path, monkeypatch, sources, names):
    monkeypatch.chdir(tmp_path)
    for source in sources:
        if source.endswith("frames"):
            (tmp_path / source).mkdir(parents=True)
        elif source[-4:] in (".mp4", ".mov"):
            (tmp_path / source).parent.mkdir(exist_ok=True)
            (tmp_path / source).touch()
    items = assign_folders(sources, "out")
    assert [str(item.output) for item in items] == [os.path.join("out", name) for name in names]
    assert [(item.number, item.source) for item in items] == list(enumerate(sources, 1))


def test_unresolvable_name_clash_is_rejected(tmp_path):
    for path in ("x/a/cat.mp4", "y/a/cat.mov"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    with pytest.raises(UserError, match="cat.mp4.*cat.mov.*'a_cat'"):
        assign_folders([str(tmp_path / "x/a/cat.mp4"), str(tmp_path / "y/a/cat.mov")], "out")


def _items(tmp_path, count):
    sources = [str(save_frames(tmp_path / f"clip{i}", noise(4 + i, seed=i))) for i in range(count)]
    return assign_folders(sources, tmp_path / "out")


def _work(segmenter, item):
    return segment_to_folder(segmenter, open_source(item.source), item.output, outputs=OutputOptions(overlay=False))


def test_failed_video_does_not_stop_the_others(tmp_path):
    items = _items(tmp_path, 4)
    (tmp_path / "clip1/00002.png").write_bytes(b"broken")
    for path in (tmp_path / "clip3").iterdir():
        path.unlink()
    shared.cache_clear()
    segmenter, told = recurrent_segmenter(), []
    results = segment_batch(segmenter, items, _work, on_result=told.append)
    assert [result.run is not None for result in results] == [True, False, True, False] and told == results
    assert "00002" in results[1].error and "clip3" in results[3].error
    for i in (0, 2):
        labels = segmenter.segment(noise(4 + i, seed=i))
        masks = [read_mask(path) for path in sorted((items[i].output / "masks").iterdir())]
        np.testing.assert_array_equal(np.stack(masks), labels)
    assert segmenter.engine(helper.SIZE).step._cache_size() == 1  # compiled once per size


def test_interrupt_stops_the_batch(tmp_path):
    begun = []

    def work(segmenter, item):
        begun.append(item.number)
        if item.number == 2:
            raise Interrupted(2, "stopped")
        return {}

    with pytest.raises(Interrupted, match="1 of 4 videos are finished.*--resume") as caught:
        segment_batch(recurrent_segmenter(), _items(tmp_path, 4), work, devices=jax.local_devices()[:1])
    assert caught.value.code == 130 and begun == [1, 2]


def test_unexpected_exception_is_raised(tmp_path):
    def work(segmenter, item):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        segment_batch(recurrent_segmenter(), _items(tmp_path, 2), work)


def two_devices(folder):
    """Segments six videos on two devices, both of which get at least one; runs in a subprocess."""
    both = threading.Barrier(2, timeout=60)

    def work(segmenter, item):
        if item.number <= 2:
            both.wait()  # both devices run at the same time
        return _work(segmenter, item)

    assert jax.local_device_count() == 2
    items = assign_folders(sorted(map(str, folder.glob("clip*"))), folder / "out")
    results = segment_batch(recurrent_segmenter(), items, work)
    print(json.dumps([result.run["device_id"] for result in results]))


@pytest.mark.slow
def test_two_devices_give_the_masks_of_one(tmp_path):
    items = _items(tmp_path, 6)
    segment_batch(recurrent_segmenter(), items,
                 lambda segmenter, item: segment_to_folder(segmenter, open_source(item.source),
                                                           tmp_path / "one" / item.output.name))
    code = "import sys, pathlib, tests.inference.test_batch_job as t; t.two_devices(pathlib.Path(sys.argv[1]))"
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False,
                          cwd=REPOSITORY, env=os.environ | {"XLA_FLAGS": flags})
    assert done.returncode == 0, done.stderr
    devices = json.loads(done.stdout)
    assert sorted(devices[:2]) == [0, 1] and len(devices) == 6
    for item in items:
        masks = sorted((item.output / "masks").iterdir())
        assert len(masks) == 3 + item.number
        for path in masks:
            assert path.read_bytes() == (tmp_path / "one" / item.output.name / "masks" / path.name).read_bytes()
