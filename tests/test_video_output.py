"""Results written in the background."""

import json
import shutil
import threading
import time

import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.video import ResultWriter, open_source, output, read_mask, write_json

pytest.importorskip("av")


def frame(level: int) -> np.ndarray:
    return np.full((32, 48, 3), level, np.uint8)


def labels(label: int) -> np.ndarray:
    mask = np.zeros((32, 48), np.uint8)
    mask[:16, :16] = label
    return mask


def test_masks_and_overlay_in_order(tmp_path):
    count = 60
    with ResultWriter(tmp_path / "deep" / "out", fps=10) as writer:
        for index in range(count):
            writer.add(f"{index:05d}", frame(4 * index), labels(index))
    masks = sorted((tmp_path / "deep" / "out" / "masks").iterdir())
    assert [path.name for path in masks] == [f"{index:05d}.png" for index in range(count)]
    for index, path in enumerate(masks):
        np.testing.assert_array_equal(read_mask(path), labels(index))
    overlay = open_source(tmp_path / "deep" / "out" / "overlay.mp4")
    assert overlay.fps == 10
    levels = [overlaid.image[20:, 20:].mean() for overlaid in overlay]
    np.testing.assert_allclose(levels, 4 * np.arange(count), atol=6)


def test_without_overlay(tmp_path):
    with ResultWriter(tmp_path, fps=10, overlay=False) as writer:
        writer.add("a", frame(1), labels(1))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "masks"]


def test_no_frames(tmp_path):
    with ResultWriter(tmp_path, fps=10):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["masks"]


def test_add_waits_while_16_frames_are_queued(tmp_path, monkeypatch):
    gate = threading.Event()
    write_mask = output.write_mask
    monkeypatch.setattr(output, "write_mask", lambda *args: gate.wait(10) and write_mask(*args))
    added = []

    def produce():
        with ResultWriter(tmp_path, fps=10, overlay=False) as writer:
            for index in range(30):
                writer.add(f"{index:05d}", frame(1), labels(1))
                added.append(index)

    producer = threading.Thread(target=produce)
    producer.start()
    wait_until(lambda: len(added) == 16)
    time.sleep(0.05)  # room for a seventeenth to slip through
    assert len(added) == 16
    gate.set()
    producer.join(10)
    assert len(added) == len(list((tmp_path / "masks").iterdir())) == 30


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_exception_in_the_body_keeps_masks_and_drops_the_overlay(tmp_path):
    with pytest.raises(KeyboardInterrupt), ResultWriter(tmp_path, fps=10) as writer:
        for index in range(5):
            writer.add(f"{index:05d}", frame(1), labels(1))
        raise KeyboardInterrupt
    assert len(list((tmp_path / "masks").iterdir())) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_output_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write .*Not a directory") as caught,
        ResultWriter(tmp_path / "file" / "out", fps=10),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_failure_shows_at_a_later_add(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write '.*00000\.png': Not a directory"),
        ResultWriter(tmp_path / "out", fps=10) as writer,
    ):
        replace_by_file(tmp_path / "out" / "masks")
        writer.add("00000", frame(1), labels(1))
        for index in range(1, 10_000):
            writer.add(f"{index:05d}", frame(1), labels(1))
        pytest.fail("no add noticed the failure")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["masks"]


def test_failure_shows_although_an_older_frame_is_unfinished(tmp_path, monkeypatch):
    gate = threading.Event()
    draw_overlay = output.draw_overlay
    monkeypatch.setattr(output, "draw_overlay", lambda *args: gate.wait(10) and draw_overlay(*args))
    with pytest.raises(UserError, match=r"00001\.png"), ResultWriter(tmp_path, fps=10) as writer:
        writer.add("00000", frame(1), labels(1))
        wait_until((tmp_path / "masks" / "00000.png").exists)
        replace_by_file(tmp_path / "masks")
        try:
            with pytest.raises(UserError, match=r"00001\.png"):
                for index in range(1, 12):  # too few to have to wait for the first frame
                    writer.add(f"{index:05d}", frame(1), labels(1))
                    time.sleep(0.02)
        finally:
            gate.set()


def test_failure_of_the_last_frame_shows_at_the_exit(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write '.*a\.png'"),
        ResultWriter(tmp_path, fps=10) as writer,
    ):
        replace_by_file(tmp_path / "masks")
        writer.add("a", frame(1), labels(1))
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_failure_of_the_overlay_shows(tmp_path):
    (tmp_path / "overlay.mp4").mkdir()
    with (
        pytest.raises(UserError, match=r"cannot write '.*overlay\.mp4': Is a directory"),
        ResultWriter(tmp_path, fps=10) as writer,
    ):
        writer.add("a", frame(1), labels(1))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "masks", "overlay.mp4"]


def replace_by_file(folder) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def test_write_json(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    write_json(path, {"name": "bär", "frames": [1, 2]})
    text = path.read_text()
    assert json.loads(text) == {"name": "bär", "frames": [1, 2]}
    assert text.endswith("}\n") and '\n  "frames": [\n    1,' in text
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert path.read_text() == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(UserError, match=r"cannot write '.*run\.json': No such file"):
        write_json(tmp_path / "missing" / "run.json", {})
