"""Frames stored as image files: listing a folder in natural order, and reading pixels."""

import functools
import io
import os
import re
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.video.frames import LARGEST_FRAME, FrameError

# Errors are reported by exceptions; OpenCV would print its own messages as well.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def is_image(path: Path) -> bool:
    """Returns whether the name of ``path`` is that of an image; hidden files never count."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Returns the image files directly inside ``folder``, in natural order.

    Raises:
        UserError: The folder cannot be listed.
    """
    try:
        # A broken link stays in the list, so that reading it raises an error instead of skipping a frame.
        return natural_sort(path for path in folder.iterdir() if is_image(path) and not path.is_dir())
    except OSError as error:
        raise UserError(f"Cannot list the folder {quoted(folder)}: {error_reason(error)}.") from error


def natural_sort(paths: Iterable[Path]) -> list[Path]:
    """Sorts paths with numbers compared as numbers: ``frame2.png`` precedes ``frame10.png``."""
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    # The split alternates text, digits, text, ..., so a number is never compared with text. The whole path breaks ties
    # such as 1.png and 01.png, for the same order on every machine.
    parts = re.split(r"(\d+)", os.fspath(path))
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], os.fspath(path)


def read_image(path: Path) -> np.ndarray:
    """Reads one frame in color, upright by its EXIF orientation.

    Gray is repeated over the three channels, transparency is dropped and 16 bits are scaled to 8.

    Args:
        path: An image file in a format of OpenCV.

    Returns:
        uint8 [h, w, 3], RGB.

    Raises:
        FrameError: The file cannot be read or decoded.
    """
    try:
        # Reading a pipe or a device could block or never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a regular file")
        data = np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:
        raise FrameError(
            f"Cannot read the frame {quoted(path)}: {error_reason(error)}. Check that it exists and is readable.",
            error_reason(error),
        ) from error
    if _is_too_large(data):
        why = f"it has more than {LARGEST_FRAME >> 20} megapixels"
        raise FrameError(f"Cannot use the frame {quoted(path)}: {why}. Reduce its size.", why)
    if is_truncated_png(data):
        why = "it is truncated"
        raise FrameError(f"Cannot decode the frame {quoted(path)}: {why}. Replace or remove it.", why)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # an empty file, or an image beyond OpenCV's size limit
        image = None
    if image is None:
        raise FrameError(f"Cannot decode the frame {quoted(path)}. Replace or remove it.", "it cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@functools.cache
def import_pillow() -> ModuleType:
    """Imports ``PIL.Image`` on first use, because that is slow, and silences its warning about large images."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image


def _is_too_large(data: np.ndarray) -> bool:
    """Returns whether the header of an image file states more than ``LARGEST_FRAME`` pixels."""
    pillow = import_pillow()
    try:
        with pillow.open(io.BytesIO(data)) as image:
            return image.width * image.height > LARGEST_FRAME
    except pillow.DecompressionBombError:  # Pillow's own limit is higher
        return True
    except Exception:  # OpenCV decodes the file, and may read what Pillow cannot
        return False


def is_truncated_png(data: np.ndarray) -> bool:
    """Returns whether a chunk of a PNG file extends beyond the file.

    OpenCV would allocate as much memory as the chunk states.
    """
    content = memoryview(data)
    position = 8 if bytes(content[:8]) == b"\x89PNG\r\n\x1a\n" else len(content)
    while position + 8 <= len(content) and bytes(content[position + 4 : position + 8]) != b"IEND":
        position += 12 + int.from_bytes(content[position : position + 4], "big")  # length, type, data and checksum
        if position > len(content):
            return True
    return False
