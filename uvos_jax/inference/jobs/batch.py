"""Many videos: a folder of results for each, the devices at work side by side, and no video stops the others."""

import dataclasses
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from uvos_jax.errors import UserError, error_reason
from uvos_jax.inference.prompts import AUTO
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.interrupts import Interrupted
from uvos_jax.video.discovery import is_pattern
from uvos_jax.video.image_io import list_images
from uvos_jax.video.streams import public_url


@dataclasses.dataclass(frozen=True)
class BatchItem:
    """One video of many.

    Attributes:
      number: 1 for the first.
      source: what ``open_source`` takes.
      output: folder of its results.
    """

    number: int
    source: str
    output: Path


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What became of a item: the content of its ``run.json``, or the sentence that says why there is none."""

    item: BatchItem
    run: dict[str, Any] | None = None
    error: str | None = None


def assign_folders(sources: Sequence[str], output: str | Path) -> list[BatchItem]:
    """Gives every video a folder below ``output``, named after it.

    Two files of one folder that differ in their ending alone keep it; where two names agree still, the folder that the
    video lies in goes before.

    Raises:
      UserError: if two names still agree.
    """
    names = [_name(source) for source in sources]
    # Two names that differ in their case alone are one on some file systems.
    beside = [(Path(source).absolute().parent, name.casefold()) for source, name in zip(sources, names, strict=True)]
    alike = Counter(beside)
    names = [Path(source).name if alike[key] > 1 and os.path.isfile(source) else name
             for source, name, key in zip(sources, names, beside, strict=True)]
    often = Counter(name.casefold() for name in names)
    names = [f"{_parent(source)}_{name}" if often[name.casefold()] > 1 else name
             for source, name in zip(sources, names, strict=True)]
    folded = [name.casefold() for name in names]
    for i, name in enumerate(names):
        other = folded.index(folded[i])
        if other < i:
            both = f"'{public_url(sources[other])}' and '{public_url(sources[i])}'"
            raise UserError(f"The results of {both} would both be called '{name}'; segment them one after the other,"
                            " each with an --output of its own.")
    return [BatchItem(i, source, Path(output, name)) for i, (source, name) in enumerate(zip(sources, names, strict=True), 1)]


def check_batch_masks(first_mask: Any, items: Sequence[BatchItem]) -> None:
    """Checks that every video has first masks of its own; those that cannot be used are told with their video.

    Args:
      first_mask: what ``Segmenter.run`` takes.
      items: more than one.

    Raises:
      UserError: if it is a mask of one video, or a folder without masks of some.
    """
    if not isinstance(first_mask, str) or first_mask == AUTO:
        return
    of_one = not os.path.isdir(first_mask) or list_images(Path(first_mask))
    _check_each("masks", "a folder of masks", first_mask, of_one, items,
                lambda name: Path(first_mask, name).is_dir() and list_images(Path(first_mask, name)))


def check_batch_detections(prune: Any, items: Sequence[BatchItem]) -> None:
    """Checks that every video has a file of detections of its own; those that cannot be used are told with their video.

    Args:
      prune: what ``Segmenter.run`` takes.
      items: more than one.

    Raises:
      UserError: if it is a file of one video, or a folder without files of some.
    """
    if not isinstance(prune, str):
        return
    _check_each("detections", "a JSON file", prune, os.path.isfile(prune), items,
                lambda name: Path(prune, f"{name}.json").is_file())


def segment_batch(segmenter: Segmenter, items: Sequence[BatchItem], segment_one: Callable[[Segmenter, BatchItem], dict[str, Any]], *,
                 on_result: Callable[[BatchResult], None] = lambda result: None,
                 devices: Sequence[jax.Device] | None = None) -> list[BatchResult]:
    """Segments videos with one set of weights a device, one video a device at a time.

    Args:
      segmenter: the model with its weights; what it compiles for a size serves all videos of that size.
      items: the videos.
      segment_one: segments one of them, with the segmenter it is given, and returns its ``run.json``. It is called in several
        threads.
      on_result: called with what became of each video, by one thread at a time.
      devices: to be used; all of this process if not given.

    Returns:
      What became of each video that was begun, in the order of the items. A ``UserError`` and what the operating
      system refuses are results.

    Raises:
      Interrupted: if ``segment_one`` did; the other videos under way have stopped, too, and no other one was begun.
    """
    devices = (devices or jax.local_devices())[:len(items)]
    waiting, results, stopped = iter(items), [], []
    lock = threading.Lock()

    def serve(device):
        mine = segmenter.on(device) if len(devices) > 1 else segmenter
        while not stopped:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                result = BatchResult(item, segment_one(mine, item))
            except Interrupted as error:
                stopped.append(error)
                return
            except UserError as error:
                result = BatchResult(item, error=str(error))
            except OSError as error:
                what = f"'{error.filename}' cannot be used: " if error.filename else ""
                result = BatchResult(item, error=f"{what}{error_reason(error)}.")
            with lock:
                results.append(result)
                on_result(result)

    with ThreadPoolExecutor(len(devices), "uvos-device") as pool:
        servants = [pool.submit(serve, device) for device in devices]
    for servant in servants:
        servant.result()
    if stopped:
        finished = sum(result.run is not None for result in results)
        raise Interrupted(stopped[0].number, f"Interrupted. {finished} of {len(items)} videos are finished; the same"
                                             " command with --resume goes on.")
    return sorted(results, key=lambda result: result.item.number)


def _check_each(what, each, path, of_one, items, has):
    """Raises ``UserError`` if what is at a path is of one video, or there is nothing for one of the videos."""
    if of_one:
        raise UserError(f"The {what} '{path}' are of one video, but {len(items)} are given; give a folder that holds"
                        f" {each} for each of them, called as the video.")
    missing = [name for name in (_name(item.source) for item in items) if not has(name)]
    if missing:
        raise UserError(f"'{path}' has no {what} for {len(missing)} of {len(items)} videos: {', '.join(missing)}; each"
                        f" wants {each} that is called as the video.")


def _name(source: str) -> str:
    """A name for a folder: that of a folder, or of a file without its ending, or what can be used of an address."""
    path = Path(source)
    if os.path.isdir(path):
        return path.resolve().name or "frames"
    if os.path.exists(path):
        return path.stem
    plain = [part for part in Path(public_url(source)).parts if not is_pattern(part)]
    return re.sub(r"[^\w.-]+", "_", plain[-1] if plain else "").strip("._") or "frames"


def _parent(source: str) -> str:
    return Path(source).absolute().parent.name or "root"
