"""How many training examples a second this machine prepares, for each recipe."""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from uvos_jax.data.examples.clip_dataset import make_clips, part
from uvos_jax.data.examples.pipeline import batches
from uvos_jax.errors import UserError

_BATCH = 8
_WARM_UP = 2  # batches: files are opened, and what was computed ahead of the clock is taken

# The recipes as the papers train with them.
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
class Rate:
    """A row of the result.

    Attributes:
        recipe: Name of the recipe.
        frames: Frames of an example.
        size: Their height and width.
        examples_per_second: Of the median batch.
    """

    recipe: str
    frames: int
    size: tuple[int, int]
    examples_per_second: float


def measure(store: Any, workers: int, batch_count: int = 9) -> Iterator[Rate]:
    """Measures each recipe that fits a dataset, with batches of eight.

    Args:
        store: See ``uvos_jax.data.storage.store``.
        workers: Threads that prepare examples.
        batch_count: Batches the median is taken over.

    Yields:
        A row a recipe; stills have the recipe "still" alone.

    Raises:
        UserError: No frame has ground truth.
    """
    moving = any(video.length > 1 for video in store.videos)
    if not any(video.labeled for video in store.videos):
        raise UserError(f"{store.name} has no ground truth in this split, so no example can be made of it; choose "
                        "another by --split.")
    for name, setting in _SETTINGS.items():
        if not moving and name != "still":
            continue
        setting = dict(setting)
        setting["flow"] = name == "references" and store.has_flow  # DPA's
        clips = make_clips([part(store, setting.pop("recipe"))], batch_size=_BATCH, seed=0, **setting)
        with closing(batches(clips, workers=workers)) as stream:
            for _ in range(_WARM_UP):
                next(stream)
            seconds = []
            for _ in range(batch_count):
                start = time.perf_counter()
                next(stream)
                seconds.append(time.perf_counter() - start)
        yield Rate(name, clips.length, clips.sizes[0], _BATCH / statistics.median(seconds))
