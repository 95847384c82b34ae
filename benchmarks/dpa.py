"""What a frame of DPA costs with the references' prototypes stored, against encoding four references for every frame.

    python benchmarks/dpa.py [--size 512] [--rounds 3] [--rows]

The published evaluation encodes four reference frames anew for each frame. Both forms run the same network (``paper``,
full width, random weights) on one frame; they take turns in one process, so that the ratio survives a machine whose
speed drifts; seconds of all cores together say what a shared machine's wall clock does not. Flow is given: only the
network is timed. ``--rows`` adds the rows of the paper's Table 2: without either attention, with one of them, with
both.
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
    """Two ways to answer one frame, as ``(function, arguments)``: references stored, and encoded again."""
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
    """``(seconds, seconds of all cores)`` of each form in each round, without the compilation."""
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
    """The medians as text."""
    wall, cores = (statistics.median(column) for column in zip(*times, strict=True))
    return f"{wall:7.2f} s {cores:7.2f} s of cores"


def main() -> None:
    """Prints medians and the ratio."""
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
    print(f"stored / encoded for every frame: {wall:.3f} by the clock, {cores:.3f} of cores", flush=True)
    if args.rows:
        rows = {f"row {name}": forms(args.size, ima=ima, ifa=ifa)["references stored"]
                for name, (ima, ifa) in _ROWS.items()}
        for name, times in timed(rows, args.rounds).items():
            print(f"{name:<42} {medians(times)}", flush=True)


if __name__ == "__main__":
    main()
