"""The objects of each frame as text: run-length masks as COCO has them, boxes and areas."""

import json

import cv2
import numpy as np

from uvos_jax.video.masks import VOID
from uvos_jax.video.source import Frame

TAIL = "\n]}\n"


def head(size: tuple[int, int], fps: float) -> str:
    """Returns what stands before the first frame of ``objects.json``; ``size`` is (height, width)."""
    return f'{{"size": {json.dumps(size)}, "fps": {json.dumps(float(fps))}, "frames": [\n'


def line(frame: Frame, labels: np.ndarray, notes: dict) -> str:
    """Returns a frame as JSON on one line.

    Args:
        frame: The frame.
        labels: Integer or bool [h, w], see ``objects_of``.
        notes: What else was said of it, JSON values by name; ``centre`` is [x, y] in shares of the width and height.

    Returns:
        Its name, its time in seconds or null, the notes, their centre in pixels as those of a ``bbox``, the objects.
    """
    if notes.get("centre"):
        height, width = labels.shape
        x, y = notes["centre"]
        notes = notes | {"centre": [round(x * width, 2), round(y * height, 2)]}
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
