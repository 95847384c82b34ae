"""One record of a converted dataset: a frame's image, labels and flow, read and checked."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from uvos_jax.data.listing import FrameFiles, VideoFiles, read_flow
from uvos_jax.errors import UserError
from uvos_jax.video.files import quoted, reason
from uvos_jax.video.image_files import read_image
from uvos_jax.video.masks import VOID

PREFIX = "uvos_"  # of a dataset's name in TFDS, which has some of the same names
VERSION = "1.0.0"  # of the format
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class Record(NamedTuple):
    """A frame as it is stored.

    Attributes:
        name: Its file's name without suffix.
        image: An image file's bytes, JPEG or PNG.
        labels: uint8 [h, w], 0 background, 1..254 objects, 255 void; all void without ground truth.
        labelled: Whether there is ground truth.
        flow: float32 [h, w, 2], (dx, dy) in pixels to the next frame, or None.
    """

    name: str
    image: bytes
    labels: np.ndarray
    labelled: bool
    flow: np.ndarray | None = None


def read_record(video: VideoFiles, frame: FrameFiles) -> Record:
    """Reads a frame.

    Args:
        video: That of the frame.
        frame: The frame.

    Raises:
        UserError: A file is broken, or labels or flow are not of the image's size.
    """
    image, size = read_image_bytes(frame.image)
    labels = np.full(size, VOID, np.uint8) if frame.labels is None else _of_size(size, "mask", video.read(frame.labels))
    flow = _of_size(size, "flow", read_flow(frame.flow)) if frame.flow else None
    return Record(frame.name, image, labels, frame.labels is not None, flow)


def check_record(video: VideoFiles, frame: FrameFiles) -> tuple[tuple[int, int] | None, list[str]]:
    """Reads a frame to find all that is wrong with its files; the image is decoded too.

    Returns:
        (height, width) of the image, None if it is broken, and the faults.
    """
    size, faults = None, []
    try:
        size = read_image_bytes(frame.image, decode=True)[1]
    except (UserError, OSError) as error:
        faults.append(str(error).rstrip("."))
    for what, source, read in (("mask", frame.labels, video.read), ("flow", frame.flow, read_flow)):
        if source is not None:
            try:
                _of_size(size, what, read(source))
            except (UserError, OSError) as error:
                faults.append(str(error).rstrip("."))
    return size, faults


def read_image_bytes(path: Path, decode: bool = False) -> tuple[bytes, tuple[int, int]]:
    """Reads an image file to be stored.

    JPEG and PNG of grey or colour are stored as they are, so that nothing is lost. Others, and images that their
    EXIF data turn, are decoded and become PNG, since not every reader treats them alike.

    Args:
        path: The file.
        decode: Decode the image in any case.

    Returns:
        The bytes, and (height, width).

    Raises:
        UserError: The file cannot be read, or, if decoded, is not whole.
    """
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            plain = image.format in ("JPEG", "MPO", "PNG") and image.mode in ("RGB", "L")
            if decode:
                image.load()
            if plain and image.getexif().get(_ORIENTATION, 1) == 1:
                return data, (image.height, image.width)
    except Exception as error:  # on broken files Pillow's decoders raise whatever they stumble over
        if isinstance(error, Image.UnidentifiedImageError):
            raise UserError(f"the image {quoted(path)} is not an image file.") from error
        raise UserError(f"the image {quoted(path)} cannot be read: {reason(error)}.") from error
    pixels = read_image(path)
    return encode_png(pixels), pixels.shape[:2]


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 [h, w] or [h, w, 3], RGB, as PNG."""
    return cv2.imencode(".png", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def read_records(video: VideoFiles) -> Iterator[Record]:
    """Reads the frames of a video one after the other.

    Raises:
        UserError: See ``read_record``; the frames differ in size.
    """
    size = None
    for frame in video.frames:
        try:
            record = read_record(video, frame)
        except UserError as error:
            raise UserError(f"{video.name} {frame.name}: {error}") from error
        size = size or record.labels.shape
        if record.labels.shape != size:
            raise UserError(f"{video.name} {frame.name} is {_size(record.labels.shape)}, but the first frame is"
                            f" {_size(size)}.")
        yield record


def synthetic_records(seed: int, length: int, size: tuple[int, int]) -> Iterator[Record]:
    """Makes the frames of a generated clip, see ``synthetic.make_clip``."""
    from uvos_jax.data.synthetic import make_clip

    clip = make_clip(seed, length, size)
    for t in range(length):
        yield Record(f"{t:05d}", encode_png(clip.frames[t]), clip.labels[t], True, clip.flow[t])


def _of_size(size, what, array):
    if size and array.shape[:2] != size:
        raise UserError(f"the {what} is {_size(array.shape)}, but the image {_size(size)}")
    return array


def _size(shape):
    return f"{shape[0]}x{shape[1]}"
