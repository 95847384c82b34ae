"""Measure the cost of an F2Net frame with the first frame in the state against encoding both frames per step.

    python benchmarks/f2net.py [--size 473x473] [--rounds 5] [--threads 2]

The published evaluation encodes the first and the current frame for every frame. Timed are a whole frame of this
library (encoding, center, matching, fusion and state update), the encoding of one frame, and the encoding of both
frames in one batch (``paper``, full width, random weights). The three alternate in one process, so that their ratios
are independent of drifting machine speed. CPU time over all cores is reported because wall time is unreliable on a
shared machine. Prints median seconds, GFLOPs and ratios.
"""

import argparse
import os
import statistics

import jax
import jax.numpy as jnp
import numpy as np


def forms(size, **fields):
    """Returns the timed functions by name as ``(function, arguments)``."""
    from uvos_jax.inference.loading import random_variables
    from uvos_jax.models import build

    model = build("f2net", **fields)
    variables = random_variables(model)
    frames = jnp.asarray(np.random.default_rng(0).normal(0, 60, (2, *size, 3)).astype(np.float32))

    def encode(variables, frames):
        return model.apply(variables, {"frame": frames}, method="encode")

    def begin(variables, frame):
        return model.apply(variables, encode(variables, frame), method="init_state")

    def whole(variables, state, frame):
        features = encode(variables, frame)
        logits, aux = model.apply(variables, state, features, method="predict")
        labels = (model.to_native(logits, size) > model.threshold)[..., 0].astype(jnp.uint8)
        return labels, model.apply(variables, state, features, labels, aux, method="commit")

    state = jax.block_until_ready(jax.jit(begin)(variables, frames[:1]))
    one = jax.jit(encode)
    return {"a frame, the first one stored": (jax.jit(whole), (variables, state, frames[1:])),
            "encoding of one frame": (one, (variables, frames[1:])),
            "encoding of both frames": (one, (variables, frames))}


def main() -> None:
    """Prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="473x473")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before JAX starts one thread per available core
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.threads])
    from dpa import medians, timed

    from uvos_jax.inference.profiling.flops import count_flops

    size = tuple(int(n) for n in args.size.split("x"))
    three = forms(size)
    seconds = timed(three, args.rounds)
    print(f"{jax.devices()[0].device_kind}, F2Net paper at {args.size}, float32, {args.rounds} rounds")
    whole = seconds["a frame, the first one stored"]
    for name, (function, arguments) in three.items():
        wall, cores = (statistics.median(a[i] / b[i] for a, b in zip(whole, seconds[name], strict=True))
                       for i in range(2))
        print(f"{name:<32} {medians(seconds[name])} {count_flops(function, *arguments) / 1e9:7,.0f} GFLOP"
              f"   a frame / this: {wall:.3f} wall time, {cores:.3f} CPU time", flush=True)


if __name__ == "__main__":
    main()
