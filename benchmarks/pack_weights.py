"""Build packaged weights from a training run, with the scores that are stored in their header.

    python benchmarks/pack_weights.py runs/default --scores folds.json --command "uvos train --config ..."
    python benchmarks/pack_weights.py runs/synthetic --name synthetic --scores synthetic.json --command "..."

Packs the network after the last step, which was not selected by validation. ``--scores`` is the file that
``default_folds.py --write`` wrote. The clips of ``uvos demo`` are segmented with the checkpoint and with the packaged
weights, because packaging rounds values. Prints J and F of both, and of the baselines of the demo, per clip. State the
training data of new weights in ``uvos_jax/assets/LICENSE``.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from uvos_jax.cli import demo
from uvos_jax.inference import Segmenter, load
from uvos_jax.weights import packaged

_DATASETS = {"davis2016": "DAVIS-2016 train", "duts": "pictures of DUTS-TR", "synthetic": "generated clips"}
_MEASURED = {True: "sequences unseen in three folds of its recipe", False: "DAVIS-2016 train, which it has not seen"}


def main():
    """Packs the weights and prints a table of the demo clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default=packaged.DEFAULT)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--command", required=True, help="command that started the run")
    args = parser.parse_args()
    config = json.loads((args.run / "config.json").read_text())
    names = dict.fromkeys(entry["name"] for phase in config["phases"] for entry in phase["data"]["mixture"])
    davis = "davis2016" in names
    header = {"origin": f"{', '.join(_DATASETS[name] for name in names)}; seed {config['seed']}; {args.command}",
              "license": ("CC BY-NC 4.0" if davis else "Apache-2.0") + ", see uvos_jax/assets/LICENSE; uvos_jax itself"
                         " is Apache-2.0"}
    scores = {_MEASURED[davis]: json.loads(args.scores.read_text())}
    file, checkpoint = Path(packaged.ASSETS / f"{args.name}.safetensors"), load(weights=args.run / "last")
    packaged.pack(args.run / "last", file, **header, scores=scores)
    rounded = Segmenter(*packaged.load_packaged(args.name))

    totals = []
    for seed in demo.SEEDS:
        frames, truth = demo.generated_clip(seed)
        rows = {"checkpoint": checkpoint.segment(frames) > 0, "packed": rounded.segment(frames) > 0}
        rows |= demo.baselines(truth)
        if not totals:
            print("| seed | object | " + " | ".join(f"{name}: J | F" for name in rows) + " |")
            print("|---" * (2 + 2 * len(rows)) + "|")
        totals.append([value for masks in rows.values() for value in demo.score(masks, truth).values()])
        print(f"| {seed} | {truth.mean():.1%} | " + " | ".join(f"{value:.4f}" for value in totals[-1]) + " |",
              flush=True)
    mean = np.mean(totals, 0)
    print("| mean | | " + " | ".join(f"{value:.4f}" for value in mean) + " |")
    scores["generated clips"] = {"J": round(float(mean[2]), 4), "F": round(float(mean[3]), 4)}
    packaged.pack(args.run / "last", file, **header, scores=scores)
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
