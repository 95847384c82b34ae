"""Interrupted runs resume bit-identically."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import tiny_system
from tests.helpers.paths import REPOSITORY
from tests.helpers.tiny_system import clips, config
from uvos_jax import progress
from uvos_jax.errors import UserError
from uvos_jax.training.loop import train
from uvos_jax.weights import checkpoints

# Metrics that depend on time.
TIMES = ("seconds", "examples_per_second", "input_wait", "device_memory")


pytestmark = pytest.mark.usefixtures("compiled_programs", "tiny_model")


def outcome(workdir: Path):
    """Returns the log without times, the bytes of the last weights, and run.json of the last checkpoint."""
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in entry.items() if key not in TIMES} for entry in log]
    variables = checkpoints.load(workdir / "last")[2]
    run = json.loads((max((workdir / "checkpoints").iterdir()) / "run.json").read_text())
    return log, {jax.tree_util.keystr(p): x.tobytes() for p, x in jax.tree_util.tree_leaves_with_path(variables)}, run


def start(workdir, settings, compiled_programs, **environment):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled_programs), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"} | environment
    workdir.parent.mkdir(exist_ok=True)
    path = workdir.with_suffix(".json")
    path.write_text(json.dumps(settings))
    return subprocess.Popen([sys.executable, "-m", tiny_system.__name__, str(workdir), str(path)], env=environment,
                            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _lines(workdir):
    log = workdir / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def check_killed_run(folder, compiled_programs, steps, kills, seed=0):
    """Kills a run ``kills`` times at random moments; its result must equal an uninterrupted run bit for bit."""
    settings = config(phases=[{"name": "a", "steps": steps * 3 // 5}, {"name": "b", "steps": steps * 2 // 5}],
                      checkpoint_every=3, ema_decay=0.9)
    train(settings, folder / "uninterrupted", batches=clips)
    rng, workdir, reached = random.Random(seed), folder / "killed", []
    for kill in range(kills):
        process = start(workdir, settings, compiled_programs, SLOW="0.03")
        if kill % 5 != 4:  # every fifth is killed while importing, compiling or restoring
            known, further = _lines(workdir), rng.randrange(3, 12)
            while process.poll() is None and _lines(workdir) < known + further:
                known = min(known, _lines(workdir))  # a resumed run shortens the log
                time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1 if kill % 5 != 4 else 3.0))
        assert process.poll() is None, process.stdout.read()  # the process must still be running
        process.kill()
        process.wait()
        reached.append(_lines(workdir))
    assert len(set(reached)) > kills * 2 // 5, reached
    last = start(workdir, settings, compiled_programs)
    output = last.stdout.read()
    assert last.wait() == 0, output
    assert "Resuming after step" in output
    assert outcome(workdir) == outcome(folder / "uninterrupted")
    assert len(outcome(workdir)[0]) == steps


@pytest.mark.slow
def test_run_killed_at_a_random_moment_resumes_bit_identically(tmp_path, compiled_programs):
    check_killed_run(tmp_path, compiled_programs, steps=30, kills=1)


@pytest.mark.slow
def test_stopped_process_has_the_exit_code_of_its_signal(tmp_path, compiled_programs):
    process = start(tmp_path / "run", config(phases=[{"name": "a", "steps": 10000}]), compiled_programs, SLOW="0.02")
    while not (tmp_path / "run" / "log.jsonl").exists() or (tmp_path / "run" / "log.jsonl").stat().st_size == 0:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = process.stdout.read()
    assert process.wait() == 143, output
    assert "Stopped by SIGTERM after step" in output


def interrupted(at, tmp_path, settings, name="run"):
    """Runs until the data fail after step ``at``."""
    def batches(phase, first):
        for batch in clips(phase, first):
            if batch["example"][0] >= at * 4:
                raise ConnectionError("the data is gone")
            yield batch

    with pytest.raises(ConnectionError):
        train(settings, tmp_path / name, batches=batches)


@pytest.mark.slow
def test_resume_repeats_steps_after_the_checkpoint(tmp_path):
    settings = config(phases=[{"name": "a", "steps": 4}, {"name": "b", "steps": 6}], checkpoint_every=3)
    train(settings, tmp_path / "whole", batches=clips)
    for at in (2, 4, 8):  # before any checkpoint, at the phase boundary, in phase b
        interrupted(at, tmp_path, settings)
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"step": 6, "lo')  # a line cut off by a kill
    train(settings, tmp_path / "run", batches=clips)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    before = outcome(tmp_path / "run")
    assert train(settings, tmp_path / "run", batches=clips) == {"step": 10}  # the run is finished
    assert outcome(tmp_path / "run") == before


@pytest.mark.slow
def test_resume_shows_the_steps_of_the_whole_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    settings = config(checkpoint_every=3)
    interrupted(7, tmp_path, settings)
    capsys.readouterr()
    train(settings, tmp_path / "run", batches=clips)
    out, err = capsys.readouterr()
    assert "step 7/10 " in out and "training tiny: 7/10 steps, 1 of them in" in err
    assert err.splitlines()[-1].startswith("training tiny: 10 steps, 4 of them in")


@pytest.mark.slow
def test_resume_from_a_checkpoint_at_a_phase_boundary(tmp_path):
    settings = config(phases=[{"name": "a", "steps": 3}, {"name": "b", "steps": 3, "model": {"two": True},
                                                          "transfer": [{"from": "rgb_encoder", "to": "flow_encoder"}]}],
                      checkpoint_every=3)
    train(settings, tmp_path / "whole", batches=clips)
    interrupted(4, tmp_path, settings)
    train(settings, tmp_path / "run", batches=clips)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_resume_skips_a_damaged_checkpoint(tmp_path, capsys):
    settings = config(checkpoint_every=2, keep=3)
    train(settings, tmp_path / "whole", batches=clips)
    interrupted(7, tmp_path, settings)
    (tmp_path / "run" / "checkpoints" / "00000006" / "state" / "manifest.ocdbt").write_bytes(b"")
    capsys.readouterr()
    train(settings, tmp_path / "run", batches=clips)
    said = capsys.readouterr().out
    assert "checkpoint of step 6" in said and "skipped" in said and "Resuming after step 4" in said
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_unreadable_checkpoints_are_an_error_and_not_deleted(tmp_path):
    settings = config(checkpoint_every=2)
    interrupted(5, tmp_path, settings)
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "run.json").unlink()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="No checkpoint in .* can be read"):
        train(settings, tmp_path / "run", batches=clips)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["shard_map", "jit"])
def test_resume_with_another_launcher(tmp_path, launcher):
    settings = config(checkpoint_every=3, model={"name": "tiny", "dropout": 0.0})
    train(settings, tmp_path / "whole", batches=clips)
    interrupted(5, tmp_path, settings)
    train(settings | {"launcher": launcher, "log_every": 2, "keep": 1}, tmp_path / "run", batches=clips)
    runs = [checkpoints.load(tmp_path / name / "last")[2] for name in ("run", "whole")]
    for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 6, 8, 10]


def test_resume_with_another_network_or_data_is_an_error(tmp_path):
    interrupted(7, tmp_path, config())
    for change in ({"seed": 1}, {"batch_size": 8}, {"model": {"name": "tiny", "dropout": 0.2}},
                   {"phases": [{"name": "only", "steps": 11}]}, {"data": {"flow": True}}):
        with pytest.raises(UserError, match=f"started with a different {next(iter(change))}"):
            train(config(**change), tmp_path / "run", batches=clips)
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match="No checkpoint"):
        train(config(seed=1), tmp_path / "run", batches=clips)
