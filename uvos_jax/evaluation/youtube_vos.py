"""The protocol of YouTube-VOS, semi-supervised, with objects that appear later (Xu et al., 2018)."""

import json

import numpy as np

from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.errors import UserError
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.predictions import Complaints
from uvos_jax.evaluation.region_boundary import nan_mean, score_labels
from uvos_jax.evaluation.report import Result, mean_of
from uvos_jax.evaluation.scoring import Request

RULE = ("each object from the frame after its first mask to the video's last annotated frame; 255 is no object; J and"
        " F are means over an object's frames, then over objects; categories of the training split are seen, the"
        " others unseen; G is the mean of J seen, J unseen, F seen, F unseen")


def evaluate(request: Request) -> Result:
    """Scores J and F on a split of YouTube-VOS whose ground truth is there.

    Seen categories are those in ``train/meta.json``. Without that file, or with one kind of category only, G is the
    mean of what there is.

    Raises:
        UserError: See ``predictions``; also where only first frames have a mask, as in ``valid``.
    """
    every, videos = layouts.youtube_vos(request.dataset, request.split)
    sequences = request.chosen(every)
    without = [item.name for item in sequences if not item.truths]
    if without:
        raise UserError(f"The {request.split} split has masks of first frames only (in {len(without)} videos, such as"
                        f" {without[0]}): pack the results for the server with --pack FILE.zip.")
    files = predictions.find(request.predictions, {item.name: _scored(item, videos[item.name]) for item in sequences})
    if not any(_scored(item, videos[item.name]) for item in sequences):
        raise UserError("No video has a frame after its first mask, so there is nothing to score.")
    scored = request.each(_score, [(item, videos[item.name], files[item.name]) for item in sequences])
    results = [scores for scores, _ in scored]
    seen = _seen_categories(request)
    by_object = {}
    for item, scores in zip(sequences, results, strict=True):
        for thing in videos[item.name]:
            kind = {"category": thing.category, "seen": None if seen is None else thing.category in seen}
            by_object[f"{item.name}_{thing.number}"] = kind | scores[thing.number]
    scores = _summary(list(by_object.values()))
    by_sequence = {item.name: mean_of([{"J": entry["J"], "F": entry["F"]} for entry in result.values()])
                   | {"objects": {str(number): entry for number, entry in result.items()}}
                   for item, result in zip(sequences, results, strict=True)}
    return Result("youtube-vos", RULE, request.split, scores, by_sequence, list(by_object.items()),
                  frames={item.name: frames for item, (_, frames) in zip(sequences, scored, strict=True)})


def _summary(objects):
    """The means over all objects, and over the objects of seen and of unseen categories."""
    parts = {"all": objects, "seen": [entry for entry in objects if entry["seen"] is True],
             "unseen": [entry for entry in objects if entry["seen"] is False]}
    means = {name: mean_of([{measure: entry[measure] for measure in ("J", "F")} for entry in part])
             for name, part in parts.items() if part}
    split = [means[name] for name in ("seen", "unseen") if name in means] or [means["all"]]
    scores = {"G": nan_mean([part[measure]["mean"] for part in split for measure in ("J", "F")])}
    for measure in ("J", "F"):
        scores[measure] = {"mean": means["all"][measure]["mean"]} | {
            name: means[name][measure]["mean"] for name in ("seen", "unseen") if name in means}
    return scores


def _scored(sequence, objects):
    """Names of the frames after the first mask of the earliest object."""
    first = min(thing.frames[0] for thing in objects)
    return [frame for frame in sequence.frames if frame > first]


def _score(job):
    sequence, objects, files = job
    complaints = Complaints(sequence.name, sequence.frames)
    largest = max(thing.number for thing in objects)
    numbers = {thing.number for thing in objects}
    values = {number: {} for number in numbers}
    for frame, prediction, labels in predictions.pairs(sequence, _scored(sequence, objects), files,
                                                       truth.read_objects_without_void, predictions.read_objects,
                                                       complaints):
        strange = sorted(set(np.unique(prediction).tolist()) - numbers - {0})
        if strange:
            complaints.note(frame, f"holds object {strange[0]}, which meta.json does not name")
            continue
        region, boundary = score_labels(prediction, labels, largest)
        for thing in objects:
            if frame > thing.frames[0]:
                values[thing.number][frame] = region[thing.number - 1], boundary[thing.number - 1]
    if complaints.found():
        return None, complaints.found()
    scores = {}
    for number, entries in sorted(values.items()):
        region, boundary = np.array(list(entries.values())).reshape(-1, 2).T
        scores[number] = {"J": {"mean": nan_mean(region)}, "F": {"mean": nan_mean(boundary)}}
    frames = {}
    for frame in _scored(sequence, objects):
        there = np.array([entries[frame] for entries in values.values() if frame in entries])
        frames[frame] = {"J": nan_mean(there[:, 0]), "F": nan_mean(there[:, 1])}
    return (scores, frames), []


def _seen_categories(request):
    # The dataset may have been given as the folder of the split.
    places = (request.dataset / "train" / "meta.json", request.dataset.parent / "train" / "meta.json")
    meta = next((path for path in places if path.is_file()), None)
    if meta is None:
        return None
    try:
        videos = json.loads(meta.read_text())["videos"].values()
        return {str(entry["category"]) for video in videos for entry in video["objects"].values()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"'{meta}' is not a meta.json of YouTube-VOS: {error!r:.100}.") from error
