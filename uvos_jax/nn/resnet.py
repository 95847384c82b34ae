"""Bottleneck ResNets with configurable strides, dilations and multi-grid (He et al. 2016; Chen et al. 2017)."""

import flax.linen as nn
import jax

from uvos_jax.nn.layers import BatchNorm, Conv, Policy
from uvos_jax.ops.pooling import max_pool

RESNET50 = (3, 4, 6, 3)
RESNET101 = (3, 4, 23, 3)


class Bottleneck(nn.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution.

    Attributes:
        planes: Channels of the first two convolutions; the output has four times as many.
        stride: Stride of the 3x3 convolution, or of the first 1x1 with ``stride_first``.
        dilation: Dilation of the 3x3 convolution.
        project: Whether the shortcut is a strided 1x1 convolution (the first block of every layer).
        stride_first: Whether the first 1x1 convolution is strided, as in Caffe's models; torchvision strides the 3x3.
        policy: See ``Policy``.
    """

    planes: int
    stride: int = 1
    dilation: int = 1
    project: bool = False
    stride_first: bool = False
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), 4 * planes]``."""
        def conv(features, name, **kwargs):
            return Conv(features, dtype=self.policy.dtype, name=name, **kwargs)

        def norm(name):
            return BatchNorm(policy=self.policy, name=name)

        first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
        y = nn.relu(norm("bn1")(conv(self.planes, "conv1", kernel=1, stride=first)(x), train))
        y = conv(self.planes, "conv2", stride=second, dilation=self.dilation)(y)
        y = nn.relu(norm("bn2")(y, train))
        y = norm("bn3")(conv(4 * self.planes, "conv3", kernel=1)(y), train)
        if self.project:
            x = conv(4 * self.planes, "downsample_conv", kernel=1, stride=self.stride)(x)
            x = norm("downsample_bn")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Bottleneck ResNet that returns the features of every stage.

    Attributes:
        depths: Number of blocks in each of the four layers.
        width: Channels of the stem and planes of layer1; each later layer doubles them.
        deep_stem: Three 3x3 convolutions (the last with ``2 * width`` channels) instead of one 7x7.
        stride_first: See ``Bottleneck``.
        ceil_pool: Whether the stem's max pooling rounds its output size up.
        strides: Stride of the first block of each layer.
        dilations: Dilation of each layer.
        multi_grid: Factors on the dilation of layer4's blocks; the last one repeats if there are more blocks.
        policy: See ``Policy``.
        remat: Whether training stores only the inputs of the blocks and recomputes the rest for the gradient: a third
            more arithmetic for a fraction of the memory.
    """

    depths: tuple[int, ...] = RESNET101
    width: int = 64
    deep_stem: bool = False
    stride_first: bool = False
    ceil_pool: bool = False
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    multi_grid: tuple[int, ...] = (1,)
    policy: Policy = Policy()
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Encodes frames.

        Args:
            x: ``[b, h, w, 3]`` normalized frames.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            ``{"stem", "layer1", ..., "layer4"}``, each ``[b, h', w', c']``; the stem is taken after pooling.
        """
        stem = ((self.width, 3, 2), (self.width, 3, 1), (2 * self.width, 3, 1)) if self.deep_stem \
            else ((self.width, 7, 2),)
        for i, (features, kernel, stride) in enumerate(stem, 1):
            x = Conv(features, kernel, stride, dtype=self.policy.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(policy=self.policy, name=f"bn{i}")(x, train))
        stages = {"stem": max_pool(x, ceil_mode=self.ceil_pool)}
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        x = stages["stem"]
        for layer, (blocks, stride, dilation) in enumerate(
                zip(self.depths, self.strides, self.dilations, strict=True), 1):
            for i in range(blocks):
                grid = self.multi_grid[min(i, len(self.multi_grid) - 1)] if layer == 4 else 1
                x = block(self.width * 2 ** (layer - 1), stride if i == 0 else 1, dilation * grid,
                          project=i == 0, stride_first=self.stride_first, policy=self.policy,
                          name=f"layer{layer}_{i}")(x, train)
            stages[f"layer{layer}"] = x
        return stages


def torch_rules(ours: str, theirs: str, norm: str = "norm") -> tuple[tuple[str, str, str], ...]:
    """Returns the name rules of a ResNet in torchvision's layout, with a plain or deep stem (see ``weights.convert``).

    Args:
        ours: Module path of the ``ResNet`` in the Flax variables, e.g. ``"backbone"``.
        theirs: Prefix of the PyTorch keys, e.g. ``"features."`` or ``""``.
        norm: Layout of the normalization layers, ``"norm"`` or ``"abn"``.
    """
    return (
        (rf"{ours}/conv(\d)", rf"{theirs}conv\1", "conv"),
        (rf"{ours}/bn(\d)", rf"{theirs}bn\1", norm),
        (rf"{ours}/layer(\d)_(\d+)/conv(\d)", rf"{theirs}layer\1.\2.conv\3", "conv"),
        (rf"{ours}/layer(\d)_(\d+)/bn(\d)", rf"{theirs}layer\1.\2.bn\3", norm),
        (rf"{ours}/layer(\d)_(\d+)/downsample_conv", rf"{theirs}layer\1.\2.downsample.0", "conv"),
        (rf"{ours}/layer(\d)_(\d+)/downsample_bn", rf"{theirs}layer\1.\2.downsample.1", norm),
    )
