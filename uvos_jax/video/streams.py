"""Sources that are live or can be read once: cameras, network streams, standard input."""

import contextlib
import math
import os
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
from uvos_jax.video.frames import DEFAULT_FPS, LazyFrame, Source
from uvos_jax.video.video_reader import HEAD, LOCAL, decode_frames, decode_to_end, frame_rate, open_video

# Seconds without data after which a server counts as dead, while connecting and while reading.
TIME_LIMIT = 10.0
_URL = re.compile(r"(rtsps?|rtmps?|rtp|srt|udp|tcp|https?)://.", re.IGNORECASE)
# Types of the first box of an MP4 or QuickTime file, and how much of the file is read to find its index.
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_LOOK_AHEAD = 1 << 20  # bytes
SCHEMES = "rtsp://, rtmp://, rtp://, srt://, udp://, tcp://, http:// and https://"


def is_stream(text: str) -> bool:
    """Returns whether ``text`` is the address of a network stream."""
    return bool(_URL.match(text))


def public_url(text: str) -> str:
    """Returns an address without user, password and query, for messages and files; other text unchanged."""
    if not is_stream(text):
        return text
    scheme, rest = text.split("://", 1)
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if "@" not in host and not re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host):
        host, slash, path = rest, "", ""  # a password that contains a slash
    if "@" in host:
        host, slash, path = (host.rpartition("@")[2] + slash + path).partition("/")
    return f"{scheme}://{host}{slash}{path}"


def open_camera(index: int) -> Source:
    """Opens a camera.

    Args:
        index: The camera's index in OpenCV.

    Returns:
        A source whose ``start`` yields lazy frames.

    Raises:
        UserError: The camera cannot be opened.
    """
    capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        capture.release()
        raise UserError(
            f"There is no file '{index}', and camera {index} cannot be opened. "
            "Check that it is connected and that no other program uses it."
        )
    fps = capture.get(cv2.CAP_PROP_FPS)
    return Source(
        name=f"camera{index}",
        kind="camera",
        start=partial(_camera_frames, capture, index),
        fps=fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS,
        live=True,
        rereadable=False,
    )


def open_stream(url: str) -> Source:
    """Opens a network stream.

    Args:
        url: The address.

    Returns:
        A source whose ``start`` yields lazy frames.

    Raises:
        UserError: The stream cannot be opened within ``TIME_LIMIT`` seconds, or is not a video.
    """
    address = public_url(url)
    label = f"the stream {address!r}"
    # Cameras default to UDP, which loses frames.
    options = {"rtsp_flags": "prefer_tcp"} if url.lower().startswith("rtsp") else {}
    opened = open_video(
        url, label, "Check the address and that the server is sending.", options, timeout=(TIME_LIMIT, TIME_LIMIT)
    )
    return _single_pass_source("stream", _stream_name(address), label, *opened)


def open_stdin() -> Source:
    """Opens a video on standard input.

    An MP4 or QuickTime file whose index follows its frames is first copied to a temporary file.

    Returns:
        A source whose ``start`` yields lazy frames.

    Raises:
        UserError: Standard input is a terminal, closed or not a video, or there is no room for the temporary file.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UserError("Standard input has no video. Pipe one in, as in 'uvos segment - < clip.mkv'.")
    with contextlib.ExitStack() as opened:
        file = sys.stdin.buffer
        if not file.seekable():
            head, index_last = _read_head(file)
            file = opened.enter_context(_copy(head, file)) if index_last else _Pipe(head, file)
        measure = file.measure if isinstance(file, _Pipe) else partial(_measure_seekable, file)
        video = open_video(file, "stdin", "Check that it is a complete video, or give the file.", LOCAL)
        return _single_pass_source("stdin", "stdin", "the video on stdin", *video, opened.pop_all(), measure)


class _Pipe:
    """A pipe whose first bytes have already been read."""

    def __init__(self, head: bytes, rest: BinaryIO):
        self._head, self._rest = head, rest
        self._start, self._size = b"", 0  # of what has been read

    def read(self, count: int) -> bytes:
        piece, self._head = self._head[:count], self._head[count:]
        piece = piece or self._rest.read(count)
        self._size += len(piece)
        self._start += piece[: HEAD - len(self._start)]
        return piece

    def measure(self) -> tuple[bytes, int]:
        """Reads the rest; returns the first bytes and the total number, see ``decode_to_end``."""
        while self.read(_LOOK_AHEAD):
            pass
        return self._start, self._size


def _measure_seekable(file: BinaryIO) -> tuple[bytes, int]:
    file.seek(0)
    return file.read(HEAD), file.seek(0, os.SEEK_END)


def _read_head(file: BinaryIO) -> tuple[bytes, bool]:
    """Returns the bytes read, and whether they begin an MP4 or QuickTime file whose index follows its frames."""
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
    """Copies a pipe to a temporary file, which has no name and so disappears with the process that has it open."""
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
            "The video on stdin has its index at the end, so it must be copied before reading, and the copy cannot be "
            f"written to {tempfile.gettempdir()!r}: {error_reason(error)}. Give the file instead, or set TMPDIR to a "
            "folder with free space."
        ) from error


def _single_pass_source(kind: str, name: str, label: str, container, stream, file=None, measure=None) -> Source:
    """Returns the source of an opened video that can be read once; ``file`` is closed after the pass.

    With ``measure``, see ``decode_to_end``, a truncated video ends with a broken frame.
    """

    def frames() -> Iterator[LazyFrame]:
        video = (container, stream, label, "Send it again.")
        decoded = decode_to_end(*video, measure) if measure else decode_frames(*video)
        with file or contextlib.nullcontext(), container, contextlib.closing(decoded):
            for number, frame in enumerate(decoded):
                # FFmpeg went to the index first and cannot seek back, so that reading fails immediately.
                failed_at_start = not number and frame.error and frame.time is None
                if failed_at_start and kind == "stream" and "mp4" in container.format.name:
                    raise UserError(
                        f"Cannot decode any frame of {label}: {frame.error.reason}. MP4 and QuickTime files may need a "
                        "server that supports seeking. Download the file and give its path."
                    )
                yield frame

    return Source(
        name=name,
        kind=kind,
        start=frames,
        fps=frame_rate(stream) or DEFAULT_FPS,
        live=kind == "stream",
        rereadable=False,
    )


def _camera_frames(capture, index: int) -> Iterator[LazyFrame]:
    """Yields frames until the camera stops, timed by their arrival."""
    first = None
    try:
        for number in count():
            success, image = capture.read()
            if not success:
                break
            now = time.monotonic()
            first = now if first is None else first
            yield LazyFrame(f"{number:05d}", partial(_rgb, image), now - first)
    finally:
        capture.release()
    if first is None:
        raise UserError(f"Camera {index} returns no frames. Check that no other program uses it.")


def _rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _stream_name(address: str) -> str:
    """Returns a name for files: the last part of the path without its suffix, or the host if there is no path."""
    host, _, path = address.split("://", 1)[1].partition("/")
    last = path.rstrip("/").rpartition("/")[2]
    name = last.rpartition(".")[0] or last or host
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "stream"
