"""``uvos flow``."""

from pathlib import Path
from typing import Annotated

import typer

from uvos_jax.cli.app import app
from uvos_jax.cli.console import messages
from uvos_jax.cli.options import End, Every, FlowCache, OnError, Start, check_on_error
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.interrupts import exit_immediately, graceful_stop


@app.command(epilog="Example: uvos flow my.mp4 --output flow")
def flow(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A video file, a folder of frames, a quoted glob of"
                                          " frames, an address, - for standard input.")],
    output: Annotated[Path, typer.Option("--output", help="The folder for the files, one a frame.")],
    method: Annotated[str, typer.Option("--method", metavar="dis|raft", help="OpenCV's DIS, or RAFT.")] = "dis",
    weights: Annotated[str | None, typer.Option("--weights", help="Of RAFT: a published .pth or .safetensors, or a"
                                                " checkpoint directory.")] = None,
    form: Annotated[str, typer.Option("--format", metavar="flo|png16|picture", help="Middlebury's .flo, KITTI's 16-bit"
                                      " PNG, or the color wheel.")] = "flo",
    backward: Annotated[bool, typer.Option("--backward", help="To the frame before, not to the next one.")] = False,
    cache: FlowCache = None,
    start: Start = None,
    end: End = None,
    every: Every = 1,
    on_error: OnError = "stop",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace flow of an earlier run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
    log_file: Annotated[Path | None, typer.Option("--log-file", help="Append all that is said, with the time.")] = None,
) -> None:
    """Computes optical flow: a file for each frame, at the frame's size and of its name, and flow.json."""
    options = {"input": source, "method": method, "weights": weights, "format": form, "backward": backward,
               "flow_cache": cache and str(cache), "start": start, "end": end, "every": every, "on_error": on_error}
    check_on_error(on_error)
    with messages(quiet, log_file) as say:
        with exit_immediately():  # nothing is written before the work begins
            from uvos_jax.inference.jobs.flow import FORMATS, check_flow_output, flow_to_folder
            from uvos_jax.inference.loading import METHODS, load_flow
            from uvos_jax.video import ClipOptions, open_source
            from uvos_jax.video.streams import public_url

            for name, given, known in (("--method", method, METHODS), ("--format", form, tuple(FORMATS))):
                if given not in known:
                    raise UserError(f"{name} is one of {', '.join(known)}, not '{given}'.{nearest_hint(given, known)}")
            video = open_source(source, ClipOptions(start=start, end=end, every=every, on_error=on_error))
            if video.kind == "camera":
                raise UserError("'uvos flow' wants a recording, and a camera has no end; record it first.")
            check_flow_output(output, overwrite, video)
            computing = load_flow(method, weights, cache)
        options["input"] = public_url(source)
        with graceful_stop() as stop, say.progress(f"{method} on {video.name}", video.length) as advance:
            about = flow_to_folder(computing, video, output, form=form, backward=backward, overwrite=overwrite,
                                   options=options, on_frame=advance, stop=stop)
        frames = f"{about['frames']} file{'s' if about['frames'] > 1 else ''}"
        if not about["finished"]:
            say.last_word(f"Interrupted. {frames} {'are' if about['frames'] > 1 else 'is'} kept in '{output}'.")
            raise SystemExit(128 + stop())
        if about["broken"]:
            say.note(f"Could not be used, so that its flow is zero: frame {', '.join(about['broken'])}.")
        if about["frames"] == 1:
            say.note(f"'{video.name}' has one frame, so that nothing is known of motion: its flow is zero.")
        elif backward:
            say.note("The flow of the first frame is zero, since there is none before it.")
        else:
            say.note("The flow of the last frame leads to the one before it; that of all others to the next one.")
        say.result(f"{output}: {frames}; {about['frames'] / about['seconds']:.3g} frames/s")
