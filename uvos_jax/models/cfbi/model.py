"""CFBI: Collaborative Video Object Segmentation by Foreground-Background Integration (Yang et al., ECCV 2020).

CFBI tracks objects from given masks. The embedding of every pixel is matched with the reference frames and with the
previous frame, for each object with the pixels of the object (foreground) and with those of all other objects
(background). For each object, an ensembler predicts a mask from the matches, the embeddings, and a descriptor of the
whole object.

The background is object 0 and is treated like the others. Objects occupy slots (``max_objects``), the first ``count``
of which are in use: run time depends on ``count``, the compiled program does not.

Variants, which share all parameters:

- ``paper``: RGB frames with a fixed shorter side; labels are sampled at the positions of the embeddings' pixels.
- ``official``: the published code: BGR frames at native size, up to 1,040 pixels a side, resized with OpenCV's bicubic
  rule; labels are sampled with PyTorch's floor rule, up to three pixels off at the far sides. The published code also
  matches slots without an object, which gaps between the ids leave; here there are no such slots.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.labels import VOID
from uvos_jax.models.base import Model, ParityTrace, Rules
from uvos_jax.models.cfbi import official
from uvos_jax.models.cfbi.memory import UNLABELED, State, add_references, empty_state
from uvos_jax.models.cfbi.modules import DeepLabHead, MatchBias, ObjectHead, PixelEmbedding, combine_objects
from uvos_jax.nn import resnet
from uvos_jax.nn.layers import Policy
from uvos_jax.ops.losses import bootstrapped_cross_entropy
from uvos_jax.ops.matching import (
    background_value,
    global_distance,
    global_distance_no_grad,
    local_distance_at_half_size,
    match_value,
    object_means,
)
from uvos_jax.ops.preprocess import Preprocess, preprocess
from uvos_jax.ops.resize import resize_bilinear, resize_nearest

# Windows of local matching: reach in pixels of stride 8, in the channel order of the published code.
WINDOWS = (12, 2, 4, 6, 8, 10)
_HARD_SHARE = 0.15  # share of the pixels in the loss at the end of bootstrapping


class CFBI(Model):
    """CFBI and the rows of its Tables 4 and 5.

    Attributes:
        variant: See the module's docstring.
        max_objects: Object slots beside the background; neither parameters nor state depend on it.
        references: Frames with given masks that the state keeps, see ``commit``.
        background_matching: Whether pixels are matched with the background of each object, and whether the previous
            frame's embedding outside the object is an input of the ensembler (Table 4, P).
        background_attention: Whether the descriptor includes the mean embeddings of the object's background (Table 4,
            I).
        match_bias: Whether distances have a learned bias.
        multi_local: Whether local matching uses six windows or only the largest one.
        instance_attention: Whether gates make the ensembler depend on the object's descriptor.
        ensembler: Whether to use the collaborative ensembler, or FEELVOS' separable convolutions.
        use_predicted_masks: Whether training propagates predicted masks to the next frame, or the ground truth.
        bootstrap_steps: Steps over which the share of hard pixels in the loss falls from 1 to 0.15; 0 for 0.15 from the
            start.
        atrous: Stride, in both directions, at which global matching samples reference pixels (published fast mode: 2).
        depths: Number of blocks in the four layers of the backbone.
        width: Channels of the stem.
        features: Channels of ASPP, decoder and ensembler.
        embedding: Channels of the pixel embedding.
        embedding_scale: Initial scale of the embedding's norm, 1 as published. With random weights, embeddings of that
            length are so far apart that the value of every distance is 1, without a gradient.
        short_side: Shorter side of the network input at scale 1, in pixels; 0 for the variant's rule (``paper``: 480).
        axis_name: Mapped axis over which batch norm shares its statistics in training, or None.
        dtype: Computation dtype; normalization, distances, softmax and losses stay float32.
        remat: Whether training recomputes the backbone's blocks and the ensembler to save memory.
    """

    variant: str = "paper"
    max_objects: int = 10
    references: int = 5
    background_matching: bool = True
    background_attention: bool = True
    match_bias: bool = True
    multi_local: bool = True
    instance_attention: bool = True
    ensembler: bool = True
    use_predicted_masks: bool = True
    bootstrap_steps: int = 0
    atrous: int = 1
    depths: tuple[int, ...] = resnet.RESNET101
    width: int = 64
    features: int = 256
    embedding: int = 100
    embedding_scale: float = 1.0
    short_side: int = 0
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    task = "prompted"
    VARIANTS = ("paper", "official")
    CHANGEABLE = ("max_objects", "references", "atrous", "use_predicted_masks", "bootstrap_steps", "embedding_scale")
    BACKBONES = ("backbone",)
    TRACES: ClassVar = {
        "cfbi": ParityTrace(("ref", "ref_label", "prev", "prev_label", "cur", "obj_num"), official.trace)}
    # ImageNet's RGB statistics. The published code applies them in this order to BGR frames, too.
    PREPROCESS = Preprocess("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def setup(self):
        """Creates the submodules."""
        policy = Policy(self.dtype, self.axis_name)
        self.backbone = resnet.ResNet(self.depths, self.width, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2),
                                      multi_grid=(1, 2, 4), remat=self.remat, policy=policy)
        self.decoder = DeepLabHead(self.features, policy)
        self.embed = PixelEmbedding(self.embedding, self.embedding_scale, policy)
        if self.match_bias:
            self.bias = MatchBias()
        head = nn.remat(ObjectHead) if self.remat else ObjectHead
        self.head = head(self.features, self.instance_attention, self.ensembler, self.background_matching, policy)

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Embeds frames.

        Args:
            inputs: ``{"frame": [b, h, w, 3]}``, preprocessed frames; sides ``16 k + 1`` align best.

        Returns:
            ``{"embed": [b, h', w', c], "low": [b, h', w', c']}`` at stride 4.
        """
        stages = self.embed_frames(inputs["frame"], train=False)
        return {"embed": stages["embed"], "low": stages["layer1"]}

    @nn.nowrap
    def init_state(self, reference_features: dict[str, jax.Array], reference_labels: jax.Array,
                   native_size: tuple[int, int] | None = None, max_objects: int = 1) -> State:
        """Returns the state after the first frame.

        Args:
            reference_features: ``encode`` of the first frame.
            reference_labels: ``[b, H, W]`` int given labels: object slots from 1, 0 background, -1 void. All 0 if no
                mask is given for the first frame.
            native_size: Unused.
            max_objects: Unused; the model has its own.
        """
        del native_size, max_objects
        state = empty_state(reference_features["embed"], self.references)
        return self.commit(state, reference_features, reference_labels, {}, reference_labels)

    def predict(self, state: State, features: dict[str, jax.Array]) -> tuple[jax.Array, dict]:
        """Scores one frame against the state, object by object; run time grows with the number of objects in use.

        Args:
            state: State of ``b`` videos.
            features: ``encode`` of one frame of each video.

        Returns:
            ``[b, h, w, max_objects + 1]`` float32 logits at stride 4, background first, for ``to_native``; and an empty
            dict.
        """
        inputs = self.match(state, features["embed"], global_distance_no_grad)
        head, variables = self.head.unbind()  # a loop must not use modules that are bound outside of it

        def segment_object(o, logits):
            object_inputs = jax.tree.map(lambda x: x[:, o], inputs)
            object_logits, _ = head.apply(variables, object_inputs, features["embed"], state.previous, features["low"])
            return logits.at[:, o].set(object_logits)

        b, h, w, _ = features["embed"].shape
        logits = jnp.zeros((b, self.max_objects + 1, h, w, 2))
        logits = lax.fori_loop(0, jnp.minimum(state.count.max(), self.max_objects) + 1, segment_object, logits)
        return combine_objects(logits, state.count), {}

    @nn.nowrap
    def commit(self, state: State, features: dict, labels: jax.Array, aux: dict,
               new_labels: jax.Array | None = None) -> State:
        """Returns the state with the frame as the previous one, and as a reference if a mask was given for it.

        When all references are in use, the newest one replaces the oldest one except the first.

        Args:
            state: State before the frame.
            features: ``encode`` of the frame.
            labels: ``[b, H, W]`` int object slots that were decided, given masks included; -1 void.
            aux: Unused.
            new_labels: ``[b, H, W]`` int masks given for this frame, 0 elsewhere; None if no mask is ever given.
        """
        del aux
        size = features["embed"].shape[1:3]
        small = resize_nearest(labels[..., None], size, align_corners=not self._official)[..., 0].astype(jnp.int32)
        state = state.replace(previous=features["embed"], previous_labels=small)
        return state if new_labels is None else add_references(state, new_labels.max((1, 2)).astype(jnp.int32))

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """Runs the training forward: frames in sequence, each matched with the reference and the previous frame.

        Args:
            batch: ``"reference"`` ``[b, h, w, 3]`` and ``"frames"`` ``[b, t, h, w, 3]``, preprocessed;
                ``"reference_labels"`` ``[b, H, W]`` and ``"labels"`` ``[b, t, H, W]`` int object slots, 255 void. Frame
                0 precedes those that are predicted.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            ``({"logits": [b, t - 1, h', w', max_objects + 1]}, intermediates)`` at stride 4. Intermediates of frames
            are ``[b, 1 + t, ...]``, the reference first; those of objects are of the last frame,
            ``[b * (max_objects + 1), ...]``.
        """
        b, t = batch["frames"].shape[:2]
        frames = jnp.concatenate([batch["reference"][:, None], batch["frames"]], 1)
        stages = self.embed_frames(frames.reshape(-1, *frames.shape[2:]), train)
        stages = jax.tree.map(lambda x: x.reshape(b, t + 1, *x.shape[1:]), stages)
        features = [{"embed": stages["embed"][:, i], "low": stages["layer1"][:, i]} for i in range(t + 1)]
        state = self.init_state(features[0], _void_as_unlabeled(batch["reference_labels"]))
        state = self.commit(state, features[1], _void_as_unlabeled(batch["labels"][:, 0]), {})
        logits, intermediates = [], {}
        for i in range(1, t):
            frame_logits, intermediates = self.predict_train(state, features[i + 1])
            logits.append(frame_logits)
            labels = batch["labels"][:, i]
            if self.use_predicted_masks:
                labels = lax.stop_gradient(self.to_native(frame_logits, labels.shape[1:])).argmax(-1)
            state = self.commit(state, features[i + 1], _void_as_unlabeled(labels), {})
        return {"logits": jnp.stack(logits, 1)}, stages | intermediates

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Builds the batch for ``__call__`` and ``loss`` from clips of a reference and consecutive frames.

        Args:
            clip: ``"frames"`` ``[b, 1 + t, h, w, 3]`` uint8 RGB and ``"labels"`` ``[b, 1 + t, h, w]`` uint8, ``t`` at
                least 2; objects 1 to at most ``max_objects``, 255 void. Objects beyond the highest id in the reference
                become void, since no mask defines them. Sides ``16 k + 1`` align best.

        Returns:
            See ``__call__``.
        """
        frames, labels = clip["frames"], clip["labels"].astype(jnp.int32)
        b, t, h, w = frames.shape[:4]
        x = preprocess(frames.reshape(-1, h, w, 3), (h, w), self.preprocess).reshape(b, t, h, w, 3)
        highest = jnp.where(labels[:, :1] == VOID, 0, labels[:, :1]).max((2, 3), keepdims=True)
        labels = jnp.where(labels > highest, VOID, labels)
        return {"reference": x[:, 0], "reference_labels": labels[:, 0], "frames": x[:, 1:], "labels": labels[:, 1:]}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Returns the cross-entropy of the hardest pixels of each frame (Sec. 4), averaged over the frames.

        Args:
            outputs: First result of ``__call__``.
            batch: Result of ``training_batch``.
            step: int32, number of completed training steps.

        Returns:
            ``([b] float32, {"first", "last": [b]})``: the loss, and that of the first and the last predicted frame.
        """
        labels = batch["labels"][:, 1:]
        b, t, *size = labels.shape
        logits = outputs["logits"].astype(jnp.float32)
        logits = resize_bilinear(logits.reshape(b * t, *logits.shape[2:]), tuple(size), align_corners=True)
        progress = jnp.minimum(1.0, step / self.bootstrap_steps) if self.bootstrap_steps else 1.0
        share = progress * _HARD_SHARE + (1 - progress)
        losses = bootstrapped_cross_entropy(logits, labels.reshape(b * t, *size), share).reshape(b, t)
        return losses.mean(1), {"first": losses[:, 0], "last": losses[:, -1]}

    @nn.nowrap
    def to_native(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Resizes logits ``[b, h, w, slots]`` to ``size`` and returns float32 probabilities, which may be averaged."""
        return jax.nn.softmax(resize_bilinear(logits.astype(jnp.float32), size, align_corners=True), -1)

    @nn.nowrap
    def to_probability(self, score: jax.Array) -> jax.Array:
        """Returns the probability of any object, float32 ``[...]`` in 0..1, of fused scores ``[..., slots]``."""
        return 1 - score[..., 0]

    @property
    def preprocess(self) -> Preprocess:
        """The frame transform of this variant."""
        return self.PREPROCESS.replace(channels="BGR", resize="cubic") if self._official else self.PREPROCESS

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Returns the name rules for the published checkpoints."""
        return official.torch_rules(self)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a smallest batch for ``__call__``."""
        frame, labels = (1, 33, 33), jnp.int32
        return {"reference": jax.ShapeDtypeStruct((*frame, 3), jnp.float32),
                "reference_labels": jax.ShapeDtypeStruct(frame, labels),
                "frames": jax.ShapeDtypeStruct((1, 2, 33, 33, 3), jnp.float32),
                "labels": jax.ShapeDtypeStruct((1, 2, 33, 33), labels)}

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Returns the network's ``(height, width)`` for a video of ``native_size``; both are ``16 k + 1``."""
        if self._official and not self.short_side:
            return official.frame_size(native_size, scale)
        ratio = (self.short_side or 480) * scale / min(native_size)
        return tuple(16 * max(1, round((n * ratio - 1) / 16)) + 1 for n in native_size)

    @property
    def windows(self) -> tuple[int, ...]:
        """Windows of local matching: reach to either side, in pixels of stride 8."""
        return WINDOWS if self.multi_local else WINDOWS[:1]

    @property
    def _official(self):
        return self.variant == "official"

    def embed_frames(self, frames: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Embeds preprocessed frames ``[b, h, w, 3]``.

        Returns:
            The stages of the backbone, ``aspp`` at stride 16, ``decoded`` and ``embed`` at stride 4.
        """
        stages = self.backbone(frames.astype(self.dtype), train)
        stages |= self.decoder(stages, train)
        return stages | {"embed": self.embed(stages["decoded"])}

    def predict_train(self, state: State, features: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Like ``predict``, for training: processes all object slots at once, and has a gradient.

        Returns:
            The logits of ``predict``, and intermediates ``[b * (max_objects + 1), ...]`` by name.
        """
        objects = self.max_objects + 1
        inputs = self.match(state, features["embed"], global_distance)
        inputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
        frames = [jnp.repeat(x, objects, 0) for x in (features["embed"], state.previous, features["low"])]
        logits, intermediates = self.head(inputs, *frames)
        logits = combine_objects(logits.reshape(-1, objects, *logits.shape[1:]), state.count)
        return logits, intermediates | {name: inputs[name] for name in ("matches", "instance")}

    def match(self, state: State, embed: jax.Array, search: Callable) -> dict[str, jax.Array]:
        """Matches the embedding ``[b, h, w, c]`` of a frame with the references and the previous frame.

        Args:
            state: State of ``b`` videos.
            embed: ``[b, h, w, c]`` embedding of one frame of each video.
            search: ``global_distance``, which has a gradient, or ``global_distance_no_grad``, which is faster.

        Returns:
            The first argument of ``ObjectHead``, every array ``[b, max_objects + 1, ...]``.
        """
        bias = self.bias(self.max_objects + 1) if self.match_bias else jnp.zeros(self.max_objects + 1)
        return lax.map(lambda example: self._match_example(*example, bias, search), (state, embed))

    @nn.nowrap
    def global_distances(self, state: State, embed: jax.Array, search: Callable = global_distance_no_grad) -> jax.Array:
        """Returns the squared distances of one frame's pixels to the nearest reference pixel of each object.

        Args:
            state: State of one video, without the batch axis.
            embed: ``[h, w, c]`` embedding of the frame.
            search: See ``match``.

        Returns:
            ``[h, w, max_objects + 1]`` float32.
        """
        (h, w, c), step, objects = embed.shape, self.atrous, self.max_objects + 1
        keys, labels = state.reference[:, ::step, ::step], state.reference_labels[:, ::step, ::step]
        return search(embed.reshape(-1, c), keys.reshape(-1, c), labels.reshape(-1), objects).reshape(h, w, objects)

    @nn.nowrap
    def _match_example(self, state, embed, bias, search):
        (h, w, c), objects = embed.shape, self.max_objects + 1
        global_values = match_value(self.global_distances(state, embed, search), bias)[..., None]
        in_use = None if search is global_distance else state.count + 1
        local_values = local_distance_at_half_size(embed, state.previous, state.previous_labels, objects, self.windows,
                                                   in_use, align_corners=not self._official)
        local_values = match_value(local_values, bias[:, None])
        local_values = resize_bilinear(local_values.reshape(*local_values.shape[:2], -1), (h, w), align_corners=True)
        local_values = local_values.reshape(h, w, objects, -1)
        mask = jax.nn.one_hot(state.previous_labels, objects)[..., None]
        matches = [global_values, local_values, mask]
        if self.background_matching:
            exists = jnp.arange(objects) <= state.count
            matches += [background_value(local_values, exists), background_value(global_values, exists)]
        means = [object_means(x.reshape(-1, c), y.reshape(-1), objects) for x, y in (
            (state.reference, state.reference_labels), (state.previous, state.previous_labels))]
        if not self.background_attention:
            means = [x[:, :c] for x in means]
        return {"matches": jnp.moveaxis(jnp.concatenate(matches, -1), 2, 0), "mask": jnp.moveaxis(mask, 2, 0),
                "instance": jnp.concatenate(means, -1)}


def _void_as_unlabeled(labels):
    """Returns label maps as the state stores them: int32, -1 in place of void."""
    return jnp.where(labels == VOID, UNLABELED, labels).astype(jnp.int32)
