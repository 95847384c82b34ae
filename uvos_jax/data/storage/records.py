"""Records of a converted dataset: reads and checks the image, labels and flow of one frame."""

import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from uvos_jax.data.datasets.index import FrameFiles, VideoFiles
from uvos_jax.data.storage.store import decode_image
from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.labels import VOID
from uvos_jax.video.flow_io import read_flow
from uvos_jax.video.image_io import read_image

PREFIX = "uvos_"  # of dataset names; TFDS itself has datasets of some of these names
VERSION = "1.0.0"  # of the storage format
FLOW_TYPE = np.float16  # precise to half a pixel at 1000, as good as flow is, and half the bytes to read
_MAX_FLOW = 60_000  # pixels; the largest float16 is 65504
_FLOW_STEPS = 32  # computed flow is rounded to 1/32 pixel, which halves the compressed bytes again
_PAIRS = 8  # frame pairs per call of the flow method
_ORIENTATION = 0x0112  # EXIF tag; 1 means upright


class Record(NamedTuple):
    """A frame as it is stored.

    Attributes:
        name: File name without suffix.
        image: Bytes of a JPEG or PNG file.
        labels: uint8 [h, w], 0 background, 1..254 objects, 255 void; all void without ground truth.
        labeled: Whether there is ground truth.
        flow: ``FLOW_TYPE`` [h', w', 2], (dx, dy) in pixels of the frame to the next frame, or None. Computed flow has a
            lower resolution than the frame.
    """

    name: str
    image: bytes
    labels: np.ndarray
    labeled: bool
    flow: np.ndarray | None = None


class FlowMethod(Protocol):
    """Computes optical flow.

    Attributes:
        identity: Name of the method with its version and settings.
    """

    identity: str

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Computes flow from ``first`` to ``second``.

        Args:
            first: uint8 [n, h, w, 3], RGB.
            second: The same shape.

        Returns:
            float32 [n, h', w', 2], (dx, dy) in pixels of the h' x w' grid.
        """


def read_record(video: VideoFiles, frame: FrameFiles) -> Record:
    """Reads a frame.

    Args:
        video: Video of the frame.
        frame: The frame.

    Raises:
        UserError: A file is broken, or labels or flow differ in size from the image.
    """
    image, size = read_image_bytes(frame.image)
    labels = np.full(size, VOID, np.uint8) if frame.labels is None else _of_size(size, "mask", video.read(frame.labels))
    flow = _of_size(size, "flow", read_flow(frame.flow)) if frame.flow else None
    return Record(frame.name, image, labels, frame.labels is not None, None if flow is None else _to_float16(flow))


def check_record(video: VideoFiles, frame: FrameFiles) -> tuple[tuple[int, int] | None, list[str]]:
    """Reads and decodes a frame to find all faults of its files.

    Returns:
        (height, width) of the image (None if it is broken), and the faults.
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
    """Reads an image file for storage.

    Gray and color JPEG and PNG files are stored unchanged, so nothing is lost. Other formats, and images that EXIF data
    rotate, are decoded and stored as PNG, since readers treat them differently.

    Args:
        path: The file.
        decode: Always decode the image, to check it.

    Returns:
        The bytes, and (height, width).

    Raises:
        UserError: The file cannot be read, or, if decoded, is truncated.
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
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions on broken files
        if isinstance(error, Image.UnidentifiedImageError):
            raise UserError(f"the image {quoted(path)} is not an image file.") from error
        raise UserError(f"the image {quoted(path)} cannot be read: {error_reason(error)}.") from error
    pixels = read_image(path)
    return encode_png(pixels), pixels.shape[:2]


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 [h, w] or [h, w, 3], RGB, as PNG."""
    return cv2.imencode(".png", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def read_records(video: VideoFiles) -> Iterator[Record]:
    """Reads the frames of a video in order.

    Raises:
        UserError: See ``read_record``; or the frames differ in size.
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
    """Generates the frames of a synthetic clip, see ``make_clip``."""
    from uvos_jax.data.synthetic.clip import make_clip

    clip = make_clip(seed, length, size)
    for t in range(length):
        yield Record(f"{t:05d}", encode_png(clip.frames[t]), clip.labels[t], True, _to_float16(clip.flow[t]))


def add_flow(records: Iterable[Record], method: FlowMethod) -> Iterator[Record]:
    """Computes the flow of a video, from each frame to the next, from the last frame to the one before it.

    Args:
        records: Frames of a video, in order and of one size; their flow is replaced.
        method: Computes the flow.

    Yields:
        The same frames with flow at half their resolution. A video of one frame gets zero flow.
    """
    held, images, before = [], [], None
    for record in records:
        held.append(record)
        images.append(decode_image(record.image))
        if len(held) > _PAIRS:
            yield from _with_flow(held[:-1], method(np.stack(images[:-1]), np.stack(images[1:])))
            before, held, images = images[-2], held[-1:], images[-1:]
    if len(images) > 1:
        before = images[-2]
    if before is not None:
        yield from _with_flow(held, method(np.stack(images), np.stack([*images[1:], before])))
    elif images:
        yield from _with_flow(held, np.zeros((1, *images[0].shape[:2], 2), np.float32))


def add_still_flow(records: Iterable[Record], method: FlowMethod) -> Iterator[Record]:
    """Computes the flow from still images to moved copies, see ``lucid_dreaming.moved_copy``.

    The motion is seeded by the name of the image. An image without foreground shows camera motion only.

    Args:
        records: The still images.
        method: Computes the flow.

    Yields:
        The same frames with flow at half their resolution.
    """
    from uvos_jax.data.examples.lucid_dreaming import moved_copy

    for record in records:
        image = decode_image(record.image)
        moved = moved_copy(image, record.labels, np.random.default_rng(zlib.crc32(record.name.encode())))
        yield from _with_flow([record], method(image[None], moved[None]))


def shrink_flow(flow: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Averages flow to half the resolution of its frame, or keeps its own resolution if that is lower.

    Args:
        flow: float32 [h', w', 2], (dx, dy) in pixels of the h' x w' grid.
        frame: Height and width of the frame.

    Returns:
        ``FLOW_TYPE`` [h, w, 2], in pixels of the frame.
    """
    size = tuple(min((side + 1) // 2, have) for side, have in zip(frame, flow.shape, strict=False))
    small = cv2.resize(flow, size[::-1], interpolation=cv2.INTER_AREA)
    small = small * np.float32([frame[1] / flow.shape[1], frame[0] / flow.shape[0]])
    return _to_float16(np.round(small * _FLOW_STEPS) / _FLOW_STEPS)


def _with_flow(records, flows):
    for record, flow in zip(records, flows, strict=True):
        yield record._replace(flow=shrink_flow(flow, record.labels.shape))


def _to_float16(flow):
    return np.clip(flow, -_MAX_FLOW, _MAX_FLOW).astype(FLOW_TYPE)


def _of_size(size, what, array):
    if size and array.shape[:2] != size:
        raise UserError(f"the {what} is {_size(array.shape)}, but the image {_size(size)}")
    return array


def _size(shape):
    return f"{shape[0]}x{shape[1]}"
