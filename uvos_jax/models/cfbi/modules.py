"""Modules of CFBI: the encoder's decoder and pixel embedding, attention gates, and the ensembler of each object."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import BatchNorm, Conv, ConvNorm, GroupNorm, Policy, kaiming_fan_out
from uvos_jax.ops.conv import conv2d, conv2d_resized
from uvos_jax.ops.pooling import global_average_pool

_ABSENT = -1e4  # logit of an object slot that is not in use
# Fewest channels of the narrow layers (64 and 48 of 256 as published) in a small network: object boundaries and matches
# have to pass through them.
_MIN_CHANNELS = 16


def group_count(channels: int, groups: int) -> int:
    """Returns the largest divisor of ``groups`` that also divides the channels."""
    return math.gcd(max(1, groups), channels)


def conv_group_norm(features: int, kernel: int, norm_groups: int, policy: Policy, name: str,
                    **kwargs: Any) -> ConvNorm:
    """Returns a ``ConvNorm`` with group norm and ReLU.

    Args:
        features: Output channels.
        kernel: Side of the kernel.
        norm_groups: Groups of the norm; reduced to a divisor of ``features``.
        policy: See ``Policy``.
        name: Name of the module.
        **kwargs: Other attributes of ``ConvNorm``.
    """
    return ConvNorm(features, kernel, norm="group", norm_groups=group_count(features, norm_groups), policy=policy,
                    name=name, **kwargs)


class MergingConv(nn.Module):
    """3x3 convolution of coarse features, resized to the size of fine features, concatenated with the fine ones.

    Attributes:
        features: Output channels.
        resize: How coarse features are resized, ``"bilinear"`` or ``"bicubic"``.
        policy: See ``Policy``; resizing is float32.
    """

    features: int
    resize: str
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, coarse: jax.Array, fine: jax.Array) -> jax.Array:
        """``[n, h', w', c']`` and ``[n, h, w, c] -> [n, h, w, features]``."""
        c, dtype = coarse.shape[-1], self.policy.dtype
        kernel = self.param("kernel", kaiming_fan_out, (3, 3, c + fine.shape[-1], self.features), jnp.float32)
        kernel = kernel.astype(dtype)
        y = conv2d_resized(coarse.astype(dtype), kernel[:, :, :c], fine.shape[1:3], self.resize)
        return y + conv2d(fine.astype(dtype), kernel[:, :, c:])


class DeepLabHead(nn.Module):
    """DeepLabv3+ after the backbone (Chen et al. 2018), without a classifier: ASPP, and a decoder at stride 4.

    Attributes:
        features: Channels of ASPP and decoder.
        policy: See ``Policy``.
    """

    features: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, stages: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Decodes the stages of a backbone.

        Args:
            stages: Stages of a ``ResNet`` at output stride 16; ``layer1`` and ``layer4`` are used.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            ``aspp`` at stride 16 and ``decoded`` at stride 4, each ``[b, h, w, features]``.
        """
        aspp = ASPP(self.features, (6, 12, 18), name="aspp", policy=self.policy)(stages["layer4"], train)
        low = ConvNorm(max(_MIN_CHANNELS, self.features * 3 // 16), 1, policy=self.policy, name="low")
        x = MergingConv(self.features, "bilinear", self.policy, name="merge1_conv")(aspp, low(stages["layer1"], train))
        x = nn.relu(BatchNorm(policy=self.policy, name="merge1_bn")(x, train))
        return {"aspp": aspp, "decoded": ConvNorm(self.features, policy=self.policy, name="merge2")(x, train)}


class PixelEmbedding(nn.Module):
    """Separable convolution with group norm and ReLU that embeds every pixel.

    Attributes:
        features: Output channels.
        norm_scale_init: Initial scale of the last norm.
        policy: See ``Policy``.
    """

    features: int
    norm_scale_init: float = 1.0
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, features]``."""
        c = x.shape[-1]
        x = conv_group_norm(c, 3, c // 8, self.policy, "depthwise", groups=c, use_bias=True)(x)
        return conv_group_norm(self.features, 1, self.features // 4, self.policy, "pointwise", use_bias=True,
                               norm_scale_init=self.norm_scale_init)(x)


class MatchBias(nn.Module):
    """Learned bias of the distances to each object (Eq. 2): one for the background, one for all other objects."""

    @nn.compact
    def __call__(self, objects: int) -> jax.Array:
        """``[objects]`` float32, background first."""
        background, foreground = (self.param(name, nn.initializers.zeros, (1,), jnp.float32)
                                  for name in ("background", "foreground"))
        return jnp.where(jnp.arange(objects) == 0, background, foreground)


class InstanceGate(nn.Module):
    """Instance-level attention (Sec. 3.4): channel weights ``1 + tanh`` of a linear map of an object's descriptor.

    Attributes:
        channels: Number of channels.
        policy: Dtype of the result.
    """

    channels: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, instance: jax.Array) -> jax.Array:
        """Descriptors ``[n, k]`` -> channel weights ``[n, 1, 1, channels]``."""
        weights = nn.Dense(self.channels, name="linear", precision="highest")(instance.astype(jnp.float32))
        return (1 + jnp.tanh(weights))[:, None, None].astype(self.policy.dtype)


class ChannelGate(nn.Module):
    """Gated channel transformation (GCT, Yang et al. 2020): channels compete by their norms over the pixels.

    Attributes:
        policy: Dtype of the result; norms are float32.
    """

    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c] -> [n, h, w, c]``; the identity at the start of training."""
        c = x.shape[-1:]
        alpha = self.param("alpha", nn.initializers.ones, c, jnp.float32)
        gamma = self.param("gamma", nn.initializers.zeros, c, jnp.float32)
        beta = self.param("beta", nn.initializers.zeros, c, jnp.float32)
        norm = jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum((1, 2), keepdims=True) + 1e-5) * alpha
        scale = gamma * jax.lax.rsqrt(jnp.square(norm).mean(-1, keepdims=True) + 1e-5)
        return x * (1 + jnp.tanh(norm * scale + beta)).astype(self.policy.dtype)


class GatedBottleneck(nn.Module):
    """ResNet bottleneck with group norm, whose residual branch starts with a channel gate.

    Attributes:
        features: Output channels; the inner layers have a quarter.
        groups: Groups of every norm.
        stride: Stride of the 3x3 convolution.
        dilation: Dilation of the 3x3 convolution.
        policy: See ``Policy``.
    """

    features: int
    groups: int
    stride: int = 1
    dilation: int = 1
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c] -> [n, ceil(h / stride), ceil(w / stride), features]``."""
        def conv_norm(x, features, conv, norm, **kwargs):
            x = Conv(features, dtype=self.policy.dtype, name=conv, **kwargs)(x)
            return GroupNorm(group_count(features, self.groups), dtype=self.policy.dtype, name=norm)(x)

        inner = self.features // 4
        y = ChannelGate(self.policy, name="gate")(x)
        y = nn.relu(conv_norm(y, inner, "conv1", "bn1", kernel=1))
        y = nn.relu(conv_norm(y, inner, "conv2", "bn2", stride=self.stride, dilation=self.dilation))
        y = conv_norm(y, self.features, "conv3", "bn3", kernel=1)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv_norm(x, self.features, "downsample_conv", "downsample_bn", kernel=1, stride=self.stride)
        return nn.relu(x + y)


class GatedASPP(nn.Module):
    """ASPP with group norm and channel gates; image pooling has no norm.

    Attributes:
        features: Output channels; each branch has half.
        groups: Groups of every norm.
        policy: See ``Policy``.
    """

    features: int
    groups: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c] -> [n, h, w, features]``."""
        inner = self.features // 2
        branches = []
        for i, (kernel, dilation) in enumerate(((1, 1), (3, 6), (3, 12), (3, 18))):
            y = ChannelGate(self.policy, name=f"branch{i}_gate")(x)
            branch = conv_group_norm(inner, kernel, self.groups, self.policy, f"branch{i}", dilation=dilation)
            branches.append(branch(y))
        pooled = ConvNorm(inner, 1, norm="none", policy=self.policy, name="pool")(global_average_pool(x))
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = ChannelGate(self.policy, name="project_gate")(jnp.concatenate(branches, -1))
        return conv_group_norm(self.features, 1, self.groups, self.policy, "project")(x)


# Bottlenecks of the ensembler: output channels as a multiple of the first one's, stride, dilation.
_BLOCKS = ((1, 1, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (2, 1, 4), (2, 2, 1), (2, 1, 2), (2, 1, 4))


class ObjectHead(nn.Module):
    """Segments one object from its matches; objects are the batch axis and do not see each other.

    Attributes:
        features: Channels of the first bottleneck.
        instance_attention: Whether gates and the last layer depend on the object's descriptor.
        ensembler: Whether to use the collaborative ensembler (Sec. 3.5), or else FEELVOS' four separable convolutions.
        background: Whether the embedding of the previous frame outside the object is an input, too.
        policy: See ``Policy``; logits are float32.
    """

    features: int
    instance_attention: bool = True
    ensembler: bool = True
    background: bool = True
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, objects: dict[str, jax.Array], embed: jax.Array, previous: jax.Array,
                 low: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Segments ``n`` objects.

        Args:
            objects: ``"matches"`` ``[n, h, w, m]``; ``"mask"`` ``[n, h, w, 1]`` of the object in the previous frame;
                ``"instance"`` ``[n, k]``, its descriptor.
            embed: ``[n, h, w, c]``, embedding of the frame.
            previous: ``[n, h, w, c]``, embedding of the previous frame.
            low: ``[n, h, w, c']``, low-level features of the frame.

        Returns:
            ``[n, h, w, 2]`` float32 logits, for and against the object; and intermediates by name.
        """
        prehead = conv_group_norm(self._narrow, 1, self._groups // 2, self.policy, "prehead", use_bias=True)
        x = prehead(objects["matches"])
        intermediates = {"prehead": x}
        mask = objects["mask"].astype(self.policy.dtype)
        inputs = [embed, previous * mask, *([previous * (1 - mask)] if self.background else []), x]
        body = self._ensemble if self.ensembler else self._separable
        x = body(jnp.concatenate(inputs, -1), low, objects["instance"], intermediates).astype(jnp.float32)
        if not self.instance_attention:
            return Conv(2, 1, use_bias=True, name="logits")(x), intermediates
        # Weights and bias of the last 1x1 convolution are predicted for each object.
        heads = jnp.stack([nn.Dense(x.shape[-1] + 1, precision="highest", name=name)(objects["instance"])
                           for name in ("foreground", "background")], -1)  # [n, c + 1, 2]
        logits = jnp.einsum("nhwc,ncf->nhwf", x, heads[:, :-1], precision="highest")
        return logits + heads[:, None, None, -1], intermediates

    def _ensemble(self, x, low, instance, intermediates):
        for i, (factor, stride, dilation) in enumerate(_BLOCKS, 1):
            block = GatedBottleneck(factor * self.features, self._groups, stride, dilation, self.policy,
                                    name=f"block{i}")
            x = intermediates[f"block{i}"] = block(self._gated(x, i, instance))
        coarse = GatedASPP(self.features, self._groups, self.policy, name="aspp")(self._gated(x, 9, instance))
        intermediates["ensembler_aspp"] = coarse
        fine = jnp.concatenate([low, intermediates["block2"]], -1)
        fine = ChannelGate(self.policy, name="fine_gate")(fine)
        fine = conv_group_norm(self._narrow, 1, self._groups // 2, self.policy, "fine")(fine)
        if self.instance_attention:
            c = coarse.shape[-1]
            gate = InstanceGate(c + fine.shape[-1], self.policy, name="gate10")(instance)
            coarse, fine = coarse * gate[..., :c], fine * gate[..., c:]
        half = self.features // 2
        x = MergingConv(half, "bicubic", self.policy, name="merge1_conv")(coarse, fine)
        x = GroupNorm(group_count(half, self._groups), dtype=self.policy.dtype, name="merge1_bn")(x)
        x = self._gated(nn.relu(x), 11, instance)
        return conv_group_norm(half, 3, self._groups, self.policy, "merge2")(x)

    def _separable(self, x, low, instance, intermediates):
        del low, intermediates
        for i in range(1, 5):
            x, c = self._gated(x, i, instance), x.shape[-1]
            x = conv_group_norm(c, 7, self._groups, self.policy, f"depthwise{i}", groups=c)(x)
            x = conv_group_norm(self.features, 1, self._groups, self.policy, f"pointwise{i}")(x)
        return x

    def _gated(self, x, i, instance):
        if not self.instance_attention:
            return x
        return x * InstanceGate(x.shape[-1], self.policy, name=f"gate{i}")(instance)

    @property
    def _narrow(self):
        return max(_MIN_CHANNELS, self.features // 4)

    @property
    def _groups(self):
        # 32 as published. A smaller network has fewer groups: a norm over a single channel would remove its magnitude.
        return self.features // 8


def combine_objects(logits: jax.Array, count: jax.Array) -> jax.Array:
    """Combines the logits of all objects into one map.

    Each object keeps its logit for. The background's logit is increased by the smallest logit against any object. This
    is the published code's rule; the paper does not state one.

    Args:
        logits: ``[b, objects, h, w, 2]`` float32, for and against each object, background first.
        count: ``[b]`` int32, number of objects in use beside the background.

    Returns:
        ``[b, h, w, objects]`` float32, -1e4 in slots without an object.
    """
    logits = jnp.moveaxis(logits, 1, 3)
    in_use = (jnp.arange(logits.shape[3]) <= count[:, None])[:, None, None]
    own = jnp.where(in_use, logits[..., 0], _ABSENT)
    against = jnp.where(in_use, logits[..., 1], jnp.inf)[..., 1:].min(-1)
    return own.at[..., 0].add(jnp.where(count[:, None, None] > 0, against, 0.0))
