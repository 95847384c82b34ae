"""Image files with several frames: GIF, animated PNG and WebP, multi-page TIFF."""

import mmap
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.video.frames import LARGEST_FRAME, FrameError, LazyFrame
from uvos_jax.video.image_io import import_pillow

_SUFFIXES = (".png", ".webp", ".tif", ".tiff")
# A GIF frame without a duration, or with one below the shortest, is shown for the default; browsers do the same.
_GIF_SHORTEST, _GIF_DEFAULT = 0.02, 0.1  # seconds
# Start of nearly every frame of an animated GIF: its duration, followed by the mark of an image.
_GIF_FRAME = re.compile(rb"\x21\xf9\x04.{4}\x00\x2c", re.DOTALL)


def count_pages(path: Path) -> int:
    """Returns the number of frames in an image file, or 1 if it cannot be determined.

    A file whose second page differs in size from the first, such as a photograph with a thumbnail, is one frame.
    """
    if path.suffix.lower() not in _SUFFIXES:
        return 1
    try:
        with import_pillow().open(path) as image:
            count, size = getattr(image, "n_frames", 1), image.size
            if count > 1:
                image.seek(1)
            return count if image.size == size and size[0] * size[1] <= LARGEST_FRAME else 1
    except Exception:  # a broken file of any kind: reading it as a single image reports the error
        return 1


def read_pages(path: Path) -> Iterator[LazyFrame]:
    """Reads the frames of an image file; transparency is dropped and 16 bits are reduced to 8.

    Args:
        path: A file with more than one frame by ``count_pages``.

    Yields:
        The frames, named by their index, with their time if the file states the duration of each.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        image = import_pillow().open(path)
    except (OSError, ValueError) as error:
        raise _read_error(path, error) from error
    with image:
        time: float | None = 0.0
        for index in range(image.n_frames):
            # Each frame must be loaded before the next one is requested: they share one open file.
            yield LazyFrame(f"{index:05d}", partial(_load_page, image, index, path), time)
            time = _end_time(image, index, time)


def is_gif(path: Path) -> bool:
    """Returns whether the content of a file is a GIF. FFmpeg reads GIF too, but does not report damage."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GIF8"
    except OSError:  # opening the file reports the error
        return False


def read_gif(path: Path) -> Iterator[LazyFrame]:
    """Reads the frames of a GIF; transparency is dropped.

    Args:
        path: The file.

    Yields:
        The frames with their times, named by their index. Frames build on each other and damaged data may look like a
        frame, so all frames after the first broken one are broken.

    Raises:
        UserError: The file cannot be read.
    """
    count, stated = _count_gif(path)
    with _open_gif(path) as image:
        size, time, duration, why = image.size, 0.0, _GIF_DEFAULT, None
        index = 0
        while index < count:
            error = why and _decode_error(path, index, "a frame it depends on is broken")
            if not error:
                try:
                    image.seek(index)
                    if image.size != size:
                        raise ValueError("it exceeds the size of the GIF")
                    image.load()
                    duration = image.info.get("duration", 0) / 1000
                except Exception as exception:  # Pillow raises many kinds for damaged data
                    why = error_reason(exception)
                    error, count = _decode_error(path, index, why), max(index + 1, stated)
            yield LazyFrame(f"{index:05d}", partial(_load_page, image, index, path), time, error)
            time += duration if duration >= _GIF_SHORTEST else _GIF_DEFAULT
            index += 1


def _open_gif(path: Path):
    try:
        image = import_pillow().open(path, formats=["GIF"])
    except Exception as error:
        raise _read_error(path, error) from error
    if image.width * image.height > LARGEST_FRAME:
        image.close()
        raise UserError(f"{quoted(path)} has more than {LARGEST_FRAME >> 20} megapixels. Reduce its size.")
    return image


def _count_gif(path: Path) -> tuple[int, int]:
    """Returns the estimated number of frames, and how many frame headers the file has; after damage, only these count.

    A truncated file counts one frame more.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            stated = sum(1 for _ in _GIF_FRAME.finditer(data))
    except (OSError, ValueError) as error:  # removed or emptied in the meantime
        raise _read_error(path, error) from error
    with _open_gif(path) as image:
        try:
            return max(image.n_frames, stated), stated
        except Exception:
            return max(image.tell() + 2, stated), stated


def _load_page(image, index: int, path: Path) -> np.ndarray:
    try:
        image.seek(index)
        if image.mode.startswith("I;16"):  # Pillow would clip it
            return np.dstack([(np.asarray(image) >> 8).astype(np.uint8)] * 3)
        return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _decode_error(path, index, error_reason(error)) from error


def _read_error(path: Path, error: Exception) -> UserError:
    return UserError(f"Cannot read {quoted(path)}: {error_reason(error)}.")


def _decode_error(path: Path, index: int, why: str) -> FrameError:
    return FrameError(f"Cannot decode frame {index:05d} of {quoted(path)}: {why}. Save the file again.", why)


def _end_time(image, index: int, time: float | None) -> float | None:
    """Returns the end time of the frame that is shown from ``time`` on, or None if it has no duration."""
    try:
        image.seek(index)
        image.load()  # WebP has the duration only after loading
        duration = image.info.get("duration")
    except (OSError, ValueError, SyntaxError, EOFError):
        duration = None
    return None if time is None or not duration else time + duration / 1000
