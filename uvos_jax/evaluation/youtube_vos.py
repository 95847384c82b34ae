"""The YouTube-VOS protocol: semi-supervised, objects may first appear in later frames (Xu et al., 2018)."""

import json

import numpy as np

from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.errors import UserError, pluralize
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.predictions import FrameProblems
from uvos_jax.evaluation.region_boundary import nan_mean, score_labels
from uvos_jax.evaluation.report import Result, mean_scores
from uvos_jax.evaluation.scoring import EvaluationRequest

RULE = ("each object from the frame after its first mask to the last annotated frame of the video; 255 is background;"
        " J and F are means over the frames of an object, then over objects; categories of the training split are"
        " seen, all others unseen; G is the mean of J seen, J unseen, F seen and F unseen")


def evaluate(request: EvaluationRequest) -> Result:
    """Scores J and F on a split of YouTube-VOS with ground truth for all annotated frames.

    Seen categories are those in ``train/meta.json``. Without that file G is the mean of J and F over all objects; if
    all objects are of one kind, seen or unseen, G is the mean of that kind.

    Raises:
        UserError: Predictions are missing or invalid, see ``predictions``; or the split has masks of first frames only,
            as ``valid`` has.
    """
    available, videos = layouts.youtube_vos(request.dataset, request.split)
    sequences = request.select(available)
    first_only = [item.name for item in sequences if not item.truths]
    if first_only:
        raise UserError(f"The {request.split} split has masks of first frames only"
                        f" (in {pluralize(len(first_only), 'video')}, such as {first_only[0]}). Pack the predictions"
                        " for the server with --pack FILE.zip.")
    paths = predictions.find_predictions(request.predictions, {item.name: _scored_frames(item, videos[item.name])
                                                               for item in sequences})
    if not any(_scored_frames(item, videos[item.name]) for item in sequences):
        raise UserError("No video has a frame after its first mask, so there is nothing to score. Choose other videos.")
    scored = request.run(_score, [(item, videos[item.name], paths[item.name]) for item in sequences])
    results = [scores for scores, _ in scored]
    seen = _seen_categories(request)
    by_object = {}
    for item, scores in zip(sequences, results, strict=True):
        for obj in videos[item.name]:
            kind = {"category": obj.category, "seen": None if seen is None else obj.category in seen}
            by_object[f"{item.name}_{obj.number}"] = kind | scores[obj.number]
    scores = _summary(list(by_object.values()))
    by_sequence = {item.name: mean_scores([{"J": entry["J"], "F": entry["F"]} for entry in result.values()])
                   | {"objects": {str(number): entry for number, entry in result.items()}}
                   for item, result in zip(sequences, results, strict=True)}
    return Result("youtube-vos", RULE, request.split, scores, by_sequence, list(by_object.items()),
                  frames={item.name: frames for item, (_, frames) in zip(sequences, scored, strict=True)})


def _summary(objects):
    """Averages J and F over all objects and over those of seen and unseen categories, and computes G."""
    parts = {"all": objects, "seen": [entry for entry in objects if entry["seen"] is True],
             "unseen": [entry for entry in objects if entry["seen"] is False]}
    means = {name: mean_scores([{measure: entry[measure] for measure in ("J", "F")} for entry in part])
             for name, part in parts.items() if part}
    split = [means[name] for name in ("seen", "unseen") if name in means] or [means["all"]]
    scores = {"G": nan_mean([part[measure]["mean"] for part in split for measure in ("J", "F")])}
    for measure in ("J", "F"):
        scores[measure] = {"mean": means["all"][measure]["mean"]} | {
            name: means[name][measure]["mean"] for name in ("seen", "unseen") if name in means}
    return scores


def _scored_frames(sequence, objects):
    """Returns the names of the frames after the first mask of the earliest object."""
    first = min(obj.frames[0] for obj in objects)
    return [frame for frame in sequence.frames if frame > first]


def _score(job):
    sequence, objects, paths = job
    problems = FrameProblems(sequence.name, sequence.frames)
    largest = max(obj.number for obj in objects)
    numbers = {obj.number for obj in objects}
    values = {number: {} for number in numbers}
    for frame, prediction, labels in predictions.load_pairs(sequence, _scored_frames(sequence, objects), paths,
                                                       truth.read_objects_without_void, predictions.read_objects,
                                                       problems):
        unknown = sorted(set(np.unique(prediction).tolist()) - numbers - {0})
        if unknown:
            problems.add(frame, f"contains object id {unknown[0]}, which is not in meta.json")
            continue
        region, boundary = score_labels(prediction, labels, largest)
        for obj in objects:
            if frame > obj.frames[0]:
                values[obj.number][frame] = region[obj.number - 1], boundary[obj.number - 1]
    if problems.report():
        return None, problems.report()
    scores = {}
    for number, entries in sorted(values.items()):
        region, boundary = np.array(list(entries.values())).reshape(-1, 2).T
        scores[number] = {"J": {"mean": nan_mean(region)}, "F": {"mean": nan_mean(boundary)}}
    frames = {}
    for frame in _scored_frames(sequence, objects):
        values_of_frame = np.array([entries[frame] for entries in values.values() if frame in entries])
        frames[frame] = {"J": nan_mean(values_of_frame[:, 0]), "F": nan_mean(values_of_frame[:, 1])}
    return (scores, frames), []


def _seen_categories(request):
    # The dataset folder may be that of the split itself.
    candidates = (request.dataset / "train" / "meta.json", request.dataset.parent / "train" / "meta.json")
    meta = next((path for path in candidates if path.is_file()), None)
    if meta is None:
        return None
    try:
        videos = json.loads(meta.read_text())["videos"].values()
        return {str(entry["category"]) for video in videos for entry in video["objects"].values()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"'{meta}' is not a meta.json of YouTube-VOS: {error!r:.100}.") from error
