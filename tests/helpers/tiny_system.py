"""A system that trains in milliseconds.

``python -m tests.helpers.tiny_system WORKDIR CONFIG.json`` trains it in a process that tests can kill. The environment
variable ``SLOW`` sets the seconds per batch.
"""

import contextlib
import json
import os
import sys
import time

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from tests.helpers.fake_model import FakeModel
from uvos_jax.models import SYSTEMS, System
from uvos_jax.nn.layers import BatchNorm, Conv, Policy
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.ops.preprocess import Preprocess, preprocess

SIZE = (16, 24)


class Encoder(nn.Module):
    """Convolution and batch norm."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        return nn.relu(BatchNorm(policy=Policy(axis_name=self.axis_name), name="bn")(Conv(4, name="conv")(x), train))


class Tiny(FakeModel):
    """One or two encoders of the frame, dropout, one convolution."""

    two: bool = False
    dropout: float = 0.1
    short_side: int = 16
    axis_name: str | None = None

    def setup(self):
        self.rgb_encoder = Encoder(self.axis_name)
        if self.two:
            self.flow_encoder = Encoder(self.axis_name)
        self.head = Conv(1, use_bias=True)
        self.drop = nn.Dropout(self.dropout)

    def _logits(self, x, train):
        features = self.rgb_encoder(x, train) + (self.flow_encoder(x, train) if self.two else 0)
        return self.head(self.drop(features, deterministic=not train))

    def __call__(self, batch, train=False):
        return {"logits": self._logits(batch["frame"], train)}, {}

    def encode(self, inputs):
        return {"logits": self._logits(inputs["frame"], False)}

    def init_state(self, reference_features, reference_labels=None, native_size=None, max_objects=1):
        return {"first": reference_features["logits"]}

    def predict(self, state, features):
        return features["logits"], {}

    @nn.nowrap
    def training_batch(self, clip):
        frame = preprocess(clip["frames"][:, 0], clip["frames"].shape[2:4], self.preprocess)
        return {"frame": frame, "mask": clip["labels"][:, 0, ..., None] > 0}

    @nn.nowrap
    def loss(self, outputs, batch, step):
        loss = binary_cross_entropy(outputs["logits"], batch["mask"])
        return loss, {"mask": loss}

    @nn.nowrap
    def to_native(self, logits, size):
        return jax.nn.sigmoid(jax.image.resize(logits, (logits.shape[0], *size, 1), "nearest"))

    PREPROCESS = Preprocess("RGB", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


ROW = System(Tiny, "Tiny", "tests", "frames")


def config(**changes) -> dict:
    """Returns a configuration of ten steps of the tiny system."""
    return {"model": {"name": "tiny"}, "batch_size": 4, "optimizer": {"name": "sgd", "momentum": 0.9},
            "schedule": {"name": "poly", "lr": 0.05}, "phases": [{"name": "only", "steps": 10}], "log_every": 1,
            "checkpoint_every": 5} | changes


# A learning rate that is zero in float32, so that parameters do not change.
STILL = {"name": "constant", "lr": 1e-50}


@contextlib.contextmanager
def compiled_once(folder):
    """Keeps compiled programs in a folder, because tests start the same few repeatedly."""
    changes = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0,
               "jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def clips(phase: int, start: int, batch_size: int = 4):
    """Yields endless batches, a function of phase and step: a bright square on noise."""
    step, pause = start, float(os.environ.get("SLOW", 0))
    while True:
        time.sleep(pause)
        rng = np.random.default_rng([phase, step])
        frames = rng.integers(0, 120, (batch_size, 1, *SIZE, 3), np.uint8)
        labels = np.zeros((batch_size, 1, *SIZE), np.uint8)
        for i in range(batch_size):
            y, x = rng.integers(0, 8, 2)
            labels[i, 0, y:y + 8, x:x + 8] = 1
        frames[labels > 0] += 100
        yield {"frames": frames, "labels": labels,
               "example": np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)}
        step += 1


if __name__ == "__main__":
    from uvos_jax.interrupts import Interrupted
    from uvos_jax.training.loop import train

    SYSTEMS["tiny"] = ROW
    with open(sys.argv[2]) as file:
        settings = json.load(file)
    try:
        train(settings, sys.argv[1], batches=clips)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.code)
