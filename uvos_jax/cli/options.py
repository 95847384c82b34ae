"""Options that several commands share, and what their texts mean."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from uvos_jax.errors import UserError, nearest_hint

# What --set may not name, because load() or the command has a word of its own for it.
_OWN_OPTIONS = {"name": "--model", "model": "--model", "weights": "--weights", "variant": "--variant",
                "dtype": "--precision", "precision": "--precision", "scales": "--scales",
                "flip": "--flip", "flow": "--flow", "flow_weights": "--flow-weights", "flow_cache": "--flow-cache"}

Model = Annotated[str | None, typer.Option("--model", help="System, see 'uvos models'; a checkpoint directory knows.")]
Variant = Annotated[str | None, typer.Option("--variant", help="paper or official (as the published code).")]
Weights = Annotated[str | None, typer.Option("--weights", help="Checkpoint directory, .pth, .safetensors, .npz,"
                                                                " a name of weights in the package (see 'uvos"
                                                                " models'), or 'random' (untrained).")]
Precision = Annotated[str, typer.Option("--precision", help="float32 (reference) or bfloat16.")]
Chunk = Annotated[int | None, typer.Option("--chunk", min=1, help="Frames encoded together; bounds the memory.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE",
                                               help="An option of the model, see 'uvos models'; repeatable.")]
FlowFrom = Annotated[str | None, typer.Option("--flow", metavar="dis|raft|DIR", help="Where optical flow comes from,"
                                              " for models that want it: OpenCV's DIS (default), RAFT, or files named"
                                              " as the frames.")]
FlowWeights = Annotated[str | None, typer.Option("--flow-weights", help="Of RAFT: a published .pth, or as --weights.")]
FlowCache = Annotated[Path | None, typer.Option("--flow-cache", metavar="DIR", help="Keep computed flow there for the"
                                                " next time.")]
FirstMask = Annotated[str | None, typer.Option("--first-mask", metavar="PNG|DIR|auto", help="What a model follows that"
                                               " follows objects: a mask of the first frame, a folder of masks named as"
                                               " frames, or what an unsupervised model finds.")]
FirstModel = Annotated[str | None, typer.Option("--first-model", help="For --first-mask auto; the default network if"
                                                " not given.")]
FirstWeights = Annotated[str | None, typer.Option("--first-weights", help="Of --first-model, as --weights.")]
Prune = Annotated[str | None, typer.Option("--prune", metavar="dtnet|JSON|DIR", help="Take instances that are not the"
                                           " main object out of the foreground: those of D-Net, of a JSON file (COCO's"
                                           " detections, objects.json), or of a folder with one called as the video.")]
PruneWeights = Annotated[str | None, typer.Option("--prune-weights", help="Of dtnet for --prune, as --weights.")]
Start = Annotated[str | None, typer.Option("--start", help="First frame, as a time such as 90, 12.5s or 1:05.")]
End = Annotated[str | None, typer.Option("--end", help="Time of the first frame that is left out.")]
Every = Annotated[int, typer.Option("--every", min=1, metavar="N", help="Every Nth frame only.")]
OnError = Annotated[str, typer.Option("--on-error", metavar="stop|skip", help="At a frame that cannot be decoded: stop,"
                                      " or go on as if it were the one before.")]

Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Workers; one for each core if not given.")]


def check_on_error(text: str) -> None:
    known = ("stop", "skip")
    if text not in known:
        raise UserError(f"--on-error is stop or skip, not '{text}'.{nearest_hint(text, known)}")


def names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def cores() -> int:
    from uvos_jax.evaluation.scoring import default_workers

    return default_workers()


def scales_of(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        raise UserError(f"--scales wants numbers with commas between, such as 0.75,1,1.5; got '{text}'.") from None


def size_of(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 and int(part) >= 16
                                  for part in parts):
        raise UserError(f"--size wants HEIGHTxWIDTH, 16 to 99999 each, such as 480x854; got '{text:.40}'.")
    return int(parts[0]), int(parts[1])


def hyper_parameters_of(entries: list[str] | None) -> dict[str, Any]:
    """``["net=anchor", "depths=[1,1,2,1]"]`` to keyword arguments; values are JSON where they can be."""
    values = {}
    for entry in entries or []:
        name, equals, value = entry.partition("=")
        if name in _OWN_OPTIONS:
            raise UserError(f"--set does not change '{name}': it has an option of its own, {_OWN_OPTIONS[name]}.")
        if not equals or not name.isidentifier():
            raise UserError(f"--set wants NAME=VALUE, such as net=anchor; got '{entry}'.")
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):
            values[name] = value
    return values
