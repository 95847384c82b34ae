"""Write errors of results: a one-line error, no partial files, and finished results are kept."""

import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.helpers.results import (
    EVERYTHING,
    SPANNING,
    add,
    frame,
    frames_of,
    labels,
    names_in,
    replace_by_file,
    wait_until,
)
from uvos_jax.atomic_io import PartialFile
from uvos_jax.errors import UserError
from uvos_jax.video import Frame, ResultWriter, read_mask
from uvos_jax.video import result_writer as output

pytest.importorskip("av")


def test_output_below_a_file_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"Cannot write .*Not a directory") as caught,
        ResultWriter(tmp_path / "file" / "out", fps=10),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_write_error_is_raised_by_a_later_add(tmp_path):
    with (
        pytest.raises(UserError, match=r"Cannot write '.*0000\d\.png': Not a directory"),
        ResultWriter(tmp_path / "out", fps=10) as writer,
    ):
        replace_by_file(tmp_path / "out" / "masks")
        writer.add(frame("00000"), labels())
        for index in range(1, 10_000):
            writer.add(frame(f"{index:05d}"), labels())
        pytest.fail("no add noticed the failure")
    assert names_in(tmp_path / "out") == ["masks", "overlay.mp4"] and frames_of(tmp_path / "out/overlay.mp4") >= 1


def test_write_error_is_raised_while_an_earlier_frame_is_pending(tmp_path, monkeypatch):
    gate = threading.Event()
    draw_overlay = output.draw_overlay
    monkeypatch.setattr(output, "draw_overlay", lambda *args: gate.wait(10) and draw_overlay(*args))
    with pytest.raises(UserError, match=r"00001\.png"), ResultWriter(tmp_path, fps=10) as writer:
        writer.add(frame("00000"), labels())
        wait_until((tmp_path / "masks" / "00000.png").exists)
        replace_by_file(tmp_path / "masks")
        try:
            with pytest.raises(UserError, match=r"00001\.png"):
                for index in range(1, 12):  # fewer than the queue size, so add does not wait for the first frame
                    writer.add(frame(f"{index:05d}"), labels())
                    time.sleep(0.02)
        finally:
            gate.set()


def test_write_error_of_the_last_frame_is_raised_on_exit(tmp_path):
    with (
        pytest.raises(UserError, match=r"Cannot write '.*a\.png'"),
        ResultWriter(tmp_path, fps=10) as writer,
    ):
        replace_by_file(tmp_path / "masks")
        writer.add(frame("a"), labels())
    assert names_in(tmp_path) == ["masks", "overlay.mp4"] and frames_of(tmp_path / "overlay.mp4") == 1


def test_write_error_of_the_overlay_is_raised(tmp_path):
    (tmp_path / "overlay.mp4").mkdir()
    with (
        pytest.raises(UserError, match=r"Cannot write '.*overlay\.mp4': Is a directory"),
        ResultWriter(tmp_path, fps=10) as writer,
    ):
        writer.add(frame("a"), labels())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "masks", "overlay.mp4"]


def test_first_error_is_raised(tmp_path):
    (tmp_path / "overlay.mp4").mkdir()
    with pytest.raises(ZeroDivisionError), ResultWriter(tmp_path, fps=10) as writer:
        writer.add(frame("a"), labels())
        raise ZeroDivisionError
    assert names_in(tmp_path) == ["masks", "masks/a.png", "overlay.mp4"]
    assert writer.names == ("masks",)


def test_invalid_labels_raise_value_error(tmp_path):
    with pytest.raises(ValueError, match=r"0\.\.255"), ResultWriter(tmp_path, fps=10) as writer:
        writer.add(frame("a"), labels() + 255 * np.eye(32, 48, dtype=int))
        writer.flush()


# /dev/full simulates a full disk.
full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this system")


@full_disk
@pytest.mark.parametrize("name", ["masks/00002.png", "soft/00002.png", *SPANNING])
def test_full_disk_keeps_finished_results(tmp_path, name):
    noisy = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    rest = noisy[..., 0], noisy[..., 1], 0.5
    with (
        pytest.raises(UserError, match=rf"Cannot write '.*{name}': No space left on device\.") as caught,
        ResultWriter(tmp_path, fps=10, outputs=EVERYTHING) as writer,
    ):
        PartialFile(tmp_path / name).partial.symlink_to("/dev/full")
        for index in range(60):
            writer.add(Frame(f"{index:05d}", noisy), *rest)
    assert "\n" not in str(caught.value)
    present = names_in(tmp_path)
    assert name not in present and not [path for path in present if "partial" in path]
    # All other results are complete.
    assert [path for path in present if path in SPANNING] == [path for path in SPANNING if path != name]
    count = sum(path.startswith("masks/") for path in present) + (name == "masks/00002.png")
    assert frames_of(tmp_path / next(path for path in ("overlay.mp4", "cutout.webm") if path in present)) == count
    for path in present:
        if path.startswith("masks/"):
            np.testing.assert_array_equal(read_mask(tmp_path / path), noisy[..., 0])


LIMITED = """
import resource, sys
import numpy as np
from uvos_jax.errors import UserError
from uvos_jax.video import Frame, OutputOptions, ResultWriter

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
noisy = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
try:
    with ResultWriter(sys.argv[1], 25, OutputOptions(json=True, cutout=sys.argv[3])) as writer:
        for index in range(200):
            writer.add(Frame(f"{index:05d}", noisy), noisy[..., 0] > 127)
except UserError as error:
    print(error)
    print(*writer.names)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits to the size of files on Windows")
@pytest.mark.parametrize(("limit", "cutout", "kept"), [
    (40_000, "mov", []), (40_000, "webm", []), (300_000, "mov", ["objects.json"]), (500, "png", [])])
def test_file_size_limit_is_reported(tmp_path, limit, cutout, kept):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "out"), str(limit), cutout],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    message, names = done.stdout.splitlines()
    assert message.startswith("Cannot write '") and message.endswith(": File too large.")
    present = names_in(tmp_path / "out")
    assert not [name for name in present if "partial" in name]
    assert sorted(names.split()) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name for name in kept if name in present] == kept
    if limit > 500:
        np.testing.assert_array_equal(read_mask(tmp_path / "out/masks/00000.png").shape, (64, 96))


def test_deleted_output_folder_is_reported(tmp_path):
    with (
        pytest.raises(UserError, match=r"Cannot write '.*': No such file or directory\.") as caught,
        ResultWriter(tmp_path / "out", fps=10, outputs=EVERYTHING) as writer,
    ):
        for index in range(30):
            add(writer, index)
            if index == 15:
                writer.flush()
                wait_until(lambda: all(PartialFile(tmp_path / "out" / name).partial.exists() for name in SPANNING))
                shutil.rmtree(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder_is_rejected(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match=r"Cannot write '.*masks': Permission denied"), ResultWriter(tmp_path, fps=10):
        pass
    tmp_path.chmod(0o755)


def test_flush_raises_the_write_error(tmp_path):
    with (
        pytest.raises(UserError, match=r"Cannot write '.*a\.png': Not a directory"),
        ResultWriter(tmp_path, fps=10) as writer,
    ):
        replace_by_file(tmp_path / "masks")
        writer.add(frame("a"), labels())
        writer.flush()
        pytest.fail("flush noticed nothing")
    assert names_in(tmp_path) == ["masks", "overlay.mp4"]
