"""Initialization of backbones from ImageNet classifiers."""

import re
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from uvos_jax.errors import UserError
from uvos_jax.nn import resnet, vgg
from uvos_jax.weights.convert import convert, unwrap

# The classification head, which is not used.
_HEADS = re.compile(r"(fc|classifier(\.\d+)?)\.(weight|bias)")


def backbone_from_torch(variables: dict, state_dict: Mapping[str, np.ndarray], *backbones: str) -> dict:
    """Replaces backbones in a model's variables by a pretrained one; other variables are unchanged.

    Supported are torchvision's ResNets with bottlenecks (``conv1``, ``layer1.0.conv1``, ...) and VGG-16
    (``features.0``, ...), and ResNets with a deep stem (``conv1`` to ``conv3``). Depth and stem must match the model.
    If the model's stem has a fourth input channel, its weights are zero.

    Args:
        variables: ``{"params": ..., "batch_stats": ...}`` of any model.
        state_dict: Arrays by PyTorch key, wrapped or not.
        *backbones: Paths of the ``ResNet`` or ``VGG16`` modules in the variables, ``/`` between modules, such as
            ``*model.backbones``; "backbone" if none are given.

    Returns:
        A new tree of variables.

    Raises:
        UserError: The model has no such backbone, or keys are missing, extra or misshapen.
    """
    state_dict = {key: value for key, value in unwrap(state_dict).items() if not _HEADS.fullmatch(key)}
    for backbone in backbones or ("backbone",):
        variables = _replace(variables, state_dict, backbone)
    return variables


def _replace(variables, state_dict, backbone):
    flat = flatten_dict(variables)
    inside = tuple(backbone.split("/"))
    part = {path: leaf for path, leaf in flat.items() if path[1:1 + len(inside)] == inside}
    if not part:
        raise UserError(f"The model has no backbone at '{backbone}'.")
    if any(path[-2].startswith("layer1") or path[-3:-2] == ("layer1_0",) for path in part):
        rules, kind = resnet.torch_rules(backbone, ""), "this ResNet backbone"
        state_dict = _with_fourth_channel(state_dict, part[("params", *inside, "conv1", "kernel")])
    else:
        rules, kind = vgg.torch_rules(backbone, "features."), "this VGG-16 backbone"
    loaded = convert(jax.eval_shape(lambda: unflatten_dict(part)), state_dict, rules, what=kind)
    return unflatten_dict(flat | flatten_dict(loaded))


def _with_fourth_channel(state_dict, stem):
    """Returns the state_dict with zeros for the model's fourth stem channel, if it has one."""
    theirs = state_dict.get("conv1.weight")
    if getattr(theirs, "ndim", 0) != 4 or stem.shape[2] != theirs.shape[1] + 1:
        return state_dict
    return state_dict | {"conv1.weight": np.pad(theirs, ((0, 0), (0, 1), (0, 0), (0, 0)))}
