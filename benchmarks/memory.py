"""Measure peak memory of ``uvos segment`` against video length, from a video file to masks and overlay on disk.

    python benchmarks/memory.py [--picture docs/memory.png] [--rows "default 480x854"] [--lengths 100,1000,5000]
    python benchmarks/memory.py --weights RUN/best [--lengths 100,1000]

Each run is a separate process on a generated video whose frames repeat to the given length; the peak is the process's
resident set size as recorded in ``run.json``. Prints peak memory and frames per second of each run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from uvos_jax.data.synthetic.clip import make_clip
from uvos_jax.video import VideoWriter

# Name: options of the command, (height, width) of the video, maximum number of frames (limits the run time).
ROWS = {
    "default 480x854": ([], (480, 854), 5000),
    "default 1080x1920": ([], (1080, 1920), 1000),
    "default 2160x3840": ([], (2160, 3840), 100),
    "adnet 480x854": (["--model", "adnet", "--weights", "random"], (480, 854), 10),
}


def write_video(path: Path, size: tuple[int, int], length: int) -> None:
    """Writes a video that plays a generated scene forward and backward."""
    small = make_clip(0, 24, (270, 480)).frames
    rows = np.arange(size[0]) * small.shape[1] // size[0]
    columns = np.arange(size[1]) * small.shape[2] // size[1]
    with VideoWriter(path, 24) as writer:
        for i in range(length):
            frame = small[23 - abs(i % 46 - 23)]
            writer.write(np.ascontiguousarray(frame[rows][:, columns]))


def measure(options: list[str], size: tuple[int, int], length: int) -> dict:
    """Runs the command on a video of ``length`` frames; returns its ``run.json``."""
    with tempfile.TemporaryDirectory() as folder:
        video, output = Path(folder, "video.mp4"), Path(folder, "out")
        write_video(video, size, length)
        command = [sys.executable, "-m", "uvos_jax", "segment", str(video), "--output", str(output), "--quiet"]
        subprocess.run(command + options, check=True)
        return json.loads((output / "run.json").read_text())


def draw(results: dict[str, dict[int, float]], path: Path) -> None:
    """Plots peak memory over video length, one line per row."""
    from matplotlib.figure import Figure

    axes = (figure := Figure((7, 4), layout="constrained")).subplots()
    for name, peaks in results.items():
        axes.plot(list(peaks), list(peaks.values()), marker="o", label=name)
    axes.set(xscale="log", xlabel="frames", ylabel="peak memory, MiB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures all rows, prints and plots the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--rows", help="comma-separated; any of: " + ", ".join(ROWS))
    parser.add_argument("--lengths", default="10,100,1000,5000")
    parser.add_argument("--weights", help="checkpoint to measure at 480x854 instead of --rows")
    arguments = parser.parse_args()
    rows, results = ROWS, {}
    if arguments.weights:
        rows = {f"{Path(arguments.weights).absolute().parent.name} 480x854": (["--weights", arguments.weights],
                                                                             (480, 854), 5000)}
    for name in arguments.rows.split(",") if arguments.rows else rows:
        options, size, most = rows[name.strip()]
        for length in (int(n) for n in arguments.lengths.split(",") if int(n) <= most):
            run = measure(options, size, length)
            results.setdefault(name, {})[length] = run["peak_memory_mib"]
            print(f"{name:<20} {length:>5} frames  {run['peak_memory_mib']:>6.0f} MiB  "
                  f"{length / run['seconds']:6.1f} frames/s", flush=True)
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()
