"""D-Net and T-Net: target-aware object discovery and association (Zhou, Li, Li, Shao, CVPR 2021).

Two networks find and track any number of objects without given masks. D-Net sees a frame and the saliency of the
previous frame, and proposes objects. T-Net has a small target model of each tracked object, which is trained while the
video runs and localizes the object. Proposals are associated with targets on the host, with the help of an embedding of
their appearance (``uvos_jax.inference.tracking.engine``). The authors have published no code; where the paper leaves a
choice, the docstrings say what is ours.

This module has the learned parts as one Flax module: D-Net, the features of T-Net, and the embedding. T-Net's target
models are arrays, not parameters: see ``target_model``.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.labels import VOID
from uvos_jax.models.base import Model
from uvos_jax.models.dtnet import dnet, reid
from uvos_jax.nn import resnet
from uvos_jax.nn.layers import Policy
from uvos_jax.ops.crops import object_crops
from uvos_jax.ops.instance_grouping import group_instances
from uvos_jax.ops.preprocess import Preprocess, preprocess

TRAINED_PARTS = ("discovery", "embedding")
_SMALLEST = 2e-3  # smallest proposal, as a share of the frame; ours
_SALIENT = 0.5


@flax.struct.dataclass
class State:
    """Recurrent state of D-Net.

    Attributes:
        frame: ``[b, h, w, 3]`` previous frame at the network's size.
        probability: ``[b, h, w, 1]`` its saliency; 0 before the first frame.
    """

    frame: jax.Array
    probability: jax.Array


@flax.struct.dataclass
class Proposals:
    """Object proposals of frames, in order of decreasing score.

    Attributes:
        labels: ``[b, h, w]`` uint8, 0 or the number of a proposal, 1 to ``max_proposals``.
        score: ``[b, max_proposals]`` float32 in 0..1; 0 for unused slots.
        dropped: ``[b]`` int32, number of proposals beyond ``max_proposals``.
        saliency: ``[b, h, w]`` float32 in 0..1, probability of any object.
        categories: ``[b, max_proposals, categories]`` float32 mean probabilities; with one category, 1.
    """

    labels: jax.Array
    score: jax.Array
    dropped: jax.Array
    saliency: jax.Array
    categories: jax.Array


class DTNet(Model):
    """D-Net, the features of T-Net, and the embedding that distinguishes objects.

    Attributes:
        variant: ``paper`` is the only one.
        trained_part: Part that the training forward runs: ``discovery`` (D-Net) or ``embedding``.
        guidance: Whether the previous frame and its saliency are inputs of D-Net (Table 3).
        squeeze: Input of the excitation that weights the guidance, see ``DNet``.
        categories: Number of object categories; 1 for any object, 40 for YouTube-VIS. Ours: the category does not
            affect masks, and that of a track is the most frequent one among its proposals.
        max_proposals: Proposal slots of a frame.
        max_tracks: Target slots, and the highest number of objects with an id; 20 for DAVIS-2017.
        memory: Samples that each target model keeps. Weights fall by a tenth from one sample to the next, so that those
            beyond 32 would have less than 4% of the total; FRTM, where the target models come from, keeps 80.
        verification: Whether proposals that look like a target replace its mask (Table 4).
        memory_update: Whether target models are updated after their first frame (Table 4).
        depths: Number of blocks in the four layers of D-Net's backbone.
        width: Channels of its stem.
        features: Channels of its pyramids and of the guidance.
        decoder: Channels of its decoders.
        use_target_backbone: Whether T-Net's features are the third layer of its own backbone, at stride 16, or the
            second layer of D-Net's: in the small frames of a small network, stride 8 shows as much.
        target_depths: Number of blocks in the four layers of T-Net's backbone.
        target_width: Channels of its stem.
        target_channels: Channels of a target model.
        reid_depths: Number of blocks in the stages of the embedding network.
        reid_width: Channels of its first convolution.
        reid_hidden: Channels of its head.
        embedding: Length of an object's embedding.
        short_side: Shorter side of the network input, in pixels.
        axis_name: Mapped axis over which batch norm shares its statistics in training, or None.
        dtype: Computation dtype; normalization, losses and target models stay float32.
        remat: Whether training recomputes the backbones' blocks to save memory.
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
    use_target_backbone: bool = True
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
        """Creates the submodules."""
        policy = Policy(self.dtype, self.axis_name)
        self.dnet = dnet.DNet(self.depths, self.width, self.features, self.decoder, self.guidance, self.squeeze,
                              self.categories, policy, self.remat)
        if self.use_target_backbone:
            self.target_backbone = resnet.ResNet(self.target_depths, self.target_width, policy=policy)
        self.reid = reid.ReIDNet(self.reid_depths, self.reid_width, self.embedding, self.reid_hidden, policy,
                                 self.remat)

    def encode(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Encodes frames for both networks.

        Args:
            inputs: ``{"frame": [b, h, w, 3]}``, preprocessed frames.

        Returns:
            ``"frame"`` as given; ``"dnet"``, D-Net's features (``DNet.encode``); ``"target"`` ``[b, h', w', c]``
            float32, T-Net's features.
        """
        dnet_features = self.dnet.encode(inputs["frame"])
        return {"frame": inputs["frame"], "dnet": dnet_features,
                "target": self._target_features(inputs["frame"], dnet_features)}

    def target_features(self, frames: jax.Array) -> jax.Array:
        """Computes T-Net's features alone, for augmented first frames: ``[b, h, w, 3] -> [b, h', w', c]`` float32."""
        return self._target_features(frames, None)

    @nn.nowrap
    def init_state(self, features: Mapping[str, jax.Array]) -> State:
        """Returns the state before the first frame.

        Args:
            features: ``encode`` of the first frame, which also takes the place of the previous one, without saliency.
        """
        frame = features["frame"]
        return State(frame, jnp.zeros((*frame.shape[:3], 1), jnp.float32))

    def propose(self, state: State, features: Mapping[str, jax.Array]) -> tuple[State, Proposals]:
        """Runs D-Net on one frame and groups its pixels into proposals.

        Args:
            state: State of ``b`` videos.
            features: ``encode`` of one frame of each video.

        Returns:
            The state after the frame, and the proposals.
        """
        guidance = self.dnet.guide(state.frame, state.probability) if self.guidance else None
        maps = self.dnet.decode(features["dnet"], guidance, features["frame"].shape[1:3])
        probability = _object_probabilities(maps["salient_logits"].astype(jnp.float32))
        saliency = probability.sum(-1)
        labels, score, dropped = group_instances(maps["heat"][..., 0], maps["offsets"], saliency, self.max_proposals,
                                       salient_above=_SALIENT, min_area=_SMALLEST)
        inside = jax.nn.one_hot(labels, self.max_proposals + 1)[..., 1:]
        categories = jnp.einsum("bhwp,bhwc->bpc", inside, probability)
        categories /= jnp.maximum(inside.sum((1, 2)), 1)[..., None]
        state = State(features["frame"], saliency[..., None])
        # Heat is not bounded; scores are.
        return state, Proposals(labels.astype(jnp.uint8), jnp.minimum(score, 1), dropped, saliency, categories)

    def embed_proposals(self, frames: jax.Array, labels: jax.Array) -> jax.Array:
        """Embeds the proposals of frames.

        Args:
            frames: ``[b, h, w, 3]`` preprocessed frames.
            labels: ``[b, h, w]`` uint8 proposals, see ``Proposals``.

        Returns:
            ``[b, max_proposals, embedding]`` float32 of length 1; 0 for unused slots, which cost no time.
        """
        def proposal_crops(frame, frame_labels):
            return object_crops(frame, frame_labels, self.max_proposals, reid.CROP)

        crops, _, present = jax.vmap(proposal_crops)(frames, labels)
        network, variables = self.reid.unbind()
        embeddings = reid.embed_present(lambda crops: network.apply(variables, crops),
                                        crops.reshape(-1, *crops.shape[2:]), present.reshape(-1))
        return embeddings.reshape(*present.shape, -1)

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False):
        """Runs the training forward of ``trained_part``.

        Args:
            batch: Result of ``training_batch``.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            The outputs of ``DNet.decode``, or ``{"embeddings": [n, embedding]}``; and the intermediates.
        """
        outputs, stages = {}, {}
        if self.trained_part == "discovery" or self.is_initializing():
            stages = self.dnet.encode(batch["frame"], train)
            guidance = self.dnet.guide(batch["previous"], batch["previous_prob"], train) if self.guidance else None
            outputs = self.dnet.decode(stages, guidance, batch["frame"].shape[1:3], train)
        if self.trained_part == "embedding" or self.is_initializing():
            outputs |= {"embeddings": self.reid(batch["crops"], train)}
        if self.is_initializing():
            self._target_features(batch["frame"], stages)
        return outputs, stages | outputs

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Builds the batch for ``__call__`` and ``loss`` from clips of consecutive frames.

        Args:
            clip: ``"frames"`` ``[b, t, h, w, 3]`` uint8 RGB and ``"labels"`` ``[b, t, h, w]`` uint8, ``t`` at least 2;
                objects 1 to at most ``max_tracks``, 255 void. D-Net uses the last two frames. With more than one
                category also ``"categories"`` ``[b, objects]`` uint8, of each object from 1.

        Returns:
            For D-Net ``"frame"``, ``"previous"``, ``"previous_prob"``, ``"labels"`` and perhaps ``"categories"``, see
            ``dnet.training_pairs``; for the embedding ``"crops"``, ``"identities"`` and ``"valid"``, see
            ``reid.training_crops``.
        """
        frames, labels = clip["frames"], clip["labels"].astype(jnp.int32)
        b, t, h, w = frames.shape[:4]
        x = preprocess(frames.reshape(-1, h, w, 3), (h, w), self.preprocess).reshape(b, t, h, w, 3)
        labels = jnp.where(labels == VOID, -1, labels)
        if self.trained_part == "embedding":
            crops, identities, valid = reid.training_crops(x, labels, self.max_tracks)
            return {"crops": crops, "identities": identities, "valid": valid}
        previous, probability, frame, labels = dnet.training_pairs(x[:, -2:], labels[:, -2:])
        batch = {"frame": frame, "previous": previous, "previous_prob": probability, "labels": labels}
        return batch if self.categories == 1 else batch | {"categories": clip["categories"].astype(jnp.int32)}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Returns the loss of ``trained_part``, see ``dnet.losses`` and ``reid.embedding_loss``.

        Args:
            outputs: First result of ``__call__``.
            batch: Result of ``training_batch``.
            step: Unused.

        Returns:
            ``([b] float32, {name: [b]})``.
        """
        del step
        if self.trained_part == "embedding":
            return reid.embedding_loss(outputs["embeddings"], batch["identities"], batch["valid"],
                                       axis_name=self.axis_name)
        return dnet.losses(outputs, batch["labels"], self.max_tracks, batch.get("categories"))

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a smallest batch, for both trained parts."""
        frame = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
        return {"frame": frame, "previous": frame, "previous_prob": jax.ShapeDtypeStruct((1, 33, 33, 1), jnp.float32),
                "labels": jax.ShapeDtypeStruct((1, 33, 33), jnp.int32),
                "crops": jax.ShapeDtypeStruct((2, *reid.CROP, 3), jnp.float32)}

    @property
    def threshold(self) -> float:
        """Pixels with a higher saliency belong to an object."""
        return _SALIENT

    @property
    def notes(self) -> dict[str, str]:
        """Sentences for the flags in the notes of a frame."""
        return {"nothing": "no object was found",
                "crowded": f"more objects were found than the limits allow (max_proposals={self.max_proposals},"
                           f" max_tracks={self.max_tracks}), and those with the lowest scores were dropped"}

    @property
    def backbones(self) -> tuple[str, ...]:
        """Paths of D-Net's backbones; T-Net's ``target_backbone`` starts from weights of its own."""
        return ("dnet/backbone", *(("dnet/guide_backbone",) if self.guidance else ()))

    @nn.nowrap
    def frame_size(self, native_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Returns the networks' ``(height, width)`` for a video; both are ``16 k + 1``, so that maps align."""
        factor = scale * self.short_side / min(native_size)
        return tuple(16 * max(1, round((side * factor - 1) / 16)) + 1 for side in native_size)

    def _target_features(self, frames, dnet_features):
        if self.use_target_backbone:
            return self.target_backbone(frames)["layer3"].astype(jnp.float32)
        dnet_features = self.dnet.encode(frames) if dnet_features is None else dnet_features
        return dnet_features["layer2"].astype(jnp.float32)


def _object_probabilities(logits):
    """Returns ``[..., categories]`` of saliency logits: a single logit, or the background's and one per category."""
    if logits.shape[-1] == 1:
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, -1)[..., 1:]
