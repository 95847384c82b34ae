"""The command line: ``uvos``, or ``python -m uvos_jax``.

Whatever a command needs is imported inside it, so that ``--help`` and a mistyped option answer at once.
"""

import os
import sys

from uvos_jax.errors import UserError
from uvos_jax.interrupts import Interrupted, exit_immediately

with exit_immediately():
    from uvos_jax.cli.app import app

    # In the order of the help.
    # isort: off
    from uvos_jax.cli import segment, flow, demo, weights, training, evaluation  # noqa: F401
    # isort: on

_INTERRUPTED = 130  # what Typer makes of Ctrl-C


def main() -> None:
    """Runs the command line; whatever the user got wrong becomes one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show is no reason to fail
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr, flush=True)
        raise SystemExit(interrupted.code) from None
    except BrokenPipeError:  # whoever read the output has had enough, as in 'uvos models | head -1'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
        raise SystemExit(1) from None
    except OSError as error:  # a file or folder that the operating system does not let us use
        if error.filename is None:
            raise
        _fail(f"'{error.filename}' cannot be used: {error.strerror}.")
    except Exception as error:
        # Typer's own complaints about the command line, known by the method they share.
        if not hasattr(error, "format_message"):
            raise
        named = [argument for argument in sys.argv[1:] if argument.startswith("-") and os.path.isfile(argument)]
        hint = f". For the file '{named[0]}' write './{named[0]}'." if named else ""
        _fail(error.format_message().removesuffix(".") + hint if hint else error.format_message())
    if code == _INTERRUPTED:
        print("Interrupted; what was written is kept.", file=sys.stderr, flush=True)
        # Ctrl-C may come while XLA compiles; Python's own way out would tear down what it still uses, and crash.
        os._exit(_INTERRUPTED)
    raise SystemExit(code or 0)


def _fail(sentence: str) -> None:
    print(f"Error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(2)
