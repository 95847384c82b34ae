"""Options that several commands share: their declarations, their groups, and parsers of their values."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from uvos_jax.cli.groups import Group
from uvos_jax.errors import UserError

if TYPE_CHECKING:
    from uvos_jax.inference import Segmenter
    from uvos_jax.inference.prompt_options import PromptOptions
    from uvos_jax.video import ClipOptions

# Panels of the help. Options without a panel come first.
MODEL, INPUT, PROMPTS, AUGMENTATION, OUTPUT, RUN = (
    "Model", "Input", "Prompts", "Test-time augmentation", "Output", "Run")

# Names that --set refuses, since load() or the command has an option for them.
_OWN_OPTIONS = {"name": "--model", "model": "--model", "weights": "--weights", "variant": "--variant",
                "dtype": "--precision", "precision": "--precision", "scales": "--scales",
                "flip": "--flip", "flow": "--flow", "flow_weights": "--flow-weights", "flow_cache": "--flow-cache"}

_MAX_SIZE = 2**15 - 1  # largest ``short_side`` of a model


def _variant(default: str) -> Any:
    return typer.Option(
        "--variant", metavar="NAME", rich_help_panel=MODEL,
        help="'paper', 'official' (as the published code), or 'official_full' (dpa and f2net: with the commented-out"
             f" lines of that code). Default: {default}.")


def _weights(default: str = "") -> Any:
    return typer.Option(
        "--weights", metavar="PATH", rich_help_panel=MODEL,
        help="Checkpoint directory, .pth, .safetensors or .npz file, name of packaged weights, or 'random' (untrained)."
             + default)


Model = Annotated[str | None, typer.Option(
    "--model", metavar="NAME", rich_help_panel=MODEL,
    help="System, see 'uvos models'. Default: the system of a checkpoint directory or of packaged weights.")]
Variant = Annotated[str | None, _variant("that of the weights, or 'paper'")]
ConvertedVariant = Annotated[str | None, _variant("'paper'; for raft 'official'")]
ReferenceVariant = Annotated[str | None, _variant("that of the reference file")]
Weights = Annotated[str | None, _weights(" Default: the packaged default network, if --model is not given.")]
BenchmarkWeights = Annotated[str | None, _weights()]  # the command has a default of its own
Precision = Annotated[Literal["float32", "bfloat16"], typer.Option(
    "--precision", rich_help_panel=MODEL, help="float32 (reference) or bfloat16 (faster on accelerators).")]
Size = Annotated[int | None, typer.Option(
    "--size", min=17, max=_MAX_SIZE, metavar="PIXELS", rich_help_panel=MODEL,
    help="Shorter side of the network input. Default: the model's own.")]
Chunk = Annotated[int | None, typer.Option(
    "--chunk", min=1, metavar="N", rich_help_panel=RUN,
    help="Frames encoded at once. Lower it if memory runs out. Default: 1 on a CPU, 8 on an accelerator.")]
Set = Annotated[list[str] | None, typer.Option(
    "--set", metavar="NAME=VALUE", rich_help_panel=MODEL, help="Hyper-parameter, see 'uvos models'. Repeatable.")]
FlowFrom = Annotated[str | None, typer.Option(
    "--flow", metavar="dis|raft|DIR", rich_help_panel=MODEL,
    help="Optical flow, for models that need it: OpenCV's DIS (default), RAFT, or a folder of files named as the"
         " frames.")]
FlowWeights = Annotated[str | None, typer.Option(
    "--flow-weights", metavar="PATH", rich_help_panel=MODEL, help="Weights of RAFT, as for --weights.")]
FlowCache = Annotated[Path | None, typer.Option(
    "--flow-cache", metavar="DIR", rich_help_panel=MODEL, help="Keep computed flow in this folder and reuse it.")]
Scales = Annotated[str, typer.Option(
    "--scales", metavar="LIST", rich_help_panel=AUGMENTATION,
    help="Average predictions over these scales, such as 0.75,1,1.5.")]
Flip = Annotated[bool, typer.Option(
    "--flip", rich_help_panel=AUGMENTATION, help="Average predictions with those of mirrored frames.")]
FirstMask = Annotated[str | None, typer.Option(
    "--first-mask", metavar="PNG|DIR|auto", rich_help_panel=PROMPTS,
    help="Objects to track, for semi-supervised models: mask of the first frame, folder of masks named as frames, or"
         " 'auto' for the object that an unsupervised model finds.")]
FirstModel = Annotated[str | None, typer.Option(
    "--first-model", metavar="NAME", rich_help_panel=PROMPTS,
    help="Model for --first-mask auto. Default: the default network.")]
FirstWeights = Annotated[str | None, typer.Option(
    "--first-weights", metavar="PATH", rich_help_panel=PROMPTS, help="Weights of --first-model.")]
Prune = Annotated[str | None, typer.Option(
    "--prune", metavar="dtnet|JSON|DIR", rich_help_panel=PROMPTS,
    help="Remove secondary instances from the foreground: those that D-Net finds, those in a JSON file (COCO"
         " detections or objects.json), or in a folder with one such file per video.")]
PruneWeights = Annotated[str | None, typer.Option(
    "--prune-weights", metavar="PATH", rich_help_panel=PROMPTS, help="Weights of D-Net for --prune dtnet.")]
Start = Annotated[str | None, typer.Option(
    "--start", metavar="TIME", rich_help_panel=INPUT, help="Time of the first frame, such as 90, 12.5s or 1:05.")]
End = Annotated[str | None, typer.Option(
    "--end", metavar="TIME", rich_help_panel=INPUT, help="Time at which reading ends, exclusive.")]
Every = Annotated[int, typer.Option("--every", min=1, metavar="N", rich_help_panel=INPUT, help="Read every Nth frame.")]
OnError = Annotated[Literal["stop", "skip"], typer.Option(
    "--on-error", rich_help_panel=INPUT, help="At a frame that cannot be decoded, stop or repeat the last mask.")]
FlowOnError = Annotated[Literal["stop", "skip"], typer.Option(
    "--on-error", rich_help_panel=INPUT, help="At a frame that cannot be decoded, stop or write zero flow.")]
Workers = Annotated[int | None, typer.Option(
    "--workers", min=1, metavar="N", rich_help_panel=RUN, help="Parallel workers. Default: one per core.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", rich_help_panel=RUN, help="Replace existing results.")]
Resume = Annotated[bool, typer.Option(
    "--resume", rich_help_panel=RUN, help="Continue an interrupted run; leave a finished one as it is.")]
Quiet = Annotated[bool, typer.Option("--quiet", rich_help_panel=RUN, help="Show errors only.")]
LogFile = Annotated[Path | None, typer.Option(
    "--log-file", metavar="FILE", rich_help_panel=RUN, help="Append output and progress to this file, with the time.")]


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """The network of a run and how it is applied; fields are the options of the same names."""

    model: str | None = None
    variant: str | None = None
    weights: str | None = None
    size: int | None = None
    precision: str = "float32"
    set: tuple[str, ...] = ()
    flow: str | None = None
    flow_weights: str | None = None
    flow_cache: str | None = None
    scales: str = "1"
    flip: bool = False

    def load(self) -> "Segmenter":
        """Loads the model with its weights.

        Raises:
            UserError: An option cannot be used.
        """
        from uvos_jax.inference import load

        hyper_parameters = parse_hyper_parameters(self.set) | ({"short_side": self.size} if self.size else {})
        return load(self.model, self.weights, scales=parse_scales(self.scales), flip=self.flip,
                    precision=self.precision, variant=self.variant, flow=self.flow, flow_weights=self.flow_weights,
                    flow_cache=self.flow_cache, **hyper_parameters)


def _network_options(
    model: Model = None, variant: Variant = None, weights: Weights = None, size: Size = None,
    precision: Precision = "float32", hyper: Set = None, flow: FlowFrom = None, flow_weights: FlowWeights = None,
    flow_cache: FlowCache = None, scales: Scales = "1", flip: Flip = False,
) -> NetworkOptions:
    return NetworkOptions(model, variant, weights, size, precision, tuple(hyper or ()), flow, flow_weights,
                          flow_cache and str(flow_cache), scales, flip)


def _clip_options(start: Start = None, end: End = None, every: Every = 1, on_error: OnError = "stop") -> "ClipOptions":
    from uvos_jax.video import ClipOptions

    return ClipOptions(start, end, every, on_error)


def _flow_clip_options(start: Start = None, end: End = None, every: Every = 1,
                       on_error: FlowOnError = "stop") -> "ClipOptions":
    return _clip_options(start, end, every, on_error)


def _prompt_options(
    first_mask: FirstMask = None, first_model: FirstModel = None, first_weights: FirstWeights = None,
    prune: Prune = None, prune_weights: PruneWeights = None,
) -> "PromptOptions":
    from uvos_jax.inference.prompt_options import PromptOptions

    return PromptOptions(first_mask, first_model, first_weights, prune, prune_weights)


Network = Annotated[NetworkOptions, Group(_network_options)]
Clip = Annotated["ClipOptions", Group(_clip_options)]
FlowClip = Annotated["ClipOptions", Group(_flow_clip_options)]
Prompts = Annotated["PromptOptions", Group(_prompt_options)]


def check_resume_or_overwrite(resume: bool, overwrite: bool) -> None:
    """Fails if both options are given.

    Raises:
        UserError: Both are given.
    """
    if resume and overwrite:
        raise UserError("--resume continues an earlier run and --overwrite replaces it. Give one of the two.")


def split_names(text: str | None) -> tuple[str, ...]:
    """Splits a list of names at its commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def default_workers() -> int:
    """Number of workers where ``--workers`` is not given."""
    from uvos_jax.evaluation.scoring import default_workers

    return default_workers()


def parse_scales(text: str) -> tuple[float, ...]:
    """Parses ``--scales``.

    Raises:
        UserError: It is not a list of numbers.
    """
    try:
        return tuple(float(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        raise UserError(f"--scales must be numbers separated by commas, such as 0.75,1,1.5, not '{text}'.") from None


def parse_size(text: str) -> tuple[int, int]:
    """Parses ``HEIGHTxWIDTH``.

    Raises:
        UserError: It has another form, or a side is not 16 to 99999.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 and int(part) >= 16
                                  for part in parts):
        raise UserError(f"--size must be HEIGHTxWIDTH, 16 to 99999 each, such as 480x854, not '{text:.40}'.")
    return int(parts[0]), int(parts[1])


def parse_hyper_parameters(entries: list[str] | tuple[str, ...] | None) -> dict[str, Any]:
    """Parses ``["net=anchor", "depths=[1,1,2,1]"]`` to keyword arguments; values are JSON where they can be.

    Raises:
        UserError: An entry has another form, or names what has an option of its own.
    """
    values = {}
    for entry in entries or []:
        name, equals, value = entry.partition("=")
        if name in _OWN_OPTIONS:
            raise UserError(f"--set cannot change '{name}'; use {_OWN_OPTIONS[name]}.")
        if not equals or not name.isidentifier():
            raise UserError(f"--set must be NAME=VALUE, such as net=anchor, not '{entry}'.")
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):
            values[name] = value
    return values
