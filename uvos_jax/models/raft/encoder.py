"""RAFT's encoders: six residual blocks down to an eighth of the picture's sides (Teed & Deng 2020, appendix)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import BatchNorm, Conv, Policy, instance_norm

NORMS = ("instance", "batch", "none")


class Block(nn.Module):
    """Two 3x3 convolutions with a residual, or 1x1, 3x3, 1x1 through a quarter of the channels.

    Attributes:
      features: output channels.
      stride: of the (first) 3x3 convolution; from 2 on, the residual passes a strided 1x1 convolution.
      bottleneck: which of the two.
      norm: one of ``NORMS``.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation.
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    norm: str = "batch"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), features]``."""
        def unit(x, features, kernel, stride, conv, norm):
            x = Conv(features, kernel, stride, use_bias=True, dtype=self.dtype, name=conv)(x)
            return _normalize(self, x, train, norm)

        inner = self.features // 4
        units = ((inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)) if self.bottleneck \
            else ((self.features, 3, self.stride), (self.features, 3, 1))
        y = x
        for i, (features, kernel, stride) in enumerate(units, 1):
            y = nn.relu(unit(y, features, kernel, stride, f"conv{i}", f"norm{i}"))
        if self.stride > 1:
            x = unit(x, self.features, 1, self.stride, "downsample_conv", "downsample_norm")
        return nn.relu(x + y)


class Encoder(nn.Module):
    """7x7 stem, three layers of two blocks at strides 2, 4 and 8, and a 1x1 convolution.

    Attributes:
      features: output channels.
      stem: channels of the first convolution.
      widths: channels of the three layers.
      bottleneck: see ``Block``.
      norm: one of ``NORMS``.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation.
      remat: whether training keeps only the blocks' inputs and computes the rest again for the gradient.
    """

    features: int
    stem: int
    widths: tuple[int, int, int]
    bottleneck: bool = False
    norm: str = "batch"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, 3] -> [b, ceil(h / 8), ceil(w / 8), features]``."""
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        x = Conv(self.stem, 7, 2, use_bias=True, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(_normalize(self, x, train, "norm1"))
        for layer, (features, stride) in enumerate(zip(self.widths, (1, 2, 2), strict=True), 1):
            for i in range(2):
                x = block(features, stride if i == 0 else 1, self.bottleneck, self.norm, self.axis_name, self.dtype,
                          name=f"layer{layer}_{i}")(x, train)
        return Conv(self.features, 1, use_bias=True, dtype=self.dtype, name="conv2")(x)


def _normalize(module, x, train, name):
    """The norm that an encoder or block asks for."""
    if module.norm == "batch":
        return BatchNorm(policy=Policy(module.dtype, module.axis_name), name=name)(x, train)
    return instance_norm(x) if module.norm == "instance" else x


def torch_rules(name: str) -> tuple[tuple[str, str, str], ...]:
    """Name rules of an encoder called ``name`` on both sides (see ``weights.convert``).

    The published blocks register the norm of their residual twice, as ``norm3`` and as ``downsample.1``.
    """
    layer = rf"{name}/layer(\d)_(\d)"
    return (
        (rf"{name}/conv(\d)", rf"{name}.conv\1", "conv"),
        (rf"{name}/norm1", f"{name}.norm1", "norm"),
        (rf"{layer}/conv(\d)", rf"{name}.layer\1.\2.conv\3", "conv"),
        (rf"{layer}/norm(\d)", rf"{name}.layer\1.\2.norm\3", "norm"),
        (rf"{layer}/downsample_conv", rf"{name}.layer\1.\2.downsample.0", "conv"),
        (rf"{layer}/downsample_norm", rf"{name}.layer\1.\2.norm3", "norm"),
        (rf"{name}\.layer(\d)\.0\.downsample\.1\.(\w+)", rf"{name}.layer\1.0.norm3.\2", "alias"),
    )
