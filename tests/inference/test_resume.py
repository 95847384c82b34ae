"""Resuming: a run interrupted at any point ends with the files of an uninterrupted run."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import flow_model
from tests.helpers import recurrent_model as helper
from tests.helpers.interruption import interrupt_at
from tests.helpers.paths import REPOSITORY
from tests.helpers.recurrent_model import OUTPUTS, contents, noise, recurrent_segmenter, save_frames
from uvos_jax import UserError
from uvos_jax.inference.engine import StepOutput, StreamState
from uvos_jax.inference.jobs import resume
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.inference.reference_frames import ReferenceFrames
from uvos_jax.video import ClipOptions, open_source

STATE = resume.STATE


@pytest.fixture(scope="module")
def segmenter():
    return recurrent_segmenter()


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return save_frames(tmp_path_factory.mktemp("source") / "clip", noise(18))


def segment(segmenter, frames, output, **changes):
    return segment_to_folder(segmenter, open_source(frames), output,
                             **{"chunk": 4, "save_every": 0, "resume": True, "outputs": OUTPUTS} | changes)


def interrupted(segmenter, frames, output, at, **changes):
    """Interrupts a run at a frame with KeyboardInterrupt, as Ctrl-C does without a signal handler."""
    with pytest.raises(KeyboardInterrupt):
        segment(segmenter, frames, output, on_frame=interrupt_at(at), **changes)


@pytest.mark.parametrize("stops", [(1,), (4,), (5,), (6, 13), (18,), (9, 3, 17)])
def test_resumed_run_writes_the_same_files(segmenter, frames, tmp_path, stops):
    segment(segmenter, frames, tmp_path / "uninterrupted", resume=False)
    for at in stops:
        interrupted(segmenter, frames, tmp_path / "out", at)
        run = json.loads((tmp_path / "out/run.json").read_text())
        assert run["finished"] is False and run["stopped"] == "interrupted"
        assert {"overlay.mp4", "objects.json", "confidence.csv"} <= set(os.listdir(tmp_path / "out"))
    run = segment(segmenter, frames, tmp_path / "out")
    assert run["resumed"] == max(stops) // 4 * 4
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")


def test_interrupt_saves_the_state(segmenter, frames, tmp_path):
    interrupted(segmenter, frames, tmp_path / "out", 15, save_every=1000)
    assert segment(segmenter, frames, tmp_path / "out")["resumed"] == 12
    segment(segmenter, frames, tmp_path / "uninterrupted")
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")


def test_restart_without_state_gives_different_masks(frames):
    """Control for the tests above: the masks depend on the state."""
    segmenter = recurrent_segmenter()
    whole = segmenter.segment(noise(18), chunk=4)
    assert (segmenter.segment(noise(18)[8:], chunk=4) != whole[8:]).mean() > 0.01


def test_state_includes_later_references(frames, tmp_path):
    segmenter = recurrent_segmenter(references=3)
    segment(segmenter, frames, tmp_path / "uninterrupted")
    interrupted(segmenter, frames, tmp_path / "out", 9)
    run = segment(segmenter, frames, tmp_path / "out")
    assert run["reference_frames"] == [0, 8, 17] and run["references"] == "whole video" and run["resumed"] == 8
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")


@pytest.mark.parametrize(("changes", "named"), [
    ({"chunk": 3}, "chunk"),
    ({"outputs": dataclasses.replace(OUTPUTS, soft=False)}, "soft"),
    ({"outputs": dataclasses.replace(OUTPUTS, cutout=None)}, "cutout"),
    ({"clip": ClipOptions(every=2)}, "every"),
])
def test_unfinished_run_with_other_options_starts_over(segmenter, frames, tmp_path, changes, named):
    interrupted(segmenter, frames, tmp_path / "out", 9)
    said = []
    run = segment(segmenter, frames, tmp_path / "out", say=said.append, **changes)
    assert len(said) == 1 and "starting over" in said[0] and named in said[0]
    assert run["resumed"] == 0
    segment(segmenter, frames, tmp_path / "fresh", **changes)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_signature_covers_weights_hyper_parameters_and_frames(frames, tmp_path):
    def signature(segmenter, frames):
        source = open_source(frames)
        return resume.run_signature(segmenter, source, next(iter(source)), 4, {}, {})

    ours = signature(recurrent_segmenter(), frames)
    other = recurrent_segmenter()
    other.variables = jax.tree.map(lambda x: x + 1, other.variables)
    assert resume.differences(ours, signature(recurrent_segmenter(), frames)) == []
    assert resume.differences(ours, signature(other, frames)) == ["weights"]
    assert resume.differences(ours, signature(recurrent_segmenter(references=2), frames)) == ["references"]
    changed = noise(18)
    changed[0, 3, 4, 1] ^= 1
    other = save_frames(tmp_path / "clip", changed)
    assert resume.differences(ours, signature(recurrent_segmenter(), other)) == ["video"]
    shorter = save_frames(tmp_path / "shorter/clip", noise(18)[:17])
    assert resume.differences(ours, signature(recurrent_segmenter(), shorter)) == ["video"]
    # A run cannot be resumed on another machine, but is recognized there as finished.
    elsewhere = ours | {"device": "abacus", "versions": {}}
    assert "device" in resume.differences(elsewhere, ours)
    assert resume.differences(elsewhere, ours, finished=True) == []


def _flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1:]


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:100], lambda data: data[:-1000], _flip, lambda data: b"garbage" * 1000,
], ids=["empty", "head", "tail", "flipped", "garbage"])
def test_damaged_state_is_reported_and_run_starts_over(segmenter, frames, tmp_path, damage):
    interrupted(segmenter, frames, tmp_path / "out", 9)
    path = tmp_path / "out" / STATE
    path.write_bytes(damage(path.read_bytes()))
    said = []
    run = segment(segmenter, frames, tmp_path / "out", say=said.append)
    assert "starting over" in said[0] and "damaged" in said[0] and run["resumed"] == 0
    segment(segmenter, frames, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_missing_masks_restart_the_run(segmenter, frames, tmp_path):
    interrupted(segmenter, frames, tmp_path / "out", 9)
    for path in (tmp_path / "out/masks").glob("0000[2-9].png"):
        path.unlink()
    said = []
    assert segment(segmenter, frames, tmp_path / "out", say=said.append)["resumed"] == 0
    assert "masks are missing" in said[0] and len(list((tmp_path / "out/masks").iterdir())) == 18


def test_finished_run_is_not_changed(segmenter, frames, tmp_path):
    def files():
        return {path: (path.stat().st_mtime_ns, path.read_bytes())
                for path in (tmp_path / "out").rglob("*") if path.is_file()}

    run = segment(segmenter, frames, tmp_path / "out")
    before, said = files(), []
    assert segment(segmenter, frames, tmp_path / "out", say=said.append) == run
    assert len(said) == 1 and "already finished" in said[0]
    with pytest.raises(UserError, match="finished run that differs in chunk. .*--overwrite"):
        segment(segmenter, frames, tmp_path / "out", chunk=2)
    assert files() == before
    assert segment(segmenter, frames, tmp_path / "out", chunk=2, overwrite=True)["chunk"] == 2


def test_runs_of_earlier_versions_resume_with_the_old_direction(tmp_path, monkeypatch):
    frames = save_frames(tmp_path / "clip", flow_model.levels((10, 11, 13, 17, 25, 41, 73)))
    segmenter = flow_model.flow_segmenter(flow_model.difference())
    old = "to the next frame; the last frame's to the one before"

    def run(output, at=99):
        said = []
        found = segment_to_folder(segmenter, open_source(frames), tmp_path / output, chunk=2,
                                  resume=True, save_every=0, on_frame=interrupt_at(at), say=said.append)
        return found, said

    with monkeypatch.context() as patch:
        patch.setattr(resume, "flow_direction", lambda causal: old)
        assert run("finished")[0]["flow"]["direction"] == old
        with pytest.raises(KeyboardInterrupt):
            run("unfinished", at=5)
    found, said = run("finished")
    assert "already finished" in said[0] and found["flow"]["direction"] == "next_frame"
    assert run("unfinished")[0]["resumed"] == 4


def test_resume_can_skip_the_broken_frame(segmenter, tmp_path):
    frames = save_frames(tmp_path / "clip", noise(12))
    (frames / "00009.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="00009.*9 masks are kept.*--resume"):
        segment_to_folder(segmenter, open_source(frames), tmp_path / "out", chunk=4, save_every=0)
    run = segment_to_folder(segmenter, open_source(frames, ClipOptions(on_error="skip")), tmp_path / "out", chunk=4,
                            resume=True)
    assert run["resumed"] == 8 and list(run["skipped"]) == ["00009"]
    masks = tmp_path / "out/masks"
    assert (masks / "00009.png").read_bytes() == (masks / "00008.png").read_bytes()
    assert (masks / "00010.png").read_bytes() != (masks / "00008.png").read_bytes()


def test_iterator_cannot_be_resumed(segmenter, tmp_path):
    with pytest.raises(UserError, match="--resume.*iterator"):
        segment_to_folder(segmenter, open_source(iter(noise(3))), tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


def test_state_round_trip_is_bit_exact(frames, tmp_path):
    segmenter = recurrent_segmenter(dtype=jnp.bfloat16)
    source = open_source(frames)
    first = next(iter(source))
    signature = resume.run_signature(segmenter, source, first, 4, {}, {"soft": True})
    rng = np.random.default_rng(0)
    h, w = helper.SIZE
    mean = jnp.asarray(rng.standard_normal((1, h, w, 1)), jnp.bfloat16)
    state = StreamState(({"mean": mean, "frames": jnp.int32(7)},),
                  (), StepOutput(rng.integers(0, 2, (h, w), np.uint8), rng.integers(0, 256, (h, w), np.uint8),
                               jnp.float32(1 / 3)))
    confidences = np.float32(rng.random(8)).tolist()
    (tmp_path / "masks").mkdir()
    for i in range(8):
        (tmp_path / "masks" / f"{i}.png").touch()
    resume.save(tmp_path, resume.ResumePoint(8, state, ReferenceFrames((0,), "first frame"), confidences), signature)
    point, _ = resume.load(tmp_path, segmenter, first, signature)
    assert (point.frames, point.references, point.confidences) == (8, ReferenceFrames((0,), "first frame"), confidences)
    assert jax.tree.structure(point.state) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(point.state), jax.tree.leaves(state), strict=True):
        assert ours.dtype == theirs.dtype and np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def start(frames, output, **environment):
    return subprocess.Popen([sys.executable, "-m", helper.__name__, str(frames), str(output)],
                            env=os.environ | environment, cwd=REPOSITORY, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def check_killed_run(folder, kills):
    """Kills a run at random times, or while it writes the state where ``kills`` is true, and compares the files."""
    frames = save_frames(folder / "clip", noise(60))
    segment(recurrent_segmenter(), frames, folder / "uninterrupted")
    rng, output, reached = random.Random(0), folder / "killed", []
    masks, half = output / "masks", output / f".{STATE}.partial"
    for torn in kills:
        done = len(list(masks.glob("*.png")))
        known = times(masks)
        process = start(frames, output, SLOW="0.05", **({"SLOW_STATE": "0.1"} if torn else {}))
        if torn:
            half.unlink(missing_ok=True)
            wait_for(half.exists, process)
        else:
            wait_for(lambda before=known: times(masks) != before, process)
            time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, process.stdout.read()  # the run must still be active when it is killed
        process.kill()
        process.wait()
        assert len(list(masks.glob("*.png"))) >= done  # finished masks are kept
        reached.append(done)
    run = segment(recurrent_segmenter(), frames, output)
    assert run["finished"] is True and run["resumed"] > 0 and len(set(reached)) > len(kills) // 2
    assert contents(output) == contents(folder / "uninterrupted")


@pytest.mark.slow
def test_run_killed_at_random_times_writes_the_same_files(tmp_path):
    check_killed_run(tmp_path, (False, True))


@pytest.mark.slow
def test_lock_excludes_second_process_and_ends_with_its_owner(tmp_path):
    frames = save_frames(tmp_path / "clip", noise(60))
    first = start(frames, tmp_path / "out", SLOW="1")
    wait_for(lambda: (tmp_path / "out/masks/00000.png").exists(), first)
    second = start(frames, tmp_path / "out")
    assert second.wait() == 1 and "Another run is writing into" in second.stdout.read().splitlines()[-1]
    assert first.poll() is None
    first.kill()
    first.wait()
    third = start(frames, tmp_path / "out")
    assert third.wait() == 0, third.stdout.read()
    assert json.loads((tmp_path / "out/run.json").read_text())["finished"] is True
