"""Frames written as a video: H.264 for looking at it, ProRes and VP9 where transparency is to be kept."""

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
    """How one kind of file is made: FFmpeg's names for encoder, pixels and options; channels of the frames it takes."""

    encoder: str
    pixels: str
    channels: int
    options: dict[str, str]
    container_options: dict[str, str]
    # What the container counts time in; None leaves the choice to the rate of the video.
    ticks: int | None = None


# Equal frames have been seen to become other bytes by x264's AVX-512 code, not by that for AVX2.
_AVX_512F = 13  # as OpenCV numbers what processors can do
_X264_PARAMS = "sync-lookahead=0" + (":asm=avx2" if cv2.checkHardwareSupport(_AVX_512F) else "")
_FORMATS = {
    # The index goes to the front of the file, so that a browser can start before it has all of it.
    # It looks ahead a few frames only, each of which would take memory.
    ".mp4": _Format("libx264", "yuv420p", 3,
                    {"crf": "20", "preset": "veryfast", "rc-lookahead": "4", "x264-params": _X264_PARAMS},
                    {"movflags": "+faststart"}),
    ".mov": _Format("prores_ks", "yuva444p10le", 4, {"profile": "4444", "vendor": "apl0"}, {}),
    # Opacity cannot be coded with frames that are never shown, and frames that wait would only take memory.
    ".webm": _Format("libvpx-vp9", "yuva420p", 4,
                     {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "5", "auto-alt-ref": "0",
                      "lag-in-frames": "0", "tile-columns": "2"}, {}, 1000),
}
# Encoders share frames out among threads, and how they do it shows in the result: a number that does not depend on
# the machine gives the same bytes on all of them.
_THREADS = 2
# As FFmpeg numbers them: BT.709 as matrix, as primaries and as transfer curve, and the range 16 to 235.
_BT709 = 1
_LIMITED_RANGE = 1
_FINEST_TICKS = 90_000
# Time stamps that go back or ahead by more (in seconds) are those of a stream that began anew.
_BACK, _AHEAD = 1, 3600


class VideoWriter:
    """Writes frames as a video file; used as a context manager.

    By the suffix it is ``.mp4``, H.264 that browsers play, or with transparency for editors ``.mov``, ProRes 4444, or
    ``.webm``, VP9. Equal frames give equal bytes. The file appears under its name only after a clean exit; after an
    exception, or without any frame, nothing is left behind. H.264 takes even sizes only: there the last row or column
    is repeated. What the encoder keeps in memory is in proportion to the size of a frame, not to their number; measured
    at 3840x2160: 0.6 GB for H.264, 0.7 GB for ProRes, 1.3 GB for VP9.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        """Prepares a writer; the file is begun with the first frame.

        Args:
            path: The file to write, in an existing folder; an existing file is replaced.
            fps: Frames per second, above 0.

        Raises:
            ValueError: ``fps`` is not a positive number, or the suffix is none of the three.
            UserError: PyAV or its encoder for such files is not installed.
        """
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be a positive number, not {fps}")
        self.path = Path(path)
        if self.path.suffix not in _FORMATS:
            raise ValueError(f"a video ends in {', '.join(_FORMATS)}, not {self.path.suffix!r}")
        self._format = _FORMATS[self.path.suffix]
        _check_encoder(self._format.encoder)
        self._target = PartialFile(path)
        # 1001 lets the television rates, such as 30000/1001, be stated exactly.
        # A time lapse of a frame an hour is shown at a frame a second.
        self._rate = Fraction(max(fps, 1.0)).limit_denominator(1001)
        # A multiple of the rate, for frames at that rate to be at exact times, and fine enough for all others.
        numerator = self._rate.numerator
        self._ticks = self._format.ticks or numerator * math.ceil(_FINEST_TICKS / numerator)
        self._container = None
        self._stream = None
        self._shape: tuple[int, ...] = ()
        # Of the last frame: its tick, its seconds since the first one, and those minus its time stamp.
        self._tick, self._seconds, self._shift = -1, Fraction(0), None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()

    def write(self, image: np.ndarray, time: float | None = None) -> None:
        """Appends a frame.

        Args:
            image: uint8 [h, w, 3], RGB; for ``.mov`` and ``.webm`` [h, w, 4] with opacity. All frames have the size
                of the first.
            time: Its time stamp in seconds from any moment on, to be kept; without one it follows the frame before
                at the rate of the video.

        Raises:
            ValueError: The image is of another dtype or shape.
            UserError: The operating system refused to write, or the encoder does not take frames of that size.
        """
        channels = self._format.channels
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
            raise ValueError(f"a frame must be uint8 [h, w, {channels}], not {image.dtype} {list(image.shape)}")
        if self._container is not None and image.shape != self._shape:
            raise ValueError(f"frame {list(image.shape)} in a video of {list(self._shape)}")
        with self._told():
            if self._container is None:
                self._shape = image.shape
                self._open()
            self._encode(image, self._tick_of(time))

    def finish(self) -> bool:
        """Completes the file and gives it its name, if there is any frame; tells whether that is so.

        Raises:
            UserError: The operating system refused; nothing is left behind.
        """
        if self._container is None:
            return False
        try:
            with self._told():
                self._container.mux(self._stream.encode(None))
                self._container.close()
                self._target.commit()
        except BaseException:
            self.discard()
            raise
        return True

    def discard(self) -> None:
        """Drops what has been written."""
        if self._container is not None:
            with contextlib.suppress(*container_errors()):
                self._container.close()
            self._target.discard()

    @contextlib.contextmanager
    def _told(self):
        """Turns what the system or the encoder raises into one sentence."""
        av = import_av("writing a video")
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error) from error
        except av.FFmpegError as error:
            height, width = self._shape[:2]
            raise UserError(f"cannot write {quoted(self.path)}: the encoder {self._format.encoder} failed on frames of "
                            f"{width}x{height} ({error_reason(error)}); do without that file, or crop the frames.") from error

    def _open(self) -> None:
        av = import_av("writing a video")
        height, width, channels = self._shape
        # Bit-exact: without random numbers or versions of programs in the file.
        self._container = av.open(av_path(self._target.partial), "w", format=self.path.suffix[1:],
                                  options={"fflags": "+bitexact"} | self._format.container_options)
        self._stream = stream = self._container.add_stream(self._format.encoder, rate=self._rate,
                                                           options=dict(self._format.options))
        stream.width, stream.height = _even(width, channels), _even(height, channels)
        stream.pix_fmt = self._format.pixels
        codec = stream.codec_context
        codec.time_base = stream.time_base = Fraction(1, self._ticks)
        codec.thread_count, codec.thread_type = _THREADS, "AUTO"
        # Without these a player guesses the color matrix from the size of the picture.
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE
        if self.path.suffix == ".webm":
            stream.metadata["alpha_mode"] = "1"

    def _encode(self, image: np.ndarray, tick: int) -> None:
        av = import_av("writing a video")
        height, width, channels = image.shape
        more_rows, more_columns = _even(height, channels) - height, _even(width, channels) - width
        if more_rows or more_columns:
            image = np.pad(image, ((0, more_rows), (0, more_columns), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(image, format="rgb24" if channels == 3 else "rgba").reformat(
            format=self._format.pixels, dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        frame.pts, frame.time_base = tick, Fraction(1, self._ticks)
        self._container.mux(self._stream.encode(frame))

    def _tick_of(self, time: float | None) -> int:
        """Returns the next frame's time in ticks: that of its time stamp, later than the frame before in any case."""
        following = self._seconds + 1 / self._rate if self._tick >= 0 else Fraction(0)
        if time is None:
            self._seconds = following
        else:
            if self._shift is None or not -_BACK <= time + self._shift - self._seconds <= _AHEAD:
                self._shift = float(following) - time
            self._seconds = time + self._shift
        self._tick = max(round(self._seconds * self._ticks), self._tick + 1)
        return self._tick


def _even(side: int, channels: int) -> int:
    """Returns the coded length of a side: the formats with opacity take any, H.264 only even ones."""
    return side + side % 2 if channels == 3 else side


def _check_encoder(name: str) -> None:
    """Raises a UserError if PyAV is missing, or was built without this encoder."""
    av = import_av("writing a video")
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise UserError(f"This PyAV has no encoder {name}; install the one from PyPI with 'pip install av'.") from error
