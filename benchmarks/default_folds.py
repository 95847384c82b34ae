"""Score the recipe of the default network on the 30 sequences of DAVIS-2016 train, each held back by one fold.

    for k in 0 1 2; do
      uvos train --config configs/default.py:fold$k --workdir runs/fold$k --data-dir data
    done
    python benchmarks/default_folds.py runs/fold0 runs/fold1 runs/fold2 --data-dir data --write folds.json

Each run is scored on the sequences that its configuration holds back (on all 30 if it holds none back, as
``synthetic``, which is not trained on DAVIS), with the weights after the last step, through the public inference code.
``--set`` overrides hyper-parameters as in ``uvos segment``. Prints J and F of every sequence and run in percent.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.cli.options import parse_hyper_parameters
from uvos_jax.data.storage.store import open_store
from uvos_jax.inference import load
from uvos_jax.training.validation import choose, validate
from uvos_jax.video.rendering import draw_overlay

_TILE = (214, 120)  # width and height of a sequence in the picture
_ACROSS = 5


def tile(segmenter, store, v, score):
    """Draws the middle frame of a sequence with its mask and J, ``[h, w, 3]`` uint8 RGB."""
    frames = np.stack([store.image(v, t) for t in range(store.videos[v].length // 2 + 1)])
    drawn = draw_overlay(frames[-1], (segmenter.segment(frames)[-1] > 0).astype(np.uint8))
    drawn = cv2.resize(drawn, _TILE, interpolation=cv2.INTER_AREA)
    text = f"{store.videos[v].name} {100 * score:.0f}"
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(drawn, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, width, cv2.LINE_AA)
    return drawn


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--set", action="append", metavar="NAME=VALUE")
    parser.add_argument("--flow-cache", type=Path)
    parser.add_argument("--picture", type=Path, help="JPEG of the middle frames, five per row")
    parser.add_argument("--write", type=Path, help="JSON file of the means, input of pack_weights.py")
    args = parser.parse_args()
    print("| sequence | J | F |\n|---|---|---|")
    folds, tiles = [], []
    for run in args.runs:
        held = json.loads((run / "config.json").read_text())["validate"] or {"name": "davis2016", "split": "train"}
        store = open_store(args.data_dir, held["name"], held["split"])
        segmenter = load(weights=run / "last", flip=args.flip, flow_cache=args.flow_cache,
                         **parse_hyper_parameters(args.set))
        chosen = choose(store, held.get("only", ()))
        scores, _ = validate(segmenter, store, chosen)
        for name, row in scores["sequences"].items():
            print(f"| {name} | {100 * row['J']:.1f} | {100 * row['F']:.1f} |")
        print(f"| **{run.name}** | **{100 * scores['J']:.1f}** | **{100 * scores['F']:.1f}** |", flush=True)
        folds.append((scores["J"], scores["F"]))
        for v in chosen if args.picture else ():
            score = scores["sequences"][store.videos[v].name]["J"]
            tiles.append((score, tile(segmenter, store, v, score)))
    region, boundary = 100 * np.mean(folds, 0)
    print(f"| **mean of {len(folds)}** | **{region:.1f}** | **{boundary:.1f}** |")
    if args.picture:
        ranked = [drawn for _, drawn in sorted(tiles, key=lambda pair: -pair[0])]
        rows = [np.concatenate(ranked[i:i + _ACROSS], 1) for i in range(0, len(ranked), _ACROSS)]
        cv2.imwrite(str(args.picture), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    if args.write:
        args.write.write_text(json.dumps({"J": round(region / 100, 4), "F": round(boundary / 100, 4)}) + "\n")


if __name__ == "__main__":
    main()
