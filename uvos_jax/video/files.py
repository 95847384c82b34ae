"""What the readers and writers of this folder share: error texts and writing a file in one step."""

import contextlib
import os
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
    parent = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        kind = "cannot be written to" if parent.is_dir() else "is a file"
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


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds either its old content or all of the new one.

    Args:
        path: The file to write; an existing one is replaced.
        data: Its whole content.

    Raises:
        UserError: The operating system refused (no such folder, no permission, disk full).
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
