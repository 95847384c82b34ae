"""Renaming of version 0.1 variables to their current names."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.helpers.small_adnet import SMALL
from uvos_jax import UserError
from uvos_jax.inference.loading import random_variables
from uvos_jax.models import build
from uvos_jax.weights import checkpoints, packaged
from uvos_jax.weights.compatibility import current_path


@pytest.mark.parametrize(("system", "old", "new"), [
    ("adnet", "aspp/branch0_conv/kernel", "aspp/branch0/conv/kernel"),
    ("dpa", "motion_stream/context/aspp/pool_bn/var", "motion_stream/context/aspp/pool/bn/var"),
    ("dtnet", "dnet/salient_aspp/project_bn/mean", "dnet/salient_aspp/project/bn/mean"),
    ("dtnet", "dnet/instance_decoder/layer2_bn/var", "dnet/instance_decoder/layer2_skip/bn/var"),
    ("dtnet", "dnet/heat_head/hidden/depthwise_conv/kernel", "dnet/heat_head/hidden/depthwise/conv/kernel"),
    ("dtnet", "reid/head_conv/kernel", "reid/head_conv/kernel"),
    ("f2net", "centre/cross/kernel", "center/cross/conv/kernel"),
    ("f2net", "centre/up4/up_bn/mean", "center/up4/up/bn/mean"),
    ("f2net", "centre/fresh/bias", "center/frame_heat/bias"),
    ("f2net", "cls_conv1/bias", "classifier_hidden/conv/bias"),
    ("f2net", "fusion/squeeze/kernel", "fusion/squeeze/conv/kernel"),
    ("cfbi", "embed_bn2/scale", "embed/pointwise/norm/scale"),
    ("cfbi", "decoder/low_conv/kernel", "decoder/low/conv/kernel"),
    ("cfbi", "head/depthwise1/kernel", "head/depthwise1/conv/kernel"),
    ("cfbi", "head/depthwise1_bn/bias", "head/depthwise1/norm/bias"),
    ("cfbi", "head/aspp/branch0_bn/scale", "head/aspp/branch0/norm/scale"),
    ("cfbi", "head/aspp/branch0_gate/alpha", "head/aspp/branch0_gate/alpha"),
    ("cfbi", "head/block8/downsample_conv/kernel", "head/block8/downsample_conv/kernel"),
    ("cfbi", "decoder/aspp/branch3_bn/scale", "decoder/aspp/branch3/bn/scale"),
    ("adnet", "aux_bn/scale", "aux/bn/scale"),
    ("adnet", "cls_conv1/bias", "classifier_hidden/conv/bias"),
    ("adnet", "cls_conv2/kernel", "classifier/kernel"),
    ("raft", "fnet/conv1/kernel", "fnet/stem/conv/kernel"),
    ("raft", "cnet/norm1/mean", "cnet/stem/bn/mean"),
    ("raft", "cnet/conv2/bias", "cnet/project/bias"),
    ("raft", "fnet/layer2_0/conv2/kernel", "fnet/layer2_0/unit2/conv/kernel"),
    ("raft", "cnet/layer3_0/norm1/scale", "cnet/layer3_0/unit1/bn/scale"),
    ("raft", "cnet/layer3_0/downsample_conv/kernel", "cnet/layer3_0/downsample/conv/kernel"),
    ("raft", "cnet/layer3_0/downsample_norm/var", "cnet/layer3_0/downsample/bn/var"),
    ("raft", "update/gru/convz1/kernel", "update/gru/convz1/kernel"),
])
def test_paths_of_0_1_are_renamed_idempotently(system, old, new):
    assert current_path(system, old) == new
    assert current_path(system, new) == new


@pytest.fixture
def old_checkpoint(tmp_path):
    """A checkpoint with the names of version 0.1 and its variables under current names."""
    model = build("adnet", **SMALL)
    variables = random_variables(model)
    old = {}
    for path, leaf in flatten_dict(variables).items():
        if path[1] == "aspp":
            path = (*path[:2], f"{path[2]}_{path[3]}", *path[4:])
        old[path] = np.asarray(leaf)
    directory = tmp_path / "old"
    checkpoints.save(directory, "adnet", model, unflatten_dict(old), "random")
    file = directory / "uvos.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"uvos_jax": "0.1.0"}))
    return directory, variables


def test_checkpoint_of_0_1_loads(old_checkpoint):
    directory, variables = old_checkpoint
    _, _, loaded = checkpoints.load(directory)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, variables))


def test_damaged_weights_of_0_1_are_rejected(old_checkpoint):
    directory, _ = old_checkpoint
    file = directory / "uvos.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(UserError):
        checkpoints.load(directory)


@pytest.mark.parametrize("weights", packaged.packaged_names())
def test_packaged_weights_are_recognized_by_old_and_new_digest(weights):
    _, _, variables = packaged.load_packaged(weights)
    assert packaged.recognized(checkpoints.digest(variables)) == weights
    assert packaged.recognized(packaged.about(weights)["sha256"]) == weights
