"""What a command says: results on standard output, notes and errors on standard error, all of it in a log file."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from uvos_jax.errors import UserError
from uvos_jax.interrupts import Interrupted
from uvos_jax.progress import progress


class Messages:
    """Says sentences.

    Attributes:
        quiet: Whether only errors are shown, and no progress; the log file gets everything.
    """

    def __init__(self, quiet: bool, log: logging.Logger):
        self.quiet = quiet
        self._log = log

    def result(self, sentence: str) -> None:
        """What came out."""
        self._log.info(sentence)
        if not self.quiet:
            print(sentence, flush=True)

    def note(self, sentence: str) -> None:
        """What is good to know."""
        self._log.info(sentence)
        if not self.quiet:
            print(sentence, file=sys.stderr, flush=True)

    def error(self, sentence: str) -> None:
        """What went wrong with a part of the work."""
        sentence = " ".join(sentence.split())
        self._log.error(sentence)
        print(f"Error: {sentence}", file=sys.stderr, flush=True)

    def last_word(self, sentence: str) -> None:
        """Why the work ends early."""
        self._log.warning(sentence)
        print(sentence, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, first: str = "") -> Iterator[Callable[[], None]]:
        """As ``uvos_jax.progress.progress``, in frames; shows nothing when quiet."""
        self._log.info(f"{what}: begun")
        if self.quiet:
            yield lambda: None
            return
        with progress(what, total, first=first) as advance:
            yield advance


@contextlib.contextmanager
def messages(quiet: bool, log_file: Path | None) -> Iterator[Messages]:
    """Opens the log file, if there is one, for a command; what ends the command is written into it, too.

    Args:
        quiet: See ``Messages``.
        log_file: Lines with the time are appended to it.

    Raises:
        UserError: The file cannot be written.
    """
    log = logging.Logger("uvos")
    handler: logging.Handler = logging.NullHandler()
    if log_file is not None:
        try:
            handler = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            from uvos_jax.errors import write_error

            raise write_error(log_file, error) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield Messages(quiet, log)
    except Interrupted as interrupted:
        log.warning(str(interrupted))
        raise
    except UserError as error:
        log.error(" ".join(str(error).split()))
        raise
    except Exception:
        log.exception("The command has failed:")
        raise
    finally:
        handler.close()
