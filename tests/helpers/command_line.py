"""Runs ``uvos`` in tests."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout

from uvos_jax import cli

# A network that runs in milliseconds.
SMALL = [f"--set={entry}" for entry in ("depths=[1,1,1,1]", "width=8", "aspp_features=16", "embedding=16",
                                        "hidden=16", "short_side=65")]


def uvos(*arguments):
    """Runs the command line in this process; returns exit code, output and error output."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    argv, sys.argv = sys.argv, ["uvos", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return code, out.getvalue(), err.getvalue()
