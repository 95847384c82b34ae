"""The protocols of FBMS-59 and YouTube-Objects: J of one foreground, and the regions of Ochs and Brox."""

import numpy as np

from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.errors import UserError
from uvos_jax.evaluation import ochs_brox, predictions
from uvos_jax.evaluation.predictions import Complaints
from uvos_jax.evaluation.region_boundary import jaccard, nan_mean
from uvos_jax.evaluation.report import Result
from uvos_jax.evaluation.scoring import Request
from uvos_jax.video import read_mask
from uvos_jax.video.image_io import read_image

RULE_FBMS_J = ("all moving objects merged to one foreground; J over the labeled frames, first and last included,"
               " frames with empty truth left out; mean over the frames of a sequence, then over sequences (J over all"
               " frames alike is told apart); no void")
RULE_YOUTUBE_OBJECTS = ("one foreground; J over the labeled frames with a non-empty truth; mean over the frames of a"
                        " sequence; then both means that papers print: over sequences, and over the 10 class means")
RULE_FBMS_F = ("Ochs-Brox: regions with the background among them, labeled frames only; overlaps summed over a"
               " sequence; P = overlap / cluster, R = overlap / region; clusters (predicted labels, 0 too) are"
               " assigned one to one by F, those left over ignored, a region without one gets P = 1 and R = 0; mean"
               " over regions, then over sequences, F of the mean P and R; extracted objects have F of at least 0.75;"
               " 255 in a prediction is no label and lowers the density")


def evaluate_fbms_j(request: Request) -> Result:
    """Scores J on FBMS-59 as the tables of unsupervised video object segmentation do.

    Raises:
        UserError: See ``predictions``.
    """
    sequences = request.chosen(layouts.fbms(request.dataset, request.split))
    results = _foreground_scores(request, sequences)
    by_name = {item.name: _mean(result) for item, result in zip(sequences, results, strict=True)}
    scores = {"J": {"mean": nan_mean([entry["J"]["mean"] for entry in by_name.values()]),
                    "mean_over_frames": nan_mean([value for result in results for value in result.values()])}}
    return Result("fbms-j", RULE_FBMS_J, request.split, scores, by_name, list(by_name.items()),
                  frames=_frames(sequences, results))


def evaluate_youtube_objects(request: Request) -> Result:
    """Scores J on YouTube-Objects, with both means that papers print.

    Raises:
        UserError: See ``predictions``.
    """
    sequences = request.chosen(layouts.youtube_objects(request.dataset))
    results = _foreground_scores(request, sequences)
    by_name = {item.name: {"class": layouts.youtube_objects_class(item.name)} | _mean(result)
               for item, result in zip(sequences, results, strict=True)}
    classes = {name: nan_mean([entry["J"]["mean"] for entry in by_name.values() if entry["class"] == name])
               for name in layouts.YOUTUBE_OBJECTS if any(entry["class"] == name for entry in by_name.values())}
    scores = {"J": {"mean": nan_mean([entry["J"]["mean"] for entry in by_name.values()]),
                    "mean_over_classes": nan_mean(list(classes.values())), "classes": classes}}
    return Result("youtube-objects", RULE_YOUTUBE_OBJECTS, request.split, scores, by_name, list(by_name.items()),
                  frames=_frames(sequences, results))


def evaluate_fbms_f(request: Request) -> Result:
    """Scores the regions of FBMS-59, see ``ochs_brox``.

    As published, a sequence's ``<sequence>Def.dat`` tells its regions; in a plain layout they are the object numbers.

    Raises:
        UserError: See ``predictions``; also where that file is missing or broken, and for a sequence of masks of 0 and
            255, which mean an object nearly everywhere, but no label here.
    """
    sequences = request.chosen(layouts.fbms(request.dataset, request.split))
    without = [item.name for item in sequences if layouts.is_fbms_sequence(item) and not _definition_file(item)]
    if without:
        raise UserError("The ground truth as published is read by a file <sequence>Def.dat beside it, which is missing"
                        f" in {', '.join(without)}.")
    files = predictions.find(request.predictions, {item.name: item.frames for item in sequences})
    results = request.each(_score_regions, [(item, files[item.name]) for item in sequences])
    by_name = {item.name: _as_dict(result) for item, result in zip(sequences, results, strict=True)}
    return Result("fbms-f", RULE_FBMS_F, request.split, _as_dict(ochs_brox.overall(results)), by_name,
                  list(by_name.items()))


def _as_dict(scores):
    return {"P": scores.precision, "R": scores.recall, "F": {"mean": scores.f}, "density": scores.density,
            "objects": scores.objects, "extracted": scores.extracted}


def _score_regions(job):
    sequence, files = job
    complaints = Complaints(sequence.name, sequence.frames)
    file = _definition_file(sequence)
    if file:
        definition = ochs_brox.read_definition(file)

        def read_truth(path):
            return ochs_brox.region_numbers(read_image(path), definition.colors)
    else:
        read_truth = _read_regions
    pairs = [(prediction, regions) for _, prediction, regions in predictions.pairs(
        sequence, sequence.frames, files, read_truth, _read_clusters, complaints)]
    labels = np.sum([np.bincount(prediction.ravel(), minlength=256) for prediction, _ in pairs], axis=0)
    if not complaints.found() and set(np.flatnonzero(labels)) == {0, ochs_brox.UNLABELED}:
        for frame in sequence.frames:
            complaints.note(frame, "holds 0 and 255 only, and 255 is no label here; write object numbers")
    if not complaints.found() and not any((regions >= 0).any() for _, regions in pairs):
        complaints.note(sequence.frames[0], "and the other frames have no labeled pixel in the ground truth")
    return None if complaints.found() else ochs_brox.sequence_regions(pairs), complaints.found()


def _definition_file(sequence):
    folder = sequence.truths[0].parent
    places = [folder / f"{sequence.name}Def.dat", folder.parent / f"{sequence.name}Def.dat",
              *sorted(folder.glob("*Def.dat"))]
    return next((path for path in places if path.is_file()), None)


def _read_clusters(path):
    return read_mask(path, numbered=True)


def _read_regions(path):
    labels = truth.read_objects(path).astype(np.int16)
    labels[labels == ochs_brox.UNLABELED] = -1
    return labels


def _foreground_scores(request, sequences):
    files = predictions.find(request.predictions, {item.name: item.frames for item in sequences})
    results = request.each(_score_foreground, [(item, files[item.name]) for item in sequences])
    if not any(results):
        raise UserError(f"The ground truth in '{request.dataset}' is empty in every frame.")
    return results


def _score_foreground(job):
    sequence, files = job
    complaints = Complaints(sequence.name, sequence.frames)
    values, fbms = {}, layouts.is_fbms_sequence(sequence)
    read_truth = (lambda path: truth.read_fbms_foreground(path, sequence.name)) if fbms else truth.read_foreground
    for frame, prediction, foreground in predictions.pairs(sequence, sequence.frames, files, read_truth,
                                                           predictions.read_foreground, complaints):
        if foreground.any():
            values[frame] = float(jaccard(prediction, foreground))
    return values, complaints.found()


def _mean(values):
    return {"J": {"mean": nan_mean(list(values.values()))}, "counted_frames": len(values)}


def _frames(sequences, results):
    return {item.name: {frame: {"J": value} for frame, value in result.items()}
            for item, result in zip(sequences, results, strict=True)}
