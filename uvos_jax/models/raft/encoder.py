"""Feature and context encoders of RAFT: six residual blocks, stride 8 (appendix of RAFT, ECCV 2020)."""

from functools import partial

import flax.linen as nn
import jax

from uvos_jax.nn.layers import Conv, ConvNorm, Policy


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection, or a 1x1, 3x3, 1x1 bottleneck of a quarter of the channels.

    Attributes:
        features: Output channels.
        stride: Stride of the (first) 3x3 convolution; above 1, the residual passes through a strided 1x1 convolution.
        bottleneck: Whether the block is a bottleneck.
        norm: ``"instance"``, ``"batch"`` or ``"none"``, see ``ConvNorm``.
        policy: See ``Policy``.
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    norm: str = "batch"
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), features]``."""
        unit = partial(ConvNorm, use_bias=True, norm=self.norm, policy=self.policy)
        inner = self.features // 4
        units = ((inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)) if self.bottleneck \
            else ((self.features, 3, self.stride), (self.features, 3, 1))
        y = x
        for i, (features, kernel, stride) in enumerate(units, 1):
            y = unit(features, kernel, stride, name=f"unit{i}")(y, train)
        if self.stride > 1:
            x = unit(self.features, 1, self.stride, activation=None, name="downsample")(x, train)
        return nn.relu(x + y)


class Encoder(nn.Module):
    """7x7 stem, three layers of two residual blocks at strides 2, 4 and 8, and a 1x1 convolution.

    Attributes:
        features: Output channels.
        stem_features: Channels of the stem.
        widths: Channels of the three layers.
        bottleneck: See ``ResidualBlock``.
        norm: See ``ResidualBlock``.
        policy: See ``Policy``.
        remat: Whether training recomputes the blocks in the backward pass to save memory.
    """

    features: int
    stem_features: int
    widths: tuple[int, int, int]
    bottleneck: bool = False
    norm: str = "batch"
    policy: Policy = Policy()
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, 3] -> [b, ceil(h / 8), ceil(w / 8), features]``."""
        block = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        x = ConvNorm(self.stem_features, 7, 2, use_bias=True, norm=self.norm, policy=self.policy, name="stem")(x, train)
        for layer, (features, stride) in enumerate(zip(self.widths, (1, 2, 2), strict=True), 1):
            for i in range(2):
                x = block(features, stride if i == 0 else 1, self.bottleneck, self.norm, self.policy,
                          name=f"layer{layer}_{i}")(x, train)
        return Conv(self.features, 1, use_bias=True, dtype=self.policy.dtype, name="project")(x)


def torch_rules(name: str) -> tuple[tuple[str, str, str], ...]:
    """Returns the name rules of an encoder called ``name`` on both sides (see ``weights/convert.py``).

    The published blocks store the norm of their residual twice, as ``norm3`` and as ``downsample.1``.
    """
    layer = rf"{name}/layer(\d)_(\d)"
    return (
        (f"{name}/stem/conv", f"{name}.conv1", "conv"),
        (f"{name}/stem/bn", f"{name}.norm1", "norm"),
        (f"{name}/project", f"{name}.conv2", "conv"),
        (rf"{layer}/unit(\d)/conv", rf"{name}.layer\1.\2.conv\3", "conv"),
        (rf"{layer}/unit(\d)/bn", rf"{name}.layer\1.\2.norm\3", "norm"),
        (rf"{layer}/downsample/conv", rf"{name}.layer\1.\2.downsample.0", "conv"),
        (rf"{layer}/downsample/bn", rf"{name}.layer\1.\2.norm3", "norm"),
        (rf"{name}\.layer(\d)\.0\.downsample\.1\.(\w+)", rf"{name}.layer\1.0.norm3.\2", "alias"),
    )
