"""Conversion of a dataset as published to what training reads: list its files, check them all, then write."""

import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from uvos_jax.atomic_io import (
    check_output_folder,
    exclusive_lock,
    finish_replacement,
    folder_unless_empty,
    replace_folder,
)
from uvos_jax.data.datasets.dataset_indexes import DATASET_SPECS, davis2017_configs
from uvos_jax.data.datasets.index import DatasetIndex, FrameFiles, named
from uvos_jax.data.storage.records import PREFIX, VERSION, FlowMethod, check_record
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.extras import require

DATASETS = (*DATASET_SPECS, "synthetic")
DEFAULT_FOLDER_CONFIG = "default"  # of the dataset ``folder``, where the user gives no name
_FAULTS_NAMED = 20
_LONGEST_NAME = 100  # bytes of a name that becomes a folder's; file systems end at 255


class ConvertedDataset(NamedTuple):
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
            workers: int = 1, progress: Callable[[str, int], AbstractContextManager] = no_progress,
            flow: FlowMethod | None = None, clips: int | None = None) -> list[ConvertedDataset]:
    """Converts a dataset; nothing is written unless every file of it is in order.

    It is written to a folder beside and renamed at the end, so that what is there is complete; an old dataset is
    there until then. One conversion of a dataset at a time is let into a folder.

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
        flow: Computes the flow of every frame, which is stored in folder_name of any that the dataset has; of stills, that
            to copies whose foreground is moved.
        clips: Number of clips that ``synthetic`` has in its split train; 100 if not given.

    Returns:
        What was written, a row for each config.

    Raises:
        UserError: TensorFlow is not installed; there is no such dataset; it is converted already, or just now by
            another process; its files are not in order (the text tells all faults, up to a sensible length); it
            cannot be written.
    """
    dataset, _, config = name.partition("/")
    if dataset not in DATASETS:
        raise UserError(f"There is no dataset '{dataset}'; there are {', '.join(DATASETS)}."
                        f"{nearest_hint(dataset, DATASETS)}")
    if (source is None) != (dataset == "synthetic"):
        raise UserError("'synthetic' is generated; leave --source out." if source else
                        f"--source is missing, the folder of {dataset} as published.")
    if clips and dataset != "synthetic":
        raise UserError(f"--clips is for 'synthetic'; {dataset} has as many videos as it has.")
    root = None if source is None else Path(source)
    if root and not root.is_dir():
        raise UserError(f"The source '{root}' is not a folder; unpack the dataset and give its folder.")
    configs = _configs(dataset, config, root)
    data_dir = check_output_folder(data_dir)
    require("train", "Conversion", "tensorflow", "tensorflow_datasets", "array_record")
    folders = [Path(f"{PREFIX}{dataset}", config or "", VERSION) for config in configs]
    with _working_folder(data_dir, dataset) as working_folder:
        for folder_name in folders:
            finish_replacement(data_dir / folder_name)  # of a conversion that was killed
            if (data_dir / folder_name).exists() and not overwrite:
                raise UserError(f"'{data_dir / folder_name}' exists already; give --overwrite to replace it, or another"
                                " --data-dir.")
        indexes = [DATASET_SPECS[dataset].index_files(root, config) if root else None for config in configs]
        for config, dataset_index in zip(configs, indexes, strict=True):
            if dataset_index:
                check(_full_name(dataset, config), root, dataset_index, workers, progress)
        builders = _import_builders()
        tables = [builders.write(dataset, config, dataset_index, working_folder, progress, flow, clips)
                  for config, dataset_index in zip(configs, indexes, strict=True)]
        for folder_name in folders:
            with folder_unless_empty((data_dir / folder_name).parent):
                replace_folder(working_folder / folder_name, data_dir / folder_name)
    rows = []
    for config, dataset_index, folder_name, table in zip(configs, indexes, folders, tables, strict=True):
        splits = {split: (len(videos), sum(video["length"] for video in videos),
                          sum(len(video["labeled"]) for video in videos)) for split, videos in table.items()}
        rows.append(ConvertedDataset(_full_name(dataset, config), data_dir / folder_name, splits, dataset_index.notes if dataset_index else ()))
    return rows


def check(name: str, root: Path, dataset_index: DatasetIndex, workers: int = 1,
          progress: Callable[[str, int], AbstractContextManager] = no_progress) -> None:
    """Decodes every file of a dataset.

    Args:
        name: Of the dataset, for the message.
        root: Its folder, for the message.
        dataset_index: Its files.
        workers: Threads.
        progress: See ``convert``.

    Raises:
        UserError: There are faults; the text tells how many and names them, the first 20 if there are more.
    """
    videos = [video for videos in dataset_index.splits.values() for video in videos]
    jobs = [(at, video, frame) for at, video in enumerate(videos) for frame in video.frames]
    faults = list(dataset_index.faults)
    frames_by_fault: dict[tuple[int, str], list[str]] = defaultdict(list)
    sizes: dict[int, Counter] = defaultdict(Counter)
    first: dict[tuple, str] = {}
    first_fault: dict[tuple[int, str], str] = {}
    with progress(f"{name}, checking", len(jobs)) as advance, ThreadPoolExecutor(workers) as pool:
        for (at, _, frame), (size, found) in zip(jobs, pool.map(lambda job: check_record(*job[1:]), jobs), strict=True):
            advance()
            for fault in found:
                alike = _without_name(fault, frame)
                first_fault.setdefault((at, alike), fault)
                frames_by_fault[at, alike].append(frame.name)
            if size:
                sizes[at][size] += 1
                first.setdefault((at, size), frame.name)
    for at, found in sizes.items():
        if len(found) > 1:
            each = ", ".join(f"{size[0]}x{size[1]} ({count} frames, first {first[at, size]})"
                             for size, count in found.most_common())
            faults.append(f"{videos[at].name} has frames of several sizes: {each}")
    faults += [f"{videos[at].name} {named(frames)}: {alike if len(frames) > 1 else first_fault[at, alike]}"
               for (at, alike), frames in frames_by_fault.items()]
    if not faults and not jobs:
        faults.append("it has no frames")
    if faults:
        more = len(faults) - _FAULTS_NAMED
        text = "; ".join(faults[:_FAULTS_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"{name} in '{root}' has {len(faults)} fault{'s' if len(faults) > 1 else ''}, and nothing was"
                        f" written: {text}.")


def _configs(dataset, config, root):
    known = DATASET_SPECS[dataset].configs if dataset in DATASET_SPECS else ()
    if dataset == "folder":
        if config and not config.replace("-", "_").isidentifier():
            raise UserError(f"The name '{config}' in folder/{config} is of no use: take letters, digits, - and _, a"
                            " letter first.")
        if len(config.encode()) > _LONGEST_NAME:
            raise UserError(f"The name '{config[:20]}..' in folder/NAME is too long, it becomes that of a folder; take"
                            f" {_LONGEST_NAME} letters at most.")
        return (config or DEFAULT_FOLDER_CONFIG,)
    if config and config not in known:
        there = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"{dataset} has no config '{config}'; {there}.{nearest_hint(config, known)}")
    if config:
        return (config,)
    if dataset == "davis2017":
        return davis2017_configs(root)
    return known[:1] or (None,)


def _without_name(fault: str, frame: FrameFiles) -> str:
    """A fault as it reads for any file, ``*.png`` for its name, so that the same one of many frames is told once."""
    files = [path for path in (frame.image, frame.labels, frame.flow) if isinstance(path, Path)]
    for path in files:
        fault = fault.replace(f"{path.name}'", f"*{path.suffix}'")
    return fault


def _full_name(dataset, config):
    return f"{dataset}/{config}" if config else dataset


def _import_builders():
    """Imports the TFDS builders without messages of TensorFlow and absl."""
    from uvos_jax.data.storage import tfds_builders as builders

    logging.getLogger("absl").setLevel(logging.ERROR)
    return builders


@contextmanager
def _working_folder(data_dir: Path, dataset: str) -> Iterator[Path]:
    """An empty folder to write a dataset in, of which nothing stays; no other process gets it meanwhile."""
    folder = data_dir / f".{PREFIX}{dataset}.partial"
    with folder_unless_empty(data_dir), exclusive_lock(
            data_dir / f".{PREFIX}{dataset}.lock",
            f"Another conversion of {dataset} is at work in '{data_dir}'; wait until it has ended, or choose another"
            " --data-dir."):
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of a conversion that was killed
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
