"""Segmentation of a batch of videos: one output folder per video, one video per device at a time.

A video that cannot be segmented does not stop the others.
"""

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
    """One video of a batch.

    Attributes:
        number: Position in the batch, from 1.
        source: What ``open_source`` takes.
        output: Output folder of this video.
    """

    number: int
    source: str
    output: Path


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """The outcome for one video: exactly one of ``run`` and ``error`` is set.

    Attributes:
        item: The video.
        run: Content of its ``run.json``.
        error: Why it could not be segmented, one sentence.
    """

    item: BatchItem
    run: dict[str, Any] | None = None
    error: str | None = None


def assign_folders(sources: Sequence[str], output: str | Path) -> list[BatchItem]:
    """Assigns every video a subfolder of ``output``, named after it.

    Files of one folder that differ only in their suffix keep the suffix. Names that are still equal get the name of the
    video's parent folder as a prefix.

    Raises:
        UserError: If two names are still equal.
    """
    names = [_name(source) for source in sources]
    # Some file systems ignore the case of names.
    keys = [(Path(source).absolute().parent, name.casefold()) for source, name in zip(sources, names, strict=True)]
    same_stem = Counter(keys)
    names = [Path(source).name if same_stem[key] > 1 and os.path.isfile(source) else name
             for source, name, key in zip(sources, names, keys, strict=True)]
    counts = Counter(name.casefold() for name in names)
    names = [f"{_parent(source)}_{name}" if counts[name.casefold()] > 1 else name
             for source, name in zip(sources, names, strict=True)]
    folded = [name.casefold() for name in names]
    for i, name in enumerate(names):
        other = folded.index(folded[i])
        if other < i:
            both = f"'{public_url(sources[other])}' and '{public_url(sources[i])}'"
            raise UserError(f"The output folders of {both} would both be named '{name}'. Segment them in separate runs"
                            " with different --output.")
    return [BatchItem(number, source, Path(output, name))
            for number, (source, name) in enumerate(zip(sources, names, strict=True), 1)]


def check_batch_masks(first_mask: Any, items: Sequence[BatchItem]) -> None:
    """Checks that every video has its own first masks.

    Args:
        first_mask: What ``Segmenter.run`` takes.
        items: Two or more videos.

    Raises:
        UserError: If the masks belong to one video, or a video has none.
    """
    if not isinstance(first_mask, str) or first_mask == AUTO:
        return
    of_one_video = not os.path.isdir(first_mask) or list_images(Path(first_mask))
    _check_each("masks", "a folder of masks", first_mask, of_one_video, items,
                lambda name: Path(first_mask, name).is_dir() and list_images(Path(first_mask, name)))


def check_batch_detections(prune: Any, items: Sequence[BatchItem]) -> None:
    """Checks that every video has its own file of detections.

    Args:
        prune: What ``Segmenter.run`` takes.
        items: Two or more videos.

    Raises:
        UserError: If the file belongs to one video, or a video has none.
    """
    if not isinstance(prune, str):
        return
    _check_each("detections", "a JSON file", prune, os.path.isfile(prune), items,
                lambda name: Path(prune, f"{name}.json").is_file())


def segment_batch(segmenter: Segmenter, items: Sequence[BatchItem],
                  segment_one: Callable[[Segmenter, BatchItem], dict[str, Any]], *,
                  on_result: Callable[[BatchResult], None] = lambda result: None,
                  devices: Sequence[jax.Device] | None = None) -> list[BatchResult]:
    """Segments videos on all devices, one video per device at a time.

    Args:
        segmenter: The model with its weights. Compiled programs are shared by all videos of one size.
        items: The videos.
        segment_one: Segments one video with the segmenter it receives and returns its ``run.json``. It is called from
            several threads.
        on_result: Called with the result of each video, from one thread at a time.
        devices: Devices to use; all local devices by default.

    Returns:
        Results of all videos that were started, in the order of ``items``; ``UserError`` and ``OSError`` become
        results.

    Raises:
        Interrupted: If ``segment_one`` raised it. The other running videos have stopped by then, and no further video
            was started.
    """
    devices = (devices or jax.local_devices())[:len(items)]
    remaining, results, stopped = iter(items), [], []
    lock = threading.Lock()

    def serve(device):
        on_device = segmenter.on(device) if len(devices) > 1 else segmenter
        while not stopped:
            with lock:
                item = next(remaining, None)
            if item is None:
                return
            try:
                result = BatchResult(item, segment_one(on_device, item))
            except Interrupted as error:
                stopped.append(error)
                return
            except UserError as error:
                result = BatchResult(item, error=str(error))
            except OSError as error:
                path = f"Cannot use '{error.filename}': " if error.filename else ""
                result = BatchResult(item, error=f"{path}{error_reason(error)}.")
            with lock:
                results.append(result)
                on_result(result)

    with ThreadPoolExecutor(len(devices), "uvos-device") as pool:
        futures = [pool.submit(serve, device) for device in devices]
    for future in futures:
        future.result()
    if stopped:
        finished = sum(result.run is not None for result in results)
        raise Interrupted(stopped[0].number, f"Interrupted. {finished} of {len(items)} videos are finished; the same"
                                             " command with --resume continues.")
    return sorted(results, key=lambda result: result.item.number)


def _check_each(what, each, path, of_one_video, items, exists_for):
    """Raises ``UserError`` if ``path`` belongs to one video, or lacks the entry of a video."""
    if of_one_video:
        raise UserError(f"The {what} '{path}' belong to one video, but there are {len(items)} videos. Give a folder"
                        f" with {each} per video, named after the video.")
    missing = [name for name in (_name(item.source) for item in items) if not exists_for(name)]
    if missing:
        raise UserError(f"No {what} in '{path}' for {len(missing)} of {len(items)} videos: {', '.join(missing)}. Add"
                        f" {each} named after each of these videos.")


def _name(source: str) -> str:
    """Name of the output folder: the name of a folder, the stem of a file, or the usable part of a URL or pattern."""
    path = Path(source)
    if os.path.isdir(path):
        return path.resolve().name or "frames"
    if os.path.exists(path):
        return path.stem
    parts = [part for part in Path(public_url(source)).parts if not is_pattern(part)]
    return re.sub(r"[^\w.-]+", "_", parts[-1] if parts else "").strip("._") or "frames"


def _parent(source: str) -> str:
    return Path(source).absolute().parent.name or "root"
