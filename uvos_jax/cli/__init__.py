"""The command line: ``uvos``, or ``python -m uvos_jax``.

A command imports what it needs in its body, so that ``--help`` and a mistyped option respond at once.
"""

import os
import re
import sys

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.interrupts import Interrupted, exit_immediately

with exit_immediately():
    from uvos_jax.cli.app import app

    # In the order of the help.
    # isort: off
    from uvos_jax.cli import segment, flow, demo, weights, training, evaluation  # noqa: F401
    # isort: on

_ABORTED = 130  # Typer's exit code of Ctrl-C
_CLOSED_PIPE = 141  # 128 plus the number of SIGPIPE, which ends other tools whose reader has left


def main() -> None:
    """Runs the command line; a user error prints one line and exits with code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may hold characters that the terminal lacks
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr, flush=True)
        raise SystemExit(interrupted.code) from None
    except BrokenPipeError:
        _exit_closed_pipe()
    except SystemExit as stop:  # Typer and Rich replace a broken pipe by exit code 1
        if isinstance(stop.__context__, BrokenPipeError):
            _exit_closed_pipe()
        raise
    except OSError as error:  # a file or folder cannot be read or written
        if error.filename is None:
            raise
        _fail(f"'{error.filename}' cannot be used: {error.strerror}.")
    except Exception as error:
        # Typer's errors of the command line share this method.
        if not hasattr(error, "format_message"):
            raise
        # Without the names that Typer adds to an unknown option or command, in a form that depends on its version.
        message = error.message if getattr(error, "possibilities", None) else error.format_message()
        message = message.replace("Value error, ", "").replace("Input should be", "must be")
        message = message.replace(", unable to parse string as an integer", "")
        end = "" if message.endswith((".", "?")) else "."
        _fail(f"{message}{end}{_hint(message) or _name_hint(error)}")
    if code == _ABORTED:
        print("Interrupted; files written so far are kept.", file=sys.stderr, flush=True)
        # Ctrl-C may come while XLA compiles. Python's shutdown would tear down objects in use, and crash.
        os._exit(_ABORTED)
    raise SystemExit(code or 0)


def _exit_closed_pipe() -> None:
    """Ends quietly: the reader of the output has left, as in ``uvos models | head -1``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
    raise SystemExit(_CLOSED_PIPE) from None


def _hint(message: str) -> str:
    """Returns a hint for a file whose name starts with a dash, or for a value that resembles a valid one."""
    files = [argument for argument in sys.argv[1:] if argument.startswith("-") and os.path.isfile(argument)]
    if files:
        return f" For the file '{files[0]}' write './{files[0]}'."
    choice = re.search(r": '(.*)' is not one of (.*)\.$", message)
    return nearest_hint(choice[1], re.findall(r"'([^']*)'", choice[2])) if choice else ""


def _name_hint(error: Exception) -> str:
    """Returns a hint to the option or command that resembles an unknown one, or an empty string."""
    name = getattr(error, "option_name", None) or getattr(error, "command_name", "")
    return nearest_hint(name, getattr(error, "possibilities", None) or ())


def _fail(message: str) -> None:
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
