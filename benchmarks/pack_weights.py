"""Makes the weights in the package from a training run, their licence, and the scores that their header states.

    python benchmarks/pack_weights.py runs/tiny0 --command "uvos train --config configs/adnet.py:tiny --config.seed=0"

The network after the last step is packed: the best of several validations on the sequences it is chosen by would
flatter it. The clips of ``uvos demo`` are segmented with the checkpoint and with what was packed, since packing
rounds; the scores of the held-back sequences are those of the run's own last validation.
"""

import argparse
import json
import textwrap
from pathlib import Path

import numpy as np

from uvos_jax.cli import demo
from uvos_jax.inference import Segmenter, load
from uvos_jax.weights import packaged

_DATASETS = {"davis2016": "DAVIS-2016 train", "duts": "pictures of DUTS-TR", "synthetic": "generated clips"}
_TERMS = {
    "davis2016": "DAVIS-2016 (Perazzi, Pont-Tuset, McWilliams, Van Gool, Gross, Sorkine-Hornung: A benchmark dataset"
                 " and evaluation methodology for video object segmentation, CVPR 2016), whose frames are under"
                 " CC BY-NC 4.0, a few videos under the terms of the video sites that they come from",
    "duts": "DUTS-TR (Wang, Lu, Wang, Feng, Wang, Yin, Ruan: Learning to detect salient objects with image-level"
            " supervision, CVPR 2017), which is for research",
    "synthetic": "clips that uvos_jax generates",
}
_LICENCE = """The file default.safetensors in this folder holds the trained weights of the default network.

They were learned from:

{terms}

No frame of these is in the file.

The weights are licensed under the Creative Commons Attribution-NonCommercial 4.0 International licence
(CC BY-NC 4.0), https://creativecommons.org/licenses/by-nc/4.0/legalcode. They are provided as they are, without
warranty of any kind.

This holds for default.safetensors alone. uvos_jax itself is under the Apache License 2.0 and works with weights of
your own: train on data whose licence suits you, and give --weights.
"""


def main():
    """Packs, and prints a table of the demo's clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, help="how the run was started")
    args = parser.parse_args()
    config = json.loads((args.run / "config.json").read_text())
    log = [json.loads(line) for line in (args.run / "log.jsonl").read_text().splitlines()]
    steps = sum(phase["steps"] for phase in config["phases"])
    held_back = next(row["validation"] for row in reversed(log) if "validation" in row and row["step"] == steps)

    file, checkpoint = Path(packaged.ASSETS / "default.safetensors"), load(weights=args.run / "last")
    names = [part["name"] for part in config["data"]["mixture"]]
    left_out = ", ".join(config["validate"]["only"])
    header = {"origin": f"{', '.join(_DATASETS[name] for name in names)} (without {left_out}); seed {config['seed']};"
                        f" {args.command}",
              "licence": "CC BY-NC 4.0, see uvos_jax/assets/LICENSE; uvos_jax itself is Apache-2.0"}
    terms = "\n".join(textwrap.fill(_TERMS[name], 115, initial_indent="- ", subsequent_indent="  ") for name in names)
    (file.parent / "LICENSE").write_text(_LICENCE.format(terms=terms))
    scores = {"held-back sequences": {key: round(held_back[key], 4) for key in ("J", "F")}}
    packaged.pack(args.run / "last", file, **header, scores=scores)
    rounded = Segmenter(*packaged.load_packaged())

    totals = []
    for seed in demo.SEEDS:
        frames, truth = demo.generated_clip(seed)
        rows = {"checkpoint": checkpoint.segment(frames) > 0, "packed": rounded.segment(frames) > 0}
        rows |= demo.trivial(truth)
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
