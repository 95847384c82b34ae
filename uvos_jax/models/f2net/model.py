"""F2Net: Learning to Focus on the Foreground for Unsupervised Video Object Segmentation (Liu et al., AAAI 2021).

A DeepLabv3 embeds the first frame and the current one; a branch over all stages of the backbone finds the center of the
foreground. Appearance is diffused within the frame and from the first one, guided by a Gauss prior around that center,
and the frame's own embedding and both diffused ones are fused by attention.

Variants:

- ``paper``: Eq. 1-14. The prior multiplies the keys of both matchings; frames of any shape.
- ``official``: the published network as it stands: channel attention only, the prior computed and not used, 473x473
  input as Pillow resizes it, losses with a class weight and an L1 term.
- ``official_full``: the same with its commented-out lines: the prior multiplies what is diffused *to* a pixel, and
  spatial attention follows channel attention.

The two official variants share their parameters. The published test script takes the map of the previous frame from
the annotations; here every variant makes it from its own center and mask. Nor is the script's rule copied that the
second best peak counts if a coordinate of the best one is 0.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.models.base import Model, ParityTrace, Rules, flatten_pixels
from uvos_jax.models.f2net import modules, official
from uvos_jax.models.f2net.modules import SIDE, STRIDE, CenterBranch, Fusion
from uvos_jax.nn import resnet
from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import BatchNorm, Conv, Policy, PReLU, torch_default
from uvos_jax.ops.attention import tiled_attention
from uvos_jax.ops.center_heatmaps import (
    SELECTION_RULES,
    Track,
    center_map,
    choose_center,
    extend_track,
    find_peaks,
    new_track,
)
from uvos_jax.ops.losses import binary_cross_entropy, focal_loss
from uvos_jax.ops.preprocess import Preprocess, preprocess
from uvos_jax.ops.resize import resize_bilinear, resize_nearest

# Rows of the paper's Table 1: AD is appearance diffusion, CG guides it by the center, the others name the fusion.
NETS = ("baseline", "ad", "cgad", "sa", "ca", "sca", "csa")
SELECTIONS = SELECTION_RULES  # Table 2
PRIORS = ("predicted", "truth")


@flax.struct.dataclass
class State:
    """What a video's past means to F2Net; nets without a center have no more than the anchor.

    Attributes:
      anchor: ``[b, h, w, c]``, embedding of the first frame, at stride 8.
      previous: ``[b, h', w', 1]``, center map of the previous frame, at stride 4; zeros if it had none.
      track: the last centers, in pixels of that map.
    """

    anchor: jax.Array
    previous: jax.Array | None = None
    track: Track | None = None


class F2Net(Model):
    """F2Net and the rows of its Tables 1 and 2.

    Attributes:
      variant: see the module's text. The official ones take the network as published, whatever ``net`` says.
      net: one of ``NETS``.
      selection: of candidate centers the one that the motion of the last ones leads to, or the maximum.
      history: n, centers that tell the motion; and frames after which a lost object is forgotten.
      candidates: K, peaks of the heat map among which is chosen.
      lost_below: score below which a peak is no candidate; not stated. Without one, all of the frame is searched.
      prior_from: in training, whether prior and previous map lie around the predicted centers or the true ones.
      depths: blocks in the four layers of the backbone.
      width: channels of the stem; layers have ``4 * width * (1, 2, 4, 8)``.
      aspp_features: channels of the ASPP branches.
      embedding: C, channels of the pixel embedding and of the classifier.
      center_features: channels of the upsampling units.
      center_embedding: D, channels of what they lead to.
      background_weight: of background pixels in the loss, where foreground has 1; the paper weighs them alike.
      short_side: the network's shorter side at scale 1, in pixels; the official variants take squares of it.
      axis_name: mapped axis over which batch norm statistics are shared in training.
      dtype: type of the computation; normalization, softmax, heat maps and losses stay float32.
      remat: whether training computes the backbone's blocks twice to save memory, see ``ResNet``.
    """

    variant: str = "paper"
    net: str = "csa"
    selection: str = "motion"
    history: int = 10
    candidates: int = 5
    lost_below: float = 0.2
    prior_from: str = "predicted"
    depths: tuple[int, ...] = resnet.RESNET101
    width: int = 64
    aspp_features: int = 512
    embedding: int = 256
    center_features: int = 256
    center_embedding: int = 64
    background_weight: float = 1.0
    short_side: int = SIDE
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    VARIANTS = ("paper", "official", "official_full")
    CHOICES: ClassVar = {"net": NETS, "selection": SELECTIONS, "prior_from": PRIORS}
    CHANGEABLE = ("background_weight", "selection", "history", "candidates", "lost_below", "prior_from")
    BACKBONES = ("backbone",)
    TRACES: ClassVar = {
        "f2net": ParityTrace(("seeds", "ct", "prev_gauss"), official.trace, {"prior_from": "truth"})}
    # Means of the Caffe ImageNet models, as the published code subtracts them.
    PREPROCESS = Preprocess("BGR", 1.0, (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0))

    def setup(self):
        norm = {"axis_name": self.axis_name, "dtype": self.dtype}
        policy = Policy(self.dtype, self.axis_name)
        linear = {"use_bias": True, "dtype": self.dtype, "kernel_init": torch_default}
        self.backbone = resnet.ResNet(
            self.depths, self.width, stride_first=True, ceil_pool=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
            remat=self.remat, policy=policy)
        self.aspp = ASPP(self.aspp_features, (6, 12, 18), use_bias=True, project=False, pool_first=True,
                         policy=policy)
        self.embed_conv = Conv(self.embedding, use_bias=True, dtype=self.dtype)
        self.embed_bn = BatchNorm(policy=policy)
        self.embed_prelu = PReLU()
        self.static = Conv(1, 1, **linear)
        if self._has_center:
            self.center = CenterBranch(self.center_features, self.center_embedding, **norm)
        if self._fusion is not None:
            self.fusion = Fusion(self._fusion, self.embedding, self._official, **norm)
        self.cls_conv1 = Conv(self.embedding, 1, use_bias=True, dtype=self.dtype)
        self.cls_bn = BatchNorm(policy=policy)
        self.cls_conv2 = Conv(1, 1, **linear)

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Embeds frames; all that needs no past.

        Args:
          inputs: ``{"frame": [b, h, w, 3]}``, frames after ``preprocess``; sides ``8 k + 1`` align best.

        Returns:
          ``{"embed": [b, h', w', c]}`` at stride 8 and, with a center branch, ``"up"`` and ``"fresh"`` at stride 4.
        """
        stages = self._embed(inputs["frame"], train=False)
        center = self.center.encode(stages, False) if self._has_center else {}
        return {"embed": stages["embed"]} | center

    def init_state(self, reference_features: dict[str, jax.Array], reference_labels: jax.Array | None = None,
                   native_size: tuple[int, int] | None = None, max_objects: int = 1) -> State:
        """The state before the first step, which has neither a previous map nor a center.

        Args:
          reference_features: ``encode`` of the first frame.
          reference_labels: unused.
          native_size: unused.
          max_objects: unused.
        """
        del reference_labels, native_size, max_objects
        anchor = reference_features["embed"]
        if not self._has_center:
            return State(anchor)
        fresh = reference_features["fresh"]
        return State(anchor, jnp.zeros_like(fresh), new_track(fresh.shape[0], self.history))

    def predict(self, state: State, features: dict[str, jax.Array]) -> tuple[jax.Array, dict]:
        """Scores one frame against the state.

        Args:
          state: of ``b`` videos.
          features: ``encode`` of one frame of each.

        Returns:
          ``[b, h, w, 1]`` logits (bring them to size by :meth:`to_native`); and, with a center branch, what was found:
          ``"heat"`` ``[b, h', w', 1]`` and ``"prior"`` ``[b, h, w, 1]`` in 0..1, ``"center"`` ``[b, 2]`` (x, y) in
          pixels of the heat map, its ``"score"`` ``[b]``, whether one was ``"found"`` ``[b]``, and the ``"notes"``.
        """
        if not self._has_center:
            return self._segment(state.anchor, features["embed"], None, train=False)[0], {}
        heat = nn.sigmoid(self.center.heat(features, state.previous))
        scores, candidates = find_peaks(heat, min(self.candidates, heat[0].size))
        rule = "maximum" if self._official else self.selection
        center, score, found = choose_center(state.track, scores, candidates, self.lost_below, rule)
        # The published decoder is one pixel of the map off.
        prior = self._prior(center - 1 if self._official else center, found, heat.shape[1:3],
                            features["embed"].shape[1:3])
        logits, _ = self._segment(state.anchor, features["embed"], prior, train=False)
        whole = STRIDE * (jnp.array([heat.shape[2], heat.shape[1]]) - 1) + 1  # the map's corners are the frame's
        notes = {"lost": ~found, "center": jnp.clip((STRIDE * center + 0.5) / whole, 0, 1), "center_score": score}
        return logits, {"heat": heat, "prior": prior, "center": center, "score": score, "found": found, "notes": notes}

    @nn.nowrap
    def commit(self, state: State, features: dict, labels: jax.Array, aux: dict,
               new_labels: jax.Array | None = None) -> State:
        """Draws the map for the next frame: around the center, as large as the mask's box; and extends the track."""
        del new_labels
        if not self._has_center:
            return state
        mask = resize_nearest(labels[..., None], state.previous.shape[1:3])[..., 0] > 0
        drawn, _, _ = center_map(mask, aux["center"])
        drawn = jnp.where(aux["found"][:, None, None, None], drawn, 0.0)
        return State(state.anchor, drawn, extend_track(state.track, aux["center"], aux["found"]))

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """The training forward of a frame with the first and the previous one.

        Args:
          batch: ``{"anchor": [b, h, w, 3], "frame": [b, h, w, 3]}`` after ``preprocess``; ``"previous"``
            ``[b, h', w', 1]``, the previous frame's center map; ``"center"`` ``[b, 2]``, the true center in pixels of
            that map; ``"present"`` ``[b]`` bool, whether there is one (all True if left out). Where predicted centers
            count, ``"previous_frame"`` ``[b, h, w, 3]`` and ``"previous_mask"`` ``[b, h', w']`` make a map in its
            place, around what is found in that frame alone: a network that only ever sees true maps learns to copy
            them, and later cannot let go.
          train: whether batch norm uses batch statistics.

        Returns:
          ``({"logits", "static_logits": [b, h'', w'', 1], "heat_logits": [b, h', w', 1]}, intermediates)`` at strides
          8 and 4; the static ones come from the frame alone. Nets without a center branch have no heat. Intermediates
          of all frames are stacked along the batch axis, the anchors first.
        """
        b = batch["frame"].shape[0]
        finds = self._has_center and "previous_frame" in batch
        names = ("anchor", "previous_frame", "frame") if finds else ("anchor", "frame")
        stages = self._embed(jnp.concatenate([batch[name] for name in names]), train)
        anchor, embed = stages["embed"][:b], stages["embed"][-b:]
        outputs, made, prior = {"static_logits": self.static(embed)}, {}, None
        if self._has_center:
            seen = self.center.encode({f"layer{i}": stages[f"layer{i}"][b:] for i in range(1, 5)}, train)
            made = jax.tree.map(lambda x: x[-b:], seen)
            previous = batch["previous"]
            if finds:
                previous = self._found_map(jax.tree.map(lambda x: x[:b], seen), batch)
            outputs["heat_logits"] = heat = self.center.heat(made, previous)
            prior = self._training_prior(batch, nn.sigmoid(heat), embed.shape[1:3])
        outputs["logits"], fused = self._segment(anchor, embed, prior, train)
        return outputs, stages | made | fused

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What ``__call__`` and ``loss`` take, from clips of the first, the previous and the frame to be segmented.

        Args:
          clip: ``{"frames": [b, 3, h, w, 3] uint8 RGB, "labels": [b, 3, h, w] uint8}`` and, if the data has stills,
            ``"still"`` ``[b]`` bool: frames with no previous one. Any object is foreground, 255 is void. Sides
            ``8 k + 1`` align best.
        """
        frames, labels = clip["frames"], clip["labels"]
        size = frames.shape[2:4]
        void = labels[:, 2, ..., None] == 255
        still = clip.get("still", jnp.zeros(frames.shape[0], bool))
        batch = {"anchor": preprocess(frames[:, 0], size, self.preprocess),
                 "frame": preprocess(frames[:, 2], size, self.preprocess),
                 "mask": (labels[:, 2, ..., None] > 0) & ~void, "valid": ~void, "still": still}
        if not self._has_center:
            return batch
        # Every fourth pixel, so that corners lie on corners; the published nearest ones lie up to 3 pixels beside them.
        small = labels[:, 1:, ::STRIDE, ::STRIDE]
        small = (small > 0) & (small < 255)
        previous, _, _ = center_map(small[:, 0])
        heat, center, present = center_map(small[:, 1])
        previous = jnp.where(still[:, None, None, None], 0.0, previous)
        batch |= {"previous": previous, "heat": heat, "center": center, "present": present}
        if self.prior_from == "truth":
            return batch
        return batch | {"previous_frame": preprocess(frames[:, 1], size, self.preprocess),
                        "previous_mask": small[:, 0] & ~still[:, None, None]}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Cross-entropy of the mask and focal loss of the heat map (Eq. 12-14); of stills a tenth of the static one's.

        The paper's focal loss lacks its minus sign, and is divided by the number of centers. ``official``: the
        cross-entropy is weighted by pixels over foreground pixels, and 0.8 times the mean error is added; the published
        code counts them in the batch, here each example does.

        Args:
          outputs: of ``__call__``.
          batch: of ``training_batch``.
          step: unused.

        Returns:
          ``([b] float32, {name: [b]})``; parts are 0 where an example does not have them.
        """
        del step
        still = batch["still"]
        parts = {"mask": jnp.where(still, 0.0, self._mask_loss(outputs["logits"], batch)),
                 "static": jnp.where(still, 0.1 * self._mask_loss(outputs["static_logits"], batch), 0.0)}
        if "heat_logits" in outputs:
            parts["heat"] = focal_loss(outputs["heat_logits"], batch["heat"])
        return sum(parts.values()), parts

    @nn.nowrap
    def to_native(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Brings ``[b, h, w, 1]`` logits to ``[b, height, width, 1]`` float32 probabilities that may be averaged.

        ``official`` brings them to the network's size first, and probabilities from there to the frame's.
        """
        logits = logits.astype(jnp.float32)
        if not self._official:
            return nn.sigmoid(resize_bilinear(logits, size, align_corners=True))
        whole = tuple(8 * (n - 1) + 1 for n in logits.shape[1:3])
        return resize_bilinear(nn.sigmoid(resize_bilinear(logits, whole, align_corners=False)), size,
                               align_corners=False)

    @property
    def notes(self) -> dict[str, str]:
        """What is said of frames for which a flag among the notes is true."""
        if not self._has_center:
            return {}
        return {"lost": f"no center of an object scored {self.lost_below} or more, so that all of the frame was"
                        " searched"}

    @property
    def preprocess(self) -> Preprocess:
        """The frame transform of this variant: the published code resizes with Pillow."""
        return self.PREPROCESS.replace(resize="pillow" if self._official else "smooth")

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Returns the name rules for the published checkpoints."""
        return official.torch_rules(self)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a smallest batch for ``__call__``, enough to know the variables."""
        frame, heat = (jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in ((65, 65, 3), (17, 17, 1)))
        return {"anchor": frame, "frame": frame, "previous": heat, "center": jax.ShapeDtypeStruct((1, 2), jnp.float32)}

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """The network's ``(height, width)`` for a video of ``native_size``, both sides ``8 k + 1``.

        At scale 1 the shorter side is ``short_side``; ``paper`` keeps the aspect ratio, ``official`` takes a square.
        """
        return tuple(8 * max(1, round(((self.short_side if self._official else n * self.short_side / min(native_size))
                                       * scale - 1) / 8)) + 1 for n in native_size)

    @property
    def _official(self):
        return self.variant != "paper"

    @property
    def _has_center(self):
        return self._official or self.net not in ("baseline", "ad")

    @property
    def _fusion(self):
        """Order of the attentions that fuse, None if there is nothing to fuse."""
        if self._official:
            return "ca" if self.variant == "official" else "csa"
        return {"baseline": None, "ad": "", "cgad": ""}.get(self.net, self.net)

    def _embed(self, x, train):
        stages = self.backbone(x.astype(self.dtype), train)
        embed = self.embed_bn(self.embed_conv(self.aspp(stages["layer4"], train)), train)
        return stages | {"embed": self.embed_prelu(embed)}

    def _training_prior(self, batch, heat, size):
        center, found = batch["center"], batch.get("present", jnp.ones(heat.shape[0], bool))
        if self.prior_from == "predicted":
            center, found = self._best(heat)
        return self._prior(center, found, heat.shape[1:3], size)

    def _found_map(self, features, batch):
        """The map around what the previous frame alone leads to, as large as its true mask."""
        heat = nn.sigmoid(self.center.heat(features, jnp.zeros_like(features["fresh"])))
        center, found = self._best(heat)
        return jnp.where(found[:, None, None, None], center_map(batch["previous_mask"], center)[0], 0.0)

    def _best(self, heat):
        scores, candidates = find_peaks(lax.stop_gradient(heat), 1)
        return candidates[:, 0], scores[:, 0] >= self.lost_below

    def _prior(self, center, found, map_size, size):
        draw = official.drawn_prior if self._official else modules.prior
        return jnp.where(found[:, None, None, None], draw(center, map_size, size), 1.0)

    def _segment(self, anchor, embed, prior, train):
        """Logits, and what was fused to get them (Eq. 5-11)."""
        if self._fusion is None:
            return self._classify(embed, train), {}
        # Both diffusions mix the same values of the current frame: one pass over its pixels serves both.
        keys = embed if prior is None or self._official else (embed * prior).astype(embed.dtype)
        mixed = tiled_attention(jnp.concatenate([flatten_pixels(anchor), flatten_pixels(embed)], 1), flatten_pixels(keys), flatten_pixels(embed),
                                scale=embed.shape[-1] ** -0.5)
        inter, intra = (x.reshape(embed.shape) for x in jnp.split(mixed, 2, 1))
        if self.variant == "official_full":
            inter, intra = ((x * prior).astype(x.dtype) for x in (inter, intra))
        fused, made = self.fusion((inter, intra, embed), train)
        return self._classify(fused, train), {"inter": inter, "intra": intra, "fused": fused} | made

    def _classify(self, x, train):
        return self.cls_conv2(nn.relu(self.cls_bn(self.cls_conv1(x), train)))

    @nn.nowrap
    def _mask_loss(self, logits, batch):
        mask, valid = batch["mask"], batch["valid"]
        logits = resize_bilinear(logits.astype(jnp.float32), mask.shape[1:3], align_corners=not self._official)
        if not self._official:
            weight = jnp.where(mask, 1.0, self.background_weight) * valid if self.background_weight != 1 else valid
            return binary_cross_entropy(logits, mask, weight)
        return official.mask_loss(logits, mask, valid)
