"""Opening a video from any supported input: file, folder, glob pattern, camera, stream, stdin or arrays."""

import contextlib
import dataclasses
import errno
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from uvos_jax.errors import UserError, error_reason, nearest_hint, quoted
from uvos_jax.video.discovery import IMAGE_KINDS, folder_frames, is_pattern, is_video_name
from uvos_jax.video.frames import (
    DEFAULT_FPS,
    FrameRange,
    LazyFrame,
    OnError,
    Source,
    decode_range,
    parse_frame_range,
)
from uvos_jax.video.image_io import is_image, natural_sort, read_image
from uvos_jax.video.multi_image_files import count_pages, is_gif, read_gif, read_pages
from uvos_jax.video.streams import SCHEMES, is_stream, open_camera, open_stdin, open_stream
from uvos_jax.video.video_reader import probe_video, read_video


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """The part of a video to read, and the treatment of frames that cannot be decoded.

    Attributes:
        start: Index of the first frame, counted from 0, or a time as text: "90" and "90s" are seconds, "1:05" is
            minutes and seconds, "1:02:03.5" includes hours. A video file has its own time stamps; other sources are
            timed at 24 frames per second. None is the start of the video.
        end: Index or time of the first frame that is no longer read. None is the end of the video.
        every: Read one frame in this many. Frames keep the names they have in the full video.
        on_error: Treatment of a frame that does not decode or differs in size from the first frame. "stop" raises
            after all frames before it; "skip" yields a ``Frame`` whose ``broken`` states the reason.
    """

    start: int | str | None = None
    end: int | str | None = None
    every: int = 1
    on_error: OnError = "stop"


def open_source(
    source: str | os.PathLike | np.ndarray | Iterable | Source, clip: ClipOptions = ClipOptions(), live: bool = False
) -> Source:
    """Opens the frames of a video, and raises for input that could not be read later.

    Args:
        source: The frames of one video:

            - the path of a video file: MP4, MOV, MKV, WebM, AVI, GIF and other formats of PyAV; every frame once and
              upright, at any frame rate; transparency is dropped;
            - the path of a folder of images (natural order; other and hidden files are ignored), of a single image, or
              of an animated PNG or WebP or a multi-page TIFF; or a glob pattern of images;
            - the index of a camera, "0", if there is no file of that name, or "/dev/video0";
            - the address of a stream, such as rtsp://, rtmp://, udp://, tcp:// or http://;
            - "-", a video on stdin;
            - a uint8 array [t, h, w, 3], or any iterable of uint8 arrays [h, w, 3], RGB.

            An opened source is returned unchanged.
        clip: The part of the video to read.
        live: For iterables: whether frames arrive while they are made, so that a reader must not hold them back.
            Without it, an iterable is a video that ends.

    Returns:
        The source. If it can be read again, its first frame has been decoded as a check.

    Raises:
        UserError: The input does not exist or is not a video, or an option is invalid.
    """
    if clip.on_error not in ("stop", "skip"):
        raise UserError(f"on_error must be 'stop' or 'skip', not {clip.on_error!r}.")
    frame_range = parse_frame_range(clip.start, clip.end, clip.every)
    if isinstance(source, Source):
        if frame_range != FrameRange():
            raise UserError("The source is already open. Give start, end and every when opening it.")
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_text(os.fspath(source), frame_range, clip.on_error)
    if hasattr(source, "__array__"):  # NumPy arrays and what converts to them, such as JAX arrays
        return _checked(_clipped(_open_array(np.asarray(source)), frame_range, clip.on_error))
    if isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray, Mapping, Set)):
        opened = _clipped(_open_iterable(source, live), frame_range, clip.on_error)
        return _checked(opened) if isinstance(source, Sequence) else opened
    raise UserError(
        f"Cannot read frames from {_type_text(source)}. "
        "Give a video file, a folder of frames, a glob pattern or uint8 arrays [h, w, 3]."
    )


def _clipped(source: Source, frame_range: FrameRange, on_error: OnError) -> Source:
    """Returns a source of the decoded frames of a range, from a source whose ``start`` yields all lazy frames."""
    frames, fps = source.start, source.fps
    length = source.length and frame_range.count(source.length, fps)
    return dataclasses.replace(
        source,
        start=lambda: decode_range(frames(), frame_range, fps, on_error),
        fps=fps / frame_range.every,
        length=length or None,
    )


def _checked(source: Source) -> Source:
    """Decodes the first frame, so that unreadable input fails when it is opened; returns the source."""
    with contextlib.closing(iter(source)) as frames:
        next(frames)
    return source


def _open_text(text: str, frame_range: FrameRange, on_error: OnError) -> Source:
    if not text:
        raise UserError("The input is an empty path. Give a video file or a folder of frames.")
    if text == "-":
        return _clipped(open_stdin(), frame_range, on_error)
    if is_stream(text):
        return _clipped(open_stream(text), frame_range, on_error)
    path, mode = Path(text), _mode(text)
    camera = re.fullmatch(r"\d{1,4}" if mode is None else r"/dev/video\d{1,4}", text, re.ASCII)
    if camera:
        return _clipped(open_camera(int(text.removeprefix("/dev/video"))), frame_range, on_error)
    if mode is None:
        if is_pattern(text):
            return _checked(_clipped(_open_glob(text), frame_range, on_error))
        if "://" in text:
            raise UserError(f"Cannot read the address {quoted(text)}. Supported schemes: {SCHEMES}.")
        raise _missing_error(path)
    if stat.S_ISDIR(mode):
        images = _open_images(folder_frames(path), "folder", _folder_name(path))
        return _checked(_clipped(images, frame_range, on_error))
    if not stat.S_ISREG(mode):
        raise UserError(
            f"{quoted(path)} is a device, pipe or socket, neither a file nor a folder. "
            "To read a video from a pipe, redirect it and give '-'."
        )
    if is_image(path):
        return _checked(_clipped(_open_image(path), frame_range, on_error))
    video = _open_video(path)
    # Reaching the start of the range decodes everything before it, so only the first frame of the file is checked.
    _checked(_clipped(video, FrameRange(), on_error))
    return _clipped(video, frame_range, on_error)


def _mode(text: str) -> int | None:
    """Returns the ``st_mode`` of a path, or None if it does not exist."""
    try:
        return os.stat(text).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(text):
            raise UserError(f"{quoted(text)} is a link to {quoted(os.readlink(text))}, which does not exist.") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) != errno.ENAMETOOLONG or not is_pattern(text):
            raise UserError(f"Cannot read {quoted(text)}: {error_reason(error)}.") from error
    return None


def _open_video(path: Path) -> Source:
    info = probe_video(path)
    return Source(
        name=path.stem,
        kind="file",
        start=partial(read_gif if is_gif(path) else read_video, path),
        fps=info.fps or DEFAULT_FPS,
        length=info.length,
        paths=(path,),
    )


def _open_image(path: Path) -> Source:
    pages = count_pages(path)
    if pages == 1:
        return _open_images([path], kind="file", name=path.stem)
    return Source(name=path.stem, kind="file", start=lambda: read_pages(path), length=pages, paths=(path,))


def _open_glob(pattern: str) -> Source:
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    paths = natural_sort(match for match in matches if is_image(match) and not match.is_dir())
    if not paths:
        problem = "matches no image" if matches else "matches nothing"
        remedy = f"Give a pattern that matches the frames of one video ({IMAGE_KINDS})."
        if any(is_video_name(match) for match in matches):
            problem, remedy = "matches videos", "Give one of them."
        raise UserError(f"The pattern {quoted(pattern)} {problem}. {remedy}")
    folder = Path(pattern).parent
    while is_pattern(os.fspath(folder)):
        folder = folder.parent
    return _open_images(paths, kind="glob", name=_folder_name(folder))


def _open_images(paths: list[Path], kind: Literal["file", "folder", "glob"], name: str) -> Source:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise UserError(
                f"The masks of {quoted(other)} and {quoted(path)} would overwrite each other. Rename or remove one."
            )
    return Source(
        name=name,
        kind=kind,
        start=lambda: (LazyFrame(path.stem, partial(read_image, path)) for path in paths),
        length=len(paths),
        paths=tuple(dict.fromkeys(path.parent for path in paths)),
    )


def _open_array(array: np.ndarray) -> Source:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(
            f"The video is {_type_text(array)}. "
            "Give a non-empty uint8 array [frames, height, width, 3] in RGB order."
        )
    return Source(name="frames", kind="iterator", start=lambda: _numbered(array), length=len(array))


def _open_iterable(frames: Iterable, live: bool) -> Source:
    length = len(frames) if isinstance(frames, Sized) else None
    if length == 0:
        raise UserError(f"The {type(frames).__name__} given as the source has no frames.")
    return Source(
        name="frames",
        kind="iterator",
        # A generator may fill the same buffer for every frame, so its frames are copied.
        start=lambda: _numbered(frames, copy=not isinstance(frames, Sequence)),
        length=length,
        live=live,
        rereadable=not isinstance(frames, Iterator),
    )


def _numbered(images: Iterable, copy: bool = False) -> Iterator[LazyFrame]:
    for index, image in enumerate(images):
        name = f"{index:05d}"
        yield LazyFrame(name, partial(_checked_array, image, name, copy))


def _checked_array(item: object, name: str, copy: bool) -> np.ndarray:
    image = np.asarray(item)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise UserError(
            f"Frame {name!r} is {_type_text(item)}. Give a uint8 array [height, width, 3] in RGB order."
        )
    return image.copy() if copy else image


def _type_text(item: object) -> str:
    if hasattr(item, "dtype") and hasattr(item, "shape"):
        article = "an" if str(item.dtype).startswith("i") else "a"
        return f"{article} {item.dtype} array of shape {tuple(item.shape)}"
    return f"an object of type {type(item).__name__!r}"


def _folder_name(folder: Path) -> str:
    return folder.resolve().name or "frames"  # the root folder has no name


def _missing_error(path: Path) -> UserError:
    """Returns the error for a path that does not exist, naming the first part of it that is missing."""
    missing = path
    while not os.path.exists(missing.parent):
        missing = missing.parent
    try:
        hint = nearest_hint(missing.name, os.listdir(missing.parent))
    except OSError:  # the parent is a file, or its listing is not permitted
        hint = ""
    where = f": there is no {missing.name!r} in {quoted(missing.parent)}" if missing != path else ""
    return UserError(f"{quoted(path)} does not exist{where}.{hint}")
