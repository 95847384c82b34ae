"""Measure how fine-tuning on a few masks improves the default network on a sequence held back from its training.

    python benchmarks/default_fine_tune.py runs/fold2 --davis DAVIS --sequence boat --masks 5 --output uvos_output/boat

``--davis`` is DAVIS-2016 as published. Evenly spaced frames get their ground-truth masks. Prints J and F of the other
frames before and after fine-tuning, and the time of fine-tuning.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.evaluation.region_boundary import boundary_f, jaccard
from uvos_jax.inference import load
from uvos_jax.video.rendering import draw_overlay

_ROOT = Path(__file__).resolve().parent.parent
_SHOWN = (0.25, 0.5, 0.75)  # fractions of the frames without a mask
_TILE = (284, 160)


def main():
    """Prints J and F before and after fine-tuning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--davis", type=Path, required=True)
    parser.add_argument("--sequence", required=True)
    parser.add_argument("--masks", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="a JPEG: frames before (above) and after")
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output} already exists")
    files = sorted((args.davis / "JPEGImages/480p" / args.sequence).glob("*.jpg"))
    answers = sorted((args.davis / "Annotations/480p" / args.sequence).glob("*.png"))
    known = np.round(np.linspace(0, len(files) - 1, args.masks)).astype(int)
    clips = args.output / "clips"
    for kind, chosen in (("JPEGImages", files), ("Annotations", [answers[t] for t in known])):
        (clips / kind / args.sequence).mkdir(parents=True)
        for file in chosen:
            shutil.copy(file, clips / kind / args.sequence)
    frames = np.stack([cv2.imread(str(file))[..., ::-1] for file in files])
    truth = np.stack([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) > 0 for file in answers])
    judged = np.setdiff1d(np.arange(1, len(files) - 1), known)

    results = {"before": load(weights=args.run / "last").segment(frames) > 0}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "uvos_jax", "train", "--config", _ROOT / "configs/default.py", "--workdir",
                    args.output / "run", f"--config.data=folder:{clips}",
                    f"--config.init.weights={(args.run / 'last').resolve()}"], check=True)
    print(f"{time.perf_counter() - started:.0f} s for conversion, flow, training and compilation")
    results["after"] = load(weights=args.output / "run/last").segment(frames) > 0
    for name, masks in results.items():
        pair = masks[judged], truth[judged]
        print(f"{args.sequence}, {len(judged)} frames without a mask, {name}: J {100 * jaccard(*pair).mean():.1f}"
              f"  F {100 * boundary_f(*pair).mean():.1f}", flush=True)
    if args.picture:
        shown = [judged[int(part * len(judged))] for part in _SHOWN]
        rows = [np.concatenate([cv2.resize(draw_overlay(frames[t], masks[t].astype(np.uint8)), _TILE,
                                           interpolation=cv2.INTER_AREA) for t in shown], 1)
                for masks in results.values()]
        cv2.imwrite(str(args.picture), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
