"""``uvos segment --first-mask``: benchmark datasets end to end, and rejected input."""

import json
import os
import re

import cv2
import numpy as np
import pytest

from tests.helpers.command_line import uvos
from tests.helpers.prompted_model import BRIGHTNESS_ROW, ROW, SIZE, squares
from tests.helpers.recurrent_model import save_frames
from uvos_jax import models
from uvos_jax.video import read_mask, write_mask

MODEL = ["--model", "color_tracker", "--weights", "random", "--quiet", "--no-overlay", "--chunk", "2"]


@pytest.fixture(autouse=True)
def _chdir_to_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _registered_models(monkeypatch):
    monkeypatch.setitem(models.SYSTEMS, "color_tracker", ROW)
    monkeypatch.setitem(models.SYSTEMS, "brightness", BRIGHTNESS_ROW)


def _write(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, labels)


def _videos(tmp_path, frames="JPEGImages", masks="Annotations", names=("one", "two"), only=()):
    """Writes frame and mask folders in the layout of the benchmarks; ``only`` limits the frames with masks."""
    for seed, name in enumerate(names):
        images, truth = squares(6, objects=2 + seed, seed=seed)
        save_frames(tmp_path / frames / name, images)
        for t in only or range(6):
            _write(tmp_path / masks / name / f"{t:05d}.png", truth[t])


def test_davis_folders_to_scores(tmp_path):
    _videos(tmp_path, "DAVIS/JPEGImages/480p", "DAVIS/Annotations/480p")
    (tmp_path / "DAVIS/ImageSets/2017").mkdir(parents=True)
    (tmp_path / "DAVIS/ImageSets/2017/val.txt").write_text("one\ntwo\n")
    code, _, err = uvos("segment", "DAVIS/JPEGImages/480p", *MODEL, "--first-mask", "DAVIS/Annotations/480p",
                        "--output", "results")
    assert code == 0, err
    for protocol, year in (("davis2017-semi", 2017), ("davis2016", 2016)):
        if year == 2016:
            os.rename("DAVIS/ImageSets/2017", "DAVIS/ImageSets/2016")
        code, _, err = uvos("evaluate", protocol, "--predictions", "results", "--dataset", "DAVIS", "--workers", "1",
                            "--output", protocol)
        assert code == 0, err
        scores = json.loads((tmp_path / protocol / "scores.json").read_text())
        assert scores["J"]["mean"] > 0.95 and len(scores["sequences"]) == 2
    runs = [json.loads((tmp_path / f"results/{name}/run.json").read_text()) for name in ("one", "two")]
    assert [[known["id"] for known in run["objects"]] for run in runs] == [[1, 2], [1, 2, 3]]


def test_youtube_vos_folders_to_archive(tmp_path):
    _videos(tmp_path, "valid/JPEGImages", "valid/Annotations", only=(0,))
    images, truth = squares(6, objects=4, seed=0)
    save_frames(tmp_path / "valid/JPEGImages/one", images)
    _write(tmp_path / "valid/Annotations/one/00003.png", np.where(truth[3] > 2, truth[3], 0))  # two later objects
    videos = {name: {"objects": {str(i): {"category": "thing", "frames": ["00000"]} for i in range(1, 5)}}
              for name in ("one", "two")}
    for name in videos:
        videos[name]["objects"]["1"]["frames"] = [f"{t:05d}" for t in range(6)]
    (tmp_path / "valid/meta.json").write_text(json.dumps({"videos": videos}))
    code, _, err = uvos("segment", "valid/JPEGImages", *MODEL, "--first-mask", "valid/Annotations", "--output",
                        "results")
    assert code == 0, err
    assert set(np.unique(read_mask("results/one/masks/00002.png"))) == {0, 1, 2}
    last = read_mask("results/one/masks/00005.png")
    assert (last == truth[5]).mean() > 0.99
    code, _, err = uvos("evaluate", "youtube-vos", "--predictions", "results", "--dataset", ".", "--split", "valid",
                        "--pack", "results.zip", "--workers", "1")
    assert code == 0, err
    assert (tmp_path / "results.zip").stat().st_size > 1000


def test_first_mask_auto_uses_the_first_model(tmp_path):
    frames = np.concatenate([np.full((2, *SIZE, 3), 40, np.uint8), squares(4)[0]])
    save_frames(tmp_path / "clip", frames)
    code, _, err = uvos("segment", "clip", *MODEL, "--first-mask", "auto", "--first-model", "brightness",
                        "--first-weights", "random", "--output", "out")
    assert code == 0, err
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["objects"] == [{"id": 1, "frame": "00002"}] and run["prompts"]["first_model"] == "brightness"
    assert not read_mask("out/masks/00001.png").any() and read_mask("out/masks/00005.png").any()


def _rgb(path):
    cv2.imwrite(path, np.full((*SIZE, 3), 9, np.uint8))
    return path


def _mask(path, labels):
    write_mask(path, np.asarray(labels, np.uint8))
    return path


@pytest.mark.parametrize(("options", "words"), [
    (lambda: ["--first-mask", "nowhere.png"], "mask 'nowhere.png' does not exist"),
    (lambda: ["--first-mask", _rgb("rgb.png")], "RGB image, not a label image"),
    (lambda: ["--first-mask", _mask("small.png", np.ones((8, 8)))], "'small.png' is 8x8 .*frames are 48x32"),
    (lambda: ["--first-mask", _mask("empty.png", np.zeros(SIZE))], "no object in it"),
    (lambda: ["--first-mask", _mask("void.png", np.eye(*SIZE) * 255)], "only background and void"),
    (lambda: ["--first-mask", _mask("many.png", np.resize(np.arange(90), SIZE))], "89 objects in it"),
    (lambda: [], "color_tracker needs a mask of the objects.*--first-mask"),
    (lambda: ["--first-mask", "auto", "--first-model", "color_tracker", "--first-weights", "random"],
     "is semi-supervised and cannot find the first mask"),
    (lambda: ["--first-mask", "auto", "--first-model", "adnet"],
     "No weights of adnet are packaged.*Give --first-weights"),
    (lambda: ["--first-mask", "a.png", "--first-model", "adnet"], "--first-model is valid only with --first-mask auto"),
    (lambda: ["--model", "brightness", "--first-mask", "a.png"],
     "brightness takes no first mask. Leave out --first-mask"),
])
def test_invalid_options_print_one_line_and_write_nothing(tmp_path, options, words):
    save_frames(tmp_path / "clip", squares(2)[0])
    options = options()
    before = sorted(os.listdir())
    code, out, err = uvos("segment", "clip", *MODEL, "--output", "out/deep", *options)
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert re.search(words, err), err
    assert sorted(os.listdir()) == before


def test_several_videos_need_a_mask_folder_each(tmp_path):
    _videos(tmp_path, only=(0,))
    _write(tmp_path / "part/one/00000.png", squares(1)[1][0])
    for first_mask, words in (("Annotations/one/00000.png", "belong to one video, but there are 2 videos"),
                              ("Annotations/one", "belong to one video, but there are 2 videos"),
                              ("part", "No masks in 'part' for 1 of 2 videos: two.")):
        code, _, err = uvos("segment", "JPEGImages", *MODEL, "--first-mask", first_mask, "--output", "out")
        assert code == 2 and words in err and not (tmp_path / "out").exists()
    _mask(tmp_path / "part/one/00000.png", np.ones(SIZE))
    (tmp_path / "part/two").mkdir()
    _mask(tmp_path / "part/two/00000.png", np.ones((8, 8)))
    code, _, err = uvos("segment", "JPEGImages", *MODEL, "--first-mask", "part", "--output", "out")
    assert code == 2 and "two: The mask" in err and "is 8x8" in err and not (tmp_path / "out").exists()
