"""The protocols of FBMS-59 and YouTube-Objects: J of one foreground, and the Ochs-Brox region measure of FBMS-59."""

import numpy as np

from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.errors import UserError
from uvos_jax.evaluation import ochs_brox, predictions
from uvos_jax.evaluation.predictions import FrameProblems
from uvos_jax.evaluation.region_boundary import jaccard, nan_mean
from uvos_jax.evaluation.report import Result
from uvos_jax.evaluation.scoring import EvaluationRequest
from uvos_jax.video import read_mask
from uvos_jax.video.image_io import read_image

RULE_FBMS_J = ("all moving objects merged into one foreground; J over the annotated frames, first and last included,"
               " frames with empty ground truth excluded; mean over the frames of a sequence, then over sequences (the"
               " mean over all frames is reported separately); no void")
RULE_YOUTUBE_OBJECTS = ("one foreground; J over the annotated frames with non-empty ground truth; mean over the frames"
                        " of a sequence; then the two means that papers report: over sequences, and over the 10 class"
                        " means")
RULE_FBMS_F = ("Ochs-Brox: regions including the background, annotated frames only; overlaps summed over a sequence;"
               " P = overlap / cluster, R = overlap / region; clusters (predicted labels, including 0) are assigned"
               " one to one by F, unassigned clusters ignored, a region without a cluster has P = 1 and R = 0; mean"
               " over regions, then over sequences, F of the mean P and R; extracted objects have F of at least 0.75;"
               " 255 in a prediction is unlabeled and lowers the density")


def evaluate_fbms_j(request: EvaluationRequest) -> Result:
    """Scores J on FBMS-59 as papers on unsupervised video object segmentation report it.

    Raises:
        UserError: Predictions are missing or invalid, see ``predictions``, or all ground truth is empty.
    """
    sequences = request.select(layouts.fbms(request.dataset, request.split))
    results = _run_foreground(request, sequences)
    by_name = {item.name: _mean_j(result) for item, result in zip(sequences, results, strict=True)}
    scores = {"J": {"mean": nan_mean([entry["J"]["mean"] for entry in by_name.values()]),
                    "mean_over_frames": nan_mean([value for result in results for value in result.values()])}}
    return Result("fbms-j", RULE_FBMS_J, request.split, scores, by_name, list(by_name.items()),
                  frames=_frame_scores(sequences, results))


def evaluate_youtube_objects(request: EvaluationRequest) -> Result:
    """Scores J on YouTube-Objects, with the mean over sequences and the mean over classes.

    Raises:
        UserError: Predictions are missing or invalid, see ``predictions``, or all ground truth is empty.
    """
    sequences = request.select(layouts.youtube_objects(request.dataset))
    results = _run_foreground(request, sequences)
    by_name = {item.name: {"class": layouts.youtube_objects_class(item.name)} | _mean_j(result)
               for item, result in zip(sequences, results, strict=True)}
    classes = {name: nan_mean([entry["J"]["mean"] for entry in by_name.values() if entry["class"] == name])
               for name in layouts.YOUTUBE_OBJECTS if any(entry["class"] == name for entry in by_name.values())}
    scores = {"J": {"mean": nan_mean([entry["J"]["mean"] for entry in by_name.values()]),
                    "mean_over_classes": nan_mean(list(classes.values())), "classes": classes}}
    return Result("youtube-objects", RULE_YOUTUBE_OBJECTS, request.split, scores, by_name, list(by_name.items()),
                  frames=_frame_scores(sequences, results))


def evaluate_fbms_f(request: EvaluationRequest) -> Result:
    """Scores the Ochs-Brox region measure on FBMS-59, see ``ochs_brox``.

    In the published layout ``<sequence>Def.dat`` defines the regions of a sequence; in the plain layout each object id
    is a region.

    Raises:
        UserError: Predictions are missing or invalid, see ``predictions``; a definition file is missing or broken; or
            the masks of a sequence contain 0 and 255 only, because 255 is unlabeled in this measure.
    """
    sequences = request.select(layouts.fbms(request.dataset, request.split))
    missing = [item.name for item in sequences if layouts.is_fbms_sequence(item) and not _definition_file(item)]
    if missing:
        raise UserError(f"The definition file <sequence>Def.dat is missing in {', '.join(missing)}. Copy it from the"
                        " published dataset into the folder of the ground truth.")
    paths = predictions.find_predictions(request.predictions, {item.name: item.frames for item in sequences})
    results = request.run(_score_regions, [(item, paths[item.name]) for item in sequences])
    by_name = {item.name: _as_dict(result) for item, result in zip(sequences, results, strict=True)}
    return Result("fbms-f", RULE_FBMS_F, request.split, _as_dict(ochs_brox.average_scores(results)), by_name,
                  list(by_name.items()))


def _as_dict(scores):
    return {"P": scores.precision, "R": scores.recall, "F": {"mean": scores.f}, "density": scores.density,
            "objects": scores.objects, "extracted": scores.extracted}


def _score_regions(job):
    sequence, paths = job
    problems = FrameProblems(sequence.name, sequence.frames)
    file = _definition_file(sequence)
    if file:
        definition = ochs_brox.read_definition(file)

        def read_truth(path):
            return ochs_brox.region_labels(read_image(path), definition.colors)
    else:
        read_truth = _read_regions
    pairs = [(prediction, regions) for _, prediction, regions in predictions.load_pairs(
        sequence, sequence.frames, paths, read_truth, _read_clusters, problems)]
    labels = np.sum([np.bincount(prediction.ravel(), minlength=256) for prediction, _ in pairs], axis=0)
    if not problems.report() and set(np.flatnonzero(labels)) == {0, ochs_brox.UNLABELED}:
        for frame in sequence.frames:
            problems.add(frame, "contains 0 and 255 only, and 255 means unlabeled in fbms-f; write object ids")
    if not problems.report() and not any((regions >= 0).any() for _, regions in pairs):
        problems.add(sequence.frames[0], "and all other frames have no labeled pixel in the ground truth")
    return None if problems.report() else ochs_brox.score_sequence(pairs), problems.report()


def _definition_file(sequence):
    folder = sequence.truths[0].parent
    candidates = [folder / f"{sequence.name}Def.dat", folder.parent / f"{sequence.name}Def.dat",
                  *sorted(folder.glob("*Def.dat"))]
    return next((path for path in candidates if path.is_file()), None)


def _read_clusters(path):
    return read_mask(path, numbered=True)


def _read_regions(path):
    labels = truth.read_objects(path).astype(np.int16)
    labels[labels == ochs_brox.UNLABELED] = -1
    return labels


def _run_foreground(request, sequences):
    paths = predictions.find_predictions(request.predictions, {item.name: item.frames for item in sequences})
    results = request.run(_score_foreground, [(item, paths[item.name]) for item in sequences])
    if not any(results):
        raise UserError(f"The ground truth in '{request.dataset}' is empty in every frame. Check --dataset.")
    return results


def _score_foreground(job):
    sequence, paths = job
    problems = FrameProblems(sequence.name, sequence.frames)
    values, fbms = {}, layouts.is_fbms_sequence(sequence)
    read_truth = (lambda path: truth.read_fbms_foreground(path, sequence.name)) if fbms else truth.read_foreground
    for frame, prediction, foreground in predictions.load_pairs(sequence, sequence.frames, paths, read_truth,
                                                           predictions.read_foreground, problems):
        if foreground.any():
            values[frame] = float(jaccard(prediction, foreground))
    return values, problems.report()


def _mean_j(values):
    return {"J": {"mean": nan_mean(list(values.values()))}, "counted_frames": len(values)}


def _frame_scores(sequences, results):
    return {item.name: {frame: {"J": value} for frame, value in result.items()}
            for item, result in zip(sequences, results, strict=True)}
