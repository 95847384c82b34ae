"""Names of version 0.1 and their current names, so that its checkpoints and packaged weights still load."""

import re
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

_ASPP = ((r"((?:^|/)\w*aspp)/(branch\d|pool|project)_", r"\1/\2/"),)  # one ConvNorm per branch

# Hyper-parameters, by system.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "cfbi": {"slots": "max_objects", "own_labels": "use_predicted_masks", "ramp": "bootstrap_steps"},
    "dtnet": {"tracks": "max_tracks", "proposals": "max_proposals", "task": "trained_part"},
    "f2net": {"centre_features": "center_features", "centre_embedding": "center_embedding"},
}
# Paths of variables, by system: regular expressions and their replacements, applied in order to the path without its
# collection, e.g. ``aspp/branch0_conv/kernel``.
VARIABLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "adnet": _ASPP,
    "cfbi": ((r"^decoder/aspp/(branch\d|pool|project)_", r"decoder/aspp/\1/"),),
    "dpa": _ASPP,
    "dtnet": _ASPP,
    "f2net": ((r"^centre/", "center/"), *_ASPP),
}
# Keys of the JSON beside the weights.
METADATA: Mapping[str, str] = {"licence": "license"}


def is_from_0_1(meta: Mapping[str, Any]) -> bool:
    """Returns whether version 0.1 wrote the JSON beside some weights."""
    return str(meta.get("uvos_jax", "")).startswith("0.1.")


def current_fields(system: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyper-parameters of ``system`` under their current names.

    Raises:
        TypeError: ``fields`` is not a mapping.
    """
    names = FIELDS.get(system, {})
    return {names.get(key, key): value for key, value in {**fields}.items()}


def current_metadata(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON beside some weights with current keys and hyper-parameter names."""
    meta = {METADATA.get(key, key): value for key, value in {**meta}.items()}
    return meta | {"hyper_parameters": current_fields(str(meta["model"]), meta["hyper_parameters"])}


def current_path(system: str, path: str) -> str:
    """Returns the current path of a variable of version 0.1, e.g. ``aspp/branch0/conv/kernel``, without collection."""
    for pattern, replacement in VARIABLES.get(system, ()):
        path = re.sub(pattern, replacement, path)
    return path


def current_variables(system: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree ``{"params": ..., "batch_stats": ...}`` of version 0.1 under current names."""
    return unflatten_dict({(path[0], *current_path(system, "/".join(path[1:])).split("/")): leaf
                           for path, leaf in flatten_dict(dict(variables)).items()})
