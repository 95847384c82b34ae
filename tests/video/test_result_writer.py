"""Background writing of results."""

import _thread
import csv
import dataclasses
import json
import os
import signal
import threading
import time

import cv2
import numpy as np
import pytest

from tests.helpers.results import EVERYTHING, add, frame, frames_of, labels, names_in, probability, wait_until
from uvos_jax.errors import UserError
from uvos_jax.video import (
    Frame,
    OutputOptions,
    OverlayStyle,
    ResultWriter,
    draw_overlay,
    open_source,
    read_mask,
    write_json,
)
from uvos_jax.video import result_writer as output

pytest.importorskip("av")


def test_masks_and_overlay_are_in_order(tmp_path):
    count = 60
    with ResultWriter(tmp_path / "deep" / "out", fps=10) as writer:
        for index in range(count):
            writer.add(frame(f"{index:05d}", 4 * index), labels(index))
    masks = sorted((tmp_path / "deep" / "out" / "masks").iterdir())
    assert [path.name for path in masks] == [f"{index:05d}.png" for index in range(count)]
    for index, path in enumerate(masks):
        np.testing.assert_array_equal(read_mask(path), labels(index))
    overlay = open_source(tmp_path / "deep" / "out" / "overlay.mp4")
    assert overlay.fps == 10
    levels = [overlaid.image[20:, 20:].mean() for overlaid in overlay]
    np.testing.assert_allclose(levels, 4 * np.arange(count), atol=6)


def test_overlay_can_be_disabled(tmp_path):
    with ResultWriter(tmp_path, fps=10, outputs=OutputOptions(overlay=False)) as writer:
        writer.add(frame("a"), labels())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "masks"]


def test_run_without_frames_writes_no_files(tmp_path):
    with ResultWriter(tmp_path, fps=10):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["masks"]


def test_add_waits_while_16_frames_are_queued(tmp_path, monkeypatch):
    gate = threading.Event()
    write_mask = output.write_mask
    monkeypatch.setattr(output, "write_mask", lambda *args: gate.wait(10) and write_mask(*args))
    added = []

    def produce():
        with ResultWriter(tmp_path, fps=10, outputs=OutputOptions(overlay=False)) as writer:
            for index in range(30):
                writer.add(frame(f"{index:05d}"), labels())
                added.append(index)

    producer = threading.Thread(target=produce)
    producer.start()
    wait_until(lambda: len(added) == 16)
    time.sleep(0.05)  # gives a wrongly accepted 17th frame time to appear
    assert len(added) == 16
    gate.set()
    producer.join(10)
    assert len(added) == len(list((tmp_path / "masks").iterdir())) == 30


def test_queue_is_bounded_in_bytes(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(output, "write_mask", lambda *args: gate.wait(10))
    large = np.broadcast_to(np.uint8(0), (2160, 3840, 3))  # counted as 25 MB; broadcasting allocates a single byte
    added = []

    def produce():
        with ResultWriter(tmp_path, fps=10, outputs=OutputOptions(overlay=False)) as writer:
            for index in range(8):
                writer.add(Frame(f"{index}", large), large[..., 0])
                added.append(index)

    producer = threading.Thread(target=produce)
    producer.start()
    wait_until(lambda: len(added) == 4)
    time.sleep(0.05)
    assert len(added) == 4  # 33 MB per frame with its labels
    gate.set()
    producer.join(10)
    assert len(added) == 8


def test_single_frame_above_the_byte_bound_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_MAX_QUEUED_BYTES", 1)
    with ResultWriter(tmp_path, fps=10) as writer:
        for index in range(3):
            writer.add(frame(f"{index}"), labels())
    assert frames_of(tmp_path / "overlay.mp4") == len(list((tmp_path / "masks").iterdir())) == 3


def test_all_outputs_together(tmp_path):
    with ResultWriter(tmp_path, fps=25, outputs=EVERYTHING) as writer:
        assert writer.names == ("masks", "soft")
        for index in range(20):
            add(writer, index)
    assert writer.names == ("masks", "overlay.mp4", "soft", "confidence.csv", "objects.json", "cutout.webm")
    assert set(writer.names) <= set(output.RESULTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(writer.names)
    for index in range(20):
        soft = cv2.imread(str(tmp_path / f"soft/{index:05d}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(soft, probability(index))
    with open(tmp_path / "confidence.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], float(row["confidence"])) for row in rows] == [(f"{i:05d}", i / 64) for i in range(20)]
    entries = json.loads((tmp_path / "objects.json").read_text())["frames"]
    assert [entry["time"] for entry in entries] == [index**1.5 / 25 for index in range(20)]
    for name in ("overlay.mp4", "cutout.webm"):
        times = [shown.time for shown in open_source(tmp_path / name)]
        np.testing.assert_allclose(times, [index**1.5 / 25 for index in range(20)], atol=1e-3)


def test_overlay_style_is_applied(tmp_path):
    style = OverlayStyle(alpha=1, contour=3, background=(0, 200, 0))
    with ResultWriter(tmp_path, fps=25, outputs=OutputOptions(style=style)) as writer:
        writer.add(frame("a", 100), labels())
    (shown,) = open_source(tmp_path / "overlay.mp4")
    expected = draw_overlay(frame("a", 100).image, labels(), style)
    np.testing.assert_allclose(shown.image[20:, 20:], expected[20:, 20:], atol=8)
    np.testing.assert_allclose(shown.image[2:13, 2:13], expected[2:13, 2:13], atol=8)


def test_soft_output_needs_probability_and_confidence(tmp_path):
    with ResultWriter(tmp_path, fps=25, outputs=OutputOptions(overlay=False, soft=True)) as writer:
        with pytest.raises(ValueError, match="soft"):
            writer.add(frame("a"), labels(), probability(0))
        with pytest.raises(ValueError, match="soft"):
            writer.add(frame("a"), labels(), None, 0.5)
    assert names_in(tmp_path) == ["masks", "soft"]


@pytest.mark.parametrize("cutout", ["webm", "png"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, UserError, SystemExit])
def test_resumed_run_is_byte_identical(tmp_path, interruption, cutout):
    kinds = dataclasses.replace(EVERYTHING, cutout=cutout)
    with ResultWriter(tmp_path / "whole", fps=25, outputs=kinds) as writer:
        for index in range(20):
            add(writer, index)
    with pytest.raises(interruption), ResultWriter(tmp_path / "parts", fps=25, outputs=kinds) as writer:
        for index in range(8):
            add(writer, index)
        raise interruption("enough")
    assert frames_of(tmp_path / "parts/overlay.mp4") == 8  # complete up to the interrupt
    assert len(json.loads((tmp_path / "parts/objects.json").read_text())["frames"]) == 8
    assert len((tmp_path / "parts/confidence.csv").read_text().splitlines()) == 1 + 8
    for path in [*(tmp_path / "parts/masks").iterdir(), *(tmp_path / "parts/soft").iterdir()]:
        path.chmod(0o444)
        os.utime(path, (1, 1))
    with ResultWriter(tmp_path / "parts", fps=25, outputs=kinds) as writer:
        for index in range(20):
            add(writer, index, on_disk=index < 8)
    assert (tmp_path / "parts/masks/00007.png").stat().st_mtime == 1  # not written again
    assert names_in(tmp_path / "parts") == names_in(tmp_path / "whole")
    for name in names_in(tmp_path / "whole"):
        if (tmp_path / "whole" / name).is_file():
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.fixture
def slow_overlay(monkeypatch):
    """Blocks the overlay until Ctrl-C is simulated; yields the event that triggers it."""
    ready, gate, draw = threading.Event(), threading.Event(), output.draw_overlay
    monkeypatch.setattr(output, "draw_overlay", lambda *args: gate.wait(10) and draw(*args))

    def press():
        ready.wait(10)
        time.sleep(0.05)
        _thread.interrupt_main()
        time.sleep(0.1)
        gate.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    thread = threading.Thread(target=press)
    thread.start()
    yield ready
    thread.join()
    signal.signal(signal.SIGINT, before)


def test_interrupt_while_add_waits(tmp_path, slow_overlay):
    with pytest.raises(KeyboardInterrupt), ResultWriter(tmp_path, fps=25) as writer:
        for index in range(1000):
            if index == 16:
                slow_overlay.set()
            writer.add(frame(f"{index:05d}"), labels())
    assert index == 16
    assert frames_of(tmp_path / "overlay.mp4") == len(list((tmp_path / "masks").iterdir())) == 16
    assert names_in(tmp_path)[-1] == "overlay.mp4"


def test_interrupt_while_exit_waits(tmp_path, slow_overlay):
    writer = ResultWriter(tmp_path, fps=25, outputs=OutputOptions(json=True))
    with pytest.raises(KeyboardInterrupt), writer:
        for index in range(5):
            writer.add(frame(f"{index:05d}"), labels())
        slow_overlay.set()
    assert frames_of(tmp_path / "overlay.mp4") == len(list((tmp_path / "masks").iterdir())) == 5
    assert writer.names == ("masks", "overlay.mp4", "objects.json")


def test_flush_waits_for_per_frame_files(tmp_path, monkeypatch):
    write_mask = output.write_mask
    monkeypatch.setattr(output, "write_mask", lambda *args: time.sleep(0.02) or write_mask(*args))
    gate = threading.Event()
    draw = output.draw_overlay
    monkeypatch.setattr(output, "draw_overlay", lambda *args: gate.wait(10) and draw(*args))
    with ResultWriter(tmp_path, fps=25, outputs=OutputOptions(soft=True, cutout="png")) as writer:
        writer.flush()
        for index in range(5):
            add(writer, index)
        writer.flush()  # returns although the overlay is blocked
        for kind in ("masks", "soft", "cutout"):
            assert names_in(tmp_path / kind) == [f"{index:05d}.png" for index in range(5)]
        gate.set()


def test_partial_files_of_a_killed_run_are_removed(tmp_path):
    left = ["masks/.00007.png.partial", "soft/.00007.png.partial", ".overlay.mp4.partial", ".objects.json.partial"]
    kept = [".other.partial", "masks/00003.png"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with ResultWriter(tmp_path, 25, outputs=OutputOptions(overlay=False, soft=True)):
        pass
    assert names_in(tmp_path) == sorted(["masks", "soft", *kept])


def test_write_json_is_atomic(tmp_path):
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
    with pytest.raises(UserError, match=r"Cannot write '.*run\.json': No such file"):
        write_json(tmp_path / "missing" / "run.json", {})
