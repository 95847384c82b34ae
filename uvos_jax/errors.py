"""The one exception that stands for a mistake in what the user gave us.

The command line prints its text as one sentence and exits with code 2; library users can catch it as
a ``ValueError``. Anything else that escapes is a defect of the library.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used; the text says what is wrong and what to do about it."""


def nearest_hint(wrong: str, known: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` for the known name closest to ``wrong``, or an empty string."""
    match = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
