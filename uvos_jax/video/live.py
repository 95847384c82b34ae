"""What comes while it happens, or can be read once: cameras, network streams, the standard input."""

import contextlib
import math
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import count

import cv2
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.video.pictures import Picture
from uvos_jax.video.source import DEFAULT_FPS, Source
from uvos_jax.video.video_file import LOCAL, decode_pictures, open_video, rate_of

# Seconds after which a silent server counts as dead, when connecting and later while reading.
TIME_LIMIT = 10.0
_URL = re.compile(r"(rtsps?|rtmps?|rtp|srt|udp|tcp|https?)://.", re.IGNORECASE)
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

    Raises:
        UserError: The standard input is a terminal, closed or no video.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UserError("nothing is piped in; '-' reads a video from stdin: uvos segment - < clip.mkv")
    advice = "give a format that needs no seeking, such as mkv, webm or ts, or name the file"
    return _once("stdin", "stdin", "what comes in on stdin", *open_video(sys.stdin.buffer, "stdin", advice, LOCAL))


def _once(kind: str, name: str, label: str, container, stream) -> Source:
    def pictures() -> Iterator[Picture]:
        with container, contextlib.closing(decode_pictures(container, stream, label, "send it anew")) as decoded:
            yield from decoded

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
