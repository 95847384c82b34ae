"""``uvos demo``."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uvos_jax.cli.app import app
from uvos_jax.errors import UserError
from uvos_jax.interrupts import graceful_stop
from uvos_jax.progress import progress

if TYPE_CHECKING:
    import numpy as np

# Of the clips that may be shown; convert-data's synthetic clips, which the network learns from, have smaller ones.
SEEDS = range(2_000_000, 2_000_010)
# The first of them whose object covers 5 to 25 % of the frames on average.
SEED = 2_000_001
SHARE = (0.05, 0.25)
LENGTH = 40
SIZE = (270, 480)
_OWN = ("frames", "truth", "scores.json", "demo.jpg")  # what lies beside the results of 'uvos segment'
_COLUMNS = 4
_WIDTH = 320  # of a column of the picture


@app.command(epilog="Example: uvos demo my.mp4 --output seen")
def demo(
    videos: Annotated[list[str] | None, typer.Argument(metavar="[VIDEO]...", help="Videos of your own, segmented"
                                                       " too.")] = None,
    output: Annotated[Path, typer.Option("--output", help="Folder for the results.")] = Path("uvos_output", "demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another generated clip.")] = SEED,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run of this command ended.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are in the way.")] = False,
) -> None:
    """Segments a generated clip, whose true masks are known, with the packaged network: a first look."""
    from uvos_jax.inference import load
    from uvos_jax.inference.jobs.batch import assign_folders
    from uvos_jax.inference.jobs.segment import check_output, segment_to_folder
    from uvos_jax.inference.segmenter import parameter_count
    from uvos_jax.video import list_sources, open_source
    from uvos_jax.video.streams import public_url
    from uvos_jax.weights.packaged import about

    started = time.perf_counter()
    folder = output / "generated"
    tasks = assign_folders(list_sources(videos), output) if videos else []
    sources = [open_source(task.source) for task in tasks]
    for task, source in zip(tasks, sources, strict=True):
        if task.output == folder:
            raise UserError(f"The results of '{task.source}' would be in '{folder}' like those of the generated clip;"
                            " give it to 'uvos segment'.")
        check_output(task.output, overwrite, source, resume)
    frames, truth = generated_clip(seed)
    check_output(folder, overwrite, resume=resume)
    _check_own(folder, frames, overwrite)

    segmenter = load()
    print(f"Network: {segmenter.name}, {parameter_count(segmenter.variables):,} parameters, learned from"
          f" {about()['origin']}", flush=True)
    with graceful_stop() as stop:
        def work(source, folder, options):
            with progress(str(folder), source.length, first="the first frame compiles") as advance:
                run = segment_to_folder(segmenter, source, folder, overwrite=overwrite, resume=resume, stop=stop,
                                        on_frame=advance, options=options)
            print(f"{folder}: {run['source']['frames']} masks, overlay.mp4, run.json", flush=True)

        write_clip(folder, frames, truth)
        work(open_source(folder / "frames"), folder, {"seed": seed})
        _judge(folder, f"{segmenter.name}, packaged", seed, truth)
        for task, source in zip(tasks, sources, strict=True):
            work(source, task.output, {"input": public_url(task.source)})
    print(f"\n{time.perf_counter() - started:.0f} s. Look at {folder / 'demo.jpg'} and {folder / 'overlay.mp4'}; next:"
          " uvos segment my.mp4")


def _judge(folder: Path, network: str, seed: int, truth: "np.ndarray") -> None:
    """Scores the masks that were written and prints a table, with what needs no network; draws the picture."""
    import numpy as np

    from uvos_jax.atomic_io import atomic_write
    from uvos_jax.evaluation.report import table_text
    from uvos_jax.video import open_source, read_mask, write_json
    from uvos_jax.weights.packaged import about

    masks = np.stack([read_mask(folder / "masks" / f"{t:05d}.png", numbered=True) > 0 for t in range(len(truth))])
    scores = {name: score(row, truth) for name, row in ({network: masks} | trivial(truth)).items()}
    write_json(folder / "scores.json", {"seed": seed, "frames": len(truth), "scores": scores})
    frames = [frame.image for frame in open_source(folder / "frames")]
    atomic_write(folder / "demo.jpg", picture(frames, truth, masks))
    print(f"{folder}: frames, truth (the known masks), scores.json, demo.jpg (all side by side)")
    print(f"\nThe generated clip, {truth.mean():.0%} of it object; all frames but the first and the last are scored:")
    print(table_text([{"": name} | row for name, row in scores.items()], decimals=3))
    mean = about()["scores"].get("generated clips")
    if mean:
        print(f"The packaged network's mean over {len(SEEDS)} such clips (--seed {SEEDS[0]} to {SEEDS[-1]}):"
              f" J {mean['J']:.3f}, F {mean['F']:.3f}")


def generated_clip(seed: int) -> tuple["np.ndarray", "np.ndarray"]:
    """A clip of one moving object: frames uint8 [t, h, w, 3], RGB, and its true masks, bool [t, h, w]."""
    from uvos_jax.data.synthetic.clip import make_clip

    clip = make_clip(seed, LENGTH, SIZE, objects=(1, 1))
    return clip.frames, clip.labels > 0


def write_clip(folder: Path, frames: "np.ndarray", truth: "np.ndarray") -> None:
    """Writes ``frames/00000.jpg`` ... and ``truth/00000.png`` ..., in the place of what an earlier demo left."""
    from uvos_jax.atomic_io import atomic_write, make_folder
    from uvos_jax.video import write_mask

    for path in (folder / name for name in _OWN):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in ("frames", "truth"):
        make_folder(folder / name)
    for t, (frame, mask) in enumerate(zip(frames, truth, strict=True)):
        atomic_write(folder / "frames" / f"{t:05d}.jpg", _jpeg(frame))
        write_mask(folder / "truth" / f"{t:05d}.png", mask)


def trivial(truth: "np.ndarray") -> dict[str, "np.ndarray"]:
    """What no network is needed for: predictions of the shape of ``truth``, bool [t, h, w], by their names."""
    import numpy as np

    return {"first mask copied (knows a true mask)": np.broadcast_to(truth[0], truth.shape),
            "everything": np.ones_like(truth)}


def score(masks: "np.ndarray", truth: "np.ndarray") -> dict[str, float]:
    """Mean J and F over the frames that DAVIS-2016 counts, all but the first and the last; bool [t, h, w] both."""
    from uvos_jax.evaluation.region_boundary import boundary_f, jaccard

    counted = slice(1, -1)
    return {"J": float(jaccard(masks[counted], truth[counted]).mean()),
            "F": float(boundary_f(masks[counted], truth[counted]).mean())}


def picture(frames: list["np.ndarray"], truth: "np.ndarray", masks: "np.ndarray") -> bytes:
    """Frames, true masks and predicted masks below each other at a few times, as a JPEG file.

    Args:
        frames: uint8 [h, w, 3] each, RGB.
        truth: bool [t, h, w].
        masks: bool [t, h, w].
    """
    import cv2
    import numpy as np

    from uvos_jax.video import draw_overlay

    times = np.linspace(0, len(frames) - 1, _COLUMNS).round().astype(int)
    size = (_WIDTH, round(_WIDTH * frames[0].shape[0] / frames[0].shape[1]))
    rows = {"frame": [frames[t] for t in times],
            "known mask": [draw_overlay(frames[t], truth[t].astype(np.uint8)) for t in times],
            "prediction": [draw_overlay(frames[t], masks[t].astype(np.uint8)) for t in times]}
    strips = []
    for caption, images in rows.items():
        strip = np.concatenate([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images], 1)
        for place, color in (((9, 23), (0, 0, 0)), ((8, 22), (255, 255, 255))):  # a shadow: readable on any ground
            cv2.putText(strip, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, color, 1, cv2.LINE_AA)
        strips.append(strip)
    return _jpeg(np.concatenate(strips))


def _jpeg(image: "np.ndarray") -> bytes:
    import cv2

    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _check_own(folder: Path, frames: "np.ndarray", overwrite: bool) -> None:
    """Refuses a folder in which other people's files are called like the demo's, or that has another clip."""
    there = [name for name in _OWN if (folder / name).exists()]
    first = folder / "frames" / "00000.jpg"
    same = first.is_file() and first.read_bytes() == _jpeg(frames[0])
    if there and not (same or (overwrite and (folder / "run.json").exists())):
        raise UserError(f"'{folder}' holds {', '.join(there)} of another clip; choose another --output.")
