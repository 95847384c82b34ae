"""One record of a converted dataset: a frame's image, labels and flow, read and checked."""

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

PREFIX = "uvos_"  # of a dataset's name in TFDS, which has some of the same names
VERSION = "1.0.0"  # of the format
FLOW_TYPE = np.float16  # half a pixel of 1000: flow is not known better, and reading it costs half
_MAX_FLOW = 60_000  # pixels; float16 ends soon after
_FLOW_STEPS = 32  # of a pixel that computed flow is rounded to, which halves the bytes again
_PAIRS = 8  # of frames whose flow is computed at once
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class Record(NamedTuple):
    """A frame as it is stored.

    Attributes:
        name: Its file's name without suffix.
        image: An image file's bytes, JPEG or PNG.
        labels: uint8 [h, w], 0 background, 1..254 objects, 255 void; all void without ground truth.
        labeled: Whether there is ground truth.
        flow: ``FLOW_TYPE`` [h', w', 2], (dx, dy) in pixels of the frame to the next frame, at fewer places than the
            frame has pixels if it was computed; or None.
    """

    name: str
    image: bytes
    labels: np.ndarray
    labeled: bool
    flow: np.ndarray | None = None


class FlowMethod(Protocol):
    """What computes optical flow.

    Attributes:
        identity: Names the method, with its version and settings.
    """

    identity: str

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] RGB each to float32 [n, h', w', 2], (dx, dy) in pixels of the grid h' x w'."""


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
    return Record(frame.name, image, labels, frame.labels is not None, None if flow is None else _to_float16(flow))


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

    JPEG and PNG of gray or color are stored as they are, so that nothing is lost. Others, and images that their
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
        raise UserError(f"the image {quoted(path)} cannot be read: {error_reason(error)}.") from error
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
    from uvos_jax.data.synthetic.clip import make_clip

    clip = make_clip(seed, length, size)
    for t in range(length):
        yield Record(f"{t:05d}", encode_png(clip.frames[t]), clip.labels[t], True, _to_float16(clip.flow[t]))


def add_flow(records: Iterable[Record], method: FlowMethod) -> Iterator[Record]:
    """Computes the flow of a video's frames, each to the following one; that of the last leads to the one before.

    Args:
        records: Frames of a video, in order and of one size; flow that they have is replaced.
        method: Computes it.

    Yields:
        The same frames with flow at half their size. A video of one frame has none, all zero.
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
    """Computes the flow of stills, each to a copy of it whose foreground moves, see ``moved.moved_copy``.

    The motion of a picture follows from its name. A picture without foreground has the motion of its camera alone.

    Args:
        records: The stills.
        method: Computes the flow.

    Yields:
        The same frames with flow at half their size.
    """
    from uvos_jax.data.examples.lucid_dreaming import moved_copy

    for record in records:
        image = decode_image(record.image)
        moved = moved_copy(image, record.labels, np.random.default_rng(zlib.crc32(record.name.encode())))
        yield from _with_flow([record], method(image[None], moved[None]))


def shrink_flow(flow: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Averages flow to half the size of its frame, or leaves it at its own size where that is smaller.

    Args:
        flow: float32 [h', w', 2], (dx, dy) in pixels of the grid h' x w'.
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
