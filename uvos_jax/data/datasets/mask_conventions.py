"""Conventions of masks of unknown origin: ids must mean the same in every frame of a video.

``uvos_jax.video.read_mask`` reads one file and infers the convention from its levels. Here the levels of all masks
of a video are examined first.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from uvos_jax.data.datasets.ground_truth import read_pixels
from uvos_jax.data.datasets.index import join_names
from uvos_jax.errors import UserError
from uvos_jax.labels import VOID
from uvos_jax.video import read_mask
from uvos_jax.video.mask_io import LARGEST_GRAY_ID


class MaskConvention(NamedTuple):
    """Meaning of the levels in the masks of a video.

    Attributes:
        gray_is_binary: In gray masks every level except 0 is object 1; otherwise levels are object ids and 255 is void.
        indexed_is_binary: In indexed masks 255 is object 1; otherwise it is void.
    """

    gray_is_binary: bool
    indexed_is_binary: bool


def detect_convention(video: str, masks: dict[str, Path], faults: list[str]) -> MaskConvention:
    """Infers the meaning of levels from all masks of a video.

    - Gray masks with 0 and a single other level that cannot be an object id: that level is object 1.
    - Gray masks with levels up to 20, and possibly 255: object ids and void, also in frames with only 0 and 255.
    - Indexed masks with only 0 and 255 in the whole video: 255 is object 1.

    Args:
        video: Name of the video.
        masks: Mask files by frame.
        faults: Receives a fault if the frames use different single levels.
    """
    gray: dict[int, str] = {}  # first frame with each level
    indexed: set[int] = set()
    for frame, path in masks.items():
        try:
            image, mode = read_pixels(path)
        except UserError:  # reported when the file is checked
            continue
        if mode in ("P", "1"):
            indexed.update(_levels(image))
        elif mode in ("L", "LA"):
            levels = _levels(image if mode == "L" else image[..., 0])
            if len(levels) == 1 or max((level for level in levels if level < VOID), default=0) <= LARGEST_GRAY_ID:
                for level in levels:  # other masks are unreadable, which is reported when the file is checked
                    gray.setdefault(level, frame)
    numbers = [level for level in gray if level < VOID]
    numbered = bool(numbers) and max(numbers) <= LARGEST_GRAY_ID
    if len(gray) > 1 and not numbered:
        faults.append(f"{video} has gray masks with different levels that cannot be object ids: "
                      + join_names(f"{level} in {frame}" for level, frame in sorted(gray.items())))
    return MaskConvention(not numbered, VOID in indexed and indexed | gray.keys() == {VOID})


def read_mask_by_convention(convention: MaskConvention, path: Path) -> np.ndarray:
    """Reads a mask with the convention of its video.

    Args:
        convention: Convention of the video.
        path: The file.

    Returns:
        uint8 [h, w], 255 for void.

    Raises:
        UserError: The file cannot be read, or is not a label image.
    """
    labels = read_mask(path, numbered=not convention.gray_is_binary)
    return (labels > 0).astype(np.uint8) if convention.indexed_is_binary else labels


def _levels(image: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.bincount(image.ravel())).tolist()) - {0}
