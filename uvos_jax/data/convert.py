"""Conversion of a dataset as published to what training reads: list its files, check them all, then write."""

import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from uvos_jax.data.listing import Listing, named
from uvos_jax.data.records import PREFIX, VERSION, check_record
from uvos_jax.data.sources import SOURCES, davis2017_configs
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.video.files import check_folder

DATASETS = (*SOURCES, "synthetic")
OWN_CONFIG = "default"  # of the dataset ``folder``, where the user gives no name
_FAULTS_NAMED = 20


class Converted(NamedTuple):
    """What a conversion wrote.

    Attributes:
        name: As ``open_store`` takes it.
        folder: Where it is.
        splits: Numbers of videos, frames and frames with ground truth, by split.
        notes: What is remarkable about the source.
    """

    name: str
    folder: Path
    splits: dict[str, tuple[int, int, int]]
    notes: tuple[str, ...]


def no_progress(what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """Shows nothing."""
    return nullcontext(lambda: None)


def convert(name: str, source: str | os.PathLike | None, data_dir: str | os.PathLike, overwrite: bool = False,
            workers: int = 1, progress: Callable[[str, int], AbstractContextManager] = no_progress) -> list[Converted]:
    """Converts a dataset; nothing is written unless every file of it is in order.

    TFDS writes to a folder of another name and renames it at the end, so that what is there is complete.

    Args:
        name: One of ``DATASETS``, and a config where there are several, such as ``"davis2017/unsupervised"``; without
            one, ``davis2017`` is converted with each kind of annotation that is there, others with their usual config.
            ``"folder/NAME"`` gives a folder of one's own a name beside others.
        source: Folder of the dataset as published, unpacked; None for ``synthetic``.
        data_dir: Folder of the converted datasets.
        overwrite: Replace a converted dataset that is there.
        workers: Threads that check files.
        progress: Given what is done and the number of frames, returns a context manager whose value is called after
            each frame.

    Returns:
        What was written, a row for each config.

    Raises:
        UserError: TensorFlow is not installed; there is no such dataset; it is converted already; its files are not
            in order (the text tells all faults, up to a sensible length).
    """
    dataset, _, config = name.partition("/")
    if dataset not in DATASETS:
        raise UserError(f"There is no dataset '{dataset}'; there are {', '.join(DATASETS)}."
                        f"{nearest_hint(dataset, DATASETS)}")
    if (source is None) != (dataset == "synthetic"):
        raise UserError("'synthetic' is generated; leave --source out." if source else
                        f"--source is missing, the folder of {dataset} as published.")
    root = None if source is None else Path(source)
    if root and not root.is_dir():
        raise UserError(f"The source '{root}' is not a folder; unpack the dataset and give its folder.")
    configs = _configs(dataset, config, root)
    check_folder(data_dir)
    _require_tensorflow()
    folders = [Path(data_dir, f"{PREFIX}{dataset}", config or "", VERSION) for config in configs]
    for folder in folders:
        if folder.exists() and not overwrite:
            raise UserError(f"'{folder}' exists already; give --overwrite to replace it, or another --data-dir.")
    listings = [SOURCES[dataset].list(root, config) if root else None for config in configs]
    for config, listing in zip(configs, listings, strict=True):
        if listing:
            check(_full_name(dataset, config), root, listing, workers, progress)
    builders = _import_builders()
    rows = []
    for config, listing, folder in zip(configs, listings, folders, strict=True):
        with _replacing(folder):
            table = builders.write(dataset, config, listing, Path(data_dir), progress)
        splits = {split: (len(videos), sum(video["length"] for video in videos),
                          sum(len(video["labelled"]) for video in videos)) for split, videos in table.items()}
        rows.append(Converted(_full_name(dataset, config), folder, splits, listing.notes if listing else ()))
    return rows


def check(name: str, root: Path, listing: Listing, workers: int = 1,
          progress: Callable[[str, int], AbstractContextManager] = no_progress) -> None:
    """Decodes every file of a dataset.

    Args:
        name: Of the dataset, for the message.
        root: Its folder, for the message.
        listing: Its files.
        workers: Threads.
        progress: See ``convert``.

    Raises:
        UserError: There are faults; the text tells how many and names them, the first 20 if there are more.
    """
    videos = [video for videos in listing.splits.values() for video in videos]
    jobs = [(at, video, frame) for at, video in enumerate(videos) for frame in video.frames]
    faults = list(listing.faults)
    frames_by_fault: dict[tuple[int, str], list[str]] = defaultdict(list)
    sizes: dict[int, Counter] = defaultdict(Counter)
    first: dict[tuple, str] = {}
    with progress(f"{name}, checking", len(jobs)) as advance, ThreadPoolExecutor(workers) as pool:
        for (at, _, frame), (size, found) in zip(jobs, pool.map(lambda job: check_record(*job[1:]), jobs), strict=True):
            advance()
            for fault in found:
                frames_by_fault[at, fault].append(frame.name)
            if size:
                sizes[at][size] += 1
                first.setdefault((at, size), frame.name)
    for at, found in sizes.items():
        if len(found) > 1:
            each = ", ".join(f"{size[0]}x{size[1]} ({count} frames, first {first[at, size]})"
                             for size, count in found.most_common())
            faults.append(f"{videos[at].name} has frames of several sizes: {each}")
    faults += [f"{videos[at].name} {named(frames)}: {fault}" for (at, fault), frames in frames_by_fault.items()]
    if not faults and not jobs:
        faults.append("it has no frames")
    if faults:
        more = len(faults) - _FAULTS_NAMED
        text = "; ".join(faults[:_FAULTS_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"{name} in '{root}' has {len(faults)} fault{'s' if len(faults) > 1 else ''}, and nothing was"
                        f" written: {text}.")


def _configs(dataset, config, root):
    known = SOURCES[dataset].configs if dataset in SOURCES else ()
    if dataset == "folder":
        if config and not config.replace("-", "_").isidentifier():
            raise UserError(f"The name '{config}' in folder/{config} is of no use: take letters, digits, - and _, a"
                            " letter first.")
        return (config or OWN_CONFIG,)
    if config and config not in known:
        there = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"{dataset} has no config '{config}'; {there}.{nearest_hint(config, known)}")
    if config:
        return (config,)
    if dataset == "davis2017":
        return davis2017_configs(root)
    return known[:1] or (None,)


def _full_name(dataset, config):
    return f"{dataset}/{config}" if config else dataset


def _require_tensorflow():
    missing = [name for name in ("tensorflow", "array_record") if find_spec(name) is None]
    if missing:
        raise UserError(f"Conversion needs {' and '.join(missing)}, not installed here:"
                        ' pip install "uvos-jax[train]".')


def _import_builders():
    """The TFDS classes; TensorFlow is kept from telling about itself on the way."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from uvos_jax.data import builders

    logging.getLogger("absl").setLevel(logging.ERROR)
    return builders


@contextmanager
def _replacing(folder):
    """Sets a converted dataset aside while a new one is written, and puts it back if that fails."""
    for path in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(path)  # of a conversion that was killed
    aside = folder.with_name(f"replaced.{folder.name}")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
