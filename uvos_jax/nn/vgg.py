"""VGG-16, split into its five stages (Simonyan & Zisserman 2015)."""

import flax.linen as nn
import jax

from uvos_jax.nn.layers import BatchNorm, Conv, Policy
from uvos_jax.ops.pooling import max_pool

_CONVS = (2, 2, 3, 3, 3)
_CHANNELS = (1, 2, 4, 8, 8)  # times the width
# Index of every convolution in torchvision's sequential list, which counts ReLUs and pools too.
_TORCH_INDEX = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class VGG16(nn.Module):
    """Five stages of 3x3 convolutions with bias and ReLU; each stage but the first starts with a 2x2 max pool.

    Attributes:
        width: Channels of the first stage (64 as published).
        batch_norm: Whether batch norm replaces the bias of every convolution, as in torchvision's ``vgg16_bn``.
        policy: See ``Policy``.
    """

    width: int = 64
    batch_norm: bool = False
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, first: int = 1, last: int = 5, train: bool = False) -> dict[str, jax.Array]:
        """Runs stages ``first`` to ``last``.

        Args:
            x: ``[b, h, w, 3]`` normalized frames, or the output of the stage before ``first``.
            first: Number of the first stage to run, from 1.
            last: Number of the last stage to run, at most 5.
            train: See ``BatchNorm``.

        Returns:
            The stages run, of ``{"stage1", ..., "stage5"}`` at strides 1, 2, 4, 8 and 16, each after its last ReLU.
        """
        stages = {}
        for stage in range(first, last + 1):
            convs, channels = _CONVS[stage - 1], _CHANNELS[stage - 1]
            if stage > 1:
                x = max_pool(x, window=2, stride=2, padding=0)
            for i in range(1, convs + 1):
                x = Conv(channels * self.width, use_bias=not self.batch_norm, dtype=self.policy.dtype,
                         name=f"conv{stage}_{i}")(x)
                if self.batch_norm:
                    x = BatchNorm(policy=self.policy, name=f"bn{stage}_{i}")(x, train)
                x = nn.relu(x)
            stages[f"stage{stage}"] = x
        return stages


def torch_rules(ours: str, theirs: str) -> tuple[tuple[str, str, str], ...]:
    """Returns the name rules of torchvision's layout (see ``weights.convert``).

    Args:
        ours: Module path of the ``VGG16`` in the Flax variables.
        theirs: Prefix of the PyTorch keys before the layer index, e.g. ``"features."``.
    """
    return tuple((f"{ours}/conv{stage}_{i}", f"{theirs}{index}", "conv")
                 for stage, indices in enumerate(_TORCH_INDEX, 1) for i, index in enumerate(indices, 1))
