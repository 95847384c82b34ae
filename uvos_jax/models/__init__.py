"""The published systems, one a file, and the table of their names.

A model is a Flax module with the functions that training, streaming and benchmarking share (``encode``,
``init_state``, ``predict``, ``commit``, ``loss``, ``to_native``); see ``docs/contract.md``.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.models import dtnet
from uvos_jax.models.adnet import model as adnet
from uvos_jax.models.cfbi import model as cfbi
from uvos_jax.models.dpa import model as dpa
from uvos_jax.models.f2net import model as f2net
from uvos_jax.models.raft import model as raft

# Building a network takes time and memory by its size alone, and a mistyped number must not take all there is.
_DEEPEST = 200  # blocks of a stage
_WIDEST = 2**15 - 1  # channels, pixels of a side
_LONGEST = 2**31 - 1  # steps
# Numbers of objects in bytes, of which 0 is background and 255 void.
_PLACES, _MOST_PLACES = ("max_tracks", "max_proposals"), 254


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
      torch_rules: ``torch_rules(model) -> (pattern, key, layout)`` entries for the published checkpoints; None if there
        are none.
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
    "cfbi": System(cfbi.CFBI, "Collaborative VOS by Foreground-Background Integration, ECCV 2020",
                   "semi-supervised, many objects", "frames, and masks of the objects", cfbi.VARIANTS, {},
                   cfbi.torch_rules),
    "dpa": System(dpa.DPA, "Dual Prototype Attention, CVPR 2024", "unsupervised, one foreground",
                  "frames (optical flow is made by the way)", dpa.VARIANTS, {"streams": tuple(dpa.STREAMS)},
                  dpa.torch_rules),
    "dtnet": System(dtnet.DTNet, "D-Net / T-Net, target-aware discovery and association, CVPR 2021",
                    "unsupervised, many objects", "frames", dtnet.VARIANTS,
                    {"trained_part": dtnet.TRAINED_PARTS, "squeeze": dtnet.SQUEEZES}, None),
    "f2net": System(f2net.F2Net, "Focus on Foreground Network, AAAI 2021", "unsupervised, one foreground", "frames",
                    f2net.VARIANTS, {"net": f2net.NETS, "selection": f2net.SELECTIONS, "prior_from": f2net.PRIORS},
                    f2net.torch_rules),
    "raft": System(raft.RAFT, "RAFT, ECCV 2020", "optical flow", "pairs of frames", raft.VARIANTS,
                   {"net": raft.NETS, "correlation": raft.CORRELATIONS}, raft.torch_rules),
}


def system(name: str) -> System:
    """The table's row for ``name``; raises ``UserError`` with the nearest match for an unknown one."""
    if not isinstance(name, str) or name not in SYSTEMS:
        raise UserError(f"There is no model '{name}'.{nearest_hint(str(name), SYSTEMS)} Known: {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def segments(model: nn.Module | type[nn.Module]) -> bool:
    """Whether a model, or a row's class, makes masks; others make flow."""
    return hasattr(model, "predict") or hasattr(model, "discover")


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
    fields = {f.name: f.default for f in _fields(row.model)}
    values = {}
    for key, value in overrides.items():
        if key not in fields:
            raise UserError(f"{name} has no option '{key}'.{nearest_hint(key, fields)}")
        known = {"variant": row.variants, **row.choices}.get(key)
        if known and value not in known:
            hint = nearest_hint(str(value), known)
            raise UserError(f"{name} has no {key} '{value}'.{hint} Known: {', '.join(known)}.")
        values[key] = _checked(name, key, value, fields[key])
    return row.model(**values)


def hyper_parameters(model: nn.Module) -> dict[str, Any]:
    """The fields of a model as JSON values, such that ``build(name, **fields)`` makes it again."""
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
        wanted = f"a list of {len(default)} whole numbers from 1 to {_DEEPEST}"
        ok = (isinstance(value, (list, tuple)) and len(value) == len(default)
              and all(_is_count(v, _DEEPEST) for v in value))
        value = tuple(value) if ok else value
    elif isinstance(default, bool):
        wanted, ok = "true or false", isinstance(value, bool)
    elif isinstance(default, int):
        least, most = (1, _WIDEST) if default else (0, _LONGEST)  # of what can be left out, zero says so
        most = _MOST_PLACES if key in _PLACES else most
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
