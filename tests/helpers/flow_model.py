"""A model that outputs its flow input, and an estimator whose flow identifies the two frames."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.fake_model import FakeModel
from uvos_jax.inference import Segmenter
from uvos_jax.inference.flow.estimators import FlowEstimator, flow_size
from uvos_jax.models import System

SIZE = (24, 32)


class FlowModel(FakeModel):
    """Its probability is (128 + one component of the flow) / 255: of the frame, or the mean of the references."""

    component: int = 0
    of_references: bool = False
    references: int = 1
    short_side: int = 24

    def setup(self):
        self.scale = self.param("scale", lambda key: jnp.float32(1))

    def __call__(self, batch, train=False):
        return {"flow": self.scale * batch["flow"]}, {}

    def encode(self, inputs):
        return {"flow": self.scale * inputs["flow"][..., self.component, None]}

    def init_state(self, reference_features, reference_labels=None, native_size=None, max_objects=1):
        return {"mean": reference_features["flow"].mean(0, keepdims=True)}

    def predict(self, state, features):
        return state["mean"] if self.of_references else features["flow"], {}

    @nn.nowrap
    def flow_input(self, flow, size):
        flow = jax.image.resize(flow, (len(flow), *size, 2), "linear")
        return jnp.concatenate([flow, jnp.zeros_like(flow[..., :1])], -1)

    @nn.nowrap
    def to_native(self, raw, size):
        return (raw + 128) / 255

    @nn.nowrap
    def reference_frames(self, length):
        return (0,) if length is None else tuple(i * (length - 1) // max(self.references - 1, 1)
                                                 for i in range(self.references))

    inputs = ("frame", "flow")


ROW = System(FlowModel, "FlowModel", "tests", "frames and flow")


def flow_segmenter(flow=None, scales=(1.0,), flip=False, **fields) -> Segmenter:
    """A segmenter with the model and its one weight."""
    return Segmenter("flow_model", FlowModel(**fields), {"params": {"scale": np.float32(1)}}, scales=scales, flip=flip,
                     flow=flow)


def difference(batch: int = 1) -> FlowEstimator:
    """Flow with dx = gray level of the second frame - that of the first, dy = a ramp from left to right."""
    def compute(first, second):
        size = flow_size(first.shape[1:3])
        flow = np.zeros((len(first), *size, 2), np.float32)
        flow[..., 0] = (second.mean((1, 2, 3)) - first.mean((1, 2, 3)))[:, None, None]
        flow[..., 1] = np.linspace(0, 50, size[1])
        return flow

    return FlowEstimator("difference", "level of the second less level of the first", compute, batch)


def levels(values) -> np.ndarray:
    """``[t, h, w, 3]`` uint8 frames of uniform gray."""
    return np.stack([np.full((*SIZE, 3), value, np.uint8) for value in values])
