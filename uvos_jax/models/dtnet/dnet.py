"""D-Net: discovers the objects of a frame, guided by the previous frame's saliency (Zhou et al., CVPR 2021, Sec. 3.1).

One encoder and two decoders: saliency (where any object is) and instances, as in Panoptic-DeepLab: a heat map of object
centers, and for every pixel the offset to its center. What the paper leaves open is marked as ours where it is decided;
widths, decoders, losses and their weights are Panoptic-DeepLab's.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.models.dtnet.modules import GuidanceExcitation, PredictionHead, SkipDecoder, reduced_channels
from uvos_jax.nn import resnet
from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import Policy
from uvos_jax.ops.instance_grouping import center_targets
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.ops.morphology import dilate, erode
from uvos_jax.ops.resize import resize_bilinear

SQUEEZES = ("literal", "mixed")
_DILATIONS = (6, 12, 18)
_STRIDE = 16  # of the encoder; ours: the head predicts offsets in units of it, since values near 1 are learned quickly

_SIDE = 640  # side of the paper's crops; the lengths below are pixels of such a crop
# Of a center's bell. The minimum is one pixel of the maps that the heads predict.
_SIGMA, _LEAST_SIGMA = 10.0, 4.0
_HEAT, _OFFSETS = 200.0, 0.01  # weights of the losses, relative to the saliency loss


class DNet(nn.Module):
    """D-Net and the rows of Table 3.

    Attributes:
        depths: Number of blocks in the four layers of both backbones.
        width: Channels of their stems.
        features: C, channels of the pyramids and of the guidance.
        decoder: Channels of the saliency decoder; the instance decoder has half as many.
        guidance: Whether the previous frame and its saliency are inputs.
        squeeze: Input of the excitation that weights the guidance: ``"literal"``, the features of both heads (Eq. 3-5
            as printed), or ``"mixed"``, the two maps that Eq. 6 and 7 mix, the features of a head and the guidance.
        categories: Number of object categories of the saliency head; 1 for any object, which takes a single logit.
        policy: See ``Policy``; excitation weights and outputs are float32.
        remat: Whether training recomputes the backbones' blocks to save memory, see ``ResNet``.
    """

    depths: tuple[int, ...] = resnet.RESNET50
    width: int = 64
    features: int = 256
    decoder: int = 256
    guidance: bool = True
    squeeze: str = "literal"
    categories: int = 1
    policy: Policy = Policy()
    remat: bool = False

    def setup(self):
        """Creates the submodules."""
        if self.squeeze not in SQUEEZES:
            raise ValueError(f"Unknown squeeze '{self.squeeze}'. Use one of {', '.join(SQUEEZES)}.")
        policy = self.policy
        encoder = {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2), "remat": self.remat, "policy": policy}
        self.backbone = resnet.ResNet(self.depths, self.width, **encoder)
        self.salient_aspp = ASPP(self.features, _DILATIONS, policy=policy)
        self.instance_aspp = ASPP(self.features, _DILATIONS, policy=policy)
        if self.guidance:
            self.guide_backbone = resnet.ResNet(self.depths, self.width, **encoder)
            self.guide_aspp = ASPP(self.features, _DILATIONS, policy=policy)
            self.salient_excitation = GuidanceExcitation(policy)
            self.instance_excitation = GuidanceExcitation(policy)
        half = reduced_channels(self.decoder, 2)
        self.salient_decoder = SkipDecoder(self.decoder, policy)
        self.instance_decoder = SkipDecoder(half, policy)
        self.salient_head = PredictionHead(self.decoder, self.categories + 1 if self.categories > 1 else 1, policy)
        self.heat_head = PredictionHead(reduced_channels(half, 4), 1, policy)
        self.offset_head = PredictionHead(reduced_channels(half, 4), 2, policy)

    def encode(self, frames: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Encodes frames, without the guidance.

        Args:
            frames: ``[b, h, w, 3]`` float, normalized; sides ``16 k + 1`` align best.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            ``"layer1"`` at stride 4, ``"layer2"`` at 8, ``"salient"`` and ``"instance"`` at 16.
        """
        stages = self.backbone(frames.astype(self.policy.dtype), train)
        return {"layer1": stages["layer1"], "layer2": stages["layer2"],
                "salient": self.salient_aspp(stages["layer4"], train),
                "instance": self.instance_aspp(stages["layer4"], train)}

    def guide(self, previous_frame: jax.Array, previous_prob: jax.Array, train: bool = False) -> jax.Array:
        """Encodes the guidance. Ours: a backbone and a pyramid of its own, with four input channels.

        Args:
            previous_frame: ``[b, h, w, 3]`` float, normalized; for the first frame (ours) the frame itself.
            previous_prob: ``[b, h, w, 1]`` float in 0..1, foreground probability; 0 before the first frame.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            ``[b, h', w', features]`` at stride 16.
        """
        dtype = self.policy.dtype
        both = jnp.concatenate([previous_frame.astype(dtype), previous_prob.astype(dtype)], -1)
        return self.guide_aspp(self.guide_backbone(both, train)["layer4"], train)

    def decode(self, features: Mapping[str, jax.Array], guidance: jax.Array | None, size: tuple[int, int],
               train: bool = False) -> dict[str, jax.Array]:
        """Decodes features into saliency, centers and offsets.

        Args:
            features: Result of ``encode``.
            guidance: Result of ``guide``; None for a network without guidance.
            size: (height, width) of the frames.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            float32 maps at ``size``: ``"salient_logits"`` ``[b, h, w, 1]`` for any object, or
            ``[b, h, w, categories + 1]``, background first; ``"heat"`` ``[b, h, w, 1]`` of centers, about 0 to 1;
            ``"offsets"`` ``[b, h, w, 2]``, (dy, dx) in pixels to the center.
        """
        salient, instance = features["salient"], features["instance"]
        if self.guidance:
            literal, both = self.squeeze == "literal", (salient, instance)
            salient, instance = (
                excitation(x, guidance, both if literal else (x, guidance))
                for excitation, x in ((self.salient_excitation, salient), (self.instance_excitation, instance)))
        salient = self.salient_decoder(salient, features, train)
        instance = self.instance_decoder(instance, features, train)
        maps = {"salient_logits": self.salient_head(salient, train), "heat": self.heat_head(instance, train),
                "offsets": _STRIDE * self.offset_head(instance, train)}
        return {name: resize_bilinear(x, size, align_corners=True) for name, x in maps.items()}

    def __call__(self, frames: jax.Array, previous_frames: jax.Array, previous_prob: jax.Array,
                 train: bool = False) -> dict[str, jax.Array]:
        """Runs ``encode``, ``guide`` and ``decode``; see there for shapes."""
        guidance = self.guide(previous_frames, previous_prob, train) if self.guidance else None
        return self.decode(self.encode(frames, train), guidance, frames.shape[1:3], train)


def losses(outputs: Mapping[str, jax.Array], labels: jax.Array, objects: int,
           categories: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the cross-entropy of the saliency, squared error of the heat, and absolute error of offsets in objects.

    Weights and forms are Panoptic-DeepLab's (the paper gives none). Ours: lengths are in pixels of a crop of 640, so
    that bells and offsets mean the same in smaller crops.

    Args:
        outputs: Result of ``DNet.decode``.
        labels: ``[b, h, w]`` int32, objects 1 to ``objects``, 0 background, -1 void, which is ignored.
        objects: Highest number of objects.
        categories: ``[b, objects]`` int32 category of each object, from 1; needed by networks with categories.

    Returns:
        ``[b]`` float32, the sum of the parts; and the weighted parts ``{"salient", "heat", "offsets": [b]}``.

    Raises:
        ValueError: The network has categories and ``categories`` is None.
    """
    valid, foreground = labels >= 0, labels > 0
    logits = outputs["salient_logits"].astype(jnp.float32)
    if logits.shape[-1] == 1:
        salient = binary_cross_entropy(logits[..., 0], foreground, valid)
    elif categories is None:
        raise ValueError("No categories given for a network with categories. Give those of the objects.")
    else:
        category = jnp.take_along_axis(categories, jnp.maximum(labels - 1, 0).reshape(len(labels), -1), 1)
        category = jnp.where(foreground, category.reshape(labels.shape), 0)
        own = jnp.take_along_axis(logits, category[..., None], -1)[..., 0]
        salient = _masked_mean(jax.nn.logsumexp(logits, -1) - own, valid)
    unit = min(labels.shape[1:]) / _SIDE
    heat, offsets, _ = center_targets(labels, objects, max(_SIGMA * unit, _LEAST_SIGMA))
    heat_error = jnp.square(outputs["heat"][..., 0].astype(jnp.float32) - heat)
    offset_error = jnp.abs(outputs["offsets"].astype(jnp.float32) - offsets).mean(-1) / unit
    parts = {"salient": salient, "heat": _HEAT * _masked_mean(heat_error, valid),
             "offsets": _OFFSETS * _masked_mean(offset_error, foreground)}
    return sum(parts.values()), parts


def _masked_mean(values, where):
    """Returns the mean of each example, ``[b, h, w] -> [b]``; 0 where ``where`` has no pixel."""
    return (values * where).sum((1, 2)) / jnp.maximum(where.sum((1, 2)), 1)


# Simulated errors of the previous frame's mask in training; ours.
_FIRST, _MISSED, _LOST = 0.1, 0.1, 0.2  # probability of: no previous frame, no object found, one object missed
_SHIFT, _SCALE = 0.04, 0.06  # maxima, relative to the sides
_GROWTH = 0.01  # of the shorter side; applied once or twice, as dilation or erosion


def training_pairs(frames: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Splits pairs of frames into the guidance and the frame to learn, and simulates errors of the previous mask.

    Ours: the true mask of the previous frame is shifted, scaled, and dilated or eroded, with soft edges; sometimes it
    lacks one object or all of them, and sometimes the frame is the first one of a video. Random numbers are seeded by
    the labels, so that an example is the same on any device.

    Args:
        frames: ``[b, 2, h, w, 3]``, the previous one first.
        labels: ``[b, 2, h, w]`` int32, objects from 1, 0 background, -1 void.

    Returns:
        The previous frames ``[b, h, w, 3]``, their foreground probability ``[b, h, w, 1]`` float32, the frames
        ``[b, h, w, 3]`` and their labels ``[b, h, w]``.
    """
    b, _, h, w = labels.shape
    keys = jax.vmap(_key_from_labels)(labels.reshape(b, -1))
    masks, first = jax.vmap(_perturbed_mask)(keys, labels[:, 0])
    previous = jnp.where(first[:, None, None, None], frames[:, 1], frames[:, 0])
    small = resize_bilinear(masks[..., None].astype(jnp.float32), (-(-h // 4), -(-w // 4)), align_corners=True)
    return previous, resize_bilinear(small, (h, w), align_corners=True), frames[:, 1], labels[:, 1]


def _key_from_labels(values):
    """Returns a PRNG key that depends on every integer; the sum is independent of the order of summation."""
    positions = jnp.arange(1, len(values) + 1, dtype=jnp.uint32)
    mixed = (values.astype(jnp.uint32) + positions * jnp.uint32(0x9E3779B1)) * jnp.uint32(0x85EBCA77)
    return jax.random.key((mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32))


def _perturbed_mask(key, labels):
    """Returns a mask ``[h, w]`` bool as a network might have predicted it, and whether there is no previous frame."""
    h, w = labels.shape
    keys = jax.random.split(key, 7)
    first, missed, lost = (jax.random.bernoulli(k, p)
                           for k, p in zip(keys[:3], (_FIRST, _MISSED, _LOST), strict=True))
    lost_object = jax.random.randint(keys[3], (), 1, jnp.maximum(labels.max(), 1) + 1)
    mask = (labels > 0) & ~(lost & (labels == lost_object))
    shift = jax.random.uniform(keys[4], (2,), minval=-_SHIFT, maxval=_SHIFT)
    scale = jax.random.uniform(keys[5], (2,), minval=1 - _SCALE, maxval=1 + _SCALE)
    for axis, n in enumerate((h, w)):
        source = jnp.round((jnp.arange(n) - n * (0.5 + shift[axis])) / scale[axis] + n * 0.5).astype(jnp.int32)
        inside = (source >= 0) & (source < n)
        mask = jnp.take(mask, jnp.clip(source, 0, n - 1), axis) & jnp.expand_dims(inside, 1 - axis)
    step = max(1, round(_GROWTH * min(h, w)))
    shapes = [mask, *(change(mask, 2 * times * step + 1) for change in (dilate, erode) for times in (1, 2))]
    mask = jnp.stack(shapes)[jax.random.randint(keys[6], (), 0, len(shapes))]
    return mask & ~(first | missed), first
