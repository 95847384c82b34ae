"""Batches of training clips from a configuration, prepared ahead in parallel.

A batch is a function of the configuration, the seed and the step; the number of processes and workers and the engine
(tf.data or threads) do not change it. A run can therefore resume anywhere, also on a different number of machines.
The contents of a batch are documented in ``uvos_jax.data.examples.clip_dataset``.
"""

import atexit
import importlib.util
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.config_schema import REQUIRED, check_options, mapping, mappings, string
from uvos_jax.data.examples.clip_dataset import (
    DATASET_OPTIONS,
    MIXTURE_OPTIONS,
    Batch,
    ClipDataset,
    MixtureEntry,
    make_clip_dataset,
    mixture_entry,
    stack,
)
from uvos_jax.data.storage.store import SYNTHETIC_OPTIONS, SyntheticStore, open_store
from uvos_jax.errors import UserError

_AHEAD = 2  # prefetched batches
_RECIPE = mapping({"name": "pair"})


def from_config(config: Any, data_dir: str | os.PathLike | None = None) -> ClipDataset:
    """Opens the datasets of a configuration's ``data``.

    Args:
        config: A dict or ConfigDict: ``{"mixture": [{"name", "split", "share", "exclude", "only", "recipe"}, ...],
            "recipe", "geometry", "color", "size", "flow", "objects", "categories", "paste", "alternate", "batch_size",
            "seed"}``. The ``recipe`` of a mixture entry overrides the common one; ``split`` defaults to "train" and
            ``share`` to 1. An entry with a ``count`` is generated: ``{"name": "synthetic", "count", "length", "size",
            "seed", "objects"}``.
        data_dir: Folder of the converted datasets; None if all are generated.

    Raises:
        UserError: A key or name is unknown, a dataset is missing, or values contradict each other.
    """
    config = check_options(config, {"mixture": mappings(REQUIRED), "recipe": _RECIPE} | DATASET_OPTIONS, "data")
    if not config["mixture"]:
        raise UserError("The data configuration has an empty mixture. Add at least one dataset.")
    mixture = [_entry_of_config(entry, config["recipe"], data_dir) for entry in config.pop("mixture")]
    del config["recipe"]
    return make_clip_dataset(mixture, **config)


def batches(clips: ClipDataset, start_step: int = 0, process_index: int = 0, process_count: int = 1,
            workers: int | None = None, engine: str | None = None) -> Iterator[Batch]:
    """Yields the batches of one process from a step on, without end, prepared ahead in parallel.

    Args:
        clips: The examples.
        start_step: Step of the first batch.
        process_index: Index of this process. It gets positions ``process_index * b`` to ``(process_index + 1) * b - 1``
            of a step, where ``b`` is the batch size per process.
        process_count: Number of processes; a divisor of the batch size.
        workers: Number of threads; None for one per available core.
        engine: "tensorflow" (tf.data) or "threads"; None uses tf.data if TensorFlow is installed. Both yield the same
            batches.

    Raises:
        UserError: The batch cannot be divided, or an example cannot be prepared; the message names it.
    """
    if clips.batch_size % process_count:
        raise UserError(f"A batch of {clips.batch_size} cannot be divided among {process_count} processes. Set"
                        " batch_size to a multiple.")
    share = clips.batch_size // process_count

    def make(number: int) -> Batch:
        step, position = divmod(number, share)
        position += process_index * share
        try:
            return clips.example(step, position)
        except UserError as error:
            raise UserError(f"{clips.describe(step, position)}: {error}") from error
        except Exception as error:
            error.add_note(f"This happened at step {step}, position {position}: {clips.describe(step, position)}.")
            raise

    engines = {"tensorflow": _tensorflow, "threads": _threads}
    if engine is None:
        engine = "tensorflow" if importlib.util.find_spec("tensorflow") else "threads"
    return engines[engine](make, start_step * share, share, workers or default_workers(), clips)


def default_workers() -> int:
    """Returns the number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(make: Callable[[int], Batch], first: int, size: int, workers: int, clips: ClipDataset) -> Iterator[Batch]:
    del clips
    numbers = itertools.count(first)
    pool = ThreadPoolExecutor(workers, "clips")
    try:
        waiting = deque(pool.submit(make, next(numbers)) for _ in range((1 + _AHEAD) * size))
        while True:
            examples = [waiting.popleft().result() for _ in range(size)]
            waiting.extend(pool.submit(make, next(numbers)) for _ in range(size))
            yield stack(examples)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tensorflow(make: Callable[[int], Batch], first: int, size: int, workers: int, clips: ClipDataset
                ) -> Iterator[Batch]:
    import tensorflow as tf

    with suppress(RuntimeError):  # raised if TensorFlow is already initialized; JAX owns the devices
        tf.config.set_visible_devices([], "GPU")
    # Height and width (None) may change between steps.
    specs = {"frames": (tf.uint8, [clips.length, None, None, 3]), "labels": (tf.uint8, [clips.length, None, None]),
             "still": (tf.bool, []), "example": (tf.int64, [])}
    if clips.flow:
        specs["flow"] = tf.float32, [clips.length, None, None, 2]
    if clips.categories:
        specs["categories"] = tf.uint8, [clips.objects]
    failures = {}

    def run(number):
        try:
            example = make(int(number))
            return [example[key] for key in specs]
        except BaseException as error:
            # TensorFlow would keep only the text, in a long message, and an exception that leaves a thread may abort
            # the process.
            failures[int(number)] = error
            frame = clips.size_of(int(number) // size)
            return [np.zeros([*shape[:1], *frame, *shape[3:]] if None in shape else shape, dtype.as_numpy_dtype)
                    for dtype, shape in specs.values()]

    def one(number):
        values = tf.numpy_function(run, [number], [dtype for dtype, _ in specs.values()], stateful=False)
        return {key: tf.ensure_shape(value, shape)
                for (key, (_, shape)), value in zip(specs.items(), values, strict=True)}

    dataset = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
    dataset = dataset.map(one, num_parallel_calls=workers, deterministic=True)
    dataset = dataset.batch(size, drop_remainder=True).prefetch(_AHEAD)
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    running = [dataset.with_options(options).as_numpy_iterator()]
    # Threads that still run Python at interpreter exit would abort the process. They end with the iterator, which
    # therefore lives in a list: a traceback cannot keep it alive.
    stop = running.clear
    atexit.register(stop)
    try:
        for start in itertools.count(first, size):
            batch = next(running[0])
            failed = [number for number in range(start, start + size) if number in failures]
            if failed:
                raise failures[failed[0]]
            yield batch
    finally:
        stop()
        atexit.unregister(stop)


def _entry_of_config(entry: dict, recipe: dict, data_dir: str | os.PathLike | None) -> MixtureEntry:
    known = {"name": string(REQUIRED), "recipe": _RECIPE} | MIXTURE_OPTIONS
    is_synthetic = "count" in entry
    known |= SYNTHETIC_OPTIONS if is_synthetic else {"split": string("train")}
    entry = check_options({"recipe": recipe} | entry, known, "mixture")
    name = entry.pop("name")
    if is_synthetic:
        if name != "synthetic":
            raise UserError(f"'count' is valid only for the dataset 'synthetic'. Remove it from '{name}'.")
        store = SyntheticStore(**{key: entry.pop(key) for key in SYNTHETIC_OPTIONS})
    elif data_dir is None:
        raise UserError(f"'{name}' is a converted dataset. Give its folder with --data-dir.")
    else:
        store = open_store(Path(data_dir), name, entry["split"])
    return mixture_entry(store, **entry)
