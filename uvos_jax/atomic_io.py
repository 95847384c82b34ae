"""What readers and writers share: error texts, writing a file in one step, and having a folder for oneself."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from uvos_jax.errors import UserError


def quoted(path: str | os.PathLike) -> str:
    """Returns ``path`` in quotes, with any odd character escaped so that a message stays on one line."""
    return repr(os.fspath(path))


def reason(error: BaseException) -> str:
    """Returns the operating system's or decoder's own words for ``error``, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def cannot_write(path: str | os.PathLike, error: BaseException) -> UserError:
    """Returns the error to raise when the operating system refused to write ``path``."""
    return UserError(f"cannot write {quoted(path)}: {reason(error)}.")


def check_folder(path: str | os.PathLike) -> Path:
    """Returns the path of a folder that can be made and written, or says at once why it cannot; makes nothing.

    Args:
        path: The folder, which need not exist.

    Raises:
        UserError: It, or the nearest folder above it, cannot be written, or is a file.
    """
    folder = Path(path)
    # The words of the user as far as they reach.
    parent = next(above for above in (folder, *folder.parents[:-1], *folder.absolute().parents) if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        kind = "is a file"
        if parent.is_dir():
            read_only = hasattr(os, "statvfs") and os.statvfs(parent).f_flag & os.ST_RDONLY
            kind = f"cannot be written to ({'the file system is read-only' if read_only else 'permission denied'})"
        raise UserError(f"The output '{folder}' is of no use: '{parent}' {kind}; name another folder.")
    return folder


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder and those above it; an existing one is fine.

    Raises:
        UserError: The operating system refused.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def alone(lock: str | os.PathLike, complaint: str) -> Iterator[None]:
    """Holds a lock file, so that no other process on any machine that honours it does the same work meanwhile.

    The system drops the lock with the process, however that ends, so a file that is left over hinders nobody. Where
    there are no locks (Windows, a mounted bucket), there is no protection.

    Args:
        lock: The file, in an existing folder; it is made, and removed in the end.
        complaint: Text of the error where another process holds it.

    Raises:
        UserError: Another process holds it, or it cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    for _ in range(10):
        try:
            file = open(lock, "w")  # noqa: SIM115 - held open, and with it the lock, to the end
        except OSError as error:
            raise cannot_write(lock, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held it may have removed it after it was opened here: then it locks nothing.
            if os.path.samestat(os.stat(lock), os.fstat(file.fileno())):
                break
        except BlockingIOError:
            file.close()
            raise UserError(complaint) from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            break
        file.close()
    else:
        raise UserError(complaint)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock)
        file.close()


def partial_of(path: str | os.PathLike) -> Path:
    """Returns the hidden name beside ``path`` that its content is written under until it is whole."""
    path = Path(path)
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds either its old content or all of the new one.

    Args:
        path: The file to write; an existing one is replaced.
        data: Its whole content.

    Raises:
        UserError: The operating system refused (no such folder, no permission, disk full).
    """
    partial = partial_of(path)
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


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
