"""Saving and restoring the state of an unfinished run, in a hidden file beside its masks.

The file is an ``.npz`` archive: a JSON text with the run's signature, and the bytes of each array of the
``StreamState``. Nothing in it is executed when it is read.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import platform
import time
from pathlib import Path
from typing import Any

import cv2
import flax
import jax
import numpy as np

import uvos_jax
from uvos_jax.atomic_io import atomic_write
from uvos_jax.errors import UserError
from uvos_jax.inference.engine import StreamState
from uvos_jax.inference.flow.estimators import FlowEstimator, flow_direction, flow_size
from uvos_jax.inference.flow.folder import flow_folder_identity
from uvos_jax.inference.instance_pruning import InstancePruner
from uvos_jax.inference.object_registry import ObjectEntry, ObjectRegistry
from uvos_jax.inference.reference_frames import ReferenceFrames
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.models import hyper_parameters
from uvos_jax.video import Frame, ResultWriter, Source

STATE = ".resume.npz"
# Keys of the signature that may change the last bits of the results. An unfinished run is continued only where they
# agree; a finished one is accepted in any case.
_EXACT_KEYS = ("device", "versions")
_CLIP_KEYS = ("start", "end", "every")
_CLIP_DEPENDENT = ("fps", "stated_length", "first_frame", "first_frame_sha256")  # change with the clip options
_FLOW = "flow (method, weights or files)"
# Names of the options in messages, where they differ from the key.
_OPTION_NAMES = {"weights_sha256": "weights", "short_side": "size (short_side)", "dtype": "precision", "method": _FLOW,
                 "identity": _FLOW, "direction": _FLOW, "flow": _FLOW, "first_mask": "first mask",
                 "prune": "instances to prune"}


# Values of ``flow.direction`` that earlier versions wrote, and the current ones.
_OLD_DIRECTIONS = {"to the next frame; the last frame's to the one before": "next_frame",
                   "to the frame before; the first frame's is zero": "previous_frame", "as in the files": "files"}


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """The state of a run after a full chunk.

    Attributes:
        frames: Number of frames that are segmented, with all their files on disk.
        state: State after them.
        references: Reference frames of the run.
        confidences: Confidence of each of these frames, perhaps of later ones too; empty if not requested.
        notes: The same for each of the model's notes, see ``FrameResult``.
        objects: Objects registered in these frames.
    """

    frames: int
    state: StreamState
    references: ReferenceFrames
    confidences: list[float]
    notes: dict[str, list] = dataclasses.field(default_factory=dict)
    objects: list[ObjectEntry] = dataclasses.field(default_factory=list)


def run_signature(segmenter: Segmenter, source: Source, first: Frame, chunk: int, clip: dict[str, Any],
                  outputs: dict[str, Any], objects: ObjectRegistry | None = None,
                  pruning: InstancePruner | None = None) -> dict[str, Any]:
    """Returns everything that must be equal for a run to be continued, as JSON values; ``run.json`` contains it, too.

    Args:
        segmenter: The model with its weights.
        source: The video.
        first: Its first frame.
        chunk: Number of frames encoded together.
        clip: The selected part of the video: ``start``, ``end``, ``every``.
        outputs: Options of the output files.
        objects: The prompted objects.
        pruning: The instance pruning.
    """
    model = segmenter.model
    native_size = first.image.shape[:2]
    device = segmenter.device
    signature = {
        "model": segmenter.name,
        "variant": model.variant,
        "weights_sha256": segmenter.weights_digest,
        "hyper_parameters": hyper_parameters(model),
        "scales": segmenter.scales,
        "flip": segmenter.flip,
        "chunk": chunk,
        "flow": _flow_signature(segmenter.flow, source),
        **({"first_mask": objects.identity} if objects else {}),
        "prune": pruning and pruning.identity,
        "source": {
            "name": source.name, "kind": source.kind, "fps": source.fps, "size": native_size, **clip,
            "bytes": [path.stat().st_size for path in source.paths if path.is_file()],
            "stated_length": source.length,
            "first_frame": first.name,
            "first_frame_sha256": hashlib.sha256(np.ascontiguousarray(first.image)).hexdigest(),
        },
        "outputs": outputs,
        "device": f"{device.device_kind} ({device.platform})",
        "versions": {"python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (uvos_jax, jax, flax, np, cv2)},
    }
    return json.loads(json.dumps(signature))  # tuples become lists, as in a file


def _flow_signature(flow: FlowEstimator | Path | None, source: Source) -> dict[str, str] | None:
    if flow is None:
        return None
    if isinstance(flow, Path):
        return {"method": "files", "identity": flow_folder_identity(flow), "direction": "files"}
    return {"method": flow.name, "identity": flow.identity, "direction": flow_direction(source.live)}


def with_current_names(run: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a ``run.json``, or a signature, with the keys and values of earlier versions renamed."""
    outputs, flow, weights = ({**value} if isinstance(value, dict) else value
                              for value in map(run.get, ("outputs", "flow", "weights")))
    if isinstance(outputs, dict) and "look" in outputs:
        outputs["style"] = outputs.pop("look")
    if isinstance(flow, dict) and isinstance(flow.get("direction"), str):
        flow["direction"] = _OLD_DIRECTIONS.get(flow["direction"], flow["direction"])
    if isinstance(weights, dict) and "in_the_package" in weights:
        weights["packaged"] = weights.pop("in_the_package")
    renamed = {"outputs": outputs, "flow": flow, "weights": weights}
    return {key: renamed.get(key, value) for key, value in run.items()}


def differences(earlier: dict[str, Any], signature: dict[str, Any], finished: bool = False) -> list[str]:
    """Lists what differs between two runs, as ``"video"`` or names of options.

    Args:
        earlier: Signature of an earlier run; may have more keys, or be damaged.
        signature: Signature of this run.
        finished: Whether the earlier run is finished, so that device and versions do not matter.
    """
    differing = []
    for key, value in signature.items():
        if finished and key in _EXACT_KEYS:
            continue
        names = _differing_keys(earlier.get(key), value, key)
        if key == "source" and names != [key]:
            clip = [name for name in names if name in _CLIP_KEYS]
            other = set(names) - {*clip, *(_CLIP_DEPENDENT if clip else ())}
            names = clip + ["video"] * bool(other)
        differing += [f"{name} version" if key == "versions" else _OPTION_NAMES.get(name, name) for name in names]
    return list(dict.fromkeys(differing))


def _differing_keys(earlier: Any, now: Any, key: str) -> list[str]:
    """Keys of the innermost values that differ."""
    if not isinstance(earlier, dict) or not isinstance(now, dict):
        return [] if earlier == now else [key]
    return [inner for name, value in now.items() for inner in _differing_keys(earlier.get(name), value, name)]


def save(folder: Path, point: ResumePoint, signature: dict[str, Any]) -> None:
    """Writes the state of an unfinished run atomically.

    Raises:
        UserError: If it cannot be written.
    """
    notes = {name: values[:point.frames] for name, values in point.notes.items()}
    text = json.dumps({"signature": signature, "frames": point.frames, "notes": notes, "objects": point.objects,
                       "references": dataclasses.asdict(point.references)})
    arrays = {"text": np.frombuffer(text.encode(), np.uint8),
              "confidences": np.asarray(point.confidences[:point.frames], np.float32)}
    for i, leaf in enumerate(jax.tree.leaves(point.state)):
        # As bytes: NumPy's format does not support bfloat16.
        arrays[f"leaf{i}"] = np.frombuffer(np.asarray(leaf).tobytes(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic_write(folder / STATE, buffer.getvalue())


class ResumeSaver:
    """Saves resume points at a limited rate, and once more if an exception ends the run."""

    def __init__(self, output: Path, signature: dict[str, Any], references: ReferenceFrames, interval: float,
                 writer: ResultWriter, objects: ObjectRegistry | None = None):
        """Starts without a point.

        Args:
            output: Output folder of the run.
            signature: See :func:`run_signature`.
            references: Reference frames of the run.
            interval: Minimum number of seconds between two saves; 0 saves after every chunk.
            writer: Writer of the results, flushed before each save.
            objects: The prompted objects.
        """
        self._output, self._signature, self._references, self._objects = output, signature, references, objects
        self._interval, self._writer = interval, writer
        self._latest: ResumePoint | None = None
        self._next_save = -float("inf")

    def __enter__(self) -> "ResumeSaver":
        """Returns the saver."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Saves the latest point if the run ends with an exception."""
        if kind is not None:
            with contextlib.suppress(UserError):  # a full disk may be what ends the run
                self._save()

    def after_chunk(self, state: StreamState, progress: Any) -> None:
        """Records the state after a full chunk, and saves it if it is due; ``progress`` is that of the job."""
        self._latest = ResumePoint(progress.frames, state, self._references, progress.confidences, progress.notes,
                             self._objects.entries_before(progress.frames) if self._objects else [])
        if time.monotonic() >= self._next_save:
            self._save()

    def _save(self) -> None:
        if self._latest is None:
            return
        started = time.monotonic()
        self._writer.flush()
        save(self._output, self._latest, self._signature)
        self._latest = None
        # Saving takes at most about a tenth of the time, even for a large state on a slow disk.
        now = time.monotonic()
        self._next_save = now + (self._interval and max(self._interval, 10 * (now - started)))


def load(folder: Path, segmenter: Segmenter, first: Frame, signature: dict[str, Any]
         ) -> tuple[ResumePoint | None, str]:
    """Reads the state of an unfinished run.

    Args:
        folder: Output folder of the run.
        segmenter: The model with its weights.
        first: A frame of the video.
        signature: Signature of the run that is to continue.

    Returns:
        The point and an empty text, or None and the reason.
    """
    if not (folder / STATE).exists():
        return None, "it ended before its first saved state"
    try:
        # NumPy and zipfile raise many kinds of exceptions for damaged files.
        with np.load(folder / STATE, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        text = json.loads(arrays.pop("text").tobytes())
        differing = differences(with_current_names(text["signature"]), signature)
        if differing:
            return None, f"it differs in {', '.join(differing)}"
        references = ReferenceFrames(tuple(text["references"]["indices"]), text["references"]["rule"])
        frames, confidences = text["frames"], arrays.pop("confidences").tolist()
        if type(frames) is not int or frames < 1 or len(confidences) not in (0, frames):
            raise ValueError("invalid number of frames")
        notes = text.get("notes", {})
        if not notes.keys() >= segmenter.model.notes.keys() or any(len(values) != frames for values in notes.values()):
            raise ValueError("notes differ")
        objects = [ObjectEntry(*entry) for entry in text["objects"]]
        state = _restore_state(arrays, segmenter, first, references, signature["outputs"]["soft"],
                               signature["prune"] is not None)
    except Exception:
        return None, "its state is damaged"
    if len(list((folder / "masks").glob("*.png"))) < frames:
        return None, "some of its masks are missing"
    return ResumePoint(frames, state, references, confidences, notes, objects), ""


def _restore_state(arrays, segmenter, first, references, soft, pruned):
    """Restores the ``StreamState`` from its stored bytes; shapes and dtypes come from the engine."""
    image = first.image
    count = len(references.indices)
    shape = jax.ShapeDtypeStruct((count, *image.shape), image.dtype)
    flow = segmenter.flow and jax.ShapeDtypeStruct((count, *flow_size(image.shape[:2]), 2), np.float32)
    engine = segmenter.engine(image.shape[:2], soft, pruned=pruned)
    labels = [jax.ShapeDtypeStruct(shape.shape[:3], np.uint8)] * (segmenter.model.task == "prompted")
    leaves, treedef = jax.tree.flatten(jax.eval_shape(engine.start, segmenter.variables, shape, flow, *labels))
    if len(arrays) != len(leaves):
        raise ValueError("number of arrays differs")
    return jax.tree.unflatten(treedef, [np.frombuffer(arrays[f"leaf{i}"].tobytes(), leaf.dtype).reshape(leaf.shape)
                                     for i, leaf in enumerate(leaves)])
