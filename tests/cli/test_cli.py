import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.command_line import SMALL, uvos
from tests.helpers.small_adnet import write_clip
from uvos_jax.video import read_mask


@pytest.fixture(autouse=True)
def _chdir_to_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the original directory may hold results of other runs


@pytest.fixture
def folder(tmp_path):
    return write_clip(tmp_path / "clip")


@pytest.mark.slow
def test_segment_writes_and_reports_a_folder(folder, tmp_path):
    code, out, err = uvos("segment", folder, "--model", "adnet", "--variant", "official", "--weights", "random",
                          "--scales", "0.75,1", "--flip", "--output", tmp_path / "out", *SMALL)
    assert code == 0, err
    assert "3 masks, overlay.mp4, run.json" in out and " 3 frames in " in err
    assert read_mask(tmp_path / "out/masks/00002.png").shape == (48, 72)
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["variant"] == "official" and run["scales"] == [0.75, 1.0] and run["flip"] is True
    assert run["options"]["weights"] == "random" and run["postprocess"] == ["temporal_gate"]


@pytest.mark.slow
def test_default_output_folder_is_named_after_the_input(folder, tmp_path):
    assert uvos("segment", folder, "--model", "adnet", "--weights", "random", "--debug", *SMALL)[0] == 0
    assert {p.name for p in (tmp_path / "uvos_output/clip").iterdir()} == {"masks", "overlay.mp4", "run.json", "debug"}


def _converted(tmp_path):
    """Saves a random state_dict of a small net; returns its path and the path for the converted checkpoint."""
    from safetensors.numpy import save_file

    from tests.helpers.small_adnet import SMALL as FIELDS
    from uvos_jax.weights.convert import expected_torch_shapes

    rng = np.random.default_rng(0)
    state = {key: rng.standard_normal(shape).astype(np.float32) * 0.1
             for key, shape in expected_torch_shapes("adnet", **FIELDS).items()}
    state = {key: np.abs(value) + 0.5 if key.endswith("running_var") else value for key, value in state.items()}
    save_file(state, tmp_path / "ad.safetensors")
    return tmp_path / "ad.safetensors", tmp_path / "weights"


@pytest.mark.slow
def test_converted_and_original_weights_give_the_same_masks(folder, tmp_path):
    file, directory = _converted(tmp_path)
    code, out, err = uvos("convert-weights", "--model", "adnet", "--from", file, "--to", directory, *SMALL)
    assert code == 0 and "variant paper" in out, err
    assert uvos("segment", folder, "--weights", directory, "--output", tmp_path / "a")[0] == 0
    assert uvos("segment", folder, "--model", "adnet", "--weights", file, "--output", tmp_path / "b", *SMALL)[0] == 0
    for i in range(3):
        name = f"masks/{i:05d}.png"
        np.testing.assert_array_equal(read_mask(tmp_path / "a" / name), read_mask(tmp_path / "b" / name))
    code, _, err = uvos("convert-weights", "--model", "adnet", "--from", file, "--to", directory, *SMALL)
    assert code == 2 and "already exists" in err
    # Without its hyper-parameters the file does not match; the error counts every kind of mismatch.
    code, _, err = uvos("convert-weights", "--model", "adnet", "--from", file, "--to", tmp_path / "no")
    assert code == 2 and "keys missing" in err and "misshapen" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_benchmark_prints_its_rows():
    code, out, err = uvos("benchmark", "--model", "adnet", "--size", "48x72", "--chunk", "2", *SMALL)
    assert code == 0, err
    assert re.search(r"network alone +[\d.e-]+ s per frame", out) and re.search(r"share of peak +\d+%", out)
    assert "GFLOP per frame" in out and "65x97" in out


@pytest.mark.slow
def test_existing_results_need_overwrite(folder, tmp_path):
    arguments = ("segment", folder, "--model", "adnet", "--weights", "random", "--output", tmp_path / "out", *SMALL)
    assert uvos(*arguments)[0] == 0
    code, _, err = uvos(*arguments)
    assert code == 2 and "--overwrite" in err
    assert uvos(*arguments, "--overwrite")[0] == 0


@pytest.mark.slow
def test_models_lists_models_and_parameters():
    code, out, _ = uvos("models")
    assert code == 0 and "adnet" in out and "79,250,113" in out and "official" in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["segment", "nowhere.mp4", "--model", "adnet", "--weights", "random"], "nowhere.mp4"),
    (["segment", "{folder}", "--model", "adnett", "--weights", "random"], "Did you mean 'adnet'"),
    (["segment", "{folder}", "--modle", "adnet"], r"No such option:? '?--modle'?\. Did you mean '--model'\?$"),
    (["segment", "{folder}", "--zzzzz"], r"No such option:? '?--zzzzz'?\.$"),
    (["segment", "{folder}", "--size", "100000"], r"'--size': .*32767\.$"),
    (["segment", "{folder}", "--model", "adnet"], "No weights of adnet are packaged"),
    (["segment", "{folder}", "--model", "adnet", "--weights", "random", "--variant", "oficial"], "official"),
    (["segment", "{folder}", "--model", "adnet", "--weights", "random", "--set", "widht=8"], "Did you mean 'width'"),
    (["segment", "{folder}", "--model", "adnet", "--weights", "random", "--set", "width"], "NAME=VALUE"),
    (["segment", "{folder}", "--model", "adnet", "--weights", "random", "--scales", "big"], "--scales"),
    (["segment", "{empty}", "--model", "adnet", "--weights", "random"], "neither videos, nor frames"),
    (["segment", "{text}", "--model", "adnet", "--weights", "random"], "not|cannot"),
    (["segment", "{folder}", "--model", "adnet", "--weights", "{text}"], "not a weight file"),
    (["segmnt", "{folder}"], r"No such command 'segmnt'\. Did you mean 'segment'\?$"),
    (["benchmark", "--model", "adnet", "--size", "480"], "HEIGHTxWIDTH"),
    (["benchmark", "--model", "adnet", "--size", "²00x300"], "HEIGHTxWIDTH"),
    (["parity", "nowhere.npz"], "no reference file"),
    (["segment", "{folder}", "--chunk", "0"], "--chunk"),
    (["segment"], "INPUT"),
    (["segment", "{folder}", "--on-error", "skipp"], "Did you mean 'skip'"),
    (["segment", "{folder}", "--every", "0"], "--every"),
    (["segment", "{folder}", "--resume", "--overwrite"], "--resume continues .* --overwrite replaces it. Give one"),
    (["demo", "--resume", "--overwrite"], "--resume continues .* --overwrite replaces it. Give one"),
    (["segment", "{folder}", "--start", "soon"], "'soon'. Give a time such as"),
    (["segment", "{folder}", "--start", "1:99"], "'1:99', but numbers after a colon must be below 60"),
    (["segment", "{folder}", "--weights", "nowhere"], "no weights 'nowhere'"),
    (["segment", "{folder}", "--weights", "{text}"], "notes.txt.*need a model.*--model"),
    (["segment", "-dash.mp4"], "No such option:? '?-d'?. For the file '-dash.mp4' write './-dash.mp4'"),
    (["segment", "-dsh.mp4"], r"No such option:? '?-d'?\.$"),
    (["segment", "{folder}", "--start", "1:00"], "3 frames"),
    (["segment", "{folder}", "--alpha", "2"], "alpha"),
    (["segment", "{folder}", "--background", "gren"], "Did you mean 'green'"),
    (["segment", "{folder}", "--cutout", "pgn"], "png"),
    (["segment", "{folder}", "--log-file", "{folder}/no/such/folder"], "Cannot write"),
])
def test_errors_print_one_line_and_exit_with_code_2(arguments, message, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / "-dash.mp4").touch()
    places = {"folder": folder, "empty": tmp_path / "empty", "text": tmp_path / "notes.txt"}
    before = sorted(tmp_path.rglob("*"))
    code, out, err = uvos(*(str(a).format(**places) for a in arguments))
    assert code == 2 and out == ""
    assert re.search(message, err), err
    assert "Traceback" not in err and len(err.splitlines()) == 1 and err.startswith("Error: ")
    assert sorted(tmp_path.rglob("*")) == before  # nothing written


def test_no_command_shows_the_help():
    code, out, err = uvos()
    assert code == 0 and "segment" in out and not err


def test_python_m_runs_the_same_command():
    done = subprocess.run([sys.executable, "-m", "uvos_jax", "--help"], capture_output=True, text=True, check=True)
    for command in ("segment", "convert-weights", "parity", "benchmark", "models"):
        assert command in done.stdout


@pytest.mark.parametrize(("arguments", "environment"), [
    (["--version"], {}), (["--help"], {}), (["models"], {"PYTHONUNBUFFERED": "1"}),
])
def test_closed_pipe_ends_quietly_with_the_code_of_sigpipe(arguments, environment):
    read, write = os.pipe()
    os.close(read)  # as in 'uvos models | head -1', without the wait for head
    done = subprocess.run([sys.executable, "-m", "uvos_jax", *arguments], stdout=write, stderr=subprocess.PIPE,
                          env=os.environ | environment, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("entry", "message"), [
    ("depths=3", "list of 4 integers from 1 to"), ("depths=[1,1,1]", "list of 4"), ("depths=[0,1,1,1]", "from 1 to"),
    ("width=0", "from 1 to"), ("width=big", "an integer from"), ("deep_stem=1", "True or False"),
    ("dropout=2", "0 to 1"), ("net=full_", "Did you mean 'full'"), ("dtype=int8", "--precision"),
    ("variant=paper", "--variant"), ("name=x", "--model"),
])
def test_set_rejects_invalid_model_options(entry, message, folder):
    code, _, err = uvos("segment", folder, "--model", "adnet", "--weights", "random", "--set", entry)
    assert code == 2 and re.search(message, err) and len(err.strip().splitlines()) == 1, err
