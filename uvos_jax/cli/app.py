"""The Typer application that the commands register with."""

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Video object segmentation in JAX: from a video to masks in one command.")
