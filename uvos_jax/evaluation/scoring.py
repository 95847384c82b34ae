"""Score the sequences of a dataset in one or several processes and report all their problems in one error."""

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

# The BLAS libraries behind NumPy read these when they are loaded.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def no_progress(total: int) -> AbstractContextManager[Callable[[], None]]:
    """Progress factory that displays nothing."""
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class EvaluationRequest:
    """Inputs and options of one evaluation.

    Attributes:
        predictions: Folder (or file) of the predictions.
        dataset: Folder (or file) of the dataset.
        split: Split of the dataset.
        sequences: Names of the sequences to score; all if empty.
        workers: Number of processes; 1 scores in the calling process.
        progress: Takes the number of sequences and returns a context manager; its value is called after each sequence.
        temporal: Whether to compute T, which is slow; NaN replaces it otherwise.
    """

    predictions: Path
    dataset: Path
    split: str
    sequences: tuple[str, ...] = ()
    workers: int = 1
    progress: Callable[[int], AbstractContextManager[Callable[[], None]]] = no_progress
    temporal: bool = True

    def select(self, sequences: list) -> list:
        """Returns those of ``sequences`` (objects with a ``name``) that the request asks for.

        Raises:
            UserError: A requested sequence is not in the dataset.
        """
        names = [sequence.name for sequence in sequences]
        unknown = [name for name in self.sequences if name not in names]
        if unknown:
            raise UserError(f"The {self.split} split has no sequence '{unknown[0]}'.{nearest_hint(unknown[0], names)}")
        return [sequence for sequence in sequences if not self.sequences or sequence.name in self.sequences]

    def run(self, function: Callable[[Any], tuple[Any, list[tuple[str, str]]]], jobs: Sequence[Any]) -> list[Any]:
        """Calls ``function`` on each job, in ``workers`` processes if that is more than one.

        Each process holds one sequence in memory at a time.

        Args:
            function: Module-level function that takes a job and returns its scores and its problems, see
                ``predictions.FrameProblems.report``.
            jobs: Arguments of ``function``. They are pickled, so keep them small.

        Returns:
            The scores, in the order of ``jobs``.

        Raises:
            UserError: A job reported problems; the message lists the problems of all jobs.
        """
        workers = min(self.workers, len(jobs))
        with self.progress(len(jobs)) as advance:
            if workers <= 1:
                outcomes = [_advanced(advance, function(job)) for job in jobs]
            else:
                # Forking a process with threads (a progress bar is one) can deadlock, so workers are spawned.
                context = multiprocessing.get_context("spawn")
                with _one_thread_per_worker(), ProcessPoolExecutor(workers, context, _disable_opencv_threads) as pool:
                    outcomes = [_advanced(advance, outcome) for outcome in pool.map(function, jobs)]
        frames_by_problem = defaultdict(list)
        for frames, problem in chain.from_iterable(problems for _, problems in outcomes):
            frames_by_problem[problem].append(frames)
        if frames_by_problem:
            texts = [f"{', '.join(frames)} {problem}" for problem, frames in frames_by_problem.items()]
            raise UserError(f"'{self.predictions}' cannot be used: {'; '.join(texts)}.")
        return [scores for scores, _ in outcomes]


def default_workers() -> int:
    """Returns the number of processor cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _advanced(advance, outcome):
    advance()
    return outcome


@contextmanager
def _one_thread_per_worker():
    """Limits the BLAS of processes started in the context to one thread, because the processes fill the cores."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _disable_opencv_threads():
    import cv2

    cv2.setNumThreads(1)
