"""The tracks of a video as text: one entry an object, in the form of YouTube-VIS's results and a little more."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from uvos_jax.video.files import write_atomically
from uvos_jax.video.image_files import list_images
from uvos_jax.video.masks import read_mask
from uvos_jax.video.objects_json import objects_of

NAME = "tracks.json"
TOLD = ("scores", "categories")  # what must be told of each frame's objects, the latter where they are told apart


def write_tracks(folder: Path, video: str, scores: Sequence[Sequence[float]],
                 categories: Sequence[Sequence[int]] | None = None) -> None:
    """Writes ``tracks.json`` beside the masks of a whole video, from these; arguments as of ``tracks_of``."""
    files = list_images(folder / "masks")
    frames = ((file.stem, read_mask(file, numbered=True)) for file in files)
    tracks = tracks_of(video, frames, scores, categories)
    write_atomically(folder / NAME, ("[" + ",\n".join(map(json.dumps, tracks)) + "]\n").encode())


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
