"""``uvos convert-data`` and ``uvos train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from uvos_jax.cli import options
from uvos_jax.cli.app import app
from uvos_jax.cli.console import Console, console
from uvos_jax.errors import UserError, nearest_hint, pluralize

if TYPE_CHECKING:
    from uvos_jax.inference.flow.estimators import FlowEstimator


@app.command("convert-data", epilog="Example: uvos convert-data davis2016 --source DAVIS --data-dir data")
def convert_data(
    name: Annotated[str, typer.Argument(
        metavar="NAME", help="davis2016, davis2017, youtube_vos, youtube_vis, duts, msra10k, fbms59, youtube_objects,"
                             " visal, segtrack_v2, synthetic, or folder for your own clips. With a configuration:"
                             " davis2017/semi or folder/MYNAME.")],
    data_dir: Annotated[Path, typer.Option(
        "--data-dir", metavar="DIR", rich_help_panel=options.OUTPUT, help="Folder of the converted datasets.")],
    source: Annotated[Path | None, typer.Option(
        "--source", metavar="DIR", rich_help_panel=options.INPUT, help="Dataset as published, unpacked.")] = None,
    clips: Annotated[int | None, typer.Option(
        "--clips", min=1, metavar="N", rich_help_panel=options.INPUT,
        help="Number of training clips of 'synthetic'. Default: 100.")] = None,
    flow: Annotated[Literal["dis", "raft"] | None, typer.Option(
        "--flow", rich_help_panel=options.OUTPUT, help="Compute and store optical flow, for models that need it.")
    ] = None,
    flow_weights: Annotated[Path | None, typer.Option(
        "--flow-weights", metavar="PATH", rich_help_panel=options.OUTPUT, help="Weights of RAFT.")] = None,
    overwrite: options.Overwrite = False,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Check a dataset and convert it for training."""
    from uvos_jax.data.storage.convert import convert

    with console(quiet, log_file) as out:
        estimator = _flow_estimator(flow, flow_weights)
        workers = workers or options.default_workers()
        for row in convert(name, source, data_dir, overwrite, workers, out.progress, estimator, clips):
            for note in row.notes:
                out.result(f"{row.name}: {note}")
            for split, (videos, frames, labeled) in row.splits.items():
                out.result(f"{row.name} {split}: {pluralize(videos, 'video')}, {pluralize(frames, 'frame')}, {labeled}"
                           " with ground truth")
            out.result(f"{row.folder}")


def _flow_estimator(name: str | None, weights: Path | None) -> "FlowEstimator | None":
    if name is None:
        if weights is not None:
            raise UserError("--flow-weights needs --flow raft.")
        return None
    from uvos_jax.inference.loading import load_flow

    return load_flow(name, weights)


def _convert_clips(source: str, data_dir: Path, settings: dict[str, Any], out: Console) -> Path:
    """Converts a folder of clips and computes their flow, unless an earlier call of the run did."""
    from uvos_jax.data.storage.convert import convert
    from uvos_jax.data.storage.records import PREFIX
    from uvos_jax.data.storage.source_identity import check_same_source, identify, write_identity
    from uvos_jax.inference.flow.estimators import dis_estimator
    from uvos_jax.training.config import OWN_DATASET
    from uvos_jax.training.phases import phases
    from uvos_jax.training.setup import setup

    identity = identify(source)  # before the conversion, so that a change during it is noticed later
    if (data_dir / f"{PREFIX}{OWN_DATASET}").is_dir():
        check_same_source(data_dir, identity)
    else:
        if not Path(source).is_dir():
            raise UserError(f"There is no folder '{source}'. Give a folder of clips: --config.data=folder:PATH.")
        for phase in phases(settings):
            setup(settings, phase)  # shows errors of the configuration before minutes of conversion
        for row in convert(OWN_DATASET, source, data_dir, workers=options.default_workers(), progress=out.progress,
                           flow=dis_estimator):
            for split, (videos, frames, labeled) in row.splits.items():
                out.result(f"{source}, {split}: {pluralize(videos, 'video')}, {pluralize(frames, 'frame')}, {labeled}"
                           " with masks")
        write_identity(data_dir, identity)
    return data_dir


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
             epilog="Example: uvos train --config adnet --workdir runs/adnet --data-dir data"
                    " --config.batch_size=16")
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(
        "--config", metavar="NAME[:PRESET]", help="Recipe or FILE.py[:PRESET]. --config.key=value overrides a value.")],
    workdir: Annotated[Path, typer.Option(
        "--workdir", metavar="DIR", help="Folder of the run: log, checkpoints, weights. Give it again to resume.")],
    data_dir: Annotated[Path | None, typer.Option(
        "--data-dir", metavar="DIR", help="Folder of the converted datasets, see 'uvos convert-data'.")] = None,
    profile: Annotated[int, typer.Option(
        "--profile", min=0, metavar="STEPS", rich_help_panel=options.RUN,
        help="Trace this many steps into WORKDIR/profile.")] = 0,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Train a model. The same command resumes an interrupted run."""
    from uvos_jax.atomic_io import check_output_folder
    from uvos_jax.extras import require

    with console(quiet, log_file) as out:
        require("train", "Training", "ml_collections", "optax")
        from uvos_jax.training.config import load_config, own_folder

        for argument in context.args:
            if not argument.startswith("--config."):
                known = ("--config", "--workdir", "--data-dir", "--profile", "--quiet", "--log-file")
                hint = nearest_hint(argument.partition("=")[0], known)
                raise UserError(f"'uvos train' has no option '{argument}'.{hint} Values of the"
                                " configuration are overridden by --config.key=value.")
        overrides = [argument.removeprefix("--config.") for argument in context.args]
        settings = load_config(config, overrides)
        check_output_folder(workdir)
        clips = own_folder(overrides)
        if clips is not None:
            if data_dir is not None:
                raise UserError("Your own clips are converted into the folder of the run. Leave out --data-dir.")
            data_dir = _convert_clips(clips, workdir / "data", settings, out)
        from uvos_jax.training.loop import train as run

        run(settings, workdir, data_dir, profile=profile, say=out.result, progress=out.progress)
