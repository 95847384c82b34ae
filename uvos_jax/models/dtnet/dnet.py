"""D-Net: finds the objects of a frame, guided by what was salient in the one before (Zhou et al., CVPR 2021, Sec. 3.1).

One encoder, two heads: where anything salient is, and, as in Panoptic-DeepLab, where the centers of objects are and
which way every pixel's center lies. What the paper leaves open is marked as ours where it is decided; widths, decoders,
losses and their weights are then Panoptic-DeepLab's.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.models.dtnet.modules import Decoder, Excitation, Head, narrow
from uvos_jax.nn import resnet
from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import Policy
from uvos_jax.ops.instance_grouping import center_targets
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.ops.morphology import dilate, erode
from uvos_jax.ops.resize import resize_bilinear

SQUEEZES = ("literal", "mixed")
_DILATIONS = (6, 12, 18)
_STRIDE = 16  # of the encoder; ours: offsets leave the head in steps of it, as numbers near 1 are soon learned

_SIDE = 640  # of the paper's crops; the lengths below are pixels of such a crop
_SIGMA, _LEAST_SIGMA = 10.0, 4.0  # of a center's bell; the least is a pixel of the maps that the heads make
_HEAT, _OFFSETS = 200.0, 0.01  # weights of the losses, beside 1 for the salient one


class DNet(nn.Module):
    """The network, and the rows of Table 3.

    Attributes:
      depths: blocks in the four layers of both backbones.
      width: channels of their stems.
      features: C, channels of the pyramids and of the guidance.
      decoder: channels of the salient decoder; the instance decoder has half as many.
      guidance: whether the last frame and what was salient in it are looked at.
      squeeze: what says how much guidance is let in: ``"literal"``, both heads' features (Eq. 3-5 as printed), or
        ``"mixed"``, the two that are mixed in Eq. 6 and 7, a head's features and the guidance.
      categories: kinds of objects that the salient head tells apart; 1 for any object, which takes one logit.
      axis_name: mapped axis over which batch norm statistics are shared in training.
      dtype: type of the computation; normalization, weights of the guidance and outputs stay float32.
      remat: whether training computes the backbones' blocks twice to save memory, see ``ResNet``.
    """

    depths: tuple[int, ...] = resnet.RESNET50
    width: int = 64
    features: int = 256
    decoder: int = 256
    guidance: bool = True
    squeeze: str = "literal"
    categories: int = 1
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        if self.squeeze not in SQUEEZES:
            raise ValueError(f"squeeze must be one of {', '.join(SQUEEZES)}, not {self.squeeze!r}")
        norm = {"axis_name": self.axis_name, "dtype": self.dtype}
        policy = Policy(self.dtype, self.axis_name)
        encoder = {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2), "remat": self.remat, "policy": policy}
        self.backbone = resnet.ResNet(self.depths, self.width, **encoder)
        self.salient_aspp = ASPP(self.features, _DILATIONS, policy=policy)
        self.instance_aspp = ASPP(self.features, _DILATIONS, policy=policy)
        if self.guidance:
            self.guide_backbone = resnet.ResNet(self.depths, self.width, **encoder)
            self.guide_aspp = ASPP(self.features, _DILATIONS, policy=policy)
            self.salient_excitation = Excitation(self.dtype)
            self.instance_excitation = Excitation(self.dtype)
        half = narrow(self.decoder, 2)
        self.salient_decoder = Decoder(self.decoder, **norm)
        self.instance_decoder = Decoder(half, **norm)
        self.salient_head = Head(self.decoder, self.categories + 1 if self.categories > 1 else 1, **norm)
        self.heat_head = Head(narrow(half, 4), 1, **norm)
        self.offset_head = Head(narrow(half, 4), 2, **norm)

    def encode(self, frames: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """All that needs no past; runs on many frames at once.

        Args:
          frames: ``[b, h, w, 3]`` float, normalized; sides ``16 k + 1`` align best.
          train: whether batch norm uses batch statistics.

        Returns:
          ``"layer1"`` at stride 4, ``"layer2"`` at 8, ``"salient"`` and ``"instance"`` at 16.
        """
        stages = self.backbone(frames.astype(self.dtype), train)
        kept = {name: stages[name] for name in ("layer1", "layer2")}
        return kept | {"salient": self.salient_aspp(stages["layer4"], train),
                       "instance": self.instance_aspp(stages["layer4"], train)}

    def guide(self, previous_frame: jax.Array, previous_prob: jax.Array, train: bool = False) -> jax.Array:
        """Features of the guidance branch. Ours: a backbone and a pyramid of its own, the stem seeing four channels.

        Args:
          previous_frame: ``[b, h, w, 3]`` float, normalized; ours: the first frame stands for the one before it.
          previous_prob: ``[b, h, w, 1]`` float in 0..1, of foreground; 0 before the first frame.
          train: whether batch norm uses batch statistics.

        Returns:
          ``[b, h', w', features]`` at stride 16.
        """
        both = jnp.concatenate([previous_frame.astype(self.dtype), previous_prob.astype(self.dtype)], -1)
        return self.guide_aspp(self.guide_backbone(both, train)["layer4"], train)

    def decode(self, features: Mapping[str, jax.Array], guided: jax.Array | None, size: tuple[int, int],
               train: bool = False) -> dict[str, jax.Array]:
        """What there is in a frame.

        Args:
          features: of :meth:`encode`.
          guided: of :meth:`guide`; None without guidance.
          size: (height, width) of the frames.
          train: whether batch norm uses batch statistics.

        Returns:
          float32, at ``size``: ``"salient_logits"`` ``[b, h, w, 1]`` for any object, or ``[b, h, w, categories + 1]``,
          the background first; ``"heat"`` ``[b, h, w, 1]`` of centers, about 0 to 1; ``"offsets"`` ``[b, h, w, 2]``,
          (dy, dx) in pixels to the center.
        """
        salient, instance = features["salient"], features["instance"]
        if self.guidance:
            literal, both = self.squeeze == "literal", (salient, instance)
            salient, instance = (
                excitation(x, guided, both if literal else (x, guided))
                for excitation, x in ((self.salient_excitation, salient), (self.instance_excitation, instance)))
        salient = self.salient_decoder(salient, features, train)
        instance = self.instance_decoder(instance, features, train)
        made = {"salient_logits": self.salient_head(salient, train), "heat": self.heat_head(instance, train),
                "offsets": _STRIDE * self.offset_head(instance, train)}
        return {name: resize_bilinear(x, size, align_corners=True) for name, x in made.items()}

    def __call__(self, frames: jax.Array, previous_frames: jax.Array, previous_prob: jax.Array,
                 train: bool = False) -> dict[str, jax.Array]:
        """What there is in frames whose predecessors are known; see the methods above."""
        guided = self.guide(previous_frames, previous_prob, train) if self.guidance else None
        return self.decode(self.encode(frames, train), guided, frames.shape[1:3], train)


def losses(outputs: Mapping[str, jax.Array], labels: jax.Array, objects: int,
           categories: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of what is salient, squared error of the heat, absolute error of offsets in objects.

    Weights and forms are Panoptic-DeepLab's (the paper gives none). Ours: lengths count in pixels of a crop of 640, so
    that bells and offsets mean the same in smaller ones.

    Args:
      outputs: of ``DNet.decode``.
      labels: ``[b, h, w]`` int32, objects 1 to ``objects``, 0 background, -1 void, which does not count.
      objects: how many there may be.
      categories: ``[b, objects]`` int32 from 1, of each object; needed where the network tells categories apart.

    Returns:
      ``[b]`` float32, the sum of the parts; and these, weighted, as ``{"salient", "heat", "offsets": [b]}``.
    """
    valid, foreground = labels >= 0, labels > 0
    logits = outputs["salient_logits"].astype(jnp.float32)
    if logits.shape[-1] == 1:
        salient = binary_cross_entropy(logits[..., 0], foreground, valid)
    elif categories is None:
        raise ValueError("a network that tells categories apart must be told those of the objects")
    else:
        kind = jnp.take_along_axis(categories, jnp.maximum(labels - 1, 0).reshape(len(labels), -1), 1)
        kind = jnp.where(foreground, kind.reshape(labels.shape), 0)
        own = jnp.take_along_axis(logits, kind[..., None], -1)[..., 0]
        salient = _mean(jax.nn.logsumexp(logits, -1) - own, valid)
    unit = min(labels.shape[1:]) / _SIDE
    heat, offsets, _ = center_targets(labels, objects, max(_SIGMA * unit, _LEAST_SIGMA))
    away = jnp.abs(outputs["offsets"].astype(jnp.float32) - offsets).mean(-1) / unit
    parts = {"salient": salient,
             "heat": _HEAT * _mean(jnp.square(outputs["heat"][..., 0].astype(jnp.float32) - heat), valid),
             "offsets": _OFFSETS * _mean(away, foreground)}
    return sum(parts.values()), parts


def _mean(values, where):
    """Of each example, ``[b, h, w] -> [b]``; 0 where no pixel counts."""
    return (values * where).sum((1, 2)) / jnp.maximum(where.sum((1, 2)), 1)


# How the mask of the previous frame errs in training; ours.
_FIRST, _MISSED, _LOST = 0.1, 0.1, 0.2  # how often there is no previous frame, nothing was found, an object was not
_SHIFT, _SCALE = 0.04, 0.06  # at most, of the sides
_GROWTH = 0.01  # of the shorter side, once or twice, outwards or inwards


def guided_pair(frames: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Examples of a frame and of what D-Net will remember of the one before.

    Ours: the true mask of the previous frame, shifted, scaled, grown or shrunk, with soft edges; sometimes without one
    of its objects or without any; and sometimes the frame is the first one of a video. Chance is drawn from the labels
    themselves, so that an example is the same on any device.

    Args:
      frames: ``[b, 2, h, w, 3]``, the previous one first.
      labels: ``[b, 2, h, w]`` int32, objects from 1, 0 background, -1 void.

    Returns:
      The previous frames ``[b, h, w, 3]``, their probability of foreground ``[b, h, w, 1]`` float32, the frames
      ``[b, h, w, 3]`` and their labels ``[b, h, w]``.
    """
    b, _, h, w = labels.shape
    keys = jax.vmap(_key)(labels.reshape(b, -1))
    masks, first = jax.vmap(_remembered)(keys, labels[:, 0])
    previous = jnp.where(first[:, None, None, None], frames[:, 1], frames[:, 0])
    small = resize_bilinear(masks[..., None].astype(jnp.float32), (-(-h // 4), -(-w // 4)), align_corners=True)
    return previous, resize_bilinear(small, (h, w), align_corners=True), frames[:, 1], labels[:, 1]


def _key(values):
    """A key that depends on every one of the integers, by sums that no order of summing changes."""
    places = jnp.arange(1, len(values) + 1, dtype=jnp.uint32)
    mixed = (values.astype(jnp.uint32) + places * jnp.uint32(0x9E3779B1)) * jnp.uint32(0x85EBCA77)
    return jax.random.key((mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32))


def _remembered(key, labels):
    """A mask ``[h, w]`` bool as a network may have found it, and whether there was no frame before."""
    h, w = labels.shape
    keys = jax.random.split(key, 7)
    first, missed, lost = (jax.random.bernoulli(k, p)
                           for k, p in zip(keys[:3], (_FIRST, _MISSED, _LOST), strict=True))
    gone = jax.random.randint(keys[3], (), 1, jnp.maximum(labels.max(), 1) + 1)
    mask = (labels > 0) & ~(lost & (labels == gone))
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
