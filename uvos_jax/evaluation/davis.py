"""The protocols of DAVIS: 2016 (one foreground), 2017 semi-supervised and 2017 unsupervised (many objects)."""

import numpy as np

from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.predictions import Complaints
from uvos_jax.evaluation.region_boundary import assign, nan_mean, score_all_pairs, score_labels, statistics
from uvos_jax.evaluation.report import Result, as_dict, mean_of
from uvos_jax.evaluation.scoring import Request
from uvos_jax.evaluation.temporal_stability import sequence_instability

_VOID = 255
_T_FACTOR = 5
_NO_OBJECT = "shows no object in the ground truth, where the objects are counted"
# The sequences of DAVIS-2016 whose T counts (`eval_t` in the benchmark's list); in the others occlusions and fast
# motion would be measured instead. First those of the training split, then those of the validation split.
_T_COUNTS = frozenset((
    "bear", "boat", "bus", "car-turn", "dance-jump", "drift-turn", "elephant", "flamingo", "hike", "hockey",
    "kite-walk", "mallard-water", "motocross-bumps", "rhino", "stroller", "surf", "train",
    "blackswan", "camel", "car-roundabout", "car-shadow", "cows", "drift-straight", "kite-surf", "paragliding-launch",
    "scooter-black", "soapbox"))

RULE_2016 = ("one foreground: truth and prediction are above 0; J and F over frames 2 to N-1 of each sequence (first"
             " and last left out); no void; mean, recall (> 0.5) and decay, then the mean over sequences; T = 5 x mean"
             " over neighboring predictions of those frames, on the sequences that DAVIS-2016 lists for it, lower is"
             " better")
RULE_SEMI = ("objects 1 to the largest number in the first frame's truth; J and F of each over frames 2 to N-1; 255"
             " in the truth is background; a prediction with more objects is refused, missing objects are empty; mean,"
             " recall (> 0.5) and decay of each object, then the mean over the objects of all sequences")
RULE_UNSUPERVISED = ("at most 20 proposals, one label a pixel; every frame counts; 255 in the truth is void;"
                     " proposals are assigned to the objects of the first frame by the best sum of mean J&F"
                     " (Hungarian), those left over cost nothing; mean, recall (> 0.5) and decay, then the mean over"
                     " the objects of all sequences")


def evaluate_2016(request: Request) -> Result:
    """Scores J, F and T on DAVIS-2016 (Perazzi et al., CVPR 2016).

    The published Python tool takes T over the pairs within frames 2 to N-1, and so does this; the MATLAB tool adds the
    pair of the first frame's truth and the second prediction.

    Raises:
        UserError: See ``predictions``; also for a sequence of fewer than three frames.
    """
    every = layouts.davis(request.dataset, 2016, request.split)
    sequences = request.chosen(every)
    layouts.check_truth(sequences, request.split, fewest=3)
    files = predictions.find(request.predictions, {item.name: item.frames[1:-1] for item in sequences})
    # Where no sequence is on the list, as in somebody's own videos, T counts everywhere.
    counted = _T_COUNTS.intersection(item.name for item in every) or {item.name for item in every}
    results = request.each(_score_2016, [(item, files[item.name], request.temporal and item.name in counted)
                                         for item in sequences])
    by_name = {item.name: scores for item, (scores, _) in zip(sequences, results, strict=True)}
    overall = mean_of(list(by_name.values()))
    return Result("davis2016", RULE_2016, request.split, {"J&F": _half(overall)} | overall, by_name,
                  list(by_name.items()), frames=_frames(sequences, results))


def _score_2016(job):
    sequence, files, with_t = job
    frames = sequence.frames[1:-1]
    complaints = Complaints(sequence.name, sequence.frames)
    values, masks = {}, []
    for frame, prediction, foreground in predictions.pairs(sequence, frames, files, truth.read_foreground,
                                                       predictions.read_foreground, complaints):
        values[frame] = np.array(score_labels(prediction.view(np.uint8), foreground.view(np.uint8), 1))
        if with_t:
            masks.append(prediction)
    if complaints.found():
        return None, complaints.found()
    region, boundary = _series(values, 1)
    t = _T_FACTOR * nan_mean(sequence_instability(masks)) if with_t else float("nan")
    return ({"J": as_dict(statistics(region[:, 0])), "F": as_dict(statistics(boundary[:, 0])), "T": t},
            _frame_means(values)), []


def evaluate_2017_semi(request: Request) -> Result:
    """Scores J and F on DAVIS-2017, semi-supervised (Pont-Tuset et al., 2017).

    Raises:
        UserError: See ``predictions``; also for more objects than the truth has, or none, or a sequence of fewer than
            three frames.
    """
    sequences = request.chosen(layouts.davis(request.dataset, 2017, request.split))
    layouts.check_truth(sequences, request.split, fewest=3)
    files = predictions.find(request.predictions, {item.name: item.frames[1:-1] for item in sequences})
    results = request.each(_score_2017_semi, [(item, files[item.name]) for item in sequences])
    return _result_2017("davis2017-semi", RULE_SEMI, request, sequences, results)


def _score_2017_semi(job):
    sequence, files = job
    complaints = Complaints(sequence.name, sequence.frames)
    objects = int(truth.read_objects_without_void(sequence.truths[0]).max())
    if not objects:
        complaints.note(sequence.frames[0], _NO_OBJECT)
    values = {}
    for frame, prediction, labels in predictions.pairs(sequence, sequence.frames[1:-1], files,
                                                       truth.read_objects_without_void, predictions.read_objects,
                                                       complaints):
        if prediction.max() > objects:
            complaints.note(frame, f"holds object {prediction.max()}, but the first frame of the truth has {objects}")
        values[frame] = np.array(score_labels(prediction, labels, objects))
    if complaints.found():
        return None, complaints.found()
    region, boundary = _series(values, objects)
    return ({str(number + 1): _object_scores(region[:, number], boundary[:, number]) for number in range(objects)},
            _frame_means(values)), []


def evaluate_2017_unsupervised(request: Request) -> Result:
    """Scores J and F on DAVIS-2017, unsupervised (Caelles et al., 2019).

    Raises:
        UserError: See ``predictions``.
    """
    sequences = request.chosen(layouts.davis_unsupervised(request.dataset, request.split))
    layouts.check_truth(sequences, request.split)
    files = predictions.find(request.predictions, {item.name: item.frames for item in sequences})
    results = request.each(_score_2017_unsupervised, [(item, files[item.name]) for item in sequences])
    return _result_2017("davis2017-unsup", RULE_UNSUPERVISED, request, sequences, results)


def _score_2017_unsupervised(job):
    sequence, files = job
    complaints = Complaints(sequence.name, sequence.frames)
    read = [complaints.read(frame, files[frame], predictions.read_objects) for frame in sequence.frames]
    proposals = max((int(labels.max()) for labels in read if labels is not None), default=0)
    objects, values = 0, {}
    for index, (frame, path) in enumerate(zip(sequence.frames, sequence.truths, strict=True)):
        labels = truth.read_objects(path)
        if index == 0:
            objects = int(labels[labels != _VOID].max(initial=0))
            if not objects:
                complaints.note(frame, _NO_OBJECT)
            # Proposals are padded with empty ones, so that every object gets one.
            proposals = max(proposals, objects)
        if complaints.fits(frame, read[index], labels.shape):
            values[frame] = np.array(score_all_pairs(read[index], proposals, labels, objects, labels == _VOID))
        read[index] = None
    if complaints.found():
        return None, complaints.found()
    mean = np.mean(list(values.values()), axis=(0, 1))  # J&F of every proposal and object over all frames
    proposal_of = assign(mean)
    values = {frame: pair[:, list(proposal_of.values()), list(proposal_of)] for frame, pair in values.items()}
    region, boundary = _series(values, objects)
    return ({str(o + 1): _object_scores(region[:, o], boundary[:, o]) | {"proposal": k + 1}
             for o, k in proposal_of.items()}, _frame_means(values)), []


def _series(values, objects):
    """J and F over the frames, [t, objects] each, from {frame: [2, objects]}."""
    stacked = np.array(list(values.values())).reshape(-1, 2, objects)
    return stacked[:, 0], stacked[:, 1]


def _frame_means(values):
    return {frame: {"J": nan_mean(region), "F": nan_mean(boundary)} for frame, (region, boundary) in values.items()}


def _frames(sequences, results):
    return {item.name: frames for item, (_, frames) in zip(sequences, results, strict=True)}


def _object_scores(region, boundary):
    scores = {"J": as_dict(statistics(region)), "F": as_dict(statistics(boundary))}
    return {"J&F": _half(scores)} | scores


def _result_2017(protocol, rule, request, sequences, results):
    scores = [objects for objects, _ in results]
    by_object = {f"{sequence.name}_{number}": entry for sequence, objects in zip(sequences, scores, strict=True)
                 for number, entry in objects.items()}
    by_sequence = {}
    for sequence, objects in zip(sequences, scores, strict=True):
        means = mean_of([_measures(entry) for entry in objects.values()])
        by_sequence[sequence.name] = means | {"objects": objects}
    rows = [(name, {"J-Mean": entry["J"]["mean"], "F-Mean": entry["F"]["mean"]}) for name, entry in by_object.items()]
    # Names, columns and decimals of the CSV files are those of the published tool, whose readers people have.
    return Result(protocol, rule, request.split, mean_of([_measures(entry) for entry in by_object.values()]),
                  by_sequence, rows, decimals=3, frames=_frames(sequences, results))


def _measures(entry):
    return {key: entry[key] for key in ("J&F", "J", "F")}


def _half(scores):
    return {"mean": (scores["J"]["mean"] + scores["F"]["mean"]) / 2}
