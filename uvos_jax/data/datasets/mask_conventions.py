"""Masks of unknown origin, whose numbers must mean the same in every frame of a video.

``uvos_jax.video.read_mask`` reads one file and has to guess from its levels alone. Here all masks of a video are seen
before one is read.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from uvos_jax.data.datasets.ground_truth import pixels
from uvos_jax.data.datasets.index import named
from uvos_jax.errors import UserError
from uvos_jax.labels import VOID
from uvos_jax.video import read_mask
from uvos_jax.video.mask_io import LARGEST_GRAY_ID


class MaskConvention(NamedTuple):
    """What levels mean in the masks of a video.

    Attributes:
        gray_is_binary: In gray masks every level but 0 is object 1; otherwise levels are object numbers and 255 void.
        indexed_is_binary: In indexed masks 255 is object 1; otherwise it is void.
    """

    gray_is_binary: bool
    indexed_is_binary: bool


def detect_convention(video: str, masks: dict[str, Path], faults: list[str]) -> MaskConvention:
    """Finds out what levels mean, from the levels of all masks of a video.

    - Gray masks with 0 and one other level in all of them, which cannot be an object number: that is object 1.
    - Gray masks with levels up to 20, and perhaps 255: object numbers and void, also in a frame with 0 and 255 alone.
    - Indexed masks, where no mask of the video has a level but 0 and 255: 255 is object 1.

    Args:
        video: Its name.
        masks: By frame.
        faults: To which is added that frames have one other level each, but not the same.
    """
    gray: dict[int, str] = {}  # levels, and the frame that has them first
    indexed: set[int] = set()
    for frame, path in masks.items():
        try:
            image, mode = pixels(path)
        except UserError:  # told when the file is checked
            continue
        if mode in ("P", "1"):
            indexed.update(_levels(image))
        elif mode in ("L", "LA"):
            levels = _levels(image if mode == "L" else image[..., 0])
            if len(levels) == 1 or max((level for level in levels if level < VOID), default=0) <= LARGEST_GRAY_ID:
                for level in levels:  # other masks cannot be read, which is told when the file is checked
                    gray.setdefault(level, frame)
    numbers = [level for level in gray if level < VOID]
    numbered = bool(numbers) and max(numbers) <= LARGEST_GRAY_ID
    if len(gray) > 1 and not numbered:
        faults.append(f"{video} has gray masks whose levels differ, and which cannot be object numbers either: "
                      + named(f"{level} in {frame}" for level, frame in sorted(gray.items())))
    return MaskConvention(not numbered, VOID in indexed and indexed | gray.keys() == {VOID})


def read_mask_by_convention(convention: MaskConvention, path: Path) -> np.ndarray:
    """Reads a mask.

    Args:
        convention: That of its video.
        path: The file.

    Returns:
        uint8 [h, w], 255 for void.

    Raises:
        UserError: The file cannot be read, or is no label image.
    """
    labels = read_mask(path, numbered=not convention.gray_is_binary)
    return (labels > 0).astype(np.uint8) if convention.indexed_is_binary else labels


def _levels(image: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.bincount(image.ravel())).tolist()) - {0}
