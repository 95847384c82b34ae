"""Checkpoints: one global tree of arrays saved by Orbax, with a JSON file beside it that says what it is.

This is the only place that imports Orbax. Layout of a checkpoint directory::

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
from uvos_jax.models import build, hyper_parameters
from uvos_jax.weights import compatibility
from uvos_jax.weights.convert import expected_variables

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_FORMAT = 1
_orbax = threading.Lock()


def save(directory: str | Path, name: str, model: nn.Module, variables: dict, origin: str) -> None:
    """Writes a checkpoint directory; it appears whole or not at all.

    Args:
        directory: Must not exist yet.
        name: The system's name.
        model: Its module; the fields are stored.
        variables: ``{"params": ..., "batch_stats": ...}``.
        origin: Where the weights come from, for the reader of the JSON file.

    Raises:
        UserError: If the directory exists or cannot be written.
    """
    directory = Path(directory).absolute()
    if directory.exists():
        raise UserError(f"'{directory}' exists already; choose a directory that does not.")
    variables = jax.tree.map(np.asarray, variables)
    meta = {"format": _FORMAT, "model": name, "variant": model.variant, "hyper_parameters": hyper_parameters(model),
            # Networks that take frames as they are have none.
            "preprocess": dataclasses.asdict(model.preprocess) if model.preprocess else None,
            "origin": origin,
            "sha256": digest(variables), "uvos_jax": uvos_jax.__version__}
    try:
        with atomic_path(directory, unique=True) as partial:
            partial.mkdir(parents=True)
            with checkpointer() as writer:
                writer.save(partial / "weights", variables)
            (partial / "uvos.json").write_text(json.dumps(meta, indent=2) + "\n")
    except (OSError, ValueError) as error:  # of a full disk Orbax says ValueError
        why = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
        raise UserError(f"'{directory}' cannot be written: {why}.") from error


def load(directory: str | Path, **overrides) -> tuple[str, nn.Module, dict]:
    """Reads a checkpoint directory; its JSON file says which model to build.

    Args:
        directory: As written by :func:`save`.
        **overrides: Hyper-parameters to change: those that mean nothing to the weights, such as ``variant``,
            ``short_side``, ``dtype``, ``remat``.

    Returns:
        ``(name, model, variables)`` with NumPy leaves.

    Raises:
        UserError: If it is no checkpoint, was written by a later format, or does not fit the model it names.
    """
    directory = Path(directory).absolute()
    try:
        meta = json.loads((directory / "uvos.json").read_text())
        version = meta["format"]
        if version == _FORMAT:
            old, meta = compatibility.is_from_0_1(meta), compatibility.current_metadata(meta)
            name, hyper = str(meta["model"]), meta["hyper_parameters"]
    except FileNotFoundError:
        raise UserError(f"'{directory}' is no checkpoint directory: it has no uvos.json.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"'{directory / 'uvos.json'}' is damaged; convert or train the weights again.") from error
    if version != _FORMAT:
        raise UserError(f"'{directory}' has checkpoint format {version!r:.40}; this uvos_jax reads {_FORMAT}."
                        " Upgrade it.")
    model = rebuild(name, hyper, overrides, f"the weights in '{directory}'")
    ill_fitting = UserError(f"The weights in '{directory}' are damaged or do not fit {name} with these"
                            " hyper-parameters; convert or train them again.")
    try:
        # NumPy targets: restored on whatever devices this process has, not on those that saved it.
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), expected_variables(model))
        with checkpointer() as reader:
            stored = _stored_shapes(reader, directory / "weights") if old else target
            variables = reader.restore(directory / "weights", stored)
    except Exception as error:  # Orbax raises many kinds for a missing, torn or ill-fitting tree
        raise ill_fitting from error
    intact = meta.get("sha256") == digest(variables)  # computed over the stored names
    variables = compatibility.current_variables(name, variables) if old else variables
    # Orbax restores the stored shapes without a word where they differ from the asked ones.
    if not intact or jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, target):
        raise ill_fitting
    return name, model, variables


def _stored_shapes(reader, path):
    """Returns a tree of zeros with the names and shapes of a stored tree, to restore it into."""
    tree = reader.metadata(path).item_metadata.tree
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def rebuild(name: str, hyper: dict, overrides: dict, what: str) -> nn.Module:
    """Builds the model that stored weights belong to.

    Args:
        name: Of the system.
        hyper: The hyper-parameters stored with the weights.
        overrides: Those to change.
        what: The weights, in words, for the message.

    Raises:
        UserError: If an override is unknown or would not fit the weights.
    """
    model = build(name, **(hyper | overrides))
    stored = hyper_parameters(build(name, **hyper))
    changeable = model.ALWAYS_CHANGEABLE + model.CHANGEABLE
    for key, value in hyper_parameters(model).items():
        if key not in changeable and value != stored[key]:
            raise UserError(f"{what[0].upper()}{what[1:]} were made with {key}={stored[key]}, not {value}.")
    return model


def digest(tree) -> str:
    """SHA-256 over names, shapes and bytes of all leaves of a tree of arrays: storage does not notice a flipped bit."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        sha.update(np.ascontiguousarray(leaf))
    return sha.hexdigest()


@functools.cache
def _keep_quiet_about_late_reads() -> None:
    """Where one array cannot be read, Orbax raises and no longer asks after the others; of them nothing need be said.

    Those that arrive find that Orbax has closed what they report to, a traceback each. Those that fail too are
    logged by asyncio when they are collected.
    """
    report = sys.unraisablehook

    def hook(what):
        if str(what.exc_value) != "Event loop is closed":
            report(what)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(_is_no_late_failure)


def _is_no_late_failure(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (record.getMessage().startswith("Task exception was never retrieved") and "tensorstore" in str(error))


@contextlib.contextmanager
def checkpointer() -> Iterator["ocp.StandardCheckpointer"]:
    """Orbax for this process alone: trees are whole in every process, so that none has to wait for another.

    One at a time: Orbax numbers its operations for the whole process, and of two that run in different threads one may
    be finished before its arrays are written.
    """
    import orbax.checkpoint as ocp  # importing it takes half a second; packaged and published weights do without

    _keep_quiet_about_late_reads()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me},
                                                 barrier_sync_key_prefix=f"process{me}")
    with _orbax, ocp.StandardCheckpointer(multiprocessing_options=options) as one:
        yield one
