"""Modules of F2Net: the center prediction branch, the dynamic information fusion, and the center prior."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import Conv, ConvNorm, Policy, torch_default
from uvos_jax.ops.center_heatmaps import gaussian_prior
from uvos_jax.ops.pooling import global_average_pool
from uvos_jax.ops.resize import resize_bilinear

SIDE = 473  # side of the paper's input, in pixels
STRIDE = 4  # of the center map
SIGMA = 15.0  # of the prior, in pixels of an input of that side
_REDUCTION = 16  # channel reduction of the channel attention's bottleneck
# Initial bias of the heat map: with sigmoid(0) from the shift gate, the initial probability of a center is 0.03.
_INITIAL_HEAT = -4.1


def center_prior(center: jax.Array, map_size: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """Returns the Gaussian prior around a center (Eq. 5), drawn at the size of the embedding.

    Its width is proportional to the input, but at least one pixel at stride 8: for a small input, the prior would
    otherwise vanish between two pixels.

    Args:
        center: ``[b, 2]`` (x, y) in pixels of the center map.
        map_size: (height, width) of the center map, at stride 4.
        size: (height, width) of the embedding, at stride 8.

    Returns:
        ``[b, *size, 1]`` float32 in 0..1.
    """
    side = STRIDE * (min(map_size) - 1) + 1
    return gaussian_prior(center / 2, size, max(SIGMA * side / SIDE / 8, 1.0))


class UpsamplingUnit(nn.Module):
    """Adds one stage of the backbone to the upsampled coarser ones (first step of the center branch).

    Attributes:
        features: Output channels.
        policy: See ``Policy``.
    """

    features: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, stage: jax.Array, coarser: jax.Array | None, train: bool) -> jax.Array:
        """``[b, h, w, c]`` and, except for the first unit, ``[b, h', w', features] -> [b, h, w, features]``."""
        def conv_norm(name):
            return ConvNorm(self.features, 1, activation=None, policy=self.policy, name=name)

        x = conv_norm("skip")(stage, train)
        if coarser is not None:
            x = x + conv_norm("up")(resize_bilinear(coarser, stage.shape[1:3], align_corners=False), train)
        return nn.relu(x)


class CenterBranch(nn.Module):
    """Predicts the center of the foreground from all four stages and the previous center map (Eq. 1-4).

    Attributes:
        features: Channels of the upsampling units.
        embedding: D, channels of the branch's output features.
        policy: See ``Policy``; the heat map is float32.
    """

    features: int
    embedding: int
    policy: Policy = Policy()

    def setup(self):
        """Creates the submodules."""
        self.up1, self.up2, self.up3, self.up4 = (UpsamplingUnit(self.features, self.policy) for _ in range(4))
        self.cross = ConvNorm(self.embedding, 1, policy=self.policy)
        self.hidden = Conv(self.features, use_bias=True, dtype=self.policy.dtype)
        one_channel = {"use_bias": True, "dtype": jnp.float32, "kernel_init": torch_default}
        self.frame_heat = Conv(1, 1, bias_init=_INITIAL_HEAT, **one_channel)
        self.scale = Conv(1, 1, **one_channel)
        self.shift = Conv(1, 1, **one_channel)

    def encode(self, stages: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Computes what depends on the frame alone.

        Args:
            stages: Stages of the backbone, ``layer1`` to ``layer4``.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            At the size of ``layer1``: ``"center_features"`` ``[b, h, w, embedding]``, and ``"frame_heat"``
            ``[b, h, w, 1]`` float32, heat map logits of the frame alone.
        """
        x = None
        for unit, layer in ((self.up1, 4), (self.up2, 3), (self.up3, 2), (self.up4, 1)):
            x = unit(stages[f"layer{layer}"], x, train)
        x = self.cross(x, train)
        return {"center_features": x, "frame_heat": self.frame_heat(nn.relu(self.hidden(x)))}

    def heat(self, features: dict[str, jax.Array], previous: jax.Array) -> jax.Array:
        """Computes the heat map: the previous center map, scaled and shifted by gates, plus the frame's own heat map.

        Args:
            features: Result of ``encode``.
            previous: ``[b, h, w, 1]`` in 0..1, center map of the previous frame; zeros if there is none.

        Returns:
            ``[b, h, w, 1]`` float32 logits.
        """
        both = jnp.concatenate([features["center_features"].astype(jnp.float32), previous], -1)
        gates = nn.sigmoid(self.scale(both)), nn.sigmoid(self.shift(both))
        return gates[0] * previous + gates[1] + features["frame_heat"]


class Fusion(nn.Module):
    """Weights three maps by attention over their sum, and adds them (Eq. 8-11).

    Channel attention (CA) gives each map a weight per channel, spatial attention (SA) one per pixel; the three weights
    sum to 1. With two attentions, the second one sees the maps weighted by the first.

    Attributes:
        order: ``""`` (the mean), ``"ca"``, ``"sa"``, or both in either order: ``"csa"`` (the paper's), ``"sca"``.
        channels: Channels of each map.
        all_parameters: Whether the parameters of both attentions exist even if only one runs, as in the published
            checkpoints.
        policy: Dtype of the maps, and the mapped axis of the batch statistics; weights are float32.
    """

    order: str
    channels: int
    all_parameters: bool = False
    policy: Policy = Policy()

    def setup(self):
        """Creates the submodules."""
        if self.all_parameters or "c" in self.order:
            self.squeeze = ConvNorm(max(4, self.channels // _REDUCTION), 1, policy=self.policy.float32)
            self.expand = Conv(3 * self.channels, 1, dtype=jnp.float32)
        if self.all_parameters or self.order in ("sa", "sca", "csa"):
            self.spatial = Conv(3, 1, dtype=jnp.float32)

    def __call__(self, maps: tuple[jax.Array, jax.Array, jax.Array], train: bool) -> tuple[jax.Array, dict]:
        """Fuses three maps ``[b, h, w, c]`` into one; also returns ``{"channel_logits": [b, 1, 1, 3 c]}`` with CA."""
        intermediates = {}
        attentions = {"": (), "csa": ("ca", "sa"), "sca": ("sa", "ca")}.get(self.order, (self.order,))
        if not attentions:
            return sum(maps) / 3, intermediates
        for attention in attentions:
            if attention == "ca":
                logits = self.expand(self.squeeze(global_average_pool(sum(maps)), train))
                intermediates["channel_logits"] = logits
                weights = nn.softmax(logits.reshape(-1, 1, 1, 3, self.channels), axis=-2)
                weights = jnp.moveaxis(weights, -2, 0)
            else:
                weights = jnp.moveaxis(nn.softmax(self.spatial(sum(maps)), axis=-1), -1, 0)[..., None]
            maps = tuple((x * weight).astype(self.policy.dtype) for x, weight in zip(maps, weights, strict=True))
        if self.all_parameters and self.is_initializing():
            self.spatial(maps[0])
        return sum(maps), intermediates
