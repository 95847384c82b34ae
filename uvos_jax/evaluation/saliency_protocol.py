"""The protocol of video salient object detection: ViSal, FBMS, DAVIS."""

from itertools import chain

import numpy as np

from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.errors import UserError
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.predictions import FrameProblems
from uvos_jax.evaluation.report import Result
from uvos_jax.evaluation.saliency_metrics import (
    THRESHOLDS,
    dataset_mean,
    frame_saliency,
    pooled_f,
    pooled_histogram,
    sequence_mean,
)
from uvos_jax.evaluation.scoring import EvaluationRequest

RULE = ("annotated frames 2 to N-1 of each sequence; ground truth is above 128; each predicted map is rescaled to"
        " [0, 1]; MAE, F (beta^2 = 0.3) at 256 thresholds and at twice the mean of the map, S-measure (alpha = 0.5);"
        " mean over frames, then over sequences; max F is the maximum of the mean curve; AD-Net's variant pools the"
        " pixels of all those frames, without rescaling, beta^2 = 1; no void")


def evaluate(request: EvaluationRequest) -> Result:
    """Scores saliency maps (8-bit gray images or masks) on any dataset layout of ``layouts``.

    The maps of a sequence are read from its subfolder ``soft``, else ``masks``, else from its folder.

    Raises:
        UserError: Predictions are missing or invalid, see ``predictions``; a sequence has fewer than three annotated
            frames; or the ground truth is empty.
    """
    sequences = request.select(_sequences(request))
    layouts.check_truth(sequences, request.split, fewest=3)
    wanted = {item.name: item.frames[1:-1] for item in sequences}
    paths = predictions.find_predictions(request.predictions, wanted, ("soft", "masks"))
    results = request.run(_score, [(item, paths[item.name]) for item in sequences])
    overall = dataset_mean(mean for mean, _ in results)
    histogram = sum(histogram for _, histogram in results)
    if not histogram[0].any():
        raise UserError(f"The ground truth in '{request.dataset}' is empty in every scored frame. Check --dataset.")
    if not histogram[:, 2:].any():  # all predictions are masks of 0 and 1
        histogram[:, 255], histogram[:, 1] = histogram[:, 1], 0
    pooled = pooled_f(histogram)
    by_name = {item.name: {"mae": mean.mae, "max_f": float(mean.f_beta.max()), "adaptive_f": mean.adaptive_f,
                           "s_measure": mean.s_measure}
               for item, (mean, _) in zip(sequences, results, strict=True)}
    scores = {name: getattr(overall, name) for name in ("mae", "max_f", "max_f_threshold", "adaptive_f", "s_measure")}
    curve = [[float(value) for value in row] for row in zip(THRESHOLDS, overall.precision, overall.recall,
                                                            overall.f_beta, strict=True)]
    scores["adnet"] = {name: pooled[name] for name in ("mae", "max_f")}
    return Result("saliency", RULE, request.split, scores, by_name, list(by_name.items()),
                  tables={"pr_curve.csv": (["threshold", "precision", "recall", "F"], curve)},
                  curve=(overall.recall.tolist(), overall.precision.tolist()))


def _sequences(request):
    if (request.dataset / "ImageSets" / "2016").is_dir() or (request.dataset / "DAVIS").is_dir():
        return layouts.davis(request.dataset, 2016, request.split)
    if layouts.is_fbms(request.dataset):
        return layouts.fbms(request.dataset, request.split)
    return layouts.folders(request.dataset)


def _score(job):
    sequence, paths = job
    problems = FrameProblems(sequence.name, sequence.frames)
    fbms = layouts.is_fbms_sequence(sequence)
    pooled = np.zeros((2, 256), np.int64)

    def read_truth(path):
        return truth.read_fbms_foreground(path, sequence.name) if fbms else truth.read_salient(path)

    def frames():
        for _, prediction, salient in predictions.load_pairs(sequence, sequence.frames[1:-1], paths, read_truth,
                                                        predictions.read_saliency_map, problems):
            pooled[:] += pooled_histogram(prediction, salient)
            yield frame_saliency(prediction, salient)

    scored = frames()
    first = next(scored, None)
    if first is None:  # no frame could be read; ``problems`` has the reasons
        return None, problems.report()
    return (sequence_mean(chain([first], scored)), pooled), problems.report()
