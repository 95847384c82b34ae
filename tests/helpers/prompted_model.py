"""A prompted model that tracks objects by color, and clips for it."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.fake_model import FakeModel
from tests.helpers.recurrent_model import RecurrentModel
from uvos_jax.inference import Segmenter
from uvos_jax.models import System

SIZE = (32, 48)
COLORS = np.array([(40, 40, 40), (230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30), (30, 230, 230),
                    (230, 30, 230), (240, 240, 240)])
_MOST = 81  # rows of the color table, whatever max_objects is


@flax.struct.dataclass
class State:
    """``colors`` ``[b, 81, 3]``, the mean color of each given object; ``previous`` ``[b, h, w]`` labels."""

    colors: jax.Array
    previous: jax.Array
    count: jax.Array


class ColorTracker(FakeModel):
    """A pixel belongs to the object of the nearest color; its label in the previous frame has an advantage."""

    max_objects: int = 3
    inertia: float = 0.5

    def setup(self):
        self.scale = self.param("scale", lambda key: jnp.float32(1))

    def encode(self, inputs):
        return {"rgb": 8 * self.scale * inputs["frame"]}

    def init_state(self, reference_features, reference_labels=None, native_size=None, max_objects=1):
        rgb = reference_features["rgb"]
        b, h, w, _ = rgb.shape
        empty = State(jnp.full((b, _MOST, 3), 1e3), jnp.zeros((b, h, w), jnp.int32), jnp.zeros(b, jnp.int32))
        background = (_small(reference_labels, (h, w)) == 0)[..., None]
        mean = (rgb * background).sum((1, 2)) / jnp.maximum(background.sum((1, 2)), 1)
        empty = empty.replace(colors=empty.colors.at[:, 0].set(mean))
        return self.commit(empty, reference_features, reference_labels, {}, reference_labels)

    def predict(self, state, features):
        far = features["rgb"][..., None, :] - state.colors[:, None, None, :self.max_objects + 1]
        logits = -(far**2).sum(-1) + self.inertia * nn.one_hot(state.previous, self.max_objects + 1)
        return jnp.where(jnp.arange(self.max_objects + 1) <= state.count[:, None, None, None], logits, -1e9), {}

    def commit(self, state, features, labels, aux, new_labels=None):
        small = _small(labels, features["rgb"].shape[1:3])
        state = state.replace(previous=jnp.maximum(small, 0))
        if new_labels is None:
            return state
        given = nn.one_hot(_small(new_labels, small.shape[1:]), _MOST)
        means = jnp.einsum("bhwo,bhwc->boc", given, features["rgb"]) / jnp.maximum(given.sum((1, 2))[..., None], 1)
        new = (given.sum((1, 2)) > 0) & (jnp.arange(_MOST) > state.count[:, None])
        return state.replace(colors=jnp.where(new[..., None], means, state.colors),
                             count=jnp.maximum(state.count, new_labels.max((1, 2))))

    @nn.nowrap
    def to_native(self, raw, size):
        return nn.softmax(jax.image.resize(raw, (raw.shape[0], *size, raw.shape[-1]), "linear"))

    @nn.nowrap
    def to_probability(self, score):
        return 1 - score[..., 0]

    @nn.nowrap
    def frame_size(self, native_size, scale=1.0):
        return tuple(round(n * scale) for n in native_size)

    task = "prompted"
    CHANGEABLE = ("max_objects",)


ROW = System(ColorTracker, "ColorTracker", "tests", "frames and masks")


class BrightnessModel(RecurrentModel):
    """A foreground model without prompts: bright pixels are foreground."""

    def predict(self, state, features):
        return features["gray"] - 0.3, {}


BRIGHTNESS_ROW = System(BrightnessModel, "BrightnessModel", "tests", "frames")


def brightness_segmenter() -> Segmenter:
    return Segmenter("brightness", BrightnessModel(), {"params": {"gain": np.float32(1)}})


def color_tracker(scales=(1.0,), flip=False, **fields) -> Segmenter:
    """A segmenter with the model and its one weight."""
    weights = {"params": {"scale": np.float32(1)}}
    return Segmenter("color_tracker", ColorTracker(**fields), weights, scales=scales, flip=flip)


def squares(length: int, objects: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Moving squares of different colors on noise: frames ``[t, h, w, 3]`` and ground-truth labels, uint8."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((length, *SIZE), np.uint8)
    for t in range(length):
        for o in range(objects):
            y, x = 2 + 10 * (o // 4), 2 + 11 * (o % 4)
            labels[t, y + t % 3:y + t % 3 + 7, x + t % 4:x + t % 4 + 7] = o + 1
    frames = COLORS[labels] + rng.integers(-25, 26, (length, *SIZE, 3))
    return frames.clip(0, 255).astype(np.uint8), labels


def _small(labels, size):
    """Labels at the network's size, by nearest neighbor."""
    rows, columns = (jnp.arange(n) * of // n for n, of in zip(size, labels.shape[1:], strict=True))
    return labels[:, rows[:, None], columns]
