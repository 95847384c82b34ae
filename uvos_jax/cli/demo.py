"""``uvos demo``."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uvos_jax.cli import options
from uvos_jax.cli.app import app
from uvos_jax.cli.console import Console, console
from uvos_jax.errors import UserError, pluralize
from uvos_jax.interrupts import graceful_stop

if TYPE_CHECKING:
    import numpy as np

# Seeds of demo clips. The synthetic training clips of convert-data have smaller seeds.
SEEDS = range(2_000_000, 2_000_010)
# The first of them whose object covers a mean share of the frame within SHARE.
SEED = 2_000_001
SHARE = (0.05, 0.25)
LENGTH = 40
SIZE = (270, 480)
_FILES = ("frames", "truth", "scores.json", "demo.jpg")  # beside the results of 'uvos segment'
_COLUMNS = 4  # of the contact sheet
_WIDTH = 320  # of a column, in pixels


@app.command(epilog="Example: uvos demo my.mp4 --output seen")
def demo(
    videos: Annotated[list[str] | None, typer.Argument(
        metavar="VIDEO", help="Your own videos, segmented after the generated clip.")] = None,
    output: Annotated[Path, typer.Option(
        "--output", metavar="DIR", rich_help_panel=options.OUTPUT, help="Folder of the results.")
    ] = Path("uvos_output", "demo"),
    seed: Annotated[int, typer.Option(
        "--seed", min=0, metavar="N", rich_help_panel=options.INPUT, help="Seed of the generated clip.")] = SEED,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    log_file: options.LogFile = None,
) -> None:
    """Segment and score a generated clip."""
    with console(quiet, log_file) as out:
        options.check_resume_or_overwrite(resume, overwrite)
        _demo(videos, output, seed, resume, overwrite, out)


def _demo(videos: list[str] | None, output: Path, seed: int, resume: bool, overwrite: bool, out: Console) -> None:
    from uvos_jax.inference import load
    from uvos_jax.inference.jobs.batch import assign_folders
    from uvos_jax.inference.jobs.segment import check_output, segment_to_folder
    from uvos_jax.inference.segmenter import parameter_count
    from uvos_jax.video import list_sources, open_source
    from uvos_jax.video.streams import public_url
    from uvos_jax.weights.packaged import about

    started = time.perf_counter()
    folder = output / "generated"
    items = assign_folders(list_sources(videos), output) if videos else []
    sources = [open_source(item.source) for item in items]
    for item, source in zip(items, sources, strict=True):
        if item.output == folder:
            raise UserError(f"'{item.source}' and the generated clip would share the folder '{folder}'. Use 'uvos"
                            " segment' for this video.")
        check_output(item.output, overwrite, source, resume)
    frames, truth = generated_clip(seed)
    check_output(folder, overwrite, resume=resume)
    _check_files(folder, frames, overwrite)

    segmenter = load()
    out.result(f"Network: {segmenter.name}, {parameter_count(segmenter.variables):,} parameters, trained on"
               f" {about()['origin']}")
    with graceful_stop() as stop:
        def segment(source, folder, about_run):
            with out.progress(str(folder), source.length) as advance:
                run = segment_to_folder(segmenter, source, folder, overwrite=overwrite, resume=resume, stop=stop,
                                        on_start=lambda: advance.status("compiling, first frame"), on_frame=advance,
                                        options=about_run)
            out.result(f"{folder}: {pluralize(run['source']['frames'], 'mask')}, overlay.mp4, run.json")

        write_clip(folder, frames, truth)
        segment(open_source(folder / "frames"), folder, {"seed": seed})
        _report_scores(folder, f"{segmenter.name}, packaged", seed, truth, out)
        for item, source in zip(items, sources, strict=True):
            segment(source, item.output, {"input": public_url(item.source)})
    out.result(f"\nFinished in {time.perf_counter() - started:.0f} s. Look at {folder / 'demo.jpg'} and"
               f" {folder / 'overlay.mp4'}. Next: uvos segment my.mp4")


def _report_scores(folder: Path, network: str, seed: int, truth: "np.ndarray", out: Console) -> None:
    """Scores the written masks beside the baselines, prints a table, and draws the contact sheet."""
    import numpy as np

    from uvos_jax.atomic_io import atomic_write
    from uvos_jax.evaluation.report import format_table
    from uvos_jax.video import open_source, read_mask, write_json
    from uvos_jax.weights.packaged import about

    masks = np.stack([read_mask(folder / "masks" / f"{t:05d}.png", numbered=True) > 0 for t in range(len(truth))])
    scores = {name: score(row, truth) for name, row in ({network: masks} | baselines(truth)).items()}
    write_json(folder / "scores.json", {"seed": seed, "frames": len(truth), "scores": scores})
    frames = [frame.image for frame in open_source(folder / "frames")]
    atomic_write(folder / "demo.jpg", contact_sheet(frames, truth, masks))
    out.result(f"{folder}: frames, truth (ground-truth masks), scores.json, demo.jpg (all side by side)")
    out.result(f"\nGenerated clip, {truth.mean():.0%} foreground; scores exclude the first and the last frame:")
    out.result(format_table([{"": name} | row for name, row in scores.items()], decimals=3))
    mean = about()["scores"].get("generated clips")
    if mean:
        out.result(f"Mean of the packaged network over {len(SEEDS)} such clips (--seed {SEEDS[0]} to {SEEDS[-1]}):"
                   f" J {mean['J']:.3f}, F {mean['F']:.3f}")


def generated_clip(seed: int) -> tuple["np.ndarray", "np.ndarray"]:
    """Returns a clip of one moving object: frames uint8 [t, h, w, 3], RGB, and ground truth, bool [t, h, w]."""
    from uvos_jax.data.synthetic.clip import make_clip

    clip = make_clip(seed, LENGTH, SIZE, objects=(1, 1))
    return clip.frames, clip.labels > 0


def write_clip(folder: Path, frames: "np.ndarray", truth: "np.ndarray") -> None:
    """Writes ``frames/00000.jpg`` ... and ``truth/00000.png`` ..., replacing the files of an earlier demo."""
    from uvos_jax.atomic_io import atomic_write, make_folder
    from uvos_jax.video import write_mask

    for path in (folder / name for name in _FILES):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in ("frames", "truth"):
        make_folder(folder / name)
    for t, (frame, mask) in enumerate(zip(frames, truth, strict=True)):
        atomic_write(folder / "frames" / f"{t:05d}.jpg", _jpeg(frame))
        write_mask(folder / "truth" / f"{t:05d}.png", mask)


def baselines(truth: "np.ndarray") -> dict[str, "np.ndarray"]:
    """Returns predictions without a network, bool [t, h, w] as ``truth``, by name."""
    import numpy as np

    return {"first mask copied (from ground truth)": np.broadcast_to(truth[0], truth.shape),
            "everything": np.ones_like(truth)}


def score(masks: "np.ndarray", truth: "np.ndarray") -> dict[str, float]:
    """Returns mean J and F of masks, bool [t, h, w], without the first and the last frame as in DAVIS-2016."""
    from uvos_jax.evaluation.region_boundary import boundary_f, jaccard

    counted = slice(1, -1)
    return {"J": float(jaccard(masks[counted], truth[counted]).mean()),
            "F": float(boundary_f(masks[counted], truth[counted]).mean())}


def contact_sheet(frames: list["np.ndarray"], truth: "np.ndarray", masks: "np.ndarray") -> bytes:
    """Draws frames, ground truth and predictions below each other at a few times.

    Args:
        frames: uint8 [h, w, 3] each, RGB.
        truth: bool [t, h, w].
        masks: bool [t, h, w].

    Returns:
        A JPEG file.
    """
    import cv2
    import numpy as np

    from uvos_jax.video import draw_overlay

    times = np.linspace(0, len(frames) - 1, _COLUMNS).round().astype(int)
    size = (_WIDTH, round(_WIDTH * frames[0].shape[0] / frames[0].shape[1]))
    rows = {"frame": [frames[t] for t in times],
            "ground truth": [draw_overlay(frames[t], truth[t].astype(np.uint8)) for t in times],
            "prediction": [draw_overlay(frames[t], masks[t].astype(np.uint8)) for t in times]}
    strips = []
    for caption, images in rows.items():
        strip = np.concatenate([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images], 1)
        for place, color in (((9, 23), (0, 0, 0)), ((8, 22), (255, 255, 255))):  # text with a shadow
            cv2.putText(strip, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, color, 1, cv2.LINE_AA)
        strips.append(strip)
    return _jpeg(np.concatenate(strips))


def _jpeg(image: "np.ndarray") -> bytes:
    import cv2

    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _check_files(folder: Path, frames: "np.ndarray", overwrite: bool) -> None:
    """Refuses a folder that holds another clip, or files of other origin with the names of the demo's files."""
    existing = [name for name in _FILES if (folder / name).exists()]
    first = folder / "frames" / "00000.jpg"
    same = first.is_file() and first.read_bytes() == _jpeg(frames[0])
    if existing and not (same or (overwrite and (folder / "run.json").exists())):
        raise UserError(f"'{folder}' already holds {', '.join(existing)} of another clip. Choose another --output.")
