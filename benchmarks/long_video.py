"""Memory of the process while a long video runs: it must not grow with the video.

    python benchmarks/long_video.py [--frames 2000] [--size 480x854] [--chunk 4]

A small AD-Net segments generated frames; resident memory is printed along the way. Linux only (/proc).
"""

import argparse
import os
from pathlib import Path

import numpy as np

from uvos_jax.inference import load

_SMALL = {"depths": (1, 1, 1, 1), "width": 8, "aspp_features": 16, "embedding": 16, "hidden": 16, "short_side": 97}


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def frames(count, size):
    """Noise frames, made one at a time."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, 256, (*size, 3), np.uint8)


def main() -> None:
    """Runs the video and prints resident memory every tenth of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--size", default="480x854")
    parser.add_argument("--chunk", type=int, default=4)
    arguments = parser.parse_args()
    size = tuple(int(n) for n in arguments.size.split("x"))
    segmenter = load("adnet", "random", variant="official", **_SMALL)
    every = max(1, arguments.frames // 10)
    stream = segmenter.stream(frames(arguments.frames, size), chunk=arguments.chunk)
    for i, _ in enumerate(stream, 1):
        if i == arguments.chunk or i % every == 0:
            print(f"frame {i:>6}  {resident_mib():8.1f} MiB", flush=True)
    compiled = segmenter.engine(size).step._cache_size()
    print(f"step compiled {compiled} time(s)")


if __name__ == "__main__":
    main()
