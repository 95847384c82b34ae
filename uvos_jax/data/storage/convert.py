"""Conversion of a published dataset to the training format: index, check all files, then write."""

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
from uvos_jax.data.datasets.index import DatasetIndex, FrameFiles, join_names
from uvos_jax.data.storage.records import PREFIX, VERSION, FlowMethod, check_record
from uvos_jax.errors import UserError, nearest_hint, pluralize
from uvos_jax.extras import require

DATASETS = (*DATASET_SPECS, "synthetic")
DEFAULT_FOLDER_CONFIG = "default"  # config of the dataset ``folder`` without a name
_MAX_LISTED_FAULTS = 20
_MAX_NAME_BYTES = 100  # of a name that becomes a folder name; file systems allow 255


class ConvertedDataset(NamedTuple):
    """Result of a conversion.

    Attributes:
        name: Name for ``open_store``.
        folder: Folder of the converted dataset.
        splits: Numbers of videos, frames and frames with ground truth, by split.
        notes: Remarks on the source that are not faults.
    """

    name: str
    folder: Path
    splits: dict[str, tuple[int, int, int]]
    notes: tuple[str, ...]


def no_progress(what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """Shows no progress."""
    return nullcontext(lambda: None)


def convert(name: str, source: str | os.PathLike | None, data_dir: str | os.PathLike, overwrite: bool = False,
            workers: int = 1, progress: Callable[[str, int], AbstractContextManager] = no_progress,
            flow: FlowMethod | None = None, clips: int | None = None) -> list[ConvertedDataset]:
    """Converts a dataset; nothing is written if any of its files is faulty.

    The dataset is written to a temporary folder and renamed at the end, so an existing dataset stays in place until
    the new one is complete. A lock allows one conversion of a dataset per ``data_dir`` at a time.

    Args:
        name: One of ``DATASETS``, optionally with a config such as ``"davis2017/unsupervised"``. Without a config,
            ``davis2017`` is converted with every kind of annotation found, other datasets with their default config.
            ``"folder/NAME"`` names a folder of your own videos.
        source: Folder of the published dataset, unpacked; None for ``synthetic``.
        data_dir: Folder of the converted datasets.
        overwrite: Replace an existing converted dataset.
        workers: Number of threads that check files.
        progress: Called with a title and the number of frames; returns a context manager whose value is called after
            each frame.
        flow: Computes the flow of every frame, replacing any flow of the dataset. Still images get the flow to a copy
            with moved foreground.
        clips: Number of clips in the train split of ``synthetic``; None for 100.

    Returns:
        One row per config.

    Raises:
        UserError: TensorFlow is not installed; the dataset is unknown, already converted or being converted by another
            process; files are faulty (the message lists the faults); or the dataset cannot be written.
    """
    dataset, _, config = name.partition("/")
    if dataset not in DATASETS:
        raise UserError(f"Unknown dataset '{dataset}'; valid datasets: {', '.join(DATASETS)}."
                        f"{nearest_hint(dataset, DATASETS)}")
    if (source is None) != (dataset == "synthetic"):
        raise UserError("The dataset 'synthetic' is generated. Leave --source out." if source else
                        f"--source is missing. Give the unpacked folder of {dataset}.")
    if clips and dataset != "synthetic":
        raise UserError(f"--clips is valid only for 'synthetic', not for {dataset}. Leave it out.")
    root = None if source is None else Path(source)
    if root and not root.is_dir():
        raise UserError(f"The source '{root}' is not a folder. Unpack the dataset and give its folder.")
    configs = _configs(dataset, config, root)
    data_dir = check_output_folder(data_dir)
    require("train", "Conversion", "tensorflow", "tensorflow_datasets", "array_record")
    folders = [Path(f"{PREFIX}{dataset}", config or "", VERSION) for config in configs]
    with _working_folder(data_dir, dataset) as working_folder:
        for folder_name in folders:
            finish_replacement(data_dir / folder_name)  # left by a killed conversion
            if (data_dir / folder_name).exists() and not overwrite:
                raise UserError(f"'{data_dir / folder_name}' already exists. Give --overwrite to replace it, or another"
                                " --data-dir.")
        indexes = [DATASET_SPECS[dataset].index_files(root, config) if root else None for config in configs]
        for config, dataset_index in zip(configs, indexes, strict=True):
            if dataset_index:
                check(_title(dataset, config, root), root, dataset_index, workers, progress)
        builders = _import_builders()
        tables = [builders.write(dataset, config, dataset_index, working_folder, progress, flow, clips,
                                 _title(dataset, config, root))
                  for config, dataset_index in zip(configs, indexes, strict=True)]
        for folder_name in folders:
            with folder_unless_empty((data_dir / folder_name).parent):
                replace_folder(working_folder / folder_name, data_dir / folder_name)
    rows = []
    for config, dataset_index, folder_name, table in zip(configs, indexes, folders, tables, strict=True):
        splits = {split: (len(videos), sum(video["length"] for video in videos),
                          sum(len(video["labeled"]) for video in videos)) for split, videos in table.items()}
        rows.append(ConvertedDataset(_full_name(dataset, config), data_dir / folder_name, splits,
                                     dataset_index.notes if dataset_index else ()))
    return rows


def check(name: str, root: Path, dataset_index: DatasetIndex, workers: int = 1,
          progress: Callable[[str, int], AbstractContextManager] = no_progress) -> None:
    """Decodes every file of a dataset and reports all faults together.

    Args:
        name: Name of the dataset, for the message.
        root: Folder of the dataset, for the message.
        dataset_index: Files of the dataset.
        workers: Number of threads.
        progress: See ``convert``.

    Raises:
        UserError: There are faults. The message gives their number and lists the first 20.
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
            each = ", ".join(f"{size[0]}x{size[1]} ({pluralize(count, 'frame')}, first {first[at, size]})"
                             for size, count in found.most_common())
            faults.append(f"{videos[at].name} has frames of several sizes: {each}")
    faults += [f"{videos[at].name} {join_names(frames)}: {alike if len(frames) > 1 else first_fault[at, alike]}"
               for (at, alike), frames in frames_by_fault.items()]
    if not faults and not jobs:
        faults.append("it has no frames")
    if faults:
        more = len(faults) - _MAX_LISTED_FAULTS
        text = "; ".join(faults[:_MAX_LISTED_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"{name} in '{root}' has {len(faults)} fault{'s' if len(faults) > 1 else ''}, and nothing was"
                        f" written. {text}.")


def _configs(dataset, config, root):
    known = DATASET_SPECS[dataset].configs if dataset in DATASET_SPECS else ()
    if dataset == "folder":
        if config and not config.replace("-", "_").isidentifier():
            raise UserError(f"Invalid name '{config}' in folder/{config}. Use letters, digits, - and _, starting with a"
                            " letter.")
        if len(config.encode()) > _MAX_NAME_BYTES:
            raise UserError(f"The name '{config[:20]}..' in folder/NAME is too long. Use at most {_MAX_NAME_BYTES}"
                            " bytes.")
        return (config or DEFAULT_FOLDER_CONFIG,)
    if config and config not in known:
        valid = f"valid configs: {', '.join(known)}" if known else "it has none"
        raise UserError(f"{dataset} has no config '{config}'; {valid}.{nearest_hint(config, known)}")
    if config:
        return (config,)
    if dataset == "davis2017":
        return davis2017_configs(root)
    return known[:1] or (None,)


def _without_name(fault: str, frame: FrameFiles) -> str:
    """Replaces the file name in a fault by ``*.png``, so that a fault of many frames is listed once."""
    files = [path for path in (frame.image, frame.labels, frame.flow) if isinstance(path, Path)]
    for path in files:
        fault = fault.replace(f"{path.name}'", f"*{path.suffix}'")
    return fault


def _full_name(dataset, config):
    return f"{dataset}/{config}" if config else dataset


def _title(dataset, config, root):
    """Returns the name to show: that of the folder for the user's own clips, whose config may be chosen internally."""
    return root.resolve().name or str(root) if dataset == "folder" else _full_name(dataset, config)


def _import_builders():
    """Imports the TFDS builders without messages of TensorFlow and absl."""
    from uvos_jax.data.storage import tfds_builders as builders

    logging.getLogger("absl").setLevel(logging.ERROR)
    return builders


@contextmanager
def _working_folder(data_dir: Path, dataset: str) -> Iterator[Path]:
    """Yields an empty, locked folder to write a dataset in; it is removed at the end."""
    folder = data_dir / f".{PREFIX}{dataset}.partial"
    with folder_unless_empty(data_dir), exclusive_lock(
            data_dir / f".{PREFIX}{dataset}.lock",
            f"Another conversion of {dataset} is running in '{data_dir}'. Wait until it ends, or give another"
            " --data-dir."):
        try:
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed conversion
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
