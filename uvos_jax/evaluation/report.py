"""Evaluation results and their files: scores.json, CSV tables, a text table and the precision-recall plot."""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uvos_jax.atomic_io import atomic_write, make_folder
from uvos_jax.errors import pluralize
from uvos_jax.evaluation.region_boundary import Statistics, nan_mean
from uvos_jax.video import write_json

_COLUMN_NAMES = {"mean": "Mean", "recall": "Recall", "decay": "Decay", "mae": "MAE"}


@dataclass(frozen=True)
class Result:
    """Scores of a dataset.

    Attributes:
        protocol: Name of the protocol.
        rule: One-line summary of its rules.
        split: Split that was scored.
        scores: Scores over the dataset as in ``scores.json``: nested, fractions of one.
        sequences: Scores of each sequence, in the same form.
        rows: (name, scores) rows of the per-sequence CSV: one per sequence, or one per object of a sequence.
        decimals: Decimal places in the CSV files.
        frames: J and F of each scored frame, averaged over its objects, by sequence and frame; empty for protocols
            without per-frame scores.
        tables: Header and rows of further CSV files, by file name.
        curve: Recall and precision of the precision-recall plot, or None.
        subset: Names of the sequences that were selected; empty if all were scored.
    """

    protocol: str
    rule: str
    split: str
    scores: dict[str, Any]
    sequences: dict[str, dict[str, Any]]
    rows: list[tuple[str, dict[str, Any]]]
    decimals: int = 6
    frames: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)
    curve: tuple[list[float], list[float]] | None = None
    subset: tuple[str, ...] = ()


def as_dict(statistics: Statistics) -> dict[str, float]:
    """Returns the statistics as a dict with the keys ``mean``, ``recall`` and ``decay``."""
    return statistics._asdict()


def mean_scores(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Averages equally nested dicts of numbers entry by entry, ignoring NaN."""
    first = entries[0] if entries else {}
    return {key: mean_scores([entry[key] for entry in entries]) if isinstance(first[key], dict)
            else nan_mean([entry[key] for entry in entries]) for key in first}


def flatten(scores: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Flattens nested scores to table columns: ``{"J": {"mean": x}}`` becomes ``{"J-Mean": x}``."""
    columns = {}
    for key, value in scores.items():
        name = before + _COLUMN_NAMES.get(key, key)
        columns |= flatten(value, f"{name}-") if isinstance(value, dict) else {name: value}
    return columns


def write(result: Result, output: Path) -> list[Path]:
    """Writes ``scores.json``, the CSV files and, if the result has a curve, the precision-recall plot.

    Existing files of the same names are replaced without being read.

    Args:
        result: The scores.
        output: Folder of the files; created if missing.

    Returns:
        Paths of the files.

    Raises:
        UserError: A file or folder cannot be written.
    """
    part = f"{result.split}-subset" if result.subset else result.split
    files = {f"global_results-{part}.csv": format_csv([flatten(result.scores)], result.decimals),
             f"per-sequence_results-{part}.csv": format_csv(
                 [{"Sequence": name} | flatten(scores) for name, scores in result.rows], result.decimals)}
    if result.frames:
        files[f"per-frame_results-{part}.csv"] = format_csv(
            [{"Sequence": name, "Frame": frame} | scores for name, frames in result.frames.items()
             for frame, scores in frames.items()], 6)
    for name, (header, rows) in result.tables.items():
        files[name] = format_csv([dict(zip(header, row, strict=True)) for row in rows], result.decimals)
    contents = {name: text.encode() for name, text in files.items()}
    if result.curve is not None:
        contents["pr_curve.png"] = _precision_recall_png(result)
    head = {"protocol": result.protocol, "rule": result.rule, "split": result.split}
    if result.subset:
        head["only"] = result.subset
    make_folder(output)
    write_json(output / "scores.json", to_json(head | result.scores | {"sequences": result.sequences}))
    for name, content in contents.items():
        atomic_write(output / name, content)
    return [output / name for name in ("scores.json", *contents)]


def format_csv(rows: list[dict[str, Any]], decimals: int) -> str:
    """Formats rows as CSV text with the union of their columns; floats are rounded and NaN is written as ``nan``."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column, ""), decimals) for column in columns])
    return text.getvalue()


def format_table(rows: list[dict[str, Any]], decimals: int = 4) -> str:
    """Formats rows as a plain-text table; the first column is left-aligned, the others are right-aligned."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([_cell(row.get(column, ""), decimals) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = ["  ".join(text.ljust(width) if index == 0 else text.rjust(width)
                       for index, (text, width) in enumerate(zip(line, widths, strict=True))) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def format_result(result: Result) -> str:
    """Formats a table of the sequences that ends with the dataset's row, followed by its remaining scores."""
    overall = flatten(result.scores)
    rows = [{"Sequence": name} | flatten(scores) for name, scores in result.rows]
    columns = {column for row in rows for column in row}
    shared = {name: value for name, value in overall.items() if name in columns}
    if shared:
        rows.append({"Sequence": "all"} | shared)
    rest = [{"all": name, "score": value} for name, value in overall.items() if name not in columns]
    return "\n\n".join(format_table(part) for part in (rows, rest) if part)


def to_json(value: Any) -> Any:
    """Converts a value for JSON: NumPy scalars become Python numbers, NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value, decimals):
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return "" if value is None else str(value)


def _precision_recall_png(result):
    """Plots the precision-recall curve with its maximum F over lines of equal F (beta^2 = 0.3); returns PNG bytes."""
    from matplotlib.figure import Figure

    recall, precision = result.curve
    best, threshold = result.scores["max_f"], result.scores["max_f_threshold"]
    figure = Figure(figsize=(5, 4.7), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="recall", ylabel="precision", aspect="equal",
                              title=f"mean over {pluralize(len(result.sequences), 'sequence')}")
    for f in (0.2, 0.4, 0.6, 0.8, 0.9):
        # F = 1.3 P R / (0.3 P + R) solved for R, at the precisions for which R is at most 1.
        lowest = f / (1.3 - 0.3 * f)
        precisions = [lowest + (1 - lowest) * step / 100 for step in range(101)]
        axes.plot([0.3 * f * p / (1.3 * p - f) for p in precisions], precisions, color="0.8", linewidth=0.8, zorder=1)
        axes.annotate(f"F {f}", (1.01, lowest), (3, 0), textcoords="offset points", va="center", color="0.45",
                      fontsize=8)
    axes.plot(recall, precision, linewidth=2, label=f"MAE {result.scores['mae']:.3f}")
    best_index = round(255 * (1 - threshold))  # the thresholds of the curve are 1, 254/255, ..., 0
    axes.plot(recall[best_index], precision[best_index], "o", color="black", markersize=6,
              label=f"max F {best:.3f} at threshold {threshold:.2f}")
    axes.legend(loc="lower left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
