"""Measure the cost of a DPA frame with stored reference prototypes against encoding the references for every frame.

    python benchmarks/dpa.py [--size 512] [--rounds 3] [--rows]

The published evaluation encodes four reference frames for every frame. Both variants run the same network (``paper``,
full width, random weights) on one frame with given flow, and alternate in one process, so that their ratio is
independent of drifting machine speed. CPU time over all cores is reported because wall time is unreliable on a shared
machine. ``--rows`` adds the rows of the paper's Table 2: without attention, with IMA, with IFA, with both. Prints
median seconds, GFLOPs and the ratio.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.inference.loading import random_variables
from uvos_jax.inference.profiling.flops import count_flops
from uvos_jax.models import build

# (IMA, IFA)
_ROWS = {"I, no attention": (False, False), "II, IMA": (True, False), "III, IFA": (False, True),
         "IV, both": (True, True)}


def forms(size, **fields):
    """Returns both variants by name as ``(function, arguments)``."""
    model = build("dpa", **fields)
    variables = random_variables(model)
    count = model.references
    pictures = np.random.default_rng(0).normal(0, 1, (1 + count, size, size, 3)).astype(np.float32)
    inputs = {name: jnp.asarray(pictures if name == "frame" else np.abs(pictures) / 4) for name in model.inputs}
    frame, others = ({name: x[part] for name, x in inputs.items()} for part in (slice(1), slice(1, None)))

    def encode(variables, inputs):
        return model.apply(variables, inputs, method="encode")

    def predict(variables, state, features):
        return model.apply(variables, state, features, method="predict")[0]

    def remember(variables, others):
        return model.apply(variables, encode(variables, others), method="init_state")

    def stored(variables, state, frame):
        return predict(variables, state, encode(variables, frame))

    def again(variables, others, frame):
        return predict(variables, remember(variables, others), encode(variables, frame))

    state = jax.block_until_ready(jax.jit(remember)(variables, others))
    return {"references stored": (jax.jit(stored), (variables, state, frame)),
            f"{count} references encoded for every frame": (jax.jit(again), (variables, others, frame))}


def timed(forms, rounds):
    """Returns ``(wall seconds, CPU seconds)`` of each variant in each round, without compilation."""
    for function, arguments in forms.values():
        jax.block_until_ready(function(*arguments))
    seconds = {name: [] for name in forms}
    for _ in range(rounds):
        for name, (function, arguments) in forms.items():
            started = time.perf_counter(), time.process_time()
            jax.block_until_ready(function(*arguments))
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return seconds


def medians(times):
    """Formats the medians of wall and CPU time."""
    wall, cores = (statistics.median(column) for column in zip(*times, strict=True))
    return f"{wall:7.2f} s {cores:7.2f} s CPU"


def main() -> None:
    """Prints medians and the ratio of the two variants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", action="store_true")
    args = parser.parse_args()
    both = forms(args.size)
    seconds = timed(both, args.rounds)
    print(f"{jax.devices()[0].device_kind}, DPA paper at {args.size}x{args.size}, float32, {args.rounds} rounds")
    for name, (function, arguments) in both.items():
        print(f"{name:<42} {medians(seconds[name])} {count_flops(function, *arguments) / 1e9:7,.0f} GFLOP", flush=True)
    rounds = list(zip(*seconds.values(), strict=True))
    wall, cores = (statistics.median(stored[i] / again[i] for stored, again in rounds) for i in range(2))
    print(f"stored / encoded for every frame: {wall:.3f} wall time, {cores:.3f} CPU time", flush=True)
    if args.rows:
        rows = {f"row {name}": forms(args.size, ima=ima, ifa=ifa)["references stored"]
                for name, (ima, ifa) in _ROWS.items()}
        for name, times in timed(rows, args.rounds).items():
            print(f"{name:<42} {medians(times)}", flush=True)


if __name__ == "__main__":
    main()
