"""AD-Net: Anchor Diffusion for Unsupervised Video Object Segmentation (Yang et al., ICCV 2019).

Every frame is compared, pixel by pixel, with the first frame of the video (the anchor) and with itself; features
diffused along these two affinities and the frame's own embedding are classified together. Nothing accumulates from
frame to frame, so errors cannot drift: the anchor's embedding, computed once, is the whole state.

Variants share every parameter; a checkpoint serves both.

- ``paper``: the probability of every scale and mirrored copy is averaged and thresholded at 0.5; frames keep their
  aspect ratio.
- ``official``: as the published code, *logits* are averaged and thresholded at 0.5 (probability 0.62), frames of
  any shape are resized to 481x857 as OpenCV does it, and a temporal gate follows (a stage of the driver).

The published normalization is in-place ABN, which scales by ``|weight| + 1e-5``; the converter writes that value, so
both variants compute a plain batch norm.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.models.adnet import official
from uvos_jax.models.base import Model, ParityTrace, Rules, flatten_pixels
from uvos_jax.nn import resnet
from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import BatchNorm, Conv, Policy, leaky_relu, torch_default
from uvos_jax.ops.attention import tiled_attention
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.ops.preprocess import Preprocess, preprocess
from uvos_jax.ops.resize import resize_bilinear

# Rows of the paper's Table 1, with what is put beside the frame's embedding. The published code calls "anchor" inter.
NETS = {"base": (), "concat": ("anchor_embed",), "intra": ("diffused_intra",), "anchor": ("diffused_anchor",),
        "full": ("diffused_anchor", "diffused_intra")}
_OFFICIAL_SIZE = (481, 857)

Features = dict[str, jax.Array]


@flax.struct.dataclass
class State:
    """What a video's past means to AD-Net.

    Attributes:
      anchor: ``[b, h, w, c]``, embedding of the anchor frame.
    """

    anchor: jax.Array


class ADNet(Model):
    """AD-Net and the ablation nets of Table 1.

    Attributes:
      variant: ``"paper"`` or ``"official"``, see the module's text.
      net: one of ``NETS``: what the classifier sees.
      depths: blocks in the four layers of the backbone.
      width: channels of the stem; layers have ``4 * width * (1, 2, 4, 8)``.
      deep_stem: three 3x3 convolutions as published, or one 7x7 to start from a torchvision backbone.
      aspp_features: channels of the ASPP branches (and of the auxiliary head).
      embedding: channels of the pixel embedding.
      hidden: channels between the two convolutions of the classifier.
      dropout: rate of the channel dropout after ASPP, auxiliary head and classifier.
      background_weight: of background pixels in the loss, where foreground has 1; the paper weighs them alike.
      short_side: the network's shorter side at scale 1, in pixels.
      axis_name: mapped axis over which batch norm statistics are shared in training.
      dtype: type of the computation; normalization, softmax and losses stay float32.
      remat: whether training computes the backbone's blocks twice to save memory, see ``ResNet``.
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
    # Means of the Caffe ImageNet models, as the published code subtracts them.
    PREPROCESS = Preprocess("BGR", 1.0, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0))

    def setup(self):
        policy = Policy(self.dtype, self.axis_name)
        channels = 1 if self.net == "base" else self.embedding
        self.backbone = resnet.ResNet(
            self.depths, self.width, self.deep_stem, ceil_pool=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
            multi_grid=(1, 2, 4), remat=self.remat, policy=policy)
        self.aspp = ASPP(self.aspp_features, (12, 24, 36), leaky_relu, policy=policy)
        head = {"use_bias": True, "dtype": self.dtype, "kernel_init": torch_default}
        self.embed = Conv(channels, 1, **head)
        self.aux_conv = Conv(self.aspp_features, dtype=self.dtype)
        self.aux_bn = BatchNorm(policy=policy)
        self.aux_embed = Conv(channels, 1, **head)
        if self.net != "base":
            self.cls_conv1 = Conv(self.hidden, 1, **head)
            self.cls_bn = BatchNorm(policy=policy)
            self.cls_conv2 = Conv(1, 1, **head)
        self.drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2))

    def encode(self, inputs: Mapping[str, jax.Array]) -> Features:
        """Embeds frames; all that needs no past.

        Args:
          inputs: ``{"frame": [b, h, w, 3]}``, frames after ``PREPROCESS``; sides ``8 k + 1`` align best.

        Returns:
          ``{"embed": [b, h', w', c]}`` at stride 8 (the base net's single channel holds logits already).
        """
        return {"embed": self._encode(inputs["frame"], train=False)["embed"]}

    def init_state(self, reference_features: Features, reference_labels: jax.Array | None = None,
                   native_size: tuple[int, int] | None = None, max_objects: int = 1) -> State:
        """The state before the first step; labels, native size and max_objects mean nothing to AD-Net.

        Args:
          reference_features: ``encode`` of the frame at ``reference_frames``, ``{"embed": [b, h, w, c]}``.
          reference_labels: unused.
          native_size: unused.
          max_objects: unused.
        """
        del reference_labels, native_size, max_objects
        return State(anchor=reference_features["embed"])

    def predict(self, state: State, features: Features) -> tuple[jax.Array, dict]:
        """Scores one frame against the state.

        Args:
          state: of ``b`` videos.
          features: ``encode`` of one frame of each, ``{"embed": [b, h, w, c]}``, as large as the anchor's.

        Returns:
          ``[b, h, w, 1]`` logits (bring them to size by :meth:`to_native`), and nothing to commit.
        """
        return self._classify(state.anchor, features["embed"], train=False)[0], {}

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """The training forward of a pair of frames.

        Args:
          batch: ``{"anchor": [b, h, w, 3], "frame": [b, h, w, 3]}`` after ``PREPROCESS``.
          train: whether batch norm uses batch statistics and dropout (stream ``"dropout"``) is on.

        Returns:
          ``({"logits": [b, h', w', 1]}, intermediates)`` at stride 8; the base net adds ``"aux_logits"``.
          Intermediates of both frames are stacked along the batch axis, the anchors first.
        """
        b = batch["frame"].shape[0]
        # One batch for both frames, so that batch statistics are those of the pair.
        stages = self._encode(jnp.concatenate([batch["anchor"], batch["frame"]]), train)
        anchor, frame = stages["embed"][:b], stages["embed"][b:]
        logits, diffused = self._classify(anchor, frame, train)
        aux = self.aux_embed(self.drop(leaky_relu(self.aux_bn(self.aux_conv(stages["layer3"]), train)),
                                       deterministic=not train))
        outputs = {"logits": logits} | ({"aux_logits": aux[b:]} if self.net == "base" else {})
        return outputs, stages | diffused | {"aux": aux}

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What ``__call__`` and ``loss`` take, from clips of two frames: the anchor and the frame to be segmented.

        Args:
          clip: ``{"frames": [b, 2, h, w, 3] uint8 RGB, "labels": [b, 2, h, w] uint8}``; any object is foreground,
            255 is void. Sides ``8 k + 1`` align best.
        """
        frames, labels = clip["frames"], clip["labels"][:, 1, ..., None]
        size = frames.shape[2:4]
        anchor, frame = (preprocess(frames[:, i], size, self.preprocess) for i in range(2))
        void = labels == 255
        return {"anchor": anchor, "frame": frame, "mask": (labels > 0) & ~void, "valid": ~void}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Binary cross-entropy on logits brought to the mask's size (Sec. 4); the base net adds 0.4 auxiliary loss.

        Args:
          outputs: of ``__call__``.
          batch: with ``"mask"``, ``[b, H, W, 1]`` bool or in [0, 1]; and ``"valid"``, bool, if not every pixel counts.
          step: unused.

        Returns:
          ``([b] float32, {name: [b]})``.
        """
        del step
        size, weight = batch["mask"].shape[1:3], batch.get("valid")
        if self.background_weight != 1:
            weight = jnp.where(batch["mask"], 1.0, self.background_weight) * (1.0 if weight is None else weight)
        parts = {name: binary_cross_entropy(resize_bilinear(logits.astype(jnp.float32), size, align_corners=True),
                                            batch["mask"], weight)
                 for name, logits in outputs.items()}
        # The paper does not mention the auxiliary head; 0.4 is what PSPNet and DeepLab training uses.
        return sum(value * (0.4 if name == "aux_logits" else 1.0) for name, value in parts.items()), parts

    @nn.nowrap
    def to_native(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Brings ``[b, h, w, 1]`` logits to ``[b, height, width, 1]`` float32 scores that may be averaged.

        ``paper``: probabilities. ``official``: logits, which the published code averages and thresholds as they are.
        """
        logits = resize_bilinear(logits.astype(jnp.float32), size, align_corners=True)
        return logits if self.variant == "official" else jax.nn.sigmoid(logits)

    @nn.nowrap
    def to_probability(self, score: jax.Array) -> jax.Array:
        """An averaged score of any shape as the probability of foreground, float32 in [0, 1]."""
        return jax.nn.sigmoid(score) if self.variant == "official" else score

    @property
    def preprocess(self) -> Preprocess:
        """The frame transform of this variant: the published code resizes with OpenCV."""
        return self.PREPROCESS.replace(resize="opencv" if self.variant == "official" else "smooth")

    @property
    def postprocess(self) -> tuple[str, ...]:
        """Names of the driver's stages that follow the fused score."""
        return ("temporal_gate",) if self.variant == "official" else ()

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Returns the name rules for the published checkpoints."""
        return official.torch_rules(self)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a smallest batch for ``__call__``, enough to know the variables."""
        frame = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
        return {"anchor": frame, "frame": frame}

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """The network's ``(height, width)`` for a video of ``native_size``, both sides ``8 k + 1``.

        At scale 1 the shorter side is ``short_side`` and the aspect ratio is kept (480x854 gives 481x857);
        ``official`` with its own short side always takes 481x857. Other scales round down, as published:
        353x641 at 0.75 and 721x1281 at 1.5.
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
        """Logits, and the diffused features that led to them (Eq. 1-2)."""
        if self.net == "base":
            return frame, {}
        parts = {"anchor_embed": anchor}
        wanted = [name for name in NETS[self.net] if name.startswith("diffused")]
        if wanted:
            # Both diffusions mix the same values of the current frame: one pass over its pixels serves both.
            pixels = {"diffused_anchor": flatten_pixels(anchor), "diffused_intra": flatten_pixels(frame)}
            queries = jnp.concatenate([pixels[name] for name in wanted], 1)
            mixed = tiled_attention(queries, flatten_pixels(frame), flatten_pixels(frame),
                                    scale=frame.shape[-1] ** -0.5)
            for name, rows in zip(wanted, jnp.split(mixed, len(wanted), 1), strict=True):
                parts[name] = rows.reshape(frame.shape)  # a row's place is its query's place
        x = jnp.concatenate([*(parts[name] for name in NETS[self.net]), frame], -1)
        x = self.drop(leaky_relu(self.cls_bn(self.cls_conv1(x), train)), deterministic=not train)
        return self.cls_conv2(x), {name: parts[name] for name in wanted}
