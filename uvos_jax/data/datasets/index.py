"""Which files a dataset consists of, found out without opening images: what conversion checks and then writes."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.data.datasets.layouts import IMAGES, mask_files
from uvos_jax.video.image_io import natural_sort

_NAMED = 6  # files of one fault that are named


@dataclass(frozen=True)
class FrameFiles:
    """A frame.

    Attributes:
        name: Its file's name without suffix.
        image: Its image file.
        labels: What its video's ``read`` takes, often a path; None if it has no ground truth.
        flow: Its flow file (see ``read_flow``), to the next frame; None if there is none.
    """

    name: str
    image: Path
    labels: Any = None
    flow: Path | None = None


@dataclass(frozen=True)
class VideoFiles:
    """A video, or a still image as a video of one frame.

    Attributes:
        name: As results name it; it may hold slashes.
        frames: All its frames, in order.
        read: Turns ``FrameFiles.labels`` into labels, uint8 [h, w]: 0 background, 1..254 objects, 255 void.
        categories: What objects are, by number, where the dataset tells.
    """

    name: str
    frames: tuple[FrameFiles, ...]
    read: Callable[[Any], np.ndarray]
    categories: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetIndex:
    """A dataset.

    Attributes:
        splits: Its videos, by split.
        faults: What is wrong with it, as far as names tell.
        notes: What is remarkable, but no fault.
    """

    splits: dict[str, tuple[VideoFiles, ...]]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def flow(self) -> bool:
        """Whether frames have flow; then all have."""
        return any(frame.flow for videos in self.splits.values() for video in videos for frame in video.frames)


def make_index(splits: dict[str, Iterable[VideoFiles | None]], faults: Iterable[str],
                 notes: Iterable[str] = ()) -> DatasetIndex:
    """Makes a listing of what ``make_video`` returned; splits without a video are left out, with a note."""
    full = {split: tuple(video for video in videos if video) for split, videos in splits.items()}
    notes = [*notes, *(f"{split} left out, since it has no video" for split, videos in full.items() if not videos)]
    return DatasetIndex({split: videos for split, videos in full.items() if videos}, tuple(faults), tuple(notes))


def named(names: Iterable[Any]) -> str:
    """Names the first few of many, and counts the others."""
    names = [str(name) for name in names]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def folders_in(folder: Path, deep: bool = False) -> list[Path]:
    """Lists the folders within one, without those that systems make for themselves, such as ``__MACOSX``.

    Args:
        folder: Need not exist.
        deep: List those within these too.
    """
    found = sorted(folder.rglob("*") if deep else folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.is_dir()
            and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)]


def images_in(folder: Path, faults: list[str], suffixes: tuple[str, ...] = ()) -> dict[str, Path]:
    """Lists the images of a folder by name without suffix, in natural order; two of one name are a fault.

    Args:
        folder: Need not exist.
        faults: To which faults are added.
        suffixes: Only these count, all if empty; in lower case.
    """
    if not folder.is_dir():
        return {}
    files = natural_sort(path for path in folder.iterdir()
                         if path.suffix.lower() in (suffixes or IMAGES) and not path.name.startswith("."))
    found = {path.stem: path for path in files}
    twice = [path.stem for path in files if found[path.stem] != path]
    if twice:
        faults.append(f"'{folder}' has two images of one name: {named(twice)}")
    return found


def masks_in(folder: Path, faults: list[str]) -> dict[str, Path]:
    """Lists the masks of a folder by name without suffix; JPEG files are a fault.

    Args:
        folder: Need not exist.
        faults: To which faults are added.
    """
    masks = {path.stem: path for path in mask_files(folder)}
    jpegs = sorted(path.name for path in folder.glob("*.[jJ][pP]*[gG]")) if folder.is_dir() else []
    if jpegs:
        faults.append(f"'{folder}' has masks saved as JPEG, which changes labels; save them as PNG: {named(jpegs)}")
    return masks


def make_video(name: str, images: dict[str, Path], masks: dict[str, Any], read: Callable[[Any], np.ndarray],
               faults: list[str], where: Path, needed: Iterable[str] | None = None,
               categories: dict[str, str] | None = None) -> VideoFiles | None:
    """Pairs images and masks by name.

    Args:
        name: Of the video.
        images: By name without suffix, in order.
        masks: What ``read`` takes, by name of the frame.
        read: See ``VideoFiles``.
        faults: To which a missing video, missing masks and masks without an image are added.
        where: Where the images should be, for the message.
        needed: Frames that must have a mask; all if not given.
        categories: See ``VideoFiles``.

    Returns:
        The video, or None if there are no images.
    """
    if not images:
        faults.append(f"{name} has no images in '{where}'")
        return None
    without_mask = [stem for stem in (images if needed is None else needed) if stem in images and stem not in masks]
    if without_mask:
        faults.append(f"{name} has no mask for {named(without_mask)}")
    without_image = [stem for stem in dict.fromkeys([*masks, *(needed or ())]) if stem not in images]
    if without_image:
        faults.append(f"{name} has no image for the {'mask ' if without_image[0] in masks else 'frame '}"
                      f"{named(without_image)}")
    frames = tuple(FrameFiles(stem, path, masks.get(stem)) for stem, path in images.items())
    return VideoFiles(name, frames, read, categories or {})


def match_masks(images: dict[str, Path], masks: dict[str, Any]) -> dict[str, Any]:
    """Renames masks after their images, which some datasets call otherwise.

    A mask belongs to the image of its name, or of its name without ``_gt``; if some do not have one, to that whose
    last number is the same, where all of a video differ in it.
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
    """The last number in a file's name."""
    numbers = re.findall(r"\d+", stem)
    return int(numbers[-1]) if numbers else None


def stack_masks(masks: Iterable[tuple[int, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """Lays masks of objects over each other, smaller ones on top.

    Args:
        masks: Numbers 1..255 and bool [h, w].
        size: (height, width).

    Returns:
        uint8 [h, w]; of two masks of one size the later one is on top.
    """
    labels = np.zeros(size, np.uint8)
    for number, mask in sorted(masks, key=lambda item: -int(np.count_nonzero(item[1]))):
        labels[mask] = number
    return labels
