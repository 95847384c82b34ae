"""Decoding video files and other input of PyAV frame by frame."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.video.frames import LARGEST_FRAME, FrameError, LazyFrame

# Some streams state the unit of their clock in place of the frame rate; it exceeds this many frames per second.
_MAX_FPS = 1000
# A file must not make FFmpeg connect to the network, as a playlist of addresses would.
LOCAL = {"protocol_whitelist": "file,crypto,data"}
_ADVICE = "Give a video file, a folder of frames or a glob pattern."
HEAD = 4096  # bytes at the start of a file that state its length
_REMEDY = "Re-encode the video or cut it before this frame."
# Formats that can be cut anywhere, so that the first frames may depend on frames that are missing.
_CUT_ANYWHERE = {"mpegts", "mpeg", "h264", "hevc", "rtsp", "rtp", "sdp", "flv", "live_flv"}


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of a video file.

    Attributes:
        fps: Average frame rate, or None if the file has none.
        length: Number of frames: the count in the container, else duration times rate, else None. It may be off by
            some frames.
    """

    fps: float | None
    length: int | None


def import_av(task: str) -> ModuleType:
    """Imports PyAV; ``task`` begins the error message, as in "Reading 'a.mp4'".

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"{task} needs PyAV. Install it with 'pip install av'.") from error
    return av


def av_path(path: str | os.PathLike) -> str:
    """Returns ``path`` as an FFmpeg URL; without the scheme, FFmpeg reads ``12:30.mp4`` as protocol 12."""
    return f"file:{os.fspath(path)}"


def container_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that PyAV raises for unusable files."""
    av = import_av("A video file")
    return (av.FFmpegError, OSError, ValueError)


def probe_video(path: Path) -> VideoInfo:
    """Reads the frame rate and length of a video from its header.

    Raises:
        UserError: The file is not a video.
    """
    with _opened_file(path) as (container, stream):
        rate = frame_rate(stream)
        return VideoInfo(fps=rate, length=_length(container, stream, rate))


def read_video(path: Path) -> Iterator[LazyFrame]:
    """Decodes the frames of a video file in presentation order.

    Frames are rotated upright if the file asks for it, as phones do. Mirroring is ignored and non-square pixels stay as
    stored. Transparency is dropped, as in image files: any background drawn under it would add edges of its own.

    Args:
        path: A video file.

    Yields:
        A lazy frame for every frame of the file; ``error`` is set for frames that do not decode. An intact frame that
        was predicted from a broken one may look damaged; decoders do not report it. A truncated file yields one more
        broken frame at its end.

    Raises:
        UserError: The file is not a video.
    """
    # Several threads are fast, but lose track of which packet was broken and drop frames beside it. At the first error
    # the file is therefore read again with one thread, which yields the same frames up to there.
    yielded = 0
    with contextlib.closing(_read_file(path, threads=True)) as frames:
        for frame in frames:
            if frame.error:
                break
            yield frame
            yielded += 1
        else:
            return
    with contextlib.closing(_read_file(path, threads=False)) as frames:
        yield from islice(frames, yielded, None)


def open_video(what: Any, label: str, advice: str, options: dict[str, str], **how: Any) -> tuple:
    """Opens a video with PyAV.

    Args:
        what: A path or address for FFmpeg, or an open file.
        label: Name of the video in error messages.
        advice: Last sentence of the error message: what to do if the video cannot be opened.
        options: Options for FFmpeg.
        **how: Further arguments of ``av.open``.

    Returns:
        The container, which the caller closes, and its video stream.

    Raises:
        UserError: It is not a video that PyAV can decode.
    """
    av = import_av(f"Reading {label}")
    limit = {"max_pixels": str(LARGEST_FRAME)}
    try:
        # Titles and comments in an unknown encoding must not make the video unreadable.
        container = av.open(what, metadata_errors="ignore", options=options | limit, **how)
    except container_errors() as error:
        # The error would show the address, which may contain a password.
        raise _open_error(label, _av_reason(error), advice) from None
    # FFmpeg renders any text file as the screen of a terminal.
    refusal = "it is a text file" if container.format.name == "tty" else None
    # The cover picture of a song is stored as a video stream of one frame.
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not refusal and not streams:
        refusal = "it has no video stream"
    # PyAV up to 18.0 crashes when it decodes such a stream.
    if not refusal and streams[0].codec_context is None:
        refusal = "this PyAV has no decoder for its format"
    if not refusal and streams[0].width * streams[0].height > LARGEST_FRAME:
        refusal = f"its frames are {streams[0].width}x{streams[0].height}, more than {LARGEST_FRAME >> 20} megapixels"
    if refusal:
        container.close()
        raise _open_error(label, refusal, advice)
    streams[0].codec_context.options = limit
    return container, streams[0]


def decode_frames(
    container: Any, stream: Any, label: str, remedy: str, threads: bool = False
) -> Iterator[LazyFrame]:
    """Decodes a video that ``open_video`` has opened.

    Args:
        container: The container.
        stream: The video stream.
        label: Name of the video in error messages.
        remedy: Last sentence of the error message for a frame that does not decode.
        threads: Decode slices of a frame in parallel; the first broken frame is then the last one yielded.

    Yields:
        The same as ``read_video``; if reading itself fails, the last frame is a broken one.
    """
    # Slices rather than frames in parallel: on a busy machine frames may be returned before their damage is known.
    stream.thread_type = "SLICE" if threads else "NONE"
    zero, turns = None, 0
    for number, (stamp, frame, why) in enumerate(_decoded(container, stream, threads)):
        zero = stamp if zero is None else zero
        time = None if stamp is None else float((stamp - zero) * stream.time_base)
        name = f"{number:05d}"
        if why is None:
            # H.264 may state the rotation at key frames only. Both PyAV and np.rot90 turn counterclockwise.
            turns = round(frame.rotation / 90) or (0 if frame.key_frame else turns)
            yield LazyFrame(name, partial(_upright_rgb, frame, turns), time)
        else:
            yield _broken_frame(name, time, label, why, remedy)


def decode_to_end(container: Any, stream: Any, label: str, remedy: str, measure: Callable[[], tuple[bytes, int]],
                  threads: bool = False) -> Iterator[LazyFrame]:
    """Same as ``decode_frames``, and yields a broken frame at the end if the video is truncated.

    Decoders do not report that a file ends between two packets. Its header tells, unless it states no length.

    Args:
        container: The container.
        stream: The video stream.
        label: Name of the video in error messages.
        remedy: See ``decode_frames``.
        measure: Returns the first ``HEAD`` bytes of the video and its size in bytes. It is called after the last
            frame, if frames are missing.
        threads: See ``decode_frames``.
    """
    count, last = 0, None
    with contextlib.closing(decode_frames(container, stream, label, remedy, threads)) as frames:
        for last in frames:
            yield last
            count += 1
    complete = last is None or last.error is not None or _reaches_end(container, stream, count, last)
    if not complete and _is_truncated(measure, container, stream):
        yield _broken_frame(f"{count:05d}", None, label, "the file is truncated", "Get the complete file.")


def frame_rate(stream: Any) -> float | None:
    """Returns the frames per second of a stream, or None if it states none."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate and 0 < rate <= _MAX_FPS else None


def _decoded(container, stream, threads: bool) -> Iterator[tuple[int | None, Any, str | None]]:
    """Yields (time stamp, frame, None), or (time stamp, None, reason) if broken, in presentation order."""
    errors = container_errors()
    # Packets without a frame so far, as (time stamp, reason): those that raised an error, and those that did not.
    # Intact streams have some packets that never yield a frame; but after a broken packet, and up to the next key
    # frame, a missing frame is lost because of it.
    lost: list[tuple[int, str]] = []
    pending: list[tuple[int, str]] = []
    given_up: set[int] = set()
    damaged = seen_frame = False
    seen_key = container.format.name not in _CUT_ANYWHERE
    read_failure = None
    packets = container.demux(stream)
    while read_failure is None:
        try:
            packet = next(packets, None)
            if packet is None:
                break
        except errors as error:
            packet, read_failure = None, _av_reason(error)
        stamp = packet and packet.pts
        # An empty packet stands for a frame that was dropped while recording; decoding it would end the stream.
        if packet and not packet.size and (stamp is not None or packet.dts is not None):
            continue
        seen_key = seen_key or bool(packet and packet.is_keyframe)
        frames, why = [], None
        try:
            frames = stream.decode(packet)  # None flushes the decoder
        except errors as error:
            why = error_reason(error)
        if why and threads:  # the error belongs to an earlier packet
            yield None, None, why
            return
        if why and seen_key:
            damaged = True
            if stamp is None:
                yield None, None, why
            else:
                lost.append((stamp, why))
        elif seen_key and stamp is not None and not packet.is_discard:
            pending.append((stamp, "a frame it depends on is broken"))
        for frame in frames:
            if frame.pts in given_up:  # late: a broken frame was already yielded in its place
                continue
            if frame.pts is not None:
                # With threads, PyAV drops an error that follows a frame in the same call.
                victims = pending if damaged or (threads and seen_frame) else []
                due = sorted(item for item in lost + victims if item[0] < frame.pts)
                lost = [item for item in lost if item[0] >= frame.pts]
                pending = [item for item in pending if item[0] > frame.pts]
                given_up.update(due_stamp for due_stamp, _ in due)
                yield from ((due_stamp, None, due_why) for due_stamp, due_why in due)
            damaged, seen_frame = damaged and not frame.key_frame, True
            yield frame.pts, (None if frame.is_corrupt else frame), ("it is damaged" if frame.is_corrupt else None)
    due = sorted(lost + (pending if damaged or threads else []))
    yield from ((due_stamp, None, due_why) for due_stamp, due_why in due)
    if read_failure is not None:
        yield None, None, read_failure


def _broken_frame(name: str, time: float | None, label: str, why: str, remedy: str) -> LazyFrame:
    error = FrameError(f"Cannot decode frame {name} of {label}: {why}. {remedy}", why)
    return LazyFrame(name, partial(_raise, error), time, error)


def _raise(error: Exception) -> np.ndarray:
    raise error


def _read_file(path: Path, threads: bool) -> Iterator[LazyFrame]:
    """Yields the frames of a file, and a broken one if it is truncated without an error of the decoder."""
    with _opened_file(path) as (container, stream):
        frame = None
        with contextlib.closing(decode_to_end(container, stream, quoted(path), _REMEDY, partial(_measure_file, path),
                                              threads)) as frames:
            for frame in frames:
                yield frame
        if frame is None:
            raise _open_error(quoted(path), "it has no frames", _ADVICE)


def _measure_file(path: Path) -> tuple[bytes, int]:
    with open(path, "rb") as file:
        return file.read(HEAD), path.stat().st_size


@contextlib.contextmanager
def _opened_file(path: Path) -> Iterator[tuple]:
    container, stream = open_video(av_path(path), quoted(path), _ADVICE, LOCAL)
    with container:
        yield container, stream


def _av_reason(error: Exception) -> str:
    """Returns the text of an error; FFmpeg reports a timeout as "Immediate exit requested"."""
    timeout = isinstance(error, import_av("Reading a video").error.ExitError)
    return "no data within the time limit" if timeout else error_reason(error)


def _open_error(label: str, why: str, advice: str) -> UserError:
    return UserError(f"Cannot read {label} as a video: {why}. {advice}")


def _length(container, stream, rate: float | None) -> int | None:
    # A broken header may state any length; a file cannot have more frames than bytes.
    length = _stated_length(container, stream, rate)
    return length and min(length, max(1, container.size))


def _stated_length(container, stream, rate: float | None) -> int | None:
    if stream.frames > 0:
        return stream.frames
    if stream.duration is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / 1_000_000  # FFmpeg's AV_TIME_BASE
    else:
        return None
    return max(1, round(seconds * rate)) if rate else None


def _reaches_end(container, stream, count: int, last: LazyFrame) -> bool:
    """Returns whether ``count`` frames are all that the header states."""
    if stream.frames:
        return count >= stream.frames
    if last.time is None or container.duration is None:
        return True
    # The duration includes the display time of the last frame.
    return last.time + 2 / (frame_rate(stream) or 1) > container.duration / 1_000_000


def _is_truncated(measure: Callable[[], tuple[bytes, int]], container, stream) -> bool:
    """Returns whether a file is shorter than its header states; intact files may also have fewer frames than stated."""
    try:
        head, size = measure()
    except OSError:  # removed in the meantime
        return True
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little") > size
    if "matroska" in container.format.name:
        # Segment size: one byte plus as many as the first byte has leading zero bits; all ones means "unknown".
        start = head.find(b"\x18\x53\x80\x67") + 4
        width = 9 - head[start].bit_length() if start >= 4 and start < len(head) else 9
        known = int.from_bytes(head[start : start + width], "big") & ((1 << 7 * width) - 1) if width < 9 else 0
        return width < 9 and known + 1 != 1 << 7 * width and start + width + known > size
    # An index at the front of the file (MP4) still has the position of the last frame.
    index = getattr(stream, "index_entries", ())  # PyAV 17 has none
    return len(index) > 0 and index[-1].pos + index[-1].size > size


def _upright_rgb(frame, turns: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
