"""DPA: Dual Prototype Attention for Unsupervised Video Object Segmentation (Cho et al., CVPR 2024).

Two VGG-16 encode a frame (appearance stream) and its optical flow (motion stream). At blocks 4 and 5 each stream
attends to the prototypes of the other (inter-modality attention, IMA). At block 5 each stream attends to the prototypes
of N reference frames spread over the video (inter-frame attention, IFA). These prototypes are the state.

Variants:

- ``paper``: Eq. 1-12, N references by Eq. 8 (in a stream by ``memory.update_memory``), cross-entropy loss, frames of
  any shape.
- ``official``: the published code: IFA only, other reference frames, keys in place of values, similarities divided by
  ``sqrt(C')``, a soft-IoU loss, 512x512 input resized as Pillow does, and the map of every frame stretched to 0..1
  before it is thresholded at 0.5 (at width x height instead of height x width, which is not reproduced).
- ``official_full``: ``official`` with the commented-out IMA of the published code, see ``official.py``.

The two official variants share all parameters. ``paper`` has another IMA, so its checkpoints differ.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.errors import UserError
from uvos_jax.labels import VOID
from uvos_jax.models.base import Model, ParityTrace, Rules
from uvos_jax.models.dpa import official
from uvos_jax.models.dpa.attention import Stream
from uvos_jax.models.dpa.camera import compensate_camera
from uvos_jax.models.dpa.memory import State, initial_state, reference_indices, update_memory
from uvos_jax.models.dpa.modules import Decoder
from uvos_jax.nn.layers import Policy
from uvos_jax.nn.vgg import VGG16
from uvos_jax.ops.losses import binary_cross_entropy, soft_iou
from uvos_jax.ops.optical_flow import flow_to_rgb
from uvos_jax.ops.preprocess import Preprocess, preprocess
from uvos_jax.ops.resize import resize_bilinear

STREAMS = {"both": ("appearance", "motion"), "appearance": ("appearance",), "motion": ("motion",)}
_SHORT_SIDE, _OFFICIAL_SIDE = 384, 512


class DPA(Model):
    """DPA and all rows of its Table 1.

    Attributes:
        variant: See the module docstring. The official variants ignore ``ima``, ``ifa`` and the prototype options.
        streams: ``"both"``, ``"appearance"`` or ``"motion"``. A single stream has no IMA and is fed to the decoder's
            fusions twice, so that the trained decoder can later serve two streams initialized as copies of it.
        ima: Whether streams attend to each other (inter-modality attention).
        ifa: Whether block 5 attends to reference frames (inter-frame attention).
        ima_prototypes: Whether IMA uses prototypes; otherwise pixels attend to pixels.
        ifa_prototypes: Whether IFA uses prototypes; otherwise pixels attend to pixels.
        references: N, the number of reference frames.
        width: Channels of the first VGG stage.
        embedding: C', channels of queries, keys, values, the context and the fusions.
        decoder: Channels of the decoder's refinement steps.
        camera: Whether smooth camera motion is subtracted from the flow before it is color-coded.
        encoder_norm: Whether the encoders have batch norm. Neither paper nor code has it, because they start from
            ImageNet weights; with random initialization a VGG-16 learns faster with it.
        refine: Whether to post-process along the flow and by colors and edges; neither in the paper nor in the code.
        short_side: Shorter side of the network input at scale 1, in pixels. ``official`` uses squares of that side, and
            of 512 if it is left at 384.
        axis_name: Mapped axis over which batch norm shares its statistics in training.
        dtype: Computation dtype; normalization, prototypes, softmax and losses stay float32.
        remat: Whether training recomputes the encoders in the backward pass to save memory.
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
    # Mean and standard deviation of torchvision's ImageNet models; the color-coded flow is only scaled to 0..1.
    PREPROCESS = Preprocess("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def setup(self):
        """Creates the submodules."""
        policy = Policy(self.dtype, self.axis_name)
        encoder = nn.remat(VGG16, static_argnums=(2, 3, 4)) if self.remat else VGG16
        modal = "graph" if self._official else "prototypes" if self.ima_prototypes else "pixels"
        frame = "published" if self._official else "prototypes" if self.ifa_prototypes else "pixels"
        for stream in self._streams:  # names start with the stream's, so that training can copy a stream
            setattr(self, f"{stream}_encoder", encoder(self.width, self.encoder_norm, policy))
            setattr(self, f"{stream}_stream", Stream(
                8 * self.width, self.embedding, modal * self._has_ima, frame * self._has_ifa, policy=policy))
        if self._has_ima and self._official:
            self.mutual4, self.mutual5 = (official.MutualRefinement(policy=policy) for _ in range(2))
        self.head = Decoder(self.embedding, self.decoder, policy=policy)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs of ``encode``."""
        return ("frame",) if self.streams == "appearance" else ("frame", "flow")

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict:
        """Encodes frames independently of each other.

        Args:
            inputs: ``{"frame": [b, h, w, 3]}``, preprocessed, and unless there is only the appearance stream
                ``"flow"``, ``[b, h, w, 3]`` from ``flow_input``. Sides should be multiples of 32; a remainder is cut
                off at the coarse scales.

        Returns:
            Features for ``init_state`` and ``predict``; the first axis of every array is ``b``.
        """
        stages = self._backbone(inputs, train=False)
        return self._features(stages, train=False) | {"memory": self._memory(stages)}

    def init_state(self, reference_features: dict, reference_labels: jax.Array | None = None,
                   native_size: tuple[int, int] | None = None, max_objects: int = 1) -> State:
        """Returns the state before the first step.

        Args:
            reference_features: ``encode`` of ``r`` reference frames: N frames of the whole video, which never change,
                or the first frame of a stream, which fills all slots.
            reference_labels: Unused.
            native_size: Unused.
            max_objects: Unused.

        Raises:
            ValueError: ``r`` is neither N nor 1.
        """
        del reference_labels, native_size, max_objects
        return initial_state(reference_features["memory"], self.references)

    def predict(self, state: State, features: dict) -> tuple[jax.Array, dict]:
        """Segments one frame.

        Args:
            state: State of one video.
            features: ``encode`` of one of its frames.

        Returns:
            ``[1, h, w, 1]`` logits (see :meth:`to_native`), and an empty dict.
        """
        sources = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, x.shape[-1]), state.memory)
        return self._decode(features, sources, train=False)[0][-1], {}

    @nn.nowrap
    def commit(self, state: State, features: dict, labels: jax.Array, aux: dict,
               new_labels: jax.Array | None = None) -> State:
        """Returns the state after a frame, which may have become a reference; see ``memory.update_memory``."""
        del labels, aux, new_labels
        return update_memory(state, features["memory"])

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """Runs the training forward pass on frames, each with its own references.

        Args:
            batch: Inputs of ``encode``, and optionally ``"reference_frame"`` and ``"reference_flow"``
                ``[b, r, h, w, 3]``; without references each frame is its own reference. No gradient flows into the
                features of references.
            train: Whether to use batch statistics.

        Returns:
            ``({"logits": four of [b, h', w', 1]}, intermediates)``, at strides 8, 4, 2 and 1 (the prediction).
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
        if self._has_ima and not self._runs_ima and self.is_initializing():  # creates unused parameters of checkpoints
            for block in (4, 5):
                self._attend(block, stages | features, train)
        return {"logits": logits}, stages | features | decoded

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch for ``__call__`` and ``loss`` from clips of a target and ``r >= 0`` reference frames.

        Args:
            clip: ``{"frames": [b, 1 + r, h, w, 3] uint8 RGB, "labels": [b, 1 + r, h, w] uint8}`` and, for the motion
                stream, ``"flow"`` ``[b, 1 + r, h, w, 2]`` in pixels. Only the target's labels are used: every object is
                foreground, 255 is void. Sides are multiples of 32.

        Raises:
            UserError: There is no flow for the motion stream.
        """
        frames, labels = clip["frames"], clip["labels"][:, 0, ..., None]
        b, t, h, w = frames.shape[:4]
        made = {"frame": preprocess(frames.reshape(-1, h, w, 3), (h, w), self.preprocess)}
        if "flow" in self.inputs:
            if "flow" not in clip:
                raise UserError("These clips have no optical flow for DPA's motion stream. Convert the data with"
                                " --flow, or train with --config.model.streams=appearance.")
            made["flow"] = self.flow_input(clip["flow"].reshape(-1, h, w, 2), (h, w))
        made = {name: x.reshape(b, t, h, w, 3) for name, x in made.items()}
        batch = {name: x[:, 0] for name, x in made.items()}
        if t > 1 and self._has_ifa:
            batch |= {f"reference_{name}": x[:, 1:] for name, x in made.items()}
        void = labels == VOID
        return batch | {"mask": (labels > 0) & ~void, "valid": ~void}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, tuple], batch: Mapping[str, jax.Array], step: jax.Array):
        """Computes the mean loss of the four outputs at the mask's size: cross-entropy (``paper``) or soft IoU.

        Args:
            outputs: Outputs of ``__call__``.
            batch: ``"mask"``, ``[b, H, W, 1]`` bool or float in 0..1, and optionally ``"valid"``, ``[b, H, W, 1]``
                bool, False for pixels to ignore.
            step: Unused.

        Returns:
            ``([b] float32, {name: [b]})``: the loss, and the losses of the outputs from coarse to fine.
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
        """Resizes ``[b, h, w, 1]`` logits to ``[b, height, width, 1]`` float32 probabilities that can be averaged.

        ``official`` stretches the map of every frame to the range 0..1, as the published code does.
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
        """Color-codes flow with the published color wheel; each field is scaled by its longest vector.

        With ``camera`` the camera motion is subtracted first and the scale differs, see ``camera.py``.

        Args:
            flow: ``[t, h, w, 2]`` in pixels of any grid.
            size: Network input ``(height, width)``.

        Returns:
            ``[t, height, width, 3]`` float32 RGB in 0..1.
        """
        rule = self.preprocess.replace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return preprocess(flow_to_rgb(*compensate_camera(flow, size)) if self.camera else flow_to_rgb(flow), size, rule)

    @property
    def postprocess(self) -> tuple[str, ...]:
        """Names of the post-processing stages that follow the fused score; the paper has none."""
        return ("smooth_over_time",) * ("flow" in self.inputs and self.refine) + (
            "refine_by_color", "refine_edges") * self.refine

    @nn.nowrap
    def reference_frames(self, length: int | None) -> tuple[int, ...]:
        """Returns the indices of the reference frames; the first frame if ``length`` is None or without IFA."""
        if length is None or not self._has_ifa:
            return (0,)
        return reference_indices(length, self.references, self._official)

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
        """Returns the shapes of a minimal batch for ``__call__``, from which the variables' shapes follow."""
        return dict.fromkeys(self.inputs, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Returns the network's ``(height, width)`` for a video of ``native_size``; both sides are multiples of 32.

        ``paper`` keeps the aspect ratio (480x854 gives 384x672); ``official`` uses a square.
        """
        if self._official:
            side = _OFFICIAL_SIDE if self.short_side == _SHORT_SIDE else self.short_side
            return (32 * max(1, round(side * scale / 32)),) * 2
        return tuple(32 * max(1, round(n * self.short_side * scale / min(native_size) / 32)) for n in native_size)

    def _backbone(self, inputs, train, ima=True):
        """Returns blocks 1 to 5 of the encoders by name; the input of block 5 is block 4 after IMA."""
        images, stages = {"appearance": inputs.get("frame"), "motion": inputs.get("flow")}, {}
        for stream in self._streams:
            made = getattr(self, f"{stream}_encoder")(images[stream].astype(self.dtype), 1, 4, train)
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
        """Returns each stream's features at a block after IMA with the other stream."""
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
        """Returns the features of a frame that its prediction needs."""
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
        """Returns keys and values of frames as references, by stream."""
        published = self._official and self._runs_ima  # there, references pass block 5 without IMA at block 4
        block5 = {name: getattr(self, f"{name}_encoder")(stages[f"{name}_block4"], 5, 5)["stage5"] if published
                  else stages[f"{name}_block5"] for name in self._streams if self._has_ifa}
        return {name: self._stream(name).ifa.source(lax.stop_gradient(x)) for name, x in block5.items()}

    def _decode(self, features, sources, train):
        """Returns logits, coarse to fine, and intermediates; ``sources``: keys and values ``[b, t, C']`` by stream."""
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
    def _has_ima(self):  # whether the parameters exist; "official" does not run IMA
        return self.streams == "both" and (self.ima or self._official)

    @property
    def _runs_ima(self):
        return self._has_ima and self.variant != "official"

    @property
    def _has_ifa(self):
        return self.ifa or self._official
