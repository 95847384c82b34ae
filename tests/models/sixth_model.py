"""LumaNet, a small model in one file: the example of docs/adding_a_model.md.

It segments pixels that differ from the first frame: the absolute difference of the features of a frame and of the first
frame is classified per pixel.
"""

from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.models.base import Model, ParityTrace, Rules, nchw, nhwc
from uvos_jax.nn.layers import Conv, ConvNorm, torch_default
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.ops.preprocess import Preprocess, preprocess
from uvos_jax.ops.resize import resize_bilinear


@flax.struct.dataclass
class State:
    """Recurrent state of LumaNet.

    Attributes:
        first: ``[b, h, w, c]``, features of the first frame.
    """

    first: jax.Array


def trace(model: Model, variables: dict, inputs: Mapping, expected: Mapping) -> dict:
    """Runs LumaNet on the inputs of a reference file; see ``ParityTrace``."""
    del expected
    outputs, intermediates = model.apply(variables, {"first": nhwc(inputs["first"]), "frame": nhwc(inputs["frame"])})
    return {"features": nchw(intermediates["features"]), "logits": nchw(outputs["logits"])}


class LumaNet(Model):
    """LumaNet.

    Attributes:
        variant: "paper".
        features: Channels of the features.
        short_side: Shorter side of the network input in pixels.
        axis_name: Mapped axis over which batch norm statistics are shared in training.
        dtype: Computation dtype.
        remat: Unused; the network is small.
    """

    variant: str = "paper"
    features: int = 4
    short_side: int = 32
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    task = "foreground"
    PREPROCESS = Preprocess("RGB", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    TRACES = {"lumanet": ParityTrace(("first", "frame"), trace)}  # noqa: RUF012

    def setup(self):
        self.stem = ConvNorm(self.features, policy=self.policy)
        self.head = Conv(1, 1, use_bias=True, dtype=self.dtype, kernel_init=torch_default)

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Computes ``{"features": [b, h, w, c]}`` from ``{"frame": [b, h, w, 3]}``, independently of other frames."""
        return {"features": self.stem(inputs["frame"])}

    @nn.nowrap
    def init_state(self, reference_features, reference_labels=None, native_size=None, max_objects=1) -> State:
        """State before the first step, from the features of the first frame."""
        del reference_labels, native_size, max_objects
        return State(reference_features["features"])

    def predict(self, state: State, features: Mapping[str, jax.Array]) -> tuple[jax.Array, dict]:
        """Logits ``[b, h, w, 1]`` of one frame, and an empty ``aux`` for ``commit``."""
        return self.head(jnp.abs(features["features"] - state.first)), {}

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """Training forward pass: ``{"first", "frame"}`` to ``({"logits": [b, h, w, 1]}, intermediates)``."""
        both = self.stem(jnp.concatenate([batch["first"], batch["frame"]]), train)
        first, frame = jnp.split(both, 2)
        return {"logits": self.head(jnp.abs(frame - first))}, {"features": frame}

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Clips of two frames ``[b, 2, h, w, 3]`` uint8 with labels ``[b, 2, h, w]`` to the inputs of ``__call__``."""
        size = clip["frames"].shape[2:4]
        first, frame = (preprocess(clip["frames"][:, i], size, self.preprocess) for i in range(2))
        return {"first": first, "frame": frame, "mask": clip["labels"][:, 1, ..., None] > 0}

    @nn.nowrap
    def loss(self, outputs, batch, step):
        """Binary cross-entropy ``([b] float32, {name: [b]})``."""
        del step
        loss = binary_cross_entropy(outputs["logits"].astype(jnp.float32), batch["mask"])
        return loss, {"mask": loss}

    @nn.nowrap
    def to_native(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Logits to probabilities ``[b, height, width, 1]`` at the size of the frame."""
        return jax.nn.sigmoid(resize_bilinear(logits.astype(jnp.float32), size, align_corners=False))

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Network input ``(height, width)``: the shorter side is ``short_side``, the aspect ratio is kept."""
        return tuple(max(1, round(n * self.short_side * scale / min(native_size))) for n in native_size)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the smallest batch for ``__call__``."""
        return dict.fromkeys(("first", "frame"), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Name rules for PyTorch checkpoints."""
        return (("stem/conv", "stem.0", "conv"), ("stem/bn", "stem.1", "norm"), ("head", "head", "conv"))
