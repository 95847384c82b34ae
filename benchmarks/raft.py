"""Measure RAFT's time against PyTorch, and the memory saved by on-demand correlation.

    python benchmarks/raft.py [--size 480x854] [--iterations 20] [--rounds 5] [--net large] [--part time|memory]

Time: this library's network and the PyTorch reference of the tests, with the same random weights, float32 and two
threads, alternate in one process, so that their ratio is independent of drifting machine speed. Both upsample only the
last flow; compilation is excluded. Needs PyTorch. Prints medians, minima and the ratio.

Memory: prints the peak resident set size of a process that runs one pair, with stored and with on-demand correlation;
one process for each.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from uvos_jax.inference.loading import random_variables
from uvos_jax.models import build
from uvos_jax.models.raft.padding import pad_to_eight


def pair(size: tuple[int, int]) -> dict[str, jax.Array]:
    """Returns two random frames, padded to multiples of eight."""
    frames = np.random.default_rng(0).uniform(0, 255, (2, 1, *size, 3)).astype(np.float32)
    return {name: pad_to_eight(x)[0] for name, x in zip(("first", "second"), frames, strict=True)}


def compare_time(net: str, size: tuple[int, int], iterations: int, rounds: int) -> None:
    """Prints median times of both and the range of their ratio over the rounds."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.helpers.torch_raft import TorchRAFT
    from uvos_jax.weights import from_torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    theirs = TorchRAFT(net).eval()
    variables = from_torch("raft", {key: value.numpy() for key, value in theirs.state_dict().items()}, net=net)
    model, batch = build("raft", net=net, iterations=iterations), pair(size)
    ours = jax.jit(lambda v, x: model.apply(v, x)[0]["flow"])
    images = [torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous() for x in batch.values()]

    def run_torch():
        with torch.inference_mode():
            return theirs(*images, iterations)["flow"]

    def run_jax():
        return jax.block_until_ready(ours(variables, batch))

    difference = np.abs(np.asarray(run_jax()).transpose(0, 3, 1, 2) - run_torch().numpy()).max()
    seconds = {"jax": [], "torch": []}
    for _ in range(rounds):
        for name, run in (("jax", run_jax), ("torch", run_torch)):
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(seconds["jax"], seconds["torch"], strict=True)]
    print(f"RAFT {net}, {batch['first'].shape[1]}x{batch['first'].shape[2]}, {iterations} iterations, {rounds} rounds,"
          f" {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; largest difference {difference:.1e} pixels")
    for name, times in seconds.items():
        print(f"{name:<6} median {statistics.median(times):6.2f} s, minimum {min(times):6.2f} s")
    print(f"jax / torch: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def measure_memory(net: str, size: tuple[int, int], iterations: int, correlation: str) -> None:
    """Prints the peak resident set size of one pair in MiB; run it in a separate process."""
    model = build("raft", net=net, iterations=iterations, correlation=correlation)
    variables = random_variables(model)
    program = jax.jit(lambda v, x: model.apply(v, x)[0]["flow"]).lower(variables, pair(size)).compile()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    jax.block_until_ready(program(variables, pair(size)))
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{correlation:<10} {after:6.0f} MiB peak, {after - before:.0f} of them for the run (planned by the program:"
          f" {program.memory_analysis().temp_size_in_bytes / 2**20:.0f}), {seconds:.1f} s")


def main() -> None:
    """Runs the selected parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="480x854")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--net", default="large", choices=("large", "small"))
    parser.add_argument("--part", choices=("time", "memory"))
    parser.add_argument("--correlation", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = tuple(int(n) for n in arguments.size.split("x"))
    if arguments.correlation:
        measure_memory(arguments.net, size, arguments.iterations, arguments.correlation)
        return
    if arguments.part != "memory":
        compare_time(arguments.net, size, arguments.iterations, arguments.rounds)
    if arguments.part != "time":
        for correlation in ("stored", "on_demand"):
            subprocess.run([sys.executable, __file__, "--size", arguments.size, "--net", arguments.net, "--iterations",
                            str(arguments.iterations), "--correlation", correlation], check=True)


if __name__ == "__main__":
    main()
