"""Standard input connected to a pipe or a file."""

import contextlib
import os
import threading


class Pipe:
    """Stand-in for ``sys.stdin`` connected to a pipe."""

    closed = False

    def __init__(self, buffer):
        self.buffer = buffer

    def isatty(self):
        return False


@contextlib.contextmanager
def piped(data):
    """Yields a pipe into which a thread writes ``data``."""
    read, write = os.pipe()

    def feed():
        with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(read, "rb") as file:
        yield Pipe(file)
    thread.join()


@contextlib.contextmanager
def redirected(path):
    """Yields standard input that is redirected from a file."""
    with open(path, "rb") as file:
        yield Pipe(file)
