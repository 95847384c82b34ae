"""The table of systems, and how a model is built by name."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from uvos_jax import config_schema
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.models.adnet.model import ADNet
from uvos_jax.models.base import Model, ParityTrace
from uvos_jax.models.cfbi.model import CFBI
from uvos_jax.models.dpa.model import DPA
from uvos_jax.models.dtnet.model import DTNet
from uvos_jax.models.f2net.model import F2Net
from uvos_jax.models.raft.model import RAFT

# Limits that catch a mistyped number before a network of that size exhausts memory.
_MAX_DEPTH = 200  # blocks per stage
_MAX_WIDTH = 2**15 - 1  # channels, or pixels per side
_MAX_OBJECTS = 254  # label maps are uint8; 0 is background and 255 void
_OBJECT_COUNTS = ("max_tracks", "max_proposals")
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


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
        UserError: The name is unknown; the message lists all names and suggests the nearest one.
    """
    if not isinstance(name, str) or name not in SYSTEMS:
        raise UserError(f"Unknown model '{name}'; valid models: {', '.join(SYSTEMS)}."
                        f"{nearest_hint(str(name), SYSTEMS)}")
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
        name: Key of ``SYSTEMS``.
        **overrides: Fields of the model. Lists become tuples and ``dtype`` may be a name, so the hyper-parameters in
            a checkpoint's JSON can be passed unchanged.

    Raises:
        UserError: The name or a field is unknown, or a value is invalid.
    """
    model = system(name).model
    schema = _schema(model)
    config_schema.check_keys(overrides, schema, f"the hyper-parameters of {name}")
    for key, value in overrides.items():
        config_schema.check_value(value, schema[key], f"The hyper-parameter '{key}' of {name}")
    values: dict[str, Any] = {key: _field_value(key, value) for key, value in overrides.items()}
    return model(**values)


def hyper_parameters(model: nn.Module) -> dict[str, Any]:
    """Returns the fields of a model as JSON values; ``build(name, **fields)`` makes the same model."""
    values = {f.name: getattr(model, f.name) for f in _fields(model)}
    return {k: jnp.dtype(v).name if k == "dtype" else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _fields(model):
    return [f for f in dataclasses.fields(model) if f.name not in ("parent", "name")]  # those two are Flax's


def _schema(model):
    """Returns ``{field: Option}`` of a model, by the names a field takes or the type of its default."""
    choices = {"variant": model.VARIANTS, **model.CHOICES}
    return {field.name: config_schema.choice(field.default, choices[field.name]) if field.name in choices
            else _option(field.name, field.default) for field in _fields(model)}


def _option(key, default):
    if key == "dtype":
        return config_schema.Option(default, f"one of {', '.join(_DTYPES)}", lambda value: _dtype(value) is not None,
                                    tuple(_DTYPES))
    if isinstance(default, tuple):
        return config_schema.integers(default, f"a list of {len(default)} integers", len(default), 1, _MAX_DEPTH)
    if isinstance(default, bool):
        return config_schema.boolean(default)
    if key in _OBJECT_COUNTS:
        return config_schema.integer(default, 1, _MAX_OBJECTS)
    if isinstance(default, int):  # 0 by default: an optional count of training steps
        return config_schema.integer(default, 1, _MAX_WIDTH) if default else config_schema.integer(default, 0)
    if isinstance(default, float):
        return config_schema.fraction(default)
    return config_schema.string(default) if isinstance(default, str) else config_schema.optional(
        config_schema.string(default))


def _field_value(key, value):
    """Returns a valid value as the model's field holds it: hashable, and written to JSON unchanged."""
    if key == "dtype":
        return _dtype(value)
    if isinstance(value, list | tuple):
        return tuple(int(entry) for entry in value)
    return value.item() if isinstance(value, np.generic) else value


def _dtype(value):
    try:
        return _DTYPES.get(value if isinstance(value, str) else jnp.dtype(value).name)
    except (TypeError, ValueError):  # not a dtype
        return None
