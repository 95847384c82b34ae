"""Score runs of the ``tiny`` presets on held-back videos against trivial predictions, and plot their learning curves.

    uvos train --config configs/adnet.py:tiny --workdir runs/tiny0 --data-dir data --config.seed=0
    uvos train --config configs/adnet.py:tiny --workdir runs/tiny1 --data-dir data --config.seed=1
    python benchmarks/held_back.py runs/tiny0 runs/tiny1 --data-dir data --picture docs/adnet_tiny.png

All rows are scored by the validation code of training on the same sequences. "Last" is the network after the last step;
the best of several validations on the same sequences would be biased upwards. Prints a table in percent: J of each
sequence, mean J and mean F.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from uvos_jax.data.storage.store import open_store
from uvos_jax.evaluation.region_boundary import jaccard
from uvos_jax.inference import Segmenter, load
from uvos_jax.labels import VOID
from uvos_jax.training.phases import phases
from uvos_jax.training.setup import first_state, inference_variables, setup
from uvos_jax.training.validation import choose, validate

_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:red", "tab:brown", "tab:pink", "tab:olive")
_THRESHOLDS = np.arange(0.05, 0.5, 0.05)


class Fixed:
    """Baseline segmenter whose labels are ``mask(video index)``."""

    model = SimpleNamespace(task="foreground")

    def __init__(self, store, mask):
        """Takes a store and a function from a video index to labels ``[h, w]`` or ``[t, h, w]``."""
        self._store, self._mask = store, mask

    def segment(self, frames):
        """Returns labels ``[t, h, w]`` of the video that starts with ``frames[0]``."""
        video = next(v for v, row in enumerate(self._store.videos)
                     if row.length == len(frames) and np.array_equal(self._store.image(v, 0), frames[0]))
        return np.broadcast_to(self._mask(video), frames.shape[:3]).astype(np.uint8)


def foreground(store, video, frame):
    """Returns the ground-truth foreground of a frame, bool ``[h, w]``."""
    labels = store.labels(video, frame)
    return (labels > 0) & (labels < VOID)


def mean_mask(store, videos):
    """Returns the mean of the videos' mean masks at the threshold with the best J, bool ``[h, w]``."""
    size = store.videos[videos[0]].size
    masks = {v: [foreground(store, v, t) for t in range(store.videos[v].length)] for v in videos}
    mean = np.mean([cv2.resize(np.mean(of, 0).astype(np.float32), size[::-1]) for of in masks.values()], 0)

    def score(threshold):
        return np.mean([np.mean([jaccard(resized(mean > threshold, mask.shape), mask) for mask in of[1:-1]])
                        for of in masks.values()])

    return mean > max(_THRESHOLDS, key=score)


def resized(mask, size):
    """Resizes a mask to ``(height, width)`` by nearest neighbor, bool."""
    return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0


def curve(runs, logs, trivial, path):
    """Plots training loss and held-back J over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for run, log, color in zip(runs, logs, _COLORS, strict=False):
        steps, losses = zip(*((row["step"], row["loss"]) for row in log if "loss" in row), strict=True)
        left.plot(steps, losses, color=color, alpha=0.25)
        smooth = [np.mean(losses[max(0, i - 4):i + 1]) for i in range(len(losses))]
        left.plot(steps, smooth, color=color, label=run.name)
        held = [(row["step"], row["validation"]["J"]) for row in log if "validation" in row]
        right.plot(*zip(*held, strict=True), "o-", color=color, label=run.name)
    for (name, value), style in zip(trivial.items(), ("--", "-.", ":"), strict=True):
        right.axhline(value, color="0.4", linestyle=style, linewidth=1, label=name)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    right.set(xlabel="step", ylabel="J of held-back sequences", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    config = json.loads((args.runs[0] / "config.json").read_text())
    entry = config["validate"]
    store = open_store(args.data_dir, entry["name"], entry["split"])
    videos = choose(store, entry["only"])
    average = mean_mask(store, [v for v in range(len(store.videos)) if v not in videos])

    parts = setup(config, phases(config)[0])
    untrained = Segmenter(config["model"]["name"], parts.model, inference_variables(first_state(config, parts)))
    rows = {
        "mean training mask": Fixed(store, lambda v: resized(average, store.videos[v].size)),
        "first mask copied": Fixed(store, lambda v: foreground(store, v, 0)),
        "everything": Fixed(store, lambda v: np.ones(store.videos[v].size, bool)),
        "untrained network": untrained,
    } | {f"{run.name}, last": load(weights=run / "last") for run in args.runs}
    names = [store.videos[v].name for v in videos]
    print("| |", " | ".join(names), "| mean J | mean F |")
    print("|---|" + "---|" * (len(names) + 2))
    results = {}
    for row, segmenter in rows.items():
        scores, _ = validate(segmenter, store, videos)
        results[row] = scores["J"]
        cells = [*(scores["sequences"][name]["J"] for name in names), scores["J"], scores["F"]]
        print(f"| {row} |", " | ".join(f"{100 * cell:.1f}" for cell in cells), "|", flush=True)
    if args.picture:
        logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in args.runs]
        curve(args.runs, logs, dict(list(results.items())[:3]), args.picture)


if __name__ == "__main__":
    main()
