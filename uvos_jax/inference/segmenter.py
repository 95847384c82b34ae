"""A model with its weights, ready for videos: the host side of the driver.

A reader thread decodes ahead, frames go to the device in chunks of one fixed size (the last one filled up), and while
the device works on a chunk the labels of the one before are handed out: memory is bounded by a few chunks, whatever
the length of the video.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.inference.engine import Engine, StepOutput, StreamState
from uvos_jax.inference.flow.estimators import FlowEstimator, dis_estimator
from uvos_jax.inference.flow.folder import list_flow_files, with_flow
from uvos_jax.inference.instance_pruning import InstancePruner, PruneInput, extra_stages, make_pruner
from uvos_jax.inference.loading import load_flow, load_model
from uvos_jax.inference.object_registry import ObjectRegistry
from uvos_jax.inference.prefetch import iter_chunks, prefetch, stack_chunk
from uvos_jax.inference.prompts import AUTO, MAX_OBJECTS, FirstMask
from uvos_jax.inference.reference_frames import ReferenceFrames, read_reference_frames, select_reference_frames
from uvos_jax.inference.tracking.engine import TrackingEngine
from uvos_jax.models import system, systems_for
from uvos_jax.video import Frame, Source, open_source
from uvos_jax.weights import checkpoints
from uvos_jax.weights.packaged import DEFAULT, load_packaged, packaged_names

# A side of the network's input beyond which it is a strip or a mistake, and memory would run out.
_LARGEST_SIDE = 8192
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class FrameResult:
    """What is said about one frame.

    Attributes:
      frame: as the source gave it.
      labels: ``[h, w]`` uint8, 0 for background, else the ids of objects that are followed, or 1; None for a frame that
        was answered before the run began.
      probability: ``[h, w]`` uint8, 255 where foreground is certain; None unless it was asked for.
      confidence: 0 to 1, see ``engine.StepOutput``; None unless probabilities were asked for.
      notes: what else the model says of the frame, by name: flags, numbers and lists of them; None for a number before
        the first good frame.
      carry: the past after this frame, if a run can begin behind it: it is the last one of a full chunk.
    """

    frame: Frame
    labels: np.ndarray | None
    probability: np.ndarray | None = None
    confidence: float | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    carry: StreamState | None = None


class Segmenter:
    """Segments videos with one model and one set of weights.

    Attributes:
      name: of the system.
      model: its Flax module.
      variables: its weights, on the device.
      scales: test-time scales whose scores are averaged.
      flip: whether mirrored copies are averaged in as well.
      flow: where the flow comes from that the model wants beside frames: a method, or a folder of files named as the
        frames. None in the constructor means ``dis``, and stays None for a model that wants none.
    """

    def __init__(self, name: str, model: nn.Module, variables: dict, *, scales: tuple[float, ...] = (1.0,),
                 flip: bool = False, flow: FlowEstimator | Path | None = None):
        scales = tuple(scales) if isinstance(scales, (tuple, list)) else (scales,)
        if not scales or len(set(scales)) < len(scales) or not all(_is_scale(s) for s in scales):
            raise UserError(f"Scales are different numbers from 0.1 to 8, such as 0.75, 1, 1.5; got {list(scales)}.")
        wants_flow = "flow" in model.inputs
        if flow is not None and not wants_flow:
            raise UserError(f"{name} looks at frames alone; leave the flow out.")
        if isinstance(flow, Path):
            list_flow_files(flow)
        if model.task == "prompted" and model.max_objects > MAX_OBJECTS:
            raise UserError(f"{name} follows {MAX_OBJECTS} objects in one run at most; got max_objects={model.max_objects}.")
        if model.task == "tracks" and (scales != (1,) or flip):
            raise UserError(f"{name} runs once a frame; leave out --scales and --flip.")
        self.name = name
        self.model = model
        self.flow = dis_estimator if flow is None and wants_flow else flow
        self.variables = jax.device_put(variables)
        self.scales = tuple(float(s) for s in scales)
        self.flip = flip
        self._device = None
        self._engines: dict[tuple, Engine] = {}

    def engine(self, native_size: tuple[int, int], soft: bool = False, max_objects: int | None = None, pruned: bool = False,
               causal: bool = False) -> Engine | TrackingEngine:
        """The compiled functions for videos of ``(height, width)``; the same object every time.

        ``max_objects`` is the number of objects that a model which follows has room for; None is what it has itself.
        ``pruned`` brings the stages that go with instance pruning; ``causal`` says that flow leads to the frame before.
        """
        largest = self.model.frame_size(native_size, max(self.scales))
        if max(largest) > _LARGEST_SIDE:
            raise UserError(f"Frames of {native_size[1]}x{native_size[0]} (width x height) would run through the"
                            f" network at {largest[1]}x{largest[0]}; its sides may have {_LARGEST_SIDE} pixels at"
                            " most: crop the frames or lower --size.")
        model = self.model
        if max_objects is not None and max_objects != model.max_objects:
            model = model.clone(max_objects=max_objects)
        if model.task == "tracks":
            return self._engines.setdefault((model, native_size, soft), TrackingEngine(model, native_size, soft))
        # In one step, so that threads which segment videos of one size share what is compiled.
        return self._engines.setdefault((model, native_size, soft, pruned, causal), Engine(
            model, native_size, self.scales, self.flip, soft, extra_stages(model.variant) if pruned else (), causal))

    def on(self, device: jax.Device) -> "Segmenter":
        """The same segmenter computing on another device; both may be used at the same time, in different threads."""
        other = copy.copy(self)
        other._device, other.variables = device, jax.device_put(self.variables, device)
        if isinstance(self.flow, FlowEstimator):
            other.flow = self.flow.on(device)
        return other

    @property
    def device(self) -> jax.Device:
        """Where the weights are, and so the computation."""
        return min(jax.tree.leaves(self.variables)[0].devices(), key=lambda device: device.id)

    @functools.cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""
        return checkpoints.digest(self.variables)

    def chunk_for(self, source: Source, chunk: int | None) -> int:
        """The number of frames encoded together: the one that is asked for, or else what suits source and device."""
        if chunk is not None and not (isinstance(chunk, int) and chunk > 0):
            raise UserError(f"A chunk holds a whole number of frames, at least one; got {chunk}.")
        return chunk or (1 if source.live else default_chunk())

    def stream(self, source: Any, *, chunk: int | None = None, first_mask: FirstMask = None, prune: PruneInput = None
               ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Segments a video of any length frame by frame, in constant memory.

        Args:
          source: a video file, a folder of frames, a glob, an array ``[t, h, w, 3]`` or an iterator of uint8 RGB
            frames, which may be live: its frames are then answered one by one.
          chunk: frames encoded together; None takes 1 on a CPU and for a live iterator, 8 on an accelerator.
          first_mask: of a model that follows objects, which ones: an array of ids ``[h, w]`` or a file for the first
            frame; a folder of files named as their frames, or a mapping from names or indices of frames to arrays or
            files, for objects that appear later; ``"auto"`` or a segmenter that needs no mask, for what that finds.
          prune: instances to be taken out of a foreground, a JSON file or what else :class:`InstancePruner` takes.

        Yields:
          ``(frame, labels)``: uint8 RGB ``[h, w, 3]`` and uint8 ``[h, w]``, 0 for background, else the objects' ids.

        Raises:
          UserError: if the source cannot be read, at the frame where that shows.
        """
        run = self.run(open_source(source), chunk=chunk, first_mask=first_mask, prune=prune, say=_warn)
        # Closing this also ends the reader's thread, however early the caller loses interest.
        with contextlib.closing(run) as answers:
            for answer in answers:
                yield answer.frame.image, answer.labels

    def segment(self, frames: Any, *, chunk: int | None = None, first_mask: FirstMask = None, prune: PruneInput = None
                ) -> np.ndarray:
        """Labels of a whole video as one array: ``[t, h, w]`` uint8, from anything that :meth:`stream` takes."""
        labels = [labels for _, labels in self.stream(frames, chunk=chunk, first_mask=first_mask, prune=prune)]
        if not labels:
            raise UserError("The video holds no frame.")
        return np.stack(labels)

    def check_first_mask(self, first_mask: FirstMask) -> None:
        """Raises ``UserError`` if this model needs a first mask and there is none, or the other way round."""
        if self.model.task == "prompted" and first_mask is None:
            raise UserError(f"{self.name} follows objects that it is given: name a mask of the first frame, a folder of"
                            " masks, or auto (--first-mask; first_mask= in Python).")
        if self.model.task != "prompted" and first_mask is not None:
            raise UserError(f"{self.name} finds its object itself: leave out --first-mask, or choose a model that"
                            f" follows what it is given ({', '.join(systems_for('prompted'))}).")
        if isinstance(first_mask, Segmenter) and first_mask.model.task == "prompted":
            raise UserError(f"{first_mask.name} needs a first mask itself; models that find an object are"
                            f" {', '.join(systems_for('foreground', 'tracks'))}.")

    def objects(self, source: Source, first_mask: FirstMask) -> ObjectRegistry | None:
        """What is to be followed through a video, judged (see :meth:`stream`); None of a model that needs no mask.

        Raises:
          UserError: if the masks cannot be used, or there are none and this model needs some, or the other way round.
        """
        self.check_first_mask(first_mask)
        if self.model.task != "prompted":
            return None
        if isinstance(first_mask, str) and first_mask == AUTO:
            first_mask = load()
        if not isinstance(first_mask, Segmenter):
            return ObjectRegistry(first_mask, source)
        return ObjectRegistry(None, source, first_mask.on(self.device) if self._device else first_mask)

    def run(self, source: Source, *, chunk: int | None = None, soft: bool = False,
            references: ReferenceFrames | None = None, begin: tuple[int, StreamState] | None = None,
            first_mask: FirstMask = None, prune: PruneInput = None, say: Callable[[str], None] = lambda sentence: None
            ) -> Iterator[FrameResult]:
        """As :meth:`stream`, for an opened source and with all that is known about each frame.

        A frame that could not be decoded (``frame.broken``) is answered as the last good one, and leaves no trace in
        the state; before the first good one, all is background.

        Args:
          source: the video.
          chunk: frames encoded together, see :meth:`stream`.
          soft: whether probabilities and confidences are wanted, too.
          references: of this video, if they are known already.
          begin: where an earlier run with this chunk stopped: the number of frames it answered, a multiple of
            ``chunk``, and the ``carry`` after them. Those frames are handed out with no labels.
          first_mask: see :meth:`stream`; or what :meth:`objects` made of it.
          prune: likewise; or what ``make_pruner`` made of it.
          say: called with a sentence about masks and detections, where more objects need more room, and at the end
            about objects that no frame came by.
        """
        pruning = make_pruner(prune, source, self, say)
        if pruning is not None:
            pruning.prepare()
        objects = first_mask if isinstance(first_mask, ObjectRegistry) else self.objects(source, first_mask)
        if objects is not None:
            objects.find_auto_prompt()
            for note in objects.notes:
                say(note)
        chunk = self.chunk_for(source, chunk)
        done, carry = begin or (0, None)
        carry = jax.device_put(carry, self._device)
        if carry is None:
            references = references or select_reference_frames(self.model, source)
        frames = iter(source)
        index = 0
        # What an earlier run has answered needs no flow any more.
        pairs = with_flow(frames, self.flow, source.live, range(done, sys.maxsize).__contains__)
        batches = iter_chunks(pairs, chunk)
        if not source.live:
            batches = prefetch(batches, 1)
        # A live source gets its answer before the next frame is asked for; others keep the device busy meanwhile.
        in_flight = 0 if source.live else 1
        pending: collections.deque = collections.deque()
        failure = None
        is_finalizing, wait = sys.is_finalizing, jax.block_until_ready
        try:
            try:
                for batch in batches:
                    if done > 0:
                        done, index = done - len(batch), index + len(batch)
                        if pruning is not None:
                            pruning.select([frame for frame, _ in batch])
                        yield from (FrameResult(frame, None) for frame, _ in batch)
                        continue
                    images, flows, valid = stack_chunk(batch, chunk)
                    causal = source.live and flows is not None
                    engine, labels, given = self._prepare(objects, pruning, index, batch, images, soft, causal, say)
                    if carry is None:
                        seen = self._reference_arrays(source, references, images, flows)
                        carry = engine.start(self.variables, *seen, *labels)
                    carry, decision = engine.step(self.variables, carry, images, valid, flows, *given)
                    index += len(batch)
                    full = len(batch) == chunk
                    pending.append(([frame for frame, _ in batch], decision, carry if full else None))
                    while len(pending) > in_flight:
                        yield from _answers(*pending.popleft(), objects)
            except Exception as error:  # raised below, after the answers to the frames that came before it
                failure = error
            while pending:
                yield from _answers(*pending.popleft(), objects)
            if failure is not None:
                raise failure
            if objects is not None and objects.unused_ids:
                say(f"Objects {', '.join(map(str, objects.unused_ids))} were never given: no frame of their masks came by.")
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(f"The memory of {self.device} does not suffice: lower --size, --chunk or the largest of the"
                            " --scales.") from error
        finally:
            if not is_finalizing():  # else Python has taken apart what the lines below need
                # Python may end after an error; it must not do so under a device that is still computing.
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    wait([decision for _, decision, _ in pending])
                batches.close()  # stops the reader before its file handle goes
                pairs.close()
                if hasattr(frames, "close"):
                    frames.close()

    def _prepare(self, objects, pruning: InstancePruner | None, index, batch, images, soft, causal, say):
        """The engine with room for all objects; what its two functions want to know of them, or of what is pruned."""
        if pruning is not None:
            keep = pruning.keep_mask([frame for frame, _ in batch], len(images))
            return self.engine(images.shape[1:3], soft, pruned=True, causal=causal), (), (None, None, keep)
        if objects is None:
            return self.engine(images.shape[1:3], soft, causal=causal), (), ()
        places = objects.register(index, [frame for frame, _ in batch], len(images))
        max_objects, grown = objects.grow_slots(self.model.max_objects)
        if grown:
            say(grown)
        engine = self.engine(images.shape[1:3], soft, max_objects)
        if places is None:
            places = np.zeros(images.shape[:3], np.uint8)
        whole = np.zeros(len(images), bool)
        whole[0] = index == 0
        return engine, (places[:1],), (places, whole)

    def _reference_arrays(self, source, references, images, flows):
        """What the state is made from; images and flows are those of the first chunk."""
        if references.rule == "whole video":
            return read_reference_frames(source, references, self.flow)
        first = list(references.indices)
        return images[first], None if flows is None else flows[first]


def default_chunk() -> int:
    """Frames encoded together where nothing else is asked; a CPU gains nothing from more than one."""
    return 1 if jax.default_backend() == "cpu" else 8


def load(name: str | None = None, weights: str | Path | None = None, *, scales: tuple[float, ...] = (1.0,),
         flip: bool = False, precision: str = "float32", flow: str | Path | None = None,
         flow_weights: str | Path | None = None, flow_cache: str | Path | None = None, **overrides) -> Segmenter:
    """Loads a model with weights.

    Args:
      name: a system; None takes what the checkpoint directory says.
      weights: a checkpoint directory; a published ``.pth``, ``.safetensors`` or ``.npz`` state_dict; the name of
        weights in the package (``packaged_names()``); or ``"random"`` for untrained ones, which show that everything
        runs and nothing else. With neither name nor weights it is the default network of the package.
      scales: test-time scales whose scores are averaged.
      flip: whether mirrored copies are averaged in as well.
      precision: ``"float32"`` (the reference) or ``"bfloat16"`` (faster on accelerators).
      flow: where a model that wants optical flow gets it from: ``"dis"`` (the default, needs no weights), ``"raft"``,
        or a folder of flow files named as the frames.
      flow_weights: of RAFT, in any form that ``weights`` takes.
      flow_cache: a folder where computed flow is kept for the next time.
      **overrides: hyper-parameters of the model, e.g. ``variant="official"``, ``short_side=241``.

    Raises:
      UserError: if any of these cannot be used.
    """
    if precision not in PRECISIONS:
        raise UserError(f"There is no precision '{precision}'.{nearest_hint(precision, PRECISIONS)} Known:"
                        f" {', '.join(PRECISIONS)}.")
    if name is not None:
        _check_segments(name)  # an unknown name is the first thing to say
    overrides = {k: v for k, v in overrides.items() if v is not None} | {"dtype": PRECISIONS[precision]}
    if (name is None and weights is None) or weights in packaged_names():
        loaded = load_packaged(weights or DEFAULT, **overrides)
        if name not in (None, loaded[0]):
            raise UserError(f"The weights '{weights}' in the package are of {loaded[0]}, not of {name}.")
    elif weights is None:
        raise UserError(f"Say which weights: leave out --model {name} for the default network of the package,"
                        " or give --weights a checkpoint directory, a published .pth or .safetensors file, or 'random'"
                        " to try the machinery with untrained weights.")
    else:
        loaded = load_model(name, weights, **overrides)
        _check_segments(loaded[0])
    if loaded[1].task == "prompted" and "max_objects" not in overrides:
        # A training needs few places; what is saved of it is no reason to have as few.
        loaded = (loaded[0], loaded[1].clone(max_objects=max(loaded[1].max_objects, type(loaded[1]).max_objects)), loaded[2])
    given = [option for option, value in (("--flow", flow), ("--flow-weights", flow_weights),
                                          ("--flow-cache", flow_cache)) if value is not None]
    if "flow" in loaded[1].inputs:
        method = load_flow("dis" if flow is None else flow, flow_weights, flow_cache)
    elif given:
        raise UserError(f"{loaded[0]} looks at frames alone; leave out {', '.join(given)}.")
    else:
        method = None
    return Segmenter(*loaded, scales=scales, flip=flip, flow=method)


def _check_segments(name):
    if system(name).model.task == "flow":
        raise UserError(f"{name} computes optical flow and segments nothing: 'uvos flow' runs it, and --flow {name} has"
                        " another model use its flow.")


def parameter_count(variables: dict) -> int:
    """Number of learned values: all of ``params``, no running statistics."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


def _warn(sentence):
    warnings.warn(sentence, stacklevel=2)


def _is_scale(scale):
    return isinstance(scale, (int, float)) and not isinstance(scale, bool) and 0.1 <= scale <= 8


def _answers(batch, decision: StepOutput, carry, objects):
    """One a frame of the batch; what was decided about fill-up frames means nothing."""
    labels = np.array(decision.labels)  # writable
    if objects is not None:
        labels = objects.slot_to_id[labels]
    probability, confidence = (None if x is None else np.array(x) for x in (decision.probability, decision.confidence))
    notes = {name: np.array(note) for name, note in (decision.notes or {}).items()}
    for i, frame in enumerate(batch):
        soft = () if probability is None else (probability[i], float(confidence[i]))
        said = {name: None if np.isnan(note[i]).any() else note[i].tolist() for name, note in notes.items()}
        yield FrameResult(frame, labels[i], *soft, notes=said, carry=carry if i == len(batch) - 1 else None)
