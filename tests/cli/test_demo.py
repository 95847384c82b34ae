"""``uvos demo``: output files, scores, and protection of existing files."""

import json
import re
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.helpers.command_line import uvos
from tests.helpers.small_adnet import small_segmenter, write_clip
from uvos_jax import inference
from uvos_jax.cli import demo
from uvos_jax.data.synthetic.clip import make_clip
from uvos_jax.video import read_mask
from uvos_jax.weights import checkpoints, packaged


@pytest.fixture(scope="module")
def small_network(tmp_path_factory):
    """Returns a small network, compiled once for this module, and the folder with its packed weights."""
    folder, small = tmp_path_factory.mktemp("network"), small_segmenter()
    checkpoints.save(folder / "small", small.name, small.model, small.variables, "random")
    packaged.pack(folder / "small", folder / "default.safetensors", origin="nothing", license="none",
                  scores={"generated clips": {"J": 0.125, "F": 0.25}})
    return small, folder


@pytest.fixture(autouse=True)
def _a_small_demo(small_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "load", lambda: small_network[0])
    monkeypatch.setattr(packaged, "ASSETS", small_network[1])
    monkeypatch.setattr(demo, "LENGTH", 5)
    monkeypatch.setattr(demo, "SIZE", (54, 96))


@pytest.fixture
def folder(tmp_path):
    return write_clip(tmp_path / "own")


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _plain_jaccard(prediction, truth):
    scores = []
    for p, t in list(zip(prediction, truth, strict=True))[1:-1]:
        union = np.logical_or(p, t).sum()
        scores.append(np.logical_and(p, t).sum() / union if union else 1.0)
    return sum(scores) / len(scores)


@pytest.mark.slow
def test_demo_writes_clip_masks_and_correct_scores(folder, tmp_path):
    code, out, err = uvos("demo", folder)
    assert code == 0, err
    done = tmp_path / "uvos_output/demo"
    assert {p.name for p in (done / "generated").iterdir()} == {
        "frames", "truth", "masks", "overlay.mp4", "run.json", "scores.json", "demo.jpg"}
    assert {p.name for p in (done / "own").iterdir()} == {"masks", "overlay.mp4", "run.json"}
    assert len(list((done / "own/masks").iterdir())) == 3

    # The ground truth equals that of the clip; frames equal its frames up to JPEG compression.
    made = make_clip(demo.SEED, 5, (54, 96), objects=(1, 1))
    names = [f"{t:05d}" for t in range(5)]
    truth = np.stack([read_mask(done / f"generated/truth/{name}.png") for name in names])
    np.testing.assert_array_equal(truth, made.labels > 0)
    frame = cv2.imread(str(done / "generated/frames/00004.jpg"))[..., ::-1]
    assert np.abs(frame.astype(int) - made.frames[4]).mean() < 6

    # Scores equal those recomputed from the files.
    masks = np.stack([read_mask(done / f"generated/masks/{name}.png", numbered=True) for name in names])
    scores = json.loads((done / "generated/scores.json").read_text())["scores"]
    expected = {"adnet, packaged": masks > 0, "everything": np.ones_like(truth),
                "first mask copied (from ground truth)": np.broadcast_to(truth[0], truth.shape)}
    assert set(scores) == set(expected)
    for name, prediction in expected.items():
        assert scores[name]["J"] == pytest.approx(_plain_jaccard(prediction > 0, truth > 0), abs=1e-9), name
        row = next(line for line in out.splitlines() if line.startswith(name))
        assert row.split()[-2:] == [f"{scores[name]['J']:.3f}", f"{scores[name]['F']:.3f}"]
    picture = cv2.imread(str(done / "generated/demo.jpg"))
    assert picture.shape == (3 * 180, 4 * 320, 3) and np.ptp(picture) > 100
    assert "uvos_output/demo/generated" in out and "overlay.mp4" in out and "J 0.125, F 0.250" in out


def test_interrupted_demo_can_be_resumed(tmp_path, monkeypatch):
    from uvos_jax.inference.jobs import segment as job

    def stopped(*args, **options):
        return whole(*args, **options | {"stop": lambda: signal.SIGINT})

    whole = job.segment_to_folder
    with monkeypatch.context() as patch:
        patch.setattr(job, "segment_to_folder", stopped)
        code, _, err = uvos("demo", "--output", "seen")
    assert code == 130 and "--resume" in err.splitlines()[-1]
    assert json.loads((tmp_path / "seen/generated/run.json").read_text())["finished"] is False
    code, _, err = uvos("demo", "--output", "seen", "--seed", "7", "--resume")
    assert code == 2 and "another clip" in err
    assert uvos("demo", "--output", "seen", "--resume")[0] == 0
    assert uvos("demo", "--output", "whole")[0] == 0
    unlike = {name for name, data in _files(tmp_path / "whole").items() if _files(tmp_path / "seen")[name] != data}
    assert unlike <= {"generated/run.json"}  # it contains times


def test_second_demo_needs_overwrite(tmp_path):
    assert uvos("demo", "--output", "seen")[0] == 0
    before = _files(tmp_path / "seen")
    code, _, err = uvos("demo", "--output", "seen", "--seed", "7")
    assert code == 2 and "--overwrite" in err and len(err.splitlines()) == 1
    assert _files(tmp_path / "seen") == before
    code, _, err = uvos("demo", "--output", "seen", "--seed", "7", "--overwrite")
    assert code == 0, err
    after = _files(tmp_path / "seen")
    assert set(after) == set(before) and after["generated/truth/00000.png"] != before["generated/truth/00000.png"]
    assert json.loads(after["generated/scores.json"])["seed"] == 7


@pytest.mark.parametrize("arguments", [(), ("--overwrite",)])
def test_foreign_files_are_never_changed(tmp_path, arguments):
    (tmp_path / "seen/generated/frames").mkdir(parents=True)
    (tmp_path / "seen/generated/frames/00000.jpg").write_bytes(b"precious")
    code, out, err = uvos("demo", "--output", "seen", *arguments)
    assert (code, out) == (2, "") and "frames" in err and "--overwrite" not in err
    assert _files(tmp_path / "seen") == {"generated/frames/00000.jpg": b"precious"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere.mp4"], "nowhere.mp4"), (["generated"], "uvos segment"),
    (["--output", "own/00000.jpg"], "is a file"), (["--seed", "-1"], "--seed"),
])
def test_invalid_arguments_are_rejected_before_any_output(folder, tmp_path, arguments, message):
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated/0.jpg").write_bytes((folder / "00000.jpg").read_bytes())
    before = _files(tmp_path)
    code, out, err = uvos("demo", *arguments)
    assert (code, out) == (2, "") and re.search(message, err) and len(err.splitlines()) == 1, err
    assert _files(tmp_path) == before


def test_demo_seed_is_the_first_with_suitable_object_size():
    low, high = demo.SHARE
    for seed in demo.SEEDS:
        # The scene is the same at a sixth of the size.
        share = (make_clip(seed, 40, (45, 80), objects=(1, 1), clean=True).labels > 0).mean()
        if low <= share <= high:
            break
    assert seed == demo.SEED


@pytest.mark.slow  # imports TensorFlow
def test_demo_seeds_are_not_training_seeds():
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    from uvos_jax.data.storage.tfds_builders import UvosSynthetic

    used = {seed for first, count in UvosSynthetic.CLIPS.values() for seed in range(first, first + count)}
    assert not used & set(demo.SEEDS)


def test_generating_a_clip_imports_no_framework():
    check = ("from uvos_jax.cli import demo; demo.LENGTH = 1; demo.SIZE = (54, 96); demo.generated_clip(0); import sys;"
             "print([m for m in ('tensorflow', 'tensorflow_datasets', 'torch', 'jax') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
