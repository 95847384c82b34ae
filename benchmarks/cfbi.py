"""Measure time and memory of a CFBI frame with 1 to 10 objects against matching as in the published code.

    python benchmarks/cfbi.py [--size 480x854] [--objects 1,2,3,5,10] [--rounds 3] [--part time|memory]

Both variants run the same encoder and the same ensembler, object by object (``official``, full width, random weights,
float32). The published code computes the full distance matrix between two frames and copies it for each object;
for local matching it gathers the 25x25 window of every pixel. This library computes distances tile by tile, keeps only
their minima, and uses one compiled program for any number of objects.

Time: a frame of this library and the two ways of matching alternate in one process, so that their ratios are
independent of drifting machine speed. The time of a naive frame is that of this library with its matching time replaced
by that of naive matching. Prints median seconds and the ratio for each number of objects.

Memory: prints the peak resident set size of a process that runs encoder, matching and ensembler; one process for each
variant.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from uvos_jax.inference import load
from uvos_jax.inference.profiling.components import _components, _whole_frame
from uvos_jax.models.cfbi.model import WINDOWS
from uvos_jax.ops.matching import FAR
from uvos_jax.ops.resize import resize_bilinear, resize_nearest


def naive_global(embed, keys, labels, objects):
    """Returns ``[n, objects]`` from the full distance matrix, copied for each object; deliberately not jitted."""
    products = jnp.dot(embed, keys.T, precision="highest")
    distance = jnp.square(embed).sum(-1)[:, None] + jnp.square(keys).sum(-1) - 2 * products
    return jnp.stack([(distance + FAR * (labels != o)).min(-1) for o in range(objects)], -1)


def naive_local(embed, previous, labels, objects):
    """Returns ``[h, w, objects, windows]`` from the gathered window of every pixel; deliberately not jitted."""
    h, w, _ = embed.shape
    r = max(WINDOWS)
    previous = jnp.pad(previous, ((r, r), (r, r), (0, 0)))
    labels = jnp.pad(labels, r, constant_values=-1)
    offsets = [(y, x) for y in range(2 * r + 1) for x in range(2 * r + 1)]

    def windows(of):
        return jnp.stack([of[y:y + h, x:x + w] for y, x in offsets])

    distance = jnp.square(windows(previous) - embed).sum(-1)
    near = windows(labels)
    made = []
    for o in range(objects):
        mine = jnp.where(near == o, distance, FAR).reshape(2 * r + 1, 2 * r + 1, h, w)
        made.append(jnp.stack([mine[r - n:r + n + 1, r - n:r + n + 1].min((0, 1)) for n in WINDOWS], -1))
    return jnp.stack(made, 2)


def naive_matching(state, embed, objects):
    """Returns the global distances to the reference frame and the local distances to the previous frame."""
    h, w, c = embed.shape[1:]
    far = naive_global(embed.reshape(-1, c), state.reference[0, 0].reshape(-1, c),
                       state.reference_labels[0, 0].reshape(-1), objects)
    half = h // 2 + 1, w // 2 + 1
    small = [resize_bilinear(x[0], half, align_corners=True) for x in (embed, state.previous)]
    return far, naive_local(*small, resize_nearest(state.previous_labels[0, ..., None], half)[..., 0], objects)


def forms(segmenter, size, objects):
    """Returns (frame, matching, naive matching) as functions without arguments."""
    parts = _components(segmenter, size, objects)
    whole = _whole_frame(segmenter, size, objects)
    far, near = (parts[name] for name in ("global matching", "local matching"))
    return (lambda: whole.function(*whole.arguments),
            lambda: (far.function(*far.arguments), near.function(*near.arguments)),
            lambda: naive_matching(*far.arguments, objects + 1))


def compare_time(segmenter, size, counts, rounds):
    """Prints a row per number of objects: median times, and the median of the ratio over the rounds."""
    print(f"{'objects':>7} {'s / frame':>10} {'matching':>15} {'naive matching':>15} {'naive frame':>12}"
          f" {'ours / naive':>13}")
    for objects in counts:
        functions = forms(segmenter, size, objects)
        for function in functions:
            jax.block_until_ready(function())
        seconds = []
        for _ in range(rounds):
            row = []
            for function in functions:
                started = time.perf_counter()
                jax.block_until_ready(function())
                row.append(time.perf_counter() - started)
            seconds.append(row)
        frame, matching, naive = (statistics.median(column) for column in zip(*seconds, strict=True))
        other = statistics.median(ours + theirs - mine for ours, mine, theirs in seconds)
        ratio = statistics.median(ours / (ours + theirs - mine) for ours, mine, theirs in seconds)
        print(f"{objects:7} {frame:10.2f} {matching:15.2f} {naive:15.2f} {other:12.2f} {ratio:13.2f}", flush=True)


def measure_memory(segmenter, size, objects, naive):
    """Runs the components of a frame in one variant and prints the peak resident set size of this process in MiB."""
    parts = _components(segmenter, size, objects)
    far = parts["global matching"]
    if naive:
        del parts["global matching"], parts["local matching"]
        jax.block_until_ready(naive_matching(*far.arguments, objects + 1))
    for form in parts.values():
        jax.block_until_ready(form.function(*form.arguments))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{objects:7} {'naive' if naive else 'ours':>6} {peak:8,.0f} MiB", flush=True)


def main() -> None:
    """Prints both tables, or the selected one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="480x854")
    parser.add_argument("--objects", default="1,2,3,5,10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("time", "memory"))
    parser.add_argument("--form", choices=("ours", "naive"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = tuple(int(n) for n in args.size.split("x"))
    counts = [int(n) for n in args.objects.split(",")]
    if args.form:
        measure_memory(load("cfbi", "random", variant="official"), size, counts[0], args.form == "naive")
        return
    if args.part != "time":  # first, because the peak size of a process includes that of its parent at the fork
        print("peak resident set size of a process", flush=True)
        for objects in (min(counts), max(counts)):
            for form in ("ours", "naive"):
                subprocess.run([sys.executable, __file__, "--size", args.size, "--objects", str(objects), "--form",
                                form], check=True)
    segmenter = load("cfbi", "random", variant="official")
    height, width = segmenter.model.frame_size(size)
    print(f"{jax.devices()[0].device_kind}, CFBI official at {height}x{width}, float32, {os.cpu_count()} cores,"
          f" load {os.getloadavg()[0]:.1f}")
    if args.part != "memory":
        compare_time(segmenter, size, counts, args.rounds)


if __name__ == "__main__":
    main()
