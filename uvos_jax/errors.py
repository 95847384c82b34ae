"""The error for wrong input, and the text helpers that its messages share.

The command line prints a ``UserError`` as one line and exits with code 2. Library users can catch it as a
``ValueError``. Any other exception that escapes is a bug in this package.
"""

import difflib
import os
from collections.abc import Iterable


class UserError(ValueError):
    """The input cannot be used; the message says what is wrong and what to do."""


def nearest_hint(wrong: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the known name closest to ``wrong``, or an empty string."""
    match = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def pluralize(count: int, noun: str) -> str:
    """Returns ``"1 frame"``, ``"2 frames"``: a count with a noun whose plural ends in ``s``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def quoted(path: str | os.PathLike) -> str:
    """Returns ``path`` in quotes, with unprintable characters escaped so that a message stays on one line."""
    return repr(os.fspath(path))


def error_reason(error: BaseException) -> str:
    """Returns the text of an error on one line, without errno, file name and final period."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split()).removesuffix(".")


def write_error(path: str | os.PathLike, error: BaseException) -> UserError:
    """Returns the ``UserError`` to raise when ``path`` cannot be written because of ``error``."""
    return UserError(f"Cannot write {quoted(path)}: {error_reason(error)}.")
