"""Validation of COCO and YouTube-VIS masks (RLE or polygons) before pycocotools decodes them."""

from numbers import Integral, Real

import numpy as np

# Enough for any frame; up to it, pycocotools decodes runs of 6 characters and polygon points without overflow.
LARGEST_SIDE = 16_384
_MAX_RUN_CHARACTERS = 6
_CHARACTERS = bytes(range(48, 112))


def to_rle(segmentation: object, height: int, width: int, polygons: bool = True) -> dict:
    """Validates a mask and converts it to compressed RLE; pycocotools itself does not check its input.

    Args:
        segmentation: A JSON value: ``{"size": [height, width], "counts": text or list}``, or a list of polygons.
        height: Height of the frame in pixels, at most ``LARGEST_SIDE``.
        width: Width of the frame in pixels, at most ``LARGEST_SIDE``.
        polygons: Allow polygons.

    Returns:
        ``{"size": [height, width], "counts": bytes}``.

    Raises:
        ValueError: The value is not a mask of this size. The message continues a sentence that begins "the mask".
    """
    from pycocotools import mask as mask_utils

    if polygons and isinstance(segmentation, list):
        limit = 2 * max(height, width)  # polygons are drawn point by point, so a far point could exhaust the memory
        for polygon in segmentation:
            points = polygon if isinstance(polygon, list) else ()
            if len(points) < 6 or len(points) % 2 or not all(is_finite(x) and abs(x) <= limit for x in points):
                raise ValueError("has a polygon that is not x, y, x, y, ... of at least 3 points in or near the frame")
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or not segmentation.keys() >= {"size", "counts"}:
        raise ValueError("is not an RLE with size and counts")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"has size {shown(size)}, but its video has {[height, width]}")
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")  # RLE is ASCII; other characters are rejected below
    if isinstance(counts, bytes):
        runs = _decode_runs(counts)
    elif isinstance(counts, list) and all(is_integer(x) and 0 <= x <= height * width for x in counts):
        runs = np.array(counts, np.int64)
    else:
        raise ValueError(f"has counts that are neither a string nor a list of integers from 0 to {height * width}")
    if runs.sum() != height * width or runs.min() < 0:
        raise ValueError(f"has runs that do not sum to the {height * width} pixels of the frame")
    if not runs[1:].all():  # pycocotools fails where two masks have empty runs at the same pixel
        pixels = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs)
        return mask_utils.encode(pixels.reshape((height, width), order="F"))
    if isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    return mask_utils.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def is_integer(x: object) -> bool:
    """Returns whether a JSON value is an integer; true and false are not."""
    return isinstance(x, Integral) and not isinstance(x, bool)


def is_finite(x: object) -> bool:
    """Returns whether a JSON value is a finite number."""
    return isinstance(x, Real) and not isinstance(x, bool) and abs(x) < 1e300  # False for NaN


def shown(x: object) -> str:
    """Returns the first characters of a value, for messages."""
    return f"{x!r:.40}"


def _decode_runs(counts: bytes) -> np.ndarray:
    """Decodes the runs of a compressed COCO RLE.

    Each character holds 5 bits of a number, lowest first, as a code from 48; 32 is added if more characters follow. The
    highest bit is the sign. From the fourth run on, numbers are differences to the run two before.
    """
    if not counts or counts[-1] > 79 or counts.translate(None, _CHARACTERS):
        raise ValueError("has counts that are not a compressed RLE")
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = (codes < 32).nonzero()[0]
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _MAX_RUN_CHARACTERS:
        raise ValueError("has counts that are not a compressed RLE")
    shifts = 5 * (np.arange(codes.size) - starts.repeat(lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts) - ((codes[ends] >> 4) << 5 * lengths)
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    return runs
