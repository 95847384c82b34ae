"""Phases of a recipe: their steps and settings, and the transfer of parameters between them.

Phases share one global step. Each begins with a new optimizer; parameters, running statistics and their averages are
kept.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from uvos_jax.errors import UserError


class Phase(NamedTuple):
    """One phase with its settings.

    Attributes:
        index: Position in the recipe, from 0.
        name: Name, for logs.
        start: Number of steps before the phase.
        stop: Number of steps at its end.
        data: Configuration of the clips.
        optimizer: Configuration of the optimizer.
        schedule: Configuration of the learning rate.
        model: Name and fields of the model.
        batch_norm: ``"sync"``, ``"local"`` or ``"frozen"``.
        transfer: Rules ``{"from": regex, "to": replacement}``, see the function ``transfer``.
    """

    index: int
    name: str
    start: int
    stop: int
    data: dict
    optimizer: dict
    schedule: dict
    model: dict
    batch_norm: str
    transfer: tuple


def phases(config: dict[str, Any]) -> tuple[Phase, ...]:
    """Returns the phases of a checked configuration, with the recipe's settings where a phase has none.

    A phase's ``data``, ``optimizer``, ``schedule`` and ``model`` update those of the recipe key by key. An optimizer or
    schedule of another name replaces the recipe's.
    """
    made, start = [], 0
    for index, entry in enumerate(config["phases"]):
        stop = start + entry["steps"]
        parts = {}
        for key in ("data", "optimizer", "schedule", "model"):
            default, own = config[key] or {}, entry.get(key) or {}
            other = key != "model" and own.get("name", default.get("name")) != default.get("name")
            parts[key] = own if other else default | own
        made.append(Phase(index, entry.get("name", str(index + 1)), start, stop,
                          batch_norm=entry.get("batch_norm", config["batch_norm"]),
                          transfer=tuple(entry.get("transfer") or ()), **parts))
        start = stop
    return tuple(made)


def phase_at(recipe: Sequence[Phase], step: int) -> Phase:
    """Returns the phase that ends at or contains ``step``; at a boundary the one that ends there."""
    return next((phase for phase in recipe if step <= phase.stop), recipe[-1])


def transfer(tree: dict, expected: dict, fresh: Callable[[], dict], rules: Sequence[dict], phase: str) -> dict:
    """Returns the variables at the start of a phase.

    Variables of the previous phase are kept, new ones are initialized, and then the rules copy between them.

    Args:
        tree: Variables at the end of the previous phase, nested dicts of arrays.
        expected: Shapes of the variables of this phase.
        fresh: Initializes variables of these shapes; called only if the phase adds some.
        rules: ``{"from": regex, "to": replacement}`` in order: each array whose path (``module/.../name``, within its
            collection) starts with a match of ``from`` is copied to the path with the match replaced.
        phase: Name of the phase, for messages.

    Returns:
        A tree of the shapes of ``expected``.

    Raises:
        UserError: An array changes its shape, or a rule matches nothing or has no target of the same shape.
    """
    before, expected = flatten_dict(tree), flatten_dict(expected)
    after = flatten_dict(fresh()) if expected.keys() - before.keys() else {}
    for path, leaf in expected.items():
        if path in before and np.shape(before[path]) != leaf.shape:
            raise UserError(f"In phase '{phase}', '{'/'.join(path)}' would change from {list(np.shape(before[path]))}"
                            f" to {list(leaf.shape)}; a phase may add parts of the model, not resize them.")
        if path in before:
            after[path] = before[path]
    for rule in rules:
        matches = 0
        for path in before:
            name = "/".join(path[1:])
            match = re.match(rule["from"], name)
            if match is None:
                continue
            target = (path[0], *(match.expand(rule["to"]) + name[match.end():]).split("/"))
            if target not in after or np.shape(after[target]) != np.shape(before[path]):
                raise UserError(f"The transfer rule '{rule['from']}' to '{rule['to']}' of phase '{phase}' maps"
                                f" '{name}' to '{'/'.join(target[1:])}', but the model has no such parameter of that"
                                " shape.")
            after[target] = before[path]
            matches += 1
        if not matches:
            raise UserError(f"The transfer rule '{rule['from']}' of phase '{phase}' matches no parameter.")
    return unflatten_dict({path: after[path] for path in expected})
