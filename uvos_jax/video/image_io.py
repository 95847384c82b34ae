"""Frames kept as image files: which files of a folder they are, in which order, and their pixels."""

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

# What is wrong with a picture is said by an exception; OpenCV would put its own words beside it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def is_image(path: Path) -> bool:
    """Tells by name alone whether ``path`` counts as a frame; hidden files never do."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Returns the image files directly inside ``folder``, in natural order.

    Raises:
        UserError: The folder may not be listed.
    """
    try:
        # A broken link stays in the list: reading it says so, where leaving it out would lose a frame.
        return natural_sort(path for path in folder.iterdir() if is_image(path) and not path.is_dir())
    except OSError as error:
        raise UserError(f"cannot list the folder {quoted(folder)}: {error_reason(error)}.") from error


def natural_sort(paths: Iterable[Path]) -> list[Path]:
    """Sorts by name with numbers compared as numbers: ``frame2.png`` precedes ``frame10.png``."""
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    # The split alternates text, digits, text, ..., so two keys never compare a number with a text. The
    # whole path breaks ties such as 1.png and 01.png, for the same order on every machine.
    parts = re.split(r"(\d+)", os.fspath(path))
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], os.fspath(path)


def read_image(path: Path) -> np.ndarray:
    """Reads one frame as color, upright by its EXIF orientation.

    Gray is repeated over the three channels, transparency is dropped and 16 bits are scaled to 8.

    Args:
        path: An image file of a kind OpenCV reads.

    Returns:
        uint8 [h, w, 3], RGB.

    Raises:
        FrameError: The file cannot be read or decoded; a ``UserError``.
    """
    try:
        # A pipe or a device would make the reader wait, or never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is no regular file")
        data = np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:
        raise FrameError(
            f"cannot read the frame {quoted(path)}: {error_reason(error)}; make sure that it is there and may be read.",
            error_reason(error),
        ) from error
    if _is_too_large(data):
        why = f"it has more than {LARGEST_FRAME >> 20} megapixels"
        raise FrameError(f"the frame {quoted(path)} cannot be used, {why}; shrink it.", why)
    if is_cut_off_png(data):
        why = "it is cut off"
        raise FrameError(f"the frame {quoted(path)} cannot be decoded, {why}; replace or remove it.", why)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # an empty file, or a picture beyond OpenCV's size limit
        image = None
    if image is None:
        raise FrameError(f"the frame {quoted(path)} cannot be decoded; replace or remove it.", "it cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@functools.cache
def import_pillow() -> ModuleType:
    """Imports Pillow's ``Image``, late because it takes a while, and without its warning of pictures that are large."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image


def _is_too_large(data: np.ndarray) -> bool:
    """Tells by its header whether an image file promises more than ``LARGEST_FRAME`` pixels."""
    pillow = import_pillow()
    try:
        with pillow.open(io.BytesIO(data)) as image:
            return image.width * image.height > LARGEST_FRAME
    except pillow.DecompressionBombError:  # its own limit is higher
        return True
    except Exception:  # what Pillow cannot read, OpenCV, which decodes, will have the last word on
        return False


def is_cut_off_png(data: np.ndarray) -> bool:
    """Tells whether a chunk of a PNG file ends behind the file; OpenCV would set aside as much memory as it claims."""
    content = memoryview(data)
    place = 8 if bytes(content[:8]) == b"\x89PNG\r\n\x1a\n" else len(content)
    while place + 8 <= len(content) and bytes(content[place + 4 : place + 8]) != b"IEND":
        place += 12 + int.from_bytes(content[place : place + 4], "big")  # length, kind, the content and its checksum
        if place > len(content):
            return True
    return False
