"""Image files that hold several pictures: GIF, animated PNG and WebP, TIFF of many pages."""

import mmap
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.video.frames import LARGEST_FRAME, FrameError, Picture
from uvos_jax.video.image_io import import_pillow

_SUFFIXES = (".png", ".webp", ".tif", ".tiff")
# Seconds that a GIF picture is shown which states none, or hardly any; browsers do the same.
_GIF_SHORTEST, _GIF_DEFAULT = 0.02, 0.1
# How nearly every picture of an animated GIF begins: how long it is shown, and that a picture follows.
_GIF_PICTURE = re.compile(rb"\x21\xf9\x04.{4}\x00\x2c", re.DOTALL)


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
        raise _unreadable(path, error) from error
    with image:
        time: float | None = 0.0
        for index in range(image.n_frames):
            # Loaded only when asked for, and before the next one is: the pages share one open file.
            yield Picture(f"{index:05d}", partial(_page, image, index, path), time)
            time = _end_of(image, index, time)


def is_gif(path: Path) -> bool:
    """Tells by content whether a file is a GIF; FFmpeg, too, reads it, but says nothing of what is damaged or lost."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GIF8"
    except OSError:  # who opens it says so
        return False


def read_gif(path: Path) -> Iterator[Picture]:
    """Reads the pictures of a GIF one after the other; transparency is dropped.

    Args:
        path: The file.

    Yields:
        The pictures with their times, named by their index. They build on each other, and behind damage anything may
        look like one, so that from the first damaged one on all are.

    Raises:
        UserError: The file cannot be read.
    """
    count, stated = _count_gif(path)
    with _opened_gif(path) as image:
        size, time, shown, why = image.size, 0.0, _GIF_DEFAULT, None
        index = 0
        while index < count:
            damage = why and _damaged(path, index, "what it builds on is broken")
            if not damage:
                try:
                    image.seek(index)
                    if image.size != size:
                        raise ValueError("it lies outside of the picture")
                    image.load()
                    shown = image.info.get("duration", 0) / 1000
                except Exception as error:  # what Pillow raises for damage is of any kind
                    why = error_reason(error)
                    damage, count = _damaged(path, index, why), max(index + 1, stated)
            yield Picture(f"{index:05d}", partial(_page, image, index, path), time, damage)
            time += shown if shown >= _GIF_SHORTEST else _GIF_DEFAULT
            index += 1


def _opened_gif(path: Path):
    try:
        image = import_pillow().open(path, formats=["GIF"])
    except Exception as error:
        raise _unreadable(path, error) from error
    if image.width * image.height > LARGEST_FRAME:
        image.close()
        raise UserError(f"{quoted(path)} cannot be used, it has more than {LARGEST_FRAME >> 20} megapixels; shrink it.")
    return image


def _count_gif(path: Path) -> tuple[int, int]:
    """Returns how many pictures there seem to be, and how many of them announce themselves: behind damage, only these.

    One more where the file breaks off.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            stated = sum(1 for _ in _GIF_PICTURE.finditer(data))
    except (OSError, ValueError) as error:  # gone or empty meanwhile
        raise _unreadable(path, error) from error
    with _opened_gif(path) as image:
        try:
            return max(image.n_frames, stated), stated
        except Exception:
            return max(image.tell() + 2, stated), stated


def _page(image, index: int, path: Path) -> np.ndarray:
    try:
        image.seek(index)
        if image.mode.startswith("I;16"):  # Pillow would clip it
            return np.dstack([(np.asarray(image) >> 8).astype(np.uint8)] * 3)
        return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _damaged(path, index, error_reason(error)) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot read {quoted(path)}: {error_reason(error)}.")


def _damaged(path: Path, index: int, why: str) -> FrameError:
    return FrameError(f"{quoted(path)} cannot be decoded at frame {index:05d} ({why}); save it anew.", why)


def _end_of(image, index: int, time: float | None) -> float | None:
    """Returns when the picture shown from ``time`` on is followed by the next one."""
    try:
        image.seek(index)
        image.load()  # WebP tells a duration only then
        duration = image.info.get("duration")
    except (OSError, ValueError, SyntaxError, EOFError):
        duration = None
    return None if time is None or not duration else time + duration / 1000
