"""Parts of F2Net: the center prediction branch and the dynamic information fusion."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import BatchNorm, Conv, Policy, torch_default
from uvos_jax.ops.center_heatmaps import gaussian_prior
from uvos_jax.ops.pooling import global_average_pool
from uvos_jax.ops.resize import resize_bilinear

SIDE = 473  # of the paper's input, in pixels
STRIDE = 4  # of the center map
SIGMA = 15.0  # of the prior, in pixels of an input of that side
_REDUCTION = 16  # of the channel attention's bottleneck
_RARE = -4.1  # start of the heat map's bias: with sigmoid(0) of its other term, a center has probability 0.03


def prior(center: jax.Array, map_size: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """The Gauss prior around a center (Eq. 5), drawn at the size of the embedding.

    Its width follows the input, but is a pixel of stride 8 at least: of a small input the prior would else be lost
    between two pixels.

    Args:
      center: ``[b, 2]``, (x, y) in pixels of the center map.
      map_size: of the center map, at stride 4.
      size: of the embedding, at stride 8.

    Returns:
      ``[b, *size, 1]`` float32 in 0..1.
    """
    side = STRIDE * (min(map_size) - 1) + 1
    return gaussian_prior(center / 2, size, max(SIGMA * side / SIDE / 8, 1.0))


class UpsamplingUnit(nn.Module):
    """Adds one stage of the backbone to what the coarser ones gave (first step of the center branch).

    Attributes:
      features: channels.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation.
    """

    features: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, stage: jax.Array, coarser: jax.Array | None, train: bool) -> jax.Array:
        """``stage [b, h, w, c]``, perhaps ``coarser [b, h', w', features] -> [b, h, w, features]``."""
        def unit(x, name):
            x = Conv(self.features, 1, dtype=self.dtype, name=name)(x)
            return BatchNorm(policy=Policy(self.dtype, self.axis_name), name=f"{name}_bn")(x, train)

        x = unit(stage, "skip")
        if coarser is not None:
            x = x + unit(resize_bilinear(coarser, stage.shape[1:3], align_corners=False), "up")
        return nn.relu(x)


class CenterBranch(nn.Module):
    """Where the center of the foreground is (Eq. 1-4): features of all four stages and the previous center map.

    Attributes:
      features: channels of the upsampling units.
      embedding: D, channels of what they lead to.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation; the heat map is float32.
    """

    features: int
    embedding: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        norm = {"axis_name": self.axis_name, "dtype": self.dtype}
        self.up1, self.up2, self.up3, self.up4 = (UpsamplingUnit(self.features, **norm) for _ in range(4))
        self.cross = Conv(self.embedding, 1, dtype=self.dtype)
        self.cross_bn = BatchNorm(policy=Policy(**norm))
        self.hidden = Conv(self.features, use_bias=True, dtype=self.dtype)
        one = {"use_bias": True, "dtype": jnp.float32, "kernel_init": torch_default}
        self.fresh = Conv(1, 1, bias_start=_RARE, **one)
        self.scale = Conv(1, 1, **one)
        self.shift = Conv(1, 1, **one)

    def encode(self, stages: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """What the frame alone says.

        Args:
          stages: of the backbone, ``layer1`` to ``layer4``.
          train: whether batch norm uses batch statistics.

        Returns:
          ``{"up": [b, h, w, embedding], "fresh": [b, h, w, 1] float32}`` at the size of ``layer1``.
        """
        x = None
        for unit, layer in ((self.up1, 4), (self.up2, 3), (self.up3, 2), (self.up4, 1)):
            x = unit(stages[f"layer{layer}"], x, train)
        x = nn.relu(self.cross_bn(self.cross(x), train))
        return {"up": x, "fresh": self.fresh(nn.relu(self.hidden(x)))}

    def heat(self, features: dict[str, jax.Array], previous: jax.Array) -> jax.Array:
        """The heat map: the previous frame's center map, scaled and shifted by gates, and what the frame alone says.

        Args:
          features: of :meth:`encode`.
          previous: ``[b, h, w, 1]`` in 0..1, the center map of the previous frame; zeros if there is none.

        Returns:
          ``[b, h, w, 1]`` float32 logits.
        """
        both = jnp.concatenate([features["up"].astype(jnp.float32), previous], -1)
        gates = nn.sigmoid(self.scale(both)), nn.sigmoid(self.shift(both))
        return gates[0] * previous + gates[1] + features["fresh"]


class Fusion(nn.Module):
    """Weighs three maps by what all of them show together, and adds them (Eq. 8-11).

    Channel attention (CA) gives each map a weight per channel, spatial attention (SA) one per pixel; the three weights
    sum up to 1. Of two attentions the second sees the maps as the first has weighed them.

    Attributes:
      order: ``""`` (the mean), ``"ca"``, ``"sa"``, or both in either order: ``"csa"`` (the paper's), ``"sca"``.
      channels: of each map.
      whole: whether the parameters of both attentions exist, whatever runs: the published checkpoints have them.
      axis_name: see ``BatchNorm``.
      dtype: type of the maps; weights are float32.
    """

    order: str
    channels: int
    whole: bool = False
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        if self.whole or "c" in self.order:
            self.squeeze = Conv(max(4, self.channels // _REDUCTION), 1, dtype=jnp.float32)
            self.squeeze_bn = BatchNorm(policy=Policy(axis_name=self.axis_name))
            self.expand = Conv(3 * self.channels, 1, dtype=jnp.float32)
        if self.whole or self.order in ("sa", "sca", "csa"):
            self.spatial = Conv(3, 1, dtype=jnp.float32)

    def __call__(self, maps: tuple[jax.Array, jax.Array, jax.Array], train: bool) -> tuple[jax.Array, dict]:
        """Three of ``[b, h, w, c]`` to one of them, and ``{"channel_logits": [b, 1, 1, 3 c]}`` if there is CA."""
        made, rules = {}, {"": (), "csa": ("ca", "sa"), "sca": ("sa", "ca")}.get(self.order, (self.order,))
        if not rules:
            return sum(maps) / 3, made
        for rule in rules:
            if rule == "ca":
                made["channel_logits"] = self._channel(sum(maps), train)
                weights = nn.softmax(made["channel_logits"].reshape(-1, 1, 1, 3, self.channels), axis=-2)
                weights = jnp.moveaxis(weights, -2, 0)
            else:
                weights = jnp.moveaxis(nn.softmax(self.spatial(sum(maps)), axis=-1), -1, 0)[..., None]
            maps = tuple((x * weight).astype(self.dtype) for x, weight in zip(maps, weights, strict=True))
        if self.whole and self.is_initializing():
            self.spatial(maps[0])
        return sum(maps), made

    def _channel(self, x, train):
        return self.expand(nn.relu(self.squeeze_bn(self.squeeze(global_average_pool(x)), train)))
