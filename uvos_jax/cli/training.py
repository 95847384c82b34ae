"""``uvos convert-data`` and ``uvos train``."""

from pathlib import Path
from typing import Annotated

import typer

from uvos_jax.cli.app import app
from uvos_jax.cli.options import Workers, cores
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.progress import progress


@app.command("convert-data", epilog="Example: uvos convert-data davis2016 --source DAVIS --data-dir data")
def convert_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="davis2016, davis2017, youtube_vos, youtube_vis, duts,"
                                        " msra10k, fbms59, youtube_objects, visal, segtrack_v2, synthetic or folder"
                                        " (your own); with a config, davis2017/semi or folder/MYNAME.")],
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Where converted datasets are kept.")],
    source: Annotated[Path | None, typer.Option("--source", help="The dataset as published, unpacked.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a converted dataset.")] = False,
    flow: Annotated[str | None, typer.Option("--flow", metavar="dis|raft", help="Compute the optical flow of every"
                                             " frame and store it, for models that want it.")] = None,
    flow_weights: Annotated[Path | None, typer.Option("--flow-weights", help="Weights of RAFT.")] = None,
    clips: Annotated[int | None, typer.Option("--clips", min=1, help="Clips that 'synthetic' has in its split train;"
                                              " 100 if not given.")] = None,
    workers: Workers = None,
) -> None:
    """Checks every file of a dataset and converts it for training."""
    from uvos_jax.data.storage.convert import convert

    method = _flow_method(flow, flow_weights)
    for row in convert(name, source, data_dir, overwrite, workers or cores(), progress, method, clips):
        for note in row.notes:
            print(f"{row.name}: {note}")
        for split, (videos, frames, labeled) in row.splits.items():
            print(f"{row.name} {split}: {videos} videos, {frames} frames, {labeled} of them with ground truth")
        print(f"{row.folder}")


def _flow_method(name: str | None, weights: Path | None):
    if name is None and weights is None:
        return None
    from uvos_jax.inference.loading import METHODS, load_flow

    if name not in METHODS:  # a folder of one's own has its flow within
        raise UserError(f"--flow is {' or '.join(METHODS)}, not {'left out' if name is None else repr(name)}."
                        f"{nearest_hint(name or '', METHODS)}")
    return load_flow(name, weights)


def _convert_own(source: str, data_dir: Path, settings: dict) -> Path:
    """Converts a folder of clips with flow, unless an earlier call of the same run has."""
    from uvos_jax.data.storage.convert import convert
    from uvos_jax.data.storage.records import PREFIX
    from uvos_jax.inference.flow.estimators import dis_estimator
    from uvos_jax.training.config import OWN_DATASET
    from uvos_jax.training.phases import phases
    from uvos_jax.training.setup import setup

    if not (data_dir / f"{PREFIX}{OWN_DATASET}").is_dir():
        if not Path(source).is_dir():
            raise UserError(f"There is no folder '{source}' with clips of your own (--config.data=folder:PATH).")
        for phase in phases(settings):
            setup(settings, phase)  # what cannot be trained is said before minutes of work
        for row in convert(OWN_DATASET, source, data_dir, workers=cores(), progress=progress, flow=dis_estimator):
            for split, (videos, frames, labeled) in row.splits.items():
                print(f"{source}, {split}: {videos} videos, {frames} frames, {labeled} of them with masks")
    return data_dir


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
             epilog="Example: uvos train --config adnet --workdir runs/adnet --data-dir data"
                    " --config.batch_size=16")
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option("--config", metavar="NAME[:PRESET]", help="A recipe or FILE.py[:PRESET];"
                                        " --config.key=value changes a value of it.")],
    workdir: Annotated[Path, typer.Option("--workdir", help="The run: log, checkpoints, weights. Given again, the run"
                                                            " goes on.")],
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Converted datasets, see 'uvos convert-data'.")
                        ] = None,
    profile: Annotated[int, typer.Option("--profile", min=0, help="Trace so many steps into WORKDIR/profile.")] = 0,
) -> None:
    """Trains a model; the same command goes on after any interruption."""
    from uvos_jax.atomic_io import check_output_folder
    from uvos_jax.extras import require
    from uvos_jax.training.config import load_config, own_folder

    require("train", "Training", "ml_collections", "optax")
    for argument in context.args:
        if not argument.startswith("--config."):
            raise UserError(f"'uvos train' has no option '{argument}'."
                            f"{nearest_hint(argument, ('--config', '--workdir', '--data-dir', '--profile'))}"
                            " Values of the configuration are changed by --config.key=value.")
    overrides = [argument.removeprefix("--config.") for argument in context.args]
    settings = load_config(config, overrides)
    check_output_folder(workdir)
    clips = own_folder(overrides)
    if clips is not None:
        if data_dir is not None:
            raise UserError("Clips of a folder are converted into the run's own folder: leave out --data-dir.")
        data_dir = _convert_own(clips, workdir / "data", settings)
    from uvos_jax.training.loop import train as run

    run(settings, workdir, data_dir, profile=profile)
