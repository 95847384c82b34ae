"""Small archives in the published layouts of the datasets. Tests of conversion read them.

Each function writes one archive to a folder and returns the number of frames by split.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from uvos_jax.video import write_mask

SIZE = (24, 32)


def picture(name: str, size=SIZE) -> np.ndarray:
    """Returns a smooth image seeded by its name, uint8 [h, w, 3]."""
    rng = np.random.default_rng(list(name.encode()))
    return cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


def image(path: Path, size=SIZE) -> None:
    """Writes a smooth image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(path.as_posix()[-40:], size))


def box(*numbers: int, size=SIZE, shift: int = 0) -> np.ndarray:
    """Returns labels with a box 4 pixels wide per id, side by side, uint8 [h, w]."""
    labels = np.zeros(size, np.uint8)
    for place, number in enumerate(numbers):
        labels[5:15, 2 + shift + 6 * place:6 + shift + 6 * place] = number
    return labels


def mask(path: Path, labels: np.ndarray) -> None:
    """Writes an indexed PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, labels)


def gray(path: Path, levels: np.ndarray) -> None:
    """Writes an image as PNG, BMP, PGM or PPM, by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def lines(path: Path, *entries: str) -> None:
    """Writes a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{entry}\n" for entry in entries))


def davis2016(root: Path) -> dict[str, int]:
    for split, names in (("train", ("bear", "boat")), ("val", ("cows",))):
        pairs = []
        for name in names:
            for t in range(3):
                image(root / f"JPEGImages/480p/{name}/{t:05d}.jpg")
                gray(root / f"Annotations/480p/{name}/{t:05d}.png", box(255, shift=t))
                pairs.append(f"/JPEGImages/480p/{name}/{t:05d}.jpg /Annotations/480p/{name}/{t:05d}.png")
        lines(root / f"ImageSets/2016/{split}.txt", *pairs)
    return {"train": 6, "val": 3}


def davis2017(root: Path) -> dict[str, int]:
    for split, name, frames in (("train", "dogs", 3), ("val", "pigs", 2), ("test-dev", "lock", 4)):
        for year in (2017, 2019) if split == "test-dev" else (2017,):
            lines(root / f"ImageSets/{year}/{split}.txt", name)
        for t in range(frames):
            image(root / f"JPEGImages/480p/{name}/{t:05d}.jpg")
            if split != "test-dev" or t == 0:
                mask(root / f"Annotations/480p/{name}/{t:05d}.png", box(1, 2, shift=t))
            if split != "test-dev":
                mask(root / f"Annotations_unsupervised/480p/{name}/{t:05d}.png", box(3, 255, 1, shift=t))
    return {"train": 3, "val": 2, "test-dev": 4}


def youtube_vos(root: Path) -> dict[str, int]:
    """Train at 30 frames per second: 11 frames, every fifth labeled, object 2 from frame 5 on; valid as published."""
    names = [f"{t:05d}" for t in range(11)]
    for name in names:
        image(root / f"train_all_frames/JPEGImages/003234408d/{name}.jpg")
    for name, numbers in (("00000", (1,)), ("00005", (1, 2)), ("00010", (2,))):
        mask(root / f"train/Annotations/003234408d/{name}.png", box(*numbers))
    objects = {"1": {"category": "dog", "frames": ["00000", "00005"]},
               "2": {"category": "ape", "frames": ["00005", "00010"]}}
    (root / "train/meta.json").write_text(json.dumps({"videos": {"003234408d": {"objects": objects}}}))
    for name in ("00000", "00005", "00010"):
        image(root / f"valid/JPEGImages/00f88c4f0a/{name}.jpg")
    mask(root / "valid/Annotations/00f88c4f0a/00000.png", box(1))
    mask(root / "valid/Annotations/00f88c4f0a/00005.png", box(0, 2))
    objects = {"1": {"category": "cat", "frames": ["00000", "00005", "00010"]},
               "2": {"category": "fox", "frames": ["00005", "00010"]}}
    (root / "valid/meta.json").write_text(json.dumps({"videos": {"00f88c4f0a": {"objects": objects}}}))
    return {"train": 11, "valid": 3}


def youtube_vis(root: Path) -> dict[str, int]:
    """Train: a polygon over the whole frame, a smaller RLE mask on it, and a crowd; valid: no annotations."""
    whole = [[0, 0, 32, 0, 32, 24, 0, 24]]
    small = box(1).astype(bool)
    compressed = mask_utils.encode(np.asfortranarray(small.astype(np.uint8)))
    runs = np.flatnonzero(np.diff(small.T.ravel(), prepend=False, append=False)).tolist()
    counts = np.diff([0, *runs, small.size]).tolist()
    crowd = mask_utils.encode(np.asfortranarray(box(0, 0, 1)))
    for split, video in (("train", "0065b171f9"), ("valid", "00f88c4f0a")):
        for t in range(3):
            image(root / f"{split}/JPEGImages/{video}/{5 * t:05d}.jpg")
        content = {"videos": [{"id": 7, "height": 24, "width": 32, "length": 3,
                               "file_names": [f"{video}/{5 * t:05d}.jpg" for t in range(3)]}],
                   "categories": [{"id": 1, "name": "person"}, {"id": 9, "name": "dog"}]}
        if split == "train":
            content["annotations"] = [
                {"id": 1, "video_id": 7, "category_id": 9, "iscrowd": 0, "segmentations": [
                    {"size": [24, 32], "counts": compressed["counts"].decode()}, None,
                    {"size": [24, 32], "counts": counts}]},
                {"id": 2, "video_id": 7, "category_id": 1, "iscrowd": 0, "segmentations": [whole, None, None]},
                {"id": 3, "video_id": 7, "category_id": 1, "iscrowd": 1, "segmentations": [
                    None, None, {"size": [24, 32], "counts": crowd["counts"].decode()}]}]
        (root / f"{split}.json").write_text(json.dumps(content))
    return {"train": 3, "valid": 3}


def duts(root: Path) -> dict[str, int]:
    for part, count in (("TR", 3), ("TE", 2)):
        for k in range(count):
            image(root / f"DUTS-{part}/DUTS-{part}-Image/ILSVRC_{part}_{k}.jpg", (24, 32 + k))
            gray(root / f"DUTS-{part}/DUTS-{part}-Mask/ILSVRC_{part}_{k}.png", box(127, 128, 255, size=(24, 32 + k)))
    return {"train": 3, "test": 2}


def msra10k(root: Path) -> dict[str, int]:
    for k in range(3):
        image(root / f"MSRA10K_Imgs_GT/Imgs/{k}.jpg")
        gray(root / f"MSRA10K_Imgs_GT/Imgs/{k}.png", box(255, shift=k))
    return {"train": 3}


def fbms59(root: Path) -> dict[str, int]:
    """Train: gray files of two sequences, one with its own threshold; test: color files with white background."""
    for name in ("cars2", "marple7"):
        for t in range(1, 5):
            image(root / f"Trainingset/{name}/{name}_{t:02d}.jpg")
        for t in (1, 4):
            gray(root / f"Trainingset/{name}/GroundTruth/{name}_{t:02d}.pgm", box(20, 200, shift=t))
    for t in range(3):
        image(root / f"Testset/people1/people1_{t:04d}.jpg")
    colors = np.full((*SIZE, 3), 255, np.uint8)
    colors[box(1) > 0] = (0, 0, 255)
    colors[box(0, 1) > 0] = (200, 60, 0)
    gray(root / "Testset/people1/GroundTruth/people1_0001_gt.ppm", colors)
    gray(root / "Testset/people1/GroundTruth/people1_0001_PROB_gt.ppm", 255 - colors)
    return {"train": 8, "test": 3}


def youtube_objects(root: Path) -> dict[str, int]:
    for name in ("cat/0003", "train/0001"):
        for t in range(3):
            image(root / f"JPEGImages/{name}/{t:05d}.jpg")
        gray(root / f"Annotations/{name}/00001.png", box(255))
    return {"test": 6}


def visal(root: Path) -> dict[str, int]:
    for name, suffix in (("boat", ".bmp"), ("boat2", ".png")):
        for t in range(1, 4):
            image(root / f"Imgs/{name}/{name}_{t:03d}.jpg")
        for t in (1, 3):
            gray(root / f"GT/{name}_{t:03d}{suffix}", box(255, shift=t))
    return {"test": 6}


def segtrack_v2(root: Path) -> dict[str, int]:
    for t in range(2):
        image(root / f"JPEGImages/drift/drift_{t:04d}.bmp")
        gray(root / f"GroundTruth/drift/1/drift_{t:04d}.png", box(255, 255, shift=t))
        gray(root / f"GroundTruth/drift/2/drift_{t:04d}.png", box(255, shift=t))
        image(root / f"JPEGImages/worm/worm_{t:04d}.png")
        gray(root / f"GroundTruth/worm/worm_{t:04d}.png", np.dstack([box(255)] * 3))
    return {"test": 4}


def folder(root: Path) -> dict[str, int]:
    for name in ("one", "two"):
        for t in (1, 2, 10):  # natural order is not that of the alphabet
            image(root / f"JPEGImages/{name}/frame{t}.png")
        gray(root / f"Annotations/{name}/frame10.png", box(2))
        gray(root / f"Annotations/{name}/frame2.png", box(2, 1))
    return {"train": 6}
