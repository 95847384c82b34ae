"""YouTube-VIS: videos with object masks in JSON, as run-length encodings or polygons."""

import json
from collections import Counter, defaultdict
from os.path import isfile  # unlike Path.is_file, returns False for invalid names
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uvos_jax.data.datasets.index import DatasetIndex, VideoFiles, join_names, make_index, make_video, stack_masks
from uvos_jax.errors import UserError, pluralize
from uvos_jax.labels import VOID
from uvos_jax.video.coco_rle import LARGEST_SIDE, to_rle

_MAX_OBJECTS = VOID - 1


class Segments(NamedTuple):
    """Objects of a frame as stored in the JSON file.

    Attributes:
        where: Annotation file and video, for messages.
        size: (height, width).
        objects: Pairs of object id and mask: run-length encoding (compressed or not) or list of polygons.
    """

    where: str
    size: tuple[int, int]
    objects: tuple[tuple[int, Any], ...]


def index_youtube_vis(root: Path, config: str | None = None) -> DatasetIndex:
    """YouTube-VIS: ``<split>/JPEGImages``, ``<split>/instances.json`` (2021) or ``<split>.json`` (2019).

    Objects of a video get ids 1, 2, .. in the order of the file; where objects overlap, the smaller one is on top.
    Crowds are void. Videos without annotations, such as those of valid and test, have no labels.
    """
    splits, faults = {}, []
    for split in ("train", "valid", "test"):
        places = (root / split / "instances.json", root / split / f"{split}.json", root / f"{split}.json",
                  root / "annotations" / f"instances_{split}.json", root / "annotations" / f"{split}.json")
        path = next((place for place in places if place.is_file()), None)
        if path:
            splits[split] = _videos(path, root / split / "JPEGImages", faults)
    if not splits:
        raise UserError(f"'{root}' has neither <split>/instances.json nor <split>.json of train, valid or test. Give"
                        " the folder of YouTube-VIS with --source.")
    return make_index(splits, faults)


def read_segments(segments: Segments) -> np.ndarray:
    """Decodes the objects of a frame.

    Returns:
        uint8 [h, w]; the smaller of two objects is on top.

    Raises:
        UserError: A mask is malformed.
    """
    from pycocotools import mask as mask_utils

    height, width = segments.size
    masks = []
    for number, segmentation in segments.objects:
        try:
            rle = to_rle(segmentation, height, width)
        except ValueError as error:
            raise UserError(f"{segments.where}, object {number}: its mask {error}.") from error
        masks.append((number, mask_utils.decode(rle).astype(bool)))
    return stack_masks(masks, segments.size)


def _videos(path: Path, images: Path, faults: list[str]) -> list[VideoFiles | None]:
    try:
        content = json.loads(path.read_bytes())
        names = {entry["id"]: str(entry["name"]) for entry in content.get("categories") or ()}
        by_video, strays = defaultdict(list), defaultdict(list)
        ids = Counter(entry["id"] for entry in content["videos"])
        for at, entry in enumerate(content.get("annotations") or (), 1):
            object_id = entry.get("id", at)
            if entry["video_id"] not in ids:
                strays["video"].append(object_id)
            if "category_id" in entry and entry["category_id"] not in names:
                strays["category"].append(object_id)
            by_video[entry["video_id"]].append((names.get(entry.get("category_id"), "object"), entry["segmentations"],
                                                bool(entry.get("iscrowd"))))
        videos = [([str(name) for name in entry["file_names"]], (_side(entry["height"]), _side(entry["width"])),
                   by_video[entry["id"]]) for entry in content["videos"]]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"'{path}' is not the annotation file of YouTube-VIS: {error!r:.100}.") from error
    faults += [f"'{path}': annotations {join_names(found)} refer to a {what} that is not listed"
               for what, found in strays.items()]
    repeated = {"id": [key for key, count in ids.items() if count > 1],
                "name": [name for name, count in Counter(_name(files) for files, *_ in videos if files).items()
                         if count > 1]}
    for what, found in repeated.items():
        if found:
            faults.append(f"'{path}' has two videos of the same {what}: {join_names(found)}")
    return [_video(path, images, files, size, tracks, faults) for files, size, tracks in videos if files]


def _side(value):
    if not 1 <= int(value) <= LARGEST_SIDE:
        raise ValueError(f"a side of {value} pixels")
    return int(value)


def _name(files):
    return files[0].rpartition("/")[0] or Path(files[0]).stem


def _video(path, images, files, size, tracks, faults):
    name = _name(files)
    where = f"'{path}', video {name}"
    stems = [Path(file).stem for file in files]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        faults.append(f"{where}: frames are listed twice: {join_names(twice)}")
        return None
    wrong = [at for at, (_, masks, _) in enumerate(tracks, 1)
             if not isinstance(masks, list) or len(masks) != len(files)]
    if wrong:
        faults.append(f"{where}: objects {join_names(wrong)} need one mask per frame"
                      f" ({pluralize(len(files), 'frame')})")
        return None
    number, numbers, categories = 0, [], {}
    for category, _, crowd in tracks:
        number += not crowd
        numbers.append(VOID if crowd else number)
        if not crowd:
            categories[str(number)] = category
    if number > _MAX_OBJECTS:
        faults.append(f"{where}: more than {_MAX_OBJECTS} objects")
        return None
    masks = {stem: Segments(f"{where}, frame {stem}", size, tuple(
        (number, masks[t]) for number, (_, masks, _) in zip(numbers, tracks, strict=True) if masks[t]))
        for t, stem in enumerate(stems)} if tracks else {}
    there = {stem: images / file for stem, file in zip(stems, files, strict=True) if isfile(images / file)}
    missing = [file for stem, file in zip(stems, files, strict=True) if stem not in there]
    if missing and there:
        faults.append(f"{name} has no image {join_names(missing)} in '{images}'")
        masks = {stem: mask for stem, mask in masks.items() if stem in there}
    return make_video(name, there, masks, read_segments, faults, images / name, needed=(), categories=categories)
