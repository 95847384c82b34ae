"""DPA: Dual Prototype Attention for Unsupervised Video Object Segmentation (Cho et al., CVPR 2024).

Two VGG-16 read a frame and its optical flow. Inter-modality attention (IMA) lets each see the other's prototypes at
blocks 4 and 5; inter-frame attention (IFA) lets block 5 see the prototypes of N reference frames spread over the video.
Those prototypes, computed once, are the whole state.

Variants:

- ``paper``: Eq. 1-12, N references by Eq. 8 (in a stream by the rule of ``memory.update_memory``), cross-entropy,
  frames of any shape.
- ``official``: the published code as it stands: IFA only, other reference frames, keys for values, similarities over
  ``sqrt(C')``, a soft-IoU loss, 512x512 input as Pillow resizes it, and the map of every frame stretched to 0..1 before
  it is compared with 0.5. The code does that at width x height instead of height x width; this is not copied.
- ``official_full``: the same with its commented-out IMA, see ``official``.

The two official variants share their parameters. ``paper`` has its own IMA and hence checkpoints of its own.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.errors import UserError
from uvos_jax.models.base import Model, ParityTrace, Rules
from uvos_jax.models.dpa import official
from uvos_jax.models.dpa.attention import Stream
from uvos_jax.models.dpa.memory import State, begin, update_memory
from uvos_jax.models.dpa.modules import Decoder
from uvos_jax.nn.layers import Policy
from uvos_jax.nn.vgg import VGG16
from uvos_jax.ops.losses import binary_cross_entropy, soft_iou
from uvos_jax.ops.optical_flow import flow_to_rgb, percentile, resize_flow, subtract_camera
from uvos_jax.ops.preprocess import Preprocess, preprocess
from uvos_jax.ops.resize import resize_bilinear

STREAMS = {"both": ("appearance", "motion"), "appearance": ("appearance",), "motion": ("motion",)}
_SHORT_SIDE, _OFFICIAL_SIDE = 384, 512
_RADIUS_STEP = 2  # of the grid of vectors that say how long a long one is


class DPA(Model):
    """DPA and every row of its Table 1.

    Attributes:
        variant: See the module's text. The official ones take ``ima``, ``ifa`` and the prototypes as published.
        streams: ``"both"``, or one of them alone: the fusions of the decoder are then fed that one twice, so that its
            parameters serve both streams later on, which begin as copies. One stream has no IMA.
        ima: Whether streams attend to each other.
        ifa: Whether block 5 attends to reference frames.
        ima_prototypes: False lets IMA attend from pixels to pixels.
        ifa_prototypes: False lets IFA attend from pixels to pixels.
        references: N, how many reference frames.
        width: Channels of the first VGG stage.
        embedding: C', channels of queries, keys, values, the context and the fusions.
        decoder: Channels of the decoder's fine steps.
        camera: Whether a smooth camera motion is taken off the flow before it is drawn.
        encoder_norm: Batch norm in the encoders, which neither paper nor code has: they start from ImageNet, and from
            random weights a VGG-16 learns faster with it.
        refine: Whether the score follows the flow from frame to frame, the video's colors and the frame's edges, which
            neither paper nor code does.
        short_side: The network's shorter side at scale 1, in pixels; ``official`` takes squares of that side, and of 512
            if it is left at 384.
        axis_name: Mapped axis over which batch norm statistics are shared in training.
        dtype: Type of the computation; normalization, prototypes, softmax and losses stay float32.
        remat: Whether training computes the encoders twice to save memory.
    """

    variant: str = "paper"
    streams: str = "both"
    ima: bool = True
    ifa: bool = True
    ima_prototypes: bool = True
    ifa_prototypes: bool = True
    references: int = 4
    width: int = 64
    embedding: int = 128
    decoder: int = 32
    camera: bool = False
    encoder_norm: bool = False
    refine: bool = False
    short_side: int = _SHORT_SIDE
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    VARIANTS = ("paper", "official", "official_full")
    CHOICES: ClassVar = {"streams": tuple(STREAMS)}
    CHANGEABLE = ("references", "refine")
    TRACES: ClassVar = {"dpa": ParityTrace(("image", "flow", "ref_images", "ref_flows"), official.trace)}
    # Means and deviations of torchvision's ImageNet models; the picture of the flow is only brought to 0..1.
    PREPROCESS = Preprocess("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def setup(self):
        policy = Policy(self.dtype, self.axis_name)
        encoder = nn.remat(VGG16, static_argnums=(2, 3, 4)) if self.remat else VGG16
        modal = "graph" if self._official else "prototypes" if self.ima_prototypes else "pixels"
        frame = "published" if self._official else "prototypes" if self.ifa_prototypes else "pixels"
        for stream in self._streams:  # names begin with the stream's, so that one can be copied to the other
            setattr(self, f"{stream}_encoder", encoder(self.width, self.encoder_norm, policy))
            setattr(self, f"{stream}_stream", Stream(
                8 * self.width, self.embedding, modal * self._has_ima, frame * self._has_ifa, policy=policy))
        if self._has_ima and self._official:
            self.mutual4, self.mutual5 = (official.MutualRefinement(policy=policy) for _ in range(2))
        self.head = Decoder(self.embedding, self.decoder, policy=policy)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What ``encode`` wants."""
        return ("frame",) if self.streams == "appearance" else ("frame", "flow")

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict:
        """All of a frame that needs no other frame.

        Args:
            inputs: ``{"frame": [b, h, w, 3]}`` after ``preprocess`` and, but for the appearance stream alone, ``"flow"``
                of the same shape, from ``flow_input``. Sides are multiples of 32, or what is left over is not seen in
                every scale.

        Returns:
            Features for ``init_state`` and ``predict``; every array's first axis is ``b``.
        """
        stages = self._backbone(inputs, train=False)
        return self._features(stages, train=False) | {"memory": self._memory(stages)}

    def init_state(self, reference_features: dict, reference_labels: jax.Array | None = None,
                   native_size: tuple[int, int] | None = None, max_objects: int = 1) -> State:
        """The state before the first step; labels, native size and max_objects mean nothing to DPA.

        Args:
            reference_features: ``encode`` of the frames at ``reference_frames``, first axis ``r``: N of the whole
                video, which then never change; or the first one of a stream, which fills all slots.
            reference_labels: Unused.
            native_size: Unused.
            max_objects: Unused.

        Raises:
            ValueError: If ``r`` is neither N nor 1.
        """
        del reference_labels, native_size, max_objects
        return begin(reference_features["memory"], self.references)

    def predict(self, state: State, features: dict) -> tuple[jax.Array, dict]:
        """Scores one frame against the state.

        Args:
            state: Of one video.
            features: ``encode`` of one of its frames.

        Returns:
            ``[1, h, w, 1]`` logits (bring them to size by :meth:`to_native`), and nothing to commit.
        """
        sources = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, x.shape[-1]), state.memory)
        return self._decode(features, sources, train=False)[0][-1], {}

    @nn.nowrap
    def commit(self, state: State, features: dict, labels: jax.Array, aux: dict,
               new_labels: jax.Array | None = None) -> State:
        """Lets a frame of a stream be a reference, see :func:`update_memory`; those of a whole video stay."""
        del labels, aux, new_labels
        return update_memory(state, features["memory"])

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """The training forward: frames, each with references of its own.

        Args:
            batch: As ``encode`` takes it, and ``"reference_frame"``, ``"reference_flow"`` ``[b, r, h, w, 3]`` if it has
                references; without, a frame is its own. No gradient reaches what makes the references' features.
            train: Whether batch norm uses batch statistics.

        Returns:
            ``({"logits": four of [b, h', w', 1]}, intermediates)``, at strides 8, 4, 2, 1; the last is the answer.
        """
        stages = self._backbone(batch, train)
        reference_stages = stages
        if self._has_ifa and "reference_frame" in batch:
            flat = {name: batch[f"reference_{name}"].reshape(-1, *batch["frame"].shape[1:]) for name in self.inputs}
            reference_stages = self._backbone(flat, train, ima=not self._official)
        memory = self._memory(reference_stages)
        b = batch["frame"].shape[0]
        sources = jax.tree.map(lambda x: x.reshape(b, -1, x.shape[-1]), memory)
        features = self._features(stages, train)
        logits, decoded = self._decode(features, sources, train)
        if self._has_ima and not self._runs_ima and self.is_initializing():  # the checkpoints have what is not run
            for block in (4, 5):
                self._attend(block, stages | features, train)
        return {"logits": logits}, stages | features | decoded

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What ``__call__`` and ``loss`` take, from clips of a target frame and ``r >= 0`` reference frames.

        Args:
            clip: ``{"frames": [b, 1 + r, h, w, 3] uint8 RGB, "labels": [b, 1 + r, h, w] uint8}`` and, if the motion
                stream is there, ``"flow"`` ``[b, 1 + r, h, w, 2]``. Labels of the target count: any object is foreground,
                255 is void. Sides are multiples of 32.

        Raises:
            UserError: If the motion stream gets no flow.
        """
        frames, labels = clip["frames"], clip["labels"][:, 0, ..., None]
        b, t, h, w = frames.shape[:4]
        made = {"frame": preprocess(frames.reshape(-1, h, w, 3), (h, w), self.preprocess)}
        if "flow" in self.inputs:
            if "flow" not in clip:
                raise UserError("These clips have no optical flow, which DPA's motion stream wants; convert the data"
                                " with --flow, or train --config.model.streams=appearance.")
            made["flow"] = self.flow_input(clip["flow"].reshape(-1, h, w, 2), (h, w))
        made = {name: x.reshape(b, t, h, w, 3) for name, x in made.items()}
        batch = {name: x[:, 0] for name, x in made.items()}
        if t > 1 and self._has_ifa:
            batch |= {f"reference_{name}": x[:, 1:] for name, x in made.items()}
        void = labels == 255
        return batch | {"mask": (labels > 0) & ~void, "valid": ~void}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, tuple], batch: Mapping[str, jax.Array], step: jax.Array):
        """Mean over the four outputs, each brought to the mask's size, of cross-entropy (``paper``) or soft IoU.

        Args:
            outputs: Of ``__call__``.
            batch: With ``"mask"``, ``[b, H, W, 1]`` bool or in [0, 1]; and ``"valid"``, bool, if not every pixel counts.
            step: Unused.

        Returns:
            ``([b] float32, {name: [b]})``; parts are those of the single outputs, from coarse to fine.
        """
        del step
        size, weight, parts = batch["mask"].shape[1:3], batch.get("valid"), {}
        for name, logits in zip(("stride8", "stride4", "stride2", "stride1"), outputs["logits"], strict=True):
            logits = logits.astype(jnp.float32)
            if self._official:
                probability = resize_bilinear(jax.nn.sigmoid(logits), size, align_corners=True)
                parts[name] = soft_iou(probability, batch["mask"], weight)
            else:
                parts[name] = binary_cross_entropy(resize_bilinear(logits, size, align_corners=True), batch["mask"],
                                                   weight)
        return sum(parts.values()) / len(parts), parts

    @nn.nowrap
    def to_native(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Brings ``[b, h, w, 1]`` logits to ``[b, height, width, 1]`` float32 probabilities that may be averaged.

        ``official`` stretches every frame's map so that it reaches from 0 to 1, as the published code does.
        """
        x = resize_bilinear(jax.nn.sigmoid(logits.astype(jnp.float32)), size, align_corners=False)
        if not self._official:
            return x
        low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
        return (x - low) / (high - low + 1e-8)

    @property
    def preprocess(self) -> Preprocess:
        """The frame transform of this variant: the published code resizes with Pillow."""
        return self.PREPROCESS.replace(resize="pillow" if self._official else "smooth")

    @nn.nowrap
    def flow_input(self, flow: jax.Array, size: tuple[int, int]) -> jax.Array:
        """The picture of the flow on the published color wheel, each field to its longest vector, in 0..1.

        With ``camera`` the flow comes to the network's size first, as it is in training, and a few vectors that are
        wrong must not make all others pale: full color is the length that one in a hundred exceeds. Where hardly
        anything moves by itself it is 1/500 of the width.

        Args:
            flow: ``[t, h, w, 2]`` in pixels of any grid.
            size: The network's ``(height, width)``.

        Returns:
            ``[t, height, width, 3]`` float32.
        """
        radius = None
        if self.camera:
            flow = subtract_camera(resize_flow(flow, size))
            length = jnp.sqrt(jnp.square(flow[:, ::_RADIUS_STEP, ::_RADIUS_STEP]).sum(-1))
            radius = jnp.maximum(percentile(length.reshape(len(flow), -1), 99), size[1] / 500)[:, None, None]
        rule = self.preprocess.replace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return preprocess(flow_to_rgb(flow, radius), size, rule)

    @property
    def postprocess(self) -> tuple[str, ...]:
        """Stages that follow the fused score: none of the paper's."""
        return ("follow_flow",) * ("flow" in self.inputs and self.refine) + (
            "follow_colors", "follow_edges") * self.refine

    @nn.nowrap
    def reference_frames(self, length: int | None) -> tuple[int, ...]:
        """Indices of the frames that ``init_state`` wants: Eq. 8, from the first to the last frame.

        Of a stream (None), and where there is nothing to choose, the first. Eq. 8 divides by N - 1: N = 1 takes frame
        0. The published code takes multiples of ``length // N``, which never reaches the end.
        """
        count = self.references
        if length is None or count == 1 or not self._has_ifa:
            return (0,)
        if self._official:
            return tuple(i * (length // count) for i in range(count))
        return tuple(i * (length - 1) // (count - 1) for i in range(count))

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Returns the name rules for the published checkpoints."""
        return official.torch_rules(self)

    @property
    def backbones(self) -> tuple[str, ...]:
        """Paths of the VGG-16 encoders, one per stream."""
        return tuple(f"{stream}_encoder" for stream in self._streams)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a smallest batch for ``__call__``, enough to know the variables."""
        return dict.fromkeys(self.inputs, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """The network's ``(height, width)`` for a video of ``native_size``, both sides multiples of 32.

        ``paper`` keeps the aspect ratio (480x854 gives 384x672), ``official`` does not.
        """
        if self._official:
            side = _OFFICIAL_SIDE if self.short_side == _SHORT_SIDE else self.short_side
            return (32 * max(1, round(side * scale / 32)),) * 2
        return tuple(32 * max(1, round(n * self.short_side * scale / min(native_size) / 32)) for n in native_size)

    def _backbone(self, inputs, train, ima=True):
        """Blocks of the encoders; block 5 reads block 4 as IMA refined it."""
        pictures, stages = {"appearance": inputs.get("frame"), "motion": inputs.get("flow")}, {}
        for stream in self._streams:
            made = getattr(self, f"{stream}_encoder")(pictures[stream].astype(self.dtype), 1, 4, train)
            stages |= {f"{stream}_block{i}": made[f"stage{i}"] for i in range(1, 5)}
        refined = {stream: stages[f"{stream}_block4"] for stream in self._streams}
        if self._has_ima:
            stages |= {f"{stream}_query4": self._stream(stream).query4(x) for stream, x in refined.items()}
        if self._runs_ima and ima:
            refined = self._attend(4, stages, train)
            stages |= {f"{stream}_ima4": x for stream, x in refined.items()}
        for stream, x in refined.items():
            stages[f"{stream}_block5"] = getattr(self, f"{stream}_encoder")(x, 5, 5, train)["stage5"]
        return stages

    def _attend(self, block, features, train):
        """IMA at a block: every stream's features, refined by the other's."""
        units = {name: getattr(self._stream(name), f"ima{block}") for name in self._streams}
        own = {name: features[f"{name}_block{block}"] for name in self._streams}
        queries = {name: features[f"{name}_query{block}"] for name in self._streams}
        if self._official:
            maps = {name: unit.maps(queries[name], train) for name, unit in units.items()}
            maps = getattr(self, f"mutual{block}")(maps, train)
            return {name: unit(own[name], maps[name], train) for name, unit in units.items()}
        sources = {name: unit.source(own[name]) for name, unit in units.items()}
        return {name: units[name](own[name], queries[name], sources[other], train)
                for name, other in zip(self._streams, self._streams[::-1], strict=True)}

    def _features(self, stages, train):
        """All that a frame's answer needs of the frame itself."""
        features = {f"{name}_block5": stages[f"{name}_block5"] for name in self._streams}
        if self._has_ima or self._has_ifa:
            features |= {f"{name}_query5": self._stream(name).query5(features[f"{name}_block5"])
                         for name in self._streams}
        if self._runs_ima:
            features |= {f"{name}_ima5": x for name, x in self._attend(5, features, train).items()}
        block4 = [self._stream(name).squeeze4(stages.get(f"{name}_ima4", stages[f"{name}_block4"]))
                  for name in self._streams]
        return features | self.head.prepare([stages[f"{self._streams[0]}_block{i}"] for i in (1, 2, 3)], block4, train)

    def _memory(self, stages):
        """What frames are to others, by stream. The published code's references pass block 5 without IMA at block 4."""
        published = self._official and self._runs_ima
        block5 = {name: getattr(self, f"{name}_encoder")(stages[f"{name}_block4"], 5, 5)["stage5"] if published
                  else stages[f"{name}_block5"] for name in self._streams if self._has_ifa}
        return {name: self._stream(name).ifa.source(lax.stop_gradient(x)) for name, x in block5.items()}

    def _decode(self, features, sources, train):
        """Logits, coarse to fine, and what led to them; ``sources`` are keys and values ``[b, t, C']`` by stream."""
        block5, context, inner = [], [], {}
        for name in self._streams:
            x, made = self._stream(name)(features[f"{name}_block5"], features.get(f"{name}_query5"),
                                         features.get(f"{name}_ima5"), sources.get(name), train)
            inner |= {f"{name}_{key}": value for key, value in made.items()}
            block5.append(x)
            context.append(made["context"])
        logits, fused = self.head(features, block5, context, train)
        return logits, inner | fused

    def _stream(self, name):
        return getattr(self, f"{name}_stream")

    @property
    def _official(self):
        return self.variant != "paper"

    @property
    def _streams(self):
        return STREAMS[self.streams]

    @property
    def _has_ima(self):  # whether it has the parameters; "official" does not run it
        return self.streams == "both" and (self.ima or self._official)

    @property
    def _runs_ima(self):
        return self._has_ima and self.variant != "official"

    @property
    def _has_ifa(self):
        return self.ifa or self._official
