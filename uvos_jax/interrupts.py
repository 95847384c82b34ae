"""Ctrl-C and SIGTERM: handlers for the two phases of a long job, and the exception that ends it."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A job stopped because of a signal; the message says what is kept and how to continue.

    Attributes:
        number: Number of the signal.
        code: Exit code of the command, 128 plus that number.
    """

    def __init__(self, number: int, message: str = ""):
        """Describes the interruption; the command line prints the message and exits with ``code``."""
        super().__init__(message)
        self.number = int(number)
        self.code = 128 + self.number

    @property
    def signal_name(self) -> str:
        """Name of the signal, such as ``SIGTERM``."""
        return signal.Signals(self.number).name


@contextlib.contextmanager
def exit_immediately() -> Iterator[None]:
    """Lets Ctrl-C end the process silently, for phases that import modules and write nothing.

    ``KeyboardInterrupt`` raised in the middle of an import would show a traceback, or surface as another error.
    """
    if not _can_handle(signal.SIGINT):
        yield
        return
    previous = signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def graceful_stop(when: str = "after this frame") -> Iterator[Callable[[], int | None]]:
    """Turns the first Ctrl-C or SIGTERM into a request that a long job polls; the second ends the process.

    Args:
        when: When the job stops, for the message on a terminal.

    Yields:
        A function that returns the number of the signal once one has arrived, else None.
    """
    numbers = [number for number in _SIGNALS if _can_handle(number)]
    received: list[int] = []
    if not numbers:
        yield lambda: None
        return
    # Python runs its handlers in the main thread, which XLA's compiler may hold for minutes. The byte that the
    # interpreter writes to this socket when a signal arrives can be read by another thread meanwhile.
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while byte := reader.recv(1):
            if byte[0] not in numbers:
                continue
            if received:
                os._exit(128 + byte[0])
            received.append(byte[0])
            if sys.stderr.isatty():
                os.write(2, f"\nStopping {when}. Press Ctrl-C again to stop at once.\n".encode())

    listener = threading.Thread(target=listen, name="uvos-signals", daemon=True)
    previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield lambda: received[0] if received else None
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writer.close()
        listener.join()
        reader.close()


def _can_handle(number: int) -> bool:
    """Whether this thread may set a handler, and the signal is not ignored (as under ``nohup`` or ``&``)."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) not in (signal.SIG_IGN, None)
