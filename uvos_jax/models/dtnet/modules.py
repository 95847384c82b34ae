"""Parts of D-Net: the excitation that lets guidance in, decoders and heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import BatchNorm, Conv, Policy
from uvos_jax.ops.pooling import global_average_pool
from uvos_jax.ops.resize import resize_bilinear

_REDUCTION = 16  # of the excitation's bottleneck; not stated, squeeze-and-excitation networks have this
_NARROWEST = 16  # channels that a bottleneck, a projection or a head keeps in a small network


def narrow(features: int, factor: int) -> int:
    """A ``factor``-th of the channels, where the published width is 128 or more; never too few to tell anything."""
    return max(_NARROWEST, features // factor)


class Excitation(nn.Module):
    """Mixes features with those of the guidance, channel by channel (Eq. 3-7).

    Ours: a bottleneck of a sixteenth of the channels, and the weights of the two by a softmax over both.

    Attributes:
      dtype: type of the result; weights are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, guided: jax.Array, squeezed: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Weighs ``x`` against ``guided``.

        Args:
          x: ``[b, h, w, c]``.
          guided: ``[b, h, w, c]``.
          squeezed: two of ``[b, h', w', c]``, whose means say how.

        Returns:
          ``[b, h, w, c]``; every channel lies between those of ``x`` and ``guided``.
        """
        b, _, _, c = x.shape
        seen = jnp.concatenate([global_average_pool(y.astype(jnp.float32)).reshape(b, c) for y in squeezed], -1)
        hidden = nn.relu(nn.Dense(narrow(c, _REDUCTION), precision="highest", name="squeeze")(seen))
        weights = nn.Dense(2 * c, precision="highest", name="expand")(hidden).reshape(b, 2, 1, 1, c)
        weights = nn.softmax(weights, 1).astype(self.dtype)
        return weights[:, 0] * x + weights[:, 1] * guided


class SeparableConv(nn.Module):
    """A 5x5 convolution of every channel, then a 1x1 of all, each with batch norm and ReLU, as Panoptic-DeepLab has it.

    Attributes:
      features: output channels.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation.
    """

    features: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, features]``."""
        c = x.shape[-1]
        for name, features, kernel, groups in (("depthwise", c, 5, c), ("pointwise", self.features, 1, 1)):
            x = Conv(features, kernel, groups=groups, dtype=self.dtype, name=f"{name}_conv")(x)
            x = nn.relu(BatchNorm(policy=Policy(self.dtype, self.axis_name), name=f"{name}_bn")(x, train))
        return x


class Decoder(nn.Module):
    """From stride 16 to stride 4: twice resized, joined with a projected stage of the backbone, and convolved.

    Ours, where the paper is silent: the projections, to a quarter and an eighth of the channels.

    Attributes:
      features: channels.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation; resizing is float32.
    """

    features: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, stages: dict[str, jax.Array], train: bool) -> jax.Array:
        """``[b, h, w, c]``, and ``layer2`` and ``layer1`` of the backbone, to ``[b, h', w', features]`` as layer1."""
        norm = {"axis_name": self.axis_name, "dtype": self.dtype}
        for layer, factor in (("layer2", 4), ("layer1", 8)):
            skip = Conv(narrow(self.features, factor), 1, dtype=self.dtype, name=f"{layer}_conv")(stages[layer])
            skip = nn.relu(BatchNorm(name=f"{layer}_bn", policy=Policy(**norm))(skip, train))
            x = resize_bilinear(x, skip.shape[1:3], align_corners=True)
            x = SeparableConv(self.features, name=f"{layer}_merge", **norm)(jnp.concatenate([x, skip], -1), train)
        return x


class Head(nn.Module):
    """A 5x5 separable convolution and a 1x1.

    Attributes:
      hidden: channels in between.
      outputs: channels of the result.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation; the result is float32.
    """

    hidden: int
    outputs: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, outputs]`` float32."""
        x = SeparableConv(self.hidden, self.axis_name, self.dtype, name="hidden")(x, train)
        # Begins near 0, or the first steps would be spent on taking back what chance says of every pixel.
        small = nn.initializers.normal(1e-3)
        return Conv(self.outputs, 1, use_bias=True, kernel_init=small, name="out")(x.astype(jnp.float32))
