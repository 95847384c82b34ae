"""Writing what a run produces: masks and an overlay video behind the back of the caller, and JSON."""

import json
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from uvos_jax.video.files import cannot_write, write_atomically
from uvos_jax.video.masks import write_mask
from uvos_jax.video.overlay import VideoWriter, draw_overlay

# Enough to even out a slow disk, and at 1080p no more than 130 MB.
_MOST_WAITING = 16
_MASK_THREADS = 2


class ResultWriter:
    """Writes ``masks/<name>.png`` and ``overlay.mp4`` in the background; used as a context manager.

    Leaving it waits for all files. After an exception the masks added so far are there, the overlay is not.
    Masks of earlier runs in the same folder are replaced where the names agree and otherwise left.
    """

    def __init__(self, output_dir: str | os.PathLike, fps: float, overlay: bool = True):
        """Prepares a writer; nothing is created before it is entered.

        Args:
            output_dir: The folder for the results; it is made with its parents where missing.
            fps: Frames per second of the overlay.
            overlay: Whether to write the overlay video.
        """
        self.masks_dir = Path(output_dir) / "masks"
        self._overlay = VideoWriter(Path(output_dir) / "overlay.mp4", fps) if overlay else None
        self._waiting: deque[list[Future]] = deque()

    def __enter__(self) -> "ResultWriter":
        """Makes the folders.

        Raises:
            UserError: The operating system refused.
        """
        try:
            self.masks_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.masks_dir, error) from error
        # On exit, in reverse order: wait for the work and learn of its errors, end the threads, and only
        # then finish the overlay, or drop it if there was an error.
        self._exit = ExitStack()
        if self._overlay:
            self._exit.enter_context(self._overlay)
        self._mask_pool = self._exit.enter_context(ThreadPoolExecutor(_MASK_THREADS))
        # A single thread keeps the frames in order.
        self._overlay_pool = self._exit.enter_context(ThreadPoolExecutor(1))
        self._exit.push(self._finish)
        return self

    def add(self, name: str, image: np.ndarray, labels: np.ndarray) -> None:
        """Queues a frame; waits while 16 frames are queued. Neither array may be altered afterwards.

        Args:
            name: Name of the frame, unique in the run, without extension.
            image: uint8 [h, w, 3], RGB.
            labels: Integer or bool [h, w], 0..255.

        Raises:
            UserError: This or an earlier frame could not be written.
            ValueError: An earlier frame had an array of another shape or dtype.
        """
        for job in [job for jobs in self._waiting for job in jobs if job.done()]:
            job.result()
        while len(self._waiting) >= _MOST_WAITING or (self._waiting and _all_done(self._waiting[0])):
            self._wait_for_oldest()
        jobs = [self._mask_pool.submit(write_mask, self.masks_dir / f"{name}.png", labels)]
        if self._overlay:
            jobs.append(self._overlay_pool.submit(self._add_overlay, image, labels))
        self._waiting.append(jobs)

    def __exit__(self, *error: object) -> None:
        """Waits for all files.

        Raises:
            UserError: A frame or the overlay could not be written.
        """
        self._exit.__exit__(*error)

    def _add_overlay(self, image: np.ndarray, labels: np.ndarray) -> None:
        self._overlay.write(draw_overlay(image, labels))

    def _wait_for_oldest(self) -> None:
        for job in self._waiting.popleft():
            job.result()

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        # If the body failed its error is the one to tell; the threads still end what was queued.
        while kind is None and self._waiting:
            self._wait_for_oldest()


def write_json(path: str | os.PathLike, obj: object) -> None:
    """Writes ``obj`` as indented JSON, in one step.

    Args:
        path: The file to write, in an existing folder; an existing file is replaced.
        obj: What ``json.dumps`` takes.

    Raises:
        TypeError: The object holds something JSON has no form for.
        UserError: The operating system refused to write the file.
    """
    write_atomically(path, (json.dumps(obj, indent=2) + "\n").encode())


def _all_done(jobs: list[Future]) -> bool:
    return all(job.done() for job in jobs)
