"""What comes while it happens, or can be read once: cameras, network streams, the standard input."""

import contextlib
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import BinaryIO

import cv2
import numpy as np

from uvos_jax.errors import UserError, error_reason
from uvos_jax.video.frames import DEFAULT_FPS, Picture, Source
from uvos_jax.video.video_reader import LOCAL, decode_pictures, open_video, rate_of

# Seconds after which a silent server counts as dead, when connecting and later while reading.
TIME_LIMIT = 10.0
_URL = re.compile(r"(rtsps?|rtmps?|rtp|srt|udp|tcp|https?)://.", re.IGNORECASE)
# What an MP4 or QuickTime file may begin with, and how much of it is read to find out where its index is.
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_LOOK_AHEAD = 1 << 20  # bytes
SCHEMES = "rtsp://, rtmp://, rtp://, srt://, udp://, tcp://, http:// and https://"


def is_stream(text: str) -> bool:
    """Tells whether ``text`` is the address of a network stream."""
    return bool(_URL.match(text))


def public_url(text: str) -> str:
    """Returns an address without user, password and query, fit for messages and files; other text as it is."""
    if not is_stream(text):
        return text
    scheme, rest = text.split("://", 1)
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if "@" not in host and not re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host):
        host, slash, path = rest, "", ""  # a password with a slash in it
    if "@" in host:
        host, slash, path = (host.rpartition("@")[2] + slash + path).partition("/")
    return f"{scheme}://{host}{slash}{path}"


def open_camera(index: int) -> Source:
    """Opens a camera; the source's ``start`` gives pictures.

    Args:
        index: Its number, as OpenCV counts.

    Raises:
        UserError: It cannot be opened.
    """
    capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        capture.release()
        raise UserError(
            f"there is no file '{index}', and camera {index} cannot be opened; "
            "check that it is plugged in and that no other program uses it."
        )
    fps = capture.get(cv2.CAP_PROP_FPS)
    return Source(
        name=f"camera{index}",
        kind="camera",
        start=partial(_camera_pictures, capture, index),
        fps=fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS,
        live=True,
        rereadable=False,
    )


def open_stream(url: str) -> Source:
    """Opens a network stream; the source's ``start`` gives pictures.

    Args:
        url: Its address.

    Raises:
        UserError: It cannot be opened within ``TIME_LIMIT`` seconds, or is no video.
    """
    shown = public_url(url)
    label = f"the stream {shown!r}"
    # Pictures sent by UDP, which is what cameras choose if not asked otherwise, get lost on the way.
    options = {"rtsp_flags": "prefer_tcp"} if url.lower().startswith("rtsp") else {}
    opened = open_video(
        url, label, "check the address and that it is sending", options, timeout=(TIME_LIMIT, TIME_LIMIT)
    )
    return _once("stream", _stream_name(shown), label, *opened)


def open_stdin() -> Source:
    """Opens the video that is piped in; the source's ``start`` gives pictures.

    An MP4 or QuickTime file whose index comes behind its pictures is first written to a temporary file.

    Raises:
        UserError: The standard input is a terminal, closed or no video, or there is no room for the temporary file.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UserError("nothing is piped in; '-' reads a video from stdin: uvos segment - < clip.mkv")
    with contextlib.ExitStack() as opened:
        file = sys.stdin.buffer
        if not file.seekable():
            head, index_last = _beginning(file)
            file = opened.enter_context(_copy(head, file)) if index_last else _Pipe(head, file)
        video = open_video(file, "stdin", "check that it is a whole video, or name the file", LOCAL)
        return _once("stdin", "stdin", "what comes in on stdin", *video, file=opened.pop_all())


class _Pipe:
    """What comes in on a pipe, of which the beginning has been read already."""

    def __init__(self, head: bytes, rest: BinaryIO):
        self._head, self._rest = head, rest

    def read(self, count: int) -> bytes:
        piece, self._head = self._head[:count], self._head[count:]
        return piece or self._rest.read(count)


def _beginning(file: BinaryIO) -> tuple[bytes, bool]:
    """Returns what was read, and whether it begins an MP4 or QuickTime file with its index behind the pictures."""
    head = file.read(8)
    if head[4:] not in _BOXES:
        return head, False
    box = head
    while box[4:8] not in (b"moov", b"mdat"):
        size = int.from_bytes(box[:4], "big")
        if not 8 <= size <= _LOOK_AHEAD - len(head):
            return head, True
        head += file.read(size - 8)
        box = file.read(8)
        head += box
        if len(box) < 8:
            return head, True
    return head, box[4:8] == b"mdat"


def _copy(head: bytes, rest: BinaryIO) -> BinaryIO:
    """Returns a temporary file, which has no name and so is gone as soon as nobody has it open, however that comes."""
    try:
        with contextlib.ExitStack() as failing:
            file = failing.enter_context(tempfile.TemporaryFile())
            file.write(head)
            shutil.copyfileobj(rest, file, 1 << 20)
            file.seek(0)
            failing.pop_all()
            return file
    except OSError as error:
        raise UserError(
            "what comes in on stdin must be copied before it can be read, since its index comes last, and the copy "
            f"cannot be written to {tempfile.gettempdir()!r} ({error_reason(error)}); name the file instead, or set TMPDIR "
            "to a folder with room."
        ) from error


def _once(kind: str, name: str, label: str, container, stream, file=None) -> Source:
    """Returns the source of an opened video; ``file`` is closed behind it."""

    def pictures() -> Iterator[Picture]:
        decoded = decode_pictures(container, stream, label, "send it anew")
        with file or contextlib.nullcontext(), container, contextlib.closing(decoded):
            for number, picture in enumerate(decoded):
                # Reading has failed at once, as it does where FFmpeg went to the index first and cannot come back.
                at_once = not number and picture.damage and picture.time is None
                if at_once and kind == "stream" and "mp4" in container.format.name:
                    raise UserError(
                        f"{label} gives no picture ({picture.damage.why}); MP4 and QuickTime files may need a server "
                        "that can send from any place: download the file and give its name."
                    )
                yield picture

    return Source(
        name=name,
        kind=kind,
        start=pictures,
        fps=rate_of(stream) or DEFAULT_FPS,
        live=kind == "stream",
        rereadable=False,
    )


def _camera_pictures(capture, index: int) -> Iterator[Picture]:
    """Yields pictures until the camera gives none any more; their time is when they came."""
    began = None
    try:
        for number in count():
            there, image = capture.read()
            if not there:
                break
            now = time.monotonic()
            began = now if began is None else began
            yield Picture(f"{number:05d}", partial(_rgb, image), now - began)
    finally:
        capture.release()
    if began is None:
        raise UserError(f"camera {index} gives no picture; check that no other program uses it.")


def _rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _stream_name(shown: str) -> str:
    """Returns a name for files: the last part of the path without its suffix, or else the host."""
    host, _, path = shown.split("://", 1)[1].partition("/")
    last = path.rstrip("/").rpartition("/")[2]
    name = last.rpartition(".")[0] or last or host
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "stream"
