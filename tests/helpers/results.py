"""Frame results of every kind, and functions that read result folders."""

import shutil
import time
from pathlib import Path

import numpy as np

from uvos_jax.video import Frame, OutputOptions, ResultWriter, open_source

EVERYTHING = OutputOptions(soft=True, json=True, cutout="webm")
SPANNING = ["confidence.csv", "cutout.webm", "objects.json", "overlay.mp4"]


def frame(name: str, level: int = 1) -> Frame:
    return Frame(name, np.full((32, 48, 3), level, np.uint8))


def labels(label: int = 1) -> np.ndarray:
    mask = np.zeros((32, 48), np.uint8)
    mask[:16, :16] = label
    return mask


def probability(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (32, 48), np.uint8)


def add(writer: ResultWriter, index: int, **on_disk) -> None:
    """Adds a frame of a video that has a time stamp, soft results and all."""
    shown = Frame(f"{index:05d}", np.full((32, 48, 3), 8 * index, np.uint8), index**1.5 / 25)
    writer.add(shown, labels(index), probability(index), index / 64, **on_disk)


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def frames_of(path: Path) -> int:
    return sum(1 for _ in open_source(path))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def replace_by_file(folder) -> None:
    shutil.rmtree(folder)
    folder.write_text("")
