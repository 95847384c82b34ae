"""The command line: ``uvos``, or ``python -m uvos_jax``.

Whatever a command needs is imported inside it, so that ``--help`` and a mistyped option answer at once.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.progress import progress

# What --set may not name, because load() or the command has a word of its own for it.
_OWN_OPTIONS = {"name": "--model", "model": "--model", "weights": "--weights", "variant": "--variant",
                "dtype": "--precision", "precision": "--precision", "scales": "--scales",
                "flip": "--flip"}
_INTERRUPTED = 130  # what Typer makes of Ctrl-C

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Video object segmentation in JAX: from a video to masks in one command.")

Model = Annotated[str | None, typer.Option("--model", help="System, see 'uvos models'; a checkpoint directory knows.")]
Variant = Annotated[str | None, typer.Option("--variant", help="paper or official (as the published code).")]
Weights = Annotated[str | None, typer.Option("--weights", help="Checkpoint directory, .pth, .safetensors, .npz, or"
                                                                " 'random' (untrained).")]
Precision = Annotated[str, typer.Option("--precision", help="float32 (reference) or bfloat16.")]
Chunk = Annotated[int | None, typer.Option("--chunk", min=1, help="Frames encoded together; bounds the memory.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE",
                                               help="An option of the model, see 'uvos models'; repeatable.")]

Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; one for each core if not given.")]


@app.command(epilog="Example: uvos segment my.mp4 --model adnet --variant official --weights ad.pth")
def segment(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A video file, a folder of frames or a quoted glob.")],
    model: Model = None,
    variant: Variant = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option("--output", help="Results; uvos_output/<input> if not given.")] = None,
    scales: Annotated[str, typer.Option("--scales", help="Scales to average, e.g. 0.75,1,1.5.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored frames too.")] = False,
    size: Annotated[int | None, typer.Option("--size", min=17, help="The network's shorter side in pixels.")] = None,
    precision: Precision = "float32",
    chunk: Chunk = None,
    hyper: Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are in the way.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Also draw pixel matches and embedding drift.")] = False,
) -> None:
    """Segments a video: masks/*.png (indexed), overlay.mp4 and run.json."""
    from uvos_jax.inference import load
    from uvos_jax.inference.figures import check_figures, write_figures
    from uvos_jax.inference.job import check_output, segment_to_folder
    from uvos_jax.video import open_source

    options = {"input": source, "model": model, "variant": variant, "weights": weights, "scales": scales, "flip": flip,
               "size": size, "precision": precision, "chunk": chunk, "set": hyper or [], "debug": debug}
    video = open_source(source)
    output = check_output(output or Path("uvos_output", video.name), overwrite, video)
    segmenter = load(model, weights, scales=_scales(scales), flip=flip, precision=precision, variant=variant,
                     **(_hyper(hyper) | ({"short_side": size} if size else {})))
    if debug:
        check_figures(segmenter, video)
    with progress(f"{segmenter.name} on {video.name} (the first frames compile)", video.length) as advance:
        run = segment_to_folder(segmenter, video, output, chunk=chunk, overwrite=overwrite, options=options,
                                on_frame=advance)
    frames = run["source"]["frames"]
    made = [f"{frames} masks", "overlay.mp4", "run.json"]
    if debug:
        made += [str(path.relative_to(output)) for path in write_figures(segmenter, video, output, frames)]
    print(f"{output}: {', '.join(made)}; {frames / run['seconds']:.3g} frames/s")


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
    from uvos_jax.inference.segmenter import parameter_count
    from uvos_jax.models import build
    from uvos_jax.weights import checkpoints, from_torch, read_state_dict

    overrides = _hyper(hyper) | ({"variant": variant} if variant else {})
    module = build(model, **overrides)
    if to.exists():
        raise UserError(f"'{to}' exists already; choose a directory that does not.")
    variables = from_torch(model, read_state_dict(source), **overrides)
    checkpoints.save(to, model, module, variables, origin=f"converted from {source.name}")
    print(f"{to}: {model}, variant {module.variant}, {parameter_count(variables):,} parameters")


@app.command("convert-data", epilog="Example: uvos convert-data davis2016 --source DAVIS --data-dir data")
def convert_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="davis2016, davis2017, youtube_vos, youtube_vis, duts,"
                                        " msra10k, fbms59, youtube_objects, visal, segtrack_v2, synthetic or folder"
                                        " (your own); with a config, davis2017/semi or folder/MYNAME.")],
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Where converted datasets are kept.")],
    source: Annotated[Path | None, typer.Option("--source", help="The dataset as published, unpacked.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a converted dataset.")] = False,
    workers: Workers = None,
) -> None:
    """Checks every file of a dataset and converts it for training."""
    from uvos_jax.data.convert import convert

    for row in convert(name, source, data_dir, overwrite, workers or _cores(), progress):
        for note in row.notes:
            print(f"{row.name}: {note}")
        for split, (videos, frames, labelled) in row.splits.items():
            print(f"{row.name} {split}: {videos} videos, {frames} frames, {labelled} of them with ground truth")
        print(f"{row.folder}")


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
    from uvos_jax.inference.benchmark import benchmark as measure

    native_size = _size(size)
    segmenter = load(model, weights, scales=_scales(scales), flip=flip, precision=precision, variant=variant,
                     **_hyper(hyper))
    with progress("benchmark", 4, "parts") as advance:
        def report(part):
            print(f"{part} ...", file=sys.stderr, flush=True)
            advance()

        result = measure(segmenter, native_size, chunk=chunk, report=report)
    network = segmenter.model.frame_size(native_size)
    device = jax.devices()[0]
    rows = [
        ("model", f"{segmenter.name} {segmenter.model.variant}, {precision}, network at {network[0]}x{network[1]}"),
        ("device", f"{device.device_kind} ({device.platform}) x {jax.device_count()}"),
        ("network alone", _seconds(result.network)),
        ("end to end", f"{_seconds(result.end_to_end)}; JPEG to masks and overlay on disk, references included, over a"
                       f" video of {result.video_frames} frames"),
        ("arithmetic", f"{result.flops / 1e9:,.0f} GFLOP a frame"),
        ("share of peak", f"{result.share_of_peak:.0%} of a matrix product's {result.peak / 1e9:,.0f} GFLOP/s"),
        ("compilation", f"{result.compile_seconds:.1f} s, once per video size, first chunk included"),
    ]
    for name, value in rows:
        print(f"{name:<14} {value}")


@app.command(epilog="Example: uvos evaluate davis2016 --predictions results --dataset DAVIS --output scores")
def evaluate(
    protocol: Annotated[str, typer.Argument(metavar="PROTOCOL", help="davis2016, davis2017-semi, davis2017-unsup,"
                                            " youtube-vos, fbms-j, fbms-f, youtube-objects, saliency or youtube-vis.")],
    predictions: Annotated[Path, typer.Option("--predictions", help="Masks, <sequence>/<frame>.png or as 'uvos segment'"
                                              " leaves them; for youtube-vis a JSON file.")],
    dataset: Annotated[Path, typer.Option("--dataset", help="The dataset as published.")],
    split: Annotated[str | None, typer.Option("--split", help="The protocol's usual one if not given.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for scores.json and the CSV files;"
                                                " uvos_output/<protocol>-<predictions> if not given.")] = None,
    sequences: Annotated[str | None, typer.Option("--sequences", help="Only these, with commas between.")] = None,
    pack: Annotated[Path | None, typer.Option("--pack", metavar="FILE.zip", help="Pack the results for the server,"
                                              " instead of scoring them.")] = None,
    workers: Workers = None,
) -> None:
    """Scores masks by the rules of a benchmark: a table, scores.json and CSV files."""
    from uvos_jax.evaluation import report
    from uvos_jax.evaluation.pack import pack as pack_results
    from uvos_jax.evaluation.protocols import evaluate as score
    from uvos_jax.evaluation.protocols import protocol as row
    from uvos_jax.video.files import check_folder

    rule, split = row(protocol).rule, split or row(protocol).split
    shown = {"workers": workers or _cores(), "progress": lambda total: progress(protocol, total, "sequences")}
    if pack:
        if sequences or output:
            raise UserError("--pack packs the whole split and writes no scores; leave --sequences and --output out.")
        count = pack_results(protocol, predictions, dataset, split, pack, **shown)
        print(f"{pack}: {count} masks, {protocol} {split}")
        return
    print(f"{protocol}, {split}{f', only {sequences}' if sequences else ''}: {rule}.")
    results = predictions.resolve()
    name = results.name if results.is_dir() else results.stem
    output = check_folder(output or Path("uvos_output", f"{protocol}-{name}"))
    result = score(protocol, predictions, dataset, split, sequences=_names(sequences), **shown)
    print(report.screen(result))
    written = report.write(result, output)
    print(f"{written[0].parent}: {', '.join(path.name for path in written)}")


@app.command(epilog="Example: uvos compare results_a results_b --dataset DAVIS --protocol davis2016")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B ...", help="Two or more folders of results.")],
    dataset: Annotated[Path, typer.Option("--dataset", help="The dataset as published.")],
    protocol: Annotated[str, typer.Option("--protocol", help="By whose rules.")] = "davis2016",
    split: Annotated[str | None, typer.Option("--split", help="The protocol's usual one if not given.")] = None,
    output: Annotated[Path, typer.Option("--output", help="Folder for the table and the pictures.")] = Path(
        "uvos_output", "compare"),
    sequences: Annotated[str | None, typer.Option("--sequences", help="Only these, with commas between.")] = None,
    workers: Workers = None,
) -> None:
    """Compares result folders sequence by sequence: a table, a bar picture and the worst frames."""
    from uvos_jax.evaluation import compare as comparing
    from uvos_jax.evaluation.report import table_text
    from uvos_jax.video.files import check_folder

    check_folder(output)
    comparison = comparing.compare(runs, dataset, protocol, split, _names(sequences), workers or _cores(),
                                   lambda total: progress(protocol, total, "sequences"))
    print(table_text(comparing.table(comparison)))
    written = comparing.write(comparison, output)
    print(f"{output}: {', '.join(path.name for path in written)}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
             epilog="Example: uvos train --config configs/adnet.py --workdir runs/adnet --data-dir data"
                    " --config.batch_size=16")
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option("--config", metavar="FILE.py[:PRESET]", help="The configuration;"
                                        " --config.key=value changes a value of it.")],
    workdir: Annotated[Path, typer.Option("--workdir", help="The run: log, checkpoints, weights. Given again, the run"
                                                            " goes on.")],
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Converted datasets, see 'uvos convert-data'.")
                        ] = None,
    profile: Annotated[int, typer.Option("--profile", min=0, help="Trace so many steps into WORKDIR/profile.")] = 0,
) -> None:
    """Trains a model; the same command goes on after any interruption."""
    from uvos_jax.training.config import load_config
    from uvos_jax.video.files import check_folder

    for argument in context.args:
        if not argument.startswith("--config."):
            raise UserError(f"'uvos train' has no option '{argument}'."
                            f"{nearest_hint(argument, ('--config', '--workdir', '--data-dir', '--profile'))}"
                            " Values of the configuration are changed by --config.key=value.")
    settings = load_config(config, [argument.removeprefix("--config.") for argument in context.args])
    check_folder(workdir)
    from uvos_jax.training.loop import Stopped
    from uvos_jax.training.loop import train as run

    try:
        run(settings, workdir, data_dir, profile=profile)
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        raise SystemExit(stopped.code) from None


@app.command(epilog="Example: uvos models")
def models() -> None:
    """Lists the systems: task, inputs, variants, parameters, weights."""
    from uvos_jax.inference.segmenter import parameter_count
    from uvos_jax.models import SYSTEMS, build, hyper_parameters
    from uvos_jax.weights.convert import expected_variables

    for name, row in SYSTEMS.items():
        lines = [("paper", row.paper), ("task", row.task), ("inputs", row.inputs),
                 ("variants", ", ".join(row.variants)),
                 *((key, ", ".join(values)) for key, values in row.choices.items()),
                 ("options", ", ".join(f"{key}={value}" for key, value in hyper_parameters(build(name)).items())),
                 ("parameters", f"{parameter_count(expected_variables(build(name))):,}"),
                 ("weights", "none in the package; give --weights")]
        print(name)
        for key, value in lines:
            print(f"  {key:<11} {value}")


def main() -> None:
    """Runs the command line; whatever the user got wrong becomes one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show is no reason to fail
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # a file or folder that the operating system does not let us use
        if error.filename is None:
            raise
        _fail(f"'{error.filename}' cannot be used: {error.strerror}.")
    except Exception as error:
        # Typer's own complaints about the command line, known by the method they share.
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message())
    if code == _INTERRUPTED:
        print("Interrupted; what was written is kept.", file=sys.stderr, flush=True)
        # Ctrl-C may come while XLA compiles; Python's own way out would tear down what it still uses, and crash.
        os._exit(_INTERRUPTED)
    raise SystemExit(code or 0)


def _fail(sentence: str) -> None:
    print(f"Error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(2)


def _benchmark_data(name: str, data_dir: Path | None, split: str, workers: int | None) -> None:
    from uvos_jax.data.benchmark import measure
    from uvos_jax.data.pipeline import default_workers
    from uvos_jax.data.store import open_store

    if data_dir is None:
        raise UserError("--data wants --data-dir too, the folder that 'uvos convert-data' wrote to.")
    store, workers = open_store(data_dir, name, split), workers or default_workers()
    print(f"{name} {split}: {len(store.videos)} sequences, {sum(video.length for video in store.videos)} frames; "
          f"{workers} workers, median batch")
    for rate in measure(store, workers):
        height, width = rate.size
        print(f"{rate.recipe:<10} {rate.examples_per_second:6.1f} examples/s of {rate.frames} frames {height}x{width}",
              flush=True)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _cores() -> int:
    from uvos_jax.evaluation.run import default_workers

    return default_workers()


def _seconds(timing) -> str:
    return (f"{timing.median:.3g} s a frame (median; p95 {timing.p95:.3g} s; {1 / timing.median:.3g} frames/s;"
            f" {timing.repeats} repeats)")


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        raise UserError(f"--scales wants numbers with commas between, such as 0.75,1,1.5; got '{text}'.") from None


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) >= 16 for part in parts):
        raise UserError(f"--size wants HEIGHTxWIDTH, at least 16 each, such as 480x854; got '{text}'.")
    return int(parts[0]), int(parts[1])


def _hyper(entries: list[str] | None) -> dict[str, Any]:
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
        except ValueError:
            values[name] = value
    return values
