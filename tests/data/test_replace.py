"""Failed, killed and concurrent conversions keep existing datasets."""

import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import archives

pytest.importorskip("tensorflow")

from uvos_jax.data.storage import convert as converting
from uvos_jax.data.storage.convert import convert
from uvos_jax.data.storage.store import open_store
from uvos_jax.errors import UserError


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextmanager
def stopped_while_overwriting(source, data):
    """Starts another process that converts MSRA10K and pauses at the first frame; kills it at the end."""
    code = ("import time; from contextlib import nullcontext; from uvos_jax.data.storage.convert import convert;"
            "slow = lambda what, total: nullcontext(lambda: time.sleep(600 if 'converting' in what else 0));"
            f"convert('msra10k', r'{source}', r'{data}', True, progress=slow)")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(data.rglob("incomplete.*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def break_after_check(path, monkeypatch):
    monkeypatch.setattr(converting, "check", lambda *_: path.write_bytes(path.read_bytes()[:60]))


def test_existing_dataset_is_replaced_only_with_overwrite(tmp_path):
    archives.duts(tmp_path / "source")
    convert("duts", tmp_path / "source", tmp_path / "data")
    with pytest.raises(UserError, match="already exists. Give --overwrite"):
        convert("duts", tmp_path / "source", tmp_path / "data")
    shutil.rmtree(tmp_path / "source/DUTS-TE")
    convert("duts", tmp_path / "source", tmp_path / "data", overwrite=True)
    with pytest.raises(UserError, match="no split 'test'"):
        open_store(tmp_path / "data", "duts", "test")
    assert files(tmp_path / "data")[:2] == ["uvos_duts", "uvos_duts/1.0.0"]
    assert not any("replaced" in name for name in files(tmp_path / "data"))


def test_failed_conversion_removes_its_files(tmp_path, monkeypatch):
    archives.duts(tmp_path / "source")
    break_after_check(tmp_path / "source/DUTS-TE/DUTS-TE-Mask/ILSVRC_TE_1.png", monkeypatch)
    with pytest.raises(UserError, match="ILSVRC_TE_1"):
        convert("duts", tmp_path / "source", tmp_path / "data/of/mine")
    assert files(tmp_path) == ["source", *(f"source/{name}" for name in files(tmp_path / "source"))]


def test_failed_replacement_keeps_the_old_dataset(tmp_path, monkeypatch):
    archives.davis2017(tmp_path / "source")
    convert("davis2017", tmp_path / "source", tmp_path / "data")
    before = files(tmp_path / "data")
    break_after_check(tmp_path / "source/Annotations_unsupervised/480p/pigs/00001.png", monkeypatch)
    with pytest.raises(UserError, match="pigs"):
        convert("davis2017", tmp_path / "source", tmp_path / "data", overwrite=True)
    assert files(tmp_path / "data") == before
    assert open_store(tmp_path / "data", "davis2017/unsupervised", "val").labels(0, 0).shape


def test_full_disk_is_a_one_line_error(tmp_path):
    resource = pytest.importorskip("resource")
    archives.msra10k(tmp_path / "source")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # bytes per file, less than the records need
    try:
        with pytest.raises(UserError, match=r"Cannot write msra10k to '.*data'.*File too large") as caught:
            convert("msra10k", tmp_path / "source", tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ".partial" not in str(caught.value) and not (tmp_path / "data").exists()


@pytest.mark.slow
def test_concurrent_conversion_is_an_error_and_killed_one_is_cleaned_up(tmp_path):
    source, data = tmp_path / "source", tmp_path / "data"
    archives.msra10k(source)
    convert("msra10k", source, data)
    with stopped_while_overwriting(source, data):
        before = files(data)
        with pytest.raises(UserError, match="Another conversion of msra10k is running in"):
            convert("msra10k", source, data, overwrite=True)
        assert files(data) == before
    assert list(data.rglob("incomplete.*"))
    assert len(open_store(data, "msra10k", "train").videos) == 3  # the old dataset, until the new one is complete
    shutil.rmtree(data / "uvos_msra10k")
    with pytest.raises(UserError):
        open_store(data, "msra10k", "train")
    convert("msra10k", source, data)
    assert [path.name for path in data.iterdir()] == ["uvos_msra10k"]
    assert len(open_store(data, "msra10k", "train").videos) == 3


def test_dataset_moved_aside_by_killed_conversion_is_restored(tmp_path):
    archives.duts(tmp_path / "source")
    convert("duts", tmp_path / "source", tmp_path / "data")
    folder = tmp_path / "data/uvos_duts/1.0.0"
    before = files(tmp_path / "data")
    folder.rename(folder.with_name("replaced.1.0.0"))
    with pytest.raises(UserError, match="already exists"):
        convert("duts", tmp_path / "source", tmp_path / "data")
    assert files(tmp_path / "data") == before


def test_failed_rename_keeps_the_old_dataset(tmp_path, monkeypatch):
    archives.duts(tmp_path / "source")
    convert("duts", tmp_path / "source", tmp_path / "data")
    before, rename = files(tmp_path / "data"), Path.rename

    def refuse(path, target):
        if ".partial" in str(path):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        convert("duts", tmp_path / "source", tmp_path / "data", overwrite=True)
    assert files(tmp_path / "data") == before
