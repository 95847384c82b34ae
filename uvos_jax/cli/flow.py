"""``uvos flow``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from uvos_jax.cli import options
from uvos_jax.cli.app import app
from uvos_jax.cli.console import console
from uvos_jax.cli.groups import grouped
from uvos_jax.errors import UserError, pluralize
from uvos_jax.interrupts import Interrupted, exit_immediately, graceful_stop


@app.command(epilog="Example: uvos flow my.mp4 --output flow")
@grouped
def flow(
    source: Annotated[str, typer.Argument(
        metavar="INPUT", help="Video file, folder of frames, quoted glob of frames, URL, or - for standard input.")],
    output: Annotated[Path, typer.Option(
        "--output", metavar="DIR", rich_help_panel=options.OUTPUT, help="Folder of the files, one per frame.")],
    clip: options.FlowClip,
    method: Annotated[Literal["dis", "raft"], typer.Option(
        "--method", rich_help_panel=options.MODEL, help="OpenCV's DIS, or RAFT.")] = "dis",
    weights: Annotated[str | None, typer.Option(
        "--weights", metavar="PATH", rich_help_panel=options.MODEL,
        help="Weights of RAFT: published .pth or .safetensors file, or checkpoint directory. Required with"
             " --method raft.")] = None,
    form: Annotated[Literal["flo", "png16", "picture"], typer.Option(
        "--format", rich_help_panel=options.OUTPUT,
        help="Middlebury's .flo, KITTI's 16-bit PNG, or colors of the color wheel.")] = "flo",
    backward: Annotated[bool, typer.Option(
        "--backward", rich_help_panel=options.OUTPUT,
        help="Flow to the previous frame instead of the next one.")] = False,
    cache: options.FlowCache = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Compute the optical flow of a video."""
    with console(quiet, log_file) as out:
        with exit_immediately():  # nothing is written before the computation starts
            import dataclasses

            from uvos_jax.inference.jobs.flow import check_flow_output, flow_to_folder
            from uvos_jax.inference.loading import load_flow
            from uvos_jax.video import open_source
            from uvos_jax.video.streams import public_url

            video = open_source(source, clip)
            if video.kind == "camera":
                raise UserError("'uvos flow' cannot read a camera. Record a video and give its file.")
            check_flow_output(output, overwrite, video)
            estimator = load_flow(method, weights, cache)
        asked = {"input": public_url(source), "method": method, "weights": weights, "format": form,
                 "backward": backward, "flow_cache": cache and str(cache), "clip": dataclasses.asdict(clip)}
        with graceful_stop() as stop, out.progress(f"{method} on {video.name}", video.length) as advance:
            about = flow_to_folder(estimator, video, output, form=form, backward=backward, overwrite=overwrite,
                                   options=asked, on_frame=advance, stop=stop)
        count = about["frames"]
        files = pluralize(count, "file")
        if not about["finished"]:
            raise Interrupted(stop() or 0, f"Interrupted. {files} {'are' if count > 1 else 'is'} kept in '{output}'.")
        if about["broken"]:
            out.note(f"Wrote zero flow for frames that cannot be decoded: {', '.join(about['broken'])}.")
        if count == 1:
            out.note(f"'{video.name}' has a single frame; its optical flow is set to zero.")
        elif backward:
            out.note("The first frame has zero flow, since no frame precedes it.")
        else:
            out.note("The flow of the last frame points to the previous frame; all others point to the next one.")
        rate = advance.meter.rate
        out.result(f"{output}: {files}{f'; {rate:.3g} frames/s' if rate else ''}")
