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
    """Returns ``" Did you mean 'x'?"`` for the known name of which ``wrong`` is a typo or prefix, or an empty string.

    One or two edits count as a typo, in long names up to a fifth of their letters, in names shorter than six one.
    """
    known = list(known)
    similar = difflib.get_close_matches(wrong, known, n=5, cutoff=0.6)  # bounds the cost in large folders
    distances = {name: _edit_distance(wrong, name) for name in similar}
    matches = [name for name, edits in distances.items() if edits <= _most_edits(max(len(wrong), len(name)))]
    matches = sorted(matches, key=distances.__getitem__) or [name for name in known if _is_abbreviation(wrong, name)]
    return f" Did you mean '{matches[0]}'?" if matches else ""


def _most_edits(length: int) -> int:
    return max(min(2, length // 3), length // 5)


def _is_abbreviation(wrong: str, name: str) -> bool:
    shorter, longer = sorted((wrong, name), key=len)
    return len(shorter) >= 3 and longer.startswith(shorter)


def _edit_distance(first: str, second: str) -> int:
    """Returns the number of inserted, removed, replaced or swapped letters that turn one string into the other."""
    before, row = [], list(range(len(second) + 1))
    for i, letter in enumerate(first):
        before, above, row = row, before, [i + 1]
        for j, other in enumerate(second):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (letter != other)))
            if i and j and letter == second[j - 1] and first[i - 1] == other:
                row[-1] = min(row[-1], above[j - 1] + 1)
    return row[-1]


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
