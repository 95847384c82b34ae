"""Score runs of ``configs/raft.py:tiny`` on held-back clips against DIS, zero flow and the untrained network.

    uvos convert-data synthetic --data-dir exact
    uvos train --config configs/raft.py:tiny --workdir runs/raft_tiny --data-dir exact
    python benchmarks/raft_tiny.py runs/raft_tiny --data-dir exact

All rows are scored by the validation code of training. "Last" is the network after the last step. Prints the mean
endpoint error in pixels and the fractions of vectors with an error above 1, 3 and 5 pixels.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from uvos_jax.data.storage.store import open_store
from uvos_jax.inference.flow.estimators import dis_estimator
from uvos_jax.training.flow_validation import choose, estimator, validate
from uvos_jax.training.phases import phases
from uvos_jax.training.setup import first_state, inference_variables, setup
from uvos_jax.weights import checkpoints


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()
    config = json.loads((args.runs[0] / "config.json").read_text())
    entry = config["validate"]
    store = open_store(args.data_dir, entry["name"], entry["split"])
    videos = choose(store, entry.get("only"))
    parts = setup(config, phases(config)[0])
    rows = {
        "no motion": lambda first, second: np.zeros((*first.shape[:2], 2), np.float32),
        "DIS, preset medium": lambda first, second: dis_estimator(first[None], second[None])[0],
        "untrained network": estimator(parts.model, inference_variables(first_state(config, parts))),
    } | {f"{run.name}, last": estimator(*checkpoints.load(run / "last")[1:]) for run in args.runs}
    print("| | EPE, pixels | over 1 px | over 3 px | over 5 px |")
    print("|---|---|---|---|---|")
    for row, estimate in rows.items():
        scores, _ = validate(estimate, store, videos)
        shares = " | ".join(f"{100 * scores[f'over_{limit}px']:.1f}%" for limit in (1, 3, 5))
        print(f"| {row} | {scores['epe']:.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
