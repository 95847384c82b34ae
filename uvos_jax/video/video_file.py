"""Video files, decoded with PyAV."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.video.files import quoted, reason


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself.

    Attributes:
        fps: Average frame rate, or None where the file states none.
        length: Number of frames: the container's own count, else duration times rate, else None. It may
            be off by some frames.
    """

    fps: float | None
    length: int | None


def import_av(task: str) -> ModuleType:
    """Imports PyAV, which only video files need, for ``task`` (the subject of the error's sentence)."""
    try:
        import av
    except ImportError as error:
        raise UserError(f"{task} needs PyAV; install it with 'pip install av'.") from error
    return av


def av_path(path: str | os.PathLike) -> str:
    """Returns ``path`` as FFmpeg takes it: without the scheme, ``12:30.mp4`` would be of protocol 12."""
    return f"file:{os.fspath(path)}"


def probe_video(path: Path) -> VideoInfo:
    """Reads a video's rate and length, and decodes its first frame to see that it can be decoded.

    Raises:
        UserError: The file is not a video that can be decoded.
    """
    with _opened(path) as (container, stream):
        try:
            first = next(container.decode(stream), None)
        except container_errors() as error:
            raise _unreadable(path, f"its first frame does not decode: {reason(error)}") from error
        if first is None:
            raise _unreadable(path, "it holds no frame")
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(fps=float(rate) if rate else None, length=_length(container, stream, rate))


def read_video(path: Path) -> Iterator[np.ndarray]:
    """Decodes the frames of a video one after the other.

    Frames are turned upright when the file asks for a rotation (phones write it so); a mirroring is
    ignored, and pixels that are not square stay as they are stored.

    Args:
        path: A video file.

    Yields:
        uint8 [h, w, 3], RGB.

    Raises:
        UserError: The file is not a video, or breaks off with an error at some frame.
    """
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        number = 0
        try:
            for frame in container.decode(stream):
                yield _upright_rgb(frame)
                number += 1
        except container_errors() as error:
            raise UserError(
                f"{quoted(path)} cannot be decoded at frame {number:05d} ({reason(error)}); "
                "re-encode the video, or cut it before that frame."
            ) from error


def container_errors() -> tuple[type[Exception], ...]:
    """Returns what PyAV raises when a file is not what it should be."""
    av = import_av("working with a video file")
    return (av.FFmpegError, OSError, ValueError)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple]:
    """Opens ``path`` and closes it in every case; gives its container and its video stream."""
    av = import_av(f"reading the video {quoted(path)}")
    try:
        # Titles and comments in a foreign encoding must not make the pictures unreadable.
        container = av.open(av_path(path), metadata_errors="ignore")
    except container_errors() as error:
        raise _unreadable(path, reason(error)) from error
    with container:
        # FFmpeg would draw any .txt file as the screen of a terminal.
        if container.format.name == "tty":
            raise _unreadable(path, "it is a text file")
        # The cover picture of a song is stored as a video stream of one frame.
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise _unreadable(path, "it has no video stream")
        # PyAV up to 18.0 crashes, rather than raises, when told to decode such a stream.
        if streams[0].codec_context is None:
            raise _unreadable(path, "it is in a format that this PyAV has no decoder for")
        yield container, streams[0]


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"{quoted(path)} cannot be read as a video ({why}); "
        "give a video file, a folder of frames or a glob pattern."
    )


def _length(container, stream, rate) -> int | None:
    if stream.frames:
        return stream.frames
    if stream.duration is not None:
        seconds = stream.duration * stream.time_base
    elif container.duration is not None:
        seconds = container.duration / 1_000_000  # FFmpeg's AV_TIME_BASE
    else:
        return None
    return max(1, round(seconds * rate)) if rate else None


def _upright_rgb(frame) -> np.ndarray:
    # Both PyAV's angle and np.rot90's turns are counterclockwise.
    image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(image)
