"""Average precision of tracks (YouTube-VIS) and of their masks frame by frame (COCO), from JSON to scores."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.evaluation.average_precision import Group, precision_recall, summarize
from uvos_jax.video.coco_rle import LARGEST_SIDE, is_finite, is_integer, shown, to_rle

# Area ranges as the published code has them; both ends belong to a range, so neighbors share one area.
_TRACK_AREAS = {"all": (0, 1e10), "small": (0, 128**2), "medium": (128**2, 256**2), "large": (256**2, 1e10)}
_FRAME_AREAS = {"all": (0, 1e10), "S": (0, 32**2), "M": (32**2, 96**2), "L": (96**2, 1e10)}
_KEYS = ("video_id", "segmentations", "category_id")
_PROBLEMS_NAMED = 8


class _Video(NamedTuple):
    id: int
    height: int
    width: int
    length: int


class _Track(NamedTuple):
    category: int
    rles: list[dict | None]  # one per frame, compressed
    areas: np.ndarray  # float [frames], 0 where there is no mask
    crowd: bool
    score: float | np.ndarray  # of the track, or [frames]; 0 in the truth


class _Truth(NamedTuple):
    videos: dict[int, _Video]  # ascending
    categories: dict[int, str]  # ascending; one category 0 where classes play no part
    tracks: dict[int, list[_Track]]  # by video


def read_json(path: str | os.PathLike) -> dict | list:
    """Reads a JSON file, truth or results.

    Args:
        path: The file.

    Returns:
        What it holds; ``evaluate_tracks`` and ``evaluate_frames`` check it.

    Raises:
        UserError: There is no such file, it cannot be read, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {quoted(path)}: {error_reason(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{quoted(path)} is not JSON: {error_reason(error)}.") from error


def evaluate_tracks(truth: dict, results: list, class_agnostic: bool = False) -> dict:
    """Computes average precision and recall of tracks.

    Yang, Fan and Xu, Video Instance Segmentation, 2019, and their published code. The IoU of two tracks is the sum
    over frames of the intersections by that of the unions, 0 where there is no union. COCO's rules do the rest,
    with at most 100 tracks for each video and category. The area of a track is the mean over frames in which it
    is not 0, taken from ``areas`` of the truth where given. As in the published code, the IoU with a crowd is the
    plain one (COCO divides by the detection instead), and a crowd is ignored.

    Args:
        truth: ``{videos: [{id, width, height, length}], categories: [{id, name}], annotations: [{video_id,
            category_id, iscrowd, segmentations, areas}]}``. There is one segmentation per frame: null, RLE
            (compressed or not) or a list of polygons. ``iscrowd``, ``areas`` and ``name`` may be missing.
        results: ``[{video_id, category_id, score, segmentations}]``, with null or RLE for each frame.
        class_agnostic: Take everything for one category; then no category id is read.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``AP_small``, ``AP_medium``, ``AP_large``, ``AR1``, ``AR10``, ``AR100``, each
        0..1, or -1 where there is nothing to find; ``per_category``, a list of dicts with ``id``, ``name`` and the
        same scores (empty if class agnostic); ``per_video``, a list of dicts with ``id``, the same scores for that
        video alone, and the numbers ``tracks`` (crowds left out) and ``results``. AP is not the mean over videos.

    Raises:
        UserError: The truth or the results are broken; the first faults are named, the others counted.
    """
    known = _read_truth(truth, class_agnostic)
    found = _read_results(results, known, class_agnostic, per_frame=False)
    groups = _groups(known, found, lambda video, detected, true: [_track_group(detected, true)])
    scores = _scores(groups, known, class_agnostic, _TRACK_AREAS)
    scores["per_video"] = []
    for video in known.videos:
        curves = [precision_recall(by_video.get(video, []), _TRACK_AREAS) for by_video in groups.values()]
        numbers = {"tracks": sum(not track.crowd for track in known.tracks[video]), "results": len(found[video])}
        scores["per_video"].append({"id": video} | summarize(curves, _TRACK_AREAS) | numbers)
    return scores


def evaluate_frames(truth: dict, results: list, class_agnostic: bool = True) -> dict:
    """Computes COCO's mask average precision and recall, each frame of each video being an image.

    Equal to ``COCOeval`` of pycocotools on the images in the order of video id and frame. This is the measure of
    proposals in D-Net, Table 3. As COCO has it, a mask without a pixel is a detection, or an object that cannot be
    found; null stands for no mask.

    Args:
        truth: As for ``evaluate_tracks``; the area of an object is that of ``areas`` where given.
        results: As for ``evaluate_tracks``. A mask's score is that of its track, or comes from ``scores``, one per
            frame, where the track has them (then ``score`` may be missing).
        class_agnostic: Take everything for one category; then no category id is read.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``AP_S``, ``AP_M``, ``AP_L``, ``AR1``, ``AR10``, ``AR100``, each 0..1, or -1
        where there is nothing to find; ``per_category`` as for ``evaluate_tracks``.

    Raises:
        UserError: The truth or the results are broken; the first faults are named, the others counted.
    """
    known = _read_truth(truth, class_agnostic)
    found = _read_results(results, known, class_agnostic, per_frame=True)
    return _scores(_groups(known, found, _frame_groups), known, class_agnostic, _FRAME_AREAS)


def _groups(truth: _Truth, results: dict[int, list[_Track]], make: Callable) -> dict[int, dict[int, list[Group]]]:
    """Returns the groups of each category and video; only what has tracks is there."""
    groups = {category: {} for category in truth.categories}
    for video in truth.videos.values():
        detected, true = defaultdict(list), defaultdict(list)
        for track in results[video.id]:
            detected[track.category].append(track)
        for track in truth.tracks[video.id]:
            true[track.category].append(track)
        for category in detected.keys() | true.keys():
            groups[category][video.id] = make(video, detected[category], true[category])
    return groups


def _scores(groups: dict[int, dict[int, list[Group]]], truth: _Truth, class_agnostic: bool, areas: dict) -> dict:
    curves = {k: precision_recall(list(chain(*by_video.values())), areas) for k, by_video in groups.items()}
    rows = [{"id": k, "name": truth.categories[k]} | summarize([curve], areas) for k, curve in curves.items()]
    return summarize(list(curves.values()), areas) | {"per_category": [] if class_agnostic else rows}


def _track_group(detected: list[_Track], true: list[_Track]) -> Group:
    from pycocotools import mask as mask_utils

    scores = np.array([track.score for track in detected], float)
    crowd = np.array([track.crowd for track in true], bool)
    sizes, true_sizes = np.array([track.areas.sum() for track in detected]), np.zeros(len(true))
    intersection = np.zeros((len(detected), len(true)))
    for t in range(len(true[0].rles) if true else 0):
        objects = [j for j, track in enumerate(true) if track.rles[t]]
        masks = [true[j].rles[t] for j in objects]
        true_sizes[objects] += mask_utils.area(masks)  # not ``areas``, which the truth may have from elsewhere
        some = [i for i, track in enumerate(detected) if track.areas[t]]
        if some and objects:
            # pycocotools gives no intersections, but for crowds intersection / area of the detection.
            share = mask_utils.iou([detected[i].rles[t] for i in some], masks, [1] * len(objects))
            areas = np.array([detected[i].areas[t] for i in some])
            intersection[np.ix_(some, objects)] += np.rint(share * areas[:, None])
    union = sizes[:, None] + true_sizes - intersection
    ious = intersection / np.maximum(union, 1)
    return Group(scores, _mean_areas(detected), ious, _mean_areas(true), crowd)


def _mean_areas(tracks: list[_Track]) -> np.ndarray:
    return np.array([track.areas.sum() / max(np.count_nonzero(track.areas), 1) for track in tracks], float)


def _frame_groups(video: _Video, detected: list[_Track], true: list[_Track]) -> list[Group]:
    from pycocotools import mask as mask_utils

    groups = []
    for t in range(video.length):
        some = [track for track in detected if track.rles[t]]
        objects = [track for track in true if track.rles[t]]
        scores = np.array([track.score[t] for track in some], float)
        crowd = np.array([track.crowd for track in objects], bool)
        ious = np.zeros((len(some), len(objects)))
        if ious.size:
            parts = [track.rles[t] for track in some], [track.rles[t] for track in objects]
            ious = mask_utils.iou(*parts, crowd.astype(int).tolist())
        areas, true_areas = (np.array([x.areas[t] for x in tracks], float) for tracks in (some, objects))
        groups.append(Group(scores, areas, ious, true_areas, crowd))
    return groups


def _read_truth(truth: object, class_agnostic: bool) -> _Truth:
    if not isinstance(truth, dict):
        raise UserError(f"the truth must be a JSON object with videos and annotations, not {_kind(truth)}.")
    if not truth.get("annotations"):
        raise UserError("the truth has no annotations, so there is no ground truth to compare with (a test split?).")
    lists = ("videos", "annotations", "categories")[: 2 if class_agnostic else 3]
    broken = [key for key in lists if not isinstance(truth.get(key), list) or not truth[key]]
    _stop_at("the truth", [f"{key} must be a list with something in it" for key in broken])
    problems: list[str] = []
    videos: dict[int, _Video] = {}
    for at, video in _objects("videos", truth["videos"], ("id", "height", "width", "length"), problems):
        numbers = [video[key] for key in _Video._fields]
        if not all(map(is_integer, numbers)) or min(numbers[1:]) < 1 or max(numbers[1:3]) > LARGEST_SIDE:
            problems.append(f"{at}: id, height, width and length must be integers, the sizes from 1 to {LARGEST_SIDE}")
        elif video["id"] in videos:
            problems.append(f"{at}: the id {video['id']} is there twice")
        else:
            videos[video["id"]] = _Video(*map(int, numbers))
    categories: dict[int, str] = {0: "object"} if class_agnostic else {}
    for at, category in _objects("categories", () if class_agnostic else truth["categories"], ("id",), problems):
        if not is_integer(category["id"]) or category["id"] in categories:
            problems.append(f"{at}: the id {category['id']!r} is not an integer, or is there twice")
        else:
            categories[category["id"]] = str(category.get("name", category["id"]))
    _stop_at("the truth", problems)
    read = _Truth(dict(sorted(videos.items())), dict(sorted(categories.items())), {video: [] for video in videos})
    keys = _KEYS[: 2 if class_agnostic else 3]
    for at, annotation in _objects("annotations", truth["annotations"], keys, problems):
        before = len(problems)
        video = _place(at, annotation, read, class_agnostic, problems)
        if annotation.get("iscrowd", 0) not in (0, 1):
            problems.append(f"{at}: iscrowd must be 0 or 1")
        masks = video and _masks(at, annotation["segmentations"], video, True, problems)
        if masks is None:
            continue
        rles, areas = masks
        given = annotation.get("areas")
        if given is not None:
            if _are_numbers(given, video.length) and min((x for x in given if x is not None), default=0) >= 0:
                areas = np.array([own if x is None else x for own, x in zip(areas, given, strict=True)], float)
            else:
                problems.append(f"{at}: areas must be {video.length} numbers from 0 up, or null")
        if len(problems) == before:
            category = 0 if class_agnostic else annotation["category_id"]
            read.tracks[video.id].append(_Track(category, rles, areas, bool(annotation.get("iscrowd", 0)), 0.0))
    _stop_at("the truth", problems)
    return read


def _read_results(results: object, truth: _Truth, class_agnostic: bool, per_frame: bool) -> dict[int, list[_Track]]:
    if not isinstance(results, list):
        raise UserError(f"the results must be a JSON list, one object per track, not {_kind(results)}.")
    problems: list[str] = []
    read: dict[int, list[_Track]] = {video: [] for video in truth.videos}
    for at, result in _objects("results", results, _KEYS[: 2 if class_agnostic else 3], problems):
        before = len(problems)
        video = _place(at, result, truth, class_agnostic, problems)
        by_frame = per_frame and result.get("scores") is not None
        score = result["scores"] if by_frame else result.get("score", "missing")
        if not by_frame and not is_finite(score):
            problems.append(f"{at}: score is {shown(score)}, not a finite number")
        masks = video and _masks(at, result["segmentations"], video, False, problems)
        if masks is None:
            continue
        rles, areas = masks
        if by_frame and not _are_numbers(score, video.length):
            problems.append(f"{at}: scores must be {video.length} finite numbers, or null where there is no mask")
        elif by_frame and any(rle and x is None for rle, x in zip(rles, score, strict=True)):
            problems.append(f"{at}: scores is null for a frame with a mask")
        if len(problems) == before:
            if per_frame:  # a score of None stands where there is no mask
                score = np.array([x or 0 for x in score] if by_frame else [score] * video.length, float)
            category = 0 if class_agnostic else result["category_id"]
            read[video.id].append(_Track(category, rles, areas, False, score))
    _stop_at("the results", problems)
    return read


def _objects(name: str, entries: Iterable, keys: tuple[str, ...], problems: list[str]):
    """Yields each entry that is an object with all keys, with a name for it."""
    for i, entry in enumerate(entries):
        at = f"{name}[{i}]"
        if not isinstance(entry, dict):
            problems.append(f"{at} is {_kind(entry)}, not an object")
        elif missing := [key for key in keys if key not in entry]:
            problems.append(f"{at}: {' and '.join(missing)} missing")
        else:
            yield at, entry


def _place(at: str, entry: dict, truth: _Truth, class_agnostic: bool, problems: list[str]) -> _Video | None:
    """Returns the video of an annotation or result, and looks at its category."""
    if not class_agnostic and not (is_integer(entry["category_id"]) and entry["category_id"] in truth.categories):
        problems.append(f"{at}: category_id {shown(entry['category_id'])} is not in the truth")
    if is_integer(entry["video_id"]) and entry["video_id"] in truth.videos:
        return truth.videos[entry["video_id"]]
    problems.append(f"{at}: video_id {shown(entry['video_id'])} is not in the truth")
    return None


def _masks(at: str, segmentations: object, video: _Video, polygons: bool, problems: list[str]) -> tuple | None:
    """Returns the RLEs and the areas [frames] of a track; None if it has not one entry for each frame."""
    from pycocotools import mask as mask_utils

    number = len(segmentations) if isinstance(segmentations, list) else "no list of"
    if number != video.length:
        problems.append(f"{at}: {number} segmentations, but video {video.id} has {video.length} frames")
        return None
    rles, areas = [None] * video.length, np.zeros(video.length)
    for t, segmentation in enumerate(segmentations):
        if segmentation is None or segmentation == []:  # an empty list is no mask in the published code too
            continue
        try:
            rles[t] = to_rle(segmentation, video.height, video.width, polygons)
        except ValueError as error:
            problems.append(f"{at}: segmentations[{t}] {error}")
    present = [t for t, rle in enumerate(rles) if rle]
    areas[present] = mask_utils.area([rles[t] for t in present])
    return rles, areas


def _are_numbers(values: object, length: int) -> bool:
    return isinstance(values, list) and len(values) == length and all(x is None or is_finite(x) for x in values)


def _kind(x: object) -> str:
    return "an object" if isinstance(x, dict) else "a list" if isinstance(x, list) else shown(x)


def _stop_at(what: str, problems: list[str]) -> None:
    if problems:
        more = len(problems) - _PROBLEMS_NAMED
        named = problems[:_PROBLEMS_NAMED] + ([f"and {more} more"] if more > 0 else [])
        raise UserError(f"{what} cannot be used: {'; '.join(named)}.")
