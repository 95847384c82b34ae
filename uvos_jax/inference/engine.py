"""The device side of a video: a batched encoder and a scanned step, compiled once per frame size.

Raw uint8 frames go in, uint8 label maps (and probabilities, if requested) come out. Resizing, test-time augmentation,
fusion, post-processing and the decision happen on the device at native size.

A model of the task "prompted" scores object slots (0 is background); the label is the slot with the highest mean score.
A mask that is given for a frame overrides the prediction, and in the first frame replaces it.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.inference.postprocess import STAGES, FrameContext
from uvos_jax.labels import VOID
from uvos_jax.models import Model
from uvos_jax.ops.preprocess import preprocess

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class StepInputs:
    """One chunk of frames, the input of ``Engine.step``.

    Attributes:
        frames: ``[t, h, w, 3]`` uint8 RGB.
        valid: ``[t]`` bool. Frames that fill up the last chunk, or that could not be decoded, are not valid: they leave
            the state unchanged and repeat the output of the last valid frame.
        flows: ``[t, h', w', 2]`` float32 optical flow in pixels of its own grid; None for models without flow.
        prompt_labels: ``[t, h, w]`` uint8 object slots of given masks, elsewhere 0 or void; None without prompts.
        is_prompt: ``[t]`` bool, frames whose given mask is the whole answer, so that nothing is predicted; None without
            prompts. The first frame is one of these: ``Engine.start`` has consumed it.
        keep_mask: ``[t, h, w]`` bool, where scores are kept; they are zero elsewhere. None keeps all.
    """

    frames: Array
    valid: Array
    flows: Array | None = None
    prompt_labels: Array | None = None
    is_prompt: Array | None = None
    keep_mask: Array | None = None


@flax.struct.dataclass
class StepOutput:
    """The result for one frame; for a chunk, every array has a leading axis ``t``.

    Attributes:
        labels: ``[h, w]`` uint8, 0 for background; object slots for prompted models.
        probability: ``[h, w]`` uint8, 255 times the foreground probability; None unless requested.
        confidence: float32 in 0..1: mean probability of the pixels labeled foreground, or mean background probability
            if there are none. None unless probabilities were requested.
        notes: Flags (bool) and measures (float32) of the model, ``aux["notes"]`` of ``predict`` in the first view;
            before the first valid frame False and NaN. None for models without notes.
    """

    labels: jax.Array
    probability: jax.Array | None = None
    confidence: jax.Array | None = None
    notes: dict[str, jax.Array] | None = None


@flax.struct.dataclass
class StreamState:
    """Everything that is carried from chunk to chunk: a pytree of fixed shapes.

    Attributes:
        states: One model state per view (scale and mirrored copy).
        stages: One state per post-processing stage.
        last: Output for the last valid frame; background before the first one.
    """

    states: tuple
    stages: tuple
    last: StepOutput


@dataclasses.dataclass(frozen=True)
class Engine:
    """Runs one model on videos of one size. Pure: weights and state are arguments.

    Engines are hashable and equal if they compute the same; :func:`shared` returns one object for equal engines, so
    that their programs are compiled once per process.

    Attributes:
        model: The model.
        native_size: ``(height, width)`` of frames and labels.
        scales: Test-time scales; each has its own model state.
        flip: Whether every scale also runs a mirrored copy with its own state.
        soft: Whether probabilities and confidences are computed.
        extra_stages: Names of post-processing stages that precede the model's own.
        causal: Whether flow points to the previous frame rather than to the next one.
    """

    model: Model
    native_size: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    soft: bool = False
    extra_stages: tuple[str, ...] = ()
    causal: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the post-processing stages that the fused score passes, in order."""
        return (*self.extra_stages, *self.model.postprocess)

    @functools.cached_property
    def start(self):
        """Jitted ``start(variables, frames, flows=None, labels=None) -> StreamState``, from the reference frames.

        ``frames`` is uint8 ``[r, h, w, 3]``; ``flows`` is float32 ``[r, h', w', 2]``, for models with flow; ``labels``
        is uint8 ``[r, h, w]``, object slots with 255 for void, for prompted models.
        """
        return jax.jit(self._start)

    @functools.cached_property
    def step(self):
        """Jitted ``step(variables, state, inputs) -> (state, StepOutput of [t])`` with :class:`StepInputs`."""
        return jax.jit(self._step)

    def _start(self, variables, frames, flows=None, labels=None):
        features = self._encode(variables, frames, flows)
        if self.model.task == "prompted":
            labels = jnp.where(labels == VOID, -1, labels.astype(jnp.int32))
            states = tuple(self._apply(variables, "init_state", f, _mirror_labels(labels, mirrored), self.native_size,
                                       self.model.max_objects)
                           for f, mirrored in zip(features, self._mirrored, strict=True))
        else:
            states = tuple(self._apply(variables, "init_state", f, None, self.native_size) for f in features)
        stages = tuple(STAGES[name][0](self.native_size) for name in self.stages)
        notes = self._initial_notes(variables, states, features)
        last = StepOutput(jnp.zeros(self.native_size, jnp.uint8), notes=notes)
        if self.soft:
            last = last.replace(probability=last.labels, confidence=jnp.zeros((), jnp.float32))
        return StreamState(states, stages, last)

    def _initial_notes(self, variables, states, features):
        """False and NaN in the structure of ``aux["notes"]``."""
        if not self.model.notes:
            return None
        one = jax.tree.map(lambda x: x[:1], features[0])
        _, aux = jax.eval_shape(lambda: self._apply(variables, "predict", states[0], one))
        return {name: jnp.full(note.shape[1:], False if note.dtype == bool else jnp.nan, note.dtype)
                for name, note in aux["notes"].items()}

    def _step(self, variables, state, inputs):
        if self.model.task == "prompted":
            return self._scan_prompted(variables, state, inputs)

        def one_frame(state, xs):
            features, is_valid, keep, (frame, flow) = xs
            features = jax.tree.map(lambda x: x[None], features)
            context = FrameContext(frame, flow, self.causal)
            new_state = self._segment_frame(variables, state, features, keep, context)
            state = jax.tree.map(lambda new, old: jnp.where(is_valid, new, old), new_state, state)
            return state, state.last

        features = self._encode(variables, inputs.frames, inputs.flows)
        return jax.lax.scan(one_frame, state, (features, inputs.valid, inputs.keep_mask, (inputs.frames, inputs.flows)))

    def _scan_prompted(self, variables, state, inputs):
        prompt_labels, is_prompt = inputs.prompt_labels, inputs.is_prompt
        if prompt_labels is None:
            prompt_labels = jnp.zeros(inputs.frames.shape[:3], jnp.uint8)
            is_prompt = jnp.zeros(len(inputs.frames), bool)
        features = self._encode(variables, inputs.frames, inputs.flows)
        return jax.lax.scan(functools.partial(self._segment_prompted_frame, variables), state,
                            (features, inputs.valid, prompt_labels, is_prompt))

    def _segment_frame(self, variables, state, features, keep, context):
        """Predicts in every view, fuses at native size, decides the labels and commits them to every view."""
        predictions = self._predict(variables, state.states, features)
        score = self._fuse(predictions)
        if keep is not None:
            score = jnp.where(keep[None, :, :, None], score, 0)
        stages = []
        for name, stage_state in zip(self.stages, state.stages, strict=True):
            stage_state, score = STAGES[name][1](stage_state, score, self.model.threshold, context)
            stages.append(stage_state)
        labels = (score[..., 0] > self.model.threshold).astype(jnp.uint8)
        states = tuple(self._apply(variables, "commit", model_state, f, _mirror(labels[..., None], mirrored)[..., 0],
                                   aux)
                       for model_state, f, (_, aux), mirrored
                       in zip(state.states, features, predictions, self._mirrored, strict=True))
        notes = jax.tree.map(lambda x: x[0], predictions[0][1].get("notes"))
        return StreamState(states, tuple(stages), self._output(score[0, ..., 0], labels[0], notes))

    def _segment_prompted_frame(self, variables, state, xs):
        """One frame of a prompted model; branches that are not taken cost nothing."""
        features, is_valid, prompt_labels, is_prompt = xs
        features = jax.tree.map(lambda x: x[None], features)
        prompt = jnp.where(prompt_labels == VOID, 0, prompt_labels.astype(jnp.int32))[None]

        def take_prompt():
            return state.replace(last=self._slot_output(None, prompt[0], prompt[0], state.last.notes))

        def predict():
            predictions = self._predict(variables, state.states, features)
            score = self._fuse(predictions)
            labels = jnp.where(prompt > 0, prompt, score.argmax(-1))

            def commit(new_labels):
                return tuple(
                    self._apply(variables, "commit", model_state, f, _mirror_labels(labels, mirrored), aux,
                                None if new_labels is None else _mirror_labels(new_labels, mirrored))
                    for model_state, f, (_, aux), mirrored
                    in zip(state.states, features, predictions, self._mirrored, strict=True))

            states = jax.lax.cond((prompt > 0).any(), lambda: commit(prompt), lambda: commit(None))
            notes = jax.tree.map(lambda x: x[0], predictions[0][1].get("notes"))
            return StreamState(states, state.stages, self._slot_output(score[0], labels[0], prompt[0], notes))

        state = jax.lax.cond(is_valid, lambda: jax.lax.cond(is_prompt, take_prompt, predict), lambda: state)
        return state, state.last

    def _slot_output(self, score, slots, prompt, notes):
        """Output of a prompted model; ``score`` is None where the prompt is the answer. Prompted pixels are certain."""
        labels = slots.astype(jnp.uint8)
        if not self.soft:
            return StepOutput(labels, notes=notes)
        if score is None:
            return StepOutput(labels, jnp.where(labels > 0, 255, 0).astype(jnp.uint8), jnp.ones(()), notes)
        probability = jnp.where(prompt > 0, 1, self.model.to_probability(score))
        slot_score = jnp.where(prompt > 0, 1, jnp.take_along_axis(score, slots[..., None], -1)[..., 0])
        area = (slots > 0).sum()
        confidence = jnp.where(area > 0, jnp.where(slots > 0, slot_score, 0).sum() / jnp.maximum(area, 1),
                               1 - probability.mean())
        return StepOutput(labels, jnp.round(255 * probability).astype(jnp.uint8), confidence, notes)

    def _output(self, score, labels, notes):
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
        """Mean score over the views, ``[1, h, w, c]`` at native size."""
        return sum(_mirror(self.model.to_native(raw, self.native_size), mirrored)
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
            # A loop over both copies compiles the encoder once and needs the memory of one.
            both = jax.tree.map(lambda x, y: jnp.stack([x, y]), inputs, self._inputs(frames, flows, size, True))
            both = jax.lax.map(lambda x: self._apply(variables, "encode", x), both)
            views += [jax.tree.map(lambda f: f[0], both), jax.tree.map(lambda f: f[1], both)]
        return tuple(views)

    def _inputs(self, frames, flows, size, mirrored):
        inputs = {"frame": _mirror(preprocess(frames, size, self.model.preprocess), mirrored)}
        if flows is not None:
            if mirrored:
                flows = _mirror(flows, True) * jnp.array([-1.0, 1.0])  # mirroring reverses dx
            inputs["flow"] = self.model.flow_input(flows, size)
        return inputs

    @property
    def _mirrored(self):
        """Whether each view is mirrored."""
        return (False, True) * len(self.scales) if self.flip else (False,) * len(self.scales)

    def _apply(self, variables, method, *args):
        return self.model.apply(variables, *args, method=method)


@functools.lru_cache(maxsize=32)
def shared(engine: Any) -> Any:
    """Returns the first engine that was equal to ``engine``, and with it the programs compiled so far.

    Engines are pure, so segmenters with the same model and options can use one; at most 32 are kept.
    """
    return engine


def _mirror(x, mirrored):
    """``[b, h, w, c]``, flipped left to right if ``mirrored``."""
    return x[:, :, ::-1] if mirrored else x


def _mirror_labels(labels, mirrored):
    """``[b, h, w]``, flipped left to right if ``mirrored``."""
    return labels[:, :, ::-1] if mirrored else labels
