"""Phases of a recipe: which step belongs to which, and what is carried from one to the next.

Phases share one global step. At the start of each, the optimizer begins anew; parameters, running statistics and their
averages are carried over.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from uvos_jax.errors import UserError


class Phase(NamedTuple):
    """One phase with all that holds during it.

    Attributes:
      index: its place in the recipe.
      name: for the reader of the log.
      start: global step before its first one.
      stop: global step after its last one.
      data: configuration of the clips.
      optimizer: configuration of the optimizer.
      schedule: configuration of the learning rate.
      model: name and fields of the model.
      batch_norm: ``"sync"``, ``"local"`` or ``"frozen"``.
      transfer: rules ``{"from": regex, "to": replacement}``, see :func:`transfer`.
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
    """The phases of a checked configuration; what a phase does not say is as for the whole recipe.

    A phase's ``data``, ``optimizer``, ``schedule`` and ``model`` are laid over those of the recipe key by key; an
    optimizer or schedule of another name stands alone.
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
    """The phase that leads to ``step``: at a border the one that ends there."""
    return next((phase for phase in recipe if step <= phase.stop), recipe[-1])


def transfer(tree: dict, expected: dict, fresh: Callable[[], dict], rules: Sequence[dict], phase: str) -> dict:
    """Variables at the start of a phase: those before it where they fit, new ones elsewhere, then the copies asked for.

    Args:
      tree: variables at the end of the phase before, nested dicts of arrays.
      expected: shapes of the variables of the phase.
      fresh: draws new variables of that shape; called only if the phase adds some.
      rules: ``{"from": regex, "to": replacement}`` in order: every array whose path (``module/.../name``, within its
        collection) starts with a match of ``from`` is copied to the path with the match replaced.
      phase: its name, for messages.

    Returns:
      A tree of the shape of ``expected``.

    Raises:
      UserError: if an array has another shape than before, or a rule matches nothing or leads nowhere.
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
        copies = 0
        for path in before:
            ours = "/".join(path[1:])
            match = re.match(rule["from"], ours)
            if match is None:
                continue
            target = (path[0], *(match.expand(rule["to"]) + ours[match.end():]).split("/"))
            if target not in after or np.shape(after[target]) != np.shape(before[path]):
                raise UserError(f"The transfer rule '{rule['from']}' to '{rule['to']}' of phase '{phase}' leads from"
                                f" '{ours}' to '{'/'.join(target[1:])}', which the model does not have in that shape.")
            after[target] = before[path]
            copies += 1
        if not copies:
            raise UserError(f"The transfer rule '{rule['from']}' of phase '{phase}' matches no parameter.")
    return unflatten_dict({path: after[path] for path in expected})
