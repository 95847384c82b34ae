"""``uvos segment``."""

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uvos_jax.cli.app import app
from uvos_jax.cli.console import Messages, messages
from uvos_jax.cli.options import (
    Chunk,
    End,
    Every,
    FirstMask,
    FirstModel,
    FirstWeights,
    FlowCache,
    FlowFrom,
    FlowWeights,
    Model,
    OnError,
    Precision,
    Prune,
    PruneWeights,
    Set,
    Start,
    Variant,
    Weights,
    check_on_error,
    hyper_parameters_of,
    scales_of,
)
from uvos_jax.errors import UserError
from uvos_jax.interrupts import exit_immediately, graceful_stop

if TYPE_CHECKING:
    from uvos_jax.video import ClipOptions, OutputOptions

_FINDER = "dtnet"  # for --prune


@app.command(epilog="Example: uvos segment my.mp4 --soft --json")
def segment(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="A video file, a folder of frames, a quoted"
                                                " glob of frames or of videos, a folder of videos, a camera's number,"
                                                " an address (rtsp://, http://), - for standard input; or several.")],
    model: Model = None,
    variant: Variant = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option("--output", help="Results; uvos_output/<input> if not given. Of several"
                                                " videos, each has a folder in it.")] = None,
    scales: Annotated[str, typer.Option("--scales", help="Scales to average, e.g. 0.75,1,1.5.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored frames too.")] = False,
    size: Annotated[int | None, typer.Option("--size", min=17, help="The network's shorter side in pixels.")] = None,
    precision: Precision = "float32",
    chunk: Chunk = None,
    hyper: Set = None,
    flow: FlowFrom = None,
    flow_weights: FlowWeights = None,
    flow_cache: FlowCache = None,
    first_mask: FirstMask = None,
    first_model: FirstModel = None,
    first_weights: FirstWeights = None,
    prune: Prune = None,
    prune_weights: PruneWeights = None,
    start: Start = None,
    end: End = None,
    every: Every = 1,
    on_error: OnError = "stop",
    soft: Annotated[bool, typer.Option("--soft", help="Also probabilities as 8-bit PNG, and a confidence per frame.")
                    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Also objects.json: run lengths (COCO), boxes, areas.")] = False,
    cutout: Annotated[str | None, typer.Option("--cutout", metavar="png|mov|webm", help="Also the objects on"
                                               " transparent ground: PNG files, ProRes 4444 or VP9.")] = None,
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="No overlay.mp4.")] = False,
    alpha: Annotated[float, typer.Option("--alpha", help="Strength of the overlay's tint, 0 to 1.")] = 0.5,
    contour: Annotated[int | None, typer.Option("--contour", help="Width of the overlay's outline in pixels.")] = None,
    background: Annotated[str | None, typer.Option("--background", help="Behind the overlay's objects: blur, gray or a"
                                                   " color such as green or #00ff00.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run of this command ended;"
                                              " with --overwrite, replace results of other options.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are in the way.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Also draw what the network sees: AD-Net's matches and"
                                             " drift, DPA's attentions, F2Net's centers.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
    log_file: Annotated[Path | None, typer.Option("--log-file", help="Append all that is said, with the time.")] = None,
) -> None:
    """Segments videos: masks/*.png (indexed), overlay.mp4 and run.json."""
    options = {
        "model": model, "variant": variant, "weights": weights, "scales": scales, "flip": flip, "size": size,
        "precision": precision, "chunk": chunk, "set": hyper or [], "flow": flow,
        "flow_weights": flow_weights, "flow_cache": flow_cache and str(flow_cache),
        "first_mask": first_mask, "first_model": first_model, "first_weights": first_weights, "prune": prune,
        "prune_weights": prune_weights, "start": start, "end": end, "every": every, "on_error": on_error, "soft": soft,
        "json": json, "cutout": cutout, "no_overlay": no_overlay, "alpha": alpha, "contour": contour,
        "background": background, "debug": debug}
    check_on_error(on_error)
    with messages(quiet, log_file) as say:
        with exit_immediately():  # nothing is written before the work begins
            from uvos_jax.inference import load
            from uvos_jax.inference.jobs.batch import assign_folders, check_batch_detections, check_batch_masks
            from uvos_jax.inference.jobs.segment import check_output
            from uvos_jax.inference.loading import METHODS
            from uvos_jax.video import (
                ClipOptions,
                OutputOptions,
                ResultWriter,
                list_sources,
                open_source,
                parse_overlay_style,
            )
            from uvos_jax.weights.packaged import about, recognized

            outputs = OutputOptions(not no_overlay, parse_overlay_style(alpha, contour, background), soft, json, cutout)
            ResultWriter(".", 1.0, outputs)  # writes nothing, and knows what it could not write
            clip = ClipOptions(start, end, every, on_error)
            sources = list_sources(inputs)
            if len(sources) == 1:
                video = open_source(sources[0], clip)
                output = check_output(output or Path("uvos_output", video.name), overwrite, video, resume)
            else:
                tasks = assign_folders(sources, output or "uvos_output")
                if flow not in (None, *METHODS):
                    raise UserError(f"The files in '{flow}' are the flow of one video, but {len(tasks)} are given;"
                                    " segment them one after the other.")
                for task in tasks:
                    check_output(task.output, overwrite, resume=resume)
            segmenter = load(model, weights, scales=scales_of(scales), flip=flip, precision=precision, variant=variant,
                             flow=flow, flow_weights=flow_weights, flow_cache=flow_cache,
                             **(hyper_parameters_of(hyper) | ({"short_side": size} if size else {})))
            first_mask = _first_mask(segmenter, first_mask, first_model, first_weights)
            prune = _prune(segmenter, prune, prune_weights)
            if len(sources) > 1:
                check_batch_masks(first_mask, tasks)
                if isinstance(first_mask, str):  # hours may pass until the last of them is looked at
                    for task in tasks:
                        _check_first_mask(segmenter, open_source(task.source, clip), first_mask)
                check_batch_detections(prune, tasks)
            if packaged := recognized(segmenter.weights_digest):
                say.note(f"{'Default network' if weights is None else 'Network'}: {segmenter.name},"
                         f" {segmenter.model.variant} variant; weights '{packaged}' in the package:"
                         f" {about(packaged)['license']}.")
        with graceful_stop() as stop:
            run = {"chunk": chunk, "overwrite": overwrite, "resume": resume, "first_mask": first_mask,
                   "prune": prune}
            work = _Work(options, clip, outputs, run, debug, say, stop)
            if len(sources) == 1:
                work.one(segmenter, video, sources[0], output, f"{segmenter.name} on {video.name}")
            elif not work.many(segmenter, tasks):
                raise SystemExit(2)


def _first_mask(segmenter, first_mask, first_model, first_weights):
    """What ``Segmenter.run`` takes; the model that ``auto`` asks is loaded once for all videos."""
    from uvos_jax.inference import load

    if first_mask != "auto":
        for option, value in (("--first-model", first_model), ("--first-weights", first_weights)):
            if value is not None:
                raise UserError(f"{option} is for --first-mask auto, where a model finds what is to be followed.")
    elif segmenter.model.task == "prompted":
        if first_model is not None and first_weights is None:
            raise UserError(f"No weights of {first_model} ship with the package: give --first-weights too, or leave"
                            " --first-model out, and the default network looks.")
        first_mask = load(first_model, first_weights)
    segmenter.check_first_mask(first_mask)
    return first_mask


def _check_first_mask(segmenter, video, first_mask):
    try:
        segmenter.objects(video, first_mask).check_mask_sizes()
    except UserError as error:
        raise UserError(f"{video.name}: {error}") from error


def _prune(segmenter, prune, prune_weights):
    """What ``Segmenter.run`` takes; the model that finds instances is loaded once for all videos."""
    from uvos_jax.inference import load
    from uvos_jax.inference.instance_pruning import check_prunable
    from uvos_jax.models import SYSTEMS

    if prune is not None:
        check_prunable(segmenter)
    if prune != _FINDER:
        if prune_weights is not None:
            raise UserError(f"--prune-weights is for --prune {_FINDER}, where a model finds the instances.")
        return prune
    if _FINDER not in SYSTEMS:
        raise UserError(f"There is no model '{_FINDER}' in this version; give --prune a JSON file of detections.")
    if prune_weights is None:
        raise UserError(f"No weights ship for {_FINDER}: give --prune-weights a checkpoint directory, or --prune a JSON"
                        " file of detections.")
    return load(_FINDER, prune_weights)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What the command does with each video."""

    options: dict[str, Any]
    clip: "ClipOptions"
    outputs: "OutputOptions"
    run: dict[str, Any]  # how
    debug: bool
    say: Messages
    stop: Callable[[], int | None]

    def one(self, segmenter, video, source: str, output: Path, title: str, advance=None) -> dict[str, Any]:
        """Segments an opened video and tells what came out; shows progress of its own unless given ``advance``."""
        from uvos_jax.inference.debug_figures import check_figures, write_figures
        from uvos_jax.inference.jobs.segment import segment_to_folder
        from uvos_jax.video.streams import public_url

        if self.debug:
            check_figures(segmenter, video)
        seen = itertools.count()
        with (contextlib.nullcontext(advance) if advance else
              self.say.progress(title, video.length, "the first frame compiles")) as advance:
            run = segment_to_folder(segmenter, video, output, **self.run, outputs=self.outputs,
                                    on_frame=lambda: (next(seen), advance()),
                                    options={"input": public_url(source)} | self.options, say=self.say.note,
                                    stop=self.stop)
        if not next(seen):
            return run  # an earlier one, of which all has been said
        frames, computed = run["source"]["frames"], run["source"]["frames"] - run["resumed"]
        made = [f"{frames} mask{'s' if frames > 1 else ''}", *(name for name in run["results"] if name != "masks")]
        if self.debug:
            made += [str(path.relative_to(output)) for path in write_figures(segmenter, video, output, frames)]
        if run["skipped"]:
            self.say.note(f"{output}: could not be used, so that the mask before is repeated: frame"
                          f" {', '.join(run['skipped'])}.")
        self.say.result(f"{output}: {', '.join(made)}; {computed / run['seconds']:.3g} frames/s")
        return run

    def many(self, segmenter, tasks) -> bool:
        """Segments the videos; tells whether all went well."""
        import jax

        from uvos_jax.inference.jobs.batch import segment_batch
        from uvos_jax.video import open_source
        from uvos_jax.video.streams import public_url

        devices = jax.local_devices()[:len(tasks)]
        lock = threading.Lock()

        def told(outcome):
            if outcome.error:
                self.say.error(f"{public_url(outcome.item.source)}: {outcome.error}")

        with contextlib.ExitStack() as stack:
            advance = None
            if len(devices) > 1:  # a terminal has room for one bar
                bar = stack.enter_context(self.say.progress(f"{len(tasks)} videos on {len(devices)} devices", None))

                def advance():
                    with lock:
                        bar()

            def work(segmenter, task):
                video = open_source(task.source, self.clip)
                title = f"[{task.number}/{len(tasks)}] {segmenter.name} on {video.name}"
                return self.one(segmenter, video, task.source, task.output, title, advance)

            outcomes = segment_batch(segmenter, tasks, work, on_result=told, devices=devices)
        failed = [public_url(outcome.item.source) for outcome in outcomes if outcome.error]
        self.say.result(f"{len(tasks) - len(failed)} of {len(tasks)} videos are done"
                        f"{'; not done: ' if failed else ''}{', '.join(failed)}.")
        return not failed
