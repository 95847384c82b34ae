"""Masks as COCO and YouTube-VIS write them, run lengths or polygons, checked before pycocotools sees them."""

from numbers import Integral, Real

import numpy as np

# Enough for any frame; pycocotools reads runs of 6 characters without overflow, and points of polygons this far out.
LARGEST_SIDE = 16_384
_MOST_CHARACTERS = 6
_CHARACTERS = bytes(range(48, 112))


def to_rle(segmentation: object, height: int, width: int, polygons: bool = True) -> dict:
    """Returns a mask as compressed run lengths that pycocotools, which checks nothing, can be trusted with.

    Args:
        segmentation: As JSON has it: ``{"size": [height, width], "counts": text or list}``, or a list of polygons.
        height: Of the frame in pixels, at most ``LARGEST_SIDE``.
        width: Likewise.
        polygons: Whether these are allowed.

    Returns:
        ``{"size": [height, width], "counts": bytes}``.

    Raises:
        ValueError: It is none; the text goes on after "the mask".
    """
    from pycocotools import mask as mask_utils

    if polygons and isinstance(segmentation, list):
        far = 2 * max(height, width)  # polygons are drawn point by point, so a wild one could take all memory
        for polygon in segmentation:
            points = polygon if isinstance(polygon, list) else ()
            if len(points) < 6 or len(points) % 2 or not all(is_finite(x) and abs(x) <= far for x in points):
                raise ValueError("has a polygon that is not x, y, x, y .. of 3 points or more in or near the frame")
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or not segmentation.keys() >= {"size", "counts"}:
        raise ValueError("is no RLE with size and counts")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"has the size {shown(size)}, but its video {[height, width]}")
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")  # RLE is ASCII; other characters are refused as bytes
    if isinstance(counts, bytes):
        runs = _decoded(counts)
    elif isinstance(counts, list) and all(is_integer(x) and 0 <= x <= height * width for x in counts):
        runs = np.array(counts, np.int64)
    else:
        raise ValueError(f"has counts that are neither a string nor a list of integers from 0 to {height * width}")
    if runs.sum() != height * width or runs.min() < 0:
        raise ValueError(f"has runs that do not sum to the {height * width} pixels of the frame")
    if not runs[1:].all():  # pycocotools stops where two masks have empty runs at one pixel
        pixels = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs)
        return mask_utils.encode(pixels.reshape((height, width), order="F"))
    if isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    return mask_utils.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def is_integer(x: object) -> bool:
    """Whether a value of JSON is a whole number, which true and false are not."""
    return isinstance(x, Integral) and not isinstance(x, bool)


def is_finite(x: object) -> bool:
    """Whether a value of JSON is a number that one can reckon with."""
    return isinstance(x, Real) and not isinstance(x, bool) and abs(x) < 1e300  # not so for NaN


def shown(x: object) -> str:
    """The beginning of a value, for messages."""
    return f"{x!r:.40}"


def _decoded(counts: bytes) -> np.ndarray:
    """Returns the runs of a compressed RLE.

    5 bits of a number to a character, lowest first, at codes from 48; 32 more if others follow; the highest bit
    is the sign. From the fourth run on the numbers are differences to the run before the last.
    """
    if not counts or counts[-1] > 79 or counts.translate(None, _CHARACTERS):
        raise ValueError("has counts that are no compressed RLE")
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = (codes < 32).nonzero()[0]
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _MOST_CHARACTERS:
        raise ValueError("has counts that are no compressed RLE")
    places = 5 * (np.arange(codes.size) - starts.repeat(lengths))
    runs = np.add.reduceat((codes & 31) << places, starts) - ((codes[ends] >> 4) << 5 * lengths)
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    return runs
