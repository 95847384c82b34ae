"""Video files, and whatever else PyAV opens, decoded picture by picture."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.video.frames import LARGEST_FRAME, FrameError, Picture

# Beyond this a rate is the unit of a clock, which some streams state in its place.
_FASTEST = 1000
# A file must not make FFmpeg wait for something from the network, as a list of addresses would.
LOCAL = {"protocol_whitelist": "file,crypto,data"}
_ADVICE = "give a video file, a folder of frames or a glob pattern"
_REMEDY = "re-encode the video or cut it before that frame"
# What can be cut or joined anywhere, so that it may begin with frames that need others which are not there.
_WITHOUT_BEGINNING = {"mpegts", "mpeg", "h264", "hevc", "rtsp", "rtp", "sdp", "flv", "live_flv"}


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


def container_errors() -> tuple[type[Exception], ...]:
    """Returns what PyAV raises when a file is not what it should be."""
    av = import_av("working with a video file")
    return (av.FFmpegError, OSError, ValueError)


def probe_video(path: Path) -> VideoInfo:
    """Reads a video's rate and length from its header.

    Raises:
        UserError: The file is not a video.
    """
    with _opened_file(path) as (container, stream):
        rate = rate_of(stream)
        return VideoInfo(fps=rate, length=_length(container, stream, rate))


def read_video(path: Path) -> Iterator[Picture]:
    """Decodes the pictures of a video file one after the other, in the order in which they are shown.

    Turned upright when the file asks for a rotation (phones write it so); a mirroring is ignored, pixels that are not
    square stay as they are stored, and transparency is dropped, as in image files: what color lies beneath is the
    author's, and any background drawn under it would have edges of its own.

    Args:
        path: A video file.

    Yields:
        A picture for every frame, and a damaged one for each that does not decode, each in its place. What is whole
        but was made from what is not looks damaged too; decoders do not tell of it. After a file that breaks off comes
        one more damaged picture.

    Raises:
        UserError: The file is not a video.
    """
    # Many threads are fast, but lose track of which packet was broken and of frames beside it. So at the first sign of
    # damage the file is read again by one, which is how every frame before it is given in any case.
    given = 0
    with contextlib.closing(_read_file(path, threads=True)) as pictures:
        for picture in pictures:
            if picture.damage:
                break
            yield picture
            given += 1
        else:
            return
    with contextlib.closing(_read_file(path, threads=False)) as pictures:
        yield from islice(pictures, given, None)


def open_video(what: Any, label: str, advice: str, options: dict[str, str], **how: Any) -> tuple:
    """Opens a video with PyAV.

    Args:
        what: A path or address for FFmpeg, or an open file.
        label: What it is called in an error.
        advice: What to do if it cannot be opened, the end of a sentence.
        options: FFmpeg's.
        **how: The rest, for ``av.open``.

    Returns:
        Its container, which the caller closes, and its video stream.

    Raises:
        UserError: It is no video.
    """
    av = import_av(f"reading {label}")
    limit = {"max_pixels": str(LARGEST_FRAME)}
    try:
        # Titles and comments in a foreign encoding must not make the pictures unreadable.
        container = av.open(what, metadata_errors="ignore", options=options | limit, **how)
    except container_errors() as error:
        # An address may hold a password, and the error the address.
        raise _no_video(label, _why(error), advice) from None
    # FFmpeg would draw any .txt file as the screen of a terminal.
    refusal = "it is a text file" if container.format.name == "tty" else None
    # The cover picture of a song is stored as a video stream of one frame.
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not refusal and not streams:
        refusal = "it has no video stream"
    # PyAV up to 18.0 crashes, rather than raises, when told to decode such a stream.
    if not refusal and streams[0].codec_context is None:
        refusal = "it is in a format that this PyAV has no decoder for"
    if not refusal and streams[0].width * streams[0].height > LARGEST_FRAME:
        refusal = f"its frames are {streams[0].width}x{streams[0].height}, more than {LARGEST_FRAME >> 20} megapixels"
    if refusal:
        container.close()
        raise _no_video(label, refusal, advice)
    streams[0].codec_context.options = limit
    return container, streams[0]


def decode_pictures(
    container: Any, stream: Any, label: str, remedy: str, threads: bool = False
) -> Iterator[Picture]:
    """Decodes what ``open_video`` has opened.

    Args:
        container: Its container.
        stream: Its video stream.
        label: What it is called in an error.
        remedy: What to do about a picture that does not decode, the end of a sentence.
        threads: Whether frames are decoded side by side; a damaged picture is then the last.

    Yields:
        As ``read_video``; where reading itself fails, a damaged picture is the last.
    """
    # Not whole frames side by side: on a busy machine those may be handed out before their damage is known.
    stream.thread_type = "SLICE" if threads else "NONE"
    zero, turns = None, 0
    for number, (stamp, frame, why) in enumerate(_decoded(container, stream, threads)):
        zero = stamp if zero is None else zero
        time = None if stamp is None else float((stamp - zero) * stream.time_base)
        name = f"{number:05d}"
        if why is None:
            # H.264 may tell it at key frames only. Both PyAV's angle and np.rot90's turns are counterclockwise.
            turns = round(frame.rotation / 90) or (0 if frame.key_frame else turns)
            yield Picture(name, partial(_upright_rgb, frame, turns), time)
        else:
            yield _broken(name, time, label, why, remedy)


def rate_of(stream: Any) -> float | None:
    """Returns a stream's frames per second, or None where it states none."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate and 0 < rate <= _FASTEST else None


def _decoded(container, stream, threads: bool) -> Iterator[tuple[int | None, Any, str | None]]:
    """Yields time stamp, frame and None, or time stamp, None and what is wrong, in the order of showing."""
    errors = container_errors()
    # Time stamps of packets that have given no frame yet: what raised an error, and what did not. Healthy streams have
    # some that never will; but next to a broken one, and up to the next key frame, they are its victims.
    lost: list[tuple[int, str]] = []
    owed: list[tuple[int, str]] = []
    given_up: set[int] = set()
    harmed = seen_frame = False
    seen_key = container.format.name not in _WITHOUT_BEGINNING
    broken_off = None
    packets = container.demux(stream)
    while broken_off is None:
        try:
            packet = next(packets, None)
            if packet is None:
                break
        except errors as error:
            packet, broken_off = None, _why(error)
        stamp = packet and packet.pts
        # An empty one would end the decoder's work; it stands for a frame that was dropped when recording.
        if packet and not packet.size and (stamp is not None or packet.dts is not None):
            continue
        seen_key = seen_key or bool(packet and packet.is_keyframe)
        frames, why = [], None
        try:
            frames = stream.decode(packet)  # None stands for the end: what the decoder still holds
        except errors as error:
            why = error_reason(error)
        if why and threads:  # it is about an earlier packet
            yield None, None, why
            return
        if why and seen_key:
            harmed = True
            if stamp is None:
                yield None, None, why
            else:
                lost.append((stamp, why))
        elif seen_key and stamp is not None and not packet.is_discard:
            owed.append((stamp, "what it builds on is broken"))
        for frame in frames:
            if frame.pts in given_up:  # a straggler, after a broken one has stood for it
                continue
            if frame.pts is not None:
                # PyAV says nothing of an error that comes after a frame in one go, as happens with threads.
                victims = owed if harmed or (threads and seen_frame) else []
                due = sorted(item for item in lost + victims if item[0] < frame.pts)
                lost = [item for item in lost if item[0] >= frame.pts]
                owed = [item for item in owed if item[0] > frame.pts]
                given_up.update(due_stamp for due_stamp, _ in due)
                yield from ((due_stamp, None, due_why) for due_stamp, due_why in due)
            harmed, seen_frame = harmed and not frame.key_frame, True
            yield frame.pts, (None if frame.is_corrupt else frame), ("it is damaged" if frame.is_corrupt else None)
    due = sorted(lost + (owed if harmed or threads else []))
    yield from ((due_stamp, None, due_why) for due_stamp, due_why in due)
    if broken_off is not None:
        yield None, None, broken_off


def _broken(name: str, time: float | None, label: str, why: str, remedy: str) -> Picture:
    damage = FrameError(f"{label} cannot be decoded at frame {name} ({why}); {remedy}.", why)
    return Picture(name, partial(_raise, damage), time, damage)


def _raise(error: Exception) -> np.ndarray:
    raise error


def _read_file(path: Path, threads: bool) -> Iterator[Picture]:
    """Yields a file's pictures, and a damaged one where it ends too early without the decoder's noticing."""
    with _opened_file(path) as (container, stream):
        count, last = 0, None
        with contextlib.closing(decode_pictures(container, stream, quoted(path), _REMEDY, threads)) as pictures:
            for last in pictures:
                yield last
                count += 1
        if last is None:
            raise _no_video(quoted(path), "it holds no frame", _ADVICE)
        ends_well = last.damage is not None or _reaches_end(container, stream, count, last)
        if not ends_well and _is_cut_short(path, container, stream):
            yield _broken(f"{count:05d}", None, quoted(path), "the file is cut off there", "get the whole file")


@contextlib.contextmanager
def _opened_file(path: Path) -> Iterator[tuple]:
    container, stream = open_video(av_path(path), quoted(path), _ADVICE, LOCAL)
    with container:
        yield container, stream


def _why(error: Exception) -> str:
    """Returns what is wrong in a few words; FFmpeg's for a time limit would puzzle."""
    silent = isinstance(error, import_av("reading a video").error.ExitError)
    return "nothing came within the time limit" if silent else error_reason(error)


def _no_video(label: str, why: str, advice: str) -> UserError:
    return UserError(f"{label} cannot be read as a video ({why}); {advice}.")


def _length(container, stream, rate: float | None) -> int | None:
    # A broken header may promise anything, but no more frames than the file has bytes.
    length = _promised_length(container, stream, rate)
    return length and min(length, max(1, container.size))


def _promised_length(container, stream, rate: float | None) -> int | None:
    if stream.frames > 0:
        return stream.frames
    if stream.duration is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / 1_000_000  # FFmpeg's AV_TIME_BASE
    else:
        return None
    return max(1, round(seconds * rate)) if rate else None


def _reaches_end(container, stream, count: int, last: Picture) -> bool:
    """Tells whether ``count`` pictures are all that the header promises."""
    if stream.frames:
        return count >= stream.frames
    if last.time is None or container.duration is None:
        return True
    # The last picture is shown for a while, too.
    return last.time + 2 / (rate_of(stream) or 1) > container.duration / 1_000_000


def _is_cut_short(path: Path, container, stream) -> bool:
    """Tells whether a file is shorter than its own header says; alone, too few pictures may have healthy reasons."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:  # gone meanwhile
        return True
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little") > size
    if "matroska" in container.format.name:
        # The segment's size: as many bytes as the first one has leading zero bits, and one; all ones is "unknown".
        start = head.find(b"\x18\x53\x80\x67") + 4
        width = 9 - head[start].bit_length() if start >= 4 and start < len(head) else 9
        known = int.from_bytes(head[start : start + width], "big") & ((1 << 7 * width) - 1) if width < 9 else 0
        return width < 9 and known + 1 != 1 << 7 * width and start + width + known > size
    # Where the index comes first (MP4), it still knows where the last picture was.
    index = getattr(stream, "index_entries", ())  # PyAV 17 has none
    return len(index) > 0 and index[-1].pos + index[-1].size > size


def _upright_rgb(frame, turns: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
