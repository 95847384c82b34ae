"""Index of a dataset: the files of its videos, collected without opening images."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.data.datasets.layouts import IMAGES, mask_files
from uvos_jax.video.image_io import natural_sort

_MAX_NAMES = 6  # files listed per fault


@dataclass(frozen=True)
class FrameFiles:
    """Files of a frame.

    Attributes:
        name: File name without suffix.
        image: Image file.
        labels: Argument for ``VideoFiles.read``, often a path; None without ground truth.
        flow: Flow file to the next frame (see ``read_flow``), or None.
    """

    name: str
    image: Path
    labels: Any = None
    flow: Path | None = None


@dataclass(frozen=True)
class VideoFiles:
    """Files of a video; a still image is a video of one frame.

    Attributes:
        name: Name used in results; it may contain slashes.
        frames: All frames, in order.
        read: Converts ``FrameFiles.labels`` to labels, uint8 [h, w]: 0 background, 1..254 objects, 255 void.
        categories: Category by object id, where the dataset has them.
    """

    name: str
    frames: tuple[FrameFiles, ...]
    read: Callable[[Any], np.ndarray]
    categories: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetIndex:
    """Files of a dataset.

    Attributes:
        splits: Videos by split.
        faults: Faults that are visible from the file names.
        notes: Remarks that are not faults.
    """

    splits: dict[str, tuple[VideoFiles, ...]]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def flow(self) -> bool:
        """Whether the frames have flow; either all or none have."""
        return any(frame.flow for videos in self.splits.values() for video in videos for frame in video.frames)


def make_index(splits: dict[str, Iterable[VideoFiles | None]], faults: Iterable[str],
                 notes: Iterable[str] = ()) -> DatasetIndex:
    """Creates an index from results of ``make_video``; empty splits are left out, with a note."""
    full = {split: tuple(video for video in videos if video) for split, videos in splits.items()}
    notes = [*notes, *(f"{split} left out, no videos" for split, videos in full.items() if not videos)]
    return DatasetIndex({split: videos for split, videos in full.items() if videos}, tuple(faults), tuple(notes))


def join_names(names: Iterable[Any]) -> str:
    """Joins the first few names and counts the others."""
    names = [str(name) for name in names]
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def folders_in(folder: Path, deep: bool = False) -> list[Path]:
    """Lists the subfolders of a folder, without hidden and system folders such as ``__MACOSX``.

    Args:
        folder: May not exist.
        deep: Search recursively.
    """
    found = sorted(folder.rglob("*") if deep else folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.is_dir()
            and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)]


def images_in(folder: Path, faults: list[str], suffixes: tuple[str, ...] = ()) -> dict[str, Path]:
    """Lists the images of a folder by name without suffix, in natural order; duplicate names are a fault.

    Args:
        folder: May not exist.
        faults: Receives the faults.
        suffixes: Accepted suffixes in lower case; empty accepts all image suffixes.
    """
    if not folder.is_dir():
        return {}
    files = natural_sort(path for path in folder.iterdir()
                         if path.suffix.lower() in (suffixes or IMAGES) and not path.name.startswith("."))
    found = {path.stem: path for path in files}
    twice = [path.stem for path in files if found[path.stem] != path]
    if twice:
        faults.append(f"'{folder}' has two images of the same name: {join_names(twice)}")
    return found


def masks_in(folder: Path, faults: list[str]) -> dict[str, Path]:
    """Lists the masks of a folder by name without suffix; JPEG files are a fault.

    Args:
        folder: May not exist.
        faults: Receives the faults.
    """
    masks = {path.stem: path for path in mask_files(folder)}
    jpegs = sorted(path.name for path in folder.glob("*.[jJ][pP]*[gG]")) if folder.is_dir() else []
    if jpegs:
        faults.append(f"'{folder}' has JPEG masks, which have altered labels; save them as PNG: {join_names(jpegs)}")
    return masks


def make_video(name: str, images: dict[str, Path], masks: dict[str, Any], read: Callable[[Any], np.ndarray],
               faults: list[str], where: Path, needed: Iterable[str] | None = None,
               categories: dict[str, str] | None = None) -> VideoFiles | None:
    """Pairs images and masks by name.

    Args:
        name: Name of the video.
        images: Images by name without suffix, in order.
        masks: Arguments for ``read``, by name of the frame.
        read: See ``VideoFiles``.
        faults: Receives the faults: no images, missing masks, masks without an image.
        where: Expected folder of the images, for the message.
        needed: Frames that must have a mask; None for all.
        categories: See ``VideoFiles``.

    Returns:
        The video, or None if there are no images.
    """
    if not images:
        faults.append(f"{name} has no images in '{where}'")
        return None
    without_mask = [stem for stem in (images if needed is None else needed) if stem in images and stem not in masks]
    if without_mask:
        faults.append(f"{name} has no mask for {join_names(without_mask)}")
    without_image = [stem for stem in dict.fromkeys([*masks, *(needed or ())]) if stem not in images]
    if without_image:
        faults.append(f"{name} has no image for the {'mask ' if without_image[0] in masks else 'frame '}"
                      f"{join_names(without_image)}")
    frames = tuple(FrameFiles(stem, path, masks.get(stem)) for stem, path in images.items())
    return VideoFiles(name, frames, read, categories or {})


def match_masks(images: dict[str, Path], masks: dict[str, Any]) -> dict[str, Any]:
    """Renames masks to the names of their images, for datasets where the names differ.

    A mask matches the image of the same name, also without ``_gt``. If some masks match no image, masks and images are
    matched by the last number in their names, provided that it is unique within the video.
    """
    plain = {stem if stem in images else re.sub(r"_gt$", "", stem): mask for stem, mask in masks.items()}
    if len(plain) < len(masks) or plain.keys() <= images.keys():
        return plain if len(plain) == len(masks) else masks
    by_number = {last_number(stem): stem for stem in images}
    numbers = [last_number(stem) for stem in plain]
    if len(by_number) < len(images) or len(set(numbers)) < len(numbers):
        return masks
    return {by_number.get(number, stem): mask for (stem, mask), number in zip(plain.items(), numbers, strict=True)}


def last_number(stem: str) -> int | None:
    """Returns the last number in a file name."""
    numbers = re.findall(r"\d+", stem)
    return int(numbers[-1]) if numbers else None


def stack_masks(masks: Iterable[tuple[int, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """Stacks object masks into one label map, smaller masks on top.

    Args:
        masks: Pairs of id (1..255) and mask, bool [h, w].
        size: (height, width).

    Returns:
        uint8 [h, w]; of two masks of equal area the later one is on top.
    """
    labels = np.zeros(size, np.uint8)
    for number, mask in sorted(masks, key=lambda item: -int(np.count_nonzero(item[1]))):
        labels[mask] = number
    return labels
