"""``uvos evaluate`` and ``uvos compare``."""

from pathlib import Path
from typing import Annotated

import typer

from uvos_jax.cli.app import app
from uvos_jax.cli.options import Workers, cores, names
from uvos_jax.errors import UserError
from uvos_jax.progress import progress


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
    from uvos_jax.atomic_io import check_output_folder
    from uvos_jax.evaluation import report
    from uvos_jax.evaluation.protocols import evaluate as score
    from uvos_jax.evaluation.protocols import protocol as row
    from uvos_jax.evaluation.submission import pack as pack_results

    rule, split = row(protocol).rule, split or row(protocol).split
    shown = {"workers": workers or cores(), "progress": lambda total: progress(protocol, total, "sequences")}
    if pack:
        if sequences or output:
            raise UserError("--pack packs the whole split and writes no scores; leave --sequences and --output out.")
        count = pack_results(protocol, predictions, dataset, split, pack, **shown)
        print(f"{pack}: {count} masks, {protocol} {split}")
        return
    print(f"{protocol}, {split}{f', only {sequences}' if sequences else ''}: {rule}.")
    results = predictions.resolve()
    name = results.name if results.is_dir() else results.stem
    output = check_output_folder(output or Path("uvos_output", f"{protocol}-{name}"))
    result = score(protocol, predictions, dataset, split, sequences=names(sequences), **shown)
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
    from uvos_jax.atomic_io import check_output_folder
    from uvos_jax.evaluation import compare as comparing
    from uvos_jax.evaluation.report import table_text

    check_output_folder(output)
    comparison = comparing.compare(runs, dataset, protocol, split, names(sequences), workers or cores(),
                                   lambda total: progress(protocol, total, "sequences"))
    print(table_text(comparing.table(comparison)))
    written = comparing.write(comparison, output)
    print(f"{output}: {', '.join(path.name for path in written)}")
