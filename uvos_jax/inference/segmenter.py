"""A model with its weights, ready for videos."""

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.inference.engine import Engine, shared
from uvos_jax.inference.flow.estimators import FlowEstimator, dis_estimator
from uvos_jax.inference.flow.folder import list_flow_files
from uvos_jax.inference.instance_pruning import PruneInput, extra_stages, make_pruner
from uvos_jax.inference.loading import load_flow, load_model
from uvos_jax.inference.object_registry import ObjectRegistry
from uvos_jax.inference.prompts import AUTO, MAX_OBJECTS, FirstMask
from uvos_jax.inference.reference_frames import ReferenceFrames
from uvos_jax.inference.tracking.engine import TrackingEngine
from uvos_jax.inference.video_run import FrameResult, ResumeFrom, VideoRun
from uvos_jax.models import Model, system, systems_for
from uvos_jax.models.dtnet.model import DTNet
from uvos_jax.video import ClipOptions, Source, open_source
from uvos_jax.video.sources import OnError
from uvos_jax.weights import checkpoints
from uvos_jax.weights.packaged import DEFAULT, load_packaged, packaged_names

# Larger network inputs come from strips or mistyped sizes, and exhaust the memory.
_MAX_SIDE = 8192
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Segmenter:
    """Segments videos with one model and one set of weights.

    Attributes:
        name: Name of the system.
        model: The model.
        variables: Its weights, on the device.
        scales: Test-time scales whose scores are averaged.
        flip: Whether mirrored copies are averaged as well.
        flow: Source of optical flow for models that use it: an estimator, or a folder of flow files named after the
            frames. None in the constructor means DIS, and remains None for models without flow.
        target_device: The device given to :meth:`on`; None for the default device.
    """

    def __init__(self, name: str, model: Model, variables: dict, *, scales: tuple[float, ...] = (1.0,),
                 flip: bool = False, flow: FlowEstimator | Path | None = None):
        """Moves the weights to the default device.

        Args:
            name: Name of the system.
            model: The model.
            variables: Its weights.
            scales: Test-time scales whose scores are averaged, 0.1 to 8.
            flip: Whether mirrored copies are averaged as well.
            flow: See the attribute.

        Raises:
            UserError: An option does not fit the model.
        """
        scales = tuple(scales) if isinstance(scales, (tuple, list)) else (scales,)
        if not scales or len(set(scales)) < len(scales) or not all(_is_scale(s) for s in scales):
            raise UserError(f"Scales must be distinct numbers from 0.1 to 8, such as 0.75, 1, 1.5; got {list(scales)}.")
        uses_flow = "flow" in model.inputs
        if flow is not None and not uses_flow:
            raise UserError(f"{name} does not use optical flow. Leave out flow.")
        if isinstance(flow, Path):
            list_flow_files(flow)
        if model.task == "prompted" and model.max_objects > MAX_OBJECTS:
            raise UserError(f"{name} segments at most {MAX_OBJECTS} objects in one run; got"
                            f" max_objects={model.max_objects}.")
        if model.task == "tracks" and (scales != (1,) or flip):
            raise UserError(f"{name} does not support test-time augmentation. Leave out --scales and --flip.")
        self.name = name
        self.model = model
        self.flow = dis_estimator if flow is None and uses_flow else flow
        self.variables = jax.device_put(variables)
        self.scales = tuple(float(s) for s in scales)
        self.flip = flip
        self.target_device: jax.Device | None = None

    def __repr__(self) -> str:
        """Returns the system, variant, number of parameters, options and device."""
        options = "".join([f", scales={self.scales}" if self.scales != (1.0,) else "", ", flip=True" * self.flip,
                           f", flow={getattr(self.flow, 'name', self.flow)!s}" if self.flow else ""])
        return (f"Segmenter({self.name}, variant={self.model.variant}, {parameter_count(self.variables):,} parameters"
                f"{options}, device={self.device})")

    def engine(self, native_size: tuple[int, int], soft: bool = False, max_objects: int | None = None,
               pruned: bool = False, causal: bool = False) -> Engine | TrackingEngine:
        """Returns the compiled functions for videos of one size, shared by equal segmenters of this process.

        Args:
            native_size: ``(height, width)`` of the frames.
            soft: Whether probabilities and confidences are computed.
            max_objects: Object slots of a prompted model; None takes the model's.
            pruned: Whether the stages that belong to instance pruning are added.
            causal: Whether flow points to the previous frame.

        Raises:
            UserError: Frames of this size are too large for the network.
        """
        largest = self.model.frame_size(native_size, max(self.scales))
        if max(largest) > _MAX_SIDE:
            raise UserError(f"Frames of {native_size[1]}x{native_size[0]} (width x height) would enter the network at"
                            f" {largest[1]}x{largest[0]}; the largest side allowed is {_MAX_SIDE} pixels. Crop the"
                            " frames or lower --size.")
        model = self.model
        if max_objects is not None and max_objects != model.max_objects:
            model = model.clone(max_objects=max_objects)
        if model.task == "tracks":
            return shared(TrackingEngine(cast(DTNet, model), native_size, soft))
        stages = extra_stages(model.variant) if pruned else ()
        return shared(Engine(model, native_size, self.scales, self.flip, soft, stages, causal))

    def on(self, device: jax.Device) -> "Segmenter":
        """Returns a copy that computes on another device; both may be used at once, in different threads."""
        other = copy.copy(self)
        other.target_device, other.variables = device, jax.device_put(self.variables, device)
        if isinstance(self.flow, FlowEstimator):
            other.flow = self.flow.on(device)
        return other

    @property
    def device(self) -> jax.Device:
        """The device that holds the weights and computes."""
        return min(jax.tree.leaves(self.variables)[0].devices(), key=lambda device: device.id)

    @functools.cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""
        return checkpoints.digest(self.variables)

    def chunk_for(self, source: Source, chunk: int | None) -> int:
        """Returns the number of frames encoded together: ``chunk``, or a default for the source and the device."""
        if chunk is not None and not (isinstance(chunk, int) and chunk > 0):
            raise UserError(f"chunk must be a whole number of at least 1; got {chunk}.")
        return chunk or (1 if source.live else default_chunk())

    def stream(self, source: Any, *, chunk: int | None = None, first_mask: FirstMask = None, prune: PruneInput = None,
               live: bool = False, on_error: OnError = "stop") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Segments a video of any length frame by frame, in constant memory.

        Args:
            source: A video file, a folder of frames, a glob pattern, an array ``[t, h, w, 3]`` or an iterable of uint8
                RGB frames.
            chunk: Number of frames encoded together; None takes 1 on a CPU and for live sources, 8 on an accelerator.
            first_mask: For prompted models, the objects to segment: an array of object ids ``[h, w]`` or a file for the
                first frame; a folder of files named after their frames, or a mapping from names or indices of frames to
                arrays or files, for objects that appear later; ``"auto"`` or a segmenter without prompts for the object
                that it finds.
            prune: Instances to remove from the foreground: a JSON file of detections, or see ``InstancePruner``.
            live: For iterators: whether each mask is yielded before the next frame is read. Flow then points to the
                previous frame. An iterator is otherwise a video that ends, and is read ahead.
            on_error: For a frame that cannot be decoded, "stop" raises; "skip" repeats the last mask.

        Yields:
            ``(frame, labels)``: uint8 RGB ``[h, w, 3]`` and uint8 ``[h, w]``, 0 for background, else object ids.

        Raises:
            UserError: The source cannot be read, at the frame where that shows.
        """
        opened = open_source(source, ClipOptions(on_error=on_error), live=live)
        run = self.run(opened, chunk=chunk, first_mask=first_mask, prune=prune, say=_warn)
        with contextlib.closing(run) as results:  # ends the reader thread when the caller stops early
            for result in results:
                assert result.labels is not None  # only frames of an earlier run have none
                yield result.frame.image, result.labels

    def segment(self, frames: Any, *, chunk: int | None = None, first_mask: FirstMask = None, prune: PruneInput = None,
                on_error: OnError = "stop") -> np.ndarray:
        """Returns the labels of a whole video, ``[t, h, w]`` uint8; arguments as for :meth:`stream`."""
        labels = [labels for _, labels in self.stream(frames, chunk=chunk, first_mask=first_mask, prune=prune,
                                                      on_error=on_error)]
        if not labels:
            raise UserError("The video has no frames.")
        return np.stack(labels)

    def results(self, source: Any, *, soft: bool = True, chunk: int | None = None, first_mask: FirstMask = None,
                prune: PruneInput = None, live: bool = False, on_error: OnError = "stop") -> Generator[FrameResult]:
        """Like :meth:`stream`, but yields everything that is known about a frame.

        Args:
            source: See :meth:`stream`.
            soft: Whether probabilities and confidences are computed.
            chunk: See :meth:`stream`.
            first_mask: See :meth:`stream`.
            prune: See :meth:`stream`.
            live: See :meth:`stream`.
            on_error: See :meth:`stream`.

        Yields:
            A ``FrameResult`` per frame: frame, labels, probability, confidence and notes.
        """
        opened = open_source(source, ClipOptions(on_error=on_error), live=live)
        return self.run(opened, chunk=chunk, soft=soft, first_mask=first_mask, prune=prune, say=_warn)

    def check_first_mask(self, first_mask: FirstMask) -> None:
        """Raises ``UserError`` if this model needs a first mask and there is none, or the other way round."""
        prompted = self.model.task == "prompted"
        if prompted and first_mask is None:
            raise UserError(f"{self.name} needs a mask of the objects. Give a mask of the first frame, a folder of"
                            " masks, or auto (--first-mask; first_mask= in Python).")
        if not prompted and first_mask is not None:
            raise UserError(f"{self.name} takes no first mask. Leave out --first-mask, or choose a semi-supervised"
                            f" model ({', '.join(systems_for('prompted'))}).")
        if isinstance(first_mask, Segmenter) and first_mask.model.task == "prompted":
            raise UserError(f"{first_mask.name} is semi-supervised and cannot find the first mask. Choose one of"
                            f" {', '.join(systems_for('foreground', 'tracks'))}.")

    def object_registry(self, source: Source, first_mask: FirstMask) -> ObjectRegistry | None:
        """Returns the validated objects of a prompted model for one video; None for other models.

        Raises:
            UserError: A mask cannot be used; or see :meth:`check_first_mask`.
        """
        self.check_first_mask(first_mask)
        if self.model.task != "prompted":
            return None
        if isinstance(first_mask, str) and first_mask == AUTO:
            first_mask = load()
        if not isinstance(first_mask, Segmenter):
            return ObjectRegistry(first_mask, source)
        finder = first_mask.on(self.device) if self.target_device else first_mask
        return ObjectRegistry(None, source, finder)

    def run(self, source: Source, *, chunk: int | None = None, soft: bool = False,
            references: ReferenceFrames | None = None, resume_from: ResumeFrom | None = None,
            first_mask: FirstMask | ObjectRegistry = None, prune: PruneInput = None,
            say: Callable[[str], None] = lambda sentence: None,
            on_start: Callable[[], object] = lambda: None) -> Generator[FrameResult]:
        """Segments an opened source; :meth:`stream` and the jobs are built on it.

        A frame that could not be decoded (``frame.broken``) repeats the last result and leaves the state unchanged;
        before the first good frame, the result is background.

        Args:
            source: The video.
            chunk: See :meth:`stream`.
            soft: Whether probabilities and confidences are computed.
            references: The model's reference frames, if they are known.
            resume_from: ``(frames, state)`` of an earlier run with this chunk size; its frames have no labels here.
            first_mask: See :meth:`stream`; or what :meth:`object_registry` returned.
            prune: See :meth:`stream`; or an ``InstancePruner``.
            say: Called with sentences for the user.
            on_start: Called once, when all inputs of the first network program are ready.

        Yields:
            A ``FrameResult`` per frame.
        """
        pruner = make_pruner(prune, source, self, say)
        registry = first_mask if isinstance(first_mask, ObjectRegistry) else self.object_registry(source, first_mask)
        run = VideoRun(self, source, chunk=self.chunk_for(source, chunk), soft=soft, references=references,
                       resume_from=resume_from, registry=registry, pruner=pruner, say=say, on_start=on_start)
        yield from run.results()


def default_chunk() -> int:
    """Returns the default number of frames encoded together: larger chunks do not pay on a CPU."""
    return 1 if jax.default_backend() == "cpu" else 8


def load(name: str | None = None, weights: str | Path | None = None, *, scales: tuple[float, ...] = (1.0,),
         flip: bool = False, precision: str = "float32", flow: str | Path | None = None,
         flow_weights: str | Path | None = None, flow_cache: str | Path | None = None, **overrides) -> Segmenter:
    """Loads a model with weights.

    Args:
        name: System; None takes the one that the checkpoint directory names.
        weights: Checkpoint directory; published ``.pth``, ``.safetensors`` or ``.npz`` state_dict; name of packaged
            weights (``packaged_names()``); or ``"random"`` for untrained weights. With neither name nor weights, the
            default network is loaded.
        scales: Test-time scales whose scores are averaged.
        flip: Whether mirrored copies are averaged as well.
        precision: ``"float32"`` (the reference) or ``"bfloat16"`` (faster on accelerators).
        flow: Optical flow for models that use it: ``"dis"`` (the default, needs no weights), ``"raft"``, or a folder of
            flow files named after the frames.
        flow_weights: Weights of RAFT, in any form that ``weights`` takes.
        flow_cache: Folder in which computed flow is stored for later runs.
        **overrides: Hyper-parameters of the model, such as ``variant="official"`` or ``short_side=241``.

    Returns:
        The segmenter.

    Raises:
        UserError: A value cannot be used.
    """
    if precision not in PRECISIONS:
        raise UserError(f"Unknown precision '{precision}'; valid precisions:"
                        f" {', '.join(PRECISIONS)}.{nearest_hint(precision, PRECISIONS)}")
    if name is not None:
        _check_segments(name)  # an unknown name is reported before anything is read
    overrides = {k: v for k, v in overrides.items() if v is not None} | {"dtype": PRECISIONS[precision]}
    if (name is None and weights is None) or weights in packaged_names():
        system_name, model, variables = load_packaged(str(weights or DEFAULT), **overrides)
        if name not in (None, system_name):
            raise UserError(f"The packaged weights '{weights}' belong to {system_name}, not to {name}.")
    elif weights is None:
        raise UserError(f"No weights of {name} are packaged. Give --weights a checkpoint directory, a published .pth or"
                        " .safetensors file, or 'random' for untrained weights; or leave out --model for the default"
                        " network.")
    else:
        system_name, model, variables = load_model(name, weights, **overrides)
        _check_segments(system_name)
    if model.task == "prompted" and "max_objects" not in overrides:
        # Training needs few object slots; inference uses at least the model's default number.
        model = model.clone(max_objects=max(model.max_objects, type(model).max_objects))
    flow_options = [option for option, value in (("--flow", flow), ("--flow-weights", flow_weights),
                                                 ("--flow-cache", flow_cache)) if value is not None]
    if "flow" not in model.inputs and flow_options:
        raise UserError(f"{system_name} does not use optical flow. Leave out {', '.join(flow_options)}.")
    source = load_flow(flow or "dis", flow_weights, flow_cache) if "flow" in model.inputs else None
    return Segmenter(system_name, model, variables, scales=scales, flip=flip, flow=source)


def _check_segments(name):
    if system(name).model.task == "flow":
        raise UserError(f"{name} computes optical flow and cannot segment. Run 'uvos flow --method {name}', or give"
                        f" --flow {name} with another model.")


def parameter_count(variables: dict) -> int:
    """Returns the number of learned parameters; running statistics do not count."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


def _warn(sentence):
    warnings.warn(sentence, stacklevel=2)


def _is_scale(scale):
    return isinstance(scale, (int, float)) and not isinstance(scale, bool) and 0.1 <= scale <= 8
