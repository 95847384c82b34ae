"""What a converted folder of clips was converted from, stored beside it, so that a later call notices other clips."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from uvos_jax.atomic_io import atomic_write
from uvos_jax.errors import UserError, quoted

FILE = "source.json"
_PARTS = ("JPEGImages", "Annotations", "ImageSets")  # what the conversion of a folder reads; flow is computed


class SourceIdentity(NamedTuple):
    """Identifies a folder of clips and the state of its files.

    Attributes:
        folder: Absolute path without symbolic links.
        digest: SHA-256 over name, size and time of modification of every file, or None if the folder cannot be read.
    """

    folder: str
    digest: str | None


def identify(folder: str | os.PathLike) -> SourceIdentity:
    """Identifies a folder of clips without reading its files; the folder need not exist."""
    root = Path(folder).resolve()
    try:
        files = sorted(entry for part in _PARTS for entry in _list_files(root / part))
    except OSError:
        files = []
    text = "\n".join(f"{os.path.relpath(path, root)!r} {size} {time}" for path, size, time in files)
    return SourceIdentity(str(root), hashlib.sha256(text.encode()).hexdigest() if files else None)


def write_identity(data_dir: Path, identity: SourceIdentity) -> None:
    """Stores what the folder of converted clips ``data_dir`` was converted from.

    Raises:
        UserError: The file cannot be written.
    """
    atomic_write(data_dir / FILE, (json.dumps(identity._asdict(), indent=2) + "\n").encode())


def check_same_source(data_dir: Path, given: SourceIdentity) -> None:
    """Checks that converted clips are those of a folder.

    Clips without a stored identity, which an earlier version converted, are accepted. So is a folder that cannot be
    read any more: the converted clips are complete without it.

    Args:
        data_dir: Folder of the converted clips.
        given: Identity of the folder of clips.

    Raises:
        UserError: The clips were converted from another folder, or from other files of it.
    """
    path = data_dir / FILE
    if not path.exists():
        return
    try:
        stored = SourceIdentity(**json.loads(path.read_text()))
    except (OSError, TypeError, ValueError, RecursionError):
        raise UserError(f"{quoted(path)} is damaged. Choose another --workdir, or delete {quoted(data_dir)} to convert"
                        " the clips again.") from None
    if stored.folder != given.folder:
        raise UserError(f"The clips in {quoted(data_dir)} were converted from {quoted(stored.folder)}, not from"
                        f" {quoted(given.folder)}. Choose another --workdir, or delete {quoted(data_dir)}.")
    if None not in (stored.digest, given.digest) and stored.digest != given.digest:
        raise UserError(f"The files in {quoted(given.folder)} have changed since they were converted into"
                        f" {quoted(data_dir)}. Choose another --workdir, or delete {quoted(data_dir)}.")


def _list_files(folder: Path) -> list[tuple[str, int, int]]:
    """Returns path, size and time of modification of the files of a folder and its subfolders, hidden ones excluded."""
    found, visited = [], set()
    if not folder.is_dir():
        return found
    for parent, subfolders, names in os.walk(folder, onerror=_raise, followlinks=True):
        visited.add(os.path.realpath(parent))
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__MACOSX"))
                         and os.path.realpath(os.path.join(parent, name)) not in visited]  # links may form a cycle
        for name in names:
            if not name.startswith("."):
                path = os.path.join(parent, name)
                status = os.stat(path)
                found.append((path, status.st_size, status.st_mtime_ns))
    return found


def _raise(error: OSError) -> None:
    raise error
