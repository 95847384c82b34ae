"""D-Net and T-Net: target-aware object discovery and association (Zhou, Li, Li, Shao, CVPR 2021).

Two networks find and follow any number of objects without a mask. D-Net looks at a frame, and at what was salient in
the one before, and proposes objects. T-Net keeps a small model of each object that is followed, trained while the video
runs, and says where the object is. What a proposal has to do with a target is decided on the host, with the help of an
embedding of what objects look like (:mod:`uvos_jax.inference.tracking.engine`). No code of the authors is public; where the
paper leaves a choice, the docstrings say what is ours.

This file is the learned part of all three as one Flax module. T-Net's targets are arrays, not parameters: ``target``.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.models.base import Model
from uvos_jax.models.dtnet import dnet, reid
from uvos_jax.nn import resnet
from uvos_jax.nn.layers import Policy
from uvos_jax.ops.crops import object_crops
from uvos_jax.ops.instance_grouping import group_instances
from uvos_jax.ops.preprocess import Preprocess, preprocess

TRAINED_PARTS = ("discovery", "embedding")
_SMALLEST = 2e-3  # share of the frame; ours
_SALIENT = 0.5


@flax.struct.dataclass
class State:
    """What D-Net remembers.

    Attributes:
      frame: ``[b, h, w, 3]``, the last frame at the network's size.
      probability: ``[b, h, w, 1]``, what was salient in it; 0 before the first one.
    """

    frame: jax.Array
    probability: jax.Array


@flax.struct.dataclass
class Proposals:
    """Objects that are proposed in a frame, the strongest first.

    Attributes:
      labels: ``[b, h, w]`` uint8, 0 or the number of a proposal, 1 to ``proposals``.
      score: ``[b, proposals]`` float32 in [0, 1]; 0 where there is none.
      dropped: ``[b]`` int32, how many more there were than have room.
      saliency: ``[b, h, w]`` float32 in [0, 1], the probability of any object.
      categories: ``[b, proposals, categories]`` float32, mean probabilities; of one category, 1.
    """

    labels: jax.Array
    score: jax.Array
    dropped: jax.Array
    saliency: jax.Array
    categories: jax.Array


class DTNet(Model):
    """D-Net, the features of T-Net, and the embedding that tells objects apart.

    Attributes:
      variant: the paper's is the only one.
      trained_part: what the training forward learns: ``discovery`` (D-Net) or ``embedding``.
      guidance: whether D-Net sees the last frame and what was salient in it (Table 3).
      squeeze: what the excitation of the guidance is squeezed from, see ``dnet``.
      categories: kinds of objects that are told apart; 1 for any object, 40 of YouTube-VIS. Ours: a mask is that of its
        object whatever its kind, and a track is of the kind of most of its proposals.
      max_proposals: room for proposals in a frame.
      max_tracks: room for targets, and the most that get a number; 20 of DAVIS-2017.
      memory: frames that each target model remembers. Weights fall by a tenth from one to the next, so that of those
        beyond 32 less than 4% is left; FRTM, where it comes from, has 80.
      verification: whether proposals that look like a target replace its mask (Table 4).
      memory_update: whether target models learn after their first frame (Table 4).
      depths: blocks in the four layers of D-Net's backbone.
      width: channels of its stem.
      features: channels of its pyramids and of the guidance.
      decoder: channels of its decoders.
      own_features: whether T-Net looks through the third layer of a backbone of its own, at stride 16, or through
        D-Net's second layer: in the small frames of a small network stride 8 shows as much.
      target_depths: blocks in that backbone.
      target_width: channels of its stem.
      target_channels: of a target model.
      reid_depths: units in the stages of the embedding network.
      reid_width: channels of its first convolution.
      reid_hidden: channels of its head.
      embedding: length of an object's embedding.
      short_side: the networks' shorter side in pixels.
      axis_name: mapped axis over which batch norm statistics are shared in training.
      dtype: type of the computation; normalization, losses and target models stay float32.
      remat: whether training computes the backbones' blocks twice to save memory.
    """

    variant: str = "paper"
    trained_part: str = "discovery"
    guidance: bool = True
    squeeze: str = "literal"
    categories: int = 1
    max_proposals: int = 20
    max_tracks: int = 20
    memory: int = 32
    verification: bool = True
    memory_update: bool = True
    depths: tuple[int, ...] = resnet.RESNET50
    width: int = 64
    features: int = 256
    decoder: int = 256
    own_features: bool = True
    target_depths: tuple[int, ...] = resnet.RESNET101
    target_width: int = 64
    target_channels: int = 96
    reid_depths: tuple[int, ...] = reid.DEPTHS
    reid_width: int = 64
    reid_hidden: int = 500
    embedding: int = 128
    short_side: int = 480
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    task = "tracks"
    CHOICES: ClassVar = {"trained_part": TRAINED_PARTS, "squeeze": dnet.SQUEEZES}
    CHANGEABLE = ("max_tracks", "max_proposals", "memory", "verification", "memory_update")
    PREPROCESS = Preprocess("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def setup(self):
        common = {"axis_name": self.axis_name, "dtype": self.dtype}
        self.dnet = dnet.DNet(self.depths, self.width, self.features, self.decoder, self.guidance, self.squeeze,
                              self.categories, remat=self.remat, **common)
        if self.own_features:
            self.target_backbone = resnet.ResNet(self.target_depths, self.target_width,
                                                 policy=Policy(self.dtype, self.axis_name))
        self.reid = reid.Embedding(self.reid_depths, self.reid_width, self.embedding, self.reid_hidden,
                                   remat=self.remat, **common)

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What needs no past: ``{"frame": [b, h, w, 3], ...}`` normalized to D-Net's and T-Net's features."""
        discovery = self.dnet.encode(inputs["frame"])
        return {"frame": inputs["frame"], "discovery": discovery, "target": self._target(inputs["frame"], discovery)}

    def target_features(self, frames: jax.Array) -> jax.Array:
        """T-Net's features alone, ``[b, h, w, 3] -> [b, h', w', c]`` float32: of augmented first frames."""
        return self._target(frames, None)

    @nn.nowrap
    def init_state(self, features: Mapping[str, jax.Array]) -> State:
        """Before the first frame, of which ``features`` are: it stands for the one before it, with nothing salient."""
        frame = features["frame"]
        return State(frame, jnp.zeros((*frame.shape[:3], 1), jnp.float32))

    def propose(self, state: State, features: Mapping[str, jax.Array]) -> tuple[State, Proposals]:
        """D-Net's answer to one frame, grouped into proposals."""
        guided = self.dnet.guide(state.frame, state.probability) if self.guidance else None
        made = self.dnet.decode(features["discovery"], guided, features["frame"].shape[1:3])
        every = _probabilities(made["salient_logits"].astype(jnp.float32))
        saliency = every.sum(-1)
        labels, score, dropped = group_instances(made["heat"][..., 0], made["offsets"], saliency, self.max_proposals,
                                                 salient_above=_SALIENT, smallest=_SMALLEST)
        inside = jax.nn.one_hot(labels, self.max_proposals + 1)[..., 1:]
        categories = jnp.einsum("bhwp,bhwc->bpc", inside, every)
        categories /= jnp.maximum(inside.sum((1, 2)), 1)[..., None]
        state = State(features["frame"], saliency[..., None])
        # Heat has no bounds, scores have.
        return state, Proposals(labels.astype(jnp.uint8), jnp.minimum(score, 1), dropped, saliency, categories)

    def embed_proposals(self, frames: jax.Array, labels: jax.Array) -> jax.Array:
        """Embeddings of what ``labels``, ``[b, h, w]``, mark in frames ``[b, h, w, 3]``.

        Returns:
          ``[b, proposals, d]`` float32 of length 1; 0 of proposals that do not exist, which take no time.
        """
        def crops(frame, its):
            return object_crops(frame, its, self.max_proposals, reid.CROP)

        cut, _, present = jax.vmap(crops)(frames, labels)
        network, variables = self.reid.unbind()
        found = reid.embed_present(lambda crops: network.apply(variables, crops), cut.reshape(-1, *cut.shape[2:]),
                                   present.reshape(-1))
        return found.reshape(*present.shape, -1)

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """The training forward of ``task``; what the losses want, and all that was made on the way."""
        outputs, stages = {}, {}
        if self.trained_part == "discovery" or self.is_initializing():
            stages = self.dnet.encode(batch["frame"], train)
            guided = self.dnet.guide(batch["previous"], batch["previous_prob"], train) if self.guidance else None
            outputs = self.dnet.decode(stages, guided, batch["frame"].shape[1:3], train)
        if self.trained_part == "embedding" or self.is_initializing():
            outputs |= {"embeddings": self.reid(batch["crops"], train)}
        if self.is_initializing():
            self._target(batch["frame"], stages)
        return outputs, stages | outputs

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What ``__call__`` and ``loss`` take, from clips of frames that follow each other.

        Args:
          clip: ``{"frames": [b, t, h, w, 3] uint8 RGB, "labels": [b, t, h, w] uint8}``, ``t`` at least 2; objects 1 to
            at most ``tracks``, 255 void. D-Net learns from the last two frames. Where it tells categories apart, also
            ``"categories"``, ``[b, objects]`` uint8, of each object from 1.
        """
        frames, labels = clip["frames"], clip["labels"].astype(jnp.int32)
        b, t, h, w = frames.shape[:4]
        x = preprocess(frames.reshape(-1, h, w, 3), (h, w), self.preprocess).reshape(b, t, h, w, 3)
        labels = jnp.where(labels == 255, -1, labels)
        if self.trained_part == "embedding":
            crops, identities, valid = reid.track_crops(x, labels, self.max_tracks)
            return {"crops": crops, "identities": identities, "valid": valid}
        previous, probability, frame, labels = dnet.guided_pair(x[:, -2:], labels[:, -2:])
        batch = {"frame": frame, "previous": previous, "previous_prob": probability, "labels": labels}
        return batch if self.categories == 1 else batch | {"categories": clip["categories"].astype(jnp.int32)}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """``([b] float32, {name: [b]})`` of ``task``, see ``dnet.losses`` and ``reid.embedding_loss``."""
        if self.trained_part == "embedding":
            return reid.embedding_loss(outputs["embeddings"], batch["identities"], batch["valid"],
                                       axis_name=self.axis_name)
        return dnet.losses(outputs, batch["labels"], self.max_tracks, batch.get("categories"))

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a smallest batch, for both tasks."""
        frame = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
        return {"frame": frame, "previous": frame, "previous_prob": jax.ShapeDtypeStruct((1, 33, 33, 1), jnp.float32),
                "labels": jax.ShapeDtypeStruct((1, 33, 33), jnp.int32),
                "crops": jax.ShapeDtypeStruct((2, *reid.CROP, 3), jnp.float32)}

    @property
    def threshold(self) -> float:
        """Of the probability that a pixel belongs to any object."""
        return _SALIENT

    @property
    def notes(self) -> dict[str, str]:
        """What is said of frames of which a flag is true."""
        return {"nothing": "no object was found",
                "crowded": f"more objects were found than there is room for (max_proposals={self.max_proposals},"
                           f" max_tracks={self.max_tracks}), and the weakest left out"}

    @property
    def backbones(self) -> tuple[str, ...]:
        """Paths of D-Net's backbones; that of T-Net, ``target_backbone``, starts from weights of its own."""
        return ("dnet/backbone", *(("dnet/guide_backbone",) if self.guidance else ()))

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """The networks' ``(height, width)`` for a video of ``native_size``, both ``16 k + 1``, so that maps align."""
        factor = scale * self.short_side / min(native_size)
        return tuple(16 * max(1, round((side * factor - 1) / 16)) + 1 for side in native_size)

    def _target(self, frames, discovery):
        if self.own_features:
            return self.target_backbone(frames)["layer3"].astype(jnp.float32)
        discovery = self.dnet.encode(frames) if discovery is None else discovery
        return discovery["layer2"].astype(jnp.float32)


def _probabilities(logits):
    """``[..., categories]`` of salient logits, one for objects of one kind, else with one for the background first."""
    if logits.shape[-1] == 1:
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, -1)[..., 1:]
