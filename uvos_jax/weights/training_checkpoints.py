"""Checkpoints of a training run: the last few states and the best one. A run can resume from each.

A state is a global tree of NumPy arrays, independent of the launcher and the number of devices. Layout::

    00000500/run.json   step, SHA-256 of the state, validation score if there is one, hash of the configuration
    00000500/state/     the Orbax tree, flat: {"path of a leaf": array}

A checkpoint is written in the background under a temporary name and renamed when it is complete, so a killed process
leaves no partial checkpoint. Only the first process writes; all processes read.
"""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvos_jax.atomic_io import atomic_path
from uvos_jax.errors import UserError
from uvos_jax.weights.checkpoints import checkpointer, digest

_FORMAT = 1


class RunCheckpoints:
    """Checkpoints of one run in a folder.

    Attributes:
        folder: Folder of the checkpoints.
        keep: Number of latest checkpoints to keep, besides the one with the best score.
    """

    def __init__(self, folder: str | Path, keep: int, config_hash: str = ""):
        """Uses a folder, which need not exist.

        Args:
            folder: Folder of this run only.
            keep: Number of latest checkpoints to keep, at least 1.
            config_hash: Hash of the configuration, stored in each checkpoint.
        """
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._config_hash = config_hash
        self._thread = ThreadPoolExecutor(1, "uvos-checkpoint")
        self._saving: Future | None = None

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints in ascending order, readable or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def best(self) -> tuple[int, float] | None:
        """Returns step and score of the best checkpoint, the earliest of equals; None if none has a score."""
        scored = [(meta["score"], -step) for step in self.steps()
                   if (meta := self._meta(step)) is not None and _is_score(meta.get("score"))]
        return (-max(scored)[1], max(scored)[0]) if scored else None

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Starts writing a checkpoint in the background, after the previous one is written.

        Args:
            step: Number of finished steps; an existing checkpoint of that step is replaced.
            state: Tree of NumPy arrays; it is copied.
            score: Validation score of this state.

        Raises:
            UserError: The previous checkpoint could not be written.
        """
        self.wait()
        if jax.process_index() == 0:
            self._saving = self._thread.submit(self._write, step, _flat(state), score)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
            UserError: It could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            try:
                saving.result()
            except Exception as error:  # a full disk: OSError or one of Orbax's types
                why = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
                raise UserError(f"A checkpoint in '{self.folder}' cannot be written: {why}.") from error

    def restore(self, like: Callable[[int], Any], say: Callable[[str], None] = print) -> tuple[int, Any] | None:
        """Reads the latest checkpoint that is complete and undamaged.

        Args:
            like: Function from a step to the expected tree of arrays or ``ShapeDtypeStruct``.
            say: Called with a message for every checkpoint that is skipped.

        Returns:
            Step and state; None if there is no checkpoint.

        Raises:
            UserError: There are checkpoints, but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            state, reason = self._read(step, like)
            if reason is None:
                return step, state
            say(f"The checkpoint of step {step} in '{self.folder}' is skipped: {reason}.")
        if steps:
            raise UserError(f"No checkpoint in '{self.folder}' can be read. Choose another --workdir to start over.")
        return None

    def clean(self, last: int) -> None:
        """Renames skipped checkpoints after step ``last`` to ``.<step>.damaged`` and removes unfinished ones."""
        if jax.process_index() != 0 or not self.folder.is_dir():
            return
        for path in self.folder.glob(".*.partial-*"):
            shutil.rmtree(path, ignore_errors=True)
        for step in self.steps():
            if step > last:  # otherwise it would count as one of the latest and displace a readable one
                damaged_path = self.folder / f".{step:08d}.damaged"
                shutil.rmtree(damaged_path, ignore_errors=True)
                self._path(step).rename(damaged_path)

    def close(self) -> None:
        """Waits for the last checkpoint and stops the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, step, flat, score):
        with atomic_path(self._path(step), unique=True) as partial:
            partial.mkdir(parents=True)
            with checkpointer() as writer:
                writer.save(partial / "state", flat)
            meta = {"format": _FORMAT, "step": step, "score": score, "config": self._config_hash,
                    "sha256": digest(flat)}
            (partial / "run.json").write_text(json.dumps(meta, indent=2) + "\n")
            shutil.rmtree(self._path(step), ignore_errors=True)
        best = self.best()
        for old in self.steps()[: -self.keep]:
            if best is None or old != best[0]:
                shutil.rmtree(self._path(old), ignore_errors=True)

    def _read(self, step, like):
        """Returns ``(state, None)``, or ``(None, reason)`` for a checkpoint that is skipped."""
        meta = self._meta(step)
        if meta is None:
            return None, "its run.json is missing or damaged"
        if meta["format"] != _FORMAT:
            return None, f"it has format {meta['format']!r:.40}, but this version reads {_FORMAT}"
        if meta.get("config") != self._config_hash:
            return None, "it belongs to another configuration"
        tree = like(step)
        target = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in _named(tree).items()}
        try:
            with checkpointer() as reader:
                flat = reader.restore(self._path(step) / "state", target)
        except Exception:  # Orbax raises exceptions of many types
            return None, "its arrays are missing, damaged or do not fit the network"
        # Orbax silently restores stored shapes that differ from the target's, and does not detect flipped bits.
        if jax.tree.map(np.shape, flat) != jax.tree.map(np.shape, target) or digest(flat) != meta["sha256"]:
            return None, "its arrays do not match their checksum"
        return jax.tree.unflatten(jax.tree.structure(tree), [flat[name] for name in _named(tree)]), None

    def _meta(self, step):
        try:
            meta = json.loads((self._path(step) / "run.json").read_text())
            return meta if isinstance(meta, dict) and {"format", "step", "sha256"} <= meta.keys() else None
        except (OSError, ValueError, RecursionError):
            return None

    def _path(self, step):
        return self.folder / f"{step:08d}"


def _is_score(value):
    return isinstance(value, int | float) and abs(value) < 1e300  # excludes None, NaN and infinity


def _named(tree):
    """Returns the leaves by path, in the order of the tree."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _flat(tree):
    return {name: np.array(leaf) for name, leaf in _named(tree).items()}  # copies: the caller may reuse its buffers


def publish(link: Path, step: int, write: Callable[[Path], None]) -> None:
    """Points a symbolic link to new weights atomically and removes the previous weights.

    Args:
        link: Path of the link; the weights are written to ``weights/<name>-<step>`` beside it.
        step: Step of the weights; an existing folder of that step is reused.
        write: Function that writes the given folder atomically.
    """
    folder = link.parent / "weights"
    target = folder / f"{link.name}-{step:08d}"
    for leftover in [*folder.glob(f".{link.name}-*.partial-*"), *link.parent.glob(f".{link.name}.partial-*")]:
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    if not target.exists():
        write(target)
    with atomic_path(link, unique=True) as partial:
        partial.symlink_to(target.relative_to(link.parent))
    for old in folder.glob(f"{link.name}-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def withdraw(link: Path) -> None:
    """Removes a link made by :func:`publish` and its weights."""
    if link.is_symlink():
        link.unlink()
    for old in (link.parent / "weights").glob(f"{link.name}-*"):
        shutil.rmtree(old, ignore_errors=True)
