"""Run the default network on degraded and unusual videos: still, cut, dark, portrait, 4K, short and long clips.

    python benchmarks/default_robustness.py --davis DAVIS --output uvos_output/robustness --picture robustness.jpg

``--davis`` is DAVIS-2016 as published. Each video is encoded as H.264 and passed to ``uvos segment``. Prints the exit
code, number of masks, mean foreground fraction, fraction of empty masks, seconds per frame and messages of the command
for each video.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.video.rendering import draw_overlay
from uvos_jax.video.video_writer import VideoWriter

_LENGTH = 30
_SHOWN = (0.1, 0.35, 0.65, 0.9)  # fractions of the video's length
_HEIGHT = 120


def cases(sequence):
    """Returns frames by case name; ``sequence(name)`` returns frames ``[t, h, w, 3]`` uint8 RGB."""
    rng = np.random.default_rng(0)
    bus, car, bear = sequence("bus"), sequence("car-turn"), sequence("bear")
    dark = 255 * (car[:_LENGTH] / 255.0) ** 1.5 * 0.12 + rng.normal(0, 4, car[:_LENGTH].shape)
    wide = bear.shape[2]
    middle = slice((wide - 270) // 2, (wide + 270) // 2)
    large = np.stack([cv2.resize(frame, (3840, 2160), interpolation=cv2.INTER_CUBIC) for frame in car[:12]])
    small = np.stack([cv2.resize(frame, (426, 240), interpolation=cv2.INTER_AREA) for frame in car])
    return {
        "still": np.repeat(bear[:1], _LENGTH, 0),
        "cut": np.concatenate([bear[:_LENGTH // 2], bus[:_LENGTH // 2]]),
        "black": np.zeros_like(bear[:_LENGTH]),
        "black, then light": np.concatenate([np.zeros_like(bear[:_LENGTH // 2]), bear[:_LENGTH // 2]]),
        "night": np.clip(dark, 0, 255).astype(np.uint8),
        "portrait": bear[:_LENGTH, :, middle],
        "4K": large,
        "five frames": bear[:5],
        "ten minutes": np.concatenate([small, small[::-1]] * 19)[:3000],  # at five frames a second
    }


def main():
    """Runs all cases and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--davis", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", nargs="+", help="names of the cases to run")
    args = parser.parse_args()

    def sequence(name):
        files = sorted((args.davis / "JPEGImages/480p" / name).glob("*.jpg"))
        return np.stack([cv2.imread(str(file))[..., ::-1] for file in files])

    rows = []
    for name, frames in cases(sequence).items():
        if args.only and name not in args.only:
            continue
        folder = args.output / name.replace(" ", "_").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        video = folder / "video.mp4"
        with VideoWriter(video, 5.0 if name == "ten minutes" else 24.0) as writer:
            for frame in frames:
                writer.write(frame)
        run = subprocess.run([sys.executable, "-m", "uvos_jax", "segment", video, "--output", folder / "result",
                              "--overwrite", "--quiet", "--soft"], capture_output=True, text=True)
        masks = sorted((folder / "result/masks").glob("*.png"))
        found = [(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) > 0).astype(np.uint8) for mask in masks]
        shares = [float(mask.mean()) for mask in found]
        about = json.loads((folder / "result/run.json").read_text()) if masks else {}
        print(f"{name}: exit code {run.returncode}, {len(masks)} masks for {len(frames)} frames, mean"
              f" foreground {np.mean(shares):.1%}, {np.mean(np.array(shares) == 0):.0%} of the masks empty,"
              f" {about.get('seconds', np.nan) / max(len(masks), 1):.2f} s per frame including compilation"
              f" {run.stderr.strip()}", flush=True)
        if not found:
            continue
        picked = [min(int(part * len(frames)), len(frames) - 1) for part in _SHOWN]
        shown = [draw_overlay(frames[t], found[t]) for t in picked]
        rows.append((name, [cv2.resize(x, (round(x.shape[1] * _HEIGHT / x.shape[0]), _HEIGHT),
                                       interpolation=cv2.INTER_AREA) for x in shown]))
    if args.picture:
        width = max(sum(x.shape[1] for x in row) for _, row in rows)
        strips = []
        for name, row in rows:
            strip = np.full((_HEIGHT + 18, width, 3), 255, np.uint8)
            cv2.putText(strip, name, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
            joined = np.concatenate(row, 1)
            strip[18:, :joined.shape[1]] = joined
            strips.append(strip)
        half = -(-len(strips) // 2)
        columns = [np.concatenate(part) for part in (strips[:half], strips[half:])]
        columns[1] = np.pad(columns[1], ((0, len(columns[0]) - len(columns[1])), (8, 0), (0, 0)), constant_values=255)
        cv2.imwrite(str(args.picture), np.concatenate(columns, 1)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
