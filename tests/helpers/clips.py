"""Small random videos and training clips for tests."""

import cv2
import numpy as np

from tests.helpers.synthetic_store import rectangle
from uvos_jax.data.examples.clip_dataset import make_clip_dataset, mixture_entry
from uvos_jax.data.storage.store import MemoryStore

SIZE = (40, 60)


def made_store(name="made up", videos=3, length=5, flow=True):
    """Videos in memory of moving rectangles, with constant flow."""
    clips = []
    for v in range(videos):
        coarse = np.random.default_rng(v).integers(0, 256, (length, 5, 7, 3)).astype(np.uint8)
        frames = np.stack([cv2.resize(frame, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for frame in coarse])
        labels = np.stack([np.maximum(rectangle(5 + t, 20 + t, 8, 25), rectangle(10, 30, 35 + t, 50, number=2))
                           for t in range(length)])
        clips.append((f"video{v}", frames, labels, np.full((*labels.shape, 2), (2, -1), np.float32) if flow else None))
    return MemoryStore(name, clips)


RECIPES = {
    "pair": {"recipe": {"name": "pair"}, "geometry": {"kind": "foreground_crop"}, "objects": "foreground"},
    "previous": {"recipe": {"name": "previous"}, "objects": "foreground",
                 "geometry": {"kind": "resize", "flip": 0.5}},
    "references": {"recipe": {"name": "references", "count": 3}, "flow": True,
                   "geometry": {"kind": "margin_crop", "margin": 5, "independent": True},
                   "color": {"brightness": (0.5, 1.5), "sharpness": (0, 3), "independent": True}},
    "sequence": {"recipe": {"name": "sequence"}, "objects": 4,
                 "geometry": {"kind": "random_crop", "balanced": True}},
    "still": {"recipe": {"name": "still", "length": 3}, "color": {"contrast": (0.5, 1.5)},
              "geometry": {"kind": "random_crop", "scale": (0.7, 1.3), "independent": True}},
}


def made_clips(name="pair", store=None, size=(33, 41), batch_size=4, seed=0, **changes):
    """Returns the clip dataset of a row of ``RECIPES``."""
    settings = RECIPES[name] | changes
    recipe = settings.pop("recipe")
    mixture = settings.pop("mixture", None) or [mixture_entry(store or made_store(), recipe)]
    return make_clip_dataset(mixture, size=size, batch_size=batch_size, seed=seed, **settings)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def differ(first, second):
    return any(not np.array_equal(first[key], second[key]) for key in first if key != "example")
