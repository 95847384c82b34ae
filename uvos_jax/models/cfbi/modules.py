"""Parts of CFBI: the encoder's head, gated units, and what looks at each object."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import BatchNorm, Conv, GroupNorm, Policy, kaiming_fan_out
from uvos_jax.ops.conv import conv2d, conv2d_resized
from uvos_jax.ops.pooling import global_average_pool

_ABSENT = -1e4  # logit of a place without an object
# Channels of what is narrow as published (64 and 48 of 256), where a small network has fewer: outlines and matches must
# come through there.
_NARROWEST = 16


def group_norm(channels: int, groups: int, dtype: jnp.dtype, name: str | None = None,
               initial: float = 1.0) -> GroupNorm:
    """Group norm with at most so many groups, as many as divide the channels."""
    return GroupNorm(math.gcd(max(1, groups), channels), initial, dtype=dtype, name=name)


class MergingConv(nn.Module):
    """A 3x3 convolution of coarse features, resized to fine ones, with these behind them in the channels.

    Attributes:
      features: output channels.
      resize: how coarse features are resized, ``"bilinear"`` or ``"bicubic"``.
      dtype: type of the computation; resizing is float32.
    """

    features: int
    resize: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, coarse: jax.Array, fine: jax.Array) -> jax.Array:
        """``[n, h', w', c']`` and ``[n, h, w, c]`` to ``[n, h, w, features]``."""
        c = coarse.shape[-1]
        kernel = self.param("kernel", kaiming_fan_out, (3, 3, c + fine.shape[-1], self.features), jnp.float32)
        kernel = kernel.astype(self.dtype)
        y = conv2d_resized(coarse.astype(self.dtype), kernel[:, :, :c], fine.shape[1:3], self.resize)
        return y + conv2d(fine.astype(self.dtype), kernel[:, :, c:])


class DeepLabHead(nn.Module):
    """DeepLabv3+ behind its backbone (Chen et al. 2018), without a classifier: ASPP, and a decoder at stride 4.

    Attributes:
      features: channels of ASPP and decoder.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation.
    """

    features: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, stages: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Stages of a ``ResNet`` at output stride 16 to ``aspp`` there and ``decoded`` at stride 4."""
        policy = Policy(self.dtype, self.axis_name)

        def normed(x, name):
            return nn.relu(BatchNorm(name=f"{name}_bn", policy=policy)(x, train))

        aspp = ASPP(self.features, (6, 12, 18), name="aspp", policy=policy)(stages["layer4"], train)
        low = Conv(max(_NARROWEST, self.features * 3 // 16), 1, dtype=self.dtype, name="low_conv")(stages["layer1"])
        merge = MergingConv(self.features, "bilinear", self.dtype, name="merge1_conv")
        x = normed(merge(aspp, normed(low, "low")), "merge1")
        x = normed(Conv(self.features, dtype=self.dtype, name="merge2_conv")(x), "merge2")
        return {"aspp": aspp, "decoded": x}


class MatchBias(nn.Module):
    """What is added to all distances to an object before they become values (Eq. 2): one number for the background,
    one for all others."""

    @nn.compact
    def __call__(self, objects: int) -> jax.Array:
        """``[objects]`` float32."""
        background, foreground = (self.param(name, nn.initializers.zeros, (1,), jnp.float32)
                                  for name in ("background", "foreground"))
        return jnp.where(jnp.arange(objects) == 0, background, foreground)


class InstanceGate(nn.Module):
    """Instance-level attention (Sec. 3.4): channels weighed by ``1 + tanh`` of a linear map of what an object is like.

    Attributes:
      channels: how many.
      dtype: type of the result.
    """

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, instance: jax.Array) -> jax.Array:
        """``[n, k]`` to the factors, ``[n, 1, 1, channels]``."""
        weights = nn.Dense(self.channels, name="linear", precision="highest")(instance.astype(jnp.float32))
        return (1 + jnp.tanh(weights))[:, None, None].astype(self.dtype)


class ChannelGate(nn.Module):
    """Gated channel transformation (GCT, Yang et al. 2020): channels compete by their lengths.

    Attributes:
      dtype: type of the result; lengths are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c] -> [n, h, w, c]``; the identity at the start of training."""
        c = x.shape[-1:]
        alpha = self.param("alpha", nn.initializers.ones, c, jnp.float32)
        gamma = self.param("gamma", nn.initializers.zeros, c, jnp.float32)
        beta = self.param("beta", nn.initializers.zeros, c, jnp.float32)
        length = jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum((1, 2), keepdims=True) + 1e-5) * alpha
        scale = gamma * jax.lax.rsqrt(jnp.square(length).mean(-1, keepdims=True) + 1e-5)
        return x * (1 + jnp.tanh(length * scale + beta)).astype(self.dtype)


class GatedBottleneck(nn.Module):
    """ResNet's bottleneck with group norm, whose branch begins with a channel gate.

    Attributes:
      features: output channels; a quarter of them inside.
      groups: of every norm.
      stride: step of the 3x3 convolution.
      dilation: of the 3x3 convolution.
      dtype: type of the computation.
    """

    features: int
    groups: int
    stride: int = 1
    dilation: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c] -> [n, ceil(h / stride), ceil(w / stride), features]``."""
        def unit(x, features, i, **kwargs):
            x = Conv(features, dtype=self.dtype, name=f"conv{i}", **kwargs)(x)
            return group_norm(features, self.groups, self.dtype, f"bn{i}")(x)

        inner = self.features // 4
        y = nn.relu(unit(ChannelGate(self.dtype, name="gate")(x), inner, 1, kernel=1))
        y = nn.relu(unit(y, inner, 2, stride=self.stride, dilation=self.dilation))
        y = unit(y, self.features, 3, kernel=1)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, dtype=self.dtype, name="downsample_conv")(x)
            x = group_norm(self.features, self.groups, self.dtype, "downsample_bn")(x)
        return nn.relu(x + y)


class GatedASPP(nn.Module):
    """ASPP with group norm and channel gates; image pooling has no norm.

    Attributes:
      features: output channels; half of them in each branch.
      groups: of every norm.
      dtype: type of the computation.
    """

    features: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c] -> [n, h, w, features]``."""
        inner = self.features // 2
        branches = []
        for i, (kernel, dilation) in enumerate(((1, 1), (3, 6), (3, 12), (3, 18))):
            y = ChannelGate(self.dtype, name=f"branch{i}_gate")(x)
            y = Conv(inner, kernel, dilation=dilation, dtype=self.dtype, name=f"branch{i}_conv")(y)
            branches.append(nn.relu(group_norm(inner, self.groups, self.dtype, f"branch{i}_bn")(y)))
        pooled = nn.relu(Conv(inner, 1, dtype=self.dtype, name="pool_conv")(global_average_pool(x)))
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = ChannelGate(self.dtype, name="project_gate")(jnp.concatenate(branches, -1))
        x = Conv(self.features, 1, dtype=self.dtype, name="project_conv")(x)
        return nn.relu(group_norm(self.features, self.groups, self.dtype, "project_bn")(x))


# Of the ensembler's bottlenecks: output channels over the first one's, stride, dilation.
_BLOCKS = ((1, 1, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (2, 1, 4), (2, 2, 1), (2, 1, 2), (2, 1, 4))


class ObjectHead(nn.Module):
    """From what is known of an object at every pixel to its logits; every object alike, one by one or side by side.

    Attributes:
      features: channels of the first bottleneck.
      instance_attention: whether gates and the last layer depend on what an object is like.
      ensembler: the collaborative ensembler (Sec. 3.5), or else FEELVOS' four separable convolutions.
      background: whether features of the last frame outside of the object are looked at, too.
      dtype: type of the computation; logits are float32.
    """

    features: int
    instance_attention: bool = True
    ensembler: bool = True
    background: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, seen: dict[str, jax.Array], embed: jax.Array, previous: jax.Array,
                 low: jax.Array) -> tuple[jax.Array, dict]:
        """Looks at ``n`` objects.

        Args:
          seen: ``"matches" [n, h, w, m]``, ``"mask" [n, h, w, 1]`` in the last frame, ``"instance" [n, k]``.
          embed: ``[n, h, w, c]``, embedding of the frame.
          previous: ``[n, h, w, c]``, that of the last one.
          low: ``[n, h, w, c']``, fine features of the frame.

        Returns:
          ``[n, h, w, 2]`` float32 logits, for and against the object; and intermediates by name.
        """
        narrow = max(_NARROWEST, self.features // 4)
        x = Conv(narrow, 1, use_bias=True, dtype=self.dtype, name="prehead_conv")(seen["matches"])
        x = nn.relu(group_norm(x.shape[-1], self._groups // 2, self.dtype, "prehead_bn")(x))
        mask = seen["mask"].astype(self.dtype)
        parts = [embed, previous * mask, *([previous * (1 - mask)] if self.background else []), x]
        made = {"prehead": x}
        body = self._ensemble if self.ensembler else self._separable
        x = body(jnp.concatenate(parts, -1), low, seen["instance"], made).astype(jnp.float32)
        if not self.instance_attention:
            return Conv(2, 1, use_bias=True, name="logits")(x), made
        # Weights and bias of the last 1x1 convolution are made for each object.
        heads = jnp.stack([nn.Dense(x.shape[-1] + 1, precision="highest", name=name)(seen["instance"])
                           for name in ("foreground", "background")], -1)  # [n, c + 1, 2]
        logits = jnp.einsum("nhwc,ncf->nhwf", x, heads[:, :-1], precision="highest")
        return logits + heads[:, None, None, -1], made

    def _ensemble(self, x, low, instance, made):
        for i, (times, stride, dilation) in enumerate(_BLOCKS, 1):
            block = GatedBottleneck(times * self.features, self._groups, stride, dilation, self.dtype, name=f"block{i}")
            x = made[f"block{i}"] = block(self._gated(x, i, instance))
        coarse = made["ensembler_aspp"] = GatedASPP(self.features, self._groups, self.dtype, name="aspp")(
            self._gated(x, 9, instance))
        fine = ChannelGate(self.dtype, name="fine_gate")(jnp.concatenate([low, made["block2"]], -1))
        fine = self._unit(fine, "fine", made["prehead"].shape[-1], 1, self._groups // 2)
        if self.instance_attention:
            c = coarse.shape[-1]
            gate = InstanceGate(c + fine.shape[-1], self.dtype, name="gate10")(instance)
            coarse, fine = coarse * gate[..., :c], fine * gate[..., c:]
        x = MergingConv(self.features // 2, "bicubic", self.dtype, name="merge1_conv")(coarse, fine)
        x = nn.relu(group_norm(x.shape[-1], self._groups, self.dtype, "merge1_bn")(x))
        return self._unit(self._gated(x, 11, instance), "merge2", self.features // 2, 3)

    def _separable(self, x, low, instance, made):
        del low, made
        for i in range(1, 5):
            x = self._gated(x, i, instance)
            x = Conv(x.shape[-1], 7, groups=x.shape[-1], dtype=self.dtype, name=f"depthwise{i}")(x)
            x = nn.relu(group_norm(x.shape[-1], self._groups, self.dtype, f"depthwise{i}_bn")(x))
            x = self._unit(x, f"pointwise{i}", self.features, 1)
        return x

    def _gated(self, x, i, instance):
        if not self.instance_attention:
            return x
        return x * InstanceGate(x.shape[-1], self.dtype, name=f"gate{i}")(instance)

    def _unit(self, x, name, features, kernel, groups=None):
        x = Conv(features, kernel, dtype=self.dtype, name=f"{name}_conv")(x)
        groups = self._groups if groups is None else groups
        return nn.relu(group_norm(features, groups, self.dtype, f"{name}_bn")(x))

    @property
    def _groups(self):
        # 32 as published. Fewer features have fewer groups: one of a single channel would hide how strong that is.
        return self.features // 8


def combine(logits: jax.Array, count: jax.Array) -> jax.Array:
    """Logits of all places: those for each object; to the background's is added the least that speaks against one.

    The published code's; the paper does not say how objects come together.

    Args:
      logits: ``[b, objects, h, w, 2]`` float32, for and against each object, the background first.
      count: ``[b]`` int32, how many beside the background are there.

    Returns:
      ``[b, h, w, objects]`` float32, -1e4 at places without an object.
    """
    logits = jnp.moveaxis(logits, 1, 3)
    there = (jnp.arange(logits.shape[3]) <= count[:, None])[:, None, None]
    own = jnp.where(there, logits[..., 0], _ABSENT)
    against = jnp.where(there, logits[..., 1], jnp.inf)[..., 1:].min(-1)
    return own.at[..., 0].add(jnp.where(count[:, None, None] > 0, against, 0.0))
