"""Measure the cost of an AD-Net frame with the anchor's features in the state against encoding both frames per step.

    python benchmarks/adnet_frame.py [--size 480x854] [--rounds 5]

The published evaluation encodes the anchor and the current frame for every frame, runs the auxiliary head on both and
stores both affinities in full. This baseline is timed twice: with the convolutions of this library, and with plain
dilated convolutions throughout. The three variants alternate in one process, so that their ratios are independent of
drifting machine speed. Prints median seconds, GFLOPs and the time ratio of each variant.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.inference import load
from uvos_jax.inference.profiling.flops import count_flops
from uvos_jax.ops import conv
from uvos_jax.ops.attention import attention


def published_frame(model, anchor, frame):
    """Runs one frame as published: both encoders with auxiliary heads, full affinities; returns logits at stride 8."""
    embeddings, auxiliary = [], []
    for x in (anchor, frame):
        stages = model._encode(x, train=False)
        embeddings.append(stages["embed"])
        auxiliary.append(model.aux_embed(model.aux(stages["layer3"])))
    c = embeddings[0].shape[-1]
    first, current = (e.reshape(e.shape[0], -1, c) for e in embeddings)
    diffused = [attention(q, current, current, scale=c**-0.5).reshape(embeddings[0].shape) for q in (first, current)]
    x = model.classifier_hidden(jnp.concatenate([*diffused, embeddings[1]], -1))
    return model.classifier(x), auxiliary


def main() -> None:
    """Times the three variants and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="480x854")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    native = tuple(int(n) for n in arguments.size.split("x"))
    segmenter = load("adnet", "random", variant="official")
    model, variables = segmenter.model, segmenter.variables
    size = model.frame_size(native)
    anchor, frame = jnp.asarray(np.random.default_rng(0).normal(0, 60, (2, 1, *size, 3)).astype(np.float32))
    features = jax.jit(lambda v, x: model.apply(v, {"frame": x}, method="encode"))(variables, anchor)
    state = model.apply(variables, features, method="init_state")

    def stored(variables, state, frame):
        features = model.apply(variables, {"frame": frame}, method="encode")
        return model.apply(variables, state, features, method="predict")[0]

    def both(variables, anchor, frame):
        return model.apply(variables, anchor, frame, method=published_frame)

    def both_plain(variables, anchor, frame):
        return both(variables, anchor, frame)

    forms = {"anchor stored": (jax.jit(stored), (variables, state, frame)),
             "both frames encoded": (jax.jit(both), (variables, anchor, frame))}
    flops = {name: count_flops(f, *args) for name, (f, args) in forms.items()}
    for f, args in forms.values():
        jax.block_until_ready(f(*args))
    threshold, conv._SHIFTED_FROM_DILATION = conv._SHIFTED_FROM_DILATION, 10**9
    name = "both frames encoded, plain convolutions"
    forms[name] = (jax.jit(both_plain), (variables, anchor, frame))
    flops[name] = count_flops(both_plain, variables, anchor, frame)
    jax.block_until_ready(forms[name][0](*forms[name][1]))
    conv._SHIFTED_FROM_DILATION = threshold

    seconds = {name: [] for name in forms}
    for _ in range(arguments.rounds):
        for name, (f, args) in forms.items():
            started = time.perf_counter()
            jax.block_until_ready(f(*args))
            seconds[name].append(time.perf_counter() - started)
    print(f"{jax.devices()[0].device_kind}, network at {size[0]}x{size[1]}, float32, {arguments.rounds} rounds")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["anchor stored"], times, strict=True))
        print(f"{name:<40} {statistics.median(times):7.2f} s  {flops[name] / 1e9:7,.0f} GFLOP"
              f"  anchor stored / this: {ratio:.3f}")


if __name__ == "__main__":
    main()
