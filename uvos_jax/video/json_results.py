"""The objects of each frame as text: run-length masks as COCO has them, boxes and areas."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.atomic_io import atomic_write
from uvos_jax.video.frames import Frame
from uvos_jax.video.image_io import list_images
from uvos_jax.video.mask_io import VOID, read_mask

TAIL = "\n]}\n"


def head(size: tuple[int, int], fps: float) -> str:
    """Returns what stands before the first frame of ``objects.json``; ``size`` is (height, width)."""
    return f'{{"size": {json.dumps(size)}, "fps": {json.dumps(float(fps))}, "frames": [\n'


def line(frame: Frame, labels: np.ndarray, notes: dict) -> str:
    """Returns a frame as JSON on one line.

    Args:
        frame: The frame.
        labels: Integer or bool [h, w], see ``objects_of``.
        notes: What else was said of it, JSON values by name; ``center`` is [x, y] in shares of the width and height.

    Returns:
        Its name, its time in seconds or null, the notes, their center in pixels as those of a ``bbox``, the objects.
    """
    if notes.get("center"):
        height, width = labels.shape
        x, y = notes["center"]
        notes = notes | {"center": [round(x * width, 2), round(y * height, 2)]}
    return json.dumps({"name": frame.name, "time": frame.time, **notes, "objects": objects_of(labels)})


def objects_of(labels: np.ndarray) -> list[dict]:
    """Describes the objects of a frame as COCO does.

    Args:
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, neither of which is an object.

    Returns:
        For each object, by number: ``id``, ``segmentation`` (``size`` [h, w] and compressed ``counts``), ``bbox``
        [x, y, width, height] and ``area``, in pixels.
    """
    from pycocotools import mask as mask_utils

    labels = labels.astype(np.uint8)
    areas = np.bincount(labels.ravel(), minlength=VOID)
    objects = []
    for number in np.flatnonzero(areas[1:VOID]) + 1:
        mask = (labels == number).view(np.uint8)
        run_lengths = mask_utils.encode(np.asfortranarray(mask))
        objects.append({
            "id": int(number),
            "segmentation": {"size": list(labels.shape), "counts": run_lengths["counts"].decode()},
            "bbox": list(cv2.boundingRect(mask)),
            "area": int(areas[number]),
        })
    return objects


NAME = "tracks.json"
TOLD = ("scores", "categories")  # what must be told of each frame's objects, the latter where they are told apart


def write_tracks(folder: Path, video: str, scores: Sequence[Sequence[float]],
                 categories: Sequence[Sequence[int]] | None = None) -> None:
    """Writes ``tracks.json`` beside the masks of a whole video, from these; arguments as of ``tracks_of``."""
    files = list_images(folder / "masks")
    frames = ((file.stem, read_mask(file, numbered=True)) for file in files)
    tracks = tracks_of(video, frames, scores, categories)
    atomic_write(folder / NAME, ("[" + ",\n".join(map(json.dumps, tracks)) + "]\n").encode())


def tracks_of(video: str, frames: Iterable[tuple[str, np.ndarray]], scores: Sequence[Sequence[float]],
              categories: Sequence[Sequence[int]] | None = None) -> list[dict]:
    """Describes each object over the whole video.

    Args:
        video: Its name.
        frames: Name and labels, uint8 [h, w], of each frame; ids are stable, 0 is background and 255 void.
        scores: Of each frame, how sure the mask of id 1, 2, ... is, 0..1.
        categories: Of each frame, what id 1, 2, ... looks like, from 1, or 0 where nothing is told of it.

    Returns:
        For each object, by id: ``id``; ``video_id``, the video's name; ``category_id``, the one told most often, if
        any is told; ``score``, the mean over the frames that show it; ``segmentations``, one a frame of the video:
        compressed run lengths, or None where it is not seen; ``frames``, the names of those that show it, and for each
        of them ``boxes`` [x, y, width, height] in pixels and ``scores``.
    """
    tracks, count = {}, 0
    for (name, labels), its_scores in zip(frames, scores, strict=True):
        for entry in objects_of(labels):
            number = entry["id"]
            track = tracks.setdefault(number, {"id": number, "video_id": video, "score": 0.0, "frames": [],
                                               "boxes": [], "scores": [], "segmentations": []})
            track["segmentations"] += [None] * (count - len(track["segmentations"])) + [entry["segmentation"]]
            track["frames"].append(name)
            track["boxes"].append(entry["bbox"])
            track["scores"].append(round(float(its_scores[number - 1]), 4))
        count += 1
    for number, track in tracks.items():
        told = Counter(frame[number - 1] for frame in categories or () if frame[number - 1])
        if told:
            track["category_id"] = told.most_common(1)[0][0]
        track["segmentations"] += [None] * (count - len(track["segmentations"]))
        track["score"] = round(float(np.mean(track["scores"])), 4)
    return [tracks[number] for number in sorted(tracks)]
