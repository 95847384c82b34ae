"""What an evaluation hands back, and how it is written: scores.json, CSV files, a table, the precision-recall curve."""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uvos_jax.atomic_io import atomic_write, make_folder
from uvos_jax.evaluation.region_boundary import Statistics, nan_mean
from uvos_jax.video import write_json

_NAMES = {"mean": "Mean", "recall": "Recall", "decay": "Decay", "mae": "MAE"}


@dataclass(frozen=True)
class Result:
    """Scores of a dataset.

    Attributes:
        protocol: Its name on the command line.
        rule: Its fine print in one line.
        split: The split that was scored.
        scores: Of the whole dataset, as ``scores.json`` has them: fractions of one, nested.
        sequences: Scores of each sequence, likewise.
        rows: Rows of the per-sequence CSV; a sequence's objects may have one each.
        decimals: Of the CSV files.
        frames: J and F of each scored frame of a sequence (means over its objects), for those measures that have them.
        tables: Further CSV files, by name: header and rows.
        curve: Recall and precision to be drawn as a picture, or None.
        only: The sequences that were chosen; empty if all were scored.
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
    only: tuple[str, ...] = ()


def as_dict(statistics: Statistics) -> dict[str, float]:
    """Returns ``{"mean", "recall", "decay"}``."""
    return statistics._asdict()


def mean_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the mean of every number that the entries share, nested alike; NaN is left out."""
    first = entries[0] if entries else {}
    return {key: mean_of([entry[key] for entry in entries]) if isinstance(first[key], dict)
            else nan_mean([entry[key] for entry in entries]) for key in first}


def flatten(scores: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Returns nested scores as columns: ``{"J": {"mean": x}}`` as ``{"J-Mean": x}``."""
    columns = {}
    for key, value in scores.items():
        name = before + _NAMES.get(key, key)
        columns |= flatten(value, f"{name}-") if isinstance(value, dict) else {name: value}
    return columns


def write(result: Result, output: Path) -> list[Path]:
    """Writes ``scores.json`` and the CSV files, and the precision-recall picture where there is a curve.

    Earlier files of the same names are replaced, never read.

    Args:
        result: The scores.
        output: The folder, made if missing.

    Returns:
        The files.

    Raises:
        UserError: The operating system refuses.
    """
    part = f"{result.split}-subset" if result.only else result.split
    files = {f"global_results-{part}.csv": table_csv([flatten(result.scores)], result.decimals),
             f"per-sequence_results-{part}.csv": table_csv(
                 [{"Sequence": name} | flatten(scores) for name, scores in result.rows], result.decimals)}
    if result.frames:
        files[f"per-frame_results-{part}.csv"] = table_csv(
            [{"Sequence": name, "Frame": frame} | scores for name, frames in result.frames.items()
             for frame, scores in frames.items()], 6)
    for name, (header, rows) in result.tables.items():
        files[name] = table_csv([dict(zip(header, row, strict=True)) for row in rows], result.decimals)
    contents = {name: text.encode() for name, text in files.items()}
    if result.curve is not None:
        contents["pr_curve.png"] = _curve_picture(result)
    head = {"protocol": result.protocol, "rule": result.rule, "split": result.split}
    if result.only:
        head["only"] = result.only
    make_folder(output)
    write_json(output / "scores.json", plain(head | result.scores | {"sequences": result.sequences}))
    for name, content in contents.items():
        atomic_write(output / name, content)
    return [output / name for name in ("scores.json", *contents)]


def table_csv(rows: list[dict[str, Any]], decimals: int) -> str:
    """Returns rows as CSV text; the columns are those of all rows, numbers are rounded, NaN is written ``nan``."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column, ""), decimals) for column in columns])
    return text.getvalue()


def table_text(rows: list[dict[str, Any]], decimals: int = 4) -> str:
    """Returns rows as a table of plain text: the first column to the left, the others to the right."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([_cell(row.get(column, ""), decimals) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = ["  ".join(text.ljust(width) if index == 0 else text.rjust(width)
                       for index, (text, width) in enumerate(zip(line, widths, strict=True))) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def screen(result: Result) -> str:
    """Returns the scores as text: a table of the sequences that ends in the dataset's line, then its other scores."""
    overall = flatten(result.scores)
    rows = [{"Sequence": name} | flatten(scores) for name, scores in result.rows]
    columns = {column for row in rows for column in row}
    shared = {name: value for name, value in overall.items() if name in columns}
    if shared:
        rows.append({"Sequence": "all"} | shared)
    rest = [{"all": name, "score": value} for name, value in overall.items() if name not in columns]
    return "\n\n".join(table_text(part) for part in (rows, rest) if part)


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: NumPy numbers as Python's, NaN as null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value, decimals):
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return "" if value is None else str(value)


def _curve_picture(result):
    """The precision-recall curve, its point of maximal F marked, on lines of equal F (beta^2 = 0.3), as PNG."""
    from matplotlib.figure import Figure

    recall, precision = result.curve
    best, threshold = result.scores["max_f"], result.scores["max_f_threshold"]
    figure = Figure(figsize=(5, 4.7), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="recall", ylabel="precision", aspect="equal",
                              title=f"mean over {len(result.sequences)} sequences")
    for f in (0.2, 0.4, 0.6, 0.8, 0.9):
        # From F = 1.3 P R / (0.3 P + R), solved for R, over the precisions that reach it with a recall of at most 1.
        lowest = f / (1.3 - 0.3 * f)
        heights = [lowest + (1 - lowest) * step / 100 for step in range(101)]
        axes.plot([0.3 * f * p / (1.3 * p - f) for p in heights], heights, color="0.8", linewidth=0.8, zorder=1)
        axes.annotate(f"F {f}", (1.01, lowest), (3, 0), textcoords="offset points", va="center", color="0.45",
                      fontsize=8)
    axes.plot(recall, precision, linewidth=2, label=f"MAE {result.scores['mae']:.3f}")
    mark = round(255 * (1 - threshold))  # the curve's thresholds are 1, 254/255, .., 0
    axes.plot(recall[mark], precision[mark], "o", color="black", markersize=6,
              label=f"max F {best:.3f} at threshold {threshold:.2f}")
    axes.legend(loc="lower left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
