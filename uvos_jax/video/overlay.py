"""Looking at results: objects drawn onto the frames, and the frames written as a video."""

import contextlib
import math
import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.video.files import cannot_write
from uvos_jax.video.masks import PALETTE, VOID
from uvos_jax.video.video_file import av_path, container_errors, import_av

# The palette is dark (label 1 is half red), so it is stretched by a curve that keeps its colours apart.
_DISPLAY = np.round(255 * (PALETTE / PALETTE.max()) ** 0.4).clip(0, 255).astype(np.uint8)
# Below this many rows a contour of one pixel is enough to be seen.
_ROWS_OF_THIN_CONTOUR = 720
# As FFmpeg numbers them: BT.709 as matrix, as primaries and as transfer curve, and the range 16 to 235.
_BT709 = 1
_LIMITED_RANGE = 1


def draw_overlay(image: np.ndarray, labels: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Tints the objects of a frame, each in the brightened colour of its label, and outlines them.

    Args:
        image: uint8 [h, w, 3], RGB.
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, neither of which is drawn.
        alpha: Weight of the tint, 0 (outlines only) to 1.

    Returns:
        uint8 [h, w, 3], a new array.

    Raises:
        ValueError: The labels have another size than the image.
    """
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels {list(labels.shape)} do not fit an image {list(image.shape)}")
    objects = labels.astype(np.uint8)
    objects[objects == VOID] = 0
    colours = cv2.LUT(cv2.merge([objects] * 3), _DISPLAY[None])
    tinted = cv2.addWeighted(image, 1 - alpha, colours, alpha, 0)
    # A pixel lies on a contour if a neighbour has another label. The contour is drawn inside the object.
    width = 1 if image.shape[0] < _ROWS_OF_THIN_CONTOUR else 2
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    contour = cv2.compare(cv2.dilate(objects, window), cv2.erode(objects, window), cv2.CMP_NE)
    overlay = image.copy()
    cv2.copyTo(tinted, objects, overlay)
    cv2.copyTo(colours, cv2.bitwise_and(contour, objects), overlay)
    return overlay


class VideoWriter:
    """Writes frames as an H.264 MP4 file that browsers play; used as a context manager.

    The file appears under its name only after a clean exit; after an exception, or without any frame,
    nothing is left behind. Odd sizes are made even by repeating the last row or column.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        """Prepares a writer; the file is begun with the first frame.

        Args:
            path: The file to write, in an existing folder; an existing file is replaced.
            fps: Frames per second, above 0.

        Raises:
            ValueError: ``fps`` is not a positive number.
            UserError: PyAV is not installed.
        """
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be a positive number, not {fps}")
        import_av("writing a video")
        self.path = Path(path)
        self._partial = self.path.with_name(f".{self.path.stem}.partial.mp4")
        # 1001 lets the television rates, such as 30000/1001, be stated exactly.
        # A time lapse of a frame an hour is shown at a frame a second.
        self._rate = Fraction(max(fps, 1.0)).limit_denominator(1001)
        self._container = None
        self._stream = None
        self._shape: tuple[int, ...] = ()
        self._count = 0

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, image: np.ndarray) -> None:
        """Appends a frame.

        Args:
            image: uint8 [h, w, 3], RGB; all frames have the size of the first.

        Raises:
            ValueError: The image is of another dtype or shape.
            UserError: The operating system refused to write.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"a frame must be uint8 [h, w, 3], not {image.dtype} {list(image.shape)}")
        if self._container is not None and image.shape != self._shape:
            raise ValueError(f"frame {list(image.shape)} in a video of {list(self._shape)}")
        height, width = image.shape[:2]
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            if self._container is None:
                self._open(image.shape[0], image.shape[1])
                self._shape = (height, width, 3)
            self._encode(image)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
                self._container.close()
                os.replace(self._partial, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        finally:
            with contextlib.suppress(*container_errors()):
                self._container.close()
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def _open(self, height: int, width: int) -> None:
        av = import_av("writing a video")
        # The index goes to the front of the file, so that a browser can start before it has all of it.
        self._container = av.open(
            av_path(self._partial), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._stream = self._container.add_stream(
            "libx264", rate=self._rate, options={"crf": "20", "preset": "veryfast"}
        )
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        # Without these a player guesses the colour matrix from the size of the picture.
        codec = self._stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE

    def _encode(self, image: np.ndarray) -> None:
        av = import_av("writing a video")
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        frame.pts, frame.time_base = self._count, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self._count += 1
