"""One video to a folder of its optical flow: a file for each frame, and ``flow.json``."""

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
from uvos_jax.errors import UserError, error_reason
from uvos_jax.inference.flow.estimators import FlowEstimator, estimate_flow, flow_direction
from uvos_jax.video import Source, write_json
from uvos_jax.video.flow_io import resize_flow, write_flow, write_flow_picture

# Suffix and writer of each form.
FORMATS = {"flo": (".flo", write_flow), "png16": (".png", write_flow), "picture": (".png", write_flow_picture)}
_ABOUT = "flow.json"
_LOCK = ".uvos.lock"


def check_flow_output(output: str | Path, overwrite: bool, source: Source) -> Path:
    """Returns the output folder's path, or says at once why it cannot be used.

    Raises:
      UserError: if it cannot be made or written, or holds something that may not be replaced.
    """
    output = check_output_folder(output)
    there = sorted(path.name for path in output.iterdir() if not path.name.startswith(".")) if output.is_dir() else []
    if there and _ABOUT not in there:
        raise UserError(f"'{output}' holds '{there[0]}', which 'uvos flow' has not made; choose another --output.")
    if there and any(output.resolve() in (path.resolve(), *path.resolve().parents) for path in source.paths):
        raise UserError(f"The input lies in '{output}', whose files would be replaced; choose another --output.")
    if there and not overwrite:
        raise UserError(f"'{output}' holds flow already; choose another --output, or replace it with --overwrite.")
    return output


def flow_to_folder(method: FlowEstimator, source: Source, output: str | Path, *, form: str = "flo", backward: bool = False,
                   overwrite: bool = False, options: dict[str, Any] | None = None,
                   on_frame: Callable[[], None] = lambda: None,
                   stop: Callable[[], int | None] = lambda: None) -> dict[str, Any]:
    """Writes the flow of a video, in files named and sized as its frames.

    Args:
      method: computes the flow.
      source: an opened video.
      output: the folder; made if missing.
      form: one of ``FORMATS``.
      backward: whether each frame's flow leads to the frame before it, not to the next one.
      overwrite: whether flow of an earlier run may be replaced.
      options: what the user asked for, kept in ``flow.json``.
      on_frame: called after each frame, for progress.
      stop: asked after each frame; the number of a signal ends the run.

    Returns:
      The content of ``flow.json``. It says ``"finished": false`` while files are written, and where a run ended early.

    Raises:
      UserError: if the video cannot be read or the folder not be written; what is written is kept.
    """
    output = check_flow_output(output, overwrite, source)
    suffix, write = FORMATS[form]
    started = time.perf_counter()
    with contextlib.closing(estimate_flow(iter(source), method, backward)) as pairs:
        first = next(pairs)  # nothing of an earlier run is touched before
        size = first[0].image.shape[:2]
        about = {"finished": False, "method": method.identity, "format": form, "size": list(size),
                 "direction": flow_direction(backward), "source": {"name": source.name, "kind": source.kind},
                 "versions": {"python": platform.python_version()}
                 | {module.__name__: module.__version__ for module in (uvos_jax, jax, flax, np, cv2)},
                 "options": options or {}}
        make_folder(output)
        with exclusive_lock(output / _LOCK, f"Another run is writing into '{output}'; choose another --output."):
            check_flow_output(output, overwrite, source)  # once more, now that nobody else can write
            earlier = _files_of_earlier(output)
            write_json(output / _ABOUT, about)
            _remove(earlier)
            files, broken, why = [], {}, ""
            try:
                for frame, flow in chain([first], pairs):
                    files.append(f"{frame.name}{suffix}")
                    write(output / files[-1], resize_flow(flow, size))
                    if frame.broken is not None:
                        broken[frame.name] = frame.broken
                    on_frame()
                    if stop():
                        why = f"stopped by {signal.Signals(stop()).name}"
                        break
                about |= {"finished": not why, **({"stopped": why} if why else {}), "frames": len(files),
                          "broken": broken, "seconds": round(time.perf_counter() - started, 3)}
            except UserError as error:
                kept = [name for name in files if (output / name).exists()]
                raise UserError(f"{error} {len(kept)} {'file is' if len(kept) == 1 else 'files are'} kept in"
                                f" '{output}'.") from error
            finally:
                with contextlib.suppress(UserError):  # the disk may be full
                    write_json(output / _ABOUT, about | {"files": files})
    return about


def _files_of_earlier(output):
    """Files that an earlier run says it has written."""
    try:
        names = json.loads((output / _ABOUT).read_text())["files"]
        return [output / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or a run that was killed
        return []


def _remove(paths):
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Earlier flow in '{paths[0].parent}' cannot be removed: {error_reason(error)}.") from error
