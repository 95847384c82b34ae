"""Optical flow files (Middlebury .flo, NumPy .npy, KITTI 16-bit PNG) and flow drawn on the color wheel.

Flow is float32 [h, w, 2], (dx, dy) in pixels at its own resolution.
"""

import io
import os
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.atomic_io import atomic_write
from uvos_jax.color_wheel import color_wheel
from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.video.frames import LARGEST_FRAME
from uvos_jax.video.image_io import is_truncated_png

FLOW_SUFFIXES = (".flo", ".npy", ".png")
_FLO_MAGIC = b"PIEH"  # Middlebury's tag, the float 202021.25 in little-endian order
_LONGEST = 1e6  # pixels; Middlebury files mark unknown flow by 1e9 and more
# KITTI PNG: units of 1/64 pixel, zero at the middle of the 16-bit range.
_PNG_STEPS = 64.0
_PNG_ZERO = 2**15


def read_flow(path: str | os.PathLike) -> np.ndarray:
    """Reads optical flow in the format given by the file suffix.

    Args:
        path: A Middlebury .flo file, a .npy array [h, w, 2], or a 16-bit KITTI .png.

    Returns:
        float32 [h, w, 2], (dx, dy) in pixels.

    Raises:
        UserError: The file cannot be read, is not flow, or has pixels without flow.
    """
    path = Path(path)
    try:
        flow = _READERS.get(path.suffix.lower(), _read_flo)(path)
    except UserError:
        raise
    except Exception as error:  # NumPy's reader raises many kinds for broken headers
        raise UserError(f"Cannot read {quoted(path)} as flow: {error_reason(error)}.") from error
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.dtype.kind not in "fiu" or 0 in flow.shape:
        raise UserError(f"{quoted(path)} is not flow [h, w, 2] but {flow.dtype} {list(flow.shape)}.")
    if not (np.abs(flow) < _LONGEST).all():
        raise UserError(f"{quoted(path)} has flow that is not finite or exceeds a million pixels. Compute it again.")
    return flow.astype(np.float32)


def write_flow(path: str | os.PathLike, flow: np.ndarray) -> None:
    """Writes optical flow atomically, in the format given by the file suffix.

    Args:
        path: A file that ends in .flo, .npy or .png (16-bit KITTI, in steps of 1/64 pixel).
        flow: float32 [h, w, 2], pixels.

    Raises:
        UserError: The file cannot be written, or a vector exceeds the range of the format.
        ValueError: The suffix is none of these.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    flow = np.ascontiguousarray(flow, "<f4")
    if suffix == ".flo":
        data = _FLO_MAGIC + np.array(flow.shape[1::-1], "<i4").tobytes() + flow.tobytes()
    elif suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, flow)
        data = buffer.getvalue()
    elif suffix == ".png":
        steps = np.rint(flow * _PNG_STEPS) + _PNG_ZERO
        if steps.min() < 0 or steps.max() > 2**16 - 1:
            raise UserError(f"Cannot write flow of {np.abs(flow).max():.0f} pixels to {quoted(path)}: a 16-bit PNG"
                            " holds at most 512. Choose .flo.")
        # OpenCV's channel order is blue, green, red: valid, dy, dx.
        data = _png(np.dstack([np.ones(flow.shape[:2], np.uint16), steps[..., ::-1].astype(np.uint16)]))
    else:
        raise ValueError(f"no flow format has the suffix {suffix!r}")
    atomic_write(path, data)


def write_flow_picture(path: str | os.PathLike, flow: np.ndarray) -> None:
    """Writes ``flow_picture`` as PNG, atomically; raises ``UserError`` if the file cannot be written."""
    atomic_write(path, _png(flow_picture(flow)[..., ::-1]))


def resize_flow(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes flow and scales its vectors.

    Args:
        flow: float32 [h, w, 2].
        size: (height, width) in pixels.

    Returns:
        float32 [height, width, 2], in pixels at the new resolution.
    """
    (height, width), (new_height, new_width) = flow.shape[:2], size
    if (height, width) == (new_height, new_width):
        return flow
    shrinks = new_height < height or new_width < width
    resized = cv2.resize(flow, (new_width, new_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized * np.array([new_width / width, new_height / height], np.float32)


def flow_picture(flow: np.ndarray) -> np.ndarray:
    """Draws optical flow on the color wheel of Baker et al. (IJCV 2011), as the RAFT code does: hue is direction.

    Args:
        flow: float32 [h, w, 2], (dx, dy) in pixels.

    Returns:
        uint8 [h, w, 3], RGB; white is no motion, and the longest vector has full saturation.
    """
    wheel = color_wheel()
    radius = np.sqrt((flow**2).sum(-1))
    scale = radius.max() + 1e-5
    x, y = flow[..., 0] / scale, flow[..., 1] / scale
    radius = np.sqrt(x**2 + y**2)[..., None]
    position = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(position).astype(int)
    share = (position - low)[..., None]
    color = (1 - share) * wheel[low] + share * wheel[(low + 1) % len(wheel)]
    return np.floor(255 * np.where(radius <= 1, 1 - radius * (1 - color), 0.75 * color)).astype(np.uint8)


def _read_flo(path):
    data = path.read_bytes()
    width, height = np.frombuffer(data, "<i4", 2, 4)
    if data[:4] != _FLO_MAGIC or width < 1 or height < 1:
        raise ValueError("it has no .flo header")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2)


def _read_npy(path):
    with open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_png(path):
    data = np.fromfile(path, np.uint8)
    header = bytes(data[:26])  # signature, length and type of the first chunk, width, height, bit depth, color type
    if header[:8] != b"\x89PNG\r\n\x1a\n" or len(header) < 26 or is_truncated_png(data):
        raise ValueError("it is not a complete PNG file")
    if header[24:] != b"\x10\x02":
        raise UserError(f"{quoted(path)} is an image of flow on the color wheel, which cannot be read back exactly."
                        " Give .flo, .npy or 16-bit KITTI .png.")
    if int.from_bytes(header[16:20], "big") * int.from_bytes(header[20:24], "big") > LARGEST_FRAME:
        raise ValueError(f"it has more than {LARGEST_FRAME >> 20} megapixels")
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("it cannot be decoded")
    if not pixels[..., 0].all():
        raise UserError(f"{quoted(path)} has pixels without flow, like KITTI ground truth. Give flow at every pixel.")
    return (pixels[..., :0:-1].astype(np.float32) - _PNG_ZERO) / _PNG_STEPS


def _png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


_READERS = {".npy": _read_npy, ".png": _read_png}
