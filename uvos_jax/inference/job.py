"""One video to a folder of results: ``masks/``, ``overlay.mp4`` and ``run.json``."""

import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import jax

import uvos_jax
from uvos_jax.errors import UserError
from uvos_jax.inference.segmenter import Segmenter, default_chunk
from uvos_jax.models import hyper_parameters
from uvos_jax.video import ResultWriter, Source, write_json

_RESULTS = ("masks", "overlay.mp4", "run.json", "debug")


def check_output(output: str | Path, overwrite: bool) -> Path:
    """Returns the output folder's path; raises ``UserError`` if it holds results that may not be replaced."""
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"The output '{output}' is a file; name a folder.")
    there = [name for name in _RESULTS if (output / name).exists()]
    if there and not overwrite:
        raise UserError(f"'{output}' holds results already ({', '.join(there)}): choose another --output, or replace"
                        " them with --overwrite.")
    return output


def segment_to_folder(segmenter: Segmenter, source: Source, output: str | Path, *, chunk: int | None = None,
                      overwrite: bool = False, options: dict[str, Any] | None = None,
                      on_frame: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Segments a video into a folder.

    Masks appear one by one, each whole; the overlay and ``run.json`` appear at the end, so a folder without
    ``run.json`` is an unfinished run. Results of an earlier run are removed once the first frame of this one is done.

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
      UserError: if the video cannot be read or the folder not be written; masks done until then are kept.
    """
    output = check_output(output, overwrite)
    started = time.perf_counter()
    results = segmenter.run(source, chunk=chunk)
    try:
        first = next(results)
        for name in _RESULTS:
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        native_size, count = first[1].shape, 0
        with ResultWriter(output, source.fps) as writer:
            for frame, labels in chain([first], results):
                writer.add(frame.name, frame.image, labels)
                count += 1
                on_frame()
    finally:
        results.close()
    run = _description(segmenter, source, native_size, count, chunk) | {
        "seconds": round(time.perf_counter() - started, 3), "options": options or {}}
    write_json(output / "run.json", run)
    return run


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
        | {name: version(name) for name in ("jax", "flax", "numpy", "opencv-python-headless", "av")},
    }
