"""Runs D-Net and T-Net on a video: networks on the device, association on the host.

D-Net is scanned over a chunk, since its input includes its previous output. The association of proposals with targets
is irregular but small, and runs in NumPy (:mod:`uvos_jax.inference.tracking.association`). The target models are
updated on the device by functions whose shapes do not depend on the number of objects.
"""

import dataclasses
import functools
from typing import NamedTuple

import cv2
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.inference.engine import StepInputs, StepOutput, StreamState
from uvos_jax.inference.tracking import association
from uvos_jax.inference.tracking.augmentation import augmented_samples
from uvos_jax.models.dtnet import target_model as target
from uvos_jax.models.dtnet.model import DTNet, Proposals
from uvos_jax.ops.preprocess import preprocess
from uvos_jax.ops.resize import resize_bilinear

_SAMPLES = 5  # initial samples of a target, its first frame and augmentations, as in FRTM


@flax.struct.dataclass
class TrackState:
    """Recurrent state of D-Net and T-Net.

    Attributes:
        dnet: State of D-Net.
        targets: T-Net's target models, one per slot.
        tracks: Ids and association state of the slots.
        frame: int32, number of processed frames.
        labels: uint8 ``[h, w]``, slots in the last frame at network size.
    """

    dnet: object
    targets: target.Targets
    tracks: association.Tracks
    frame: jax.Array
    labels: jax.Array


class ChunkProposals(NamedTuple):
    """What the networks compute for a chunk without looking at the targets; all with leading axis ``t``.

    Attributes:
        embeddings: Embedding of each proposal, float ``[t, p, d]``.
        proposals: D-Net's ``Proposals``.
        frames: Preprocessed frames, float ``[t, h, w, 3]``.
        features: T-Net's features, ``[t, h', w', c]``.
    """

    embeddings: jax.Array
    proposals: Proposals
    frames: jax.Array
    features: jax.Array


@dataclasses.dataclass(frozen=True)
class TrackingEngine:
    """``Engine`` for the model that tracks objects without a prompt; labels are ids, 1 to ``model.max_tracks``.

    Attributes:
        model: The Flax module.
        native_size: ``(height, width)`` of the frames and of the labels.
        soft: Whether probabilities and confidences are computed.
        link_only: Whether D-Net's proposals are linked by overlap alone, without T-Net; a baseline.
    """

    model: DTNet
    native_size: tuple[int, int]
    soft: bool = False
    link_only: bool = False

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` of the network input."""
        return self.model.frame_size(self.native_size)

    @functools.cached_property
    def settings(self) -> association.AssociationSettings:
        """Association thresholds from the hyper-parameters of the model."""
        return association.AssociationSettings(
            verification=self.model.verification, memory_update=self.model.memory_update, max_ids=self.model.max_tracks)

    @functools.cached_property
    def start(self):
        """Jitted ``(variables, frames uint8 [1, h, w, 3], flows=None) -> StreamState``, from the first frame."""
        return jax.jit(self._start)

    def step(self, variables, state: StreamState, inputs: StepInputs) -> tuple[StreamState, StepOutput]:
        """Processes a chunk; see ``Engine.step``.

        Args:
            variables: Weights of the model.
            state: State after the previous chunk.
            inputs: ``frames``, uint8 ``[t, h, w, 3]``, and ``valid``, bool ``[t]``, false for padding and broken
                frames; other fields are not used.

        Returns:
            The next state, and the output with leading axis ``t``. Its notes are the flags of ``model.notes``;
            ``scores``, float32 ``[tracks]``, the confidence of each id's mask from D-Net, or T-Net where T-Net made
            the mask, 0 for ids that are not in the frame; and, if the model classifies, ``categories``, int32
            ``[tracks]``, from 1 for ids whose mask is D-Net's, else 0.
        """
        track_state, last = state.states[0], state.last
        frames, valid = np.asarray(inputs.frames), inputs.valid
        dnet_state, proposed = self.propose(variables, track_state.dnet, frames, valid)
        track_state = track_state.replace(dnet=dnet_state)
        outputs = []
        for i in range(len(frames)):
            if valid[i]:
                proposed_i = jax.tree.map(lambda x, i=i: x[i], proposed)
                track_state, last = self._track_frame(variables, track_state, proposed_i, frames[i])
            outputs.append(last)
        output = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *outputs)
        return StreamState((track_state,), (), last), output

    @functools.cached_property
    def propose(self):
        """Jitted ``(variables, D-Net state, frames, valid) -> (D-Net state, ChunkProposals)``."""
        return jax.jit(self._propose)

    def _start(self, variables, frames, flows=None):
        features = self._apply(variables, "encode", {"frame": self._frame(frames[:1])})
        model = self.model
        feature_shape = features["target"].shape[1:]
        targets = target.empty_targets(model.max_tracks, model.memory, feature_shape, model.target_channels)
        tracks = jax.tree.map(jnp.asarray, association.empty_tracks(model.max_tracks, model.embedding))
        state = TrackState(self._apply(variables, "init_state", features), targets, tracks, jnp.zeros((), jnp.int32),
                           jnp.zeros(self.size, jnp.uint8))
        notes = {name: jnp.zeros((), bool) for name in model.notes}
        notes["scores"] = jnp.zeros(model.max_tracks, jnp.float32)
        if model.categories > 1:
            notes["categories"] = jnp.zeros(model.max_tracks, jnp.int32)
        last = StepOutput(jnp.zeros(self.native_size, jnp.uint8), notes=notes)
        if self.soft:
            last = last.replace(probability=last.labels, confidence=jnp.zeros((), jnp.float32))
        return StreamState((state,), (), last)

    def _propose(self, variables, dnet_state, frames, valid):
        features = self._apply(variables, "encode", {"frame": self._frame(frames)})

        def one_frame(state, xs):
            frame_features, is_valid = xs
            new, proposals = self._apply(variables, "propose", state, jax.tree.map(lambda x: x[None], frame_features))
            state = jax.tree.map(lambda x, y: jnp.where(is_valid, x, y), new, state)
            return state, jax.tree.map(lambda x: x[0], proposals)

        dnet_state, proposals = jax.lax.scan(one_frame, dnet_state, (features, valid))
        embeddings = self._apply(variables, "embed_proposals", features["frame"], proposals.labels)
        return dnet_state, ChunkProposals(embeddings, proposals, features["frame"], features["target"])

    def _track_frame(self, variables, state, proposed, frame):
        """Associates the proposals of one frame and updates the targets; returns the next state and the output."""
        index, proposals = int(state.frame), jax.tree.map(np.asarray, proposed.proposals)
        tracks, embeddings = association.Tracks(*map(np.asarray, state.tracks)), np.asarray(proposed.embeddings)
        if self.link_only:
            rule, target_labels = association.link_by_iou, np.asarray(state.labels)
            foreground, target_confidence = proposals.saliency, np.zeros(len(tracks.ids), np.float32)
        else:
            rule = association.associate
            target_labels, foreground, target_confidence = map(
                np.asarray, self.segment_targets(state.targets, proposed.features))
        result = rule(tracks, index, proposals.labels, proposals.score, embeddings, target_labels, self.settings)
        labels = association.merge_labels(result, proposals.labels, target_labels)
        tracks = association.update_tracks(tracks, result, index, proposals.score, embeddings)
        targets = self._update_models(variables, state.targets, result, proposed.features, labels, frame, index)
        state = TrackState(state.dnet, targets, tracks, np.int32(index + 1), labels)
        crowded = proposals.dropped > 0 or _exhausted(result, proposals.score, tracks)
        notes = {"crowded": np.asarray(crowded),
                 "scores": _by_id(tracks, _by_slot(result, labels, proposals.score, target_confidence))}
        if self.model.categories > 1:
            categories = 1 + proposals.categories.argmax(-1).astype(np.int32)
            notes["categories"] = _by_id(tracks, _by_slot(result, labels, categories, np.zeros_like(tracks.ids)))
        return state, self._output(tracks, labels, np.maximum(foreground, proposals.saliency), notes)

    def _update_models(self, variables, targets, result, features, labels, frame, index):
        """Adds the frame to the memories that are due, refits their models, and starts the models of new targets."""
        if self.link_only:
            return targets
        if result.update.any():
            targets = self.add_sample(targets, features, labels, result.update, result.doubled)
            due, batch_size = np.flatnonzero(result.update).astype(np.int32), _update_batch_size()
            for i in range(0, len(due), batch_size):
                slots = np.resize(due[i:i + batch_size], batch_size)
                targets = self.update_targets(targets, slots, np.arange(batch_size) < len(due) - i)
        if len(result.slots):
            small = cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA)
            for slot in result.slots.tolist():
                frames, masks = augmented_samples(small, labels == slot + 1, _SAMPLES, seed=1000 * index + slot)
                targets = self.start_target(variables, targets, slot, frames, masks)
        return targets

    def _output(self, tracks, labels, foreground, notes):
        """The output of a frame at native size, with slots mapped to ids."""
        ids = np.append(0, tracks.ids).astype(np.uint8)[labels]
        notes = {"nothing": np.asarray(not ids.any()), **notes}
        if self.size != self.native_size:
            ids = np.asarray(self._labels_at_native_size(ids))
        if not self.soft:
            return StepOutput(ids, notes=notes)
        probability, confidence = self._soft(foreground, ids)
        return StepOutput(ids, probability, confidence, notes)

    @functools.cached_property
    def segment_targets(self):
        """Jitted T-Net for one frame: ``(targets, features [h', w', c])`` to three arrays.

        They are labels uint8 ``[h, w]`` (slot + 1), the probability of any target, float32 ``[h, w]``, and the mean
        probability inside each target's mask, float32 ``[tracks]``.
        """
        def segment_targets(targets, features):
            scores = target.score_targets(targets, features)
            scores = resize_bilinear(scores[..., None], self.size, align_corners=False)[..., 0]
            probs = target.merge_scores(scores, targets.alive)
            labels = probs.argmax(0)
            inside = labels == jnp.arange(1, len(probs))[:, None, None]
            confidence = jnp.where(inside, probs[1:], 0).sum((1, 2)) / jnp.maximum(inside.sum((1, 2)), 1)
            return labels.astype(jnp.uint8), 1 - probs[0], confidence

        return jax.jit(segment_targets)

    @functools.cached_property
    def add_sample(self):
        """Jitted ``target.add_sample`` with labels uint8 ``[h, w]`` (slot + 1)."""
        def add_sample(targets, features, labels, due, doubled):
            masks = labels == jnp.arange(1, len(due) + 1, dtype=jnp.uint8)[:, None, None]
            return target.add_sample(targets, features, masks.astype(jnp.uint8) * 255, due, doubled)

        return jax.jit(add_sample)

    @functools.cached_property
    def update_targets(self):
        """Jitted ``target.update_targets``, called with one slot on a CPU and with four elsewhere."""
        return jax.jit(target.update_targets)

    @functools.cached_property
    def start_target(self):
        """Jitted ``(variables, targets, slot, frames uint8 [5, h, w, 3], masks uint8 [5, h, w]) -> targets``."""
        def start_target(variables, targets, slot, frames, masks):
            features = self._apply(variables, "target_features", self._frame(frames))
            return target.start_target(targets, slot, features, masks, jax.random.key(slot))

        return jax.jit(start_target)

    @functools.cached_property
    def _labels_at_native_size(self):
        """Resizes labels by the argmax of bilinearly resized one-hot maps, for smooth edges."""
        def resize(ids):
            one_hot = jax.nn.one_hot(ids, self.model.max_tracks + 1)
            return resize_bilinear(one_hot[None], self.native_size, align_corners=False)[0].argmax(-1).astype(jnp.uint8)

        return jax.jit(resize)

    @functools.cached_property
    def _soft(self):
        def soft(foreground, ids):
            prob = resize_bilinear(foreground[None, :, :, None], self.native_size, align_corners=False)[0, :, :, 0]
            inside = ids > 0
            confidence = jnp.where(inside, prob, 0).sum() / jnp.maximum(inside.sum(), 1)
            confidence = jnp.where(inside.any(), confidence, 1 - prob.mean())
            return jnp.round(255 * prob).astype(jnp.uint8), confidence

        return jax.jit(soft)

    def _frame(self, frames):
        return preprocess(frames, self.size, self.model.preprocess)

    def _apply(self, variables, method, *args):
        return self.model.apply(variables, *args, method=method)


def _update_batch_size():
    """Target models fitted at once. A CPU gains nothing from batches, and padding costs as much as a target."""
    return 1 if jax.default_backend() == "cpu" else 4


def _by_slot(result, labels, of_proposals, of_targets):
    """``[tracks]``, the value of each slot's proposal, or of its target without one; 0 if it is not in the frame."""
    values = np.where(result.replace >= 0, of_proposals[result.replace], of_targets)
    values[result.slots] = of_proposals[result.new]
    present = np.bincount(labels.ravel(), minlength=len(values) + 1)[1:] > 0
    return np.where(present, values, 0).astype(of_proposals.dtype)


def _by_id(tracks, by_slot):
    """Reorders values ``[tracks]`` from slots to ids 1, 2, ..."""
    by_id, used = np.zeros_like(by_slot), tracks.ids > 0
    by_id[tracks.ids[used] - 1] = by_slot[used]
    return by_id


def _exhausted(result, score, tracks):
    """Whether all ids are used while a proposal is left without a target."""
    used = len(result.new) + (result.replace >= 0).sum()
    return bool((tracks.ids > 0).all() and used < (score > 0).sum())
