"""Optical flow from a folder of files, one per frame, named after the frames."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.inference.flow.estimators import FlowEstimator, estimate_flow, flow_size
from uvos_jax.video import Frame
from uvos_jax.video.flow_io import FLOW_SUFFIXES, read_flow, resize_flow
from uvos_jax.video.image_io import is_image

_MAX_LISTED = 6  # missing files in a message


def list_flow_files(folder: Path) -> dict[str, Path]:
    """Returns the flow files of a folder by the name of their frame.

    Raises:
        UserError: If there are none, or two for one frame.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError as error:
        raise UserError(f"Cannot list the flow folder {quoted(folder)}: {error_reason(error)}. Give a folder of flow"
                        " files, dis or raft.") from error
    files: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() not in FLOW_SUFFIXES:
            continue
        if path.stem in files:
            raise UserError(f"{quoted(files[path.stem])} and {quoted(path)} are flow of the same frame. Remove one of"
                            " them.")
        files[path.stem] = path
    if not files:
        image = next((path for path in paths if is_image(path)), None)
        content = f"images ({image.name!r}), from which flow cannot be recovered exactly" if image else "no flow files"
        raise UserError(f"The folder {quoted(folder)} holds {content}. Give one file per frame:"
                        f" {', '.join(FLOW_SUFFIXES)} (16-bit, as in KITTI).")
    return files


def with_flow(frames: Iterator[Frame], flow: FlowEstimator | Path | None, causal: bool,
              wanted: Callable[[int], bool] = lambda index: True) -> Generator[tuple[Frame, np.ndarray | None]]:
    """Yields every frame with its flow from any source; see :func:`uvos_jax.inference.flow.estimators.estimate_flow`.

    Args:
        frames: Frames of one video, in order.
        flow: An estimator, a folder of files, or None for no flow.
        causal: See ``estimate_flow``; ignored for files.
        wanted: See ``estimate_flow``.

    Raises:
        UserError: At the frame whose file is missing, has another aspect ratio or cannot be read.
    """
    if isinstance(flow, FlowEstimator):
        return estimate_flow(frames, flow, causal, wanted)
    return ((frame, None) for frame in frames) if flow is None else _read_folder(frames, flow, wanted)


def _read_folder(frames, folder, wanted):
    files = list_flow_files(folder)
    for index, frame in enumerate(frames):
        if not wanted(index):
            yield frame, None
            continue
        if frame.name not in files:
            raise _missing(folder, [frame.name])
        yield frame, _read_resized(files[frame.name], frame.image.shape[:2])


def check_flow_folder(folder: Path, frames: Iterable[Frame]) -> None:
    """Reads all flow files of a video.

    Raises:
        UserError: If files are missing, which it names, or at the first file that cannot be used.
    """
    files = list_flow_files(folder)
    missing = []
    for frame in frames:
        if frame.name not in files:
            missing.append(frame.name)
        elif not missing:
            _read_resized(files[frame.name], frame.image.shape[:2])
    if missing:
        raise _missing(folder, missing)


def flow_folder_identity(folder: Path) -> str:
    """Returns a text that changes if files are added, removed, renamed or replaced by files of another length."""
    text = "\n".join(f"{path.name} {path.stat().st_size}" for path in list_flow_files(folder).values())
    return f"files {hashlib.sha256(text.encode()).hexdigest()}"


def _read_resized(path, frame_size):
    """Reads a flow file and resizes it to the flow grid of the frames."""
    flow = read_flow(path)
    (height, width), (flow_height, flow_width) = frame_size, flow.shape[:2]
    # Integer sides: one of them may be off by rounding.
    if (abs(flow_height - flow_width * height / width) > 1) and (abs(flow_width - flow_height * width / height) > 1):
        raise UserError(f"The flow {quoted(path)} is {flow_width}x{flow_height} (width x height), but the frames are"
                        f" {width}x{height}. Give flow with the aspect ratio of the frames.")
    return resize_flow(flow, flow_size(frame_size))


def _missing(folder, names):
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return UserError(f"No flow in {quoted(folder)} for frame {', '.join(names[:_MAX_LISTED])}{more}. Give one file per"
                     " frame, including the last ('uvos flow' writes them all).")
