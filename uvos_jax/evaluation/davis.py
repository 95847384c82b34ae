"""The DAVIS protocols: 2016 (one foreground), 2017 semi-supervised and 2017 unsupervised (multiple objects)."""

import numpy as np

from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.predictions import FrameProblems
from uvos_jax.evaluation.region_boundary import assign_proposals, nan_mean, score_all_pairs, score_labels, statistics
from uvos_jax.evaluation.report import Result, as_dict, mean_scores
from uvos_jax.evaluation.scoring import EvaluationRequest
from uvos_jax.evaluation.temporal_stability import sequence_instability
from uvos_jax.labels import VOID

_T_FACTOR = 5
_NO_OBJECT = "has no object in its ground truth; the first frame must show the objects"
# Sequences of DAVIS-2016 whose T is averaged (`eval_t` in the benchmark's list): T of the others is dominated by
# occlusions and fast motion. Sequences of the training split first, then those of the validation split.
_T_SEQUENCES = frozenset((
    "bear", "boat", "bus", "car-turn", "dance-jump", "drift-turn", "elephant", "flamingo", "hike", "hockey",
    "kite-walk", "mallard-water", "motocross-bumps", "rhino", "stroller", "surf", "train",
    "blackswan", "camel", "car-roundabout", "car-shadow", "cows", "drift-straight", "kite-surf", "paragliding-launch",
    "scooter-black", "soapbox"))

RULE_2016 = ("one foreground, labels above 0 in ground truth and prediction; J and F over frames 2 to N-1 of each"
             " sequence; no void; mean, recall (> 0.5) and decay per sequence, then the mean over sequences; T = 5 x"
             " mean over consecutive predictions of those frames, on the sequences that DAVIS-2016 lists for T, lower"
             " is better")
RULE_SEMI = ("objects 1 to the largest id in the first ground-truth frame; J and F of each over frames 2 to N-1; 255 in"
             " the ground truth is background; predictions with larger ids are rejected, missing objects are empty;"
             " mean, recall (> 0.5) and decay of each object, then the mean over the objects of all sequences")
RULE_UNSUPERVISED = ("at most 20 proposals, one label per pixel; all frames; 255 in the ground truth is void;"
                     " proposals are assigned to the objects of the first frame by the best sum of mean J&F"
                     " (Hungarian), unassigned ones are not penalized; mean, recall (> 0.5) and decay of each object,"
                     " then the mean over the objects of all sequences")


def evaluate_2016(request: EvaluationRequest) -> Result:
    """Scores J, F and T on DAVIS-2016 (Perazzi et al., CVPR 2016).

    T is averaged over the pairs of consecutive predictions within frames 2 to N-1, as in the published Python tool; the
    MATLAB tool adds the pair of the first ground truth and the second prediction.

    Raises:
        UserError: Predictions are missing or invalid, see ``predictions``, or a sequence has fewer than three frames.
    """
    available = layouts.davis(request.dataset, 2016, request.split)
    sequences = request.select(available)
    layouts.check_truth(sequences, request.split, fewest=3)
    paths = predictions.find_predictions(request.predictions, {item.name: item.frames[1:-1] for item in sequences})
    # A dataset without any of the listed sequences, such as the user's own videos, has T for every sequence.
    has_t = _T_SEQUENCES.intersection(item.name for item in available) or {item.name for item in available}
    results = request.run(_score_2016, [(item, paths[item.name], request.temporal and item.name in has_t)
                                        for item in sequences])
    by_name = {item.name: scores for item, (scores, _) in zip(sequences, results, strict=True)}
    overall = mean_scores(list(by_name.values()))
    return Result("davis2016", RULE_2016, request.split, {"J&F": _j_and_f(overall)} | overall, by_name,
                  list(by_name.items()), frames=_frames(sequences, results))


def _score_2016(job):
    sequence, paths, with_t = job
    frames = sequence.frames[1:-1]
    problems = FrameProblems(sequence.name, sequence.frames)
    values, masks = {}, []
    for frame, prediction, foreground in predictions.load_pairs(sequence, frames, paths, truth.read_foreground,
                                                       predictions.read_foreground, problems):
        values[frame] = np.array(score_labels(prediction.view(np.uint8), foreground.view(np.uint8), 1))
        if with_t:
            masks.append(prediction)
    if problems.report():
        return None, problems.report()
    region, boundary = _stack_frames(values, 1)
    t = _T_FACTOR * nan_mean(sequence_instability(masks)) if with_t else float("nan")
    return ({"J": as_dict(statistics(region[:, 0])), "F": as_dict(statistics(boundary[:, 0])), "T": t},
            _frame_means(values)), []


def evaluate_2017_semi(request: EvaluationRequest) -> Result:
    """Scores J and F on DAVIS-2017, semi-supervised (Pont-Tuset et al., 2017).

    Raises:
        UserError: Predictions are missing or invalid, see ``predictions``, or contain an object id above the largest
            in the first ground-truth frame; that frame has no object; or a sequence has fewer than three frames.
    """
    sequences = request.select(layouts.davis(request.dataset, 2017, request.split))
    layouts.check_truth(sequences, request.split, fewest=3)
    paths = predictions.find_predictions(request.predictions, {item.name: item.frames[1:-1] for item in sequences})
    results = request.run(_score_2017_semi, [(item, paths[item.name]) for item in sequences])
    return _result_2017("davis2017-semi", RULE_SEMI, request, sequences, results)


def _score_2017_semi(job):
    sequence, paths = job
    problems = FrameProblems(sequence.name, sequence.frames)
    objects = int(truth.read_objects_without_void(sequence.truths[0]).max())
    if not objects:
        problems.add(sequence.frames[0], _NO_OBJECT)
    values = {}
    for frame, prediction, labels in predictions.load_pairs(sequence, sequence.frames[1:-1], paths,
                                                       truth.read_objects_without_void, predictions.read_objects,
                                                       problems):
        if prediction.max() > objects:
            problems.add(frame, f"contains object id {prediction.max()}; the largest in the first ground-truth frame is"
                                f" {objects}")
        values[frame] = np.array(score_labels(prediction, labels, objects))
    if problems.report():
        return None, problems.report()
    region, boundary = _stack_frames(values, objects)
    return ({str(number + 1): _object_scores(region[:, number], boundary[:, number]) for number in range(objects)},
            _frame_means(values)), []


def evaluate_2017_unsupervised(request: EvaluationRequest) -> Result:
    """Scores J and F on DAVIS-2017, unsupervised (Caelles et al., 2019).

    Raises:
        UserError: Predictions are missing or invalid, see ``predictions``, or the first ground-truth frame of a
            sequence has no object.
    """
    sequences = request.select(layouts.davis_unsupervised(request.dataset, request.split))
    layouts.check_truth(sequences, request.split)
    paths = predictions.find_predictions(request.predictions, {item.name: item.frames for item in sequences})
    results = request.run(_score_2017_unsupervised, [(item, paths[item.name]) for item in sequences])
    return _result_2017("davis2017-unsup", RULE_UNSUPERVISED, request, sequences, results)


def _score_2017_unsupervised(job):
    sequence, paths = job
    problems = FrameProblems(sequence.name, sequence.frames)
    read = [problems.read(frame, paths[frame], predictions.read_objects) for frame in sequence.frames]
    proposals = max((int(labels.max()) for labels in read if labels is not None), default=0)
    objects, values = 0, {}
    for index, (frame, path) in enumerate(zip(sequence.frames, sequence.truths, strict=True)):
        labels = truth.read_objects(path)
        if index == 0:
            objects = int(labels[labels != VOID].max(initial=0))
            if not objects:
                problems.add(frame, _NO_OBJECT)
            # Empty proposals are added so that each object can be assigned one.
            proposals = max(proposals, objects)
        if problems.check_size(frame, read[index], labels.shape):
            values[frame] = np.array(score_all_pairs(read[index], proposals, labels, objects, labels == VOID))
        read[index] = None
    if problems.report():
        return None, problems.report()
    mean = np.mean(list(values.values()), axis=(0, 1))  # J&F of every proposal and object over all frames
    proposal_of = assign_proposals(mean)
    values = {frame: pair[:, list(proposal_of.values()), list(proposal_of)] for frame, pair in values.items()}
    region, boundary = _stack_frames(values, objects)
    return ({str(o + 1): _object_scores(region[:, o], boundary[:, o]) | {"proposal": k + 1}
             for o, k in proposal_of.items()}, _frame_means(values)), []


def _stack_frames(values, objects):
    """Stacks {frame: [2, objects]} to J and F, [t, objects] each."""
    stacked = np.array(list(values.values())).reshape(-1, 2, objects)
    return stacked[:, 0], stacked[:, 1]


def _frame_means(values):
    return {frame: {"J": nan_mean(region), "F": nan_mean(boundary)} for frame, (region, boundary) in values.items()}


def _frames(sequences, results):
    return {item.name: frames for item, (_, frames) in zip(sequences, results, strict=True)}


def _object_scores(region, boundary):
    scores = {"J": as_dict(statistics(region)), "F": as_dict(statistics(boundary))}
    return {"J&F": _j_and_f(scores)} | scores


def _result_2017(protocol, rule, request, sequences, results):
    scores = [objects for objects, _ in results]
    by_object = {f"{sequence.name}_{number}": entry for sequence, objects in zip(sequences, scores, strict=True)
                 for number, entry in objects.items()}
    by_sequence = {}
    for sequence, objects in zip(sequences, scores, strict=True):
        means = mean_scores([_mean_columns(entry) for entry in objects.values()])
        by_sequence[sequence.name] = means | {"objects": objects}
    rows = [(name, {"J-Mean": entry["J"]["mean"], "F-Mean": entry["F"]["mean"]}) for name, entry in by_object.items()]
    # File names, columns and decimals equal those of the published tool, so that scripts that parse its CSV files work.
    return Result(protocol, rule, request.split, mean_scores([_mean_columns(entry) for entry in by_object.values()]),
                  by_sequence, rows, decimals=3, frames=_frames(sequences, results))


def _mean_columns(entry):
    return {key: entry[key] for key in ("J&F", "J", "F")}


def _j_and_f(scores):
    return {"mean": (scores["J"]["mean"] + scores["F"]["mean"]) / 2}
