"""Ctrl-C and SIGTERM."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def leave_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the program without a word, while modules load and nothing is written.

    As an exception it would come out of the middle of any module, as a traceback or as another error.
    """
    if not _may_handle(signal.SIGINT):
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], int | None]]:
    """Makes Ctrl-C and SIGTERM a wish that a long job looks at when it can; the second one ends the program at once.

    Yields:
      A function that returns the signal's number once one has come, else None.
    """
    numbers = [number for number in _NUMBERS if _may_handle(number)]
    asked: list[int] = []
    if not numbers:
        yield lambda: None
        return
    # Python's own handlers wait until the main thread is back from XLA's compiler, which may take minutes. What
    # Python writes to this socket when the signal comes can be read by another thread meanwhile.
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen():
        while received := reader.recv(1):
            if received[0] not in numbers:
                continue
            if asked:
                os._exit(128 + received[0])
            asked.append(received[0])
            if sys.stderr.isatty():
                os.write(2, b"\nStops after this frame; once more stops at once.\n")

    listener = threading.Thread(target=listen, name="uvos-signals", daemon=True)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield lambda: asked[0] if asked else None
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        listener.join()
        reader.close()


def _may_handle(number: int) -> bool:
    """Whether this thread may set handlers, and nobody has asked for the signal to be ignored (as nohup and & do)."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) not in (signal.SIG_IGN, None)
