"""Scoring a dataset sequence by sequence, on several processes, and telling all that is wrong at once."""

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from uvos_jax.errors import UserError, nearest_hint

# Read by the libraries behind NumPy when they are loaded.
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def no_progress(total: int) -> AbstractContextManager[Callable[[], None]]:
    """Shows nothing."""
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Request:
    """What is to be scored.

    Attributes:
        predictions: The folder (or file) of results.
        dataset: The folder (or file) of the dataset.
        split: Its split.
        only: The sequences to score, all if empty.
        workers: Processes; 1 scores within this one.
        progress: Given the number of sequences, returns a context manager whose value is called after each.
        temporal: Whether T, which takes long, is wanted; NaN stands in its place if not.
    """

    predictions: Path
    dataset: Path
    split: str
    only: tuple[str, ...] = ()
    workers: int = 1
    progress: Callable[[int], AbstractContextManager[Callable[[], None]]] = no_progress
    temporal: bool = True

    def chosen(self, sequences: list) -> list:
        """Returns the sequences (anything with a name) that are to be scored, and checks that there are any.

        Raises:
            UserError: A chosen sequence is not in the dataset.
        """
        names = [sequence.name for sequence in sequences]
        unknown = [name for name in self.only if name not in names]
        if unknown:
            raise UserError(f"The {self.split} split has no sequence '{unknown[0]}'.{nearest_hint(unknown[0], names)}")
        return [sequence for sequence in sequences if not self.only or sequence.name in self.only]

    def each(self, function: Callable[[Any], tuple[Any, list[tuple[str, str]]]], jobs: Sequence[Any]) -> list[Any]:
        """Scores each job, on ``workers`` processes where there are several; only one sequence a process is in memory.

        Args:
            function: Of the top level of a module. It takes a job and returns its scores and what is wrong, see
                ``predictions.Complaints.found``.
            jobs: What it takes; small, since it travels to another process.

        Returns:
            The scores, in order.

        Raises:
            UserError: There were complaints; all are in the text.
        """
        workers = min(self.workers, len(jobs))
        with self.progress(len(jobs)) as advance:
            if workers <= 1:
                outcomes = [_then(advance, function(job)) for job in jobs]
            else:
                # Forking a process that has threads (a progress bar is one) can deadlock, so workers start afresh.
                context = multiprocessing.get_context("spawn")
                with _one_thread_each(), ProcessPoolExecutor(workers, context, _single_threaded) as pool:
                    outcomes = [_then(advance, outcome) for outcome in pool.map(function, jobs)]
        frames_by_complaint = defaultdict(list)
        for frames, complaint in chain.from_iterable(complaints for _, complaints in outcomes):
            frames_by_complaint[complaint].append(frames)
        if frames_by_complaint:
            texts = [f"{', '.join(frames)} {complaint}" for complaint, frames in frames_by_complaint.items()]
            raise UserError(f"'{self.predictions}' cannot be used: {'; '.join(texts)}.")
        return [scores for scores, _ in outcomes]


def default_workers() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _then(advance, outcome):
    advance()
    return outcome


@contextmanager
def _one_thread_each():
    """The processes are the parallelizm: those started meanwhile get matrix products of one thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _single_threaded():
    import cv2

    cv2.setNumThreads(1)
