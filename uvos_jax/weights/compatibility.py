"""Names of version 0.1 and their current names, so that its checkpoints and packaged weights still load."""

import re
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

_ASPP = ((r"((?:^|/)\w*aspp)/(branch\d|pool|project)_", r"\1/\2/"),)  # one ConvNorm per branch

# Hyper-parameters, by system.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "cfbi": {"slots": "max_objects", "own_labels": "use_predicted_masks", "ramp": "bootstrap_steps"},
    "dtnet": {"tracks": "max_tracks", "proposals": "max_proposals", "task": "trained_part",
              "own_features": "use_target_backbone"},
    "f2net": {"centre_features": "center_features", "centre_embedding": "center_embedding",
              "lost_below": "min_peak_score"},
}
# Paths of variables, by system: regular expressions and their replacements, applied in order to the path without its
# collection, e.g. ``aspp/branch0_conv/kernel``.
VARIABLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "adnet": (
        *_ASPP,
        (r"^aux_(conv|bn)/", r"aux/\1/"),
        (r"^cls_conv1/", "classifier_hidden/conv/"),
        (r"^cls_bn/", "classifier_hidden/bn/"),
        (r"^cls_conv2/", "classifier/"),
    ),
    "cfbi": (
        (r"^decoder/(low|merge2|aspp/[a-z\d]+)_", r"decoder/\1/"),
        (r"^embed_depthwise/", "embed/depthwise/conv/"),
        (r"^embed_bn1/", "embed/depthwise/norm/"),
        (r"^embed_conv/", "embed/pointwise/conv/"),
        (r"^embed_bn2/", "embed/pointwise/norm/"),
        (r"^head/(depthwise\d)/kernel$", r"head/\1/conv/kernel"),
        (r"^head/(prehead|fine|merge2|pointwise\d|aspp/\w+)_conv/", r"head/\1/conv/"),
        (r"^head/(prehead|fine|merge2|pointwise\d|depthwise\d|aspp/\w+)_bn/", r"head/\1/norm/"),
    ),
    "dpa": _ASPP,
    "dtnet": (
        *_ASPP,
        (r"^(dnet/\w+_decoder/layer\d)_(conv|bn)/", r"\1_skip/\2/"),
        (r"^(dnet/.*/(?:depthwise|pointwise))_(conv|bn)/", r"\1/\2/"),
    ),
    "f2net": (
        (r"^centre/", "center/"),
        *_ASPP,
        (r"^embed_(conv|bn)/", r"embed/\1/"),
        (r"^center/fresh/", "center/frame_heat/"),
        (r"^cls_conv1/", "classifier_hidden/conv/"),
        (r"^cls_bn/", "classifier_hidden/bn/"),
        (r"^cls_conv2/", "classifier/"),
        (r"^(center/cross|center/up\d/skip|center/up\d/up|fusion/squeeze)/kernel$", r"\1/conv/kernel"),
        (r"^(center/cross|center/up\d/skip|center/up\d/up|fusion/squeeze)_bn/", r"\1/bn/"),
    ),
    "raft": (
        (r"^([fc]net)/conv1/", r"\1/stem/conv/"),
        (r"^([fc]net)/norm1/", r"\1/stem/bn/"),
        (r"^([fc]net)/conv2/", r"\1/project/"),
        (r"^([fc]net/layer\d_\d)/conv(\d)/", r"\1/unit\2/conv/"),
        (r"^([fc]net/layer\d_\d)/norm(\d)/", r"\1/unit\2/bn/"),
        (r"^([fc]net/layer\d_\d)/downsample_conv/", r"\1/downsample/conv/"),
        (r"^([fc]net/layer\d_\d)/downsample_norm/", r"\1/downsample/bn/"),
    ),
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
