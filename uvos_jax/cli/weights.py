"""``uvos convert-weights``, ``parity``, ``benchmark`` and ``models``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from uvos_jax.cli.app import app
from uvos_jax.cli.options import (
    Chunk,
    FlowFrom,
    FlowWeights,
    Model,
    Precision,
    Set,
    Variant,
    Weights,
    Workers,
    hyper_parameters_of,
    scales_of,
    size_of,
)
from uvos_jax.errors import UserError
from uvos_jax.progress import progress


@app.command("convert-weights", epilog="Example: uvos convert-weights --model adnet --variant official --from ad.pth"
                                       " --to weights/adnet")
def convert_weights(
    model: Annotated[str, typer.Option("--model", help="System, see 'uvos models'.")],
    source: Annotated[Path, typer.Option("--from", help="A published .pth, .safetensors or .npz.")],
    to: Annotated[Path, typer.Option("--to", help="The checkpoint directory to make.")],
    variant: Variant = None,
    hyper: Set = None,
) -> None:
    """Converts a published PyTorch checkpoint to a checkpoint directory; every key must fit."""
    from uvos_jax.inference.loading import from_published
    from uvos_jax.inference.segmenter import parameter_count
    from uvos_jax.weights import checkpoints

    if to.exists():
        raise UserError(f"'{to}' exists already; choose a directory that does not.")
    overrides = hyper_parameters_of(hyper) | ({"variant": variant} if variant else {})
    module, variables = from_published(model, source, **overrides)
    checkpoints.save(to, model, module, variables, origin=f"converted from {source.name}")
    print(f"{to}: {model}, variant {module.variant}, {parameter_count(variables):,} parameters")


@app.command(epilog="Example: uvos parity tests/golden/adnet_a.npz")
def parity(
    reference: Annotated[Path, typer.Argument(metavar="FILE.npz", help="Reference tensors.")],
    manifest: Annotated[Path | None, typer.Option("--manifest", help="Weight manifest; <system>_manifest.json beside"
                                                                     " the file if not given.")] = None,
    variant: Variant = None,
) -> None:
    """Compares every tensor of a reference file with this library's; exits with 1 unless all hold."""
    from uvos_jax.weights.parity import check

    def show(result):
        verdict = "ok" if result.ok else f"FAILS {result.note}".rstrip()
        print(f"{result.name:<24} {result.error:9.2e}  (at most {result.tolerance:.0e})  {verdict}", flush=True)

    results = check(reference, manifest, variant, show)
    held = sum(result.ok for result in results)
    print(f"{held} of {len(results)} tensors hold")
    if held < len(results):
        raise SystemExit(1)


@app.command(epilog="Example: uvos benchmark --model adnet --size 480x854")
def benchmark(
    model: Model = None,
    size: Annotated[str, typer.Option("--size", help="Size of the video, HEIGHTxWIDTH.")] = "480x854",
    variant: Variant = None,
    weights: Weights = "random",
    precision: Precision = "float32",
    chunk: Chunk = None,
    scales: Annotated[str, typer.Option("--scales", help="Scales to average.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored frames too.")] = False,
    hyper: Set = None,
    flow: FlowFrom = None,
    flow_weights: FlowWeights = None,
    objects: Annotated[int | None, typer.Option("--objects", min=1, max=80, help="Of a model that follows objects: how"
                                                " many it is given; 1 if not given.")] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Only list what the parts of the model take of a"
                                        " frame.")] = False,
    data: Annotated[str | None, typer.Option("--data", metavar="NAME", help="Measure how fast a converted dataset is"
                                             " read and augmented, and no model.")] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="With --data: where converted datasets"
                                                  " are.")] = None,
    split: Annotated[str, typer.Option("--split", help="With --data: its split.")] = "train",
    workers: Workers = None,
) -> None:
    """Measures seconds a frame, FLOPs and the share of this device's matrix product rate; or training data's rate."""
    if data:
        _benchmark_data(data, data_dir, split, workers)
        return
    import jax

    from uvos_jax.inference import load
    from uvos_jax.inference.profiling.benchmark import benchmark as measure

    native_size = size_of(size)
    segmenter = load(model, weights, scales=scales_of(scales), flip=flip, precision=precision, variant=variant,
                     flow=flow, flow_weights=flow_weights, **hyper_parameters_of(hyper))
    counted = segmenter.model.task == "prompted" or (parts and segmenter.model.task == "tracks")
    if objects and not counted:
        raise UserError(f"--objects is for models that follow given objects; {segmenter.name} finds its own.")
    network = segmenter.model.frame_size(native_size)
    device = jax.devices()[0]
    rows = [
        ("model", f"{segmenter.name} {segmenter.model.variant}, {precision}, network at {network[0]}x{network[1]}"),
        ("device", f"{device.device_kind} ({device.platform}) x {jax.device_count()}"),
        *([("objects", f"{objects or 1}, beside the background")] if counted else []),
    ]
    if parts:
        from uvos_jax.inference.profiling.components import time_components

        _print_rows(rows)
        _print_parts(time_components(segmenter, native_size, objects or 1))
        return
    with progress("benchmark", 5 if segmenter.flow else 4, "parts") as advance:
        def report(part):
            print(f"{part} ...", file=sys.stderr, flush=True)
            advance()

        result = measure(segmenter, native_size, chunk=chunk, objects=objects or 1, report=report)
    _print_rows([
        *rows,
        ("network alone", _seconds(result.network)),
        *([("optical flow", f"{_seconds(result.flow)}; {segmenter.flow.name}")] if result.flow else []),
        ("end to end", f"{_seconds(result.end_to_end)}; JPEG to masks and overlay on disk,"
                       f" references{' and flow' if result.flow else ''} included, over a video of"
                       f" {result.video_frames} frames"),
        ("arithmetic", f"{result.flops / 1e9:,.0f} GFLOP a frame"),
        ("share of peak", f"{result.share_of_peak:.0%} of a matrix product's {result.peak / 1e9:,.0f} GFLOP/s"),
        ("compilation", f"{result.compile_seconds:.1f} s, once per video size, first chunk included"),
    ])


@app.command(epilog="Example: uvos models")
def models() -> None:
    """Lists the systems: task, inputs, variants, parameters, weights."""
    from uvos_jax.inference.segmenter import parameter_count
    from uvos_jax.models import SYSTEMS, build, hyper_parameters
    from uvos_jax.weights.convert import expected_variables
    from uvos_jax.weights.packaged import about, packaged_names

    packaged = {weights: about(weights) for weights in packaged_names()}
    for name, row in SYSTEMS.items():
        lines = [("paper", row.paper), ("task", row.summary), ("inputs", row.needs),
                 ("variants", ", ".join(row.model.VARIANTS)),
                 *((key, ", ".join(values)) for key, values in row.model.CHOICES.items()),
                 ("options", ", ".join(f"{key}={value}" for key, value in hyper_parameters(build(name)).items())),
                 ("parameters", f"{parameter_count(expected_variables(build(name))):,}"),
                 *([("weights", _packaged(weights, row)) for weights, row in packaged.items() if row["model"] == name]
                   or [("weights", "none in the package; give --weights")])]
        print(name)
        for key, value in lines:
            print(f"  {key:<11} {value}")


def _packaged(weights: str, row: dict) -> str:
    from uvos_jax.inference.segmenter import parameter_count
    from uvos_jax.models import build
    from uvos_jax.weights.convert import expected_variables
    from uvos_jax.weights.packaged import DEFAULT

    count = parameter_count(expected_variables(build(row["model"], **row["hyper_parameters"])))
    chosen = "the default" if weights == DEFAULT else f"--weights {weights}"
    return f"in the package, {chosen}: {count:,} parameters, learned from {row['origin']}; {row['license']}"


def _benchmark_data(name: str, data_dir: Path | None, split: str, workers: int | None) -> None:
    from uvos_jax.data.examples.pipeline import default_workers
    from uvos_jax.data.examples.throughput import measure
    from uvos_jax.data.storage.store import open_store
    from uvos_jax.extras import require

    require("train", "benchmark --data", "tensorflow_datasets", "array_record")
    if data_dir is None:
        raise UserError("--data wants --data-dir too, the folder that 'uvos convert-data' wrote to.")
    store, workers = open_store(data_dir, name, split), workers or default_workers()
    print(f"{name} {split}: {len(store.videos)} sequences, {sum(video.length for video in store.videos)} frames; "
          f"{workers} workers, median batch")
    for rate in measure(store, workers):
        height, width = rate.size
        print(f"{rate.recipe:<10} {rate.examples_per_second:6.1f} examples/s of {rate.frames} frames {height}x{width}",
              flush=True)


def _print_rows(rows) -> None:
    for name, value in rows:
        print(f"{name:<14} {value}", flush=True)


def _print_parts(parts) -> None:
    whole = parts[-1].seconds
    print(f"{'part':<22} {'ms':>9} {'share':>6} {'GFLOP':>7}")
    for part in parts:
        flops = f"{part.flops / 1e9:7,.1f}" if part.flops else ""
        print(f"{part.name:<22} {1e3 * part.seconds:9,.1f} {part.seconds / whole:6.0%} {flops}".rstrip())


def _seconds(timing) -> str:
    return (f"{timing.median:.3g} s a frame (median; p95 {timing.p95:.3g} s; {1 / timing.median:.3g} frames/s;"
            f" {timing.repeats} repeats)")
