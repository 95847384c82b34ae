"""Score D-Net and T-Net of ``configs/dtnet.py:tiny`` together: rows of the paper's Tables 3 and 4.

    uvos train --config configs/dtnet.py:tiny --workdir runs/dtnet --data-dir data
    uvos train --config configs/dtnet.py:tiny --workdir runs/unguided --data-dir data --config.model.guidance=False
    python benchmarks/dtnet_tiny.py runs/dtnet --unguided runs/unguided

Runs on generated clips with unseen seeds: two to four objects, each at least 0.5 % of the first frame; at least one of
them is absent and returns later, or crosses another. Prints a table: J and F of DAVIS-2017 unsupervised in percent, and
identity switches and fragmentations summed over all clips.
"""

import argparse
import copy
import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np

from uvos_jax.data.storage.store import SyntheticStore
from uvos_jax.evaluation.track_identity import identity_switches
from uvos_jax.inference import load
from uvos_jax.inference.engine import shared
from uvos_jax.training.validation import score_proposals

_UNSEEN = 2_000_000  # first seed of the held-back clips
_LARGE = 0.005  # minimum area in the first frame, as a fraction of the frame
_HIDDEN = 0.1  # an object below this fraction of its first area counts as absent
_ROOM = 200  # track ids for linking by IoU alone, where an object absent for one frame gets a new id


def eventful(labels: np.ndarray) -> bool:
    """Returns whether a clip ``[t, h, w]`` starts with 2 to 4 large objects and one is absent or crosses another."""
    objects = [number for number in np.unique(labels[0]) if number]
    areas = np.stack([(labels == number).mean((1, 2)) for number in objects], 1) if objects else np.zeros((1, 0))
    if not 2 <= len(objects) <= 4 or (areas[0] < _LARGE).any():
        return False
    away = areas < _HIDDEN * areas[0]
    returned = any(away[:t, i].any() and not away[t, i] for t in range(len(labels)) for i in range(len(objects)))
    return returned or _cross(labels, objects)


def _cross(labels, objects):
    """Returns whether two objects swap their left-to-right order during the clip."""
    def spans(t):
        columns = [np.flatnonzero((labels[t] == number).any(0)) for number in objects]
        return [(c[0], c[-1] + 1) if len(c) else None for c in columns]

    order = {}
    for t in range(len(labels)):
        its = spans(t)
        for i, j in itertools.combinations(range(len(objects)), 2):
            if its[i] is None or its[j] is None:
                continue
            apart = its[i][1] <= its[j][0] or its[j][1] <= its[i][0]
            if apart:
                before = its[i][0] < its[j][0]
                if order.setdefault((i, j), before) != before:
                    return True
    return False


def choose(count: int, length: int) -> tuple[SyntheticStore, list[int]]:
    """Returns a store and the indices of its first ``count`` eventful clips."""
    store = SyntheticStore(30 * count, length, seed=_UNSEEN, objects=(2, 4))
    clips = (v for v in range(30 * count) if eventful(np.stack([store.labels(v, t) for t in range(length)])))
    return store, list(itertools.islice(clips, count))


def without(segmenter, **fields):
    """Returns the segmenter with changed hyper-parameters or with linking by IoU only."""
    other = copy.copy(segmenter)
    link_only = fields.pop("link_only", False)
    other.model = segmenter.model.clone(**fields)
    if link_only:
        make = other.engine
        other.engine = lambda *args, **options: shared(dataclasses.replace(make(*args, **options), link_only=True))
    return other


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--unguided", type=Path, help="a run without guidance")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--length", type=int, default=32, help="frames of a clip")
    args = parser.parse_args()
    store, clips = choose(args.clips, args.length)
    full = load(weights=args.run / "last")
    rows = {"full model": full, "w/o verification": without(full, verification=False),
            "w/o memory update": without(full, memory_update=False)}
    if args.unguided:
        rows["w/o guidance"] = load(weights=args.unguided / "last")
    rows["proposals linked by IoU"] = without(full, link_only=True, max_tracks=_ROOM)
    print("| | J | F | J&F | switches | fragmentations | objects matched |")
    print("|---|---|---|---|---|---|---|")
    for name, segmenter in rows.items():
        scores, counts = [], Counter()
        for v in clips:
            labels = segmenter.segment(np.stack([store.image(v, t) for t in range(args.length)]))
            scores += score_proposals(store, v, labels)
            counts.update(identity_switches(np.stack([store.labels(v, t) for t in range(args.length)]), labels))
        region, boundary = 100 * np.mean(scores, 0)
        print(f"| {name} | {region:.1f} | {boundary:.1f} | {(region + boundary) / 2:.1f} | {counts['switches']} |"
              f" {counts['fragmentations']} | {counts['matched'] / counts['visible']:.1%} |", flush=True)


if __name__ == "__main__":
    main()
