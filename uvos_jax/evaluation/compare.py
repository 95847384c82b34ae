"""Result folders side by side: which sequences differ most between them, and how their worst frames look."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.atomic_io import atomic_write, make_folder
from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.data.datasets.layouts import Sequence
from uvos_jax.errors import UserError
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.evaluation.protocols import protocol as protocol_row
from uvos_jax.evaluation.region_boundary import nan_mean
from uvos_jax.evaluation.report import Result, plain, table_csv
from uvos_jax.evaluation.scoring import no_progress
from uvos_jax.video import draw_overlay, write_json
from uvos_jax.video.image_io import read_image

_MOST_BARS = 40  # sequences in the bar picture
_WORST = 8  # rows of the grid
# The label of proposals that no object was given to; `draw_overlay` makes it gray, and objects end at 20.
_LEFT_OVER = 56

# Sizes in the grid, in pixels.
_CELL = 320
_GAP = 8
_MARGIN = 16
_TITLE = 34
_HEAD = 26
_CAPTION = 26
_FONT = 14

_INK = (32, 32, 32)
_PALE = (110, 110, 110)


@dataclass(frozen=True)
class Row:
    """Scores of a sequence or of all: one of each run, and how far the second of two lies above the first, or of more
    the best above the worst.
    """

    name: str
    scores: tuple[float, ...]
    difference: float


@dataclass(frozen=True)
class Comparison:
    """Runs scored by the same rule.

    Attributes:
        protocol: Its name on the command line.
        split: The split that was scored.
        dataset: The folder of the dataset.
        runs: The folders of results.
        names: A short name of each run, all different.
        measure: What the scores are: ``J&F``, or ``J`` where the protocol has no F.
        overall: Scores over the dataset, as the protocol takes its mean.
        rows: Scores of the sequences, the largest difference first.
        results: All scores of each run.
    """

    protocol: str
    split: str
    dataset: Path
    runs: tuple[Path, ...]
    names: tuple[str, ...]
    measure: str
    overall: Row
    rows: tuple[Row, ...]
    results: tuple[Result, ...]


@dataclass(frozen=True)
class _Kind:
    """How the masks of a protocol are found and read for the grid.

    Attributes:
        sequences: Lists the sequences of a dataset and split.
        truth: Reads a ground-truth file of a sequence.
        prediction: Reads a prediction.
    """

    sequences: Callable[[Path, str], list[Sequence]]
    truth: Callable[[Path, Sequence], np.ndarray]
    prediction: Callable[[Path], np.ndarray]


def _true_foreground(path, sequence):
    if layouts.is_fbms_sequence(sequence):
        return truth.read_fbms_foreground(path, sequence.name)
    return truth.read_foreground(path)


def _true_objects(path, sequence):
    return truth.read_objects(path)


# The protocols that score single frames.
_KINDS = {
    "davis2016": _Kind(lambda root, split: layouts.davis(root, 2016, split), _true_foreground,
                       predictions.read_foreground),
    "davis2017-semi": _Kind(lambda root, split: layouts.davis(root, 2017, split), _true_objects,
                            predictions.read_objects),
    "davis2017-unsup": _Kind(layouts.davis_unsupervised, _true_objects, predictions.read_objects),
    "youtube-vos": _Kind(lambda root, split: layouts.youtube_vos(root, split)[0], _true_objects,
                         predictions.read_objects),
    "fbms-j": _Kind(layouts.fbms, _true_foreground, predictions.read_foreground),
    "youtube-objects": _Kind(lambda root, split: layouts.youtube_objects(root), _true_foreground,
                             predictions.read_foreground),
}


def compare(runs: list[Path], dataset: str | Path, protocol: str = "davis2016", split: str | None = None,
            sequences: tuple[str, ...] = (), workers: int = 1, progress: Callable = no_progress) -> Comparison:
    """Scores folders of results by the same rule, and sorts the sequences by how much the runs differ.

    The difference is that of the second run and the first, or of the best and the worst of more than two. A sequence's
    score is the mean of J and F where the protocol has both, J otherwise; T is left out. Sequences
    without a score come last, and equal differences are in the order of their names.

    Args:
        runs: Two or more folders of results.
        dataset: The dataset as published.
        protocol: One that scores single frames: DAVIS, ``youtube-vos``, ``fbms-j`` or ``youtube-objects``.
        split: The protocol's usual one if None.
        sequences: Those to score, all if empty.
        workers: Processes, as in ``evaluate``.
        progress: As in ``evaluate``, once a run.

    Returns:
        The scores.

    Raises:
        UserError: There are fewer than two runs, the same twice, or one is incomplete or breaks a rule; the protocol
            has no scores of frames.
    """
    runs, dataset, row = [Path(run) for run in runs], Path(dataset), protocol_row(protocol)
    if protocol not in _KINDS:
        raise UserError(f"{protocol} has no scores of single frames to compare; take one of {', '.join(_KINDS)}.")
    if len(runs) < 2:
        raise UserError("Comparing takes two folders of results or more.")
    split = split or row.split
    names = _names(runs)
    results = tuple(evaluate(protocol, run, dataset, split, sequences=tuple(sequences), workers=workers,
                             progress=progress, temporal=False) for run in runs)
    rows = [_row(name, [result.sequences[name] for result in results]) for name in results[0].sequences]
    rows.sort(key=lambda row: (np.isnan(row.difference), -abs(np.nan_to_num(row.difference)), row.name))
    return Comparison(protocol, split, dataset, tuple(runs), names, "J&F" if "F" in results[0].scores else "J",
                      _row("all", [result.scores for result in results]), tuple(rows), results)


def table(comparison: Comparison) -> list[dict[str, str | float]]:
    """Returns rows of a table, one per sequence and a last one of the dataset; headers name the measure."""
    rows = [*comparison.rows, comparison.overall]
    headers = [f"{comparison.measure} {name}" for name in comparison.names]
    return [{"Sequence": row.name} | dict(zip(headers, row.scores, strict=True)) | {"Difference": row.difference}
            for row in rows]


def write(comparison: Comparison, output: Path) -> list[Path]:
    """Writes ``comparison.csv``, ``comparison.json``, ``differences.png`` and ``worst_frames.png``.

    Everything is made before the first file is written. Earlier files of the same names are replaced.

    Args:
        comparison: The scores; the masks and frames that are drawn are read again.
        output: The folder, made if missing.

    Returns:
        The files.

    Raises:
        UserError: A frame cannot be read, or the operating system refuses to write.
    """
    rows = table(comparison)
    worst = worst_frames(comparison)
    scores = {
        "protocol": comparison.protocol, "rule": comparison.results[0].rule, "split": comparison.split,
        "measure": comparison.measure,
        "runs": {name: str(run) for name, run in zip(comparison.names, comparison.runs, strict=True)},
        "overall": _entry(comparison, comparison.overall),
        "sequences": {row.name: _entry(comparison, row) for row in comparison.rows},
        "worst_frames": [{"sequence": name, "frame": frame, "scores": dict(zip(comparison.names, values, strict=True))}
                         for name, frame, values in worst],
    }
    pictures = {"differences.png": _bars(comparison), "worst_frames.png": _png(_grid(comparison, worst))}
    output = Path(output)
    make_folder(output)
    atomic_write(output / "comparison.csv", table_csv(rows, 6).encode())
    write_json(output / "comparison.json", plain(scores))
    for name, data in pictures.items():
        atomic_write(output / name, data)
    return [output / name for name in ("comparison.csv", "comparison.json", *pictures)]


def worst_frames(comparison: Comparison) -> list[tuple[str, str, tuple[float, ...]]]:
    """Finds the frames with the lowest score in any run, at most one of a sequence.

    Returns:
        Up to eight of (sequence, frame, score of each run), the lowest first.
    """
    found = []
    for row in comparison.rows:
        frames = [(frame, tuple(_frame_score(result.frames[row.name][frame]) for result in comparison.results))
                  for frame in comparison.results[0].frames[row.name]]
        known = [(np.nanmin(scores), frame, scores) for frame, scores in frames if not np.isnan(scores).all()]
        if known:
            lowest, frame, scores = min(known, key=lambda entry: entry[:2])
            found.append((lowest, row.name, frame, scores))
    return [entry[1:] for entry in sorted(found, key=lambda entry: entry[:2])[:_WORST]]


def _names(runs):
    """The folders' names, with those above in front where two are alike."""
    paths = [Path(os.path.abspath(run)) for run in runs]
    real = [path.resolve() for path in paths]
    twice = [run for index, run in enumerate(runs) if real[index] in real[:index]]
    if twice:
        raise UserError(f"The results '{twice[0]}' are given twice; compare different folders.")
    taken = ["Sequence", "Difference"]  # the other columns of the table
    depths = [1] * len(paths)
    while True:
        names = [Path(*path.parts[-depth:]).as_posix() for path, depth in zip(paths, depths, strict=True)]
        alike = [index for index, name in enumerate(names) if (names + taken).count(name) > 1]
        if not alike:
            return tuple(names)
        for index in alike:
            depths[index] += 1


def _row(name, entries):
    scores = tuple(map(_score, entries))
    difference = scores[1] - scores[0] if len(scores) == 2 else max(scores) - min(scores)
    # Rounded, so that a rounding error makes no order and no minus sign.
    return Row(name, scores, round(difference, 12) + 0.0)


def _score(entry):
    """J&F, or J, of a sequence or of a dataset; of the two means of YouTube-Objects that over sequences."""
    mean = entry["J"]["mean"]
    return (mean + entry["F"]["mean"]) / 2 if "F" in entry else mean


def _frame_score(measures):
    return nan_mean(list(measures.values()))


def _entry(comparison, row):
    return {"scores": dict(zip(comparison.names, row.scores, strict=True)), "difference": row.difference}


def _color(index):
    from matplotlib import colormaps

    colors = colormaps["tab10"].colors
    return colors[index % len(colors)]


def _bars(comparison):
    """The bar picture as PNG: a group of bars a sequence, a color a run, the difference on the right."""
    from matplotlib.figure import Figure

    rows, runs = comparison.rows[:_MOST_BARS], len(comparison.runs)
    thickness = 0.8 / runs
    height = len(rows) * (0.12 + 0.13 * runs)
    figure = Figure(figsize=(9, min(1.6 + 0.22 * runs + height, 60)), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # inches
    axes = figure.add_subplot(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel=comparison.measure)
    places = np.arange(len(rows))
    for index in range(runs):
        axes.barh(places + (index - (runs - 1) / 2) * thickness, [row.scores[index] for row in rows], 0.9 * thickness,
                  color=_color(index))
    axes.set_yticks(places, [_shortened(row.name, lambda text: len(text) <= 36) for row in rows], parse_math=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, [f"{row.difference:{'+' if runs == 2 else ''}.3f}" for row in rows], family="monospace")
    right.set_ylabel("second − first" if runs == 2 else "best − worst")
    for side in (axes, right):
        side.tick_params(axis="y", length=0)
        for spine in ("top", "right", "left"):
            side.spines[spine].set_visible(False)
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    shown = (f"the {_MOST_BARS} largest differences of {len(comparison.rows)} sequences"
             if len(comparison.rows) > _MOST_BARS else "sequences by difference")
    figure.suptitle(f"{comparison.measure}, {comparison.protocol} {comparison.split}: {shown}")
    # The text is set afterwards: a legend takes names with an underscore in front as hidden, and $ as a formula.
    legend = figure.legend(axes.containers, ["-"] * runs, loc="outside lower center", frameon=False)
    for text, name, overall in zip(legend.get_texts(), comparison.names, comparison.overall.scores, strict=True):
        text.set_parse_math(False)
        text.set_text(f"{_shortened(name, lambda text: len(text) <= 70)}   all: {overall:.3f}")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _grid(comparison, worst):
    """The worst frames: a row each, a column for the ground truth and one for each run, uint8 [h, w, 3]."""
    files = _files(comparison)
    rows = [_cells(comparison, *files[name], frame) for name, frame, _ in worst]
    columns = 1 + len(comparison.runs)
    width = 2 * _MARGIN + columns * _CELL + (columns - 1) * _GAP
    height = 2 * _MARGIN + _TITLE + _HEAD + sum(_CAPTION + len(cells[0]) for cells in rows) + _GAP * max(
        len(rows) - 1, 0)
    canvas = np.full((height, width, 3), 255, np.uint8)
    texts = [(_MARGIN, _MARGIN, f"Worst frames by {comparison.measure}, {comparison.protocol} {comparison.split}",
              "title", _INK)]
    lefts = [_MARGIN + column * (_CELL + _GAP) for column in range(columns)]
    top = _MARGIN + _TITLE
    for column, (left, name) in enumerate(zip(lefts, ("ground truth", *comparison.names), strict=True)):
        texts.append((left, top, name, "bold", _INK))
        # The stroke has the color of the run in the bar picture.
        canvas[top + 20:top + 23, left:left + _CELL] = _INK if column == 0 else np.multiply(_color(column - 1), 255)
    top += _HEAD
    for (name, frame, scores), cells in zip(worst, rows, strict=True):
        texts.append((lefts[0], top + 5, f"{name} / {frame}", "plain", _INK))
        lowest = np.nanmin(scores)
        for left, score in zip(lefts[1:], scores, strict=True):
            style = ("bold", _INK) if score == lowest else ("plain", _PALE)
            texts.append((left, top + 5, f"{comparison.measure} {score:.3f}", *style))
        top += _CAPTION
        for left, cell in zip(lefts, cells, strict=True):
            canvas[top:top + len(cell), left:left + _CELL] = cell
        top += len(cells[0]) + _GAP
    return _written(canvas, texts)


def _files(comparison):
    """The sequence and each run's predictions of its scored frames, by sequence."""
    frames = comparison.results[0].frames
    listed = _KINDS[comparison.protocol].sequences(comparison.dataset, comparison.split)
    found = [predictions.find(run, frames) for run in comparison.runs]
    return {item.name: (item, [files[item.name] for files in found]) for item in listed if item.name in frames}


def _cells(comparison, sequence, found, frame):
    """The ground truth and each run's mask drawn onto a frame, of the common width."""
    kind = _KINDS[comparison.protocol]
    labels = [kind.truth(sequence.truths[sequence.frames.index(frame)], sequence)]
    for result, run in zip(comparison.results, found, strict=True):
        labels.append(_assigned(kind.prediction(run[frame]), result.sequences[sequence.name].get("objects", {})))
    height, width = labels[0].shape
    size = (_CELL, max(round(height * _CELL / width), 1))
    path = {path.stem: path for path in sequence.images}.get(frame)
    image = np.zeros((height, width, 3), np.uint8) if path is None else read_image(path)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if image.shape[1] > _CELL else cv2.INTER_LINEAR)
    # Drawn at the final size, so that the outlines stay a pixel wide.
    return [draw_overlay(image, cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT))
            for mask in labels]


def _assigned(labels, objects):
    """Proposals under the numbers of the objects that they were assigned to; other masks as they are."""
    numbers = {entry["proposal"]: int(number) for number, entry in objects.items() if "proposal" in entry}
    if not numbers:
        return labels
    table = np.full(256, _LEFT_OVER, np.uint8)
    table[0] = 0
    table[list(numbers)] = list(numbers.values())
    return table[labels]


def _written(canvas, texts):
    """The canvas with (left, top, text, style, color) written on it, each within the width of a cell."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(get_data_path(), "fonts", "ttf")  # Pillow's own font knows few letters
    fonts = {"plain": ImageFont.truetype(folder / "DejaVuSans.ttf", _FONT),
             "bold": ImageFont.truetype(folder / "DejaVuSans-Bold.ttf", _FONT),
             "title": ImageFont.truetype(folder / "DejaVuSans.ttf", _FONT + 4)}
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for left, top, text, style, color in texts:
        room = canvas.shape[1] - 2 * _MARGIN if style == "title" else _CELL
        draw.text((left, top), _shortened(text, lambda text, style=style, room=room: fonts[style].getlength(text)
                                          <= room), color, fonts[style])
    return np.asarray(image)


def _shortened(text, fits):
    """The text, with letters in its middle left out until it fits."""
    keep, shown = len(text), text
    while keep > 1 and not fits(shown):
        keep -= 1
        shown = f"{text[:(keep + 1) // 2]}…{text[len(text) - keep // 2:]}"
    return shown


def _png(image):
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(image).save(picture, "PNG")
    return picture.getvalue()
