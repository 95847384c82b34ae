"""The published systems, one a file, and the table of their names.

A model is a Flax module with the functions that training, streaming and benchmarking share (``encode``,
``init_state``, ``predict``, ``commit``, ``loss``, ``to_native``); see ``docs/contract.md``.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.models import adnet


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
      model: the Flax module class; its fields are the hyper-parameters.
      paper: what the system is called and where it was published.
      task: what it segments, from what.
      inputs: what it needs beside weights.
      variants: values of the module's ``variant``.
      choices: fields that take one of a few names.
      torch_rules: ``torch_rules(model) -> (pattern, key, layout)`` entries for the published checkpoints.
    """

    model: type[nn.Module]
    paper: str
    task: str
    inputs: str
    variants: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]
    torch_rules: Any


SYSTEMS = {
    "adnet": System(adnet.ADNet, "Anchor Diffusion, ICCV 2019", "unsupervised, one foreground", "frames",
                    adnet.VARIANTS, {"net": tuple(adnet.NETS)}, adnet.torch_rules),
}


def system(name: str) -> System:
    """The table's row for ``name``; raises ``UserError`` with the nearest match for an unknown one."""
    if name not in SYSTEMS:
        raise UserError(f"There is no model '{name}'.{nearest_hint(name, SYSTEMS)} Known: {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def build(name: str, **overrides) -> nn.Module:
    """Builds a model by name.

    Args:
      name: a key of ``SYSTEMS``.
      **overrides: fields of its module; lists become tuples and ``dtype`` may be a name, so that the hyper-parameters
        of a checkpoint's JSON file can be passed as they are.

    Raises:
      UserError: for an unknown name, field, variant or choice.
    """
    row = system(name)
    fields = {f.name for f in dataclasses.fields(row.model)} - {"parent", "name"}
    for key, value in overrides.items():
        if key not in fields:
            raise UserError(f"{name} has no option '{key}'.{nearest_hint(key, fields)}")
        known = {"variant": row.variants, **row.choices}.get(key)
        if known and value not in known:
            hint = nearest_hint(str(value), known)
            raise UserError(f"{name} has no {key} '{value}'.{hint} Known: {', '.join(known)}.")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    if isinstance(values.get("dtype"), str):
        values["dtype"] = jnp.dtype(values["dtype"]).type
    return row.model(**values)


def hyper_parameters(model: nn.Module) -> dict[str, Any]:
    """The fields of a model as JSON values, such that ``build(name, **fields)`` makes it again."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("parent", "name")}
    return {k: jnp.dtype(v).name if k == "dtype" else list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
