"""Checkpoints: a global tree of arrays saved by Orbax, and a JSON file that describes it.

No other module imports Orbax. Layout of a checkpoint directory::

    uvos.json   model, hyper-parameters, variant, preprocessing, version, origin, SHA-256 of the weights
    weights/    the Orbax tree {"params": ..., "batch_stats": ...}
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import numpy as np

import uvos_jax
from uvos_jax.atomic_io import atomic_path
from uvos_jax.errors import UserError
from uvos_jax.models import Model, build, hyper_parameters
from uvos_jax.weights import compatibility
from uvos_jax.weights.convert import expected_variables

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_FORMAT = 1
_orbax = threading.Lock()


def save(directory: str | Path, name: str, model: nn.Module, variables: dict, origin: str) -> None:
    """Writes a checkpoint directory atomically.

    Args:
        directory: Directory to create; must not exist.
        name: Name of the system.
        model: The model; its fields are stored.
        variables: ``{"params": ..., "batch_stats": ...}``.
        origin: Source of the weights, stored in the JSON file.

    Raises:
        UserError: The directory exists or cannot be written.
    """
    directory = Path(directory).absolute()
    if directory.exists():
        raise UserError(f"'{directory}' exists already. Choose a new directory.")
    variables = jax.tree.map(np.asarray, variables)
    meta = {"format": _FORMAT, "model": name, "variant": model.variant, "hyper_parameters": hyper_parameters(model),
            # None for models that take frames as they are.
            "preprocess": dataclasses.asdict(model.preprocess) if model.preprocess else None,
            "origin": origin,
            "sha256": digest(variables), "uvos_jax": uvos_jax.__version__}
    try:
        with atomic_path(directory, unique=True) as partial:
            partial.mkdir(parents=True)
            with checkpointer() as writer:
                writer.save(partial / "weights", variables)
            (partial / "uvos.json").write_text(json.dumps(meta, indent=2) + "\n")
    except (OSError, ValueError) as error:  # Orbax raises ValueError when the disk is full
        why = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
        raise UserError(f"'{directory}' cannot be written: {why}.") from error


def load(directory: str | Path, **overrides) -> tuple[str, Model, dict]:
    """Reads a checkpoint directory and builds its model.

    Args:
        directory: Directory written by :func:`save`.
        **overrides: Hyper-parameters to change; only those that do not affect the weights, such as ``variant``,
            ``short_side``, ``dtype`` and ``remat``.

    Returns:
        ``(name, model, variables)`` with NumPy leaves.

    Raises:
        UserError: It is not a checkpoint, has a later format, is damaged, or an override would change the weights.
    """
    directory = Path(directory).absolute()
    try:
        meta = json.loads((directory / "uvos.json").read_text())
        version = meta["format"]
        if version == _FORMAT:
            old, meta = compatibility.is_from_0_1(meta), compatibility.current_metadata(meta)
            name, hyper = str(meta["model"]), meta["hyper_parameters"]
    except FileNotFoundError:
        raise UserError(f"'{directory}' is not a checkpoint directory: it has no uvos.json.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"'{directory / 'uvos.json'}' is damaged. Convert or train the weights again.") from error
    if version != _FORMAT:
        raise UserError(f"'{directory}' has checkpoint format {version!r:.40}; this version of uvos-jax reads"
                        f" {_FORMAT}. Upgrade uvos-jax.")
    model = rebuild(name, hyper, overrides, f"the weights in '{directory}'")
    ill_fitting = UserError(f"The weights in '{directory}' are damaged or do not fit {name} with these"
                            " hyper-parameters. Convert or train them again.")
    try:
        # NumPy targets restore independently of the devices that saved the checkpoint.
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), expected_variables(model))
        with checkpointer() as reader:
            stored = _stored_shapes(reader, directory / "weights") if old else target
            variables = reader.restore(directory / "weights", stored)
    except Exception as error:  # Orbax raises exceptions of many types
        raise ill_fitting from error
    intact = meta.get("sha256") == digest(variables)  # computed over the stored names
    variables = compatibility.current_variables(name, variables) if old else variables
    # Orbax silently restores stored shapes that differ from the target's.
    if not intact or jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, target):
        raise ill_fitting
    return name, model, variables


def _stored_shapes(reader, path):
    """Returns a tree of zeros with the names and shapes of a stored tree, to restore it into."""
    tree = reader.metadata(path).item_metadata.tree
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def rebuild(name: str, hyper: dict, overrides: dict, what: str) -> Model:
    """Builds the model of stored weights.

    Args:
        name: Name of the system.
        hyper: Hyper-parameters stored with the weights.
        overrides: Hyper-parameters to change.
        what: Description of the weights, for messages.

    Raises:
        UserError: An override is unknown, invalid or would change the weights.
    """
    model = build(name, **(hyper | overrides))
    stored = hyper_parameters(build(name, **hyper))
    changeable = model.ALWAYS_CHANGEABLE + model.CHANGEABLE
    for key, value in hyper_parameters(model).items():
        if key not in changeable and value != stored[key]:
            raise UserError(f"{what[0].upper()}{what[1:]} were made with {key}={stored[key]}, not {value}.")
    return model


def digest(tree) -> str:
    """Returns the SHA-256 of names, shapes and bytes of all arrays in a tree; storage does not detect flipped bits."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        sha.update(np.ascontiguousarray(leaf))
    return sha.hexdigest()


@functools.cache
def _silence_abandoned_reads() -> None:
    """Silences messages about reads that Orbax abandons after one array could not be read.

    Reads that still succeed report to a closed event loop, which prints a traceback each. Reads that fail are logged by
    asyncio when they are garbage-collected.
    """
    report = sys.unraisablehook

    def hook(what):
        if str(what.exc_value) != "Event loop is closed":
            report(what)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (record.getMessage().startswith("Task exception was never retrieved") and "tensorstore" in str(error))


@contextlib.contextmanager
def checkpointer() -> Iterator["ocp.StandardCheckpointer"]:
    """Yields an Orbax checkpointer of this process alone; every process has whole trees and waits for no other.

    Only one is active at a time: Orbax numbers its operations per process, and with two threads one operation may be
    finalized before its arrays are written.
    """
    import orbax.checkpoint as ocp  # takes half a second; not needed for other weights

    _silence_abandoned_reads()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me},
                                                 barrier_sync_key_prefix=f"process{me}")
    with _orbax, ocp.StandardCheckpointer(multiprocessing_options=options) as one:
        yield one
