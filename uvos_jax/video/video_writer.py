"""Writing frames as a video: H.264 for viewing, ProRes and VP9 with transparency."""

import contextlib
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.atomic_io import PartialFile
from uvos_jax.errors import UserError, error_reason, quoted, write_error
from uvos_jax.video.video_reader import av_path, container_errors, import_av


@dataclass(frozen=True)
class _Format:
    """FFmpeg's names of encoder, pixel format and options for a file suffix, and the channels of its frames."""

    encoder: str
    pixels: str
    channels: int
    options: dict[str, str]
    container_options: dict[str, str]
    # Ticks per second of the container; None chooses by the frame rate.
    ticks: int | None = None


# x264's AVX-512 code has produced different bytes from equal frames; its AVX2 code has not.
_AVX_512F = 13  # OpenCV's number of this CPU feature
_X264_PARAMS = "sync-lookahead=0" + (":asm=avx2" if cv2.checkHardwareSupport(_AVX_512F) else "")
_FORMATS = {
    # Index at the front, so that a browser can start before the file is loaded. Short lookahead to save memory.
    ".mp4": _Format("libx264", "yuv420p", 3,
                    {"crf": "20", "preset": "veryfast", "rc-lookahead": "4", "x264-params": _X264_PARAMS},
                    {"movflags": "+faststart"}),
    ".mov": _Format("prores_ks", "yuva444p10le", 4, {"profile": "4444", "vendor": "apl0"}, {}),
    # The alpha channel does not support alternate reference frames; a lag would only cost memory.
    ".webm": _Format("libvpx-vp9", "yuva420p", 4,
                     {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "5", "auto-alt-ref": "0",
                      "lag-in-frames": "0", "tile-columns": "2"}, {}, 1000),
}
# The output depends on the number of encoder threads; a fixed number gives the same bytes on every machine.
_THREADS = 2
# FFmpeg's numbers for BT.709 (matrix, primaries and transfer curve) and for the range 16 to 235.
_BT709 = 1
_LIMITED_RANGE = 1
_MIN_TICKS = 90_000  # per second
# Time stamps that jump back or ahead by more than this come from a stream that restarted.
_MAX_JUMP_BACK, _MAX_JUMP_AHEAD = 1, 3600  # seconds


class VideoWriter:
    """Writes frames as a video file; a context manager.

    The suffix selects the format: ``.mp4`` is H.264 for browsers; with transparency, ``.mov`` is ProRes 4444 for video
    editors and ``.webm`` is VP9. Equal frames give equal bytes. The file appears under its name only after a clean
    exit; after an exception, or without frames, no file is left. H.264 needs even sizes, so the last row or column is
    repeated. Memory is proportional to the size of a frame, not to the number of frames; measured at 3840x2160: 0.6 GB
    for H.264, 0.7 GB for ProRes, 1.3 GB for VP9.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        """Prepares a writer; the first frame creates the file.

        Args:
            path: The file to write, in an existing folder; an existing file is replaced.
            fps: Frames per second, above 0.

        Raises:
            ValueError: ``fps`` is not a positive number, or the suffix is not one of the three.
            UserError: PyAV or its encoder for this format is not installed.
        """
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be a positive number, not {fps}")
        self.path = Path(path)
        if self.path.suffix not in _FORMATS:
            raise ValueError(f"the suffix of a video must be {', '.join(_FORMATS)}, not {self.path.suffix!r}")
        self._format = _FORMATS[self.path.suffix]
        _check_encoder(self._format.encoder)
        self._target = PartialFile(path)
        # A denominator up to 1001 states television rates such as 30000/1001 exactly.
        # Slower rates, such as a time lapse of one frame per hour, are played at one frame per second.
        self._rate = Fraction(max(fps, 1.0)).limit_denominator(1001)
        # A multiple of the frame rate, so that frames at this rate have exact times.
        numerator = self._rate.numerator
        self._ticks = self._format.ticks or numerator * math.ceil(_MIN_TICKS / numerator)
        self._container = None
        self._stream = None
        self._shape: tuple[int, ...] = ()
        # Of the last frame: its tick, its seconds since the first frame, and those minus its time stamp.
        self._tick, self._seconds, self._shift = -1, Fraction(0), None

    def __enter__(self) -> "VideoWriter":
        """Returns the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finishes the file, or discards it after an exception."""
        if kind is None:
            self.finish()
        else:
            self.discard()

    def write(self, image: np.ndarray, time: float | None = None) -> None:
        """Appends a frame.

        Args:
            image: uint8 [h, w, 3], RGB; for ``.mov`` and ``.webm`` [h, w, 4], RGBA. All frames have the same size.
            time: Time stamp in seconds with any origin. None places the frame after the previous one at the frame rate
                of the video.

        Raises:
            ValueError: The image has another dtype or shape.
            UserError: The file cannot be written, or the encoder does not support the size of the frames.
        """
        channels = self._format.channels
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
            raise ValueError(f"a frame must be uint8 [h, w, {channels}], not {image.dtype} {list(image.shape)}")
        if self._container is not None and image.shape != self._shape:
            raise ValueError(f"frame {list(image.shape)} in a video of {list(self._shape)}")
        with self._user_errors():
            if self._container is None:
                self._shape = image.shape
                self._open()
            self._encode(image, self._next_tick(time))

    def finish(self) -> bool:
        """Completes the file and gives it its name.

        Returns:
            False if there was no frame; then no file exists.

        Raises:
            UserError: The file cannot be written; no file is left.
        """
        if self._container is None:
            return False
        try:
            with self._user_errors():
                self._container.mux(self._stream.encode(None))
                self._container.close()
                self._target.commit()
        except BaseException:
            self.discard()
            raise
        return True

    def discard(self) -> None:
        """Removes what has been written."""
        if self._container is not None:
            with contextlib.suppress(*container_errors()):
                self._container.close()
            self._target.discard()

    @contextlib.contextmanager
    def _user_errors(self):
        """Converts errors of the operating system and the encoder into ``UserError``."""
        av = import_av("Writing a video")
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error) from error
        except av.FFmpegError as error:
            height, width = self._shape[:2]
            raise UserError(f"Cannot write {quoted(self.path)}: the encoder {self._format.encoder} failed on frames of "
                            f"{width}x{height} ({error_reason(error)}). Omit this file or crop the frames.") from error

    def _open(self) -> None:
        av = import_av("Writing a video")
        height, width, channels = self._shape
        # Bit-exact: the file has no random ids and no program versions.
        self._container = av.open(av_path(self._target.partial), "w", format=self.path.suffix[1:],
                                  options={"fflags": "+bitexact"} | self._format.container_options)
        self._stream = stream = self._container.add_stream(self._format.encoder, rate=self._rate,
                                                           options=dict(self._format.options))
        stream.width, stream.height = _even(width, channels), _even(height, channels)
        stream.pix_fmt = self._format.pixels
        codec = stream.codec_context
        codec.time_base = stream.time_base = Fraction(1, self._ticks)
        codec.thread_count, codec.thread_type = _THREADS, "AUTO"
        # Without these, a player guesses the color matrix from the size of the frames.
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE
        if self.path.suffix == ".webm":
            stream.metadata["alpha_mode"] = "1"

    def _encode(self, image: np.ndarray, tick: int) -> None:
        av = import_av("Writing a video")
        height, width, channels = image.shape
        extra_rows, extra_columns = _even(height, channels) - height, _even(width, channels) - width
        if extra_rows or extra_columns:
            image = np.pad(image, ((0, extra_rows), (0, extra_columns), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(image, format="rgb24" if channels == 3 else "rgba").reformat(
            format=self._format.pixels, dst_colorspace="ITU709", dst_color_range="MPEG",
            threads=1,  # swscale's slices race from rgba to yuva444p10le: blocks differ from run to run
        )
        frame.pts, frame.time_base = tick, Fraction(1, self._ticks)
        self._container.mux(self._stream.encode(frame))

    def _next_tick(self, time: float | None) -> int:
        """Returns the time of the next frame in ticks: its time stamp, but always later than the previous frame."""
        following = self._seconds + 1 / self._rate if self._tick >= 0 else Fraction(0)
        if time is None:
            self._seconds = following
        else:
            if self._shift is None or not -_MAX_JUMP_BACK <= time + self._shift - self._seconds <= _MAX_JUMP_AHEAD:
                self._shift = float(following) - time
            self._seconds = time + self._shift
        self._tick = max(round(self._seconds * self._ticks), self._tick + 1)
        return self._tick


def _even(side: int, channels: int) -> int:
    """Returns the coded length of a side, which H.264 requires to be even."""
    return side + side % 2 if channels == 3 else side


def _check_encoder(name: str) -> None:
    """Raises ``UserError`` if PyAV is missing or was built without this encoder."""
    av = import_av("Writing a video")
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise UserError(f"This PyAV has no encoder {name}. Install PyAV from PyPI: 'pip install av'.") from error
