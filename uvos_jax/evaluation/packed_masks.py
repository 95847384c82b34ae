"""Masks packed into 64-bit words, 64 pixels of a row per word, for fast logical operations and morphology.

Bit i of word j is column 64 j + i. Each row ends with a spare word, and all bits beyond the width are zero. All rows
can therefore be shifted as one long line: bits that leave a row end in its spare word and do not reach the next row.
"""

import math

import numpy as np

_WORD = 64
_BLOCK = 100_000  # bytes; malloc maps larger blocks from the system at every allocation, which is slow


def pack(masks: np.ndarray) -> np.ndarray:
    """Packs boolean masks.

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
    """Packs the mask of one label: ``pack(labels == number)``, but several times faster.

    Works on small blocks of rows, because allocating a buffer for the whole frame takes longer than filling it.

    Args:
        labels: Integer [h, w].
        number: Label to pack.

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
    """Counts the set pixels of packed masks [..., h, words]; returns int64 [...]."""
    return np.bitwise_count(packed).sum((-2, -1), dtype=np.int64)


def contour(packed: np.ndarray, width: int) -> np.ndarray:
    """Marks the pixels that differ from their right, lower or lower-right neighbor.

    This is the boundary map of the DAVIS evaluation code: the contour is shifted half a pixel towards the origin, and
    the image border is not a contour. The last row is compared with right neighbors only, the last column with lower
    neighbors only, and the bottom-right pixel is never marked.

    Args:
        packed: uint64 [..., h, words], see ``pack``.
        width: Number of columns.

    Returns:
        uint64 [..., h, words], the packed contour.
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
    marked[..., -1] = 0  # the shift moved the first pixel of the next row into the spare word
    return marked


def dilate(packed: np.ndarray, radius: int) -> np.ndarray:
    """Dilates by the disk dx^2 + dy^2 <= radius^2; pixels outside the image are unset.

    A disk is a stack of horizontal segments whose half-width grows towards the center row. The mask is widened step by
    step and merged into the result at each row offset whose segment has the current half-width.

    Args:
        packed: uint64 [..., h, words].
        radius: Radius in pixels, 0 or more.

    Returns:
        uint64 [..., h, words]. Bits beyond the width may be set; intersect the result with a contour or mask.
    """
    *leading, height, words = packed.shape
    # Rows are appended to separate the masks, words to separate the rows if the radius is 64 pixels or more.
    width = words + radius // _WORD
    padded = np.zeros((*leading, height + radius, width), np.uint64)
    padded[..., :height, :words] = packed
    widened, half_width = padded.ravel(), 0
    result = np.zeros_like(widened)
    for offset in range(radius, -1, -1):
        target = math.isqrt(radius**2 - offset**2)
        while half_width < target:
            # A segment of 2 w + 1 pixels can be shifted by up to 2 w + 1 without leaving a gap.
            step = min(target - half_width, 2 * half_width + 1, _WORD - 1)
            widened, half_width = _widen(widened, step), half_width + step
        shift = offset * width
        result[shift:] |= widened[: result.size - shift]
        result[: result.size - shift] |= widened[shift:]
    return result.reshape(padded.shape)[..., :height, :words]


def crop(masks: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """Crops packed masks of one frame to the bounding box of their union without changing their contours.

    Inside the image a margin of one row and one word is kept on each side.

    Args:
        masks: uint64 [n, h, words].
        width: Number of columns.

    Returns:
        The cropped masks, and their number of columns.
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
    """Sets the pixels ``step`` columns to the left and right of every set pixel, 0 < step < 64."""
    near, far = np.uint64(step), np.uint64(_WORD - step)
    wide = line >> near
    wide |= line << near
    wide |= line
    wide[:-1] |= line[1:] << far
    wide[1:] |= line[:-1] >> far
    return wide
