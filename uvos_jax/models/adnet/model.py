"""AD-Net: Anchor Diffusion for Unsupervised Video Object Segmentation (Yang et al., ICCV 2019).

Affinities are computed between the pixels of every frame and those of the first frame (the anchor), and among the
frame's own pixels. Features diffused along the two affinities are classified together with the frame's embedding. The
state is the embedding of the anchor. It is computed once, so errors do not accumulate over time.

The variants share all parameters, so a checkpoint serves both:

- ``paper``: averages the probabilities of scales and mirrored copies and thresholds them at 0.5. Frames keep their
  aspect ratio.
- ``official``: the published code. It averages *logits* and thresholds them at 0.5 (probability 0.62), resizes frames
  of any shape to 481x857 as OpenCV does, and applies a temporal gate (a post-processing stage of the driver).

The published normalization is in-place ABN, which scales by ``|weight| + 1e-5``. The converter writes that value, so
both variants compute a plain batch norm.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.labels import VOID
from uvos_jax.models.adnet import official
from uvos_jax.models.base import Model, ParityTrace, Rules, flatten_pixels
from uvos_jax.nn import resnet
from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import Conv, ConvNorm, Policy, leaky_relu, torch_default
from uvos_jax.ops.attention import tiled_attention
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.ops.preprocess import Preprocess, preprocess
from uvos_jax.ops.resize import resize_bilinear

# Rows of Table 1: features that are concatenated with the frame's embedding. The published code names "anchor" inter.
NETS = {"base": (), "concat": ("anchor_embed",), "intra": ("diffused_intra",), "anchor": ("diffused_anchor",),
        "full": ("diffused_anchor", "diffused_intra")}
_OFFICIAL_SIZE = (481, 857)

Features = dict[str, jax.Array]


@flax.struct.dataclass
class State:
    """Recurrent state of AD-Net.

    Attributes:
        anchor: ``[b, h, w, c]`` embedding of the anchor frame.
    """

    anchor: jax.Array


class ADNet(Model):
    """AD-Net and the ablation nets of Table 1.

    Attributes:
        variant: ``"paper"`` or ``"official"``, see the module docstring.
        net: Row of Table 1, one of ``NETS``: the input of the classifier.
        depths: Blocks in the four layers of the backbone.
        width: Channels of the stem; the layers have ``4 * width * (1, 2, 4, 8)``.
        deep_stem: Whether the stem is three 3x3 convolutions, as published, or one 7x7 convolution, as in torchvision.
        aspp_features: Channels of the ASPP branches and of the auxiliary head.
        embedding: Channels of the pixel embedding.
        hidden: Channels between the two convolutions of the classifier.
        dropout: Rate of the channel dropout after ASPP, auxiliary head and classifier.
        background_weight: Loss weight of background pixels relative to foreground pixels; 1 in the paper.
        short_side: Shorter side of the network input at scale 1, in pixels.
        axis_name: Mapped axis over which batch norm shares its statistics in training.
        dtype: Computation dtype; normalization, softmax and losses stay float32.
        remat: Whether training recomputes the backbone's blocks in the backward pass to save memory, see ``ResNet``.
    """

    variant: str = "paper"
    net: str = "full"
    depths: tuple[int, ...] = resnet.RESNET101
    width: int = 64
    deep_stem: bool = True
    aspp_features: int = 512
    embedding: int = 128
    hidden: int = 128
    dropout: float = 0.1
    background_weight: float = 1.0
    short_side: int = 481
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    VARIANTS = ("paper", "official")
    CHOICES: ClassVar = {"net": tuple(NETS)}
    CHANGEABLE = ("background_weight",)
    BACKBONES = ("backbone",)
    TRACES: ClassVar = {"adnet": ParityTrace(("ref", "cur"), official.trace)}
    # Means of the Caffe ImageNet models, which the published code subtracts.
    PREPROCESS = Preprocess("BGR", 1.0, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0))

    def setup(self):
        """Creates the submodules."""
        policy = Policy(self.dtype, self.axis_name)
        channels = 1 if self.net == "base" else self.embedding
        self.backbone = resnet.ResNet(
            self.depths, self.width, self.deep_stem, ceil_pool=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
            multi_grid=(1, 2, 4), remat=self.remat, policy=policy)
        self.aspp = ASPP(self.aspp_features, (12, 24, 36), leaky_relu, policy=policy)
        head = {"use_bias": True, "dtype": self.dtype, "kernel_init": torch_default}
        self.embed = Conv(channels, 1, **head)
        self.aux = ConvNorm(self.aspp_features, activation=leaky_relu, policy=policy)
        self.aux_embed = Conv(channels, 1, **head)
        if self.net != "base":
            self.classifier_hidden = ConvNorm(self.hidden, 1, use_bias=True, activation=leaky_relu,
                                              kernel_init=torch_default, policy=policy)
            self.classifier = Conv(1, 1, **head)
        self.drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2))

    def encode(self, inputs: Mapping[str, jax.Array]) -> Features:
        """Embeds frames independently of each other.

        Args:
            inputs: ``{"frame": [b, h, w, 3]}``, preprocessed frames. Sides of ``8 k + 1`` pixels align best.

        Returns:
            ``{"embed": [b, h', w', c]}`` at stride 8. The base net has one channel, its logits.
        """
        return {"embed": self._encode(inputs["frame"], train=False)["embed"]}

    def init_state(self, reference_features: Features, reference_labels: jax.Array | None = None,
                   native_size: tuple[int, int] | None = None, max_objects: int = 1) -> State:
        """Returns the state before the first step.

        Args:
            reference_features: ``encode`` of the anchor frame, ``{"embed": [b, h, w, c]}``.
            reference_labels: Unused.
            native_size: Unused.
            max_objects: Unused.
        """
        del reference_labels, native_size, max_objects
        return State(anchor=reference_features["embed"])

    def predict(self, state: State, features: Features) -> tuple[jax.Array, dict]:
        """Segments one frame of each video.

        Args:
            state: State of ``b`` videos.
            features: ``encode`` of one frame of each, ``{"embed": [b, h, w, c]}``, of the anchor's size.

        Returns:
            ``[b, h, w, 1]`` logits at stride 8 (see :meth:`to_native`), and an empty dict.
        """
        return self._classify(state.anchor, features["embed"], train=False)[0], {}

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """Runs the training forward pass on pairs of frames.

        Args:
            batch: ``{"anchor": [b, h, w, 3], "frame": [b, h, w, 3]}``, preprocessed.
            train: Whether to use batch statistics and dropout (RNG stream ``"dropout"``).

        Returns:
            ``({"logits": [b, h', w', 1]}, intermediates)`` at stride 8; the base net adds ``"aux_logits"``.
            Intermediates of both frames are concatenated along the batch axis, anchors first.
        """
        b = batch["frame"].shape[0]
        # One batch for both frames, so that batch statistics cover the pair.
        stages = self._encode(jnp.concatenate([batch["anchor"], batch["frame"]]), train)
        anchor, frame = stages["embed"][:b], stages["embed"][b:]
        logits, diffused = self._classify(anchor, frame, train)
        aux = self.aux_embed(self.drop(self.aux(stages["layer3"], train), deterministic=not train))
        outputs = {"logits": logits} | ({"aux_logits": aux[b:]} if self.net == "base" else {})
        return outputs, stages | diffused | {"aux": aux}

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch for ``__call__`` and ``loss`` from clips of two frames, the anchor and the target.

        Args:
            clip: ``{"frames": [b, 2, h, w, 3] uint8 RGB, "labels": [b, 2, h, w] uint8}``. Every object is foreground,
                255 is void. Sides of ``8 k + 1`` pixels align best.
        """
        frames, labels = clip["frames"], clip["labels"][:, 1, ..., None]
        size = frames.shape[2:4]
        anchor, frame = (preprocess(frames[:, i], size, self.preprocess) for i in range(2))
        void = labels == VOID
        return {"anchor": anchor, "frame": frame, "mask": (labels > 0) & ~void, "valid": ~void}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Computes the binary cross-entropy of logits upsampled to the mask's size (Sec. 4).

        The base net adds the loss of the auxiliary head with weight 0.4.

        Args:
            outputs: Outputs of ``__call__``.
            batch: ``"mask"``, ``[b, H, W, 1]`` bool or float in 0..1, and optionally ``"valid"``, ``[b, H, W, 1]``
                bool, False for pixels to ignore.
            step: Unused.

        Returns:
            ``([b] float32, {name: [b]})``: the loss and its terms per example.
        """
        del step
        size, weight = batch["mask"].shape[1:3], batch.get("valid")
        if self.background_weight != 1:
            weight = jnp.where(batch["mask"], 1.0, self.background_weight) * (1.0 if weight is None else weight)
        parts = {name: binary_cross_entropy(resize_bilinear(logits.astype(jnp.float32), size, align_corners=True),
                                            batch["mask"], weight)
                 for name, logits in outputs.items()}
        # Not stated in the paper; 0.4 is the auxiliary weight of PSPNet and DeepLab training.
        return sum(value * (0.4 if name == "aux_logits" else 1.0) for name, value in parts.items()), parts

    @nn.nowrap
    def to_native(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Resizes ``[b, h, w, 1]`` logits to ``[b, height, width, 1]`` float32 scores that can be averaged.

        ``paper``: probabilities. ``official``: logits, which the published code averages and thresholds directly.
        """
        logits = resize_bilinear(logits.astype(jnp.float32), size, align_corners=True)
        return logits if self.variant == "official" else jax.nn.sigmoid(logits)

    @nn.nowrap
    def to_probability(self, score: jax.Array) -> jax.Array:
        """Returns the foreground probability (float32, 0..1) of an averaged score of any shape."""
        return jax.nn.sigmoid(score) if self.variant == "official" else score

    @property
    def preprocess(self) -> Preprocess:
        """The frame transform of this variant: the published code resizes with OpenCV."""
        return self.PREPROCESS.replace(resize="opencv" if self.variant == "official" else "smooth")

    @property
    def postprocess(self) -> tuple[str, ...]:
        """Names of the post-processing stages that follow the fused score."""
        return ("temporal_gate",) if self.variant == "official" else ()

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Returns the name rules for the published checkpoints."""
        return official.torch_rules(self)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a minimal batch for ``__call__``, from which the variables' shapes follow."""
        frame = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
        return {"anchor": frame, "frame": frame}

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Returns the network's ``(height, width)`` for a video of ``native_size``; both sides are ``8 k + 1``.

        At scale 1 the shorter side is ``short_side`` and the aspect ratio is kept (480x854 gives 481x857).
        ``official`` with the default short side always uses 481x857. Other scales round down, as published: 353x641
        at 0.75 and 721x1281 at 1.5.
        """
        if self.variant == "official" and self.short_side == _OFFICIAL_SIZE[0]:
            base = _OFFICIAL_SIZE
        else:
            base = tuple(8 * max(1, round((n * self.short_side / min(native_size) - 1) / 8)) + 1
                         for n in native_size)
        return tuple(8 * max(1, int((n * scale - 1) // 8)) + 1 for n in base)

    def _encode(self, x, train):
        stages = self.backbone(x.astype(self.dtype), train)
        stages["aspp"] = self.drop(self.aspp(stages["layer4"], train), deterministic=not train)
        return stages | {"embed": self.embed(stages["aspp"])}

    def _classify(self, anchor, frame, train):
        """Returns logits and the diffused features they are computed from (Eq. 1-2)."""
        if self.net == "base":
            return frame, {}
        parts = {"anchor_embed": anchor}
        wanted = [name for name in NETS[self.net] if name.startswith("diffused")]
        if wanted:
            # Both diffusions use the current frame as keys and values, so one attention serves both.
            pixels = {"diffused_anchor": flatten_pixels(anchor), "diffused_intra": flatten_pixels(frame)}
            queries = jnp.concatenate([pixels[name] for name in wanted], 1)
            mixed = tiled_attention(queries, flatten_pixels(frame), flatten_pixels(frame),
                                    scale=frame.shape[-1] ** -0.5)
            for name, rows in zip(wanted, jnp.split(mixed, len(wanted), 1), strict=True):
                parts[name] = rows.reshape(frame.shape)  # one row per query pixel
        x = jnp.concatenate([*(parts[name] for name in NETS[self.net]), frame], -1)
        x = self.drop(self.classifier_hidden(x, train), deterministic=not train)
        return self.classifier(x), {name: parts[name] for name in wanted}
