"""Image files that hold several pictures: animated PNG and WebP, TIFF of many pages."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.video.files import quoted, reason
from uvos_jax.video.image_files import import_pillow
from uvos_jax.video.pictures import LARGEST_FRAME, Damaged, Picture

_SUFFIXES = (".png", ".webp", ".tif", ".tiff")


def count_pages(path: Path) -> int:
    """Returns how many pictures an image file holds; 1 where that cannot be told.

    A page of another size than the first, such as the small copy beside a large photograph, makes it one picture.
    """
    if path.suffix.lower() not in _SUFFIXES:
        return 1
    try:
        with import_pillow().open(path) as image:
            count, size = getattr(image, "n_frames", 1), image.size
            if count > 1:
                image.seek(1)
            return count if image.size == size and size[0] * size[1] <= LARGEST_FRAME else 1
    except Exception:  # whatever Pillow makes of a broken file, who reads it as a single picture says what is wrong
        return 1


def read_pages(path: Path) -> Iterator[Picture]:
    """Reads the pictures of an image file one after the other; transparency is dropped and 16 bits become 8.

    Args:
        path: A file with more than one picture by ``count_pages``.

    Yields:
        The pictures, named by their index, with their time where the file states how long each is shown.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        image = import_pillow().open(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {quoted(path)}: {reason(error)}.") from error
    with image:
        time: float | None = 0.0
        for index in range(image.n_frames):
            # Loaded only when asked for, and before the next one is: the pages share one open file.
            yield Picture(f"{index:05d}", partial(_page, image, index, path), time)
            time = _end_of(image, index, time)


def _page(image, index: int, path: Path) -> np.ndarray:
    try:
        image.seek(index)
        if image.mode.startswith("I;16"):  # Pillow would clip it
            return np.dstack([(np.asarray(image) >> 8).astype(np.uint8)] * 3)
        return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        sentence = f"{quoted(path)} cannot be decoded at frame {index:05d} ({reason(error)}); save it anew."
        raise Damaged(sentence, reason(error)) from error


def _end_of(image, index: int, time: float | None) -> float | None:
    """Returns when the picture shown from ``time`` on is followed by the next one."""
    try:
        image.seek(index)
        image.load()  # WebP tells a duration only then
        duration = image.info.get("duration")
    except (OSError, ValueError, SyntaxError, EOFError):
        duration = None
    return None if time is None or not duration else time + duration / 1000
