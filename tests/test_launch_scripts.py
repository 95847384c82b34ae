"""The TPU launch script: commands of dry and real runs, and errors."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from tests.helpers.paths import REPOSITORY

SCRIPT = REPOSITORY / "launch" / "tpu_pod.sh"
SETTINGS = {"PROJECT": "my-project", "ZONE": "us-central2-b", "NAME": "slice", "ACCELERATOR": "v4-32",
            "WORKDIR": "/mnt/my runs/adnet", "CONFIG": "adnet:tiny", "POLL": "0"}
# Replaces gcloud and git: logs the arguments; the request is granted at the third check.
FAKE = '''#!{python}
import json, os, sys
log = {log!r}
with open(log, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if "describe" in sys.argv:
    checks = sum("describe" in line for line in open(log))
    print({states!r}[min(checks, 3) - 1])
'''


def launch(*arguments, path=None, **settings):
    clean = {key: value for key, value in os.environ.items() if key not in (*SETTINGS, "RUNTIME", "DATA_DIR")}
    environment = clean | settings | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture
def fake(tmp_path):
    """Returns a folder for PATH and a function that returns the calls so far."""
    def make(states=("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")):
        folder, log = tmp_path / "bin", tmp_path / "calls"
        folder.mkdir()
        log.touch()
        for name in ("gcloud", "git"):
            (folder / name).write_text(FAKE.format(python=sys.executable, log=str(log), states=states))
            (folder / name).chmod(0o755)
        return folder, lambda: [json.loads(line) for line in log.read_text().splitlines()]
    return make


def test_script_parses_and_is_executable():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


def test_dry_run_prints_the_commands_of_a_real_run(fake):
    folder, calls = fake()
    more = ("--", "--config.batch_size=16", "--config.model.name=it's")
    dry = launch("--dry-run", "all", *more, path=folder, **SETTINGS)
    assert dry.returncode == 0, dry.stderr
    assert calls() == []
    printed = [shlex.split(line) for line in dry.stdout.splitlines()]
    real = launch("all", *more, path=folder, **SETTINGS)
    assert real.returncode == 0, real.stderr
    made = calls()
    assert sum("describe" in call for call in made) == 3  # waits for the slice
    once = [call for i, call in enumerate(made) if call not in made[:i]]
    assert once == printed
    what = [next(word for word in ("create", "describe", "archive", "scp", "ssh") if word in call) for call in once]
    assert what == ["create", "describe", "archive", "scp", "ssh", "ssh", "ssh"]
    for call in once:
        if call[0] == "gcloud":
            assert "--project=my-project" in call and "--zone=us-central2-b" in call


def command_on_workers(call):
    return next(word.removeprefix("--command=") for word in call if word.startswith("--command="))


def test_training_runs_on_all_workers_and_survives_disconnection(tmp_path):
    dry = launch("--dry-run", "run", "--", "--config.seed=3", **SETTINGS)
    (call,) = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert "--worker=all" in call
    # Run locally with a fake of the installed program that continues after its caller has exited.
    program = tmp_path / "uvos-venv" / "bin" / "uvos"
    program.parent.mkdir(parents=True)
    (tmp_path / "uvos").mkdir()
    program.write_text('#!/bin/bash\nfor a in "$@"; do echo "<$a>"; done\nsleep 1\necho late > ~/late\nsleep 20\n')
    program.chmod(0o755)
    subprocess.run(["bash", "-c", command_on_workers(call)], cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)},
                   capture_output=True, check=True, timeout=15)  # the pipes close while the program sleeps
    for _ in range(100):
        if (tmp_path / "late").exists():
            break
        subprocess.run(["sleep", "0.1"], check=True)
    assert (tmp_path / "late").exists()
    words = (tmp_path / "uvos.log").read_text().split("\n")[:-1]
    assert words == ["<train>", "<--config>", "<adnet:tiny>", "<--workdir>", "</mnt/my runs/adnet>",
                     "<--config.seed=3>"]


def test_options_are_equivalent_to_environment_variables():
    by_option = launch("--dry-run", "--project=p", "--zone=z", "--data-dir=/d", "--workdir=/w", "--accelerator=v5e-8",
                       "all")
    by_variable = launch("--dry-run", "all", PROJECT="p", ZONE="z", DATA_DIR="/d", WORKDIR="/w", ACCELERATOR="v5e-8")
    assert by_option.stdout == by_variable.stdout and "--data-dir" in by_option.stdout


def test_failed_request_is_an_error(fake):
    folder, calls = fake(states=("WAITING_FOR_RESOURCES", "FAILED", "FAILED"))
    done = launch("all", path=folder, **SETTINGS)
    assert done.returncode == 2 and "FAILED" in done.stderr
    assert not any("ssh" in call for call in calls())


def test_delete_removes_request_and_slice(fake):
    folder, calls = fake()
    assert launch("delete", path=folder, **SETTINGS).returncode == 0
    (call,) = calls()
    assert call[:6] == ["gcloud", "compute", "tpus", "queued-resources", "delete", "slice"] and "--force" in call


@pytest.mark.parametrize(("arguments", "missing", "message"), [
    (["all"], "PROJECT", "PROJECT"), (["create"], "ZONE", "ZONE"), (["run"], "WORKDIR", "WORKDIR"),
    ([], None, "give a command"), (["lunch"], None, "lunch"), (["run", "logs"], None, "give one command")])
def test_bad_arguments_fail_before_any_command(arguments, missing, message):
    settings = {key: value for key, value in SETTINGS.items() if key != missing}
    done = launch("--dry-run", *arguments, **settings)
    assert done.returncode == 2 and message in done.stderr and not done.stdout
