"""F2Net: Learning to Focus on the Foreground for Unsupervised Video Object Segmentation (Liu et al., AAAI 2021).

A DeepLabv3 embeds the first frame and the current one; a branch over all stages of the backbone predicts the center of
the foreground. Appearance is diffused within the frame and from the first frame, guided by a Gaussian prior around that
center. Attention fuses the frame's own embedding and both diffused ones.

Variants:

- ``paper``: Eq. 1-14. The prior multiplies the keys of both matchings; frames of any aspect ratio.
- ``official``: the published network as it is: channel attention only, the prior computed but not used, 473x473 input
  resized with Pillow's rule, losses with a class weight and an L1 term.
- ``official_full``: the published network with its commented-out lines: the prior multiplies what is diffused *to* a
  pixel, and spatial attention follows channel attention.

The two official variants share their parameters. The published test script takes the center map of the previous frame
from the annotations; here every variant computes it from its own center and mask. The script's rule that the
second-best peak counts if a coordinate of the best one is 0 is not reproduced.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.labels import VOID
from uvos_jax.models.base import Model, ParityTrace, Rules, flatten_pixels
from uvos_jax.models.f2net import official, training
from uvos_jax.models.f2net.modules import SIDE, STRIDE, CenterBranch, Fusion, center_prior
from uvos_jax.nn import resnet
from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import Conv, ConvNorm, Policy, PReLU, torch_default
from uvos_jax.ops import center_heatmaps
from uvos_jax.ops.attention import tiled_attention
from uvos_jax.ops.losses import focal_loss
from uvos_jax.ops.preprocess import Preprocess, preprocess
from uvos_jax.ops.resize import resize_bilinear, resize_nearest

# Rows of the paper's Table 1: AD is appearance diffusion, CG its guidance by the center; the others name the fusion.
NETS = ("baseline", "ad", "cgad", "sa", "ca", "sca", "csa")
SELECTIONS = center_heatmaps.SELECTION_RULES  # Table 2
PRIORS = ("predicted", "truth")


@flax.struct.dataclass
class State:
    """Recurrent state of F2Net; nets without a center branch have the anchor only.

    Attributes:
        anchor: ``[b, h, w, c]`` embedding of the first frame, at stride 8.
        previous: ``[b, h', w', 1]`` center map of the previous frame, at stride 4; zeros if it had no center.
        track: The last centers, in pixels of that map.
    """

    anchor: jax.Array
    previous: jax.Array | None = None
    track: center_heatmaps.Track | None = None


class F2Net(Model):
    """F2Net and the rows of its Tables 1 and 2.

    Attributes:
        variant: See the module's docstring. The official variants ignore ``net``.
        net: One of ``NETS``.
        selection: Which of the candidate centers is chosen: the one nearest to the extrapolated track, or the maximum.
        history: n, number of past centers from which the motion is extrapolated, and of frames after which a lost
            object is forgotten.
        candidates: K, number of peaks of the heat map among which the center is chosen.
        min_peak_score: Lowest score of a candidate; not stated in the paper. Without a candidate, the whole frame is
            searched.
        prior_from: Whether training uses predicted or true centers for the prior and the previous center map.
        depths: Number of blocks in the four layers of the backbone.
        width: Channels of the stem; the layers have ``4 * width * (1, 2, 4, 8)``.
        aspp_features: Channels of the ASPP branches.
        embedding: C, channels of the pixel embedding and of the classifier.
        center_features: Channels of the upsampling units.
        center_embedding: D, channels of the center branch's output features.
        background_weight: Weight of background pixels in the loss, relative to foreground pixels; 1 in the paper.
        short_side: Shorter side of the network input at scale 1, in pixels; the official variants use squares.
        axis_name: Mapped axis over which batch norm shares its statistics in training, or None.
        dtype: Computation dtype; normalization, softmax, heat maps and losses stay float32.
        remat: Whether training recomputes the backbone's blocks to save memory, see ``ResNet``.
    """

    variant: str = "paper"
    net: str = "csa"
    selection: str = "motion"
    history: int = 10
    candidates: int = 5
    min_peak_score: float = 0.2
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
    CHANGEABLE = ("background_weight", "selection", "history", "candidates", "min_peak_score", "prior_from")
    BACKBONES = ("backbone",)
    TRACES: ClassVar = {
        "f2net": ParityTrace(("seeds", "ct", "prev_gauss"), official.trace, {"prior_from": "truth"})}
    # Means of the Caffe ImageNet models, as the published code subtracts them.
    PREPROCESS = Preprocess("BGR", 1.0, (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0))

    def setup(self):
        """Creates the submodules."""
        policy = Policy(self.dtype, self.axis_name)
        one_channel = {"use_bias": True, "dtype": self.dtype, "kernel_init": torch_default}
        self.backbone = resnet.ResNet(
            self.depths, self.width, stride_first=True, ceil_pool=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
            remat=self.remat, policy=policy)
        self.aspp = ASPP(self.aspp_features, (6, 12, 18), use_bias=True, project=False, pool_first=True,
                         policy=policy)
        self.embed = ConvNorm(self.embedding, use_bias=True, activation=None, policy=policy)
        self.embed_prelu = PReLU()
        self.static = Conv(1, 1, **one_channel)
        if self._has_center:
            self.center = CenterBranch(self.center_features, self.center_embedding, policy)
        if self._fusion is not None:
            self.fusion = Fusion(self._fusion, self.embedding, self._official, policy)
        self.classifier_hidden = ConvNorm(self.embedding, 1, use_bias=True, policy=policy)
        self.classifier = Conv(1, 1, **one_channel)

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Embeds frames.

        Args:
            inputs: ``{"frame": [b, h, w, 3]}``, preprocessed frames; sides ``8 k + 1`` align best.

        Returns:
            ``{"embed": [b, h', w', c]}`` at stride 8 and, with a center branch, its features at stride 4
            (``CenterBranch.encode``).
        """
        stages = self._embed_frames(inputs["frame"], train=False)
        center = self.center.encode(stages, False) if self._has_center else {}
        return {"embed": stages["embed"]} | center

    def init_state(self, reference_features: dict[str, jax.Array], reference_labels: jax.Array | None = None,
                   native_size: tuple[int, int] | None = None, max_objects: int = 1) -> State:
        """Returns the state before the first step, without a previous center map or a center.

        Args:
            reference_features: ``encode`` of the first frame.
            reference_labels: Unused.
            native_size: Unused.
            max_objects: Unused.
        """
        del reference_labels, native_size, max_objects
        anchor = reference_features["embed"]
        if not self._has_center:
            return State(anchor)
        frame_heat = reference_features["frame_heat"]
        return State(anchor, jnp.zeros_like(frame_heat), center_heatmaps.new_track(frame_heat.shape[0], self.history))

    def predict(self, state: State, features: dict[str, jax.Array]) -> tuple[jax.Array, dict]:
        """Scores one frame against the state.

        Args:
            state: State of ``b`` videos.
            features: ``encode`` of one frame of each video.

        Returns:
            ``[b, h, w, 1]`` logits at stride 8, for ``to_native``; and, with a center branch, ``"heat"``
            ``[b, h', w', 1]`` and ``"prior"`` ``[b, h, w, 1]`` in 0..1, ``"center"`` ``[b, 2]`` (x, y) in pixels of the
            heat map, its ``"score"`` ``[b]``, whether one was ``"found"`` ``[b]``, and the ``"notes"``.
        """
        if not self._has_center:
            return self._segment(state.anchor, features["embed"], None, train=False)[0], {}
        heat = nn.sigmoid(self.center.heat(features, state.previous))
        scores, candidates = center_heatmaps.find_peaks(heat, min(self.candidates, heat[0].size))
        rule = "maximum" if self._official else self.selection
        center, score, found = center_heatmaps.choose_center(state.track, scores, candidates, self.min_peak_score, rule)
        # The published decoder is off by one pixel of the map.
        prior = self._prior(center - 1 if self._official else center, found, heat.shape[1:3],
                            features["embed"].shape[1:3])
        logits, _ = self._segment(state.anchor, features["embed"], prior, train=False)
        frame_size = STRIDE * (jnp.array([heat.shape[2], heat.shape[1]]) - 1) + 1  # (width, height); corners aligned
        notes = {"lost": ~found, "center": jnp.clip((STRIDE * center + 0.5) / frame_size, 0, 1), "center_score": score}
        return logits, {"heat": heat, "prior": prior, "center": center, "score": score, "found": found, "notes": notes}

    @nn.nowrap
    def commit(self, state: State, features: dict, labels: jax.Array, aux: dict,
               new_labels: jax.Array | None = None) -> State:
        """Draws the center map for the next frame, around the center and as large as the mask's box; extends the track.

        Args:
            state: State before the frame.
            features: Unused.
            labels: ``[b, H, W]`` int; above 0 is foreground.
            aux: Second result of ``predict``.
            new_labels: Unused.
        """
        del features, new_labels
        if not self._has_center:
            return state
        mask = resize_nearest(labels[..., None], state.previous.shape[1:3])[..., 0] > 0
        heat, _, _ = center_heatmaps.center_map(mask, aux["center"])
        heat = jnp.where(aux["found"][:, None, None, None], heat, 0.0)
        return State(state.anchor, heat, center_heatmaps.extend_track(state.track, aux["center"], aux["found"]))

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """Runs the training forward of a frame with the first and the previous one.

        Args:
            batch: ``"anchor"`` and ``"frame"`` ``[b, h, w, 3]``, preprocessed; ``"previous"`` ``[b, h', w', 1]``, the
                previous frame's center map; ``"center"`` ``[b, 2]``, the true center in pixels of that map;
                ``"present"`` ``[b]`` bool, whether there is one (default all True). With predicted centers also
                ``"previous_frame"`` ``[b, h, w, 3]`` and ``"previous_mask"`` ``[b, h', w']``, which replace
                ``"previous"`` by a map around the center predicted in that frame alone: a network trained with true
                maps only learns to copy them, and cannot recover from a wrong one later.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            ``({"logits", "static_logits": [b, h'', w'', 1], "heat_logits": [b, h', w', 1]}, intermediates)`` at strides
            8, 8 and 4; the static logits depend on the frame alone. Nets without a center branch have no heat logits.
            Intermediates of all frames are stacked along the batch axis, the anchors first.
        """
        b = batch["frame"].shape[0]
        predict_previous = self._has_center and "previous_frame" in batch
        names = ("anchor", "previous_frame", "frame") if predict_previous else ("anchor", "frame")
        stages = self._embed_frames(jnp.concatenate([batch[name] for name in names]), train)
        anchor, embed = stages["embed"][:b], stages["embed"][-b:]
        outputs, center, prior = {"static_logits": self.static(embed)}, {}, None
        if self._has_center:
            features = self.center.encode({f"layer{i}": stages[f"layer{i}"][b:] for i in range(1, 5)}, train)
            center = jax.tree.map(lambda x: x[-b:], features)
            previous = batch["previous"]
            if predict_previous:
                previous = self._predicted_map(jax.tree.map(lambda x: x[:b], features), batch["previous_mask"])
            outputs["heat_logits"] = heat = self.center.heat(center, previous)
            prior = self._training_prior(batch, nn.sigmoid(heat), embed.shape[1:3])
        outputs["logits"], fused = self._segment(anchor, embed, prior, train)
        return outputs, stages | center | fused

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Builds the batch for ``__call__`` and ``loss`` from clips of the first, the previous and the current frame.

        Args:
            clip: ``"frames"`` ``[b, 3, h, w, 3]`` uint8 RGB and ``"labels"`` ``[b, 3, h, w]`` uint8; any object is
                foreground, 255 void. If the data has stills, ``"still"`` ``[b]`` bool: frames without a previous one.
                Sides ``8 k + 1`` align best.

        Returns:
            See ``__call__``; for the loss also ``"mask"`` and ``"valid"`` ``[b, h, w, 1]`` bool, ``"still"`` ``[b]``
            and, with a center branch, the target ``"heat"``.
        """
        frames, labels = clip["frames"], clip["labels"]
        size = frames.shape[2:4]
        void = labels[:, 2, ..., None] == VOID
        still = clip.get("still", jnp.zeros(frames.shape[0], bool))
        batch = {"anchor": preprocess(frames[:, 0], size, self.preprocess),
                 "frame": preprocess(frames[:, 2], size, self.preprocess),
                 "mask": (labels[:, 2, ..., None] > 0) & ~void, "valid": ~void, "still": still}
        if not self._has_center:
            return batch
        batch |= training.center_targets(labels[:, 1:], still)
        if self.prior_from == "truth":
            del batch["previous_mask"]
            return batch
        return batch | {"previous_frame": preprocess(frames[:, 1], size, self.preprocess)}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Returns the cross-entropy of the mask and the focal loss of the heat map (Eq. 12-14).

        For stills, a tenth of the cross-entropy of the static logits replaces that of the mask. The paper's focal loss
        lacks its minus sign, and is divided by the number of centers. ``official``: the cross-entropy is weighted by
        the ratio of all to foreground pixels, and 0.8 times the mean absolute error is added; the published code counts
        the pixels of the batch, here each example counts its own.

        Args:
            outputs: First result of ``__call__``.
            batch: Result of ``training_batch``.
            step: Unused.

        Returns:
            ``([b] float32, {"mask", "static", "heat": [b]})``; terms that an example lacks are 0.
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
        """Converts logits ``[b, h, w, 1]`` to ``[b, *size, 1]`` float32 probabilities, which may be averaged.

        ``official`` resizes logits to the network's input size, and probabilities from there to ``size``.
        """
        if self._official:
            return official.to_native(logits.astype(jnp.float32), size)
        return nn.sigmoid(resize_bilinear(logits.astype(jnp.float32), size, align_corners=True))

    @property
    def notes(self) -> dict[str, str]:
        """Sentences for the flags in ``aux["notes"]``."""
        if not self._has_center:
            return {}
        return {"lost": f"no center scored {self.min_peak_score} or more, so the whole frame was searched"}

    @property
    def preprocess(self) -> Preprocess:
        """The frame transform of this variant; the published code resizes with Pillow."""
        return self.PREPROCESS.replace(resize="pillow" if self._official else "smooth")

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Returns the name rules for the published checkpoints."""
        return official.torch_rules(self)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a smallest batch for ``__call__``."""
        frame, heat = (jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in ((65, 65, 3), (17, 17, 1)))
        return {"anchor": frame, "frame": frame, "previous": heat, "center": jax.ShapeDtypeStruct((1, 2), jnp.float32)}

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Returns the network's ``(height, width)`` for a video of ``native_size``; both are ``8 k + 1``.

        At scale 1 the shorter side is ``short_side``; ``paper`` keeps the aspect ratio, ``official`` uses a square.
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
        """The order of the fusion's attentions; None without diffusion."""
        if self._official:
            return "ca" if self.variant == "official" else "csa"
        return {"baseline": None, "ad": "", "cgad": ""}.get(self.net, self.net)

    def _embed_frames(self, frames, train):
        stages = self.backbone(frames.astype(self.dtype), train)
        return stages | {"embed": self.embed_prelu(self.embed(self.aspp(stages["layer4"], train), train))}

    def _training_prior(self, batch, heat, size):
        center, found = batch["center"], batch.get("present", jnp.ones(heat.shape[0], bool))
        if self.prior_from == "predicted":
            center, found = training.best_peak(heat, self.min_peak_score)
        return self._prior(center, found, heat.shape[1:3], size)

    def _predicted_map(self, features, mask):
        """The center map around the center predicted in the previous frame alone, as large as its true mask."""
        heat = nn.sigmoid(self.center.heat(features, jnp.zeros_like(features["frame_heat"])))
        center, found = training.best_peak(heat, self.min_peak_score)
        return jnp.where(found[:, None, None, None], center_heatmaps.center_map(mask, center)[0], 0.0)

    def _prior(self, center, found, map_size, size):
        draw = official.center_prior if self._official else center_prior
        return jnp.where(found[:, None, None, None], draw(center, map_size, size), 1.0)

    def _segment(self, anchor, embed, prior, train):
        """Returns the logits, and the maps that were fused (Eq. 5-11)."""
        fused, intermediates = embed, {}
        if self._fusion is not None:
            # Both diffusions mix the same values of the current frame: one pass over its pixels serves both.
            keys = embed if prior is None or self._official else (embed * prior).astype(embed.dtype)
            queries = jnp.concatenate([flatten_pixels(anchor), flatten_pixels(embed)], 1)
            diffused = tiled_attention(queries, flatten_pixels(keys), flatten_pixels(embed),
                                       scale=embed.shape[-1] ** -0.5)
            inter, intra = (x.reshape(embed.shape) for x in jnp.split(diffused, 2, 1))
            if self.variant == "official_full":
                inter, intra = ((x * prior).astype(x.dtype) for x in (inter, intra))
            fused, attention = self.fusion((inter, intra, embed), train)
            intermediates = {"inter": inter, "intra": intra, "fused": fused} | attention
        return self.classifier(self.classifier_hidden(fused, train)), intermediates

    @nn.nowrap
    def _mask_loss(self, logits, batch):
        mask, valid = batch["mask"], batch["valid"]
        logits = resize_bilinear(logits.astype(jnp.float32), mask.shape[1:3], align_corners=not self._official)
        if self._official:
            return official.mask_loss(logits, mask, valid)
        return training.mask_loss(logits, mask, valid, self.background_weight)
