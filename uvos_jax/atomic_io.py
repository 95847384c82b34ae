"""Writing files and folders in one step, locking a folder, and creating output folders.

Content is written under a temporary name beside its final one and renamed once it is complete. A reader, and a run
that was killed, therefore see the old content or the new content, never a part of it. Nothing is synced to disk:
this protects against a killed process, not against a power failure.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from uvos_jax.errors import UserError, write_error

# A process that has just released a lock may have removed the file that this one opened; acquiring again then works.
_LOCK_TIMEOUT = 0.2  # seconds
# Errors of flock on file systems without locks, such as a mounted bucket.
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS}


class PartialFile:
    """The temporary name of a file or folder until its content is complete.

    Attributes:
        path: The final name.
        partial: The temporary name: ``.<name>.partial`` in the same folder, or ``.<name>.partial-<hex>`` if unique.
    """

    def __init__(self, path: str | os.PathLike, unique: bool = False):
        """Chooses the temporary name; creates nothing.

        Args:
            path: The final name, in an existing folder.
            unique: Use a new temporary name each time. Needed where several processes may write the same path.
                Otherwise a partial file that a killed process left behind is overwritten by the next attempt.
        """
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.partial{f'-{uuid.uuid4().hex[:12]}' if unique else ''}")

    def commit(self) -> None:
        """Renames the temporary file to its final name; an existing file or empty folder is replaced."""
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Removes the temporary file or folder if there is one."""
        if self.partial.is_dir() and not self.partial.is_symlink():
            shutil.rmtree(self.partial, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self.partial.unlink()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, unique: bool = False) -> Iterator[Path]:
    """Yields a temporary path to write a file or folder to, and renames it to ``path`` on a clean exit.

    After an exception the temporary path is removed and ``path`` is left as it was. Operating system errors are raised
    unchanged.

    Args:
        path: The final name, in an existing folder.
        unique: See ``PartialFile``.
    """
    file = PartialFile(path, unique)
    try:
        yield file.partial
        file.commit()
    except BaseException:
        file.discard()
        raise


def atomic_write(path: str | os.PathLike, data: bytes, unique: bool = False) -> None:
    """Writes ``data`` so that ``path`` holds either its old content or all of the new content.

    Args:
        path: The file to write; an existing file is replaced.
        data: The whole content.
        unique: See ``PartialFile``.

    Raises:
        UserError: The file cannot be written (no such folder, no permission, disk full).
    """
    try:
        with atomic_path(path, unique) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise write_error(path, error) from error


class StreamedTextFile:
    """A text file that is written piece by piece and appears under its name once it is finished."""

    def __init__(self, path: str | os.PathLike, separator: str = "", footer: str = ""):
        """Prepares the file; the first piece creates it.

        Args:
            path: The file to write, in an existing folder; an existing file is replaced.
            separator: Text between two pieces.
            footer: Text after the last piece.
        """
        self._target = PartialFile(path)
        self.path = self._target.path
        self._separator, self._footer = separator, footer
        self._file = None

    def write(self, piece: str, header: str = "") -> None:
        """Appends a piece.

        Args:
            piece: The text.
            header: Text before the first piece; ignored for later ones.

        Raises:
            UserError: The file cannot be written.
        """
        try:
            if self._file is None:
                self._file = open(self._target.partial, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 - see finish()
                self._file.write(header + piece)
            else:
                self._file.write(self._separator + piece)
        except OSError as error:
            raise write_error(self.path, error) from error

    def finish(self) -> bool:
        """Completes the file and gives it its name.

        Returns:
            False if nothing was written; then no file exists.

        Raises:
            UserError: The file cannot be written; the partial file is removed.
        """
        if self._file is None:
            return False
        try:
            self._file.write(self._footer)
            self._file.close()
            self._target.commit()
        except OSError as error:
            self.discard()
            raise write_error(self.path, error) from error
        return True

    def discard(self) -> None:
        """Removes what has been written."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk fails on the buffered rest
                self._file.close()
            self._target.discard()


def replace_folder(new: Path, folder: Path) -> None:
    """Renames the folder ``new`` to ``folder``; an existing ``folder`` is replaced.

    Folders cannot be swapped in one step: the old one is first renamed to ``replaced.<name>``. If the process is killed
    between the two renames, ``finish_replacement`` restores it.

    Raises:
        UserError: The folder cannot be written; the old one stays in place.
    """
    try:
        if folder.exists():
            folder.rename(_replaced_path(folder))
        new.rename(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        finish_replacement(folder)


def finish_replacement(folder: Path) -> None:
    """Completes an interrupted ``replace_folder``: removes the old folder if the new one exists, else restores it."""
    if folder.exists():
        shutil.rmtree(_replaced_path(folder), ignore_errors=True)
    elif _replaced_path(folder).exists():
        _replaced_path(folder).rename(folder)


def _replaced_path(folder: Path) -> Path:
    return folder.with_name(f"replaced.{folder.name}")


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike, message: str) -> Iterator[None]:
    """Holds a lock file, so that no other process works in the same folder.

    The operating system drops the lock when the process ends, however it ends: a lock file left behind by a killed
    process blocks nobody. On file systems without locks (some mounted buckets) there is no protection.

    Args:
        path: The lock file, in an existing folder; it is created, and removed on exit.
        message: Message of the error if another process holds the lock.

    Raises:
        UserError: Another process holds the lock, or the lock file cannot be written.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    if not path.parent.is_dir():  # FileLock would create it
        raise write_error(path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    lock = FileLock(path, timeout=_LOCK_TIMEOUT, thread_local=False)
    try:
        lock.acquire(poll_interval=_LOCK_TIMEOUT / 10)
    except Timeout:
        raise UserError(message) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise write_error(path, error) from error
    try:
        yield
    finally:
        # Removed while the lock is held: a process that has opened this file finds it unlinked and opens a new one.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def check_output_folder(path: str | os.PathLike) -> Path:
    """Checks that a folder can be created and written; creates nothing.

    Args:
        path: The folder, which need not exist.

    Returns:
        The folder as a ``Path``.

    Raises:
        UserError: The folder, or the nearest existing folder above it, is a file or not writable.
    """
    folder = Path(path)
    # The user's own spelling of the path as far as it reaches.
    parent = next(above for above in (folder, *folder.parents[:-1], *folder.absolute().parents) if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        problem = "is a file"
        if parent.is_dir():
            read_only = hasattr(os, "statvfs") and os.statvfs(parent).f_flag & os.ST_RDONLY
            problem = f"is not writable ({'the file system is read-only' if read_only else 'permission denied'})"
        raise UserError(f"The output '{folder}' cannot be used: '{parent}' {problem}. Choose another folder.")
    return folder


def make_folder(path: str | os.PathLike) -> None:
    """Creates a folder and its parents; an existing folder is fine.

    Raises:
        UserError: The folder cannot be created.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


@contextlib.contextmanager
def folder_unless_empty(path: str | os.PathLike) -> Iterator[None]:
    """Creates a folder and its parents; on exit, removes those created here that are still empty.

    Raises:
        UserError: The folder cannot be created.
    """
    folder = Path(path)
    created = [above for above in (folder, *folder.parents) if not above.exists()]
    make_folder(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: neither are its parents
            for above in created:
                above.rmdir()
