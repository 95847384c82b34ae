"""Writes the optical flow of a video to a folder: one file per frame, and ``flow.json``."""

import contextlib
import json
import platform
import signal
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import flax
import jax
import numpy as np

import uvos_jax
from uvos_jax.atomic_io import check_output_folder, exclusive_lock, make_folder
from uvos_jax.errors import UserError, error_reason, pluralize
from uvos_jax.inference.flow.estimators import FlowEstimator, estimate_flow, flow_direction
from uvos_jax.video import Source, write_json
from uvos_jax.video.flow_io import resize_flow, write_flow, write_flow_picture

# Suffix and writer of each format.
FORMATS = {"flo": (".flo", write_flow), "png16": (".png", write_flow), "picture": (".png", write_flow_picture)}
_METADATA = "flow.json"
_LOCK = ".uvos.lock"


def check_flow_output(output: str | Path, overwrite: bool, source: Source) -> Path:
    """Checks that the output folder can be used, and returns its path.

    Raises:
        UserError: If it cannot be created or written, or holds files that may not be replaced.
    """
    output = check_output_folder(output)
    names = (path.name for path in output.iterdir()) if output.is_dir() else ()
    existing = sorted(name for name in names if not name.startswith("."))
    if existing and _METADATA not in existing:
        raise UserError(f"'{output}' holds '{existing[0]}', which 'uvos flow' did not write. Choose another --output.")
    if existing and any(output.resolve() in (path.resolve(), *path.resolve().parents) for path in source.paths):
        raise UserError(f"The input lies in '{output}', whose files would be replaced. Choose another --output.")
    if existing and not overwrite:
        raise UserError(f"'{output}' already holds flow. Choose another --output, or replace it with --overwrite.")
    return output


def flow_to_folder(estimator: FlowEstimator, source: Source, output: str | Path, *, form: str = "flo",
                   backward: bool = False, overwrite: bool = False, options: dict[str, Any] | None = None,
                   on_frame: Callable[[], None] = lambda: None,
                   stop: Callable[[], int | None] = lambda: None) -> dict[str, Any]:
    """Writes the flow of a video to files with the names and the size of its frames.

    Args:
        estimator: Computes the flow.
        source: An opened video.
        output: The folder; created if missing.
        form: One of ``FORMATS``.
        backward: Whether flow leads to the previous frame instead of the next one.
        overwrite: Whether flow of an earlier run may be replaced.
        options: Options of the command, for ``flow.json``.
        on_frame: Called after each frame, for progress.
        stop: Called after each frame; if it returns the number of a signal, the run ends.

    Returns:
        The content of ``flow.json``, with ``"finished": false`` while the run lasts and if it ends early.

    Raises:
        UserError: If the video cannot be read or the folder cannot be written. Files that are complete are kept.
    """
    output = check_flow_output(output, overwrite, source)
    suffix, write = FORMATS[form]
    started = time.perf_counter()
    with contextlib.closing(estimate_flow(iter(source), estimator, backward)) as pairs:
        first = next(pairs)  # files of an earlier run are kept if this raises
        size = first[0].image.shape[:2]
        metadata = {"finished": False, "method": estimator.identity, "format": form, "size": list(size),
                    "direction": flow_direction(backward), "source": {"name": source.name, "kind": source.kind},
                    "versions": {"python": platform.python_version()}
                    | {module.__name__: module.__version__ for module in (uvos_jax, jax, flax, np, cv2)},
                    "options": options or {}}
        make_folder(output)
        with exclusive_lock(output / _LOCK, f"Another run is writing to '{output}'. Choose another --output."):
            check_flow_output(output, overwrite, source)  # again, now that no other run can write
            old_files = _files_of_earlier_run(output)
            write_json(output / _METADATA, metadata)
            _remove(old_files)
            files, broken, stop_reason = [], {}, ""
            try:
                for frame, flow in chain([first], pairs):
                    files.append(f"{frame.name}{suffix}")
                    write(output / files[-1], resize_flow(flow, size))
                    if frame.broken is not None:
                        broken[frame.name] = frame.broken
                    on_frame()
                    if stop():
                        stop_reason = f"stopped by {signal.Signals(stop()).name}"
                        break
                metadata |= {"finished": not stop_reason, **({"stopped": stop_reason} if stop_reason else {}),
                             "frames": len(files), "broken": broken,
                             "seconds": round(time.perf_counter() - started, 3)}
            except UserError as error:
                kept = [name for name in files if (output / name).exists()]
                raise UserError(f"{error} {pluralize(len(kept), 'file')} {'is' if len(kept) == 1 else 'are'} kept in"
                                f" '{output}'.") from error
            finally:
                with contextlib.suppress(UserError):  # the disk may be full
                    write_json(output / _METADATA, metadata | {"files": files})
    return metadata


def _files_of_earlier_run(output):
    """Files listed in the ``flow.json`` of an earlier run."""
    try:
        names = json.loads((output / _METADATA).read_text())["files"]
        return [output / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no earlier run, or a killed one
        return []


def _remove(paths):
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Cannot remove earlier flow in '{paths[0].parent}': {error_reason(error)}.") from error
