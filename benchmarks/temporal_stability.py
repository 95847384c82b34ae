"""Compare T of the ground truth of DAVIS-2016 with the values published for every pair of frames.

    python benchmarks/temporal_stability.py DAVIS/Annotations/480p tests/golden/davis_train_T.csv [--python]

Each line of the CSV file has a sequence name and T, before the factor of 5, of the frame pairs (0, 1), (1, 2), ..., up
to the second to last frame. Angles are those of the MATLAB program, or with --python those of the Python program.
Prints the fraction of pairs that agree within several tolerances, and T over all sequences.
"""

import argparse
import csv
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from uvos_jax.data.datasets.ground_truth import read_foreground
from uvos_jax.evaluation.scoring import default_workers
from uvos_jax.evaluation.temporal_stability import sequence_instability


def measure(folder, matlab):
    """Computes T of the consecutive masks in a folder, without the last mask."""
    paths = sorted(folder.glob("*.png"))[:-1]
    return sequence_instability(map(read_foreground, paths), matlab)


def main():
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masks", type=Path)
    parser.add_argument("official", type=Path)
    parser.add_argument("--python", action="store_true")
    options = parser.parse_args()
    with open(options.official, newline="") as file:
        official = {row[0]: np.array(row[1:], float) for row in csv.reader(file)}
    started = time.perf_counter()
    with ProcessPoolExecutor(default_workers(), get_context("spawn")) as pool:
        folders = [options.masks / name for name in official]
        ours = dict(zip(official, pool.map(measure, folders, repeat(not options.python)), strict=True))
    seconds = time.perf_counter() - started
    for name, values in ours.items():
        if not np.array_equal(np.isnan(values), np.isnan(official[name])):
            print(f"{name}: the pairs without a value differ")
    difference = np.concatenate([np.abs(ours[name] - official[name]) for name in official])
    known = difference[~np.isnan(difference)]
    print(f"{known.size} pairs in {seconds:.0f} s, {difference.size - known.size} without a value")
    for tolerance in (1e-9, 1e-6, 1e-3, 1e-2):
        print(f"  equal to {tolerance:.0e}: {np.mean(known < tolerance):.1%}")
    means = {name: (5 * np.nanmean(ours[name]), 5 * np.nanmean(official[name])) for name in official}
    worst = max(means, key=lambda name: abs(means[name][0] - means[name][1]))
    print("  T, mean over the sequences: {:.4f}, official {:.4f}".format(*np.mean(list(means.values()), axis=0)))
    print(f"  largest difference of a sequence: {abs(means[worst][0] - means[worst][1]):.4f} ({worst})")


if __name__ == "__main__":
    main()
