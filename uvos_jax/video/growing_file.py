"""Text files that grow with the video."""

import contextlib
import os
from pathlib import Path

from uvos_jax.video.files import cannot_write, partial_of


class GrowingFile:
    """A text file that is written piece by piece under a hidden name, and appears when it is finished."""

    def __init__(self, path: str | os.PathLike, between: str = "", tail: str = ""):
        """Prepares it; the hidden file is made with the first piece.

        Args:
            path: The file to write, in an existing folder; an existing file is replaced.
            between: What stands between two pieces.
            tail: What follows the last piece.
        """
        self.path = Path(path)
        self._partial = partial_of(path)
        self._between, self._tail = between, tail
        self._file = None

    def write(self, piece: str, head: str = "") -> None:
        """Appends a piece; ``head`` goes before the first one and is otherwise of no use.

        Raises:
            UserError: The operating system refused.
        """
        try:
            if self._file is None:
                self._file = open(self._partial, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 - see finish()
                self._file.write(head + piece)
            else:
                self._file.write(self._between + piece)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def finish(self) -> bool:
        """Gives the file its name if there is any piece; tells whether that is so.

        Raises:
            UserError: The operating system refused; nothing is left behind.
        """
        if self._file is None:
            return False
        try:
            self._file.write(self._tail)
            self._file.close()
            os.replace(self._partial, self.path)
        except OSError as error:
            self.discard()
            raise cannot_write(self.path, error) from error
        return True

    def discard(self) -> None:
        """Drops what has been written."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is still in its buffer may not fit on the disk
                self._file.close()
            with contextlib.suppress(OSError):
                self._partial.unlink()
