"""Names of version 0.1 and what they are called now, so that its checkpoints and packaged weights still load."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

# Fields of a model, by system.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "cfbi": {"slots": "max_objects", "own_labels": "use_predicted_masks", "ramp": "bootstrap_steps"},
    "dtnet": {"tracks": "max_tracks", "proposals": "max_proposals", "task": "trained_part"},
}
# Submodules at the top of a network, by system.
MODULES: Mapping[str, Mapping[str, str]] = {"f2net": {"centre": "center"}}
# Keys of the JSON beside the weights.
METADATA: Mapping[str, str] = {"licence": "license"}


def is_from_0_1(meta: Mapping[str, Any]) -> bool:
    """Whether the JSON beside some weights was written by version 0.1."""
    return str(meta.get("uvos_jax", "")).startswith("0.1.")


def current_fields(system: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyper-parameters of ``system`` under their current names.

    Raises:
        TypeError: ``fields`` is not a mapping.
    """
    names = FIELDS.get(system, {})
    return {names.get(key, key): value for key, value in {**fields}.items()}


def current_metadata(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON beside some weights with current keys and field names."""
    meta = {METADATA.get(key, key): value for key, value in {**meta}.items()}
    return meta | {"hyper_parameters": current_fields(str(meta["model"]), meta["hyper_parameters"])}


def current_variables(system: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree ``{"params": ..., "batch_stats": ...}`` of version 0.1 under current names."""
    return _renamed(variables, MODULES.get(system, {}))


def variables_of_0_1(system: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree ``{"params": ..., "batch_stats": ...}`` under the names that version 0.1 stored."""
    return _renamed(variables, {new: old for old, new in MODULES.get(system, {}).items()})


def _renamed(variables, names):
    return unflatten_dict({(path[0], names.get(path[1], path[1]), *path[2:]): leaf
                           for path, leaf in flatten_dict(dict(variables)).items()})
