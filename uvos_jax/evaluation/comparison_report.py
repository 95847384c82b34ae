"""Files of a comparison: CSV, JSON, a bar chart of the sequences and a grid of the worst frames."""

import io
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.atomic_io import atomic_write, make_folder
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.compare import MASK_READERS, Comparison, table, worst_frames
from uvos_jax.evaluation.report import format_csv, to_json
from uvos_jax.video import draw_overlay, write_json
from uvos_jax.video.image_io import read_image

_MAX_BAR_GROUPS = 40  # sequences in the bar chart
# Label of proposals that are assigned to no object. ``draw_overlay`` draws it gray; object ids end at 20.
_UNASSIGNED = 56

# Layout of the grid, in pixels.
_CELL_WIDTH = 320
_GAP = 8
_MARGIN = 16
_TITLE_HEIGHT = 34
_HEADER_HEIGHT = 26
_CAPTION_HEIGHT = 26
_FONT_SIZE = 14

_TEXT_COLOR = (32, 32, 32)
_MUTED_COLOR = (110, 110, 110)


def write(comparison: Comparison, output: Path) -> list[Path]:
    """Writes ``comparison.csv``, ``comparison.json``, ``differences.png`` and ``worst_frames.png``.

    All contents are computed before the first file is written. Existing files of the same names are replaced.

    Args:
        comparison: The scores. The masks and frames of the grid are read again from disk.
        output: Folder of the files; created if missing.

    Returns:
        Paths of the files.

    Raises:
        UserError: A frame cannot be read, or a file or folder cannot be written.
    """
    worst = worst_frames(comparison)
    scores = {
        "protocol": comparison.protocol, "rule": comparison.results[0].rule, "split": comparison.split,
        "measure": comparison.measure,
        "runs": {name: str(run) for name, run in zip(comparison.names, comparison.runs, strict=True)},
        "overall": _json_row(comparison, comparison.overall),
        "sequences": {row.name: _json_row(comparison, row) for row in comparison.rows},
        "worst_frames": [{"sequence": name, "frame": frame, "scores": dict(zip(comparison.names, values, strict=True))}
                         for name, frame, values in worst],
    }
    images = {"differences.png": _bar_chart(comparison), "worst_frames.png": _png(_grid(comparison, worst))}
    output = Path(output)
    make_folder(output)
    atomic_write(output / "comparison.csv", format_csv(table(comparison), 6).encode())
    write_json(output / "comparison.json", to_json(scores))
    for name, data in images.items():
        atomic_write(output / name, data)
    return [output / name for name in ("comparison.csv", "comparison.json", *images)]


def _json_row(comparison, row):
    return {"scores": dict(zip(comparison.names, row.scores, strict=True)), "difference": row.difference}


def _run_color(index):
    from matplotlib import colormaps

    colors = colormaps["tab10"].colors
    return colors[index % len(colors)]


def _bar_chart(comparison):
    """Draws a group of bars per sequence, one color per run, with the differences on the right; returns PNG bytes."""
    from matplotlib.figure import Figure

    rows, runs = comparison.rows[:_MAX_BAR_GROUPS], len(comparison.runs)
    thickness = 0.8 / runs
    height = len(rows) * (0.12 + 0.13 * runs)
    figure = Figure(figsize=(9, min(1.6 + 0.22 * runs + height, 60)), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # inches
    axes = figure.add_subplot(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel=comparison.measure)
    positions = np.arange(len(rows))
    for index in range(runs):
        axes.barh(positions + (index - (runs - 1) / 2) * thickness, [row.scores[index] for row in rows],
                  0.9 * thickness, color=_run_color(index))
    axes.set_yticks(positions, [_shorten(row.name, lambda text: len(text) <= 36) for row in rows], parse_math=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(positions, [f"{row.difference:{'+' if runs == 2 else ''}.3f}" for row in rows], family="monospace")
    right.set_ylabel(f"{comparison.measure} difference\n{'second − first' if runs == 2 else 'best − worst'}")
    for side in (axes, right):
        side.tick_params(axis="y", length=0)
        for spine in ("top", "right", "left"):
            side.spines[spine].set_visible(False)
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    scope = (f"the {_MAX_BAR_GROUPS} largest differences of {len(comparison.rows)} sequences"
             if len(comparison.rows) > _MAX_BAR_GROUPS else "sequences by difference")
    figure.suptitle(f"{comparison.measure}, {comparison.protocol} {comparison.split}: {scope}")
    # Texts are set after the legend is made, because it hides names that start with an underscore and parses $.
    legend = figure.legend(axes.containers, ["-"] * runs, loc="outside lower center", frameon=False)
    for text, name, overall in zip(legend.get_texts(), comparison.names, comparison.overall.scores, strict=True):
        text.set_parse_math(False)
        text.set_text(f"{_shorten(name, lambda text: len(text) <= 70)}   all: {overall:.3f}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _grid(comparison, worst):
    """Draws the worst frames, one per row, in columns of ground truth and runs; returns uint8 [h, w, 3]."""
    paths = _paths_by_sequence(comparison)
    rows = [_cells(comparison, *paths[name], frame) for name, frame, _ in worst]
    columns = 1 + len(comparison.runs)
    width = 2 * _MARGIN + columns * _CELL_WIDTH + (columns - 1) * _GAP
    height = (2 * _MARGIN + _TITLE_HEIGHT + _HEADER_HEIGHT + sum(_CAPTION_HEIGHT + len(cells[0]) for cells in rows)
              + _GAP * max(len(rows) - 1, 0))
    canvas = np.full((height, width, 3), 255, np.uint8)
    texts = [(_MARGIN, _MARGIN, f"Worst frames by {comparison.measure}, {comparison.protocol} {comparison.split}",
              "title", _TEXT_COLOR)]
    lefts = [_MARGIN + column * (_CELL_WIDTH + _GAP) for column in range(columns)]
    top = _MARGIN + _TITLE_HEIGHT
    for column, (left, name) in enumerate(zip(lefts, ("ground truth", *comparison.names), strict=True)):
        texts.append((left, top, name, "bold", _TEXT_COLOR))
        # The line under the name has the run's color of the bar chart.
        color = _TEXT_COLOR if column == 0 else np.multiply(_run_color(column - 1), 255)
        canvas[top + 20:top + 23, left:left + _CELL_WIDTH] = color
    top += _HEADER_HEIGHT
    for (name, frame, scores), cells in zip(worst, rows, strict=True):
        texts.append((lefts[0], top + 5, f"{name} / {frame}", "plain", _TEXT_COLOR))
        lowest = np.nanmin(scores)
        for left, score in zip(lefts[1:], scores, strict=True):
            style = ("bold", _TEXT_COLOR) if score == lowest else ("plain", _MUTED_COLOR)
            texts.append((left, top + 5, f"{comparison.measure} {score:.3f}", *style))
        top += _CAPTION_HEIGHT
        for left, cell in zip(lefts, cells, strict=True):
            canvas[top:top + len(cell), left:left + _CELL_WIDTH] = cell
        top += len(cells[0]) + _GAP
    return _draw_texts(canvas, texts)


def _paths_by_sequence(comparison):
    """Returns, by sequence name, the sequence and the prediction paths of each run."""
    frames = comparison.results[0].frames
    listed = MASK_READERS[comparison.protocol].sequences(comparison.dataset, comparison.split)
    found = [predictions.find_predictions(run, frames) for run in comparison.runs]
    return {item.name: (item, [paths[item.name] for paths in found]) for item in listed if item.name in frames}


def _cells(comparison, sequence, run_paths, frame):
    """Draws the ground truth and each run's mask over a frame; returns one image of the cell width for each."""
    readers = MASK_READERS[comparison.protocol]
    labels = [readers.truth(sequence.truths[sequence.frames.index(frame)], sequence)]
    for result, paths in zip(comparison.results, run_paths, strict=True):
        objects = result.sequences[sequence.name].get("objects", {})
        labels.append(_relabel_proposals(readers.prediction(paths[frame]), objects))
    height, width = labels[0].shape
    size = (_CELL_WIDTH, max(round(height * _CELL_WIDTH / width), 1))
    path = {path.stem: path for path in sequence.images}.get(frame)
    image = np.zeros((height, width, 3), np.uint8) if path is None else read_image(path)
    shrinks = image.shape[1] > _CELL_WIDTH
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    # Masks are drawn at the final size, so that their outlines stay one pixel wide.
    return [draw_overlay(image, cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT))
            for mask in labels]


def _relabel_proposals(labels, objects):
    """Gives proposals the ids of the objects they are assigned to; labels of other protocols are returned as is."""
    object_of = {entry["proposal"]: int(number) for number, entry in objects.items() if "proposal" in entry}
    if not object_of:
        return labels
    lookup = np.full(256, _UNASSIGNED, np.uint8)
    lookup[0] = 0
    lookup[list(object_of)] = list(object_of.values())
    return lookup[labels]


def _draw_texts(canvas, texts):
    """Draws (left, top, text, style, color) entries, shortened to the width of a cell; returns uint8 [h, w, 3]."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(get_data_path(), "fonts", "ttf")  # Pillow's default font lacks many characters
    fonts = {"plain": ImageFont.truetype(folder / "DejaVuSans.ttf", _FONT_SIZE),
             "bold": ImageFont.truetype(folder / "DejaVuSans-Bold.ttf", _FONT_SIZE),
             "title": ImageFont.truetype(folder / "DejaVuSans.ttf", _FONT_SIZE + 4)}
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for left, top, text, style, color in texts:
        width = canvas.shape[1] - 2 * _MARGIN if style == "title" else _CELL_WIDTH
        shortened = _shorten(text, lambda text, style=style, width=width: fonts[style].getlength(text) <= width)
        draw.text((left, top), shortened, color, fonts[style])
    return np.asarray(image)


def _shorten(text, fits):
    """Replaces characters in the middle of the text with an ellipsis until ``fits(text)`` is true."""
    keep, shortened = len(text), text
    while keep > 1 and not fits(shortened):
        keep -= 1
        shortened = f"{text[:(keep + 1) // 2]}…{text[len(text) - keep // 2:]}"
    return shortened


def _png(image):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
