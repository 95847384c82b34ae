"""What a run leaves for its reader: lines on the screen, ``log.jsonl``, and TensorBoard files where it is installed."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.atomic_io import atomic_write
from uvos_jax.errors import write_error


class RunLog:
    """Writes the log of a run; lines of steps that are done again are dropped first.

    Attributes:
      path: of ``log.jsonl``: one JSON object a line, each with ``"step"``.
    """

    def __init__(self, workdir: Path, resumed_at: int):
        """Opens the log.

        Args:
          workdir: exists.
          resumed_at: the last step that stays; 0 begins anew.
        """
        self.path = Path(workdir) / "log.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_bytes().splitlines(keepends=True) if _stays(line, resumed_at)]
            atomic_write(self.path, b"".join(kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = _tensorboard(Path(workdir) / "tensorboard", resumed_at)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line, on disk when this returns; numbers go to TensorBoard too.

        Args:
          step: the number of finished steps.
          values: numbers, None or JSON values; nested dicts become ``a/b`` in TensorBoard.
        """
        try:
            self._file.write(json.dumps({"step": step} | _finite(values)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # no checkpoint may outlive the lines before it
        except OSError as error:
            raise write_error(self.path, error) from error
        if self._board is not None:
            for name, value in _scalars(values):
                self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows a picture, uint8 ``[h, w, 3]``, in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Ends both."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def line(step: int, total: int, values: dict[str, Any], seconds_left: float | None) -> str:
    """One readable line of training metrics."""
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


def _stays(line, resumed_at):
    """Whether a line is whole and of a step that is not done again."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= resumed_at
    except (ValueError, KeyError, TypeError):
        return False


def _finite(value):
    """NaN has no place in JSON; it becomes null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            yield prefix + key, value


def _tensorboard(folder, resumed_at):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # What an earlier start wrote about later steps is hidden.
    return SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)
