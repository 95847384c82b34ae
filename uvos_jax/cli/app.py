"""The Typer application that the commands register with."""

from typing import Annotated

import typer

from uvos_jax._version import __version__

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", no_args_is_help=False,
                  context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"uvos {__version__}")
        raise typer.Exit


@app.callback()
def _uvos(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True,
                                          help="Print the version and exit.")] = False,
) -> None:
    """Video object segmentation in JAX: from a video to masks in one command."""
