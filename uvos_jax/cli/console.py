"""Output of a command: results on standard output, messages and progress on standard error, all in the log file."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from uvos_jax import progress
from uvos_jax.errors import UserError, write_error
from uvos_jax.interrupts import Interrupted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_FILE_ONLY = "file_only"  # attribute of log records that standard error shows in another form, or not at all


@dataclasses.dataclass(frozen=True)
class Console:
    """Where a command writes.

    Attributes:
        log: Logger with a handler for standard error and, with ``--log-file``, one for the file.
        quiet: Whether standard output and standard error show errors only.
    """

    log: logging.Logger
    quiet: bool

    def result(self, text: str) -> None:
        """Prints a result of the command, one line or more, on standard output."""
        for line in text.strip("\n").splitlines():
            self.log.info(line, extra={_FILE_ONLY: True})
        if not self.quiet:
            print(text, flush=True)

    def note(self, message: str) -> None:
        """Shows a message on standard error."""
        self.log.info(message)

    def error(self, message: str) -> None:
        """Shows an error that does not end the command."""
        self.log.error(message)

    def progress(self, what: str, total: int | None = None, unit: str = "frames", initial: int = 0
                 ) -> "AbstractContextManager[progress.Advance]":
        """Same as ``uvos_jax.progress.progress``; with ``--quiet``, only the log file has it."""
        return progress.progress(what, total, unit, initial, visible=not self.quiet, log=self._log_progress)

    def _log_progress(self, line: str) -> None:
        self.log.info(line, extra={_FILE_ONLY: True})


@contextlib.contextmanager
def console(quiet: bool = False, log_file: Path | None = None) -> Iterator[Console]:
    """Opens the output of a command; an exception that ends the command is written to the log file, too.

    Args:
        quiet: See ``Console``.
        log_file: File that all output is appended to, with the time; progress as lines.

    Raises:
        UserError: The log file cannot be written.
    """
    log = logging.Logger("uvos", logging.DEBUG)
    screen = _screen_handler()
    screen.setLevel(logging.ERROR if quiet else logging.INFO)
    screen.addFilter(lambda record: not hasattr(record, _FILE_ONLY))
    screen.setFormatter(_Formatter())
    log.addHandler(screen)
    file = _file_handler(log_file)
    log.addHandler(file)
    fatal = {_FILE_ONLY: True}  # main() prints what ends the command
    try:
        yield Console(log, quiet)
    except Interrupted as interrupted:
        log.warning(str(interrupted), extra=fatal)
        raise
    except UserError as error:
        log.error(" ".join(str(error).split()), extra=fatal)
        raise
    except BrokenPipeError:
        log.warning("Stopped: standard output was closed by its reader.", extra=fatal)
        raise
    except Exception:
        log.exception("Unexpected error:", extra=fatal)
        raise
    finally:
        file.close()


class _Formatter(logging.Formatter):
    """One line per message; errors start with ``Error:``."""

    def format(self, record: logging.LogRecord) -> str:
        message = " ".join(record.getMessage().split())
        return f"Error: {message}" if record.levelno >= logging.ERROR else message


def _screen_handler() -> logging.Handler:
    """Rich in terminals, where it keeps a progress bar below the messages; whole lines in pipes and logs."""
    if not sys.stderr.isatty():
        return logging.StreamHandler(sys.stderr)
    import rich.console
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler

    return RichHandler(console=rich.console.Console(stderr=True), show_time=False, show_level=False, show_path=False,
                       highlighter=NullHighlighter())


def _file_handler(log_file: Path | None) -> logging.Handler:
    if log_file is None:
        return logging.NullHandler()
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise write_error(log_file, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    return handler
