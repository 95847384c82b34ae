"""One video to a folder of results: ``masks/``, ``overlay.mp4`` and ``run.json``."""

import contextlib
import platform
import shutil
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
from uvos_jax.errors import UserError
from uvos_jax.inference.segmenter import Segmenter, default_chunk
from uvos_jax.models import hyper_parameters
from uvos_jax.video import ResultWriter, Source, write_json
from uvos_jax.video.files import check_folder

_RESULTS = ("masks", "overlay.mp4", "run.json", "debug")


def check_output(output: str | Path, overwrite: bool, source: Source) -> Path:
    """Returns the output folder's path, or says at once why it cannot be used.

    Raises:
      UserError: if it cannot be made or written, holds results that may not be replaced, or replacing them would
        delete the source.
    """
    output = check_folder(output)
    there = [output / name for name in _RESULTS if (output / name).exists()]
    if there and not overwrite:
        names = ", ".join(path.name for path in there)
        raise UserError(f"'{output}' holds results already ({names}): choose another --output, or replace them with"
                        " --overwrite.")
    if there and not (output / "run.json").exists():
        raise UserError(f"'{output}' holds '{there[0].name}', which no run of uvos has made; choose another --output.")
    for path in (path.resolve() for path in source.paths):
        if any(result.resolve() in (path, *path.parents) for result in there):
            raise UserError(f"The input lies in '{output}', among the results to be replaced; choose another --output.")
    return output


def segment_to_folder(segmenter: Segmenter, source: Source, output: str | Path, *, chunk: int | None = None,
                      overwrite: bool = False, options: dict[str, Any] | None = None,
                      on_frame: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Segments a video into a folder.

    ``run.json`` is there from the start and says ``"finished": false``: it claims the folder, so that no second run
    writes into it. Masks appear one by one, each whole; the overlay and the final ``run.json`` appear at the end.
    Results of an earlier run are removed once the first frame of this one is done.

    Args:
      segmenter: the model with its weights.
      source: an opened video.
      output: the folder; made if missing.
      chunk: frames encoded together, see ``Segmenter.stream``.
      overwrite: whether results of an earlier run may be replaced.
      options: what the user asked for, kept in ``run.json``.
      on_frame: called after each frame, for progress.

    Returns:
      The content of ``run.json``.

    Raises:
      UserError: if the video cannot be read or the folder not be written; the masks of all frames before are kept.
    """
    output = check_output(output, overwrite, source)
    started = time.perf_counter()
    # Without leave to replace, a run.json that has appeared since the check makes the claim below fail.
    replaces = overwrite and (output / "run.json").exists()
    if not replaces:
        _claim(output)
    results = segmenter.run(source, chunk=chunk)
    try:
        try:
            first = next(results)
        except BaseException:
            if not replaces:
                _unclaim(output)
            raise
        if replaces:
            _remove_results(output)
            _claim(output)
        native_size, count = first[1].shape, 0
        with ResultWriter(output, source.fps) as writer:
            for frame, labels in chain([first], results):
                writer.add(frame.name, frame.image, labels)
                count += 1
                on_frame()
    finally:
        results.close()
    run = {"finished": True} | _description(segmenter, source, native_size, count, chunk) | {
        "seconds": round(time.perf_counter() - started, 3), "options": options or {}}
    write_json(output / "run.json", run)
    return run


def _claim(output):
    """Makes the folder ours, in one step of the file system; another run that came first is an error."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with open(output / "run.json", "x") as file:
            file.write('{"finished": false}\n')
    except FileExistsError:
        raise UserError(f"Another run is writing into '{output}'; choose another --output.") from None
    except OSError as error:
        raise UserError(f"The output '{output}' cannot be written: {error.strerror}.") from error


def _unclaim(output):
    with contextlib.suppress(OSError):  # the folder stays if something else is in it
        (output / "run.json").unlink()
        output.rmdir()


def _remove_results(output):
    try:
        for path in (output / name for name in _RESULTS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Earlier results in '{output}' cannot be removed: {error.strerror}.") from error


def _description(segmenter, source, native_size, count, chunk):
    model, device = segmenter.model, jax.devices()[0]
    return {
        "model": segmenter.name,
        "variant": model.variant,
        "source": {"name": source.name, "kind": source.kind, "fps": source.fps, "frames": count,
                   "size": list(native_size)},
        "network_sizes": [list(model.frame_size(native_size, scale)) for scale in segmenter.scales],
        "scales": list(segmenter.scales),
        "flip": segmenter.flip,
        "chunk": chunk or (1 if source.live else default_chunk()),
        "reference_frames": list(model.reference_frames(count)),
        "postprocess": list(model.postprocess),
        "threshold": model.threshold,
        "hyper_parameters": hyper_parameters(model),
        "device": f"{device.device_kind} ({device.platform})",
        "versions": {"uvos_jax": uvos_jax.__version__, "python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (jax, flax, np, cv2)},
    }
