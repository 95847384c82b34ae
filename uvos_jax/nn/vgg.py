"""VGG-16 without batch norm, cut into the five stages that decoders read (Simonyan & Zisserman 2015)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import Conv
from uvos_jax.ops.pool import max_pool

_CONVS = (2, 2, 3, 3, 3)
_CHANNELS = (1, 2, 4, 8, 8)  # times the width
# Index of every convolution in the published sequential list (ReLUs and pools count there too).
_TORCH_INDEX = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class VGG16(nn.Module):
    """Five stages of 3x3 convolutions with bias and ReLU; each stage but the first starts with a 2x2 max pool.

    Attributes:
      width: channels of the first stage (64 as published).
      dtype: type of the computation.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """``[b, h, w, 3]`` to ``{"stage1", ..., "stage5"}`` at strides 1, 2, 4, 8, 16, each after its last ReLU."""
        stages = {}
        for stage, (convs, channels) in enumerate(zip(_CONVS, _CHANNELS, strict=True), 1):
            if stage > 1:
                x = max_pool(x, window=2, stride=2, padding=0)
            for i in range(1, convs + 1):
                x = nn.relu(Conv(channels * self.width, use_bias=True, dtype=self.dtype, name=f"conv{stage}_{i}")(x))
            stages[f"stage{stage}"] = x
        return stages


def torch_rules(ours: str, theirs: str) -> tuple[tuple[str, str, str], ...]:
    """Name rules for torchvision's layout; ``theirs`` is the prefix before the index (see ``weights.convert``)."""
    return tuple((f"{ours}/conv{stage}_{i}", f"{theirs}{index}", "conv")
                 for stage, indices in enumerate(_TORCH_INDEX, 1) for i, index in enumerate(indices, 1))
