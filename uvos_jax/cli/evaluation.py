"""``uvos evaluate`` and ``uvos compare``."""

from pathlib import Path
from typing import Annotated

import typer

from uvos_jax.cli import options
from uvos_jax.cli.app import app
from uvos_jax.cli.console import console
from uvos_jax.errors import UserError, pluralize

_Dataset = Annotated[Path, typer.Option(
    "--dataset", metavar="DIR", rich_help_panel=options.INPUT, help="Dataset as published, unpacked.")]
_Split = Annotated[str | None, typer.Option(
    "--split", metavar="NAME", rich_help_panel=options.INPUT, help="Split to score. Default: the protocol's own.")]
_Sequences = Annotated[str | None, typer.Option(
    "--sequences", metavar="LIST", rich_help_panel=options.INPUT,
    help="Score these sequences only, separated by commas.")]


@app.command(epilog="Example: uvos evaluate davis2016 --predictions results --dataset DAVIS --output scores")
def evaluate(
    protocol: Annotated[str, typer.Argument(
        metavar="PROTOCOL", help="davis2016, davis2017-semi, davis2017-unsup, youtube-vos, fbms-j, fbms-f,"
                                 " youtube-objects, saliency or youtube-vis.")],
    predictions: Annotated[Path, typer.Option(
        "--predictions", metavar="DIR", rich_help_panel=options.INPUT,
        help="Masks: <sequence>/<frame>.png, or results of 'uvos segment'. For youtube-vis a JSON file.")],
    dataset: _Dataset,
    split: _Split = None,
    sequences: _Sequences = None,
    output: Annotated[Path | None, typer.Option(
        "--output", metavar="DIR", rich_help_panel=options.OUTPUT,
        help="Folder of scores.json and CSV files. Default: uvos_output/<protocol>-<predictions>.")] = None,
    pack: Annotated[Path | None, typer.Option(
        "--pack", metavar="FILE.zip", rich_help_panel=options.OUTPUT,
        help="Pack a submission for the evaluation server instead of scoring.")] = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Score masks by the rules of a benchmark."""
    from uvos_jax.atomic_io import check_output_folder
    from uvos_jax.evaluation import report
    from uvos_jax.evaluation.protocols import evaluate as score
    from uvos_jax.evaluation.protocols import get_protocol
    from uvos_jax.evaluation.submission import pack as pack_results

    with console(quiet, log_file) as out:
        rule, split = get_protocol(protocol).rule, split or get_protocol(protocol).split
        shared = {"workers": workers or options.default_workers(),
                  "progress": lambda total: out.progress(protocol, total, "sequences")}
        if pack:
            if sequences or output:
                raise UserError("--pack packs the whole split and writes no scores. Leave out --sequences and"
                                " --output.")
            count = pack_results(protocol, predictions, dataset, split, pack, **shared)
            out.result(f"{pack}: {pluralize(count, 'mask')}, {protocol} {split}")
            return
        results = predictions.resolve()
        name = results.name if results.is_dir() else results.stem
        output = check_output_folder(output or Path("uvos_output", f"{protocol}-{name}"))
        result = score(protocol, predictions, dataset, split, sequences=options.split_names(sequences), **shared)
        out.result(f"{protocol}, {split}{f', only {sequences}' if sequences else ''}: {rule}.")
        out.result(report.format_result(result))
        written = report.write(result, output)
        out.result(f"{written[0].parent}: {', '.join(path.name for path in written)}")


@app.command(epilog="Example: uvos compare results_a results_b --dataset DAVIS --protocol davis2016")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Two or more folders of results.")],
    dataset: _Dataset,
    protocol: Annotated[str, typer.Option(
        "--protocol", metavar="NAME", rich_help_panel=options.INPUT, help="Protocol to score by.")] = "davis2016",
    split: _Split = None,
    sequences: _Sequences = None,
    output: Annotated[Path, typer.Option(
        "--output", metavar="DIR", rich_help_panel=options.OUTPUT, help="Folder of the table and the pictures.")
    ] = Path("uvos_output", "compare"),
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Compare result folders sequence by sequence."""
    from uvos_jax.atomic_io import check_output_folder
    from uvos_jax.evaluation import compare as comparing
    from uvos_jax.evaluation import comparison_report
    from uvos_jax.evaluation.report import format_table

    with console(quiet, log_file) as out:
        check_output_folder(output)
        comparison = comparing.compare(runs, dataset, protocol, split, options.split_names(sequences),
                                       workers or options.default_workers(),
                                       lambda total: out.progress(protocol, total, "sequences"))
        out.result(format_table(comparing.table(comparison)))
        written = comparison_report.write(comparison, output)
        out.result(f"{output}: {', '.join(path.name for path in written)}")
