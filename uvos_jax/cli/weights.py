"""``uvos convert-weights``, ``parity``, ``benchmark`` and ``models``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from uvos_jax.cli import options
from uvos_jax.cli.app import app
from uvos_jax.cli.console import Console, console
from uvos_jax.cli.groups import Group, grouped
from uvos_jax.errors import UserError, pluralize


@app.command("convert-weights", epilog="Example: uvos convert-weights --model adnet --variant official --from ad.pth"
                                       " --to weights/adnet")
def convert_weights(
    model: Annotated[str, typer.Option(
        "--model", metavar="NAME", rich_help_panel=options.MODEL, help="System, see 'uvos models'.")],
    source: Annotated[Path, typer.Option(
        "--from", metavar="FILE", rich_help_panel=options.INPUT, help="Published .pth, .safetensors or .npz file.")],
    to: Annotated[Path, typer.Option(
        "--to", metavar="DIR", rich_help_panel=options.OUTPUT, help="Checkpoint directory to create.")],
    variant: options.ConvertedVariant = None,
    hyper: options.Set = None,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Convert a PyTorch checkpoint; every key must match."""
    from uvos_jax.inference.loading import from_published
    from uvos_jax.inference.segmenter import parameter_count
    from uvos_jax.weights import checkpoints

    with console(quiet, log_file) as out:
        if to.exists():
            raise UserError(f"'{to}' already exists. Choose another directory.")
        overrides = options.parse_hyper_parameters(hyper) | ({"variant": variant} if variant else {})
        module, variables = from_published(model, source, **overrides)
        checkpoints.save(to, model, module, variables, origin=f"converted from {source.name}")
        out.result(f"{to}: {model}, variant {module.variant}, {parameter_count(variables):,} parameters")


@app.command(epilog="Example, in a checkout of the repository: uvos parity tests/golden/adnet_a.npz")
def parity(
    reference: Annotated[Path, typer.Argument(metavar="FILE.npz", help="File of reference tensors.")],
    manifest: Annotated[Path | None, typer.Option(
        "--manifest", metavar="FILE.json", rich_help_panel=options.INPUT,
        help="Manifest of the weights. Default: <system>_manifest.json beside the file.")] = None,
    variant: options.ReferenceVariant = None,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Compare all tensors with a reference file.

    The exit code is 1 if a tensor differs by more than its tolerance.
    """
    from uvos_jax.weights.parity import check

    with console(quiet, log_file) as out:
        def show(result):
            verdict = "ok" if result.ok else f"FAILS {result.note}".rstrip()
            out.result(f"{result.name:<24} {result.error:9.2e}  (at most {result.tolerance:.0e})  {verdict}")

        results = check(reference, manifest, variant, show)
        matching = sum(result.ok for result in results)
        out.result(f"{matching} of {len(results)} tensors match")
        if matching < len(results):
            raise SystemExit(1)


@dataclasses.dataclass(frozen=True)
class _DataOptions:
    """The dataset whose input pipeline is measured; fields are the options of the same names."""

    name: str | None
    data_dir: Path | None
    split: str
    workers: int | None


def _data_options(
    data: Annotated[str | None, typer.Option(
        "--data", metavar="NAME", rich_help_panel="Training data",
        help="Measure reading and augmentation of a converted dataset instead of a model.")] = None,
    data_dir: Annotated[Path | None, typer.Option(
        "--data-dir", metavar="DIR", rich_help_panel="Training data", help="Folder of the converted datasets.")
    ] = None,
    split: Annotated[str, typer.Option(
        "--split", metavar="NAME", rich_help_panel="Training data", help="Split of the dataset.")] = "train",
    workers: options.Workers = None,
) -> _DataOptions:
    return _DataOptions(data, data_dir, split, workers)


@app.command(epilog="Example: uvos benchmark --model adnet --size 480x854")
@grouped
def benchmark(
    model: options.Model = None,
    size: Annotated[str, typer.Option(
        "--size", metavar="HxW", rich_help_panel=options.INPUT, help="Height and width of the video.")] = "480x854",
    variant: options.Variant = None,
    weights: options.BenchmarkWeights = "random",
    precision: options.Precision = "float32",
    chunk: options.Chunk = None,
    scales: options.Scales = "1",
    flip: options.Flip = False,
    hyper: options.Set = None,
    flow: options.FlowFrom = None,
    flow_weights: options.FlowWeights = None,
    objects: Annotated[int | None, typer.Option(
        "--objects", min=1, max=80, metavar="N", rich_help_panel=options.INPUT,
        help="Number of given objects, for semi-supervised models. Default: 1.")] = None,
    parts: Annotated[bool, typer.Option(
        "--parts", rich_help_panel=options.RUN, help="Print the time per frame of each model component instead.")
    ] = False,
    data: Annotated[_DataOptions, Group(_data_options)] = None,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Measure the speed of a model or of a data pipeline."""
    with console(quiet, log_file) as out:
        if data.name:
            _benchmark_data(data, out)
            return
        network = options.NetworkOptions(model, variant, weights, None, precision, tuple(hyper or ()), flow,
                                         flow_weights, None, scales, flip)
        _benchmark_model(network, options.parse_size(size), chunk, objects, parts, out)


def _benchmark_model(network: options.NetworkOptions, native_size: tuple[int, int], chunk: int | None,
                     objects: int | None, parts: bool, out: Console) -> None:
    import jax

    from uvos_jax.inference.profiling.benchmark import benchmark as measure

    segmenter = network.load()
    counted = segmenter.model.task == "prompted" or (parts and segmenter.model.task == "tracks")
    if objects and not counted:
        raise UserError(f"--objects is for semi-supervised models; {segmenter.name} takes no prompts. Leave it out.")
    height, width = segmenter.model.frame_size(native_size)
    device = jax.devices()[0]
    rows = [
        ("model", f"{segmenter.name} {segmenter.model.variant}, {network.precision}, network at {height}x{width}"),
        ("device", f"{device.device_kind} ({device.platform}) x {jax.device_count()}"),
        *([("objects", f"{objects or 1} and the background")] if counted else []),
    ]
    if parts:
        from uvos_jax.inference.profiling.components import time_components

        out.result(_rows_text(rows))
        out.result(_components_text(time_components(segmenter, native_size, objects or 1)))
        return

    result = measure(segmenter, native_size, chunk=chunk, objects=objects or 1,
                     report=lambda stage: out.note(f"{stage} ..."))
    out.result(_rows_text([
        *rows,
        ("network alone", _seconds(result.network)),
        *([("optical flow", f"{_seconds(result.flow)}; {segmenter.flow.name}")] if result.flow else []),
        ("end to end", f"{_seconds(result.end_to_end)}; JPEG to masks and overlay on disk,"
                       f" references{' and flow' if result.flow else ''} included, over a video of"
                       f" {result.video_frames} frames"),
        ("arithmetic", f"{result.flops / 1e9:,.0f} GFLOP per frame"),
        ("share of peak", f"{result.share_of_peak:.0%} of a matrix product's {result.peak / 1e9:,.0f} GFLOP/s"),
        ("compilation", f"{result.compile_seconds:.1f} s, once per video size, first chunk included"),
    ]))


@app.command(epilog="Example: uvos models")
def models() -> None:
    """List models, variants and packaged weights."""
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
                   or [("weights", "none packaged; give --weights")])]
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
    return f"packaged, {chosen}: {count:,} parameters, trained on {row['origin']}; {row['license']}"


def _benchmark_data(data: _DataOptions, out: Console) -> None:
    from uvos_jax.data.examples.pipeline import default_workers
    from uvos_jax.data.examples.throughput import measure_throughput
    from uvos_jax.data.storage.store import open_store
    from uvos_jax.extras import require

    require("train", "benchmark --data", "tensorflow_datasets", "array_record")
    if data.data_dir is None:
        raise UserError("--data needs --data-dir, the folder that 'uvos convert-data' wrote to.")
    store, workers = open_store(data.data_dir, data.name, data.split), data.workers or default_workers()
    out.result(f"{data.name} {data.split}: {pluralize(len(store.videos), 'sequence')},"
               f" {pluralize(sum(video.length for video in store.videos), 'frame')};"
               f" {pluralize(workers, 'worker')}, median batch")
    for rate in measure_throughput(store, workers):
        height, width = rate.size
        out.result(f"{rate.recipe:<10} {rate.examples_per_second:6.1f} examples/s of {pluralize(rate.frames, 'frame')}"
                   f" {height}x{width}")


def _rows_text(rows) -> str:
    return "\n".join(f"{name:<14} {value}" for name, value in rows)


def _components_text(components) -> str:
    whole = components[-1].seconds
    lines = [f"{'component':<22} {'ms':>9} {'share':>6} {'GFLOP':>7}"]
    for row in components:
        flops = f"{row.flops / 1e9:7,.1f}" if row.flops else ""
        lines.append(f"{row.name:<22} {1e3 * row.seconds:9,.1f} {row.seconds / whole:6.0%} {flops}".rstrip())
    return "\n".join(lines)


def _seconds(timing) -> str:
    return (f"{timing.median:.3g} s per frame (median; p95 {timing.p95:.3g} s; {1 / timing.median:.3g} frames/s;"
            f" {timing.repeats} repeats)")
