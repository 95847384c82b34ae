"""CFBI: Collaborative Video Object Segmentation by Foreground-Background Integration (Yang et al., ECCV 2020).

Objects are given by masks and followed. Every pixel's embedding is matched with the reference frames and with the last
frame, with each object's pixels and with those of all others. Object by object, an ensembler makes a mask from what
these matches say, from the embeddings, and from what the object is like on the whole.

The background is object 0 and treated as the others are. Objects have places (``max_objects``), of which the first ``count``
are in use: the work follows ``count``, the compiled program does not.

Variants share every parameter:

- ``paper``: RGB frames of one shorter side; labels are looked up where the embeddings' pixels lie.
- ``official``: as the published code, BGR frames at their own size up to 1,040 pixels a side, resized as OpenCV's
  bicubic does it, and labels by PyTorch's floor rule, at the far sides up to three pixels away. There places without an
  object, left by gaps between the ids, are matched too; here there are none.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.models.base import Model, ParityTrace, Rules
from uvos_jax.models.cfbi import official
from uvos_jax.models.cfbi.modules import DeepLabHead, MatchBias, ObjectHead, combine, group_norm
from uvos_jax.nn import resnet
from uvos_jax.nn.layers import Conv, Policy
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

# Of local matching, in pixels of stride 8, in the order of the published maps.
WINDOWS = (12, 2, 4, 6, 8, 10)
VOID = 255
_HARD = 0.15  # share of the pixels that are learned from, at last
_NOWHERE = -1  # label of a pixel of no object


@flax.struct.dataclass
class State:
    """What a video's past means to CFBI; nothing depends on how many places there are.

    Attributes:
      reference: ``[b, r, h, w, c]``, embeddings of the frames whose masks were given.
      reference_labels: ``[b, r, h, w]`` int32; -1 in what is not in use yet, and for void.
      references: ``[b]`` int32, how many there have been.
      previous: ``[b, h, w, c]``, embedding of the last frame.
      previous_labels: ``[b, h, w]`` int32.
      count: ``[b]`` int32, objects that are known; their places are 1 to ``count``.
    """

    reference: jax.Array
    reference_labels: jax.Array
    references: jax.Array
    previous: jax.Array
    previous_labels: jax.Array
    count: jax.Array


class CFBI(Model):
    """CFBI and the rows of its Tables 4 and 5.

    Attributes:
      variant: see the module's text.
      max_objects: places for objects, beside the background; parameters and state do not depend on it.
      references: frames with given masks that are kept, see :meth:`commit`.
      background_matching: whether pixels are matched with, and embeddings of the last frame taken from, all that an
        object is not (Table 4, P).
      background_attention: whether the means of all that an object is not count as well (Table 4, I).
      match_bias: whether distances have a learned bias.
      multi_local: local matching within six windows, or the largest alone.
      instance_attention: whether gates tell the ensembler what the object is like.
      ensembler: the collaborative ensembler, or FEELVOS' separable convolutions.
      use_predicted_masks: in training, whether a frame's predecessor has the labels that were predicted, or the true ones.
      bootstrap_steps: steps over which the share of pixels that are learned from falls from 1 to 0.15; 0 for 0.15 throughout.
      atrous: distance of the reference pixels that global matching sees, in both directions (published fast mode: 2).
      depths: blocks in the four layers of the backbone.
      width: channels of the stem.
      features: channels of ASPP, decoder and ensembler.
      embedding: channels of the pixel embedding.
      embedding_scale: of its normalization at the start of training, 1 as published. From random weights embeddings
        of that length are so far apart that the value of every distance is 1, and none has a gradient.
      short_side: the network's shorter side at scale 1, in pixels; 0 for the variant's own rule (``paper``: 480).
      axis_name: mapped axis over which batch norm statistics are shared in training.
      dtype: type of the computation; normalization, distances, softmax and losses stay float32.
      remat: whether training computes the backbone's blocks and the ensembler twice to save memory.
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
    TRACES: ClassVar = {"cfbi": ParityTrace(("ref", "ref_label", "prev", "prev_label", "cur", "obj_num"), official.trace)}
    # Of ImageNet, in this order whatever the order of the channels: so published.
    PREPROCESS = Preprocess("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def setup(self):
        norm = {"axis_name": self.axis_name, "dtype": self.dtype}
        policy = Policy(self.dtype, self.axis_name)
        linear = {"use_bias": True, "dtype": self.dtype}
        self.backbone = resnet.ResNet(self.depths, self.width, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2),
                                      multi_grid=(1, 2, 4), remat=self.remat, policy=policy)
        self.decoder = DeepLabHead(self.features, **norm)
        self.embed_depthwise = Conv(self.features, groups=self.features, **linear)
        self.embed_bn1 = group_norm(self.features, self.features // 8, self.dtype)
        self.embed_conv = Conv(self.embedding, 1, **linear)
        self.embed_bn2 = group_norm(self.embedding, self.embedding // 4, self.dtype, initial=self.embedding_scale)
        if self.match_bias:
            self.bias = MatchBias()
        head = nn.remat(ObjectHead) if self.remat else ObjectHead
        self.head = head(self.features, self.instance_attention, self.ensembler, self.background_matching, self.dtype)

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Embeds frames; all that needs no past.

        Args:
          inputs: ``{"frame": [b, h, w, 3]}``, frames after ``preprocess``; sides ``16 k + 1`` align best.

        Returns:
          ``{"embed": [b, h', w', c], "low": [b, h', w', c']}`` at stride 4.
        """
        stages = self._embed(inputs["frame"], train=False)
        return {"embed": stages["embed"], "low": stages["layer1"]}

    @nn.nowrap
    def init_state(self, reference_features: dict[str, jax.Array], reference_labels: jax.Array,
                   native_size: tuple[int, int] | None = None, max_objects: int = 1) -> State:
        """The state after the first frame.

        Args:
          reference_features: ``encode`` of that frame.
          reference_labels: ``[b, H, W]`` int, given: places from 1 on, 0 background, -1 void. All 0 where nothing is
            known yet.
          native_size: unused.
          max_objects: unused, the model has its own.
        """
        del native_size, max_objects
        embed = reference_features["embed"]
        b, h, w, c = embed.shape
        empty = State(jnp.zeros((b, self.references, h, w, c), embed.dtype),
                      jnp.full((b, self.references, h, w), _NOWHERE, jnp.int32), jnp.zeros(b, jnp.int32),
                      embed, jnp.zeros((b, h, w), jnp.int32), jnp.zeros(b, jnp.int32))
        return self.commit(empty, reference_features, reference_labels, {}, reference_labels)

    def predict(self, state: State, features: dict[str, jax.Array]) -> tuple[jax.Array, dict]:
        """Scores one frame against the state, object by object: the time goes with the objects there are.

        Args:
          state: of ``b`` videos.
          features: ``encode`` of one frame of each.

        Returns:
          ``[b, h, w, max_objects + 1]`` float32 logits, background first (bring them to size by :meth:`to_native`); and
          nothing to commit.
        """
        seen = self.match(state, features["embed"], global_distance_no_grad)
        head, variables = self.head.unbind()  # a loop may not touch modules that are bound outside of it

        def one(o, logits):
            its = jax.tree.map(lambda x: x[:, o], seen)
            made, _ = head.apply(variables, its, features["embed"], state.previous, features["low"])
            return logits.at[:, o].set(made)

        b, h, w, _ = features["embed"].shape
        logits = jnp.zeros((b, self.max_objects + 1, h, w, 2))
        logits = lax.fori_loop(0, jnp.minimum(state.count.max(), self.max_objects) + 1, one, logits)
        return combine(logits, state.count), {}

    @nn.nowrap
    def commit(self, state: State, features: dict, labels: jax.Array, aux: dict,
               new_labels: jax.Array | None = None) -> State:
        """Makes the frame the last one; and a reference, if a mask was given for it.

        When all room for references is taken, the newest one takes the place of the oldest but the first.

        Args:
          state: before the frame.
          features: ``encode`` of it.
          labels: ``[b, H, W]`` int, places as they were decided, what was given included.
          aux: unused.
          new_labels: ``[b, H, W]`` int, what was given, 0 elsewhere; None if nothing ever is.
        """
        del aux
        size = features["embed"].shape[1:3]
        small = resize_nearest(labels[..., None], size, align_corners=not self._official)[..., 0].astype(jnp.int32)
        state = state.replace(previous=features["embed"], previous_labels=small)
        if new_labels is None:
            return state
        most = new_labels.max((1, 2)).astype(jnp.int32)
        given, room = most > 0, self.references
        later = jnp.minimum(1 + (state.references - room) % max(1, room - 1), room - 1)
        place = jnp.where(state.references < room, state.references, later)
        here = ((jnp.arange(room) == place[:, None]) & given[:, None])[..., None, None]
        return state.replace(
            reference=jnp.where(here[..., None], features["embed"][:, None], state.reference),
            reference_labels=jnp.where(here, small[:, None], state.reference_labels),
            references=state.references + given, count=jnp.maximum(state.count, most))

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """The training forward: frames one after the other, each matched with the reference and the one before.

        Args:
          batch: ``{"reference": [b, h, w, 3], "frames": [b, t, h, w, 3]}`` after ``preprocess``, ``"reference_labels"``
            ``[b, H, W]`` and ``"labels"`` ``[b, t, H, W]`` int, places, 255 void; frame 0 goes before those that are
            predicted.
          train: whether batch norm uses batch statistics.

        Returns:
          ``({"logits": [b, t - 1, h', w', max_objects + 1]}, intermediates)`` at stride 4. Intermediates of frames are
          ``[b, 1 + t, ...]``, the reference first; those of objects are of the last frame, ``[b * (max_objects + 1), ...]``.
        """
        b, t = batch["frames"].shape[:2]
        frames = jnp.concatenate([batch["reference"][:, None], batch["frames"]], 1)
        stages = self._embed(frames.reshape(-1, *frames.shape[2:]), train)
        stages = jax.tree.map(lambda x: x.reshape(b, t + 1, *x.shape[1:]), stages)
        features = [{"embed": stages["embed"][:, i], "low": stages["layer1"][:, i]} for i in range(t + 1)]
        state = self.init_state(features[0], _places(batch["reference_labels"]))
        state = self.commit(state, features[1], _places(batch["labels"][:, 0]), {})
        logits, made = [], {}
        for i in range(1, t):
            raw, made = self.predict_train(state, features[i + 1])
            logits.append(raw)
            labels = batch["labels"][:, i]
            if self.use_predicted_masks:
                labels = lax.stop_gradient(self.to_native(raw, labels.shape[1:])).argmax(-1)
            state = self.commit(state, features[i + 1], _places(labels), {})
        return {"logits": jnp.stack(logits, 1)}, stages | made

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What ``__call__`` and ``loss`` take, from clips of a reference and of frames that follow each other.

        Args:
          clip: ``{"frames": [b, 1 + t, h, w, 3] uint8 RGB, "labels": [b, 1 + t, h, w] uint8}``, ``t`` at least 2;
            objects 1 to at most ``max_objects``, 255 void. Objects beyond the largest number in the reference become void:
            nothing can be known of them. Sides ``16 k + 1`` align best.
        """
        frames, labels = clip["frames"], clip["labels"].astype(jnp.int32)
        b, t, h, w = frames.shape[:4]
        x = preprocess(frames.reshape(-1, h, w, 3), (h, w), self.preprocess).reshape(b, t, h, w, 3)
        most = jnp.where(labels[:, :1] == VOID, 0, labels[:, :1]).max((2, 3), keepdims=True)
        labels = jnp.where(labels > most, VOID, labels)
        return {"reference": x[:, 0], "reference_labels": labels[:, 0], "frames": x[:, 1:], "labels": labels[:, 1:]}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Cross-entropy of the hardest pixels of each frame (Sec. 4), mean over the frames.

        Args:
          outputs: of ``__call__``.
          batch: of ``training_batch``.
          step: int32, steps done before this one.

        Returns:
          ``([b] float32, {name: [b]})``.
        """
        labels = batch["labels"][:, 1:]
        b, t, *size = labels.shape
        logits = outputs["logits"].astype(jnp.float32)
        logits = resize_bilinear(logits.reshape(b * t, *logits.shape[2:]), tuple(size), align_corners=True)
        done = jnp.minimum(1.0, step / self.bootstrap_steps) if self.bootstrap_steps else 1.0
        losses = bootstrapped_cross_entropy(logits, labels.reshape(b * t, *size), done * _HARD + (1 - done))
        losses = losses.reshape(b, t)
        return losses.mean(1), {"first": losses[:, 0], "last": losses[:, -1]}

    @nn.nowrap
    def to_native(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """``[b, h, w, places]`` logits to ``[b, height, width, places]`` float32 probabilities that may be averaged."""
        return jax.nn.softmax(resize_bilinear(logits.astype(jnp.float32), size, align_corners=True), -1)

    @nn.nowrap
    def to_probability(self, score: jax.Array) -> jax.Array:
        """Averaged scores ``[..., max_objects + 1]`` as the probability of any object, float32 ``[...]`` in [0, 1]."""
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
        """Shapes of a smallest batch for ``__call__``, enough to know the variables."""
        frame, labels = (1, 33, 33), jnp.int32
        return {"reference": jax.ShapeDtypeStruct((*frame, 3), jnp.float32),
                "reference_labels": jax.ShapeDtypeStruct(frame, labels),
                "frames": jax.ShapeDtypeStruct((1, 2, 33, 33, 3), jnp.float32),
                "labels": jax.ShapeDtypeStruct((1, 2, 33, 33), labels)}

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """The network's ``(height, width)`` for a video of ``native_size``, both sides ``16 k + 1``."""
        if self._official and not self.short_side:
            return official.frame_size(native_size, scale)
        ratio = (self.short_side or 480) * scale / min(native_size)
        return tuple(16 * max(1, round((n * ratio - 1) / 16)) + 1 for n in native_size)

    @property
    def windows(self) -> tuple[int, ...]:
        """Of local matching."""
        return WINDOWS if self.multi_local else WINDOWS[:1]

    @property
    def _official(self):
        return self.variant == "official"

    def _embed(self, x, train):
        """Stages of the backbone, ``aspp``, ``decoded`` and ``embed``."""
        stages = self.backbone(x.astype(self.dtype), train)
        stages |= self.decoder(stages, train)
        x = nn.relu(self.embed_bn1(self.embed_depthwise(stages["decoded"])))
        return stages | {"embed": nn.relu(self.embed_bn2(self.embed_conv(x)))}

    def predict_train(self, state, features):
        """As :meth:`predict`, for training: all places at once, and with a gradient."""
        objects = self.max_objects + 1
        seen = self.match(state, features["embed"], global_distance)
        its = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
        frames = [jnp.repeat(x, objects, 0) for x in (features["embed"], state.previous, features["low"])]
        logits, made = self.head(its, *frames)
        logits = logits.reshape(-1, objects, *logits.shape[1:])
        return combine(logits, state.count), made | {name: its[name] for name in ("matches", "instance")}

    def match(self, state, embed, search):
        """What ``ObjectHead`` takes of each object, every leaf ``[b, objects, ...]``."""
        bias = self.bias(self.max_objects + 1) if self.match_bias else jnp.zeros(self.max_objects + 1)
        return lax.map(lambda example: self._match_one(*example, bias, search), (state, embed))

    @nn.nowrap
    def global_distances(self, state: State, embed: jax.Array, search: Callable = global_distance_no_grad) -> jax.Array:
        """Squared distances ``[h, w, max_objects + 1]`` of one example's pixels ``[h, w, c]`` to those of its references."""
        (h, w, c), step, objects = embed.shape, self.atrous, self.max_objects + 1
        keys, labels = state.reference[:, ::step, ::step], state.reference_labels[:, ::step, ::step]
        return search(embed.reshape(-1, c), keys.reshape(-1, c), labels.reshape(-1), objects).reshape(h, w, objects)

    @nn.nowrap
    def _match_one(self, state, embed, bias, search):
        (h, w, c), objects = embed.shape, self.max_objects + 1
        far = match_value(self.global_distances(state, embed, search), bias)[..., None]
        near = local_distance_at_half_size(embed, state.previous, state.previous_labels, objects, self.windows,
                                           None if search is global_distance else state.count + 1,
                                           align_corners=not self._official)
        near = match_value(near, bias[:, None])
        near = resize_bilinear(near.reshape(*near.shape[:2], -1), (h, w), align_corners=True).reshape(h, w, objects, -1)
        mask = jax.nn.one_hot(state.previous_labels, objects)[..., None]
        matches = [far, near, mask]
        if self.background_matching:
            there = jnp.arange(objects) <= state.count
            matches += [background_value(near, there), background_value(far, there)]
        means = [object_means(x.reshape(-1, c), y.reshape(-1), objects) for x, y in (
            (state.reference, state.reference_labels), (state.previous, state.previous_labels))]
        if not self.background_attention:
            means = [x[:, :c] for x in means]
        return {"matches": jnp.moveaxis(jnp.concatenate(matches, -1), 2, 0), "mask": jnp.moveaxis(mask, 2, 0),
                "instance": jnp.concatenate(means, -1)}


def _places(labels):
    """Labels as the state takes them."""
    return jnp.where(labels == VOID, _NOWHERE, labels).astype(jnp.int32)
