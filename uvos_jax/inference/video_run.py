"""One pass of a segmenter over a video: decode, encode in chunks, step, hand out results.

A reader thread decodes ahead, frames go to the device in chunks of one fixed size (the last one is filled up), and
while the device computes a chunk the results of the previous one are handed out. Memory is bounded by a few chunks,
whatever the length of the video.
"""

import collections
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.inference.engine import StepInputs, StepOutput, StreamState
from uvos_jax.inference.flow.folder import with_flow
from uvos_jax.inference.instance_pruning import InstancePruner
from uvos_jax.inference.object_registry import ObjectRegistry
from uvos_jax.inference.prefetch import iter_chunks, prefetch, stack_chunk
from uvos_jax.inference.reference_frames import ReferenceFrames, read_reference_frames, select_reference_frames
from uvos_jax.video import Frame, Source


@dataclasses.dataclass(frozen=True)
class FrameResult:
    """The result for one frame.

    Attributes:
        frame: The frame as the source gave it.
        labels: ``[h, w]`` uint8: 0 for background, else object ids, or 1 for models of one foreground. None for a frame
            that an earlier run has segmented.
        probability: ``[h, w]`` uint8, 255 times the foreground probability; None unless requested.
        confidence: Mean foreground probability in 0..1, see ``engine.StepOutput``; None unless requested.
        notes: Flags, numbers and lists of numbers of the model, by name; None for numbers before the first frame that
            could be decoded.
        state: State after this frame if a run can continue behind it, that is after the last frame of a full chunk.
    """

    frame: Frame
    labels: np.ndarray | None = dataclasses.field(repr=False)
    probability: np.ndarray | None = dataclasses.field(default=None, repr=False)
    confidence: float | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: StreamState | None = dataclasses.field(default=None, repr=False)


class ResumeFrom(NamedTuple):
    """Where an earlier run with the same chunk size stopped.

    Attributes:
        frames: Number of frames it has segmented, a multiple of the chunk size.
        state: Its state after them.
    """

    frames: int
    state: StreamState


class _Pending(NamedTuple):
    """A chunk that the device may still be computing."""

    frames: list[Frame]
    output: StepOutput
    state: StreamState | None


class VideoRun:
    """One pass over one video; iterate :meth:`results` once."""

    def __init__(self, segmenter: Any, source: Source, *, chunk: int, soft: bool, references: ReferenceFrames | None,
                 resume_from: ResumeFrom | None, registry: ObjectRegistry | None, pruner: InstancePruner | None,
                 say: Callable[[str], None], on_start: Callable[[], object] = lambda: None):
        """Prepares a run; nothing is read.

        Args:
            segmenter: The ``Segmenter``.
            source: The video.
            chunk: Number of frames that are encoded together.
            soft: Whether probabilities and confidences are computed.
            references: The model's reference frames, if they are known; only used without ``resume_from``.
            resume_from: Where an earlier run stopped; the frames before are handed out without labels.
            registry: The objects of a prompted model.
            pruner: Instances to remove from the foreground.
            say: Called with sentences for the user.
            on_start: Called once, when all inputs of the first network program are ready.
        """
        self._segmenter, self._source, self._chunk, self._soft = segmenter, source, chunk, soft
        self._registry, self._pruner, self._say = registry, pruner, say
        self._references, self._on_start, self._started = references, on_start, False
        self._done, self._state = resume_from or (0, None)
        self._state = jax.device_put(self._state, segmenter.target_device)

    def results(self) -> Generator[FrameResult]:
        """Yields a result per frame.

        Raises:
            UserError: The video cannot be read, at the frame where that shows; or the device is out of memory.
        """
        self._prepare()
        frames = iter(self._source)
        pairs = with_flow(frames, self._segmenter.flow, self._source.live, range(self._done, sys.maxsize).__contains__)
        batches = iter_chunks(pairs, self._chunk)
        if not self._source.live:
            batches = prefetch(batches, 1)
        pending: collections.deque[_Pending] = collections.deque()
        is_finalizing, wait = sys.is_finalizing, jax.block_until_ready
        try:
            yield from self._segment_chunks(batches, pending)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(f"Out of memory on {self._segmenter.device}. Lower --size, --chunk or the largest of the"
                            " --scales.") from error
        finally:
            if not is_finalizing():  # at interpreter exit the modules used below may be gone already
                # The interpreter must not exit while the device is still computing.
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    wait([chunk.output for chunk in pending])
                batches.close()  # stops the reader thread before its file handle is closed
                pairs.close()
                if isinstance(frames, Generator):
                    frames.close()

    def _prepare(self):
        """Finds prompts and references that need a look at the video before the first frame."""
        if self._pruner is not None:
            self._pruner.prepare()
        if self._registry is not None:
            self._registry.find_auto_prompt(self._report_start)
            for note in self._registry.notes:
                self._say(note)
        if self._state is None and self._references is None:
            self._references = select_reference_frames(self._segmenter.model, self._source)

    def _report_start(self):
        if not self._started:
            self._started = True
            self._on_start()

    def _segment_chunks(self, batches, pending):
        """Keeps one chunk in flight, none for a live source, whose results come before its next frame is read."""
        in_flight = 0 if self._source.live else 1
        index, failure = 0, None
        try:
            for batch in batches:
                frames = [frame for frame, _ in batch]
                if index < self._done:
                    if self._pruner is not None:
                        self._pruner.select(frames)
                    yield from (FrameResult(frame, None) for frame in frames)
                else:
                    pending.append(self._step(index, batch, frames))
                    while len(pending) > in_flight:
                        yield from self._finish(pending.popleft())
                index += len(batch)
        except Exception as error:  # raised below, after the results of the frames before it
            failure = error
        while pending:
            yield from self._finish(pending.popleft())
        if failure is not None:
            raise failure
        if self._registry is not None and self._registry.unused_ids:
            ids = ", ".join(map(str, self._registry.unused_ids))
            self._say(f"Objects {ids} were not segmented: the run did not reach a frame with their masks.")

    def _step(self, index, batch, frames) -> _Pending:
        """Starts the computation of a chunk."""
        images, flows, valid = stack_chunk(batch, self._chunk)
        engine, inputs = self._engine_inputs(index, frames, StepInputs(images, valid, flows))
        variables = self._segmenter.variables
        if self._state is None:
            references = self._reference_arrays(images, flows)
            prompt = () if inputs.prompt_labels is None else (inputs.prompt_labels[:1],)
            self._report_start()
            self._state = engine.start(variables, *references, *prompt)
        self._report_start()
        self._state, output = engine.step(variables, self._state, inputs)
        return _Pending(frames, output, self._state if len(batch) == self._chunk else None)

    def _engine_inputs(self, index, frames, inputs: StepInputs):
        """The engine for this chunk, and its inputs with prompts or with the mask of pruned instances."""
        size, causal = inputs.frames.shape[1:3], self._source.live and inputs.flows is not None
        if self._pruner is not None:
            inputs = dataclasses.replace(inputs, keep_mask=self._pruner.keep_mask(frames, self._chunk))
            return self._segmenter.engine(size, self._soft, pruned=True, causal=causal), inputs
        if self._registry is None:
            return self._segmenter.engine(size, self._soft, causal=causal), inputs
        labels = self._registry.register(index, frames, self._chunk)
        if labels is None:
            labels = np.zeros(inputs.frames.shape[:3], np.uint8)
        max_objects, note = self._registry.grow_slots(self._segmenter.model.max_objects)
        if note:
            self._say(note)
        is_prompt = np.zeros(self._chunk, bool)
        is_prompt[0] = index == 0
        return (self._segmenter.engine(size, self._soft, max_objects),
                dataclasses.replace(inputs, prompt_labels=labels, is_prompt=is_prompt))

    def _reference_arrays(self, images, flows):
        """Frames and flow of the references; those of the first chunk are at hand."""
        assert self._references is not None
        if self._references.rule == "whole video":
            return read_reference_frames(self._source, self._references, self._segmenter.flow)
        first = list(self._references.indices)
        return images[first], None if flows is None else flows[first]

    def _finish(self, chunk: _Pending) -> Generator[FrameResult]:
        """Waits for a chunk and yields its results, those of fill-up frames left out."""
        labels = np.array(chunk.output.labels)  # a writable copy
        if self._registry is not None:
            labels = self._registry.slot_to_id[labels]
        probability, confidence = chunk.output.probability, chunk.output.confidence
        soft = None if probability is None else (np.array(probability), np.array(confidence))
        notes = {name: np.array(note) for name, note in (chunk.output.notes or {}).items()}
        for i, frame in enumerate(chunk.frames):
            probability, confidence = (None, None) if soft is None else (soft[0][i], float(soft[1][i]))
            frame_notes = {name: None if np.isnan(note[i]).any() else note[i].tolist() for name, note in notes.items()}
            yield FrameResult(frame, labels[i], probability, confidence, frame_notes,
                              chunk.state if i == len(chunk.frames) - 1 else None)
