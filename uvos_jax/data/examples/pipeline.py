"""Batches of clips for training, by configuration, computed ahead in parallel.

A batch is a function of the configuration, the seed and the step, whoever computes it: processes, workers, tf.data or
threads. So a run can be continued anywhere, and on another number of machines. Its contents:
``uvos_jax.data.examples.clip_dataset``.
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
from uvos_jax.data.examples.clip_dataset import PART_SETTINGS, SETTINGS, Batch, Clips, Part, make_clips, part, stack
from uvos_jax.data.storage.store import SYNTHETIC_OPTIONS, SyntheticStore, open_store
from uvos_jax.errors import UserError

_AHEAD = 2  # batches that wait to be taken
_RECIPE = mapping({"name": "pair"})


def from_config(config: Any, data_dir: str | os.PathLike | None = None) -> Clips:
    """Opens what a configuration's ``data`` describes.

    Args:
        config: A dict or ConfigDict: ``{"mixture": [{"name", "split", "share", "exclude", "only", "recipe"}, ...],
            "recipe", "geometry", "color", "size", "flow", "objects", "categories", "paste", "alternate", "batch_size",
            "seed"}``.
            ``recipe`` of a part replaces the common one; ``split`` is "train" and ``share`` 1 if not given. A part of
            name "synthetic" that has a ``count`` is made up: ``{"name": "synthetic", "count", "length", "size",
            "seed"}``.
        data_dir: Folder of the converted datasets; None if all are made up.

    Raises:
        UserError: A key or name is unknown, a dataset is missing, or values do not fit each other.
    """
    config = check_options(config, {"mixture": mappings(REQUIRED), "recipe": _RECIPE} | SETTINGS, "data")
    if not config["mixture"]:
        raise UserError("The data configuration has an empty mixture; name at least one dataset.")
    parts = [_part_of_config(entry, config["recipe"], data_dir) for entry in config.pop("mixture")]
    del config["recipe"]
    return make_clips(parts, **config)


def batches(clips: Clips, start_step: int = 0, process_index: int = 0, process_count: int = 1,
            workers: int | None = None, engine: str | None = None) -> Iterator[Batch]:
    """Yields the batches of a process from a step on, without end, computed ahead in parallel.

    Args:
        clips: The examples.
        start_step: Step of the first batch.
        process_index: Number of this process; it gets places ``process_index * b`` to ``(process_index + 1) * b - 1``
            of a step, where ``b`` is the share of a process.
        process_count: Number of processes; a divisor of the batch size.
        workers: Threads; one for each core that this process may use if None.
        engine: "tensorflow" (tf.data) or "threads"; None takes tf.data where TensorFlow is installed. Both yield the
            same.

    Raises:
        UserError: The batch cannot be divided, or an example cannot be made; the message names it.
    """
    if clips.batch_size % process_count:
        raise UserError(f"A batch of {clips.batch_size} cannot be divided among {process_count} processes; choose a "
                        "multiple.")
    share = clips.batch_size // process_count

    def make(number: int) -> Batch:
        step, place = divmod(number, share)
        place += process_index * share
        try:
            return clips.example(step, place)
        except UserError as error:
            raise UserError(f"{clips.describe(step, place)}: {error}") from error
        except Exception as error:
            error.add_note(f"This happened at step {step}, place {place}: {clips.describe(step, place)}.")
            raise

    engines = {"tensorflow": _tensorflow, "threads": _threads}
    if engine is None:
        engine = "tensorflow" if importlib.util.find_spec("tensorflow") else "threads"
    return engines[engine](make, start_step * share, share, workers or default_workers(), clips)


def default_workers() -> int:
    """Returns the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(make: Callable[[int], Batch], first: int, size: int, workers: int, clips: Clips) -> Iterator[Batch]:
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


def _tensorflow(make: Callable[[int], Batch], first: int, size: int, workers: int, clips: Clips) -> Iterator[Batch]:
    import tensorflow as tf

    with suppress(RuntimeError):  # too late if TensorFlow is in use already; the devices are JAX's
        tf.config.set_visible_devices([], "GPU")
    # Height and width (None) may differ from step to step.
    kinds = {"frames": (tf.uint8, [clips.length, None, None, 3]), "labels": (tf.uint8, [clips.length, None, None]),
             "still": (tf.bool, []), "example": (tf.int64, [])}
    if clips.flow:
        kinds["flow"] = tf.float32, [clips.length, None, None, 2]
    if clips.categories:
        kinds["categories"] = tf.uint8, [clips.objects]
    failures = {}

    def run(number):
        try:
            example = make(int(number))
            return [example[key] for key in kinds]
        except BaseException as error:
            # TensorFlow would tell its text only, at length, and anything that leaves a thread may end the process.
            failures[int(number)] = error
            frame = clips.size_of(int(number) // size)
            return [np.zeros([*shape[:1], *frame, *shape[3:]] if None in shape else shape, dtype.as_numpy_dtype)
                    for dtype, shape in kinds.values()]

    def one(number):
        values = tf.numpy_function(run, [number], [dtype for dtype, _ in kinds.values()], stateful=False)
        return {key: tf.ensure_shape(value, shape)
                for (key, (_, shape)), value in zip(kinds.items(), values, strict=True)}

    dataset = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
    dataset = dataset.map(one, num_parallel_calls=workers, deterministic=True)
    dataset = dataset.batch(size, drop_remainder=True).prefetch(_AHEAD)
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    running = [dataset.with_options(options).as_numpy_iterator()]
    # Threads that still run Python when the interpreter ends would abort the process; without an iterator there are
    # none, and a traceback must not keep it.
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


def _part_of_config(entry: dict, recipe: dict, data_dir: str | os.PathLike | None) -> Part:
    known = {"name": string(REQUIRED), "recipe": _RECIPE} | PART_SETTINGS
    is_synthetic = "count" in entry
    known |= SYNTHETIC_OPTIONS if is_synthetic else {"split": string("train")}
    entry = check_options({"recipe": recipe} | entry, known, "mixture")
    name = entry.pop("name")
    if is_synthetic:
        if name != "synthetic":
            raise UserError(f"'count' is for the dataset 'synthetic' only; remove it from '{name}'.")
        store = SyntheticStore(**{key: entry.pop(key) for key in SYNTHETIC_OPTIONS})
    elif data_dir is None:
        raise UserError(f"'{name}' is read from a folder of converted datasets; give it by --data-dir.")
    else:
        store = open_store(Path(data_dir), name, entry["split"])
    return part(store, **entry)
