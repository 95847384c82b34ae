"""Small datasets in benchmark layouts for the evaluation tests."""

from pathlib import Path

import cv2
import numpy as np

from uvos_jax.video import write_mask


def save_masks(folder: Path, labels, names=None) -> None:
    """Writes label maps [t, h, w] as ``<name>.png``; names default to 00000, 00001, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.asarray(labels, np.uint8)
    for name, frame in zip(names or [f"{t:05d}" for t in range(len(labels))], labels, strict=True):
        write_mask(folder / f"{name}.png", frame)


def davis(root: Path, sequences: dict, year: int = 2017, split: str = "val", annotations: str = "Annotations") -> Path:
    """Writes a dataset in the layout of DAVIS: {name: label maps [t, h, w]}."""
    listing = root / "ImageSets" / str(year) / f"{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{name}\n" for name in sequences))
    for name, labels in sequences.items():
        save_masks(root / annotations / "480p" / name, labels)
    return root


def rectangle(top: int, bottom: int, left: int, right: int, size=(40, 60), number: int = 1) -> np.ndarray:
    """Returns a labeled rectangle on background, uint8 [h, w]."""
    labels = np.zeros(size, np.uint8)
    labels[top:bottom, left:right] = number
    return labels


def shifted(mask: np.ndarray) -> np.ndarray:
    """Returns the mask shifted 5 pixels to the right."""
    moved = np.zeros_like(mask)
    moved[:, 5:] = mask[:, :-5]
    return moved


def eroded(mask: np.ndarray, size: int = 13) -> np.ndarray:
    """Returns the mask eroded by a square."""
    return cv2.erode(mask, np.ones((size, size), np.uint8))
