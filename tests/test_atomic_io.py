"""Atomic writes of files and folders, locks, and removal of unused folders."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import REPOSITORY
from uvos_jax.atomic_io import (
    PartialFile,
    atomic_path,
    atomic_write,
    exclusive_lock,
    finish_replacement,
    folder_unless_empty,
    replace_folder,
)
from uvos_jax.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("unique", [False, True])
def test_file_is_replaced_atomically(tmp_path, unique):
    path = tmp_path / "a.txt"
    atomic_write(path, b"old", unique)
    with pytest.raises(KeyboardInterrupt), atomic_path(path, unique) as partial:
        partial.write_bytes(b"ne")
        assert path.read_bytes() == b"old" and partial.name.startswith(".a.txt.partial")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.txt"]
    atomic_write(path, b"new", unique)
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.txt"]


def test_partial_file_names(tmp_path):
    assert PartialFile(tmp_path / "a").partial == PartialFile(tmp_path / "a").partial == tmp_path / ".a.partial"
    assert PartialFile(tmp_path / "a", unique=True).partial != PartialFile(tmp_path / "a", unique=True).partial


def test_folder_is_created_atomically(tmp_path):
    with pytest.raises(ValueError, match="stop"), atomic_path(tmp_path / "a") as partial:
        (partial / "deep").mkdir(parents=True)
        raise ValueError("stop")
    assert names(tmp_path) == []
    with atomic_path(tmp_path / "a") as partial:
        (partial / "deep").mkdir(parents=True)
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["deep"]


def test_symbolic_link_is_replaced_without_changing_its_target(tmp_path):
    for target in ("one", "two"):
        (tmp_path / target).mkdir()
        with atomic_path(tmp_path / "link") as partial:
            partial.symlink_to(target)
        assert os.readlink(tmp_path / "link") == target
    with pytest.raises(ValueError, match="stop"), atomic_path(tmp_path / "link") as partial:
        partial.symlink_to("one")
        raise ValueError("stop")
    assert os.readlink(tmp_path / "link") == "two" and names(tmp_path) == ["link", "one", "two"]


def test_failed_write_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"^Cannot write '.*a': No such file or directory\.$"):
        atomic_write(tmp_path / "missing" / "a", b"")


def test_interrupted_folder_replacement_is_completed(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "old").rename(tmp_path / "replaced.data")  # killed between the two renames
    finish_replacement(tmp_path / "data")
    assert names(tmp_path / "data") == ["old"]
    replace_folder(tmp_path / "new", tmp_path / "data")
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == ["new"]


def test_empty_folder_is_removed_with_its_new_parents(tmp_path):
    with folder_unless_empty(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert names(tmp_path) == []
    with folder_unless_empty(tmp_path / "a/b"):
        (tmp_path / "a/c").touch()
    assert names(tmp_path / "a") == ["c"]


def test_lock_is_exclusive_and_its_file_is_removed(tmp_path):
    path = tmp_path / "lock"
    path.write_text("")  # left by a process that was killed
    with exclusive_lock(path, "busy"):
        with pytest.raises(UserError, match="^busy$"), exclusive_lock(path, "busy"):
            pass
        assert path.exists()
    assert not path.exists()
    with exclusive_lock(path, "busy"):
        pass
    with pytest.raises(UserError, match="Cannot write"), exclusive_lock(tmp_path / "missing/lock", "busy"):
        pass
    assert names(tmp_path) == []


def test_lock_file_removed_before_locking_is_reopened(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    path, flock = tmp_path / "lock", fcntl.flock

    def late(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        os.unlink(path)  # by its former owner
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with exclusive_lock(path, "busy"), pytest.raises(UserError, match="busy"), exclusive_lock(path, "busy"):
        pass


def test_lock_is_skipped_on_file_systems_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive_lock(tmp_path / "lock", "busy"), exclusive_lock(tmp_path / "lock", "busy"):
        pass
    assert names(tmp_path) == []


def test_killed_process_releases_the_lock(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", "import sys, time\nfrom uvos_jax.atomic_io import exclusive_lock\n"
                               "with exclusive_lock(sys.argv[1], 'busy'):\n    print(flush=True)\n    time.sleep(60)",
                               str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY)
    try:
        holder.stdout.readline()
        with pytest.raises(UserError, match="busy"), exclusive_lock(path, "busy"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert path.exists()
    with exclusive_lock(path, "busy"):
        pass
    assert not path.exists()
