"""One video to a folder of results: a mask for each frame, what spans the video, and ``run.json``.

A run may end at any moment. What is done is kept; :mod:`uvos_jax.inference.jobs.resume` is how it goes on.
"""

import contextlib
import dataclasses
import json as json_text
import platform
import shutil
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import cv2

from uvos_jax.atomic_io import PartialFile, check_output_folder, exclusive_lock, folder_unless_empty
from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.inference.flow.estimators import FlowEstimator
from uvos_jax.inference.flow.folder import check_flow_folder
from uvos_jax.inference.instance_pruning import PruneInput, extra_stages, make_pruner
from uvos_jax.inference.jobs import resume as resuming
from uvos_jax.inference.prompts import FirstMask
from uvos_jax.inference.reference_frames import ReferenceFrames, select_reference_frames
from uvos_jax.inference.segmenter import FrameResult, Segmenter
from uvos_jax.interrupts import Interrupted
from uvos_jax.video import Frame, OutputOptions, ResultWriter, Source, read_mask, write_json
from uvos_jax.video.frames import FrameError
from uvos_jax.video.json_results import TRACK_NOTES, TRACKS_FILE, write_tracks
from uvos_jax.video.result_writer import RESULTS
from uvos_jax.weights.packaged import about, recognized

_RESULTS = (*RESULTS, TRACKS_FILE, "run.json", "debug")
_LOCK = ".uvos.lock"
_TOLD = {"source", "results", "resumed", "skipped", "seconds"}  # what a finished run says of itself, at least


def check_output(output: str | Path, overwrite: bool, source: Source | None = None, resume: bool = False) -> Path:
    """Returns the output folder's path, or says at once why it cannot be used.

    Raises:
      UserError: if it cannot be made or written, holds results that may not be replaced, or replacing them would
        delete the source.
    """
    output = check_output_folder(output)
    there = [output / name for name in _RESULTS if (output / name).exists()]
    names = ", ".join(path.name for path in there)
    if there and not (output / "run.json").exists():
        raise UserError(f"'{output}' holds '{there[0].name}', which no run of uvos has made; choose another --output.")
    if there and not (overwrite or resume):
        unfinished = not _read_run(output).get("finished")
        raise UserError(f"'{output}' holds results already ({names}{', of an unfinished run' if unfinished else ''}):"
                        f" {'go on with --resume, ' if unfinished else ''}choose another --output, or replace them with"
                        " --overwrite.")
    for path in (path.resolve() for path in (source.paths if source else ())):
        if any(result.resolve() in (path, *path.parents) for result in there):
            raise UserError(f"The input lies in '{output}', among the results to be replaced; choose another --output.")
    return output


@dataclasses.dataclass
class _Progress:
    """How far a run has come; of the notes it keeps those that ``kept`` names, or all of them.

    Whatever is kept of every frame makes memory grow with the video: without ``--json`` that is a flag.
    """

    kept: set[str] | None = None
    frames: int = 0
    resumed: int = 0
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    confidences: list[float] = dataclasses.field(default_factory=list)
    notes: dict[str, list] = dataclasses.field(default_factory=dict)


def segment_to_folder(segmenter: Segmenter, source: Source, output: str | Path, *, chunk: int | None = None,
                      overwrite: bool = False, resume: bool = False, options: dict[str, Any] | None = None,
                      on_frame: Callable[[], None] = lambda: None,
                      outputs: OutputOptions = OutputOptions(), first_mask: FirstMask = None,
                      prune: PruneInput = None, say: Callable[[str], None] = lambda sentence: None,
                      stop: Callable[[], int | None] = lambda: None, save_every: float = 1.0) -> dict[str, Any]:
    """Segments a video into a folder.

    ``run.json`` says ``"finished": false`` from the first frame on. Masks appear one by one, each whole; what spans the
    video appears at the end, also at an early one. Results of an earlier run are removed, or continued, once the first
    frame of this one is done. No second run can write into the folder meanwhile.

    Args:
      segmenter: the model with its weights.
      source: an opened video.
      output: the folder; made if missing.
      chunk: frames encoded together, see ``Segmenter.stream``.
      overwrite: whether results of an earlier run may be replaced.
      resume: whether an unfinished run in the folder goes on, and a finished one of the same options is left as it is.
        Where an unfinished one does not agree with this one, it is replaced.
      options: what the user asked for, kept in ``run.json``; ``start``, ``end`` and ``every`` say which part of the
        video ``source`` is.
      on_frame: called after each frame, for progress.
      outputs: the files to write beside the masks.
      first_mask: what a model that follows is to follow, see ``Segmenter.stream``.
      prune: instances to be taken out of a foreground, likewise.
      say: called with a sentence about what becomes of an earlier run, about masks, detections or a video of one frame.
      stop: asked after each frame; the number of a signal ends the run, which a live source finishes.
      save_every: seconds between two states to go on from, at least; 0 saves one after each chunk.

    Returns:
      The content of ``run.json``.

    Raises:
      UserError: if the video cannot be read or the folder not be written; the text says what is kept.
      Interrupted: if ``stop`` said so.
    """
    if resume and not source.rereadable:
        raise UserError(f"--resume reads the video once more, which {_kind(source)} does not allow; leave it out.")
    output = check_output(output, overwrite, source, resume)
    objects, pruning = segmenter.objects(source, first_mask), make_pruner(prune, source, segmenter, say)
    chunk = segmenter.chunk_for(source, chunk)
    options = options or {}
    started, progress = time.perf_counter(), _Progress(None if outputs.json else {*segmenter.model.notes, *TRACK_NOTES})
    if isinstance(segmenter.flow, Path) and source.rereadable:
        check_flow_folder(segmenter.flow, source)
    busy = f"Another run is writing into '{output}'; choose another --output."
    with folder_unless_empty(output), exclusive_lock(output / _LOCK, busy):
        check_output(output, overwrite, source, resume)  # once more, now that nobody else can write

        def facts_from(first: Frame) -> dict[str, Any]:
            asked = {name: options.get(name) for name in ("start", "end", "every")}
            return resuming.run_signature(segmenter, source, first, chunk, asked, dataclasses.asdict(outputs), objects, pruning)

        point = None
        if resume and (output / "run.json").exists():
            finished, point = _earlier(segmenter, source, output, facts_from, overwrite, say)
            if finished:
                return finished
        references = point.references if point else select_reference_frames(segmenter.model, source)
        if objects and point:
            objects.entries = point.objects
        writer = ResultWriter(output, source.fps, outputs, palette=objects and objects.palette)
        try:
            with contextlib.closing(segmenter.run(source, chunk=chunk, soft=outputs.soft, references=references,
                                                  begin=(point.frames, point.state) if point else None,
                                                  first_mask=objects, prune=pruning, say=say)) as answers:
                first = next(answers)  # nothing of an earlier run is touched before
                facts = facts_from(first.frame)
                _begin(output, keep=point is not None)
                with writer, resuming.ResumeSaver(output, facts, references, save_every, writer, objects) as state:
                    for answer in chain([first], answers):
                        if answer.labels is None:
                            _add_from_disk(writer, output, answer.frame, progress, point)
                        else:
                            _add(writer, answer, progress)
                            if source.rereadable and answer.carry is not None:
                                state.after_chunk(answer.carry, progress)
                        on_frame()
                        number = stop()
                        if number and source.live:
                            break
                        if number:
                            raise Interrupted(number)
        except BaseException as error:
            if not progress.frames:
                raise
            if stop() and isinstance(error, (UserError, OSError)):
                error = Interrupted(stop())  # the same Ctrl-C may have ended what the frames came from
            told = _told(error, output, source)
            with contextlib.suppress(UserError):  # the disk may be full
                write_json(output / "run.json", {"finished": False, "stopped": _why(error), "frames": _masks(output)})
            if told is None:
                raise
            raise told from error
        finds_many = segmenter.model.task == "tracks"
        if finds_many:
            write_tracks(output, source.name, *(progress.notes[name] for name in TRACK_NOTES if name in progress.notes))
        run = {"finished": True, **facts, **_description(segmenter, first.frame, references),
               "skipped": progress.skipped, "resumed": progress.resumed,
               "results": [*writer.names, *([TRACKS_FILE] * finds_many), "run.json"],
               "seconds": round(time.perf_counter() - started, 3), "peak_memory_mib": _peak_memory(),
               "options": options}
        run["source"]["frames"] = progress.frames
        if objects:
            run["objects"] = [{"id": entry.id, "frame": entry.frame} for entry in objects.entries]
        if pruning:
            run["postprocess"][:0] = ["prune", *extra_stages(segmenter.model.variant)]
            run["pruned"] = {"instances": pruning.removed_instances, "frames": pruning.pruned_frames}
            if pruning.unused_note:
                say(pruning.unused_note)
        if progress.frames == 1 and isinstance(segmenter.flow, FlowEstimator):
            run["zero_flow"] = True
            say(f"'{source.name}' has one frame, so that nothing is known of motion: its flow is zero.")
        for name, sentence in segmenter.model.notes.items():
            count = sum(progress.notes[name])
            run.setdefault("notes", {})[name] = count
            if count:
                say(f"In {count} of {progress.frames} frames {sentence}.")
        write_json(output / "run.json", run)
        _remove_state(output)
    return run


def _read_run(output: Path) -> dict[str, Any]:
    """What an earlier run says about itself; nothing if its file is damaged."""
    try:
        run = json_text.loads((output / "run.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return run if isinstance(run, dict) and (not run.get("finished") or run.keys() >= _TOLD) else {}


def _earlier(segmenter, source, output, facts_from, overwrite, say):
    """What --resume makes of earlier results: ``(the finished run or None, the point to go on from or None)``."""
    with contextlib.closing(iter(source)) as frames:
        first = next(frames)
    facts, run = facts_from(first), _read_run(output)
    if run.get("finished"):
        differing = resuming.differences(run, facts, finished=True)
        if not differing:
            say(f"'{output}' is finished already; nothing is done again.")
            _remove_state(output)
            return run, None
        if not overwrite:
            raise UserError(f"'{output}' holds results of a finished run that differs in {', '.join(differing)}: choose"
                            " another --output, or replace them with --overwrite.")
        return None, None
    point, why = resuming.load(output, segmenter, first, facts)
    say(f"'{output}': going on after {point.frames} frames." if point else
        f"'{output}': the unfinished run is started over, since {why}.")
    return None, point


def _begin(output: Path, keep: bool) -> None:
    """Marks the folder as that of an unfinished run, and removes what earlier ones left, unless that is continued."""
    write_json(output / "run.json", {"finished": False})
    if keep:
        return
    _remove_state(output)
    try:
        for path in (output / name for name in _RESULTS if name != "run.json"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Earlier results in '{output}' cannot be removed: {error_reason(error)}.") from error


def _remove_state(output: Path) -> None:
    state = output / resuming.STATE
    with contextlib.suppress(OSError):
        state.unlink()
    PartialFile(state).discard()  # left by a process that was killed while it wrote the state


def _add(writer: ResultWriter, answer: FrameResult, progress: _Progress) -> None:
    writer.add(answer.frame, answer.labels, answer.probability, answer.confidence, answer.notes)
    _count(answer.frame, answer.confidence, answer.notes, progress)


def _add_from_disk(writer, output, frame, progress, point) -> None:
    """Shows a frame of an earlier run to the results that span the video."""
    labels = read_mask(output / "masks" / f"{frame.name}.png", numbered=True)
    probability = confidence = None
    if point.confidences:
        path = output / "soft" / f"{frame.name}.png"
        probability, confidence = cv2.imread(str(path), cv2.IMREAD_UNCHANGED), point.confidences[progress.frames]
        if probability is None:
            raise UserError(f"{quoted(path)} is gone or damaged; start over with --overwrite.")
    notes = {name: values[progress.frames] for name, values in point.notes.items()}
    writer.add(frame, labels, probability, confidence, notes, on_disk=True)
    progress.resumed += 1
    _count(frame, confidence, notes, progress)


def _count(frame, confidence, notes, progress):
    progress.frames += 1
    if frame.broken is not None:
        progress.skipped[frame.name] = frame.broken
    if confidence is not None:
        progress.confidences.append(confidence)
    for name, value in notes.items():
        if progress.kept is None or name in progress.kept:
            progress.notes.setdefault(name, []).append(value)


def _told(error: BaseException, output: Path, source: Source) -> Exception | None:
    """The error with what is kept and how to go on; None for those that are not the user's."""
    count = _masks(output)
    kept = f"{count} {'mask is' if count == 1 else 'masks are'} kept in '{output}'"
    if not source.rereadable:
        kept += "."
    elif isinstance(error, Interrupted):
        kept += "; the same command with --resume goes on."
    else:
        mended = "mended or skipped" if isinstance(error.__cause__, FrameError) else "mended"
        kept += f"; once that is {mended}, the same command with --resume goes on."
    if isinstance(error, Interrupted):
        return Interrupted(error.number, f"Interrupted. {kept}")
    if isinstance(error, UserError):
        return UserError(f"{error} {kept}")
    if isinstance(error, OSError):
        return UserError(f"{_why(error)} {kept}")
    return None


def _why(error: BaseException) -> str:
    """Why a run ended before its time, in a sentence."""
    if isinstance(error, Interrupted):
        return f"stopped by {error.signal_name}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"The video cannot be read any further: {error_reason(error)}."
    return str(error) or type(error).__name__


def _masks(output: Path) -> int:
    return len(list((output / "masks").glob("*.png")))


def _kind(source: Source) -> str:
    return {"camera": "a camera", "stream": "a stream", "stdin": "standard input"}.get(source.kind, "an iterator")


def _description(segmenter: Segmenter, first: Frame, references: ReferenceFrames) -> dict[str, Any]:
    model, native_size = segmenter.model, first.image.shape[:2]
    packaged = recognized(segmenter.weights_digest)
    return {
        "weights": {"in_the_package": packaged, "license": about(packaged)["license"]} if packaged else None,
        "network_sizes": [list(model.frame_size(native_size, scale)) for scale in segmenter.scales],
        "reference_frames": list(references.indices),
        "references": references.rule,
        **({"flow_cache": str(segmenter.flow.cache_folder)} if getattr(segmenter.flow, "cache_folder", None) else {}),
        "postprocess": list(model.postprocess),
        "threshold": model.threshold,
        "device_id": segmenter.device.id,
    }


def _peak_memory() -> float | None:
    """The most that this process has had resident so far, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if platform.system() == "Darwin" else 2**10), 1)
