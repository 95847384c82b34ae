"""Average precision of tracks (YouTube-VIS) and of the masks of single frames (COCO), computed from JSON files."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.evaluation.average_precision import DetectionGroup, precision_recall, summarize
from uvos_jax.video.coco_rle import LARGEST_SIDE, is_finite, is_integer, shown, to_rle

# Area ranges in pixels as in the published code; both ends are inclusive, so neighboring ranges share one area.
_TRACK_AREAS = {"all": (0, 1e10), "small": (0, 128**2), "medium": (128**2, 256**2), "large": (256**2, 1e10)}
_FRAME_AREAS = {"all": (0, 1e10), "S": (0, 32**2), "M": (32**2, 96**2), "L": (96**2, 1e10)}
_KEYS = ("video_id", "segmentations", "category_id")
_MAX_PROBLEMS = 8
_Groups = dict[int, dict[int, list[DetectionGroup]]]  # by category id and video id


class _Video(NamedTuple):
    id: int
    height: int
    width: int
    length: int


class _Track(NamedTuple):
    category: int
    rles: list[dict | None]  # compressed RLE of each frame
    areas: np.ndarray  # float [frames], 0 for frames without a mask
    crowd: bool
    score: float | np.ndarray  # of the track, or [frames]; 0 for ground truth


class _Truth(NamedTuple):
    videos: dict[int, _Video]  # by id, ascending
    categories: dict[int, str]  # by id, ascending; the single category 0 if class-agnostic
    tracks: dict[int, list[_Track]]  # by video id


def read_json(path: str | os.PathLike) -> dict | list:
    """Reads a JSON file of ground truth or results.

    Args:
        path: Path of the file.

    Returns:
        The parsed contents; ``evaluate_tracks`` and ``evaluate_frames`` validate them.

    Raises:
        UserError: The file cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {quoted(path)}: {error_reason(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{quoted(path)} is not JSON: {error_reason(error)}.") from error


def evaluate_tracks(truth: dict, results: list, class_agnostic: bool = False) -> dict:
    """Computes the average precision and recall of tracks.

    Yang, Fan and Xu, Video Instance Segmentation, 2019, and their published code. The IoU of two tracks is the sum of
    the intersections over all frames divided by the sum of the unions, 0 if the unions are empty. All other rules are
    COCO's, with at most 100 tracks per video and category. The area of a track is the mean of its nonzero areas, taken
    from ``areas`` of the ground truth if present. As in the published code, the IoU with a crowd is the ordinary IoU
    (COCO divides by the area of the detection instead), and crowds are ignored.

    Args:
        truth: ``{videos: [{id, width, height, length}], categories: [{id, name}], annotations: [{video_id,
            category_id, iscrowd, segmentations, areas}]}``. Each frame has one segmentation: null, RLE (compressed or
            not) or a list of polygons. ``iscrowd``, ``areas`` and ``name`` are optional.
        results: ``[{video_id, category_id, score, segmentations}]``, with null or RLE for each frame.
        class_agnostic: Treat all objects as one category; category ids are not read.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``AP_small``, ``AP_medium``, ``AP_large``, ``AR1``, ``AR10``, ``AR100``, each in
        [0, 1], or -1 if there are no objects; ``per_category``, a list of dicts with ``id``, ``name`` and the same
        scores (empty if class-agnostic); ``per_video``, a list of dicts with ``id``, the same scores for that video,
        and the counts ``tracks`` (without crowds) and ``results``. AP is not the mean over videos.

    Raises:
        UserError: The ground truth or the results are malformed; the message lists the first problems and counts the
            others.
    """
    ground_truth = _read_truth(truth, class_agnostic)
    predicted = _read_results(results, ground_truth, class_agnostic, per_frame=False)
    groups = _groups(ground_truth, predicted, lambda video, detected, true: [_track_group(detected, true)])
    scores = _scores(groups, ground_truth, class_agnostic, _TRACK_AREAS)
    scores["per_video"] = []
    for video in ground_truth.videos:
        curves = [precision_recall(by_video.get(video, []), _TRACK_AREAS) for by_video in groups.values()]
        counts = {"tracks": sum(not track.crowd for track in ground_truth.tracks[video]),
                  "results": len(predicted[video])}
        scores["per_video"].append({"id": video} | summarize(curves, _TRACK_AREAS) | counts)
    return scores


def evaluate_frames(truth: dict, results: list, class_agnostic: bool = True) -> dict:
    """Computes COCO's mask average precision and recall with each frame of each video as an image.

    Equals ``COCOeval`` of pycocotools on the images in the order of video id and frame. D-Net reports this metric for
    its proposals (Table 3). As in COCO, a mask without pixels is a detection, or an object that no detection can match;
    null means no mask.

    Args:
        truth: See ``evaluate_tracks``; the area of an object is taken from ``areas`` if present.
        results: See ``evaluate_tracks``. The score of a mask is that of its track, or the frame's entry of the optional
            list ``scores`` (``score`` is then optional).
        class_agnostic: Treat all objects as one category; category ids are not read.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``AP_S``, ``AP_M``, ``AP_L``, ``AR1``, ``AR10``, ``AR100``, each in [0, 1], or -1
        if there are no objects; ``per_category`` as in ``evaluate_tracks``.

    Raises:
        UserError: The ground truth or the results are malformed; the message lists the first problems and counts the
            others.
    """
    ground_truth = _read_truth(truth, class_agnostic)
    predicted = _read_results(results, ground_truth, class_agnostic, per_frame=True)
    return _scores(_groups(ground_truth, predicted, _frame_groups), ground_truth, class_agnostic, _FRAME_AREAS)


def _groups(truth: _Truth, results: dict[int, list[_Track]], make: Callable) -> _Groups:
    """Returns the detection groups by category and video; videos without tracks of a category are omitted."""
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


def _scores(groups: _Groups, truth: _Truth, class_agnostic: bool, areas: dict) -> dict:
    curves = {k: precision_recall(list(chain(*by_video.values())), areas) for k, by_video in groups.items()}
    rows = [{"id": k, "name": truth.categories[k]} | summarize([curve], areas) for k, curve in curves.items()]
    return summarize(list(curves.values()), areas) | {"per_category": [] if class_agnostic else rows}


def _track_group(detected: list[_Track], true: list[_Track]) -> DetectionGroup:
    from pycocotools import mask as mask_utils

    scores = np.array([track.score for track in detected], float)
    crowd = np.array([track.crowd for track in true], bool)
    sizes, true_sizes = np.array([track.areas.sum() for track in detected]), np.zeros(len(true))
    intersection = np.zeros((len(detected), len(true)))
    for t in range(len(true[0].rles) if true else 0):
        objects = [j for j, track in enumerate(true) if track.rles[t]]
        masks = [true[j].rles[t] for j in objects]
        true_sizes[objects] += mask_utils.area(masks)  # not ``areas``, which the annotation file may override
        present = [i for i, track in enumerate(detected) if track.areas[t]]
        if present and objects:
            # pycocotools does not return intersections, but with crowds it returns intersection / detection area.
            share = mask_utils.iou([detected[i].rles[t] for i in present], masks, [1] * len(objects))
            areas = np.array([detected[i].areas[t] for i in present])
            intersection[np.ix_(present, objects)] += np.rint(share * areas[:, None])
    union = sizes[:, None] + true_sizes - intersection
    ious = intersection / np.maximum(union, 1)
    return DetectionGroup(scores, _mean_areas(detected), ious, _mean_areas(true), crowd)


def _mean_areas(tracks: list[_Track]) -> np.ndarray:
    return np.array([track.areas.sum() / max(np.count_nonzero(track.areas), 1) for track in tracks], float)


def _frame_groups(video: _Video, detected: list[_Track], true: list[_Track]) -> list[DetectionGroup]:
    from pycocotools import mask as mask_utils

    groups = []
    for t in range(video.length):
        present = [track for track in detected if track.rles[t]]
        objects = [track for track in true if track.rles[t]]
        scores = np.array([track.score[t] for track in present], float)
        crowd = np.array([track.crowd for track in objects], bool)
        ious = np.zeros((len(present), len(objects)))
        if ious.size:
            parts = [track.rles[t] for track in present], [track.rles[t] for track in objects]
            ious = mask_utils.iou(*parts, crowd.astype(int).tolist())
        areas, true_areas = (np.array([x.areas[t] for x in tracks], float) for tracks in (present, objects))
        groups.append(DetectionGroup(scores, areas, ious, true_areas, crowd))
    return groups


def _read_truth(truth: object, class_agnostic: bool) -> _Truth:
    if not isinstance(truth, dict):
        raise UserError("The ground truth must be a JSON object with videos and annotations, not"
                        f" {_describe(truth)}.")
    if not truth.get("annotations"):
        raise UserError("The ground truth has no annotations. Choose a split with public ground truth.")
    lists = ("videos", "annotations", "categories")[: 2 if class_agnostic else 3]
    broken = [key for key in lists if not isinstance(truth.get(key), list) or not truth[key]]
    _raise_problems("The ground truth", [f"{key} must be a non-empty list" for key in broken])
    problems: list[str] = []
    videos: dict[int, _Video] = {}
    for at, video in _valid_entries("videos", truth["videos"], ("id", "height", "width", "length"), problems):
        numbers = [video[key] for key in _Video._fields]
        if not all(map(is_integer, numbers)) or min(numbers[1:]) < 1 or max(numbers[1:3]) > LARGEST_SIDE:
            problems.append(f"{at}: id, height, width and length must be integers, with sizes in 1..{LARGEST_SIDE}")
        elif video["id"] in videos:
            problems.append(f"{at}: duplicate id {video['id']}")
        else:
            videos[video["id"]] = _Video(*map(int, numbers))
    categories: dict[int, str] = {0: "object"} if class_agnostic else {}
    for at, category in _valid_entries("categories", () if class_agnostic else truth["categories"], ("id",), problems):
        if not is_integer(category["id"]) or category["id"] in categories:
            problems.append(f"{at}: id {category['id']!r} is not an integer or is a duplicate")
        else:
            categories[category["id"]] = str(category.get("name", category["id"]))
    _raise_problems("The ground truth", problems)
    read = _Truth(dict(sorted(videos.items())), dict(sorted(categories.items())), {video: [] for video in videos})
    keys = _KEYS[: 2 if class_agnostic else 3]
    for at, annotation in _valid_entries("annotations", truth["annotations"], keys, problems):
        before = len(problems)
        video = _video_of(at, annotation, read, class_agnostic, problems)
        if annotation.get("iscrowd", 0) not in (0, 1):
            problems.append(f"{at}: iscrowd must be 0 or 1")
        masks = video and _masks(at, annotation["segmentations"], video, True, problems)
        if masks is None:
            continue
        rles, areas = masks
        given_areas = annotation.get("areas")
        if given_areas is not None:
            is_valid = _are_numbers(given_areas, video.length)
            if is_valid and min((x for x in given_areas if x is not None), default=0) >= 0:
                areas = np.array([own if x is None else x for own, x in zip(areas, given_areas, strict=True)], float)
            else:
                problems.append(f"{at}: areas must be {video.length} non-negative numbers, or null")
        if len(problems) == before:
            category = 0 if class_agnostic else annotation["category_id"]
            read.tracks[video.id].append(_Track(category, rles, areas, bool(annotation.get("iscrowd", 0)), 0.0))
    _raise_problems("The ground truth", problems)
    return read


def _read_results(results: object, truth: _Truth, class_agnostic: bool, per_frame: bool) -> dict[int, list[_Track]]:
    if not isinstance(results, list):
        raise UserError(f"The results must be a JSON list with one object per track, not {_describe(results)}.")
    problems: list[str] = []
    read: dict[int, list[_Track]] = {video: [] for video in truth.videos}
    for at, result in _valid_entries("results", results, _KEYS[: 2 if class_agnostic else 3], problems):
        before = len(problems)
        video = _video_of(at, result, truth, class_agnostic, problems)
        by_frame = per_frame and result.get("scores") is not None
        score = result["scores"] if by_frame else result.get("score", "missing")
        if not by_frame and not is_finite(score):
            problems.append(f"{at}: score is {shown(score)}, not a finite number")
        masks = video and _masks(at, result["segmentations"], video, False, problems)
        if masks is None:
            continue
        rles, areas = masks
        if by_frame and not _are_numbers(score, video.length):
            problems.append(f"{at}: scores must be {video.length} finite numbers, or null for frames without a mask")
        elif by_frame and any(rle and x is None for rle, x in zip(rles, score, strict=True)):
            problems.append(f"{at}: scores has null for a frame with a mask")
        if len(problems) == before:
            if per_frame:  # scores of frames without a mask are None
                score = np.array([x or 0 for x in score] if by_frame else [score] * video.length, float)
            category = 0 if class_agnostic else result["category_id"]
            read[video.id].append(_Track(category, rles, areas, False, score))
    _raise_problems("The results", problems)
    return read


def _valid_entries(name: str, entries: Iterable, keys: tuple[str, ...], problems: list[str]):
    """Yields (name for messages, entry) for each entry that is an object with all keys; records other entries."""
    for i, entry in enumerate(entries):
        at = f"{name}[{i}]"
        if not isinstance(entry, dict):
            problems.append(f"{at} is {_describe(entry)}, not an object")
        elif missing := [key for key in keys if key not in entry]:
            problems.append(f"{at}: {' and '.join(missing)} missing")
        else:
            yield at, entry


def _video_of(at: str, entry: dict, truth: _Truth, class_agnostic: bool, problems: list[str]) -> _Video | None:
    """Returns the video of an annotation or result, or None; records an unknown video or category."""
    if not class_agnostic and not (is_integer(entry["category_id"]) and entry["category_id"] in truth.categories):
        problems.append(f"{at}: category_id {shown(entry['category_id'])} is not in the ground truth")
    if is_integer(entry["video_id"]) and entry["video_id"] in truth.videos:
        return truth.videos[entry["video_id"]]
    problems.append(f"{at}: video_id {shown(entry['video_id'])} is not in the ground truth")
    return None


def _masks(at: str, segmentations: object, video: _Video, polygons: bool, problems: list[str]) -> tuple | None:
    """Returns the RLEs and areas [frames] of a track, or None if the number of segmentations is wrong."""
    from pycocotools import mask as mask_utils

    number = len(segmentations) if isinstance(segmentations, list) else "no list of"
    if number != video.length:
        problems.append(f"{at}: {number} segmentations, but video {video.id} has {video.length} frames")
        return None
    rles, areas = [None] * video.length, np.zeros(video.length)
    for t, segmentation in enumerate(segmentations):
        if segmentation is None or segmentation == []:  # as in the published code, an empty list means no mask
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


def _describe(x: object) -> str:
    return "an object" if isinstance(x, dict) else "a list" if isinstance(x, list) else shown(x)


def _raise_problems(what: str, problems: list[str]) -> None:
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        listed = problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise UserError(f"{what} cannot be used: {'; '.join(listed)}.")
