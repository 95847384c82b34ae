"""The protocol of salient-object metrics in videos: ViSal, FBMS, DAVIS."""

from itertools import chain

import numpy as np

from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.errors import UserError
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.predictions import Complaints
from uvos_jax.evaluation.report import Result
from uvos_jax.evaluation.saliency_metrics import (
    THRESHOLDS,
    combine,
    frame_saliency,
    pooled_f,
    pooled_histogram,
    sequence_mean,
)
from uvos_jax.evaluation.scoring import Request

RULE = ("labeled frames 2 to N-1 of each sequence; truth is above 128; each predicted map is stretched to [0, 1];"
        " MAE, F (beta^2 = 0.3) at 256 thresholds and at twice the map's mean, S-measure (alpha = 0.5); mean over"
        " frames, then over sequences; max F is that of the mean curve; AD-Net's own form pools the pixels of all"
        " those frames, maps as they are, beta^2 = 1; no void")


def evaluate(request: Request) -> Result:
    """Scores saliency maps (8-bit gray, or masks) against any of the layouts that ``layouts`` knows.

    Maps of a sequence are looked for in its folder ``soft``, then ``masks``, then in the folder itself.

    Raises:
        UserError: See ``predictions``; also for a sequence of fewer than three labeled frames.
    """
    sequences = request.chosen(_sequences(request))
    layouts.check_truth(sequences, request.split, fewest=3)
    wanted = {item.name: item.frames[1:-1] for item in sequences}
    files = predictions.find(request.predictions, wanted, ("soft", "masks"))
    results = request.each(_score, [(item, files[item.name]) for item in sequences])
    whole = combine(mean for mean, _ in results)
    histogram = sum(histogram for _, histogram in results)
    if not histogram[0].any():
        raise UserError(f"The ground truth in '{request.dataset}' is empty in every frame that counts.")
    if not histogram[:, 2:].any():  # masks of 0 and 1 throughout
        histogram[:, 255], histogram[:, 1] = histogram[:, 1], 0
    pooled = pooled_f(histogram)
    by_name = {item.name: {"mae": mean.mae, "max_f": float(mean.f_beta.max()), "adaptive_f": mean.adaptive_f,
                           "s_measure": mean.s_measure}
               for item, (mean, _) in zip(sequences, results, strict=True)}
    scores = {name: getattr(whole, name) for name in ("mae", "max_f", "max_f_threshold", "adaptive_f", "s_measure")}
    curve = [[float(value) for value in row] for row in zip(THRESHOLDS, whole.precision, whole.recall, whole.f_beta,
                                                            strict=True)]
    scores["adnet"] = {name: pooled[name] for name in ("mae", "max_f")}
    return Result("saliency", RULE, request.split, scores, by_name, list(by_name.items()),
                  tables={"pr_curve.csv": (["threshold", "precision", "recall", "F"], curve)},
                  curve=(whole.recall.tolist(), whole.precision.tolist()))


def _sequences(request):
    if (request.dataset / "ImageSets" / "2016").is_dir() or (request.dataset / "DAVIS").is_dir():
        return layouts.davis(request.dataset, 2016, request.split)
    if layouts.is_fbms(request.dataset):
        return layouts.fbms(request.dataset, request.split)
    return layouts.folders(request.dataset)


def _score(job):
    sequence, files = job
    complaints = Complaints(sequence.name, sequence.frames)
    fbms = layouts.is_fbms_sequence(sequence)
    pooled = np.zeros((2, 256), np.int64)

    def read_truth(path):
        return truth.read_fbms_foreground(path, sequence.name) if fbms else truth.read_salient(path)

    def frames():
        for _, prediction, salient in predictions.pairs(sequence, sequence.frames[1:-1], files, read_truth,
                                                        predictions.read_map, complaints):
            pooled[:] += pooled_histogram(prediction, salient)
            yield frame_saliency(prediction, salient)

    scored = frames()
    first = next(scored, None)
    if first is None:  # not one could be read, which has been noted
        return None, complaints.found()
    return (sequence_mean(chain([first], scored)), pooled), complaints.found()
