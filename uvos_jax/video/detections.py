"""Instances that a detector or a tracker has found in a video, read from JSON."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from uvos_jax.errors import UserError, error_reason, nearest_hint, quoted
from uvos_jax.video.coco_rle import is_finite, is_integer, shown
from uvos_jax.video.image_io import natural_sort

# Of a detector's boxes, those below are guesses; trackers have decided for themselves.
SMALLEST_SCORE = 0.5
PERSON, CAR = 1, 3  # category_id of COCO
_FORMS = ("COCO's detections (a list, or images and annotations), or the objects.json or tracks.json of a run of uvos")


class Detection(NamedTuple):
    """One instance in one frame.

    Attributes:
        box: x0, y0, x1, y1 in pixels, x1 and y1 behind the last pixel; may reach beyond the frame.
        category: COCO's category_id; ``PERSON`` where none is told.
        segmentation: Its mask as COCO writes it, unchecked; None if the box is all that is known.
        where: For messages: the file and the entry.
    """

    box: tuple[float, float, float, float]
    category: int
    segmentation: Any
    where: str


@dataclasses.dataclass(frozen=True)
class Detections:
    """What was found in one video.

    Attributes:
        where: The file, for messages.
        identity: Digest of all that is in it.
        frames: Detections by ``frame_key``, in natural order, of all frames that are spoken of.
        size: (height, width) of the frames; None if that is not told.
        unsure: The number that was left out for a score below ``SMALLEST_SCORE``.
        length: Number of frames of the video, where that is told.
    """

    where: str
    identity: str
    frames: dict[int | str, list[Detection]]
    size: tuple[int, int] | None = None
    unsure: int = 0
    length: int = 0


def frame_key(name: str) -> int | str:
    """Returns what a frame is known by: the number that its name is, or else the name; 7 for "00007"."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 19 else name


def detections_file(path: str | os.PathLike, video: str) -> Path:
    """Returns the file of a video: the path itself, or ``<video>.json`` in it where it is a folder.

    Raises:
        UserError: The folder has no such file.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    file = path / f"{video}.json"
    if not file.is_file():
        names = [other.stem for other in path.glob("*.json")]
        raise UserError(f"{quoted(path)} holds no '{file.name}' for the video '{video}'.{nearest_hint(video, names)}")
    return file


def read_detections(path: str | os.PathLike) -> Detections:
    """Reads the detections of one video.

    They are in one of these forms:

    - COCO's: a list of entries, or an object with that list as "annotations" and a list of "images" ("id", "file_name",
      perhaps "width" and "height"). An entry has "bbox" [x, y, width, height] and perhaps "score" (1 if not),
      "category_id" and "segmentation" (run lengths or polygons). Its frame is told by "image_id", of the images if
      there are some, and else the frame's number from 0 on; by "file_name"; or by "frame", a number or a name.
    - that of ``objects.json``: an object with "frames", each with "name" and "objects".
    - that of ``tracks.json``: a list of tracks with "frames" (names), a box for each in "boxes", and "segmentations" of
      all frames of the video, None where the track is not. Scores are not looked at, as in ``objects.json``.

    Args:
        path: The file.

    Raises:
        UserError: It cannot be read, has another form, or is of several videos.
    """
    where = quoted(path)
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"The detections {where} cannot be read: {error_reason(error)}.") from error
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The detections {where} are no JSON: {error_reason(error)}.") from error
    identity = hashlib.sha256(content).hexdigest()
    if isinstance(found, dict) and isinstance(found.get("frames"), list):
        size = found.get("size")
        if not isinstance(size, list) or len(size) != 2:
            raise UserError(f"{where}: its size is {shown(size)}; it must be [height, width].")
        return Detections(where, identity, _own_frames(found["frames"], where), _size(*size, where))
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        images, entries = found.get("images", []), found["annotations"]
    elif isinstance(found, list) and found and isinstance(found[0], dict) and "boxes" in found[0]:
        return _tracks(found, where, identity)
    elif isinstance(found, list):
        images, entries = [], found
    else:
        raise UserError(f"{where} holds no detections; wanted are {_FORMS}.")
    return _coco(images, entries, where, identity)


def _own_frames(entries, where):
    frames = {}
    for at, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UserError(f"{where}, frame {at}: it has no name; wanted are {_FORMS}.")
        objects = entry.get("objects")
        if not isinstance(objects, list):
            raise UserError(f"{where}, frame {entry['name']!r:.40}: it has no list of objects; wanted are {_FORMS}.")
        of_frame = frames.setdefault(frame_key(entry["name"]), [])
        of_frame += [_detection(thing, f"{where}, frame {entry['name']!r:.40}, object {i}")
                     for i, thing in enumerate(objects)]
    return _in_order(frames)


def _tracks(tracks, where, identity):
    frames, length = {}, 0
    for at, track in enumerate(tracks):
        what = f"{where}, track {at}"
        lists = [track.get(key) for key in ("frames", "boxes", "segmentations")] if isinstance(track, dict) else [None]
        if not all(isinstance(part, list) for part in lists):
            raise UserError(f"{what}: it has no lists of frames, boxes and segmentations; wanted are {_FORMS}.")
        names, boxes, masks = lists[0], lists[1], [mask for mask in lists[2] if mask is not None]
        if not len(names) == len(boxes) == len(masks) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{what}: it has not as many names of frames as boxes and segmentations.")
        length = max(length, len(lists[2]))
        for name, box, mask in zip(names, boxes, masks, strict=True):
            entry = {"bbox": box, "segmentation": mask} | ({"category_id": track["category_id"]}
                                                           if "category_id" in track else {})
            frames.setdefault(frame_key(name), []).append(_detection(entry, f"{what}, frame {name!r:.40}"))
    return Detections(where, identity, _in_order(frames), length=length)


def _coco(images, entries, where, identity):
    names, sizes, folders = {}, set(), set()
    if not isinstance(images, list):
        raise UserError(f"{where}: its images are no list; wanted are {_FORMS}.")
    for at, image in enumerate(images):
        number, file = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if not is_integer(number) or not isinstance(file, str):
            raise UserError(f"{where}, image {at}: it has no whole number as id, or no file_name.")
        if number in names:
            raise UserError(f"{where}: two images have the id {number}.")
        names[number] = frame_key(PurePath(file).stem)
        folders.add(PurePath(file).parent)
        if "width" in image and "height" in image:
            sizes.add(_size(image["height"], image["width"], where))
    frames = {key: [] for key in names.values()}
    unsure = 0
    for at, entry in enumerate(entries):
        what = f"{where}, detection {at}"
        detection = _detection(entry, what)
        if isinstance(entry.get("file_name"), str):
            folders.add(PurePath(entry["file_name"]).parent)
        score = entry.get("score", 1)
        if not is_finite(score):
            raise UserError(f"{what}: its score is {shown(score)}, no number.")
        of_frame = frames.setdefault(_frame_of(entry, names, what), [])
        if score >= SMALLEST_SCORE:
            of_frame.append(detection)
        else:
            unsure += 1
    if len(folders) > 1:
        raise UserError(f"{where} is of {len(folders)} videos, by the folders of its frames; give each video a file of"
                        " its own, called as the video.")
    if len(sizes) > 1:
        raise UserError(f"{where}: its images have {len(sizes)} different sizes, so that they are not one video.")
    return Detections(where, identity, _in_order(frames), next(iter(sizes), None), unsure)


def _detection(entry, where):
    """Judges all but the frame and the score."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    if not isinstance(box, list) or len(box) != 4 or not all(is_finite(x) for x in box):
        raise UserError(f"{where}: its bbox is {shown(box)}; it must be [x, y, width, height] in pixels, four numbers.")
    x, y, width, height = (float(number) for number in box)
    if width < 0 or height < 0:
        raise UserError(f"{where}: its bbox {shown(box)} has a negative side; it must be [x, y, width, height].")
    category = entry.get("category_id", PERSON)
    if not is_integer(category) or not 0 <= category < 2**31:
        raise UserError(f"{where}: its category_id is {shown(category)}, no number of a category.")
    return Detection((x, y, x + width, y + height), category, entry.get("segmentation"), where)


def _frame_of(entry, names, where):
    for field in ("file_name", "frame", "image_id"):
        value = entry.get(field)
        if field == "image_id" and names:
            if not is_integer(value) or value not in names:
                raise UserError(f"{where}: its image_id is {shown(value)}, which no image has.")
            return names[value]
        if isinstance(value, str) and value:
            return frame_key(PurePath(value).stem)
        if value is not None:
            if not is_integer(value) or value < 0:
                raise UserError(f"{where}: its {field} is {shown(value)}; a frame is a number from 0 on or a name.")
            return int(value)
    raise UserError(f"{where}: it does not tell its frame, by image_id, file_name or frame.")


def _size(height, width, where):
    if not all(is_integer(side) and side > 0 for side in (height, width)):
        raise UserError(f"{where}: frames of {shown(width)} x {shown(height)} (width x height) cannot be.")
    return int(height), int(width)


def _in_order(frames):
    by_name = {str(key): key for key in frames}
    return {by_name[name]: frames[by_name[name]] for name in natural_sort(by_name)}
