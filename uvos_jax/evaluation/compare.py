"""Compare folders of predictions: scores per sequence, their differences, and the worst frames."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uvos_jax.data.datasets import ground_truth, layouts
from uvos_jax.data.datasets.layouts import Sequence
from uvos_jax.errors import UserError
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.protocols import evaluate, get_protocol
from uvos_jax.evaluation.region_boundary import nan_mean
from uvos_jax.evaluation.report import Result
from uvos_jax.evaluation.scoring import no_progress

_MAX_WORST_FRAMES = 8


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one sequence, or of the dataset.

    Attributes:
        name: Name of the sequence.
        scores: Score of each run.
        difference: Second run minus first; with more than two runs, best minus worst.
    """

    name: str
    scores: tuple[float, ...]
    difference: float


@dataclass(frozen=True)
class Comparison:
    """Runs scored by the same protocol.

    Attributes:
        protocol: Name of the protocol.
        split: Split that was scored.
        dataset: Folder of the dataset.
        runs: Folders of predictions.
        names: A short, unique name for each run.
        measure: Name of the measure that is compared: ``J&F``, or ``J`` if the protocol has no F.
        overall: Scores over the dataset, averaged as the protocol does.
        rows: Scores of the sequences, largest absolute difference first.
        results: All scores of each run.
    """

    protocol: str
    split: str
    dataset: Path
    runs: tuple[Path, ...]
    names: tuple[str, ...]
    measure: str
    overall: ScoreRow
    rows: tuple[ScoreRow, ...]
    results: tuple[Result, ...]


@dataclass(frozen=True)
class MaskReaders:
    """Functions that list and read the masks of a protocol.

    Attributes:
        sequences: Lists the sequences of a dataset and split.
        truth: Reads a ground-truth file of a sequence, [h, w].
        prediction: Reads a prediction, [h, w].
    """

    sequences: Callable[[Path, str], list[Sequence]]
    truth: Callable[[Path, Sequence], np.ndarray]
    prediction: Callable[[Path], np.ndarray]


def _read_true_foreground(path, sequence):
    if layouts.is_fbms_sequence(sequence):
        return ground_truth.read_fbms_foreground(path, sequence.name)
    return ground_truth.read_foreground(path)


def _read_true_objects(path, sequence):
    return ground_truth.read_objects(path)


# The protocols with per-frame scores.
MASK_READERS = {
    "davis2016": MaskReaders(lambda root, split: layouts.davis(root, 2016, split), _read_true_foreground,
                             predictions.read_foreground),
    "davis2017-semi": MaskReaders(lambda root, split: layouts.davis(root, 2017, split), _read_true_objects,
                                  predictions.read_objects),
    "davis2017-unsup": MaskReaders(layouts.davis_unsupervised, _read_true_objects, predictions.read_objects),
    "youtube-vos": MaskReaders(lambda root, split: layouts.youtube_vos(root, split)[0], _read_true_objects,
                               predictions.read_objects),
    "fbms-j": MaskReaders(layouts.fbms, _read_true_foreground, predictions.read_foreground),
    "youtube-objects": MaskReaders(lambda root, split: layouts.youtube_objects(root), _read_true_foreground,
                                   predictions.read_foreground),
}


def compare(runs: list[Path], dataset: str | Path, protocol: str = "davis2016", split: str | None = None,
            sequences: tuple[str, ...] = (), workers: int = 1, progress: Callable = no_progress) -> Comparison:
    """Scores folders of predictions by the same protocol and sorts the sequences by how much the runs differ.

    The measure is J&F, the mean of J and F, if the protocol has both, and J otherwise; T is not computed. The
    difference is that of the second run and the first, or of the best and the worst of more than two runs. Sequences
    without a score come last; equal differences are sorted by name.

    Args:
        runs: Two or more folders of predictions.
        dataset: Folder of the dataset as published.
        protocol: A protocol with per-frame scores: DAVIS, ``youtube-vos``, ``fbms-j`` or ``youtube-objects``.
        split: Split of the dataset; None selects the protocol's default.
        sequences: Names of the sequences to score; all if empty.
        workers: Number of processes, see ``evaluate``.
        progress: See ``evaluate``; called once for each run.

    Returns:
        The scores of all runs.

    Raises:
        UserError: Fewer than two runs, a run given twice, a run that is incomplete or breaks a rule, or a protocol
            without per-frame scores.
    """
    runs, dataset, default_split = [Path(run) for run in runs], Path(dataset), get_protocol(protocol).split
    if protocol not in MASK_READERS:
        raise UserError(f"{protocol} has no per-frame scores to compare. Choose one of {', '.join(MASK_READERS)}.")
    if len(runs) < 2:
        raise UserError("Give two or more folders of predictions to compare.")
    split = split or default_split
    names = _run_names(runs)
    results = tuple(evaluate(protocol, run, dataset, split, sequences=tuple(sequences), workers=workers,
                             progress=progress, temporal=False) for run in runs)
    rows = [_score_row(name, [result.sequences[name] for result in results]) for name in results[0].sequences]
    rows.sort(key=lambda row: (np.isnan(row.difference), -abs(np.nan_to_num(row.difference)), row.name))
    return Comparison(protocol, split, dataset, tuple(runs), names, "J&F" if "F" in results[0].scores else "J",
                      _score_row("all", [result.scores for result in results]), tuple(rows), results)


def table(comparison: Comparison) -> list[dict[str, str | float]]:
    """Returns one table row per sequence and a last row for the dataset; column names contain the measure."""
    rows = [*comparison.rows, comparison.overall]
    columns = [f"{comparison.measure} {name}" for name in comparison.names]
    return [{"Sequence": row.name} | dict(zip(columns, row.scores, strict=True))
            | {"Difference": row.difference} for row in rows]


def worst_frames(comparison: Comparison) -> list[tuple[str, str, tuple[float, ...]]]:
    """Finds the frames with the lowest score in any run, at most one per sequence.

    Returns:
        Up to eight (sequence, frame, score of each run), lowest first.
    """
    worst = []
    for row in comparison.rows:
        frames = [(frame, tuple(_frame_score(result.frames[row.name][frame]) for result in comparison.results))
                  for frame in comparison.results[0].frames[row.name]]
        scored = [(np.nanmin(scores), frame, scores) for frame, scores in frames if not np.isnan(scores).all()]
        if scored:
            lowest, frame, scores = min(scored, key=lambda entry: entry[:2])
            worst.append((lowest, row.name, frame, scores))
    return [entry[1:] for entry in sorted(worst, key=lambda entry: entry[:2])[:_MAX_WORST_FRAMES]]


def _run_names(runs):
    """Returns the folder names of the runs, with as many parent folders as make them unique."""
    paths = [Path(os.path.abspath(run)) for run in runs]
    resolved = [path.resolve() for path in paths]
    repeated = [run for index, run in enumerate(runs) if resolved[index] in resolved[:index]]
    if repeated:
        raise UserError(f"The folder '{repeated[0]}' is given twice. Give different folders.")
    depths = [1] * len(paths)
    while True:
        names = [Path(*path.parts[-depth:]).as_posix() for path, depth in zip(paths, depths, strict=True)]
        ambiguous = [index for index, name in enumerate(names) if names.count(name) > 1]
        if not ambiguous:
            return tuple(names)
        for index in ambiguous:
            depths[index] += 1


def _score_row(name, entries):
    scores = tuple(map(_mean_score, entries))
    difference = scores[1] - scores[0] if len(scores) == 2 else max(scores) - min(scores)
    # Rounding and + 0.0 keep rounding errors from changing the order or printing a minus sign.
    return ScoreRow(name, scores, round(difference, 12) + 0.0)


def _mean_score(entry):
    """Returns J&F or J of a sequence or dataset; for YouTube-Objects the mean over sequences, not over classes."""
    mean = entry["J"]["mean"]
    return (mean + entry["F"]["mean"]) / 2 if "F" in entry else mean


def _frame_score(measures):
    return nan_mean(list(measures.values()))
