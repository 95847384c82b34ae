"""The device side of a video: a chunked encoder and a scanned step, compiled once per frame size.

Raw uint8 frames go in and uint8 label maps (and probabilities, if wanted) come out; resizing, scales, mirrored copies,
fusing, stages and thresholds happen on the device at native size.

A model that follows given objects (``model.follows``) scores places, 0 for the background; the place with the best mean
score is the label. A mask that is given for a frame has the last word there, and in the first frame the only one.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.inference.postprocess import STAGES, FrameContext
from uvos_jax.ops.preprocess import preprocess
from uvos_jax.video.mask_io import VOID


@flax.struct.dataclass
class StepOutput:
    """What was decided about a frame; about several ones with a leading axis ``t``.

    Attributes:
      labels: ``[h, w]`` uint8, 0 for background; the places of objects, of a model that follows some.
      probability: ``[h, w]`` uint8, 255 where foreground is certain; None unless it was asked for.
      confidence: float32 in [0, 1], the mean probability of what was decided to be foreground (of the object that was
        decided on), or of background in all pixels if nothing was; None unless probabilities were asked for.
      notes: what else the model says of the frame, ``aux["notes"]`` of ``predict`` in the first view: flags (bool) and
        measures (float32); before the first valid frame, False and NaN. None of models that say nothing.
    """

    labels: jax.Array
    probability: jax.Array | None = None
    confidence: jax.Array | None = None
    notes: dict[str, jax.Array] | None = None


@flax.struct.dataclass
class StreamState:
    """All that a video's past is: a pytree of fixed shapes that a scan, a checkpoint or a live stream can hold.

    Attributes:
      states: one model state per view (scale and mirrored copy).
      stages: one state per post-processing stage.
      last: what was decided about the last valid frame; before the first one, background.
    """

    states: tuple
    stages: tuple
    last: StepOutput


@dataclasses.dataclass(frozen=True)
class Engine:
    """Runs one model on videos of one size. Pure: weights and the past are arguments.

    Attributes:
      model: a system's module.
      native_size: ``(height, width)`` of the frames and of the labels.
      scales: test-time scales; a state is kept for each.
      flip: whether a mirrored copy is run for every scale, with its own state.
      soft: whether probabilities and confidences are made beside the labels.
      before: names of stages that go before those of the model.
      causal: whether flow leads to the frame before, and not to the next one.
    """

    model: nn.Module
    native_size: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    soft: bool = False
    before: tuple[str, ...] = ()
    causal: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that the fused score goes through."""
        return (*self.before, *self.model.postprocess)

    @functools.cached_property
    def start(self):
        """``(variables, frames uint8 [r, h, w, 3], flows=None, labels=None) -> StreamState``, jitted.

        It is made from the reference frames. Models that want it are given flow, float32 ``[r, h', w', 2]``, of any one
        size; models that follow, the labels of the references, uint8 ``[r, h, w]``: places, 255 for void.
        """
        return jax.jit(self._start)

    @functools.cached_property
    def step(self):
        """``(variables, carry, frames uint8 [t, h, w, 3], valid bool [t], flows=None) -> (carry, StepOutput of [t])``.

        Jitted; flow as in :attr:`start`. Of models that follow, two more arguments say what is given: ``given``, uint8
        ``[t, h, w]``, places where a mask has some, else 0 or 255; and ``whole``, bool ``[t]``, whether that is all of
        the answer, so that nothing is predicted. The first frame is answered so, since ``start`` has seen it. Without
        them nothing is given.

        Of other models, ``keep``, bool ``[t, h, w]``, may say where a score stays; elsewhere it is 0.

        Frames that are not valid fill up the last chunk, or could not be decoded: they leave no trace in the carry, and
        what was decided about the last valid frame is said of them, too.
        """
        return jax.jit(self._step)

    def _start(self, variables, frames, flows=None, labels=None):
        features = self._encode(variables, frames, flows)
        if self.model.task == "prompted":
            labels = jnp.where(labels == VOID, -1, labels.astype(jnp.int32))
            states = tuple(self._apply(variables, "init_state", f, _mirrored_labels(labels, mirrored), self.native_size,
                                       self.model.max_objects) for f, mirrored in zip(features, self._mirrored, strict=True))
        else:
            states = tuple(self._apply(variables, "init_state", f, None, self.native_size) for f in features)
        stages = tuple(STAGES[name][0](self.native_size) for name in self.stages)
        last = StepOutput(jnp.zeros(self.native_size, jnp.uint8), notes=self._first_notes(variables, states, features))
        if self.soft:
            last = last.replace(probability=last.labels, confidence=jnp.zeros((), jnp.float32))
        return StreamState(states, stages, last)

    def _first_notes(self, variables, states, features):
        """Nothing yet, in the form that ``predict`` gives to its notes."""
        if not self.model.notes:
            return None
        one = jax.tree.map(lambda x: x[:1], features[0])
        _, aux = jax.eval_shape(lambda: self._apply(variables, "predict", states[0], one))
        return {name: jnp.full(note.shape[1:], False if note.dtype == bool else jnp.nan, note.dtype)
                for name, note in aux["notes"].items()}

    def _step(self, variables, carry, frames, valid, flows=None, given=None, whole=None, keep=None):
        if self.model.task == "prompted":
            if given is None:
                given, whole = jnp.zeros(frames.shape[:3], jnp.uint8), jnp.zeros(len(frames), bool)
            return jax.lax.scan(functools.partial(self._follow, variables), carry,
                                (self._encode(variables, frames, flows), valid, given, whole))

        def one_frame(carry, xs):
            features, is_valid, keep, (frame, flow) = xs
            features = jax.tree.map(lambda x: x[None], features)
            new_carry = self._one_frame(variables, carry, features, keep, FrameContext(frame, flow, self.causal))
            carry = jax.tree.map(lambda new, old: jnp.where(is_valid, new, old), new_carry, carry)
            return carry, carry.last

        return jax.lax.scan(one_frame, carry, (self._encode(variables, frames, flows), valid, keep, (frames, flows)))

    def _one_frame(self, variables, carry, features, keep, sight):
        """Predicts in every view, fuses at native size, decides the labels, commits them to every view."""
        predictions = self._predict(variables, carry.states, features)
        score = self._fuse(predictions)
        if keep is not None:
            score = jnp.where(keep[None, :, :, None], score, 0)
        stages = []
        for name, stage_state in zip(self.stages, carry.stages, strict=True):
            stage_state, score = STAGES[name][1](stage_state, score, self.model.threshold, sight)
            stages.append(stage_state)
        labels = (score[..., 0] > self.model.threshold).astype(jnp.uint8)
        states = tuple(self._apply(variables, "commit", state, f, _mirrored(labels[..., None], mirrored)[..., 0], aux)
                       for state, f, (_, aux), mirrored
                       in zip(carry.states, features, predictions, self._mirrored, strict=True))
        notes = jax.tree.map(lambda x: x[0], predictions[0][1].get("notes"))
        return StreamState(states, tuple(stages), self._decision(score[0, ..., 0], labels[0], notes))

    def _follow(self, variables, carry, xs):
        """One frame of a model that follows: only what the frame needs is computed."""
        features, is_valid, given, whole = xs
        features = jax.tree.map(lambda x: x[None], features)
        given = jnp.where(given == VOID, 0, given.astype(jnp.int32))[None]

        def answered():
            return carry.replace(last=self._decision_of_places(None, given[0], given[0], carry.last.notes))

        def predicted():
            predictions = self._predict(variables, carry.states, features)
            score = self._fuse(predictions)
            labels = jnp.where(given > 0, given, score.argmax(-1))

            def commit(new):
                return tuple(self._apply(variables, "commit", state, f, _mirrored_labels(labels, mirrored), aux,
                                         None if new is None else _mirrored_labels(new, mirrored))
                             for state, f, (_, aux), mirrored
                             in zip(carry.states, features, predictions, self._mirrored, strict=True))

            states = jax.lax.cond((given > 0).any(), lambda: commit(given), lambda: commit(None))
            notes = jax.tree.map(lambda x: x[0], predictions[0][1].get("notes"))
            return StreamState(states, carry.stages, self._decision_of_places(score[0], labels[0], given[0], notes))

        carry = jax.lax.cond(is_valid, lambda: jax.lax.cond(whole, answered, predicted), lambda: carry)
        return carry, carry.last

    def _decision_of_places(self, score, places, given, notes):
        """``score`` is None where the given mask is the answer; what is given is certain."""
        labels = places.astype(jnp.uint8)
        if not self.soft:
            return StepOutput(labels, notes=notes)
        if score is None:
            return StepOutput(labels, jnp.where(labels > 0, 255, 0).astype(jnp.uint8), jnp.ones(()), notes)
        probability = jnp.where(given > 0, 1, self.model.to_probability(score))
        of_place = jnp.where(given > 0, 1, jnp.take_along_axis(score, places[..., None], -1)[..., 0])
        area = (places > 0).sum()
        confidence = jnp.where(area > 0, jnp.where(places > 0, of_place, 0).sum() / jnp.maximum(area, 1),
                               1 - probability.mean())
        return StepOutput(labels, jnp.round(255 * probability).astype(jnp.uint8), confidence, notes)

    def _decision(self, score, labels, notes):
        if not self.soft:
            return StepOutput(labels, notes=notes)
        probability = self.model.to_probability(score)
        foreground = labels > 0
        area = foreground.sum()
        confidence = jnp.where(area > 0, jnp.where(foreground, probability, 0).sum() / jnp.maximum(area, 1),
                               1 - probability.mean())
        return StepOutput(labels, jnp.round(255 * probability).astype(jnp.uint8), confidence, notes)

    def _predict(self, variables, states, features):
        """``(raw, aux)`` of one frame in every view."""
        return [self._apply(variables, "predict", state, f) for state, f in zip(states, features, strict=True)]

    def _fuse(self, predictions):
        """The mean over the views, ``[1, h, w, c]`` at native size."""
        return sum(_mirrored(self.model.to_native(raw, self.native_size), mirrored)
                   for (raw, _), mirrored in zip(predictions, self._mirrored, strict=True)) / len(predictions)

    def _encode(self, variables, frames, flows) -> tuple[Any, ...]:
        """Features of every view, each with leading axis ``t``."""
        views = []
        for scale in self.scales:
            size = self.model.frame_size(self.native_size, scale)
            inputs = self._inputs(frames, flows, size, False)
            if not self.flip:
                views.append(self._apply(variables, "encode", inputs))
                continue
            # A loop over both copies is compiled once and needs the memory of one.
            both = jax.tree.map(lambda x, y: jnp.stack([x, y]), inputs, self._inputs(frames, flows, size, True))
            both = jax.lax.map(lambda x: self._apply(variables, "encode", x), both)
            views += [jax.tree.map(lambda f: f[0], both), jax.tree.map(lambda f: f[1], both)]
        return tuple(views)

    def _inputs(self, frames, flows, size, mirrored):
        inputs = {"frame": _mirrored(preprocess(frames, size, self.model.preprocess), mirrored)}
        if flows is not None:
            if mirrored:
                flows = _mirrored(flows, True) * jnp.array([-1.0, 1.0])  # what went right goes left
            inputs["flow"] = self.model.flow_input(flows, size)
        return inputs

    @property
    def _mirrored(self):
        return (False, True) * len(self.scales) if self.flip else (False,) * len(self.scales)

    def _apply(self, variables, method, *args):
        return self.model.apply(variables, *args, method=method)


def _mirrored(x, mirrored):
    """``[b, h, w, c]`` flipped left to right if ``mirrored``."""
    return x[:, :, ::-1] if mirrored else x


def _mirrored_labels(labels, mirrored):
    """The same of ``[b, h, w]``."""
    return labels[:, :, ::-1] if mirrored else labels
