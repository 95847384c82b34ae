"""Data of a run: the clip batches of its phases and the held-back sequences it validates on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.training.phases import Phase
from uvos_jax.training.setup import Setup

# (phase index, first step) -> this process's NumPy clip batches from that step on
Batches = Callable[[int, int], Iterator[Mapping[str, np.ndarray]]]
# (phase index, step, position in the global batch) -> description of an example
Describe = Callable[[int, int, int], str]


def configured_batches(config: Mapping[str, Any], recipe: Sequence[Phase], setups: Sequence[Setup],
                       data_dir: Any) -> tuple[Batches, Describe]:
    """Opens the data of all phases and checks that their models accept it.

    Args:
        config: A checked configuration.
        recipe: Its phases.
        setups: Models and optimizers of the phases.
        data_dir: Folder of converted datasets, or None.

    Returns:
        The batches, and descriptions of their examples for error messages.

    Raises:
        UserError: A dataset, a recipe or a model's input cannot be used.
    """
    from uvos_jax.data.examples import pipeline

    clips = [pipeline.from_config(phase.data | {"batch_size": config["batch_size"], "seed": config["seed"]},
                                  data_dir or None)
             for phase in recipe]
    for parts, clip in zip(setups, clips, strict=True):
        categories = parts.model.categories
        if categories > 1 and len(clip.categories) != categories:
            raise UserError(f"model.categories is {categories}, but data.categories lists"
                            f" {len(clip.categories) or 'none'}. Make them equal.")
        for size in clip.sizes:
            axes = config["batch_size"], clip.length, *size
            shapes = {"frames": jax.ShapeDtypeStruct((*axes, 3), np.uint8),
                      "labels": jax.ShapeDtypeStruct(axes, np.uint8),
                      "still": jax.ShapeDtypeStruct(axes[:1], np.bool_)}
            if clip.flow:
                shapes["flow"] = jax.ShapeDtypeStruct((*axes, 2), np.float32)
            if clip.categories:
                shapes["categories"] = jax.ShapeDtypeStruct((*axes[:1], clip.objects), np.uint8)
            jax.eval_shape(parts.model.training_batch, shapes)  # reports mistakes of later phases before training

    def batches(index, start_step):
        return pipeline.batches(clips[index], start_step, jax.process_index(), jax.process_count())

    return batches, lambda index, step, position: clips[index].describe(step, position)


def validation_store(entry: Mapping[str, Any], data_dir: Any) -> Any:
    """Opens the held-back sequences.

    Args:
        entry: The configuration's ``validate``.
        data_dir: Folder of converted datasets, or None.

    Returns:
        A store (``uvos_jax.data.storage.store``).

    Raises:
        UserError: The dataset is not named or not there.
    """
    from uvos_jax.data.storage.store import SyntheticStore, open_store

    if entry.get("synthetic"):
        return SyntheticStore(**entry["synthetic"])
    for key in ("name", "split"):
        if not entry.get(key):
            raise UserError(f"validate.{key} is missing from the configuration. Add it.")
    if not data_dir:
        raise UserError(f"'{entry['name']}' is a converted dataset. Give its folder with --data-dir.")
    return open_store(data_dir, entry["name"], entry["split"])
