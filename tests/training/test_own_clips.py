"""``--config.data=folder:PATH``: training on your own clips."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from tests.helpers import tiny_system
from tests.helpers.command_line import uvos
from uvos_jax.data.storage import source_identity
from uvos_jax.models import SYSTEMS
from uvos_jax.training.config import load_config, own_folder

pytest.importorskip("tensorflow")

FILE = '''
import json

def get_config(arg=""):
    raise AssertionError("not asked for")

def fine_tune(dataset):
    return json.loads("""{settings}""") | {{"data": {{
        "mixture": [{{"name": dataset, "split": "train"}}], "recipe": {{"name": "still", "length": 1}},
        "geometry": {{"kind": "resize"}}, "size": [16, 24]}}}}
'''


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "tiny", tiny_system.ROW)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(FILE.format(settings=json.dumps(tiny_system.config(phases=[{"name": "own", "steps": 2}]))))
    return path


@pytest.fixture
def clips(tmp_path):
    """A folder with one clip of four frames, two of them with a mask."""
    frames, masks = tmp_path / "clips/JPEGImages/mine", tmp_path / "clips/Annotations/mine"
    frames.mkdir(parents=True)
    masks.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for t in range(4):
        cv2.imwrite(str(frames / f"{t:05d}.jpg"), rng.integers(0, 256, (32, 48, 3), np.uint8))
    for t in (0, 2):
        mask = np.zeros((32, 48), np.uint8)
        mask[8:20, 10:30] = 255
        cv2.imwrite(str(masks / f"{t:05d}.png"), mask)
    return tmp_path / "clips"


def test_one_command_converts_and_trains_and_reuses_the_clips(file, clips, tmp_path):
    run = tmp_path / "run"
    command = ("train", "--config", file, "--workdir", run, f"--config.data=folder:{clips}")
    code, out, err = uvos(*command)
    assert code == 0, err
    assert f"{clips}, train: 1 video, 4 frames, 2 with masks" in out
    assert "folder/own" not in out + err and "clips, checking" in err and "clips, converting" in err
    assert (run / "last").exists() and (run / "data/uvos_folder/own").is_dir()
    # A second call reuses the converted clips. Files that the conversion does not read may change.
    (clips / "JPEGImages/.DS_Store").touch()
    (clips / "notes.txt").touch()
    code, out, err = uvos(*command)
    assert code == 0 and "with masks" not in out, err


@pytest.fixture
def converted(file, clips, tmp_path):
    """Creates a run whose clips are converted; returns its command without ``--config.data``."""
    data = tmp_path / "run/data"
    (data / "uvos_folder/own").mkdir(parents=True)
    source_identity.write_identity(data, source_identity.identify(clips))
    return "train", "--config", file, "--workdir", tmp_path / "run"


def _change(clips, how):
    path = clips / "Annotations/mine/00000.png"
    if how == "removed mask":
        path.unlink()
    elif how == "added frame":
        (clips / "JPEGImages/mine/00004.jpg").write_bytes((clips / "JPEGImages/mine/00003.jpg").read_bytes())
    elif how == "edited mask":  # of the same size
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    else:
        (clips / "ImageSets").mkdir()
        (clips / "ImageSets/train.txt").write_text("mine\n")


@pytest.mark.parametrize("how", ["removed mask", "added frame", "edited mask", "added list"])
def test_changed_clips_are_refused(converted, clips, tmp_path, how):
    _change(clips, how)
    code, out, err = uvos(*converted, f"--config.data=folder:{clips}")
    assert (code, out) == (2, "") and err == (
        f"Error: The files in '{clips}' have changed since they were converted into '{tmp_path / 'run/data'}'. Choose"
        f" another --workdir, or delete '{tmp_path / 'run/data'}'.\n")


def test_another_folder_of_clips_is_refused(converted, clips, tmp_path):
    other = tmp_path / "other"
    for folder in (other, tmp_path / "absent"):
        code, out, err = uvos(*converted, f"--config.data=folder:{folder}")
        assert (code, out) == (2, "") and err.count("\n") == 1, err
        assert f"converted from '{clips}', not from '{folder}'. Choose another --workdir, or delete" in err
        shutil.copytree(clips, other, dirs_exist_ok=True)
    (tmp_path / "run/data/source.json").write_text("{")
    code, _, err = uvos(*converted, f"--config.data=folder:{clips}")
    assert code == 2 and "source.json' is damaged. Choose another --workdir, or delete" in err


def test_converted_clips_are_reused_without_their_folder_or_its_identity(converted, clips, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr("uvos_jax.training.loop.train", lambda config, workdir, data_dir, **_: runs.append(data_dir))
    monkeypatch.chdir(tmp_path)
    assert uvos(*converted, "--config.data=folder:clips")[0] == 0  # a relative path
    clips.rename(tmp_path / "moved")
    assert uvos(*converted, f"--config.data=folder:{clips}")[0] == 0
    (tmp_path / "run/data/source.json").unlink()  # converted by an earlier version
    assert uvos(*converted, f"--config.data=folder:{tmp_path / 'moved'}")[0] == 0
    assert runs == [tmp_path / "run/data"] * 3


def test_overrides_apply_to_fine_tuning(file):
    config = load_config(str(file), ["data=folder:here", "phases.0.steps=7", "batch_size=3"])
    assert config["data"]["mixture"] == [{"name": "folder/own", "split": "train"}]
    assert (config["phases"][0]["steps"], config["batch_size"]) == (7, 3)
    assert own_folder(["seed=1"]) is None and own_folder(["data=folder:a", "seed=1", "data=folder:b c"]) == "b c"


@pytest.mark.parametrize(("config", "source", "more", "message"), [
    ("{file}", "{tmp}/none", [], "There is no folder"),
    ("{file}", "{tmp}", [], "has no JPEGImages"),
    ("{file}:tiny", "{clips}", [], "The preset 'tiny' of 'recipe.py' cannot train on a folder of clips"),
    ("{other}", "{clips}", [], "'other.py' cannot train on a folder of clips"),
    ("{file}", "{clips}", ["--data-dir", "{tmp}"], "Leave out --data-dir"),
    ("{file}", "{clips}", ["--config.schedule.warmup=9"],
     "Phase 'own': schedule.warmup=9 does not end within 2 steps"),
])
def test_errors_are_one_line_and_write_nothing(file, clips, tmp_path, config, source, more, message):
    other = tmp_path / "other.py"
    other.write_text("def get_config(arg=''):\n    return {}\n")
    names = {"file": file, "clips": clips, "tmp": tmp_path, "other": other}
    code, out, err = uvos("train", "--config", config.format(**names), "--workdir", tmp_path / "run",
                          f"--config.data=folder:{source.format(**names)}", *(text.format(**names) for text in more))
    assert code == 2 and message in err and err.startswith("Error: ") and err.count("\n") == 1, err
    assert out == "" and not (tmp_path / "run").exists()
