"""The Typer application that the commands register with."""

import functools
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from uvos_jax._version import __version__


class _FlagsWithoutType:
    """Mixin of commands whose help shows no type beside flags; newer Typer writes ``<bool>``, also beside --help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns the parameters of the command, flags with an empty metavar."""
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class _Command(_FlagsWithoutType, TyperCommand):
    """A command of the application."""


class _Group(_FlagsWithoutType, TyperGroup):
    """The application's root command."""


app = typer.Typer(cls=_Group, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
app.command = functools.partial(app.command, cls=_Command)


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
