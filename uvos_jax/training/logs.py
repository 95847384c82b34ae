"""Logs of a run: console lines, ``log.jsonl``, and TensorBoard files if tensorboardX is installed."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvos_jax.atomic_io import atomic_write
from uvos_jax.errors import write_error


class RunLog:
    """Writes the log of a run. A resumed run first drops the lines of the steps that it repeats.

    Attributes:
        path: Of ``log.jsonl``: one JSON object per line, each with ``"step"``.
    """

    def __init__(self, workdir: Path, resumed_at: int):
        """Opens the log.

        Args:
            workdir: An existing folder.
            resumed_at: Last step whose lines are kept; 0 starts a new log.
        """
        self.path = Path(workdir) / "log.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_bytes().splitlines(keepends=True) if _is_kept(line, resumed_at)]
            atomic_write(self.path, b"".join(kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = _tensorboard(Path(workdir) / "tensorboard", resumed_at)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line and syncs it to disk; numbers go to TensorBoard, too.

        Args:
            step: Number of finished steps.
            values: Numbers, None or JSON values; nested dicts become ``a/b`` in TensorBoard.
        """
        try:
            self._file.write(json.dumps({"step": step} | _nan_to_null(values)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # the lines before a checkpoint must be on disk before it
        except OSError as error:
            raise write_error(self.path, error) from error
        if self._board is not None:
            for name, value in _scalars(values):
                self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 ``[h, w, 3]``, to TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class Throughput:
    """Measures examples per second and the share of time spent waiting for input, from one log line to the next."""

    def __init__(self):
        """Starts the clock."""
        self.started = time.monotonic()
        self._reset(self.started)

    def add_wait(self, seconds: float) -> None:
        """Counts time spent waiting for a batch."""
        self._waited += seconds

    def add_examples(self, count: int) -> None:
        """Counts examples of a finished step."""
        self._examples += count

    def exclude(self, seconds: float) -> None:
        """Leaves out time that was not spent on training, such as validation."""
        self._window_start += seconds

    def read(self) -> dict[str, Any]:
        """Returns the rates since the last call, and device memory in bytes (None if the platform has no count)."""
        now = time.monotonic()
        seconds = max(now - self._window_start, 1e-9)
        memory = jax.local_devices()[0].memory_stats() or {}
        values = {"examples_per_second": self._examples / seconds, "input_wait": min(self._waited / seconds, 1.0),
                  "device_memory": memory.get("bytes_in_use"), "seconds": now - self.started}
        self._reset(now)
        return values

    def _reset(self, now):
        self._window_start, self._examples, self._waited = now, 0, 0.0


def format_metrics(step: int, total: int, values: dict[str, Any], seconds_left: float | None) -> str:
    """Formats training metrics as one console line.

    Args:
        step: Number of finished steps.
        total: Steps of the run.
        values: Metrics of the step and ``Throughput.read()``.
        seconds_left: Estimated remaining time, or None.
    """
    parts = [f"step {step}/{total}", f"loss {values['loss']:.5g}"]
    parts += [f"{name.removeprefix('loss/')} {value:.4g}" for name, value in values.items() if name.startswith("loss/")]
    parts += [f"lr {values['learning_rate']:.3g}", f"gradient {values['grad_norm']:.3g}",
              f"{values['examples_per_second']:.3g} examples/s", f"waiting {values['input_wait']:.0%}"]
    if values.get("device_memory"):
        parts.append(f"{values['device_memory'] / 2**30:.1f} GiB")
    if seconds_left is not None:
        hours, rest = divmod(round(seconds_left), 3600)
        parts.append(f"{hours}:{rest // 60:02d}:{rest % 60:02d} left")
    return "  ".join(parts)


def _is_kept(line: bytes, resumed_at: int) -> bool:
    """Whether a line is complete and of a step that is not repeated."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= resumed_at
    except (ValueError, KeyError, TypeError):
        return False


def _nan_to_null(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _nan_to_null(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            yield prefix + key, value


def _tensorboard(folder: Path, resumed_at: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # TensorBoard hides what an earlier start wrote about the steps that are repeated.
    return SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)
