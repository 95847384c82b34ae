"""Masks as packed bits: 64 pixels of a row a word, so that a few word operations handle a whole frame.

Bit i of word j is column 64 j + i. A row ends in a spare word, and all bits beyond the width are zero. So rows can be
shifted as one long line: what leaves a row gets lost in the spare word before it reaches the next one.
"""

import math

import numpy as np

_WORD = 64
_BLOCK = 100_000  # bytes; larger ones are mapped afresh from the system at every allocation


def pack(masks: np.ndarray) -> np.ndarray:
    """Packs masks.

    Args:
        masks: bool [..., h, w].

    Returns:
        uint64 [..., h, ceil(w / 64) + 1].
    """
    packed = np.packbits(masks, axis=-1, bitorder="little")
    padded = np.zeros((*packed.shape[:-1], _words(masks.shape[-1]) * 8), np.uint8)
    padded[..., : packed.shape[-1]] = packed
    return padded.view("<u8")


def pack_label(labels: np.ndarray, number: int) -> np.ndarray:
    """Packs the mask of one label, as ``pack(labels == number)`` does but several times faster.

    It goes by small blocks of rows: a buffer for the whole frame would cost more to allocate than to fill.

    Args:
        labels: Integer [h, w].
        number: The label.

    Returns:
        uint64 [h, ceil(w / 64) + 1].
    """
    height, width = labels.shape
    words = _words(width)
    rows = max(1, _BLOCK // (words * _WORD))
    block = np.zeros((rows, words * _WORD), bool)
    packed = np.empty((height, words), "<u8")
    for start in range(0, height, rows):
        part = labels[start : start + rows]
        np.equal(part, labels.dtype.type(number), out=block[: len(part), :width])
        packed[start : start + rows] = np.packbits(block[: len(part)].ravel(), bitorder="little").view("<u8").reshape(
            len(part), words)
    return packed


def count(packed: np.ndarray) -> np.ndarray:
    """Returns the number of set pixels of packed masks [..., h, words], int64 [...]."""
    return np.bitwise_count(packed).sum((-2, -1), dtype=np.int64)


def contour(packed: np.ndarray, width: int) -> np.ndarray:
    """Marks the pixels that differ from their right, lower or lower right neighbor.

    This is the boundary map of the DAVIS evaluation: the contour lies half a pixel towards the origin, and the image
    frame is none. Pixels of the last row are compared with their right neighbor only, those of the last column with
    their lower one only, and the last pixel of all is never marked.

    Args:
        packed: uint64 [..., h, words], see ``pack``.
        width: Number of columns.

    Returns:
        uint64 [..., h, words].
    """
    line = packed.ravel()
    east = line >> np.uint64(1)
    east[:-1] |= line[1:] << np.uint64(_WORD - 1)
    east = east.reshape(packed.shape)
    south, south_east = np.zeros_like(packed), np.zeros_like(packed)
    south[..., :-1, :] = packed[..., 1:, :]
    south_east[..., :-1, :] = east[..., 1:, :]
    marked = (packed ^ east) | (packed ^ south) | (packed ^ south_east)
    marked[..., -1, :] = packed[..., -1, :] ^ east[..., -1, :]
    word, bit = divmod(width - 1, _WORD)
    last = np.uint64(1 << bit)
    marked[..., word] = (marked[..., word] & ~last) | ((packed[..., word] ^ south[..., word]) & last)
    marked[..., -1, word] &= ~last
    marked[..., -1] = 0  # the first pixel of the next row has come into the spare word
    return marked


def dilate(packed: np.ndarray, radius: int) -> np.ndarray:
    """Dilates by the disk dx^2 + dy^2 <= radius^2; outside the image is nothing.

    A disk is a stack of horizontal segments, whose half-width grows towards its middle. So the mask is widened step
    by step, and added to the result at every row offset whose segment has just that half-width.

    Args:
        packed: uint64 [..., h, words].
        radius: In pixels, 0 or more.

    Returns:
        uint64 [..., h, words]; bits beyond the width may be set, which is harmless where the result is only
        intersected with a contour.
    """
    *leading, height, words = packed.shape
    # Rows below keep the masks apart, and from 64 pixels on one spare word is too little to keep the rows apart.
    width = words + radius // _WORD
    roomy = np.zeros((*leading, height + radius, width), np.uint64)
    roomy[..., :height, :words] = packed
    widened, half_width = roomy.ravel(), 0
    result = np.zeros_like(widened)
    for offset in range(radius, -1, -1):
        wanted = math.isqrt(radius**2 - offset**2)
        while half_width < wanted:
            # A segment of 2 w + 1 pixels may be moved by as many without leaving a gap.
            step = min(wanted - half_width, 2 * half_width + 1, _WORD - 1)
            widened, half_width = _widen(widened, step), half_width + step
        moved = offset * width
        result[moved:] |= widened[: result.size - moved]
        result[: result.size - moved] |= widened[moved:]
    return result.reshape(roomy.shape)[..., :height, :words]


def crop(masks: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """Crops packed masks of one frame to where any of them has pixels, so that their contours stay the same.

    A margin of a row and a word is kept on every side where the image goes on.

    Args:
        masks: uint64 [n, h, words].
        width: Number of columns.

    Returns:
        The cropped masks, and the number of columns left.
    """
    used = np.bitwise_or.reduce(masks, axis=0)
    rows, words = np.flatnonzero(used.any(1)), np.flatnonzero(used.any(0))
    if not rows.size:
        return masks[:, :1, -2:], min(width, _WORD)
    left = max(words[0] - 1, 0)
    cropped = masks[:, max(rows[0] - 1, 0) : rows[-1] + 2, left : words[-1] + 2]
    return np.ascontiguousarray(cropped), min(width - left * _WORD, cropped.shape[-1] * _WORD - 1)


def _words(width):
    return -(-width // _WORD) + 1


def _widen(line, step):
    """Adds to every set pixel those ``step`` columns to its left and right, 0 < step < 64."""
    near, far = np.uint64(step), np.uint64(_WORD - step)
    wide = line >> near
    wide |= line << near
    wide |= line
    wide[:-1] |= line[1:] << far
    wide[1:] |= line[:-1] >> far
    return wide
