"""Results as JSON: ``objects.json``, the objects of each frame, and ``tracks.json``, each object over the video.

Masks are compressed COCO run-length encodings.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.atomic_io import atomic_write
from uvos_jax.labels import VOID
from uvos_jax.video.frames import Frame
from uvos_jax.video.image_io import list_images
from uvos_jax.video.mask_io import read_mask

TRACKS_FILE = "tracks.json"
# Notes of each frame that tracks.json needs; the second only from models that classify objects.
TRACK_NOTES = ("scores", "categories")
OBJECTS_SEPARATOR, OBJECTS_FOOTER = ",\n", "\n]}\n"


def objects_header(size: tuple[int, int], fps: float) -> str:
    """Returns the text before the first frame of ``objects.json``; ``size`` is (height, width)."""
    return f'{{"size": {json.dumps(size)}, "fps": {json.dumps(float(fps))}, "frames": [\n'


def objects_line(frame: Frame, labels: np.ndarray, notes: dict) -> str:
    """Returns one frame of ``objects.json`` as a line of JSON.

    Args:
        frame: The frame.
        labels: Integer or bool [h, w], see ``objects_of``.
        notes: JSON values by name that the model gives for the frame; ``center`` is [x, y] as fractions of width and
            height, 0..1.

    Returns:
        Name, time in seconds or null, notes (with ``center`` in pixels) and objects of the frame.
    """
    if notes.get("center"):
        height, width = labels.shape
        x, y = notes["center"]
        notes = notes | {"center": [round(x * width, 2), round(y * height, 2)]}
    return json.dumps({"name": frame.name, "time": frame.time, **notes, "objects": objects_of(labels)})


def objects_of(labels: np.ndarray) -> list[dict]:
    """Describes the objects of a frame in COCO format.

    Args:
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, neither of which is an object.

    Returns:
        For each object, by id: ``id``, ``segmentation`` (``size`` [h, w] and compressed ``counts``), ``bbox``
        [x, y, width, height] and ``area``, in pixels.
    """
    from pycocotools import mask as mask_utils

    labels = labels.astype(np.uint8)
    areas = np.bincount(labels.ravel(), minlength=VOID)
    objects = []
    for object_id in np.flatnonzero(areas[1:VOID]) + 1:
        mask = (labels == object_id).view(np.uint8)
        rle = mask_utils.encode(np.asfortranarray(mask))
        objects.append({
            "id": int(object_id),
            "segmentation": {"size": list(labels.shape), "counts": rle["counts"].decode()},
            "bbox": list(cv2.boundingRect(mask)),
            "area": int(areas[object_id]),
        })
    return objects


def write_tracks(folder: Path, video: str, scores: Sequence[Sequence[float]],
                 categories: Sequence[Sequence[int]] | None = None) -> None:
    """Writes ``tracks.json`` from the masks of a whole video.

    Args:
        folder: The results folder with ``masks/``.
        video: See ``tracks_of``.
        scores: See ``tracks_of``.
        categories: See ``tracks_of``.

    Raises:
        UserError: A mask cannot be read, or the file cannot be written.
    """
    files = list_images(folder / "masks")
    frames = ((file.stem, read_mask(file, numbered=True)) for file in files)
    tracks = tracks_of(video, frames, scores, categories)
    atomic_write(folder / TRACKS_FILE, ("[" + ",\n".join(map(json.dumps, tracks)) + "]\n").encode())


def tracks_of(video: str, frames: Iterable[tuple[str, np.ndarray]], scores: Sequence[Sequence[float]],
              categories: Sequence[Sequence[int]] | None = None) -> list[dict]:
    """Describes each object over the whole video.

    Args:
        video: Name of the video.
        frames: Name and labels, uint8 [h, w], of each frame; ids are stable, 0 is background and 255 void.
        scores: For each frame, the mask scores of ids 1, 2, ..., 0..1.
        categories: For each frame, the categories of ids 1, 2, ..., counted from 1; 0 is unknown.

    Returns:
        For each object, by id: ``id``; ``video_id``, the video's name; ``category_id``, the most frequent category, if
        any is known; ``score``, the mean over the frames that show the object; ``segmentations``, one per frame of the
        video, None where the object is not visible; ``frames``, the names of those that show it, with ``boxes``
        [x, y, width, height] in pixels and ``scores`` for each of them.
    """
    tracks, count = {}, 0
    for (name, labels), frame_scores in zip(frames, scores, strict=True):
        for entry in objects_of(labels):
            object_id = entry["id"]
            track = tracks.setdefault(object_id, {"id": object_id, "video_id": video, "score": 0.0, "frames": [],
                                                  "boxes": [], "scores": [], "segmentations": []})
            track["segmentations"] += [None] * (count - len(track["segmentations"])) + [entry["segmentation"]]
            track["frames"].append(name)
            track["boxes"].append(entry["bbox"])
            track["scores"].append(round(float(frame_scores[object_id - 1]), 4))
        count += 1
    for object_id, track in tracks.items():
        votes = Counter(frame[object_id - 1] for frame in categories or () if frame[object_id - 1])
        if votes:
            track["category_id"] = votes.most_common(1)[0][0]
        track["segmentations"] += [None] * (count - len(track["segmentations"]))
        track["score"] = round(float(np.mean(track["scores"])), 4)
    return [tracks[object_id] for object_id in sorted(tracks)]
