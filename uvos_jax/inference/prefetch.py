"""Items in chunks, and a thread that reads ahead."""

import queue
import sys
import threading

import numpy as np


def iter_chunks(items, size):
    """Lists of ``size`` items; a failure comes after the items before it."""
    batch, failure = [], None
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception as error:
        failure = error
    if batch:
        yield batch
    if failure is not None:
        raise failure


def stack_chunk(batch, chunk):
    """Images, flows (or None) and which are valid, of ``(frame, flow)`` filled up to a full chunk."""
    filled = batch + batch[-1:] * (chunk - len(batch))
    valid = np.zeros(chunk, bool)
    valid[:len(batch)] = [frame.broken is None for frame, _ in batch]
    flows = None if batch[0][1] is None else np.stack([flow for _, flow in filled])
    return np.stack([frame.image for frame, _ in filled]), flows, valid


def prefetch(items, at_most):
    """Iterates in a thread that is at most ``at_most`` items ahead; its exceptions come out here."""
    ahead: queue.Queue = queue.Queue(at_most)
    stopped = threading.Event()
    end = object()

    def put(item):
        while not stopped.is_set():
            try:
                ahead.put(item, timeout=0.1)
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
        except BaseException as error:  # handed to the consumer, whatever it is
            put((end, error))

    thread = threading.Thread(target=read, name="uvos-reader", daemon=True)
    thread.start()
    is_finalizing = sys.is_finalizing
    try:
        while True:
            item, error = ahead.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        if not is_finalizing():
            stopped.set()
            thread.join()
