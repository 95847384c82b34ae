"""Frames kept as image files: which files of a folder they are, in which order, and their pixels."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.video.files import quoted, reason

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
        raise UserError(f"cannot list the folder {quoted(folder)}: {reason(error)}.") from error


def natural_sort(paths: Iterable[Path]) -> list[Path]:
    """Sorts by name with numbers compared as numbers: ``frame2.png`` precedes ``frame10.png``."""
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    # The split alternates text, digits, text, ..., so two keys never compare a number with a text. The
    # whole path breaks ties such as 1.png and 01.png, for the same order on every machine.
    parts = re.split(r"(\d+)", os.fspath(path))
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], os.fspath(path)


def read_image(path: Path) -> np.ndarray:
    """Reads one frame as colour, upright by its EXIF orientation.

    Grey is repeated over the three channels, transparency is dropped and 16 bits are scaled to 8.

    Args:
        path: An image file of a kind OpenCV reads.

    Returns:
        uint8 [h, w, 3], RGB.

    Raises:
        UserError: The file cannot be read or decoded.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read the frame {quoted(path)}: {reason(error)}.") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # an empty file, or a picture beyond OpenCV's size limit
        image = None
    if image is None:
        raise UserError(f"the frame {quoted(path)} cannot be decoded; replace or remove it.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
