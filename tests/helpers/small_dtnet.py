"""A small D-Net with bounded random weights, and clips for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.random_variables import bounded, small_residuals
from uvos_jax.models.dtnet.dnet import DNet

SMALL = {"depths": (1, 1, 1, 1), "width": 4, "features": 16, "decoder": 16}
SIZE = 33, 49  # (height, width) of its frames


@functools.cache
def _shapes(model):
    frame = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    prob = jax.ShapeDtypeStruct((1, *SIZE, 1), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), frame, frame, prob)


def small(seed: int = 0, **overrides):
    """Returns ``(model, variables)``; values depend on the leaves' names."""
    model = DNet(**SMALL | overrides)
    return model, bounded(_shapes(model), seed, small_residuals)


def pairs(b: int = 2, size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames ``[b, 2, h, w, 3]`` and labels ``[b, 2, h, w]`` int32: two boxes move over noise, some void."""
    rng = np.random.default_rng(seed)
    frames = rng.normal(0, 0.3, (b, 2, *size, 3)).astype(np.float32)
    labels = np.zeros((b, 2, *size), np.int32)
    h, w = size
    for i in range(b):
        for t in range(2):
            labels[i, t, 2 + i + t:h // 2, 3 + 2 * t:w // 3 + 2 * t] = 1
            labels[i, t, h // 3 + t:h - 4 + t, w // 2 - t:w - 3 - t] = 2
            labels[i, t, h - 3:, :5] = -1
    for number, color in ((1, (2.0, -1.0, 0.0)), (2, (-1.0, 0.5, 2.0))):
        frames[labels == number] = color
    return frames, labels
