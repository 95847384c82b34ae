"""VGG-16, cut into the five stages that decoders read (Simonyan & Zisserman 2015)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import BatchNorm, Conv
from uvos_jax.ops.pooling import max_pool

_CONVS = (2, 2, 3, 3, 3)
_CHANNELS = (1, 2, 4, 8, 8)  # times the width
# Index of every convolution in the published sequential list (ReLUs and pools count there too).
_TORCH_INDEX = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class VGG16(nn.Module):
    """Five stages of 3x3 convolutions with bias and ReLU; each stage but the first starts with a 2x2 max pool.

    Attributes:
      width: channels of the first stage (64 as published).
      dtype: type of the computation.
      norm: batch norm after every convolution in place of its bias, as in torchvision's ``vgg16_bn``.
      axis_name: see ``BatchNorm``.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    norm: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, first: int = 1, last: int = 5, train: bool = False) -> dict[str, jax.Array]:
        """Runs some of the stages.

        Args:
          x: ``[b, h, w, 3]``, or what the stage before ``first`` made.
          first: number of the first stage to run, from 1.
          last: number of the last one, at most 5.
          train: see ``BatchNorm``.

        Returns:
          ``{"stage1", ..., "stage5"}`` at strides 1, 2, 4, 8, 16, each after its last ReLU.
        """
        stages = {}
        for stage in range(first, last + 1):
            convs, channels = _CONVS[stage - 1], _CHANNELS[stage - 1]
            if stage > 1:
                x = max_pool(x, window=2, stride=2, padding=0)
            for i in range(1, convs + 1):
                x = Conv(channels * self.width, use_bias=not self.norm, dtype=self.dtype, name=f"conv{stage}_{i}")(x)
                if self.norm:
                    x = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=f"bn{stage}_{i}")(x, train)
                x = nn.relu(x)
            stages[f"stage{stage}"] = x
        return stages


def torch_rules(ours: str, theirs: str) -> tuple[tuple[str, str, str], ...]:
    """Name rules for torchvision's layout; ``theirs`` is the prefix before the index (see ``weights.convert``)."""
    return tuple((f"{ours}/conv{stage}_{i}", f"{theirs}{index}", "conv")
                 for stage, indices in enumerate(_TORCH_INDEX, 1) for i, index in enumerate(indices, 1))
