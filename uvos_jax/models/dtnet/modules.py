"""Modules of D-Net: the excitation that mixes in the guidance, decoders and prediction heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import Conv, ConvNorm, Policy
from uvos_jax.ops.pooling import global_average_pool
from uvos_jax.ops.resize import resize_bilinear

_REDUCTION = 16  # channel reduction of the excitation; not stated; ours: that of squeeze-and-excitation networks
_MIN_CHANNELS = 16  # fewest channels of a bottleneck, a projection or a head in a small network


def reduced_channels(features: int, factor: int) -> int:
    """Returns ``features // factor``, as published for 128 channels and more, but at least 16."""
    return max(_MIN_CHANNELS, features // factor)


class GuidanceExcitation(nn.Module):
    """Mixes features with those of the guidance branch by a weight per channel (Eq. 3-7).

    Ours: a bottleneck with a sixteenth of the channels, and a softmax over the two weights of a channel.

    Attributes:
        policy: Dtype of the result; weights are float32.
    """

    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, guidance: jax.Array, squeezed: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Mixes ``x`` with ``guidance``.

        Args:
            x: ``[b, h, w, c]``.
            guidance: ``[b, h, w, c]``.
            squeezed: Two maps ``[b, h', w', c]``, whose means determine the weights.

        Returns:
            ``[b, h, w, c]``, a convex combination of ``x`` and ``guidance`` per channel.
        """
        b, _, _, c = x.shape
        means = jnp.concatenate([global_average_pool(y.astype(jnp.float32)).reshape(b, c) for y in squeezed], -1)
        hidden = nn.relu(nn.Dense(reduced_channels(c, _REDUCTION), precision="highest", name="squeeze")(means))
        weights = nn.Dense(2 * c, precision="highest", name="expand")(hidden).reshape(b, 2, 1, 1, c)
        weights = nn.softmax(weights, 1).astype(self.policy.dtype)
        return weights[:, 0] * x + weights[:, 1] * guidance


class SeparableConvNorm(nn.Module):
    """Depthwise 5x5 and pointwise 1x1 convolution, each with batch norm and ReLU, as in Panoptic-DeepLab.

    Attributes:
        features: Output channels.
        policy: See ``Policy``.
    """

    features: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, features]``."""
        c = x.shape[-1]
        x = ConvNorm(c, 5, groups=c, policy=self.policy, name="depthwise")(x, train)
        return ConvNorm(self.features, 1, policy=self.policy, name="pointwise")(x, train)


class SkipDecoder(nn.Module):
    """Decodes from stride 16 to stride 4 in two steps: resize, concatenate a projected backbone stage, convolve.

    The paper does not describe it. Ours: projections to a quarter and an eighth of the channels.

    Attributes:
        features: Output channels.
        policy: See ``Policy``; resizing is float32.
    """

    features: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, stages: dict[str, jax.Array], train: bool) -> jax.Array:
        """Decodes a feature map.

        Args:
            x: ``[b, h, w, c]`` at stride 16.
            stages: ``layer2`` and ``layer1`` of the backbone, at strides 8 and 4.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            ``[b, h', w', features]`` at the size of ``layer1``.
        """
        for layer, factor in (("layer2", 4), ("layer1", 8)):
            skip = ConvNorm(reduced_channels(self.features, factor), 1, policy=self.policy, name=f"{layer}_skip")
            skip = skip(stages[layer], train)
            x = resize_bilinear(x, skip.shape[1:3], align_corners=True)
            merge = SeparableConvNorm(self.features, self.policy, name=f"{layer}_merge")
            x = merge(jnp.concatenate([x, skip], -1), train)
        return x


class PredictionHead(nn.Module):
    """Predicts maps by a separable 5x5 and a 1x1 convolution.

    Attributes:
        hidden: Channels between the two.
        outputs: Channels of the result.
        policy: See ``Policy``; the result is float32.
    """

    hidden: int
    outputs: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, outputs]`` float32."""
        x = SeparableConvNorm(self.hidden, self.policy, name="hidden")(x, train)
        # Predictions start near 0; otherwise the first steps would only undo the random initial ones.
        small = nn.initializers.normal(1e-3)
        return Conv(self.outputs, 1, use_bias=True, kernel_init=small, name="out")(x.astype(jnp.float32))
