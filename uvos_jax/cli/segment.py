"""``uvos segment``."""

from pathlib import Path
from typing import Annotated

import typer

from uvos_jax.cli.app import app
from uvos_jax.cli.options import Chunk, Model, Precision, Set, Variant, Weights, hyper_parameters_of, scales_of
from uvos_jax.progress import progress


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
    segmenter = load(model, weights, scales=scales_of(scales), flip=flip, precision=precision, variant=variant,
                     **(hyper_parameters_of(hyper) | ({"short_side": size} if size else {})))
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
