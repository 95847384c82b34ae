"""Chunking of a video's frames, and a background thread that decodes ahead."""

import queue
import sys
import threading
from collections.abc import Generator, Iterable

import numpy as np

from uvos_jax.video import Frame


def iter_chunks(items: Iterable, size: int) -> Generator[list]:
    """Yields lists of ``size`` items; the last one may be shorter.

    If ``items`` raises, the exception follows the items before it.
    """
    chunk, failure = [], None
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except Exception as error:
        failure = error
    if chunk:
        yield chunk
    if failure is not None:
        raise failure


def stack_chunk(pairs: list[tuple[Frame, np.ndarray | None]], size: int
                ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Stacks ``(frame, flow)`` pairs into arrays of a full chunk, padded with copies of the last pair.

    Returns:
        Images uint8 ``[size, h, w, 3]``; flow float32 ``[size, h', w', 2]`` or None; and bool ``[size]``, false for
        padding and broken frames.
    """
    padded = pairs + pairs[-1:] * (size - len(pairs))
    valid = np.zeros(size, bool)
    valid[:len(pairs)] = [frame.broken is None for frame, _ in pairs]
    flows = None if pairs[0][1] is None else np.stack([flow for _, flow in padded])
    return np.stack([frame.image for frame, _ in padded]), flows, valid


def prefetch(items: Iterable, depth: int) -> Generator:
    """Iterates in a background thread, at most ``depth`` items ahead; its exceptions are raised here."""
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()
    end = object()

    def put(item):
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read():
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((end, None))
        except BaseException as error:  # any exception is passed to the consumer
            put((end, error))

    thread = threading.Thread(target=read, name="uvos-reader", daemon=True)
    thread.start()
    is_finalizing = sys.is_finalizing  # the module may be gone when the generator is closed
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        if not is_finalizing():
            stopped.set()
            thread.join()
