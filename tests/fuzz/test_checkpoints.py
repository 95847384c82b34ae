"""Fuzz: damaged weight files and checkpoint directories never run code and give one-line errors."""

import json
import os
import pickle
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as save_tensors

from tests.helpers.fuzz import command, damaged, json_bytes, left_behind, not_a_sentence, restructured, survey
from uvos_jax.errors import UserError
from uvos_jax.weights import checkpoints, from_torch, read_state_dict
from uvos_jax.weights.convert import expected_torch_shapes

TINY = {"depths": [1, 1, 1, 1], "width": 2, "aspp_features": 4, "embedding": 4, "hidden": 4, "short_side": 33}


@cache
def _state_dict():
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(shape).astype(np.float32)
            for key, shape in expected_torch_shapes("adnet", **TINY).items()}


class Opens:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@cache
def _files():
    """The same weights in every supported format, by file name; PyTorch formats if it is installed."""
    arrays = _state_dict()
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/w.npz", **arrays)
        np.savez_compressed(f"{folder}/packed.npz", **arrays)
        Path(folder, "w.safetensors").write_bytes(save_tensors(arrays))
        try:
            import torch
        except ImportError:
            pass
        else:
            tensors = {"state_dict": {f"module.{key}": torch.from_numpy(value) for key, value in arrays.items()},
                       "best": np.float64(0.5), "epoch": 7}
            torch.save(tensors, f"{folder}/w.pth")
            torch.save(tensors, f"{folder}/old.pth", _use_new_zipfile_serialization=False)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _file_case(seed, folder):
    rng = np.random.default_rng([1, seed])
    names = list(_files())
    name, other = names[seed % len(names)], names[int(rng.integers(len(names)))]
    data = _files()[name]
    if name == "w.safetensors" and seed % 2:
        length = int.from_bytes(data[:8], "little")
        header = json_bytes(restructured(json.loads(data[8:8 + length]), rng), rng)
        data = len(header).to_bytes(8, "little") + header + data[8 + length:]
    elif seed % 7 == 0:  # a pickle that runs code replaces a part of the file
        evil = pickle.dumps(Opens(folder / "opened"), protocol=2)
        place = int(rng.integers(len(data)))
        data = data[:place] + evil[2:] + data[place + len(evil) * int(rng.integers(2)):]
    else:
        data = damaged(data, rng, _files()[other])
    path = folder / name
    path.write_bytes(data)
    try:
        if seed % 10:
            variables = from_torch("adnet", read_state_dict(path), **TINY)
            assert all(np.isfinite(leaf).all() for leaf in _leaves(variables))
        else:
            settings = [f"--set={key}={value}" for key, value in TINY.items()]
            command("convert-weights", "--model", "adnet", "--from", path, "--to", folder / "made", *settings)
            checkpoints.load(folder / "made")
    finally:
        assert left_behind(folder, name, "made") == []


def _leaves(tree):
    if isinstance(tree, dict):
        for inner in tree.values():
            yield from _leaves(inner)
    else:
        yield tree


@cache
def _folders(root):
    """Writes an intact checkpoint directory and a training run with two checkpoints, as templates."""
    from uvos_jax.models import build
    from uvos_jax.weights.training_checkpoints import RunCheckpoints

    folder = root / f"whole-{os.getpid()}"
    checkpoints.save(folder / "weights", "adnet", build("adnet", **TINY), from_torch("adnet", _state_dict(), **TINY),
                     origin="a test")
    run = RunCheckpoints(folder / "run", keep=2, config_hash="abc")
    for step in (1, 2):
        run.save(step, _state(step), score=0.5 * step)
    run.close()
    return folder


def _state(step):
    return {"a": np.full((3, 4), step, np.float32), "step": np.int32(step), "b": {"c": np.arange(5)}}


def _damage_folder(folder, rng):
    """Damages or removes one file of a checkpoint, replaces it by a folder, or removes its folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    kind = int(rng.integers(6))
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind == 2:
        shutil.rmtree(path.parent)
    else:
        path.write_bytes(damaged(path.read_bytes(), rng, files[0].read_bytes()))


def _restructure_file(path, rng):
    path.write_bytes(json_bytes(restructured(json.loads(path.read_text()), rng), rng))


def _folder_case(seed, folder):
    rng = np.random.default_rng([2, seed])
    shutil.copytree(_folders(folder.parent) / "weights", folder / "w")
    if seed % 4:
        _restructure_file(folder / "w" / "uvos.json", rng)
    else:
        _damage_folder(folder / "w", rng)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    try:
        name, _, variables = checkpoints.load(folder / "w")
        assert name == "adnet" and checkpoints.digest(variables) == checkpoints.digest(_whole(folder.parent))
    finally:
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@cache
def _whole(root):
    return checkpoints.load(_folders(root) / "weights")[2]


def _run_case(seed, folder):
    """Resuming restores the last intact checkpoint or raises a one-line error."""
    from uvos_jax.weights.training_checkpoints import RunCheckpoints

    rng = np.random.default_rng([3, seed])
    shutil.copytree(_folders(folder.parent) / "run", folder / "run")
    steps = (2,) if seed % 3 else (1, 2)
    for step in steps:
        if seed % 4:
            _restructure_file(folder / "run" / f"{step:08d}" / "run.json", rng)
        else:
            _damage_folder(folder / "run" / f"{step:08d}", rng)
    said = []
    run = RunCheckpoints(folder / "run", keep=2, config_hash="abc")
    try:
        best = run.best()
        assert best is None or best[0] in (1, 2)
        step, state = run.restore(_state, said.append)
        assert step in (1, 2) and len(said) <= 2 - step  # a removed folder gives no message
        assert checkpoints.digest(state) == checkpoints.digest(_state(step))
        run.clean(step)
        assert left_behind(folder / "run", "00000001", "00000002", ".00000002.damaged") == []
    finally:
        run.close()
    assert all(sentence.endswith(".") and len(sentence.splitlines()) == 1 for sentence in said)
    if said:
        raise UserError(said[0])


def _packaged_case(seed, folder):
    from uvos_jax.weights import packaged

    rng = np.random.default_rng([4, seed])
    packaged.ASSETS, file = folder, folder / "default.safetensors"
    packaged.pack(_folders(folder.parent) / "weights", file, origin="a test", license="none",
                  scores={"x": {"J": 0.5}})
    data = file.read_bytes()
    if seed % 3:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + length])
        meta = json_bytes(restructured(json.loads(header["__metadata__"]["uvos"]), rng), rng)
        header["__metadata__"]["uvos"] = meta.decode("utf-8", "replace")
        header = json.dumps(header).encode()
        data = len(header).to_bytes(8, "little") + header + data[8 + length:]
    else:
        data = damaged(data, rng, b"{}")
    file.write_bytes(data)
    assert isinstance(packaged.about(), dict)
    packaged.load_packaged()


@cache
def _unfinished(root):
    """A run that was stopped after 6 of 10 frames, and the masks of the complete run."""
    from tests.helpers.small_adnet import clip, small_segmenter
    from uvos_jax.inference.jobs.segment import segment_to_folder
    from uvos_jax.interrupts import Interrupted
    from uvos_jax.video import OutputOptions, open_source

    segmenter, frames = small_segmenter(short_side=33), clip(10, (32, 48))
    answers = list(segmenter.run(open_source(frames), chunk=2))
    folder, count = root / f"unfinished-{os.getpid()}", iter(range(100))
    with pytest.raises(Interrupted):
        segment_to_folder(segmenter, open_source(frames), folder, chunk=2,
                          outputs=OutputOptions(overlay=False), save_every=0,
                          stop=lambda: 15 if next(count) >= 6 else None)
    return segmenter, frames, folder, np.stack([answer.labels for answer in answers])


def _resume_case(seed, folder):
    """``--resume`` with a damaged state or run.json continues, restarts or fails; the masks stay the same."""
    from uvos_jax.inference.jobs.segment import segment_to_folder
    from uvos_jax.video import OutputOptions, open_source, read_mask

    rng = np.random.default_rng([5, seed])
    segmenter, frames, unfinished, expected = _unfinished(folder.parent)
    output, said = folder / "results", []
    shutil.copytree(unfinished, output)
    state = output / ".resume.npz"
    if seed % 3 == 0:
        _restructure_file(output / "run.json", rng)
    elif seed % 3 == 1:
        state.write_bytes(damaged(state.read_bytes(), rng, b"PK\x05\x06"))
    else:  # a valid archive with damaged content
        with np.load(state) as file:
            arrays = dict(file)
        text = json_bytes(restructured(json.loads(arrays["text"].tobytes()), rng), rng)
        np.savez(state, **(arrays | {"text": np.frombuffer(text, np.uint8)}))
    segment_to_folder(segmenter, open_source(frames), output, chunk=2,
                      outputs=OutputOptions(overlay=False), resume=True, say=said.append,
                      overwrite=bool(seed % 2))
    masks = [read_mask(output / "masks" / f"{t:05d}.png", numbered=True) for t in range(len(frames))]
    np.testing.assert_array_equal(masks, expected)
    assert left_behind(output, "masks", "run.json") == []
    if not any("going on" in sentence for sentence in said):
        raise UserError(said[0] if said else "Was started over, as --overwrite allows.")


@pytest.mark.slow
@pytest.mark.parametrize(("check", "count"), [(_file_case, 130), (_folder_case, 40), (_run_case, 40),
                                              (_packaged_case, 30)], ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_weights_load_or_give_one_line_errors(check, count):
    result = survey(check, count, mebibytes=1000)
    assert result.defects == []
    # The damage is strong enough to cause errors, but not in every case.
    assert result.refused > count // 4 and result.taken > 0, result[:2]


@pytest.mark.slow
def test_resume_from_damaged_state_writes_correct_masks():
    result = survey(_resume_case, 20, cpu_seconds=20, mebibytes=1500)
    assert result.defects == [] and result.refused > 5, result[:2]


# Regression tests. Each case was once a traceback, a hang or out of memory, found by the surveys above or in review.

def _refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert not_a_sentence(caught.value) == ""
    return str(caught.value)


@pytest.mark.parametrize(("content", "message"), [
    ({"model": ["adnet"]}, "Unknown model"), ({"model": None}, "Unknown model"),
    ({"hyper_parameters": [[1, 2]]}, "damaged"), ({"hyper_parameters": {"dtype": 5}}, "float32, bfloat16"),
    ({"hyper_parameters": {"dtype": []}}, "float32, bfloat16"),
    ({"hyper_parameters": {"depths": [1, 1, 1, 10**9]}}, "from 1 to 200"),
    ({"hyper_parameters": {"width": 10**12}}, "from 1 to 32767"), ({"format": "x" * 5000}, "checkpoint format"),
    ({"hyper_parameters": "[" * 50_000}, "damaged"),
])
def test_invalid_uvos_json_is_an_error(tmp_path, content, message):
    text = json.dumps({"format": 1, "model": "adnet", "hyper_parameters": {}} | content)
    (tmp_path / "uvos.json").write_text(text.replace('"[', "["))
    assert message in _refusal(checkpoints.load, tmp_path)


def test_hyper_parameters_larger_than_memory_are_an_error(tmp_path):
    wide = {name: 32_767 for name in ("width", "aspp_features", "embedding", "hidden")}
    meta = {"format": 1, "model": "adnet", "hyper_parameters": wide, "sha256": "0"}
    (tmp_path / "uvos.json").write_text(json.dumps(meta))
    assert "damaged or do not fit" in _refusal(checkpoints.load, tmp_path)


def test_npz_with_huge_array_shape_is_an_error(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    assert "w.npz" in _refusal(read_state_dict, tmp_path / "w.npz")


@pytest.mark.torch
def test_expanded_torch_tensors_larger_than_storage_are_errors(torch, tmp_path):
    torch.save({"a": torch.zeros(1).expand(100_000, 100_000)}, tmp_path / "w.pth")
    assert tmp_path.joinpath("w.pth").stat().st_size < 10_000
    assert "larger than its storage" in _refusal(read_state_dict, tmp_path / "w.pth")
    torch.save({"a": torch.arange(3.0).expand(5, 3)}, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth")["a"].tolist() == [[0, 1, 2]] * 5


@pytest.mark.parametrize("text", ['{"format": 1, "step": 2, "sha256": "x", "score": "0.5"}', "[" * 100_000,
                                  '{"format": 1, "step": 2, "sha256": "x", "score": NaN}', "[]", "\udcff"])
def test_unreadable_last_checkpoint_falls_back_to_previous(tmp_path, text):
    from uvos_jax.weights.training_checkpoints import RunCheckpoints

    run = RunCheckpoints(tmp_path / "run", keep=3, config_hash="")
    run.save(1, _state(1), score=0.25)
    run.wait()
    (tmp_path / "run" / "00000002").mkdir()
    (tmp_path / "run" / "00000002" / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    said = []
    step, state = run.restore(_state, said.append)
    run.close()
    assert step == 1 and state["step"] == 1 and len(said) == 1 and "step 2" in said[0]
    assert run.best() == (1, 0.25)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, 2]", "3", '"text"', "\udcff", ""])
def test_unreadable_run_configuration_is_an_error(tmp_path, monkeypatch, text):
    from tests.helpers import tiny_system
    from uvos_jax.models import SYSTEMS
    from uvos_jax.training.loop import train

    monkeypatch.setitem(SYSTEMS, "tiny", tiny_system.ROW)
    (tmp_path / "checkpoints" / "00000002").mkdir(parents=True)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    settings = tiny_system.config()
    assert "config.json' is damaged" in _refusal(lambda: train(settings, tmp_path, batches=tiny_system.clips))
