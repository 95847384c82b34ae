"""Measure frames per second of the J and F metrics of DAVIS against a straightforward implementation.

    python benchmarks/region_boundary.py [--masks FOLDER] [--objects N] [--repeats N]

The straightforward implementation works on whole frames, as the published tools do: two boundary maps and two dilations
by a disk with OpenCV, per object and frame. FOLDER has one folder of masks per sequence, such as
DAVIS/Annotations/480p; the prediction of a frame is the mask before it. Without FOLDER, deforming blobs at 480x854 are
generated. Both implementations alternate on the same decoded masks and cores. The second part scores sequences from PNG
files, including decoding, with one process and with one process per core. Prints frames per second and ratios.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from uvos_jax.data.datasets.ground_truth import read_foreground
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.evaluation.region_boundary import boundary_radius, score_labels
from uvos_jax.evaluation.scoring import default_workers
from uvos_jax.video import write_mask

_COPIES = 8  # of each sequence, so that the start of the processes is negligible


def boundary_map(mask):
    """Returns the boundary map of the DAVIS evaluation code, bool ``[h, w]``."""
    moved = np.zeros((3, *mask.shape), bool)
    moved[0, :, :-1] = mask[:, 1:]
    moved[1, :-1] = mask[1:]
    moved[2, :-1, :-1] = mask[1:, 1:]
    result = (mask ^ moved[0]) | (mask ^ moved[1]) | (mask ^ moved[2])
    result[-1] = mask[-1] ^ moved[0, -1]
    result[:, -1] = mask[:, -1] ^ moved[1, :, -1]
    result[-1, -1] = False
    return result


def straightforward(prediction, truth, objects):
    """Computes J and F, ``[objects]`` each, with operations on whole frames."""
    radius = boundary_radius(*truth.shape)
    offset = np.arange(-radius, radius + 1)
    disk = (offset[:, None] ** 2 + offset**2 <= radius**2).astype(np.uint8)
    scores = []
    for number in range(1, objects + 1):
        p, t = prediction == number, truth == number
        union = (p | t).sum()
        region = (p & t).sum() / union if union else 1.0
        p, t = boundary_map(p), boundary_map(t)
        near_p, near_t = (cv2.dilate(mask.astype(np.uint8), disk).astype(bool) for mask in (p, t))
        found = (p & near_t).sum() / p.sum() if p.any() else 1.0
        covered = (t & near_p).sum() / t.sum() if t.any() else 1.0
        scores.append((region, 2 * found * covered / (found + covered) if found + covered else 0.0))
    return np.array(scores).T


def ours(prediction, truth, objects):
    """Computes J and F, ``[objects]`` each, with this library."""
    return np.array(score_labels(prediction, truth, objects))


def generate_masks(objects, frames=40, seed=0):
    """Generates deforming blobs side by side, uint8 ``[frames, 480, 854]``."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:480, :854].astype(np.float32)
    labels = np.zeros((frames, 480, 854), np.uint8)
    for number in range(1, objects + 1):
        y, x = rng.uniform(180, 300), 854 * (number - 0.5) / objects
        waves, size = rng.uniform(0.1, 0.3, 3), 300 / (objects + 1)
        angle = np.arctan2(rows - y, columns - x)
        distance = np.hypot(rows - y, columns - x)
        for t in range(frames):
            edge = sum(w * np.sin((k + 2) * angle + 0.2 * t * (k + 1)) for k, w in enumerate(waves))
            labels[t][distance < size * (1 + edge)] = number
    return labels


def write_dataset(root, sequences):
    """Writes each sequence several times as ground truth and, shifted by one frame, as predictions."""
    names = [f"s{copy}-{index}" for copy in range(_COPIES) for index in range(len(sequences))]
    listing = root / "ImageSets" / "2016" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("\n".join(names))
    for name in names:
        labels = sequences[int(name.rpartition("-")[2])]
        for folder, masks in (("Annotations", labels), ("predictions", np.roll(labels, 1, axis=0))):
            (root / folder / name).mkdir(parents=True)
            for t, mask in enumerate(masks):
                write_mask(root / folder / name / f"{t:05d}.png", mask)
    return root, names


def main():
    """Prints both measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    if options.masks:
        folders = sorted(path for path in options.masks.iterdir() if path.is_dir())[:8]
        sequences = [np.stack([read_foreground(path) for path in sorted(folder.glob("*.png"))]).astype(np.uint8)
                     for folder in folders]
        objects = 1
    else:
        objects = options.objects
        sequences = [generate_masks(objects, seed=seed) for seed in range(4)]
    pairs = [(labels[t - 1], labels[t]) for labels in sequences for t in range(1, len(labels))][::3]
    for pair in pairs[:10]:
        np.testing.assert_allclose(ours(*pair, objects), straightforward(*pair, objects), rtol=0, atol=1e-12)
    seconds = {ours: [], straightforward: []}
    for _ in range(options.repeats):
        for function, times in seconds.items():
            started = time.perf_counter()
            for pair in pairs:
                function(*pair, objects)
            times.append((time.perf_counter() - started) / len(pairs))
    ratios = [slow / fast for fast, slow in zip(seconds[ours], seconds[straightforward], strict=True)]
    height, width = pairs[0][0].shape
    print(f"{len(pairs)} frames {height}x{width}, {objects} object(s), median of {options.repeats} rounds")
    for function, times in seconds.items():
        print(f"  {function.__name__:<16} {1 / statistics.median(times):7.0f} frames/s")
    print(f"  ratio            {statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")

    with TemporaryDirectory() as folder:
        root, names = write_dataset(Path(folder), sequences)
        frames = sum(len(labels) - 2 for labels in sequences) * _COPIES
        seconds = {}
        for workers in (1, default_workers()):
            started = time.perf_counter()
            evaluate("davis2016", root / "predictions", root, workers=workers, temporal=False)
            seconds[workers] = time.perf_counter() - started
        rates = ", ".join(f"{frames / spent:.0f} on {workers}" for workers, spent in seconds.items())
        print(f"{len(names)} sequences from disk, frames/s by processes: {rates}"
              f" ({seconds[1] / min(seconds.values()):.2f} times)")


if __name__ == "__main__":
    main()
