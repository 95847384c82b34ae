"""A video's flow from files, one a frame, named as the frames."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.inference.flow.estimators import FlowEstimator, estimate_flow, flow_size
from uvos_jax.video import Frame
from uvos_jax.video.flow_io import FLOW_SUFFIXES, read_flow, resize_flow
from uvos_jax.video.image_io import is_image

_NAMED = 6  # missing files that are named


def list_flow_files(folder: Path) -> dict[str, Path]:
    """The flow files of a folder, by the name of their frame.

    Raises:
      UserError: if there are none, or two of one name.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError as error:
        raise UserError(f"the flow {quoted(folder)} cannot be listed: {error_reason(error)}; give a folder of flow files, or"
                        " one of the names dis and raft.") from error
    found: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() not in FLOW_SUFFIXES:
            continue
        if path.stem in found:
            raise UserError(f"{quoted(found[path.stem])} and {quoted(path)} are flow of one frame; remove one of them.")
        found[path.stem] = path
    if not found:
        pictures = next((path for path in paths if is_image(path)), None)
        what = f"pictures ({pictures.name!r}), from which flow cannot be had back exactly" if pictures else "no flow"
        raise UserError(f"the folder {quoted(folder)} holds {what}; it should hold a {', '.join(FLOW_SUFFIXES)} (16"
                        " bits, as KITTI's) for each frame.")
    return found


def with_flow(frames: Iterator[Frame], flow: FlowEstimator | Path | None, causal: bool,
              wanted: Callable[[int], bool] = lambda index: True) -> Iterator[tuple[Frame, np.ndarray | None]]:
    """As :func:`uvos_jax.inference.flow.estimators.estimate_flow`, whatever the flow comes from.

    Args:
      frames: of one video, in order.
      flow: a method, a folder of files, or None: then there is no flow.
      causal: see ``estimate_flow``; files are taken as they are.
      wanted: see ``estimate_flow``.

    Raises:
      UserError: at the frame whose file is missing, of another shape, or cannot be used.
    """
    if isinstance(flow, FlowEstimator):
        return estimate_flow(frames, flow, causal, wanted)
    return ((frame, None) for frame in frames) if flow is None else _from_folder(frames, flow, wanted)


def _from_folder(frames, folder, wanted):
    flows = list_flow_files(folder)
    for index, frame in enumerate(frames):
        if not wanted(index):
            yield frame, None
            continue
        if frame.name not in flows:
            raise _missing(folder, [frame.name])
        yield frame, _read_fitting(flows[frame.name], frame.image.shape[:2])


def check_flow_folder(folder: Path, frames: Iterable[Frame]) -> None:
    """Reads all flow of a video; raises ``UserError`` that names what is missing, or the first file of no use."""
    flows = list_flow_files(folder)
    missing = []
    for frame in frames:
        if frame.name not in flows:
            missing.append(frame.name)
        elif not missing:
            _read_fitting(flows[frame.name], frame.image.shape[:2])
    if missing:
        raise _missing(folder, missing)


def flow_folder_identity(folder: Path) -> str:
    """A text that changes if files are added, removed, renamed, or replaced by others of another length."""
    text = "\n".join(f"{path.name} {path.stat().st_size}" for path in list_flow_files(folder).values())
    return f"files {hashlib.sha256(text.encode()).hexdigest()}"


def _read_fitting(path, frame_size):
    flow = read_flow(path)
    (height, width), (own_height, own_width) = frame_size, flow.shape[:2]
    # Sides are whole numbers: one of them may be off by rounding.
    if (abs(own_height - own_width * height / width) > 1) and (abs(own_width - own_height * width / height) > 1):
        raise UserError(f"the flow {quoted(path)} is {own_width}x{own_height} (width x height), but the frames are"
                        f" {width}x{height}; it may be larger or smaller, but of the same shape.")
    return resize_flow(flow, flow_size(frame_size))


def _missing(folder, names):
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return UserError(f"{quoted(folder)} has no flow for frame {', '.join(names[:_NAMED])}{more}; every frame needs a"
                     " file of its name, the last one too ('uvos flow' writes them all).")
