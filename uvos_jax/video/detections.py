"""Instances found by a detector or tracker in a video, read from JSON."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from uvos_jax.errors import UserError, error_reason, nearest_hint, quoted
from uvos_jax.video.coco_rle import is_finite, is_integer, shown
from uvos_jax.video.image_io import natural_sort

# Boxes of a detector below this score are dropped as uncertain. Tracks are kept whatever their score.
MIN_SCORE = 0.5
PERSON, CAR = 1, 3  # COCO category_id
_FORMATS = "Give COCO detections (a list, or images and annotations), or objects.json or tracks.json of uvos."


class Detection(NamedTuple):
    """One instance in one frame.

    Attributes:
        box: x0, y0, x1, y1 in pixels, with x1 and y1 after the last pixel; may extend beyond the frame.
        category: COCO category_id; ``PERSON`` if the file states none.
        segmentation: Its mask in COCO format, not validated; None if there is only a box.
        where: File and entry, for messages.
    """

    box: tuple[float, float, float, float]
    category: int
    segmentation: Any
    where: str


@dataclasses.dataclass(frozen=True)
class Detections:
    """The instances found in one video.

    Attributes:
        where: The file, for messages.
        identity: SHA-256 of the file.
        frames: Detections by ``frame_key``, in natural order, of all frames that the file mentions.
        size: (height, width) of the frames; None if unknown.
        dropped: Number of detections dropped for a score below ``MIN_SCORE``.
        length: Number of frames of the video; 0 if unknown.
    """

    where: str
    identity: str
    frames: dict[int | str, list[Detection]]
    size: tuple[int, int] | None = None
    dropped: int = 0
    length: int = 0


def frame_key(name: str) -> int | str:
    """Returns the key of a frame: its name as a number if it is one, as in 7 for "00007", else the name."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 19 else name


def detections_file(path: str | os.PathLike, video: str) -> Path:
    """Returns the detections file of a video: the path itself, or ``<video>.json`` in it if it is a folder.

    Raises:
        UserError: The folder has no such file.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    file = path / f"{video}.json"
    if not file.is_file():
        names = [other.stem for other in path.glob("*.json")]
        raise UserError(f"{quoted(path)} has no '{file.name}' for the video '{video}'.{nearest_hint(video, names)}")
    return file


def read_detections(path: str | os.PathLike) -> Detections:
    """Reads the detections of one video.

    Supported formats:

    - COCO: a list of entries, or an object with that list as "annotations" and a list of "images" ("id", "file_name",
      optional "width" and "height"). An entry has "bbox" [x, y, width, height] and optional "score" (default 1),
      "category_id" and "segmentation" (RLE or polygons). Its frame is given by "image_id", the id of an image or,
      without images, the frame number from 0; by "file_name"; or by "frame", a number or a name.
    - ``objects.json``: an object with "frames", each with "name" and "objects". Scores are ignored.
    - ``tracks.json``: a list of tracks with "frames" (names), "boxes" (one for each), and "segmentations" (one for each
      frame of the video, null where the track is not visible). Scores are ignored.

    Args:
        path: The file.

    Returns:
        The detections.

    Raises:
        UserError: The file cannot be read, has another format, or covers several videos.
    """
    where = quoted(path)
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read the detections {where}: {error_reason(error)}.") from error
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The detections {where} are not JSON: {error_reason(error)}.") from error
    identity = hashlib.sha256(content).hexdigest()
    if isinstance(found, dict) and isinstance(found.get("frames"), list):
        size = found.get("size")
        if not isinstance(size, list) or len(size) != 2:
            raise UserError(f"{where}: size must be [height, width], not {shown(size)}.")
        return Detections(where, identity, _objects_frames(found["frames"], where), _size(*size, where))
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        images, entries = found.get("images", []), found["annotations"]
    elif isinstance(found, list) and found and isinstance(found[0], dict) and "boxes" in found[0]:
        return _tracks(found, where, identity)
    elif isinstance(found, list):
        images, entries = [], found
    else:
        raise UserError(f"{where} has no detections. {_FORMATS}")
    return _coco(images, entries, where, identity)


def _objects_frames(entries, where):
    frames = {}
    for at, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UserError(f"{where}, frame {at}: no name. {_FORMATS}")
        objects = entry.get("objects")
        if not isinstance(objects, list):
            raise UserError(f"{where}, frame {entry['name']!r:.40}: no list of objects. {_FORMATS}")
        of_frame = frames.setdefault(frame_key(entry["name"]), [])
        of_frame += [_detection(thing, f"{where}, frame {entry['name']!r:.40}, object {i}")
                     for i, thing in enumerate(objects)]
    return _sorted_frames(frames)


def _tracks(tracks, where, identity):
    frames, length = {}, 0
    for at, track in enumerate(tracks):
        what = f"{where}, track {at}"
        lists = [track.get(key) for key in ("frames", "boxes", "segmentations")] if isinstance(track, dict) else [None]
        if not all(isinstance(part, list) for part in lists):
            raise UserError(f"{what}: no lists of frames, boxes and segmentations. {_FORMATS}")
        names, boxes, masks = lists[0], lists[1], [mask for mask in lists[2] if mask is not None]
        if not len(names) == len(boxes) == len(masks) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{what}: the numbers of frame names, boxes and segmentations differ.")
        length = max(length, len(lists[2]))
        for name, box, mask in zip(names, boxes, masks, strict=True):
            entry = {"bbox": box, "segmentation": mask} | ({"category_id": track["category_id"]}
                                                           if "category_id" in track else {})
            frames.setdefault(frame_key(name), []).append(_detection(entry, f"{what}, frame {name!r:.40}"))
    return Detections(where, identity, _sorted_frames(frames), length=length)


def _coco(images, entries, where, identity):
    names, sizes, folders = {}, set(), set()
    if not isinstance(images, list):
        raise UserError(f"{where}: images is not a list. {_FORMATS}")
    for at, image in enumerate(images):
        number, file = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if not is_integer(number) or not isinstance(file, str):
            raise UserError(f"{where}, image {at}: no integer id or no file_name.")
        if number in names:
            raise UserError(f"{where}: two images have id {number}.")
        names[number] = frame_key(PurePath(file).stem)
        folders.add(PurePath(file).parent)
        if "width" in image and "height" in image:
            sizes.add(_size(image["height"], image["width"], where))
    frames = {key: [] for key in names.values()}
    dropped = 0
    for at, entry in enumerate(entries):
        what = f"{where}, detection {at}"
        detection = _detection(entry, what)
        if isinstance(entry.get("file_name"), str):
            folders.add(PurePath(entry["file_name"]).parent)
        score = entry.get("score", 1)
        if not is_finite(score):
            raise UserError(f"{what}: score must be a number, not {shown(score)}.")
        of_frame = frames.setdefault(_frame_of(entry, names, what), [])
        if score >= MIN_SCORE:
            of_frame.append(detection)
        else:
            dropped += 1
    if len(folders) > 1:
        raise UserError(f"{where} covers {len(folders)} videos, by the folders of its frames. Give one file per"
                        " video, with the name of the video.")
    if len(sizes) > 1:
        raise UserError(f"{where}: the images have {len(sizes)} different sizes. Give the detections of one video.")
    return Detections(where, identity, _sorted_frames(frames), next(iter(sizes), None), dropped)


def _detection(entry, where):
    """Validates an entry except for its frame and score."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    if not isinstance(box, list) or len(box) != 4 or not all(is_finite(x) for x in box):
        raise UserError(f"{where}: bbox must be four numbers [x, y, width, height] in pixels, not {shown(box)}.")
    x, y, width, height = (float(number) for number in box)
    if width < 0 or height < 0:
        raise UserError(f"{where}: bbox {shown(box)} has a negative side; it must be [x, y, width, height].")
    category = entry.get("category_id", PERSON)
    if not is_integer(category) or not 0 <= category < 2**31:
        raise UserError(f"{where}: category_id must be an integer from 0, not {shown(category)}.")
    return Detection((x, y, x + width, y + height), category, entry.get("segmentation"), where)


def _frame_of(entry, names, where):
    for field in ("file_name", "frame", "image_id"):
        value = entry.get(field)
        if field == "image_id" and names:
            if not is_integer(value) or value not in names:
                raise UserError(f"{where}: no image has the image_id {shown(value)}.")
            return names[value]
        if isinstance(value, str) and value:
            return frame_key(PurePath(value).stem)
        if value is not None:
            if not is_integer(value) or value < 0:
                raise UserError(f"{where}: {field} must be a frame number from 0 or a name, not {shown(value)}.")
            return int(value)
    raise UserError(f"{where}: no frame is given. Give image_id, file_name or frame.")


def _size(height, width, where):
    if not all(is_integer(side) and side > 0 for side in (height, width)):
        raise UserError(f"{where}: invalid frame size {shown(width)} x {shown(height)} (width x height).")
    return int(height), int(width)


def _sorted_frames(frames):
    by_name = {str(key): key for key in frames}
    return {by_name[name]: frames[by_name[name]] for name in natural_sort(by_name)}
