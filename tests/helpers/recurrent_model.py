"""A recurrent model: its masks depend on all earlier frames, so that a lost or wrong state shows.

``python -m tests.helpers.recurrent_model SOURCE OUTPUT`` segments in a process that tests can kill. The environment
variable ``SLOW`` sets the seconds per frame, ``SLOW_STATE`` the pause in the middle of writing a state.
"""

import os
import sys
import time
from pathlib import Path

import cv2
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from tests.helpers.fake_model import FakeModel
from uvos_jax.inference import Segmenter
from uvos_jax.inference.jobs import resume
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.video import OutputOptions, open_source

SIZE = (24, 32)
# Every output of a run except the cutout as video.
OUTPUTS = OutputOptions(soft=True, json=True, cutout="png")


class RecurrentModel(FakeModel):
    """Foreground is brighter, by a margin, than a running mean of all earlier frames and masks."""

    references: int = 1

    def setup(self):
        self.gain = self.param("gain", lambda key: jnp.float32(8))

    def encode(self, inputs):
        return {"gray": inputs["frame"].mean(-1, keepdims=True).astype(self.dtype)}

    def init_state(self, reference_features, reference_labels=None, native_size=None, max_objects=1):
        return {"mean": reference_features["gray"].mean(0, keepdims=True), "frames": jnp.zeros((), jnp.int32)}

    def predict(self, state, features):
        return self.gain * (features["gray"] - state["mean"] - 0.01), {}

    def commit(self, state, features, labels, aux, new_labels=None):
        mean = 0.8 * state["mean"] + 0.2 * features["gray"] + 0.02 * (labels[..., None] - 0.5)
        return {"mean": mean.astype(self.dtype), "frames": state["frames"] + 1}

    @nn.nowrap
    def to_native(self, raw, size):
        return nn.sigmoid(raw.astype(jnp.float32))

    @nn.nowrap
    def reference_frames(self, length):
        """Returns indices spread over the video; the first frame if the length is unknown."""
        if self.references == 1 or length is None:
            return (0,)
        return tuple(np.linspace(0, length - 1, self.references).round().astype(int))


def recurrent_segmenter(**fields) -> Segmenter:
    """A segmenter with the model and its one weight."""
    return Segmenter("recurrent", RecurrentModel(**fields), {"params": {"gain": np.float32(8)}})


def noise(length: int, seed: int = 0) -> np.ndarray:
    """``[t, h, w, 3]`` uint8: coarse noise that changes from frame to frame."""
    rng = np.random.default_rng(seed)
    return np.stack([cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), SIZE[::-1], interpolation=cv2.INTER_LINEAR)
                     for _ in range(length)])


def save_frames(folder: Path, frames: np.ndarray) -> Path:
    """Writes frames as PNG files 00000.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i:05d}.png"), frame[..., ::-1])
    return folder


def contents(folder: Path) -> dict[str, object]:
    """Contents of every file below a folder; of ``run.json`` without timing, memory and resumption."""
    import json

    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run = json.loads(files.pop("run.json"))
    for name in ("seconds", "peak_memory_mib", "resumed"):
        run.pop(name, None)
    return files | {"run.json": run}


def _torn(path, data):
    """Writes half of the temporary file, waits, then writes the file as usual."""
    from uvos_jax.atomic_io import atomic_write

    path.with_name(f".{path.name}.partial").write_bytes(data[:len(data) // 2])
    time.sleep(float(os.environ["SLOW_STATE"]))
    atomic_write(path, data)


if __name__ == "__main__":
    if os.environ.get("SLOW_STATE"):
        resume.atomic_write = _torn
    segment_to_folder(recurrent_segmenter(), open_source(sys.argv[1]), sys.argv[2], chunk=4, resume=True, save_every=0,
                      on_frame=lambda: time.sleep(float(os.environ.get("SLOW", 0))), outputs=OUTPUTS)
