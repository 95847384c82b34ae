"""Checkpoints of version 0.1 load under the current names and reproduce the stored outputs.

``tests/golden/checkpoints_0_1`` holds one tiny network per system, written and run by version 0.1: ``<system>.zip`` is
the checkpoint directory, ``<system>.npz`` a clip and the outputs of the training forward pass in evaluation mode.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.helpers.paths import GOLDEN
from uvos_jax.models import hyper_parameters
from uvos_jax.weights import checkpoints

STORED = GOLDEN / "checkpoints_0_1"


@pytest.fixture
def unpacked(tmp_path):
    """Function that unpacks a system's checkpoint and returns its directory."""
    def unpack(system):
        shutil.unpack_archive(STORED / f"{system}.zip", tmp_path / system)
        return tmp_path / system

    return unpack


def _check_outputs(model, variables, system, prefix=""):
    with np.load(STORED / f"{system}.npz") as file:
        tensors = dict(file)
    clip = {name.removeprefix("clip/"): x for name, x in tensors.items() if name.startswith("clip/")}
    expected = {name.removeprefix("output/"): x for name, x in tensors.items() if name.startswith("output/")}
    expected = {name.removeprefix(prefix): x for name, x in expected.items() if name.startswith(prefix)}
    outputs, _ = jax.jit(lambda v, c: model.apply(v, model.training_batch(c)))(variables, clip)
    for name, value in outputs.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(np.asarray(value), expected[name], rtol=0, atol=1e-5 * scale, err_msg=name)
    return set(outputs)


@pytest.mark.parametrize(("system", "fields"), [
    ("adnet", {"aspp_features": 4, "width": 1}),
    ("cfbi", {"max_objects": 2, "use_predicted_masks": False, "bootstrap_steps": 7}),
    ("f2net", {"center_features": 4, "center_embedding": 2, "min_peak_score": 0.2}),
    ("dtnet", {"trained_part": "discovery", "max_tracks": 3, "max_proposals": 4,
               "use_target_backbone": True}),
])
def test_checkpoint_of_0_1_reproduces_stored_outputs(unpacked, system, fields):
    name, model, variables = checkpoints.load(unpacked(system))
    assert name == system and fields.items() <= hyper_parameters(model).items()
    assert _check_outputs(model, variables, system) >= ({"heat"} if system == "dtnet" else {"logits"})


def test_dtnet_of_0_1_reproduces_stored_embeddings(unpacked):
    _, model, variables = checkpoints.load(unpacked("dtnet"))
    assert _check_outputs(model.clone(trained_part="embedding"), variables, "dtnet", "embedding/") == {"embeddings"}


def test_field_of_0_1_can_be_overridden_by_current_name(unpacked):
    _, model, _ = checkpoints.load(unpacked("cfbi"), max_objects=5, bootstrap_steps=0)
    assert (model.max_objects, model.bootstrap_steps, model.use_predicted_masks) == (5, 0, False)


@pytest.mark.parametrize(("system", "old", "new", "value"), [
    ("f2net", "lost_below", "min_peak_score", 0.4), ("f2net", "centre_features", "center_features", 4),
    ("dtnet", "own_features", "use_target_backbone", True), ("dtnet", "tracks", "max_tracks", 9),
])
def test_values_of_renamed_fields_are_kept(unpacked, system, old, new, value):
    path = unpacked(system) / "uvos.json"
    meta = json.loads(path.read_text())
    assert old in meta["hyper_parameters"] and new not in meta["hyper_parameters"]
    path.write_text(json.dumps(meta | {"hyper_parameters": meta["hyper_parameters"] | {old: value}}))
    assert getattr(checkpoints.load(path.parent)[1], new) == value


def test_checkpoint_of_0_1_round_trips_under_current_names(unpacked, tmp_path):
    name, model, variables = checkpoints.load(unpacked("f2net"))
    checkpoints.save(tmp_path / "again", name, model, variables, "converted")
    _, again, loaded = checkpoints.load(tmp_path / "again")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
