"""D-Net and T-Net on a video: what the device does with a chunk, and what is decided about each frame on the host.

D-Net is scanned over a chunk, since it looks at its own last answer. Which proposal belongs to which target is
irregular, and a matter of a few numbers: that is NumPy (:mod:`uvos_jax.inference.tracking.association`). What it asks of the
target models goes back to the device, to functions that have one shape for any number of objects.
"""

import dataclasses
import functools

import cv2
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.inference.engine import StepOutput, StreamState
from uvos_jax.inference.tracking import association
from uvos_jax.inference.tracking.augmentation import samples
from uvos_jax.models.dtnet import target_model as target
from uvos_jax.models.dtnet.model import DTNet
from uvos_jax.ops.preprocess import preprocess
from uvos_jax.ops.resize import resize_bilinear

_SAMPLES = 5  # of a target's first frame, itself and augmented ones: FRTM's


@flax.struct.dataclass
class TrackState:
    """All that a video's past is.

    Attributes:
      discovery: what D-Net remembers.
      targets: T-Net's models, one a place.
      tracks: who is in which place, see ``association``.
      frame: int32, how many frames there have been.
      labels: uint8 ``[h, w]``, places in the last one, at the networks' size.
    """

    discovery: object
    targets: target.Targets
    tracks: association.Tracks
    frame: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class TrackingEngine:
    """As ``Engine``, for the model that finds and follows objects by itself; labels are ids, 1 to ``model.max_tracks``.

    Attributes:
      model: its module.
      native_size: ``(height, width)`` of the frames and of the labels.
      soft: whether probabilities and confidences are made beside the labels.
      link_only: whether D-Net's proposals are linked by their overlap alone, without T-Net: a baseline.
    """

    model: DTNet
    native_size: tuple[int, int]
    soft: bool = False
    link_only: bool = False

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` at which the networks run."""
        return self.model.frame_size(self.native_size)

    @functools.cached_property
    def settings(self) -> association.Settings:
        """The rules of association that the model's fields choose."""
        return association.Settings(verification=self.model.verification, memory_update=self.model.memory_update,
                                    most=self.model.max_tracks)

    @functools.cached_property
    def start(self):
        """``(variables, frames uint8 [1, h, w, 3], flows=None) -> StreamState``, jitted; ``frames`` holds the first one."""
        return jax.jit(self._start)

    def step(self, variables, carry, frames, valid, flows=None) -> tuple[StreamState, StepOutput]:
        """``frames`` uint8 ``[t, h, w, 3]`` and ``valid`` bool ``[t]`` to ``(carry, StepOutput of [t])``; see ``Engine``.

        Notes of a frame are the flags of ``model.notes``, and ``scores``, float32 ``[tracks]``: how sure D-Net is of
        each id's mask, or T-Net if it is T-Net's; 0 of ids that are not in the frame. Where the model tells them apart,
        ``categories``, int32 ``[tracks]``: from 1, of the ids whose mask is D-Net's, 0 of all others.
        """
        state, last = carry.states[0], carry.last
        frames = np.asarray(frames)
        discovery, seen = self.look(variables, state.discovery, frames, valid)
        state = state.replace(discovery=discovery)
        decisions = []
        for i in range(len(frames)):
            if valid[i]:
                state, last = self._one(variables, state, jax.tree.map(lambda x, i=i: x[i], seen), frames[i])
            decisions.append(last)
        decided = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *decisions)
        return StreamState((state,), (), last), decided

    @functools.cached_property
    def look(self):
        """What needs no target, jitted: ``(variables, D-Net's state, frames, valid) -> (state, {name: [t, ...]})``.

        The dict has the frame at the networks' size (``frame``), T-Net's features (``target``), D-Net's answer
        (``found``) and an embedding of each proposal (``embeddings``).
        """
        return jax.jit(self._look)

    def _start(self, variables, frames, flows=None):
        features = self._apply(variables, "encode", {"frame": self._frame(frames[:1])})
        model = self.model
        targets = target.empty_targets(model.max_tracks, model.memory, features["target"].shape[1:], model.target_channels)
        tracks = jax.tree.map(jnp.asarray, association.empty_tracks(model.max_tracks, model.embedding))
        state = TrackState(self._apply(variables, "init_state", features), targets, tracks, jnp.zeros((), jnp.int32),
                           jnp.zeros(self.size, jnp.uint8))
        notes = {name: jnp.zeros((), bool) for name in model.notes} | {"scores": jnp.zeros(model.max_tracks, jnp.float32)}
        if model.categories > 1:
            notes["categories"] = jnp.zeros(model.max_tracks, jnp.int32)
        last = StepOutput(jnp.zeros(self.native_size, jnp.uint8), notes=notes)
        if self.soft:
            last = last.replace(probability=last.labels, confidence=jnp.zeros((), jnp.float32))
        return StreamState((state,), (), last)

    def _look(self, variables, discovery, frames, valid):
        features = self._apply(variables, "encode", {"frame": self._frame(frames)})

        def one(state, xs):
            its, is_valid = xs
            new, found = self._apply(variables, "propose", state, jax.tree.map(lambda x: x[None], its))
            state = jax.tree.map(lambda x, y: jnp.where(is_valid, x, y), new, state)
            return state, jax.tree.map(lambda x: x[0], found)

        discovery, found = jax.lax.scan(one, discovery, (features, valid))
        embeddings = self._apply(variables, "embed_proposals", features["frame"], found.labels)
        return discovery, {"frame": features["frame"], "target": features["target"], "found": found,
                           "embeddings": embeddings}

    def _one(self, variables, state, seen, frame):
        """What is decided about one frame, and the state after it."""
        index, found = int(state.frame), jax.tree.map(np.asarray, seen["found"])
        tracks, embeddings = association.Tracks(*map(np.asarray, state.tracks)), np.asarray(seen["embeddings"])
        if self.link_only:
            decide, coarse = association.link_by_iou, np.asarray(state.labels)
            anything, sure = found.saliency, np.zeros(len(tracks.ids), np.float32)
        else:
            decide = association.associate
            coarse, anything, sure = map(np.asarray, self.follow(state.targets, seen["target"]))
        decision = decide(tracks, index, found.labels, found.score, embeddings, coarse, self.settings)
        places = association.decided_labels(decision, found.labels, coarse)
        tracks = association.apply(tracks, decision, index, found.score, embeddings)
        targets = self._learn(variables, state.targets, decision, seen["target"], places, frame, index)
        state = TrackState(state.discovery, targets, tracks, np.int32(index + 1), places)
        left_out = found.dropped > 0 or _beyond(decision, found.score, tracks)
        notes = {"crowded": np.asarray(left_out),
                 "scores": _by_id(tracks, _of_places(decision, places, found.score, sure))}
        if self.model.categories > 1:
            kinds = 1 + found.categories.argmax(-1).astype(np.int32)
            notes["categories"] = _by_id(tracks, _of_places(decision, places, kinds, np.zeros_like(tracks.ids)))
        return state, self._decision(tracks, places, np.maximum(anything, found.saliency), notes)

    def _learn(self, variables, targets, decision, features, places, frame, index):
        """The target models after a frame: memories get it, those are fitted that got it, new ones begin."""
        if self.link_only:
            return targets
        if decision.update.any():
            targets = self.remember(targets, features, places, decision.update, decision.doubled)
            due, together = np.flatnonzero(decision.update).astype(np.int32), _together()
            for i in range(0, len(due), together):
                slots = np.resize(due[i:i + together], together)
                targets = self.update(targets, slots, np.arange(together) < len(due) - i)
        if len(decision.slots):
            small = cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA)
            for slot in decision.slots.tolist():
                frames, masks = samples(small, places == slot + 1, _SAMPLES, seed=1000 * index + slot)
                targets = self.begin(variables, targets, slot, frames, masks)
        return targets

    def _decision(self, tracks, places, anything, notes):
        """The frame's answer at native size, its places as ids."""
        ids = np.append(0, tracks.ids).astype(np.uint8)[places]
        notes = {"nothing": np.asarray(not ids.any()), **notes}
        if self.size != self.native_size:
            ids = np.asarray(self._labels_at_native_size(ids))
        if not self.soft:
            return StepOutput(ids, notes=notes)
        probability, confidence = self._soft(anything, ids)
        return StepOutput(ids, probability, confidence, notes)

    @functools.cached_property
    def follow(self):
        """T-Net on one frame, jitted: ``(targets, features [h', w', c])`` to three arrays.

        They are labels uint8 ``[h, w]`` of places, the probability of any target, float32 ``[h, w]``, and how sure each
        target's mask is, float32 ``[tracks]``.
        """
        def follow(targets, features):
            scores = target.score_targets(targets, features)
            scores = resize_bilinear(scores[..., None], self.size, align_corners=False)[..., 0]
            chances = target.merge_scores(scores, targets.alive)
            labels = chances.argmax(0)
            inside = labels == jnp.arange(1, len(chances))[:, None, None]
            sure = jnp.where(inside, chances[1:], 0).sum((1, 2)) / jnp.maximum(inside.sum((1, 2)), 1)
            return labels.astype(jnp.uint8), 1 - chances[0], sure

        return jax.jit(follow)

    @functools.cached_property
    def remember(self):
        """``target.remember``, jitted, with labels as uint8 ``[h, w]`` of places."""
        def remember(targets, features, places, due, doubled):
            labels = places == jnp.arange(1, len(due) + 1, dtype=jnp.uint8)[:, None, None]
            return target.remember(targets, features, labels.astype(jnp.uint8) * 255, due, doubled)

        return jax.jit(remember)

    @functools.cached_property
    def update(self):
        """``target.update_targets``, jitted, called with the places of one target on a CPU and of four elsewhere."""
        return jax.jit(target.update_targets)

    @functools.cached_property
    def begin(self):
        """A new target, jitted: ``(variables, targets, slot, frames uint8 [5, h, w, 3], masks uint8 [5, h, w])``."""
        def begin(variables, targets, slot, frames, masks):
            features = self._apply(variables, "target_features", self._frame(frames))
            return target.start_target(targets, slot, features, masks, jax.random.key(slot))

        return jax.jit(begin)

    @functools.cached_property
    def _labels_at_native_size(self):
        """Labels without the steps of a coarser grid: those of most weight after bilinear interpolation."""
        def resize(ids):
            one_hot = jax.nn.one_hot(ids, self.model.max_tracks + 1)
            return resize_bilinear(one_hot[None], self.native_size, align_corners=False)[0].argmax(-1).astype(jnp.uint8)

        return jax.jit(resize)

    @functools.cached_property
    def _soft(self):
        def soft(anything, ids):
            chance = resize_bilinear(anything[None, :, :, None], self.native_size, align_corners=False)[0, :, :, 0]
            inside = ids > 0
            confidence = jnp.where(inside, chance, 0).sum() / jnp.maximum(inside.sum(), 1)
            confidence = jnp.where(inside.any(), confidence, 1 - chance.mean())
            return jnp.round(255 * chance).astype(jnp.uint8), confidence

        return jax.jit(soft)

    def _frame(self, frames):
        return preprocess(frames, self.size, self.model.preprocess)

    def _apply(self, variables, method, *args):
        return self.model.apply(variables, *args, method=method)


def _together():
    """Target models that are fitted at once: a CPU gains nothing by it, and what fills up costs as much as others."""
    return 1 if jax.default_backend() == "cpu" else 4


def _of_places(decision, places, of_proposals, otherwise):
    """What is said of each place's mask ``[tracks]``: of the proposal that it is, or else; 0 of what is not there."""
    said = np.where(decision.replace >= 0, of_proposals[decision.replace], otherwise)
    said[decision.slots] = of_proposals[decision.new]
    return np.where(np.bincount(places.ravel(), minlength=len(said) + 1)[1:] > 0, said, 0).astype(of_proposals.dtype)


def _by_id(tracks, of_places):
    """``[tracks]``, from that of places to that of ids 1, 2, ..."""
    by_id, known = np.zeros_like(of_places), tracks.ids > 0
    by_id[tracks.ids[known] - 1] = of_places[known]
    return by_id


def _beyond(decision, score, tracks):
    """Whether all ids are given away while a proposal is left that nobody has taken."""
    taken = len(decision.new) + (decision.replace >= 0).sum()
    return bool((tracks.ids > 0).all() and taken < (score > 0).sum())
