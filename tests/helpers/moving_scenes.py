"""A model whose answer is its flow, and a method whose flow tells which frames it lies between. For the tests."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.inference import Segmenter
from uvos_jax.inference.flow.estimators import FlowEstimator, flow_size
from uvos_jax.models import Model, System
from uvos_jax.ops.preprocess import Preprocess

SIZE = (24, 32)


class Moving(Model):
    """Its probability, in 255ths, is 128 and one component of the flow: of the frame, or the references' mean."""

    variant: str = "paper"
    component: int = 0
    of_references: bool = False
    references: int = 1
    short_side: int = 24
    dtype: jnp.dtype = jnp.float32

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

    @nn.nowrap
    def example_batch(self):
        return dict.fromkeys(self.inputs, jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32))

    @nn.nowrap
    def frame_size(self, native_size, scale=1.0):
        return native_size

    PREPROCESS = Preprocess("RGB", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    inputs = ("frame", "flow")


ROW = System(Moving, "Moving", "tests", "frames and flow")


def moving(flow=None, scales=(1.0,), flip=False, **fields) -> Segmenter:
    """The model with its one weight."""
    return Segmenter("moving", Moving(**fields), {"params": {"scale": np.float32(1)}}, scales=scales, flip=flip,
                     flow=flow)


def difference(batch: int = 1) -> FlowEstimator:
    """Flow whose dx is the second frame's level less the first one's; dy is a ramp from left to right."""
    def compute(first, second):
        size = flow_size(first.shape[1:3])
        flow = np.zeros((len(first), *size, 2), np.float32)
        flow[..., 0] = (second.mean((1, 2, 3)) - first.mean((1, 2, 3)))[:, None, None]
        flow[..., 1] = np.linspace(0, 50, size[1])
        return flow

    return FlowEstimator("difference", "level of the second less level of the first", compute, batch)


def levels(values) -> np.ndarray:
    """``[t, h, w, 3]`` uint8 frames of even gray."""
    return np.stack([np.full((*SIZE, 3), value, np.uint8) for value in values])
