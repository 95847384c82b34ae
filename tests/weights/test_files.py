"""Reading of third-party weight files without executing code stored in them."""

import argparse
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from uvos_jax.errors import UserError
from uvos_jax.weights import read_state_dict, unwrap


def _refusal(path):
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


class Opens:
    """Object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.half": np.array([0.5, 3.0], np.float16),
    "a.double": np.array([0.1]),
    "a.num_batches_tracked": np.array(3, np.int64),
}


def _assert_arrays(read):
    assert read.keys() == ARRAYS.keys()
    for key, value in ARRAYS.items():
        expected = value.astype(np.float32) if value.dtype.kind == "f" else value
        assert read[key].dtype == expected.dtype, key
        np.testing.assert_array_equal(read[key], expected)


def test_npz_file_is_read(tmp_path):
    np.savez(tmp_path / "w.npz", **ARRAYS)
    _assert_arrays(read_state_dict(tmp_path / "w.npz"))
    _assert_arrays(read_state_dict(str(tmp_path / "w.npz")))


def test_safetensors_file_is_read(tmp_path):
    save_file(ARRAYS | {"b": np.array([1.5, -2], ml_dtypes.bfloat16)}, tmp_path / "w.safetensors")
    read = read_state_dict(tmp_path / "w.safetensors")
    b = read.pop("b")
    assert b.dtype == np.float32 and b.tolist() == [1.5, -2]
    _assert_arrays(read)


def test_npz_with_object_array_is_rejected_without_unpickling(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([Opens(tmp_path / "opened")], object))
    _refusal(tmp_path / "w.npz")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_rejected(tmp_path, share):
    arrays = {"a": np.random.default_rng(0).standard_normal(500).astype(np.float32)}
    np.savez(tmp_path / "w.npz", **arrays)
    save_file(arrays, tmp_path / "w.safetensors")
    for path in (tmp_path / "w.npz", tmp_path / "w.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[:int(share * len(content))])
        assert "cannot be read as weights" in _refusal(path)


def test_text_file_named_npz_is_rejected_without_pickle_advice(tmp_path):
    (tmp_path / "w.npz").write_text("not found\n")
    assert _refusal(tmp_path / "w.npz").endswith(
        "it is damaged or not an .npz file. Give a complete PyTorch, .safetensors or .npz file.")


def test_missing_files_folders_and_unknown_suffixes_are_rejected(tmp_path):
    assert "no weight file" in _refusal(tmp_path / "absent.npz")
    (tmp_path / "folder.npz").mkdir()
    assert "no weight file" in _refusal(tmp_path / "folder.npz")
    (tmp_path / "w.h5").write_bytes(b"x")
    message = _refusal(tmp_path / "w.h5")
    assert ".safetensors" in message and ".pth" in message


def test_missing_torch_error_names_install_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"anything")
    message = _refusal(tmp_path / "w.pth")
    assert "uvos-jax[torch]" in message and ".safetensors" in message


def test_safetensors_and_npz_do_not_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    save_file(ARRAYS, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **ARRAYS)
    for name in ("w.safetensors", "w.npz"):
        _assert_arrays(read_state_dict(tmp_path / name))


def _tensors(torch):
    return {key: torch.from_numpy(value) for key, value in ARRAYS.items()}


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".tar", ".bin", ".ckpt"])
def test_torch_file_is_read(torch, tmp_path, zipped, suffix):
    path = tmp_path / f"w{suffix}"
    torch.save(_tensors(torch), path, _use_new_zipfile_serialization=zipped)
    _assert_arrays(read_state_dict(path))


@pytest.mark.torch
def test_torch_file_with_training_state_is_read(torch, tmp_path):
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    trained = torch.nn.Parameter(torch.ones(2))
    torch.save(
        {
            "state_dict": {f"module.{key}": value for key, value in _tensors(torch).items()},
            "best": np.float64(0.81),
            "epoch": np.int64(7),
            "lr": np.float32(0.1),
            "done": np.bool_(True),
            "args": argparse.Namespace(lr=0.1, name="run"),
            "half": half,
            "trained": trained,
        },
        tmp_path / "w.pth",
    )
    read = read_state_dict(tmp_path / "w.pth")
    _assert_arrays(unwrap(read))
    assert float(read["best"]) == 0.81 and int(read["epoch"]) == 7 and read["args"].name == "run"
    assert read["half"].dtype == np.float32 and read["half"].tolist() == [1.5, -2]
    assert read["trained"].tolist() == [1, 1]


@pytest.mark.torch
def test_torch_file_with_numpy_1_scalars_is_read(torch, tmp_path):
    torch.save({"a": torch.ones(2), "best": np.float64(0.81)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, content)
    read = read_state_dict(tmp_path / "old.pth")
    assert read["best"] == 0.81 and read["a"].tolist() == [1, 1]


@pytest.mark.torch
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_torch_file_with_code_is_rejected_without_running_it(torch, tmp_path, how):
    path, opened = tmp_path / "w.pth", tmp_path / "opened"
    content = {"state_dict": {"a": torch.zeros(2)} if how != "pickle" else {}, "extra": Opens(opened)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    message = _refusal(path)
    assert "refused" in message and "execute code" in message
    assert not opened.exists()
    pickle.loads(pickle.dumps(Opens(opened))).close()
    assert opened.exists()  # plain unpickling does run the code


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.95])
def test_truncated_torch_files_are_rejected(torch, tmp_path, share, zipped):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.randn(500)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    assert "cannot be read as weights" in _refusal(path)


@pytest.mark.torch
def test_torch_file_without_dict_is_rejected(torch, tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    assert "list" in _refusal(tmp_path / "w.pth")


@pytest.mark.torch
def test_text_file_named_pth_is_rejected(torch, tmp_path):
    for text in ("<html>404 not found</html>\nsorry\n", "hello\n", "i am a text", "(dp0\n"):
        (tmp_path / "w.pth").write_text(text)
        assert _refusal(tmp_path / "w.pth") == (
            "'w.pth' cannot be read as weights: it is damaged or not a PyTorch file. Give a complete PyTorch,"
            " .safetensors or .npz file.")


@pytest.mark.parametrize(("error", "words"), [
    (PermissionError(13, "Permission denied"), "cannot be read as weights: Permission denied."),
    (MemoryError(), "it is damaged or too large for this machine."),
])
def test_unreadable_file_is_named_with_the_reason(tmp_path, monkeypatch, error, words):
    np.savez(tmp_path / "weights.npz", a=np.zeros(1))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(np, "load", fail)
    assert _refusal(tmp_path / "weights.npz").endswith(words)
