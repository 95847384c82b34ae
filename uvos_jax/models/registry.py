"""The table of systems, and how a model is built by name."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.models.adnet.model import ADNet
from uvos_jax.models.base import Model, ParityTrace
from uvos_jax.models.cfbi.model import CFBI
from uvos_jax.models.dpa.model import DPA
from uvos_jax.models.dtnet.model import DTNet
from uvos_jax.models.f2net.model import F2Net
from uvos_jax.models.raft.model import RAFT

# Limits that stop a mistyped number before a network of that size takes all memory.
_MAX_DEPTH = 200  # blocks of a stage
_MAX_WIDTH = 2**15 - 1  # channels, or pixels of a side
_MAX_STEPS = 2**31 - 1
_MAX_OBJECTS = 254  # label maps are uint8; 0 is background and 255 void
_OBJECT_COUNTS = ("max_tracks", "max_proposals")


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        model: Model class; its dataclass fields are the hyper-parameters.
        paper: Name of the system and where it was published.
        summary: What it segments, for ``uvos models``.
        needs: What it needs beside weights, for ``uvos models``.
    """

    model: type[Model]
    paper: str
    summary: str
    needs: str


SYSTEMS: dict[str, System] = {
    "adnet": System(ADNet, "Anchor Diffusion, ICCV 2019", "unsupervised, one foreground", "frames"),
    "cfbi": System(CFBI, "Collaborative VOS by Foreground-Background Integration, ECCV 2020",
                   "semi-supervised, many objects", "frames, and masks of the objects"),
    "dpa": System(DPA, "Dual Prototype Attention, CVPR 2024", "unsupervised, one foreground",
                  "frames (optical flow is computed automatically)"),
    "dtnet": System(DTNet, "D-Net / T-Net, target-aware discovery and association, CVPR 2021",
                    "unsupervised, many objects", "frames"),
    "f2net": System(F2Net, "Focus on Foreground Network, AAAI 2021", "unsupervised, one foreground", "frames"),
    "raft": System(RAFT, "RAFT, ECCV 2020", "optical flow", "pairs of frames"),
}


def system(name: str) -> System:
    """Returns the row of a system.

    Raises:
        UserError: There is no such system; the message names the nearest one.
    """
    if not isinstance(name, str) or name not in SYSTEMS:
        raise UserError(f"There is no model '{name}'.{nearest_hint(str(name), SYSTEMS)} Known: {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def systems_for(*tasks: str) -> list[str]:
    """Returns the names of the systems whose task is one of ``tasks``."""
    return [name for name, row in SYSTEMS.items() if row.model.task in tasks]


def parity_traces() -> dict[str, tuple[str, ParityTrace]]:
    """Returns ``{system in a reference file: (model name, trace)}`` of all models."""
    return {key: (name, trace) for name, row in SYSTEMS.items() for key, trace in row.model.TRACES.items()}


def build(name: str, **overrides: Any) -> Model:
    """Builds a model by name.

    Args:
        name: A key of ``SYSTEMS``.
        **overrides: Fields of the model. Lists become tuples and ``dtype`` may be a name, so that the hyper-parameters
            in a checkpoint's JSON can be passed as they are.

    Raises:
        UserError: The name, a field or a value is unknown.
    """
    row = system(name)
    fields = {f.name: f.default for f in _fields(row.model)}
    values = {}
    for key, value in overrides.items():
        if key not in fields:
            raise UserError(f"{name} has no option '{key}'.{nearest_hint(key, fields)}")
        known = {"variant": row.model.VARIANTS, **row.model.CHOICES}.get(key)
        if known and value not in known:
            hint = nearest_hint(str(value), known)
            raise UserError(f"{name} has no {key} '{value}'.{hint} Known: {', '.join(known)}.")
        values[key] = _checked(name, key, value, fields[key])
    return row.model(**values)


def hyper_parameters(model: nn.Module) -> dict[str, Any]:
    """Returns the fields of a model as JSON values; ``build(name, **fields)`` makes the same model."""
    values = {f.name: getattr(model, f.name) for f in _fields(model)}
    return {k: jnp.dtype(v).name if k == "dtype" else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _fields(model):
    return [f for f in dataclasses.fields(model) if f.name not in ("parent", "name")]  # those two are Flax's


def _checked(name, key, value, default):
    """The value of a field, of the kind of its default; anything else would fail deep inside a network."""
    if key == "dtype":
        known = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
        try:
            dtype = known.get(value if isinstance(value, str) else jnp.dtype(value).name)
        except TypeError:  # no data type at all
            dtype = None
        wanted, ok, value = " or ".join(known), dtype is not None, dtype
    elif isinstance(default, tuple):
        wanted = f"a list of {len(default)} whole numbers from 1 to {_MAX_DEPTH}"
        ok = (isinstance(value, (list, tuple)) and len(value) == len(default)
              and all(_is_count(v, _MAX_DEPTH) for v in value))
        value = tuple(value) if ok else value
    elif isinstance(default, bool):
        wanted, ok = "true or false", isinstance(value, bool)
    elif isinstance(default, int):
        least, most = (1, _MAX_WIDTH) if default else (0, _MAX_STEPS)  # of what can be left out, zero says so
        most = _MAX_OBJECTS if key in _OBJECT_COUNTS else most
        wanted, ok = f"a whole number from {least} to {most}", _is_count(value, most, least)
    elif isinstance(default, float):
        wanted = "a number from 0 to 1"
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    else:
        wanted, ok = "a name", isinstance(value, str) or value is default
    if not ok:
        raise UserError(f"{name}'s option {key} wants {wanted}.")
    return value


def _is_count(value, most, least=1):
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
