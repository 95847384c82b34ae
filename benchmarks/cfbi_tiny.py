"""Score runs of ``configs/cfbi.py:tiny`` on held-back videos against copying the first mask.

    uvos train --config configs/cfbi.py:tiny --workdir runs/cfbi0 --data-dir data --config.seed=0
    uvos train --config configs/cfbi.py:tiny --workdir runs/cfbi1 --data-dir data --config.seed=1
    python benchmarks/cfbi_tiny.py runs/cfbi0 runs/cfbi1 --data-dir data

All rows are scored by the validation code of training: on the sequences of DAVIS-2016 that the configuration holds
back, with one object each, and on generated clips with unseen seeds, whose first frames show two or three objects. Runs
use the weights after the last step. Prints a table in percent: J of each sequence, then means over the objects.
"""

import argparse
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from uvos_jax.data.storage.store import SyntheticStore, open_store
from uvos_jax.inference import Segmenter, load
from uvos_jax.training.phases import phases
from uvos_jax.training.setup import first_state, inference_variables, setup
from uvos_jax.training.validation import choose, validate

_UNSEEN = 2_000_000  # first seed of the held-back clips


class Copied:
    """Baseline segmenter that repeats the given mask of every object."""

    model = SimpleNamespace(task="prompted")

    def segment(self, frames, first_mask):
        """Returns labels ``[t, h, w]`` that copy the last given mask of each object."""
        labels = np.zeros(frames.shape[:3], np.uint8)
        for t in sorted(first_mask):
            labels[t:] = np.where(first_mask[t] > 0, first_mask[t], labels[t])
        return labels


def generated(objects, clips, length):
    """Returns a store and the indices of its first ``clips`` clips whose first frame shows ``objects`` objects."""
    store = SyntheticStore(10 * clips, length, seed=_UNSEEN, objects=(objects, objects))
    showing = (v for v in range(10 * clips) if len(np.unique(store.labels(v, 0))) == objects + 1)
    return store, list(itertools.islice(showing, clips))


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=10, help="generated clips per number of objects")
    parser.add_argument("--length", type=int, default=8, help="frames per generated clip, as in training")
    args = parser.parse_args()
    config = json.loads((args.runs[0] / "config.json").read_text())
    entry = config["validate"]
    store = open_store(args.data_dir, entry["name"], entry["split"])
    videos = choose(store, entry["only"])
    synthetic = [generated(count, args.clips, args.length) for count in (2, 3)]

    parts = setup(config, phases(config)[0])
    rows = {
        "first mask copied": Copied(),
        "untrained network": Segmenter(config["model"]["name"], parts.model,
                                       inference_variables(first_state(config, parts))),
    } | {f"{run.name}, last": load(weights=run / "last") for run in args.runs}
    names = [store.videos[v].name for v in videos]
    print("| |", " | ".join(names), "| mean J | mean F | two objects: J, F, J&F | three objects: J, F, J&F |")
    print("|---|" + "---|" * (len(names) + 4))
    for row, segmenter in rows.items():
        scores, _ = validate(segmenter, store, videos)
        cells = [scores["sequences"][name]["J"] for name in names] + [scores["J"], scores["F"]]
        print(f"| {row} |", " | ".join(f"{100 * cell:.1f}" for cell in cells), "|", end="", flush=True)
        for clips in synthetic:
            scores, _ = validate(segmenter, *clips)
            print("", ", ".join(f"{100 * scores[key]:.1f}" for key in ("J", "F", "J&F")), "|", end="", flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
