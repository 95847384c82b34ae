"""Throughput of the input pipeline on this machine, by recipe."""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from uvos_jax.data.examples.clip_dataset import make_clip_dataset, mixture_entry
from uvos_jax.data.examples.pipeline import batches
from uvos_jax.errors import UserError

_BATCH = 8
_WARM_UP = 2  # batches, to open files and drain the batches prefetched before timing starts

# Recipes with the settings of the papers.
_SETTINGS = {
    "pair": {"recipe": {"name": "pair"}, "size": (481, 857), "geometry": {"kind": "foreground_crop"},
             "objects": "foreground"},
    "references": {"recipe": {"name": "references"}, "size": (512, 512), "objects": "foreground",
                   "geometry": {"kind": "margin_crop", "independent": True},
                   "color": {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "color": (0, 2), "sharpness": (0, 3),
                              "independent": True}},
    "sequence": {"recipe": {"name": "sequence"}, "size": (465, 465), "objects": 5,
                 "geometry": {"kind": "random_crop", "short_side": 480, "balanced": True}},
    "still": {"recipe": {"name": "still", "length": 3}, "size": (473, 473), "objects": "foreground",
              "geometry": {"kind": "random_crop", "short_side": 473, "scale": (0.7, 1.3), "independent": True}},
}


@dataclass(frozen=True)
class RecipeThroughput:
    """Throughput of one recipe.

    Attributes:
        recipe: Name of the recipe.
        frames: Frames per example.
        size: Height and width of the frames.
        examples_per_second: Of the median batch.
    """

    recipe: str
    frames: int
    size: tuple[int, int]
    examples_per_second: float


def measure_throughput(store: Any, workers: int, batch_count: int = 9) -> Iterator[RecipeThroughput]:
    """Measures each recipe that fits a dataset, in batches of eight.

    Args:
        store: See ``uvos_jax.data.storage.store``.
        workers: Threads that prepare examples.
        batch_count: Number of batches in the median.

    Yields:
        One row per recipe; datasets of still images have only the recipe "still".

    Raises:
        UserError: No frame has ground truth.
    """
    moving = any(video.length > 1 for video in store.videos)
    if not any(video.labeled for video in store.videos):
        raise UserError(f"{store.name} has no ground truth in this split. Choose another split with --split.")
    for name, setting in _SETTINGS.items():
        if not moving and name != "still":
            continue
        setting = dict(setting)
        setting["flow"] = name == "references" and store.has_flow  # the recipe of DPA
        clips = make_clip_dataset([mixture_entry(store, setting.pop("recipe"))], batch_size=_BATCH, seed=0, **setting)
        with closing(batches(clips, workers=workers)) as stream:
            for _ in range(_WARM_UP):
                next(stream)
            seconds = []
            for _ in range(batch_count):
                start = time.perf_counter()
                next(stream)
                seconds.append(time.perf_counter() - start)
        yield RecipeThroughput(name, clips.length, clips.sizes[0], _BATCH / statistics.median(seconds))
