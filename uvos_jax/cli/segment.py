"""``uvos segment``."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from uvos_jax.cli import options
from uvos_jax.cli.app import app
from uvos_jax.cli.console import Console, console
from uvos_jax.cli.groups import Group, grouped
from uvos_jax.errors import UserError, pluralize
from uvos_jax.interrupts import exit_immediately, graceful_stop
from uvos_jax.progress import Meter

if TYPE_CHECKING:
    from uvos_jax.inference.prompt_options import PromptOptions
    from uvos_jax.video import ClipOptions, OutputOptions

_Soft = Annotated[bool, typer.Option(
    "--soft", rich_help_panel=options.OUTPUT, help="Write probabilities as 8-bit PNG, and a confidence per frame.")]
_Json = Annotated[bool, typer.Option(
    "--json", rich_help_panel=options.OUTPUT, help="Write objects.json: COCO run lengths, boxes, areas.")]
_Cutout = Annotated[Literal["png", "mov", "webm"] | None, typer.Option(
    "--cutout", rich_help_panel=options.OUTPUT,
    help="Write the objects on a transparent background: PNG files, ProRes 4444 or VP9.")]
_Overlay = Annotated[bool, typer.Option(
    "--overlay/--no-overlay", rich_help_panel=options.OUTPUT, help="Write overlay.mp4.")]
_Alpha = Annotated[float, typer.Option(
    "--alpha", metavar="0..1", rich_help_panel=options.OUTPUT, help="Opacity of the overlay's tint.")]
_Contour = Annotated[int | None, typer.Option(
    "--contour", metavar="PIXELS", rich_help_panel=options.OUTPUT,
    help="Width of the overlay's outline. Default: by frame size.")]
_Background = Annotated[str | None, typer.Option(
    "--background", metavar="COLOR", rich_help_panel=options.OUTPUT,
    help="Background of the overlay: blur, gray, or a color such as green or #00ff00.")]
_Output = Annotated[Path | None, typer.Option(
    "--output", metavar="DIR", rich_help_panel=options.OUTPUT,
    help="Output folder. Several videos get one subfolder each. Default: uvos_output/<input>.")]
_Debug = Annotated[bool, typer.Option(
    "--debug", rich_help_panel=options.RUN, help="Draw figures of the network's features, such as attention maps.")]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How the command runs; fields are the options of the same names."""

    chunk: int | None
    resume: bool
    overwrite: bool
    debug: bool
    quiet: bool
    log_file: Path | None


def _output_options(soft: _Soft = False, json: _Json = False, cutout: _Cutout = None, overlay: _Overlay = True,
                    alpha: _Alpha = 0.5, contour: _Contour = None, background: _Background = None) -> "OutputOptions":
    from uvos_jax.video import OutputOptions, ResultWriter, parse_overlay_style

    outputs = OutputOptions(overlay, parse_overlay_style(alpha, contour, background), soft, json, cutout)
    ResultWriter(".", 1.0, outputs)  # checks encoders; writes nothing until it is entered
    return outputs


def _run_options(chunk: options.Chunk = None, resume: options.Resume = False, overwrite: options.Overwrite = False,
                 debug: _Debug = False, quiet: options.Quiet = False, log_file: options.LogFile = None) -> RunOptions:
    options.check_resume_or_overwrite(resume, overwrite)
    return RunOptions(chunk, resume, overwrite, debug, quiet, log_file)


@app.command(epilog="Example: uvos segment my.mp4 --soft --json")
@grouped
def segment(
    *,
    inputs: Annotated[list[str], typer.Argument(
        metavar="INPUT", help="Video file, folder of frames or of videos, quoted glob, camera index, URL (rtsp://,"
                                 " http://), or - for standard input. Several inputs form a batch.")],
    network: options.Network,
    clip: options.Clip,
    prompts: options.Prompts,
    output: _Output = None,
    outputs: Annotated["OutputOptions", Group(_output_options)],
    run: Annotated[RunOptions, Group(_run_options)],
) -> None:
    """Segment videos into masks, an overlay and run.json."""
    with console(run.quiet, run.log_file) as out:
        with exit_immediately():  # nothing is written before the segmentation starts
            from uvos_jax.inference.jobs.batch import assign_folders, check_batch_detections, check_batch_masks
            from uvos_jax.inference.jobs.segment import check_output
            from uvos_jax.inference.loading import METHODS
            from uvos_jax.video import list_sources, open_source

            sources = list_sources(inputs)
            batch = len(sources) > 1
            if batch:
                items = assign_folders(sources, output or "uvos_output")
                if network.flow not in (None, *METHODS):
                    raise UserError(f"'{network.flow}' holds the flow of one video, but {len(items)} videos are given."
                                    " Segment them one at a time.")
                for item in items:
                    check_output(item.output, run.overwrite, resume=run.resume)
            else:
                video = open_source(sources[0], clip)
                output = check_output(output or Path("uvos_output", video.name), run.overwrite, video, run.resume)
            segmenter = network.load()
            loaded = prompts.load_models(segmenter)
            if batch:
                check_batch_masks(loaded.first_mask, items)
                if isinstance(loaded.first_mask, str):  # the last video may start hours after the first
                    for item in items:
                        _check_first_mask(segmenter, open_source(item.source, clip), loaded.first_mask)
                check_batch_detections(loaded.prune, items)
            _name_network(segmenter, network.weights is None, out)
        with graceful_stop() as stop:
            asked = {"chunk": run.chunk, **dataclasses.asdict(network), "debug": run.debug}
            job = _Job(asked, clip, outputs, loaded, run, out, stop)
            if not batch:
                job.segment(segmenter, video, sources[0], output, f"{segmenter.name} on {video.name}")
            elif not job.segment_batch(segmenter, items):
                raise SystemExit(2)


def _check_first_mask(segmenter, video, first_mask):
    try:
        segmenter.object_registry(video, first_mask).check_mask_sizes()
    except UserError as error:
        raise UserError(f"{video.name}: {error}") from error


def _name_network(segmenter, is_default: bool, out: Console) -> None:
    """Names packaged weights and their license."""
    from uvos_jax.weights.packaged import about, recognized

    if packaged := recognized(segmenter.weights_digest):
        out.note(f"{'Default network' if is_default else 'Network'}: {segmenter.name},"
                 f" {segmenter.model.variant} variant; packaged weights '{packaged}' ({about(packaged)['license']}).")


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the command does with each video."""

    options: dict[str, Any]  # of the network, for run.json
    clip: "ClipOptions"
    outputs: "OutputOptions"
    prompts: "PromptOptions"
    run: RunOptions
    out: Console
    stop: Callable[[], int | None]

    def segment(self, segmenter, video, source: str, output: Path, title: str, advance=None) -> dict[str, Any]:
        """Segments an opened video and reports the results; shows a progress bar unless given ``advance``."""
        from uvos_jax.inference.debug_figures import check_figures, write_figures
        from uvos_jax.inference.jobs.segment import segment_to_folder
        from uvos_jax.video.streams import public_url

        if self.run.debug:
            check_figures(segmenter, video)
        meter = Meter()
        own_bar = advance is None
        with (self.out.progress(title, video.length) if own_bar else contextlib.nullcontext(advance)) as advance:
            run = segment_to_folder(
                segmenter, video, output, clip=self.clip, outputs=self.outputs, prompts=self.prompts,
                chunk=self.run.chunk, overwrite=self.run.overwrite, resume=self.run.resume,
                options={"input": public_url(source), **self.options},
                on_start=lambda: own_bar and advance.status("compiling, first frame"),
                on_frame=lambda: (meter.advance(), advance()), say=self.out.note, stop=self.stop)
        if not meter.done:
            return run  # finished earlier, as a message has said
        frames = run["source"]["frames"]
        made = [pluralize(frames, "mask"), *(name for name in run["results"] if name != "masks")]
        if self.run.debug:
            made += [str(path.relative_to(output)) for path in write_figures(segmenter, video, output, frames)]
        if run["skipped"]:
            self.out.note(f"{output}: repeated the previous mask for frames that cannot be decoded:"
                          f" {', '.join(run['skipped'])}.")
        rate = f"; {meter.rate:.3g} frames/s" if meter.rate and not run["resumed"] else ""
        self.out.result(f"{output}: {', '.join(made)}{rate}")
        return run

    def segment_batch(self, segmenter, items) -> bool:
        """Segments the videos; returns whether all succeeded."""
        import jax

        from uvos_jax.inference.jobs.batch import segment_batch
        from uvos_jax.video import open_source
        from uvos_jax.video.streams import public_url

        devices = jax.local_devices()[:len(items)]
        lock = threading.Lock()

        def report(result):
            if result.error:
                source = public_url(result.item.source)
                named = f"'{source}" in result.error  # also as the folder of a frame
                self.out.error(result.error if named else f"{source}: {result.error}")

        with contextlib.ExitStack() as stack:
            advance = None
            if len(devices) > 1:  # a terminal has room for one bar
                bar = stack.enter_context(self.out.progress(f"{len(items)} videos on {len(devices)} devices"))

                def advance():
                    with lock:
                        bar()

            def segment_one(segmenter, item):
                video = open_source(item.source, self.clip)
                title = f"[{item.number}/{len(items)}] {segmenter.name} on {video.name}"
                return self.segment(segmenter, video, item.source, item.output, title, advance)

            results = segment_batch(segmenter, items, segment_one, on_result=report, devices=devices)
        failed = [public_url(result.item.source) for result in results if result.error]
        self.out.result(f"{len(items) - len(failed)} of {len(items)} videos finished"
                        f"{'; failed: ' if failed else ''}{', '.join(failed)}.")
        return not failed
