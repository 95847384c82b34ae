"""``uvos segment --prune``: pruning by detections of a file or a model, and rejected input."""

import json
import os

import numpy as np
import pytest

from tests.helpers.command_line import uvos
from tests.helpers.prompted_model import BRIGHTNESS_ROW, ROW, SIZE
from tests.helpers.recurrent_model import save_frames
from uvos_jax import models
from uvos_jax.video import read_mask

MODEL = ["--model", "brightness", "--weights", "random", "--no-overlay", "--chunk", "2"]


@pytest.fixture(autouse=True)
def _chdir_to_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _registered_models(monkeypatch):
    monkeypatch.setitem(models.SYSTEMS, "color_tracker", ROW)
    monkeypatch.setitem(models.SYSTEMS, "brightness", BRIGHTNESS_ROW)


def _clip(folder, length=6):
    """Writes a clip of a large moving and a small static white square; returns COCO detections of both."""
    frames = np.full((length, *SIZE, 3), 20, np.uint8)
    entries = []
    for t in range(length):
        frames[t, 2:16, 3 * t:3 * t + 14] = frames[t, 20:26, 30:38] = 255
        entries += [{"image_id": t, "bbox": [3 * t, 2, 14, 14], "score": 0.9, "category_id": 1},
                    {"image_id": t, "bbox": [30, 20, 8, 6], "score": 0.9, "category_id": 1}]
    save_frames(folder, frames)
    return entries


def _save(path, content):
    with open(path, "w") as file:
        json.dump(content, file)
    return str(path)


@pytest.mark.slow
def test_small_static_instance_is_pruned(tmp_path):
    entries = _clip(tmp_path / "clip")
    code, _, err = uvos("segment", "clip", *MODEL, "--output", "whole", "--json")
    assert code == 0, err
    _save("coco.json", [*entries, {"image_id": 40, "bbox": [0, 0, 14, 14]}])
    code, out, err = uvos("segment", "clip", *MODEL, "--output", "out", "--prune", "coco.json")
    assert code == 0, err
    assert "'coco.json' has detections of 1 frame that were not processed: 40." in " ".join((out + err).split())
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["pruned"] == {"instances": 6, "frames": 6} and run["prompts"]["prune"] == "coco.json"
    for t in range(6):
        whole, pruned = (read_mask(f"{folder}/masks/{t:05d}.png") for folder in ("whole", "out"))
        assert whole[20:26, 30:38].all() and not pruned[20:, 30:38].any()
        np.testing.assert_array_equal(whole[:18], pruned[:18])
    # objects.json of a run is accepted as well; its single instance per frame is kept.
    code, _, err = uvos("segment", "clip", *MODEL, "--output", "again", "--prune", "whole/objects.json")
    assert code == 0, err
    assert json.loads((tmp_path / "again/run.json").read_text())["pruned"] == {"instances": 0, "frames": 0}


def test_several_videos_need_a_folder_of_detections(tmp_path):
    os.mkdir("found")
    for name in ("one", "two"):
        _save(f"found/{name}.json", _clip(tmp_path / f"clips/{name}"))
    code, _, err = uvos("segment", "clips", *MODEL, "--output", "out", "--prune", "found")
    assert code == 0, err
    for name in ("one", "two"):
        assert not read_mask(f"out/{name}/masks/00003.png")[20:, 30:38].any()
    code, _, err = uvos("segment", "clips", *MODEL, "--output", "new", "--prune", "found/one.json")
    assert code == 2 and "belong to one video, but there are 2 videos" in " ".join(err.split())
    os.remove("found/two.json")
    code, _, err = uvos("segment", "clips", *MODEL, "--output", "new", "--prune", "found")
    assert code == 2 and "No detections in 'found' for 1 of 2 videos: two" in " ".join(err.split())
    assert not os.path.exists("new")


@pytest.mark.parametrize(("options", "words"), [
    (lambda _: ["--prune", "nowhere.json"], "Cannot read the detections 'nowhere.json'"),
    (lambda _: ["--prune", _save("x.json", [{"image_id": 0, "bbox": [0, 0, -1, 2]}])], "has a negative side"),
    (lambda entries: ["--prune", _save("x.json", [e | {"image_id": 99} for e in entries])], "belongs to another video"),
    (lambda _: ["--prune", "x.json", "--prune-weights", "w.pth"], "--prune-weights is valid only with --prune dtnet"),
    (lambda _: ["--prune", "dtnet"], "No weights of dtnet are packaged. Give --prune-weights a checkpoint directory, or"
     " --prune a JSON file of detections."),
    (lambda _: ["--model", "color_tracker", "--first-mask", "auto", "--first-model", "brightness",
                "--first-weights", "random", "--prune", "x.json"], "Cannot prune with color_tracker"),
])
def test_invalid_options_print_one_line_and_write_nothing(tmp_path, options, words):
    options = options(_clip(tmp_path / "clip"))
    code, out, err = uvos("segment", "clip", *MODEL, "--quiet", "--output", "out/deep", *options)
    assert code == 2 and not out and words in err and len(err.splitlines()) == 1
    assert not os.path.exists("out")


def test_instances_from_dtnet(tmp_path, monkeypatch):
    """Another model stands in for D-Net; its labels are instance ids."""
    _clip(tmp_path / "clip")
    monkeypatch.setitem(models.SYSTEMS, "dtnet", BRIGHTNESS_ROW)
    code, _, err = uvos("segment", "clip", *MODEL, "--output", "out", "--prune", "dtnet", "--prune-weights", "random")
    assert code == 0, err
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["pruned"]["instances"] == 0 and run["prune"].startswith("dtnet ")
