"""One way to open whatever holds frames: a video file, a folder, a glob pattern, a camera, a stream, stdin, arrays."""

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
from uvos_jax.video.discovery import KINDS_OF_IMAGES, folder_frames, is_pattern, is_video_name
from uvos_jax.video.frames import DEFAULT_FPS, FrameRange, Picture, Source, frame_range, frames_of
from uvos_jax.video.image_io import is_image, natural_sort, read_image
from uvos_jax.video.multi_image_files import count_pages, is_gif, read_gif, read_pages
from uvos_jax.video.streams import SCHEMES, is_stream, open_camera, open_stdin, open_stream
from uvos_jax.video.video_reader import probe_video, read_video

OnError = Literal["stop", "skip"]


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """The part of a video to read, and how to treat frames that cannot be decoded.

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
    source: str | os.PathLike | np.ndarray | Iterable | Source, clip: ClipOptions = ClipOptions()
) -> Source:
    """Opens the frames of a video, refusing at once what could not be read later.

    Args:
        source: What holds the frames of one video:

            - the path of a video file: MP4, MOV, MKV, WebM, AVI, GIF and whatever else PyAV opens; every frame once,
              upright, whatever their distances in time; transparency is dropped;
            - the path of a folder of images (natural order; other and hidden files are ignored), of a single image, or
              of an animated PNG or WebP or a TIFF of many pages; or a glob pattern of images;
            - the index of a camera, "0", where there is no file of that name, or "/dev/video0";
            - the address of a stream, rtsp://, rtmp://, udp://, tcp://, http:// and the like;
            - "-", a video that is piped in;
            - an array [t, h, w, 3] uint8, or any iterable of arrays [h, w, 3] uint8. Arrays are RGB.

            An opened source is returned as it is.
        clip: The part of the video to read.

    Returns:
        The source. Of what can be read again, the first frame has been decoded.

    Raises:
        UserError: There is nothing there, it cannot be used as a video, or the options cannot be read.
    """
    on_error = clip.on_error
    if on_error not in ("stop", "skip"):
        raise UserError(f"on_error is {on_error!r}; it must be 'stop' or 'skip'.")
    span = frame_range(clip.start, clip.end, clip.every)
    if isinstance(source, Source):
        if span != FrameRange():
            raise UserError("this source is open already; give start, end and every when it is opened.")
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_text(os.fspath(source), span, on_error)
    if hasattr(source, "__array__"):  # NumPy's own and what converts to them, such as JAX's
        return _checked(_cut(_open_array(np.asarray(source)), span, on_error))
    if isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray, Mapping, Set)):
        opened = _cut(_open_iterable(source), span, on_error)
        return _checked(opened) if isinstance(source, Sequence) else opened
    raise UserError(
        f"cannot read frames from {_described(source)}; "
        "give a video file, a folder of frames, a glob pattern or uint8 arrays [h, w, 3]."
    )


def _cut(source: Source, span: FrameRange, on_error: OnError) -> Source:
    """Returns the source that gives the frames of a span, from one that gives all pictures."""
    pictures, fps = source.start, source.fps
    length = source.length and span.count(source.length, fps)
    return dataclasses.replace(
        source,
        start=lambda: frames_of(pictures(), span, fps, on_error),
        fps=fps / span.every,
        length=length or None,
    )


def _checked(source: Source) -> Source:
    """Returns the source after a look at its first frame: what would fail later should fail now."""
    with contextlib.closing(iter(source)) as frames:
        next(frames)
    return source


def _open_text(text: str, span: FrameRange, on_error: OnError) -> Source:
    if not text:
        raise UserError("the source is an empty path; give a video file or a folder of frames.")
    if text == "-":
        return _cut(open_stdin(), span, on_error)
    if is_stream(text):
        return _cut(open_stream(text), span, on_error)
    path, mode = Path(text), _mode(text)
    camera = re.fullmatch(r"\d{1,4}" if mode is None else r"/dev/video\d{1,4}", text, re.ASCII)
    if camera:
        return _cut(open_camera(int(text.removeprefix("/dev/video"))), span, on_error)
    if mode is None:
        if is_pattern(text):
            return _checked(_cut(_open_glob(text), span, on_error))
        if "://" in text:
            raise UserError(f"{quoted(text)} is no address that can be read; known are {SCHEMES}.")
        raise _missing(path)
    if stat.S_ISDIR(mode):
        return _checked(_cut(_open_images(folder_frames(path), "folder", _folder_name(path)), span, on_error))
    if not stat.S_ISREG(mode):
        raise UserError(
            f"{quoted(path)} is neither a file nor a folder, but a device, pipe or socket; "
            "to read a video from a pipe, redirect it and give '-'."
        )
    if is_image(path):
        return _checked(_cut(_open_image(path), span, on_error))
    video = _open_video(path)
    # To get to a frame in the middle all before it must be decoded, so a look at the first one of all must do.
    _checked(_cut(video, FrameRange(), on_error))
    return _cut(video, span, on_error)


def _mode(text: str) -> int | None:
    """Returns what kind of thing a path leads to, as ``st_mode`` says it; None if there is nothing."""
    try:
        return os.stat(text).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(text):
            raise UserError(f"{quoted(text)} is a link to {quoted(os.readlink(text))}, which does not exist.") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) != errno.ENAMETOOLONG or not is_pattern(text):
            raise UserError(f"{quoted(text)} cannot be read: {error_reason(error)}.") from error
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
        found = "matches no image" if matches else "matches nothing"
        if any(is_video_name(match) for match in matches):
            found = "matches videos, of which one is to be named"
        raise UserError(
            f"the pattern {quoted(pattern)} {found}; "
            f"it should match the frames of one video ({KINDS_OF_IMAGES})."
        )
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
                f"{quoted(other)} and {quoted(path)} would overwrite each other's masks; "
                "keep one of them or rename it."
            )
    return Source(
        name=name,
        kind=kind,
        start=lambda: (Picture(path.stem, partial(read_image, path)) for path in paths),
        length=len(paths),
        paths=tuple(dict.fromkeys(path.parent for path in paths)),
    )


def _open_array(array: np.ndarray) -> Source:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(
            f"the video is {_described(array)}; "
            "it must be a uint8 array [frames, height, width, 3] in RGB order, and not empty."
        )
    return Source(name="frames", kind="iterator", start=lambda: _numbered(array), length=len(array))


def _open_iterable(frames: Iterable) -> Source:
    length = len(frames) if isinstance(frames, Sized) else None
    if length == 0:
        raise UserError(f"the {type(frames).__name__} given as the source holds no frame.")
    return Source(
        name="frames",
        kind="iterator",
        # What makes its frames one by one may fill the same buffer again and again.
        start=lambda: _numbered(frames, copy=not isinstance(frames, Sequence)),
        length=length,
        live=length is None,
        rereadable=not isinstance(frames, Iterator),
    )


def _numbered(images: Iterable, copy: bool = False) -> Iterator[Picture]:
    for index, image in enumerate(images):
        name = f"{index:05d}"
        yield Picture(name, partial(_checked_array, image, name, copy))


def _checked_array(item: object, name: str, copy: bool) -> np.ndarray:
    image = np.asarray(item)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise UserError(
            f"frame {name!r} is {_described(item)}; it must be a uint8 array [height, width, 3] in RGB order."
        )
    return image.copy() if copy else image


def _described(item: object) -> str:
    if hasattr(item, "dtype") and hasattr(item, "shape"):
        return f"a {item.dtype} array of shape {tuple(item.shape)}"
    return f"an object of type {type(item).__name__!r}"


def _folder_name(folder: Path) -> str:
    return folder.resolve().name or "frames"  # the root folder has no name


def _missing(path: Path) -> UserError:
    """Returns the error for a path that leads nowhere, blaming its first part that does not exist."""
    absent = path
    while not os.path.exists(absent.parent):
        absent = absent.parent
    try:
        hint = nearest_hint(absent.name, os.listdir(absent.parent))
    except OSError:  # the parent is a file, or may not be listed
        hint = ""
    where = f": there is no {absent.name!r} in {quoted(absent.parent)}" if absent != path else ""
    return UserError(f"{quoted(path)} does not exist{where}.{hint}")
