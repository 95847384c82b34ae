"""Segmentation of one video into a folder: a mask per frame, files that span the video, and ``run.json``.

A run may end at any moment. Finished masks are kept, and :mod:`uvos_jax.inference.jobs.resume` continues from them.
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
from uvos_jax.errors import UserError, error_reason, pluralize, quoted
from uvos_jax.inference.flow.estimators import FlowEstimator
from uvos_jax.inference.flow.folder import check_flow_folder
from uvos_jax.inference.instance_pruning import extra_stages, make_pruner
from uvos_jax.inference.jobs import resume as resuming
from uvos_jax.inference.prompt_options import PromptOptions
from uvos_jax.inference.reference_frames import ReferenceFrames, select_reference_frames
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.inference.video_run import ResumeFrom
from uvos_jax.interrupts import Interrupted
from uvos_jax.video import (
    ClipOptions,
    Frame,
    OutputOptions,
    ResultWriter,
    Source,
    open_source,
    read_mask,
    write_json,
)
from uvos_jax.video.frames import FrameError
from uvos_jax.video.json_results import TRACK_NOTES, TRACKS_FILE, write_tracks
from uvos_jax.video.result_writer import RESULTS
from uvos_jax.weights.packaged import about, recognized

_RESULTS = (*RESULTS, TRACKS_FILE, "run.json", "debug")
_LOCK = ".uvos.lock"
_REQUIRED_KEYS = {"source", "results", "resumed", "skipped", "seconds"}  # of the run.json of a finished run


def check_output(output: str | Path, overwrite: bool, source: Source | None = None, resume: bool = False) -> Path:
    """Checks that results can be written into a folder.

    Args:
        output: The folder; it need not exist.
        overwrite: Whether results of an earlier run may be replaced.
        source: The video, which must not lie among the results to be replaced.
        resume: Whether an earlier run may be continued.

    Returns:
        Path of the folder.

    Raises:
        UserError: It cannot be created or written, holds results that may not be replaced, or replacing them would
            delete the source.
    """
    output = check_output_folder(output)
    there = [output / name for name in _RESULTS if (output / name).exists()]
    names = ", ".join(path.name for path in there)
    if there and not (output / "run.json").exists():
        raise UserError(f"'{output}' holds '{there[0].name}', which was not written by uvos. Choose another --output.")
    if there and not (overwrite or resume):
        unfinished = not _read_run(output).get("finished")
        raise UserError(f"'{output}' already holds results ({names}{', of an unfinished run' if unfinished else ''})."
                        f" {'Continue with --resume, choose' if unfinished else 'Choose'} another --output, or replace"
                        " them with --overwrite.")
    for path in (path.resolve() for path in (source.paths if source else ())):
        if any(result.resolve() in (path, *path.parents) for result in there):
            raise UserError(f"The input lies in '{output}', among the results to be replaced. Choose another --output.")
    return output


@dataclasses.dataclass
class _Progress:
    """Counts of a run, and per-frame values for files that are written at the end.

    Attributes:
        kept: Names of the notes to keep, or None for all. Values kept per frame grow with the length of the video, so
            without ``--json`` only flags are kept.
        frames: Frames written.
        resumed: Frames taken from an earlier run.
        skipped: Reason for each frame that could not be decoded, by its name.
        confidences: Confidence of each frame.
        notes: Values of each kept note, one per frame.
    """

    kept: set[str] | None = None
    frames: int = 0
    resumed: int = 0
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    confidences: list[float] = dataclasses.field(default_factory=list)
    notes: dict[str, list] = dataclasses.field(default_factory=dict)


def segment_to_folder(segmenter: Segmenter, source: Any, output: str | Path, *, clip: ClipOptions = ClipOptions(),
                      outputs: OutputOptions = OutputOptions(), prompts: PromptOptions = PromptOptions(),
                      chunk: int | None = None, overwrite: bool = False, resume: bool = False,
                      options: dict[str, Any] | None = None, on_start: Callable[[], object] = lambda: None,
                      on_frame: Callable[[], object] = lambda: None, say: Callable[[str], None] = lambda message: None,
                      stop: Callable[[], int | None] = lambda: None, save_every: float = 1.0) -> dict[str, Any]:
    """Segments a video into a folder of results.

    ``run.json`` says ``"finished": false`` from the first frame on. Masks appear one by one, each file complete; files
    that span the video appear at the end, also if the run ends early. Results of an earlier run are removed, or
    continued, once the first frame of this run is done. A lock keeps other runs out of the folder.

    Args:
        segmenter: The model with its weights.
        source: A video as ``open_source`` takes it, or an opened one.
        output: The folder; created if missing.
        clip: The part of the video to segment. Of an opened source, the part it was opened with.
        outputs: Files to write beside the masks.
        prompts: Objects to track and instances to remove.
        chunk: Frames encoded at once, see ``Segmenter.stream``.
        overwrite: Replace results of an earlier run.
        resume: Continue an unfinished run and leave a finished one with equal options as it is. An unfinished run with
            other options is replaced.
        options: Further JSON values to keep in ``run.json``.
        on_start: Called once, when all inputs of the first network program are ready.
        on_frame: Called after each frame.
        say: Called with messages for the user: about an earlier run, masks, detections.
        stop: Polled after each frame. The number of a signal ends the run; a live source is finished normally.
        save_every: Least seconds between two saved states to resume from; 0 saves one after each chunk.

    Returns:
        The content of ``run.json``.

    Raises:
        UserError: The video cannot be read or the folder cannot be written; the message says what is kept.
        Interrupted: ``stop`` returned the number of a signal.
    """
    source = source if isinstance(source, Source) else open_source(source, clip)
    prompts = prompts.load_models(segmenter)
    if resume and not source.rereadable:
        raise UserError(f"--resume reads the video a second time, which {_kind(source)} does not allow. Leave it out.")
    output = check_output(output, overwrite, source, resume)
    objects = segmenter.object_registry(source, prompts.first_mask)
    pruning = make_pruner(prompts.prune, source, segmenter, say)
    chunk = segmenter.chunk_for(source, chunk)
    started, progress = time.perf_counter(), _Progress(None if outputs.json else {*segmenter.model.notes, *TRACK_NOTES})
    if isinstance(segmenter.flow, Path) and source.rereadable:
        check_flow_folder(segmenter.flow, source)
    busy = f"Another run is writing into '{output}'. Choose another --output."
    with folder_unless_empty(output), exclusive_lock(output / _LOCK, busy):
        check_output(output, overwrite, source, resume)  # again, now that the folder is locked

        def facts_from(first: Frame) -> dict[str, Any]:
            part = {"start": clip.start, "end": clip.end, "every": clip.every}
            return resuming.run_signature(segmenter, source, first, chunk, part, dataclasses.asdict(outputs), objects,
                                          pruning)

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
                                                  resume_from=ResumeFrom(point.frames, point.state) if point else None,
                                                  first_mask=objects, prune=pruning, say=say,
                                                  on_start=on_start)) as results:
                first = next(results)  # results of an earlier run are kept until the first frame works
                facts = facts_from(first.frame)
                _start_run(output, keep=point is not None)
                with writer, resuming.ResumeSaver(output, facts, references, save_every, writer, objects) as state:
                    for result in chain([first], results):
                        if result.labels is None:
                            _add_from_disk(writer, output, result.frame, progress, point)
                        else:
                            writer.add(result.frame, result.labels, result.probability, result.confidence, result.notes)
                            _count(result.frame, result.confidence, result.notes, progress)
                            if source.rereadable and result.state is not None:
                                state.after_chunk(result.state, progress)
                        on_frame()
                        number = stop()
                        if number and source.live:
                            break
                        if number:
                            raise Interrupted(number)
        except BaseException as error:
            if not progress.frames:
                raise
            if (number := stop()) and isinstance(error, (UserError, OSError)):
                error = Interrupted(number)  # Ctrl-C also ends the other programs of a pipe
            explained = _with_kept(error, output, source)
            with contextlib.suppress(UserError):  # the disk may be full
                write_json(output / "run.json", {"finished": False, "stopped": _reason(error),
                                                 "frames": _count_masks(output)})
            if explained is None:
                raise
            raise explained from error
        tracks = segmenter.model.task == "tracks"
        if tracks:
            write_tracks(output, source.name, *(progress.notes[name] for name in TRACK_NOTES if name in progress.notes))
        run = {"finished": True, **facts, **_description(segmenter, first.frame, references),
               "skipped": progress.skipped, "resumed": progress.resumed,
               "results": [*writer.names, *([TRACKS_FILE] * tracks), "run.json"],
               "seconds": round(time.perf_counter() - started, 3), "peak_memory_mib": _peak_memory(),
               "clip": dataclasses.asdict(clip), "prompts": prompts.as_json(), "options": options or {}}
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
            say(f"'{source.name}' has a single frame; its optical flow is set to zero.")
        for name, sentence in segmenter.model.notes.items():
            count = sum(progress.notes[name])
            run.setdefault("notes", {})[name] = count
            if count:
                say(f"In {count} of {pluralize(progress.frames, 'frame')} {sentence}.")
        write_json(output / "run.json", run)
        _remove_state(output)
    return run


def _read_run(output: Path) -> dict[str, Any]:
    """Reads the ``run.json`` of an earlier run; empty if there is none or it is damaged."""
    try:
        run = json_text.loads((output / "run.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(run, dict) or (run.get("finished") and not run.keys() >= _REQUIRED_KEYS):
        return {}
    return resuming.with_current_names(run)


def _earlier(segmenter, source, output, facts_from, overwrite, say):
    """Returns what ``resume`` finds: ``(finished run or None, point to continue from or None)``."""
    with contextlib.closing(iter(source)) as frames:
        first = next(frames)
    facts, run = facts_from(first), _read_run(output)
    if run.get("finished"):
        differing = resuming.differences(run, facts, finished=True)
        if not differing:
            say(f"'{output}' is already finished; nothing to do.")
            _remove_state(output)
            return run, None
        if not overwrite:
            raise UserError(f"'{output}' holds results of a finished run that differs in {', '.join(differing)}. Choose"
                            " another --output, or replace them with --overwrite instead of --resume.")
        return None, None
    point, why = resuming.load(output, segmenter, first, facts)
    say(f"'{output}': resuming after {pluralize(point.frames, 'frame')}." if point else
        f"'{output}': starting over, because {why}.")
    return None, point


def _start_run(output: Path, keep: bool) -> None:
    """Marks the run in the folder as unfinished, and removes earlier results unless they are continued."""
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
        raise UserError(f"Cannot remove earlier results in '{output}': {error_reason(error)}.") from error


def _remove_state(output: Path) -> None:
    state = output / resuming.STATE
    with contextlib.suppress(OSError):
        state.unlink()
    PartialFile(state).discard()  # left by a process that was killed while it wrote the state


def _add_from_disk(writer, output, frame, progress, point) -> None:
    """Adds a frame of an earlier run to the files that span the video."""
    labels = read_mask(output / "masks" / f"{frame.name}.png", numbered=True)
    probability = confidence = None
    if point.confidences:
        path = output / "soft" / f"{frame.name}.png"
        probability, confidence = cv2.imread(str(path), cv2.IMREAD_UNCHANGED), point.confidences[progress.frames]
        if probability is None:
            raise UserError(f"{quoted(path)} is missing or damaged. Start over with --overwrite instead of"
                            " --resume.")
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


def _with_kept(error: BaseException, output: Path, source: Source) -> Exception | None:
    """Returns the error with what is kept and how to continue; None if it is a bug."""
    count = _count_masks(output)
    kept = f"{pluralize(count, 'mask')} {'is' if count == 1 else 'are'} kept in '{output}'"
    if not source.rereadable:
        kept += "."
    elif isinstance(error, Interrupted):
        kept += ". Run the same command with --resume to continue."
    else:
        fix = "fixing or skipping it" if isinstance(error.__cause__, FrameError) else "fixing it"
        kept += f". After {fix}, run the same command with --resume to continue."
    if isinstance(error, Interrupted):
        return Interrupted(error.number, f"Interrupted. {kept}")
    if isinstance(error, UserError):
        return UserError(f"{error} {kept}")
    if isinstance(error, OSError):
        return UserError(f"{_reason(error)} {kept}")
    return None


def _reason(error: BaseException) -> str:
    """Returns the reason why a run ended early."""
    if isinstance(error, Interrupted):
        return f"stopped by {error.signal_name}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"Cannot read the rest of the video: {error_reason(error)}."
    return str(error) or type(error).__name__


def _count_masks(output: Path) -> int:
    return len(list((output / "masks").glob("*.png")))


def _kind(source: Source) -> str:
    return {"camera": "a camera", "stream": "a stream", "stdin": "standard input"}.get(source.kind, "an iterator")


def _description(segmenter: Segmenter, first: Frame, references: ReferenceFrames) -> dict[str, Any]:
    model, native_size = segmenter.model, first.image.shape[:2]
    packaged, cache = recognized(segmenter.weights_digest), getattr(segmenter.flow, "cache_folder", None)
    return {
        "weights": {"packaged": packaged, "license": about(packaged)["license"]} if packaged else None,
        "network_sizes": [list(model.frame_size(native_size, scale)) for scale in segmenter.scales],
        "reference_frames": list(references.indices),
        "references": references.rule,
        **({"flow_cache": str(cache)} if cache else {}),
        "postprocess": list(model.postprocess),
        "threshold": model.threshold,
        "device_id": segmenter.device.id,
    }


def _peak_memory() -> float | None:
    """Returns the peak resident memory of this process in MiB, or None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if platform.system() == "Darwin" else 2**10), 1)
