"""Where an unfinished run can go on, kept in a hidden file beside its masks.

The file is an ``.npz``: a JSON text with all that must agree, and the bytes of each array of the ``StreamState``. Nothing in
it is executed when it is read.
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
# They may change the last bits of the results, so a run goes on only where they agree; a finished one stays finished.
_ONLY_TO_GO_ON = ("device", "versions")
_ASKED = ("start", "end", "every")
_FOLLOWING = ("fps", "stated_length", "first_frame", "first_frame_sha256")  # of the video, from what is asked for
_FLOW = "flow (method, weights or files)"
_OPTIONS = {"weights_sha256": "weights", "short_side": "size (short_side)", "dtype": "precision", "method": _FLOW,
            "identity": _FLOW, "direction": _FLOW, "flow": _FLOW, "first_mask": "first mask",
            "prune": "instances to prune"}


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """A moment in a run, behind a full chunk.

    Attributes:
      frames: how many were answered, files of all of them on disk.
      state: the past after them.
      references: of the whole run.
      confidences: of these frames, and perhaps of later ones; empty if none were asked for.
      notes: the same of each of the model's notes, as ``FrameResult`` has them.
      known: objects that were given for these frames.
    """

    frames: int
    state: StreamState
    references: ReferenceFrames
    confidences: list[float]
    notes: dict[str, list] = dataclasses.field(default_factory=dict)
    objects: list[ObjectEntry] = dataclasses.field(default_factory=list)


def run_signature(segmenter: Segmenter, source: Source, first: Frame, chunk: int, asked: dict[str, Any],
          outputs: dict[str, Any], objects: ObjectRegistry | None = None, pruning: InstancePruner | None = None) -> dict[str, Any]:
    """All that must be the same for a run to go on, as JSON values; ``run.json`` has them, too.

    Args:
      segmenter: the model with its weights.
      source: the video.
      first: its first frame.
      chunk: frames encoded together.
      asked: the part of the video that was asked for: ``start``, ``end``, ``every``.
      outputs: options of the files that are written.
      objects: what is followed.
      pruning: what is taken out.
    """
    model = segmenter.model
    native_size = first.image.shape[:2]
    device = segmenter.device
    described = {
        "model": segmenter.name,
        "variant": model.variant,
        "weights_sha256": segmenter.weights_digest,
        "hyper_parameters": hyper_parameters(model),
        "scales": segmenter.scales,
        "flip": segmenter.flip,
        "chunk": chunk,
        "flow": _flow_facts(segmenter.flow, source),
        **({"first_mask": objects.identity} if objects else {}),
        "prune": pruning and pruning.identity,
        "source": {
            "name": source.name, "kind": source.kind, "fps": source.fps, "size": native_size, **asked,
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
    return json.loads(json.dumps(described))  # tuples become lists, as they will be when they come from a file


def _flow_facts(flow: FlowEstimator | Path | None, source: Source) -> dict[str, str] | None:
    if flow is None:
        return None
    if isinstance(flow, Path):
        return {"method": "files", "identity": flow_folder_identity(flow), "direction": "as in the files"}
    return {"method": flow.name, "identity": flow.identity, "direction": flow_direction(source.live)}


def differences(known: dict[str, Any], now: dict[str, Any], finished: bool = False) -> list[str]:
    """What is not the same, in a user's words: the video, or names of options.

    Args:
      known: of an earlier run; may hold more than facts, or be damaged.
      now: the facts.
      finished: whether that run came to its end, so that it does not matter where it was computed.
    """
    differing = []
    for key, value in now.items():
        if finished and key in _ONLY_TO_GO_ON:
            continue
        names = _unlike(known.get(key), value, key)
        if key == "source" and names != [key]:
            asked = [name for name in names if name in _ASKED]
            other = set(names) - {*asked, *(_FOLLOWING if asked else ())}
            names = asked + ["video"] * bool(other)
        differing += [f"{name} version" if key == "versions" else _OPTIONS.get(name, name) for name in names]
    return list(dict.fromkeys(differing))


def _unlike(known: Any, now: Any, name: str) -> list[str]:
    """Names of the innermost values that are not the same."""
    if not isinstance(known, dict) or not isinstance(now, dict):
        return [] if known == now else [name]
    return [inner for key, value in now.items() for inner in _unlike(known.get(key), value, key)]


def save(folder: Path, point: ResumePoint, now: dict[str, Any]) -> None:
    """Writes the state of an unfinished run, in one step.

    Raises:
      UserError: if it cannot be written.
    """
    notes = {name: values[:point.frames] for name, values in point.notes.items()}
    text = json.dumps({"facts": now, "frames": point.frames, "references": dataclasses.asdict(point.references),
                       "notes": notes, "objects": point.objects})
    arrays = {"text": np.frombuffer(text.encode(), np.uint8),
              "confidences": np.asarray(point.confidences[:point.frames], np.float32)}
    for i, leaf in enumerate(jax.tree.leaves(point.state)):
        # As bytes: NumPy's format has no name for bfloat16.
        arrays[f"leaf{i}"] = np.frombuffer(np.asarray(leaf).tobytes(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic_write(folder / STATE, buffer.getvalue())


class ResumeSaver:
    """Saves where a run can go on: at most once in a while, and when an exception ends the run."""

    def __init__(self, output: Path, facts: dict[str, Any], references: ReferenceFrames, every: float, writer: ResultWriter,
                 objects: ObjectRegistry | None = None):
        self._output, self._facts, self._references, self._objects = output, facts, references, objects
        self._every, self._writer = every, writer
        self._latest: ResumePoint | None = None
        self._next = -float("inf")

    def __enter__(self) -> "ResumeSaver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with contextlib.suppress(UserError):  # that files cannot be written may be what ends the run
                self._save()

    def after_chunk(self, state: StreamState, progress: Any) -> None:
        """Notes the moment after a full chunk, and saves it if it is time to; ``progress`` is the job's."""
        self._latest = ResumePoint(progress.frames, state, self._references, progress.confidences, progress.notes,
                             self._objects.entries_before(progress.frames) if self._objects else [])
        if time.monotonic() >= self._next:
            self._save()

    def _save(self) -> None:
        if self._latest is None:
            return
        started = time.monotonic()
        self._writer.flush()
        save(self._output, self._latest, self._facts)
        self._latest = None
        # A large state on a slow disk must not take more than a small part of the time.
        now = time.monotonic()
        self._next = now + (self._every and max(self._every, 10 * (now - started)))


def load(folder: Path, segmenter: Segmenter, first: Frame, now: dict[str, Any]) -> tuple[ResumePoint | None, str]:
    """Reads the state of an unfinished run.

    Args:
      folder: with the results.
      segmenter: the model with its weights.
      first: a frame of the video.
      now: the facts of the run that is to go on.

    Returns:
      The point, or None and why there is none.
    """
    if not (folder / STATE).exists():
        return None, "it had not come far enough"
    try:
        # What np.load and the zip archive below it raise for damaged files is more than a few kinds.
        with np.load(folder / STATE, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        text = json.loads(arrays.pop("text").tobytes())
        differing = differences(text["facts"], now)
        if differing:
            return None, f"it differs in {', '.join(differing)}"
        references = ReferenceFrames(tuple(text["references"]["indices"]), text["references"]["rule"])
        frames, confidences = text["frames"], arrays.pop("confidences").tolist()
        if type(frames) is not int or frames < 1 or len(confidences) not in (0, frames):
            raise ValueError("no number of frames")
        notes = text.get("notes", {})
        if not notes.keys() >= segmenter.model.notes.keys() or any(len(said) != frames for said in notes.values()):
            raise ValueError("other notes")
        objects = [ObjectEntry(*entry) for entry in text["objects"]]
        state = _restore_state(arrays, segmenter, first, references, now["outputs"]["soft"], now["prune"] is not None)
    except Exception:
        return None, "its state is damaged"
    if len(list((folder / "masks").glob("*.png"))) < frames:
        return None, "some of its masks are gone"
    return ResumePoint(frames, state, references, confidences, notes, objects), ""


def _restore_state(arrays, segmenter, first, references, soft, pruned):
    """The stored bytes in the form that the model gives to its state."""
    image = first.image
    count = len(references.indices)
    shape = jax.ShapeDtypeStruct((count, *image.shape), image.dtype)
    flow = segmenter.flow and jax.ShapeDtypeStruct((count, *flow_size(image.shape[:2]), 2), np.float32)
    engine = segmenter.engine(image.shape[:2], soft, pruned=pruned)
    labels = [jax.ShapeDtypeStruct(shape.shape[:3], np.uint8)] * (segmenter.model.task == "prompted")
    leaves, form = jax.tree.flatten(jax.eval_shape(engine.start, segmenter.variables, shape, flow, *labels))
    if len(arrays) != len(leaves):
        raise ValueError("other arrays")
    return jax.tree.unflatten(form, [np.frombuffer(arrays[f"leaf{i}"].tobytes(), leaf.dtype).reshape(leaf.shape)
                                     for i, leaf in enumerate(leaves)])
