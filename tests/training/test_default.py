"""The recipe of the packaged network (``configs/default.py``)."""


import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.paths import CONFIGS
from uvos_jax.models import hyper_parameters
from uvos_jax.training.config import load_config
from uvos_jax.training.phases import phases
from uvos_jax.training.setup import first_state, setup
from uvos_jax.weights.packaged import load_packaged

DEFAULT = CONFIGS / "default.py"


def _mixtures(config):
    return [{entry["name"]: entry for entry in phase["data"]["mixture"]} for phase in config["phases"]]


def test_every_sequence_is_held_back_in_exactly_one_fold():
    folds = [load_config(f"{DEFAULT}:fold{k}") for k in range(3)]
    held = [config["validate"]["only"] for config in folds]
    assert [len(names) for names in held] == [10, 10, 10] and len(set().union(*held)) == 30
    for config, names in zip(folds, held, strict=True):
        assert all(mixture["davis2016"]["exclude"] == names for mixture in _mixtures(config))
    # The packaged weights are trained with the same recipe on all sequences.
    full = load_config(str(DEFAULT))
    for mixture in _mixtures(full):
        assert not mixture["davis2016"].pop("exclude", ())
    for mixture in _mixtures(folds[0]):
        mixture["davis2016"].pop("exclude")
    differing = {key for key in full if full[key] != folds[0][key]}
    assert differing == {"validate"} and full["validate"] is None


def test_synthetic_presets_use_only_synthetic_clips():
    for preset in ("synthetic", "small_synthetic"):
        config = load_config(f"{DEFAULT}:{preset}")
        assert all(set(mixture) == {"synthetic"} for mixture in _mixtures(config)) and not config.get("init")


@pytest.mark.parametrize(("preset", "data", "streams"), [
    ("small_synthetic", {"synthetic"}, "motion"), ("small_duts", {"synthetic", "duts"}, "motion"),
    ("small_motion", {"synthetic", "duts", "davis2016"}, "motion"),
    ("small_appearance", {"synthetic", "duts", "davis2016"}, "appearance"),
    ("small_both", {"synthetic", "duts", "davis2016"}, "both"),
])
def test_small_presets_differ_only_in_data_and_streams(preset, data, streams):
    config, fold = load_config(f"{DEFAULT}:{preset}"), load_config(f"{DEFAULT}:fold0")
    (mixture,) = _mixtures(config)
    assert set(mixture) == data and config["model"]["streams"] == streams
    assert config["phases"][0]["steps"] == 200 and config["validate"]["only"] == fold["validate"]["only"]
    if "davis2016" in data:
        assert mixture["davis2016"]["exclude"] == fold["validate"]["only"]


@pytest.mark.slow
def test_packaged_weights_match_the_recipe_and_initialize_fine_tuning():
    name, model, variables = load_packaged()
    tuned = load_config(str(DEFAULT), ["data=folder:clips"])
    assert name == "dpa" and tuned["init"] == {"weights": "default"}
    recipe = {key: value for key, value in load_config(str(DEFAULT))["model"].items() if key != "name"}
    theirs = hyper_parameters(model)
    assert recipe == {key: theirs[key] for key in recipe} and model.refine
    (phase,) = phases(tuned)
    begun = flatten_dict(first_state(tuned, setup(tuned, phase)).params, sep="/")
    packed = flatten_dict(variables["params"], sep="/")
    assert begun.keys() == packed.keys()
    for path, leaf in packed.items():
        np.testing.assert_array_equal(jax.device_get(begun[path]), leaf, err_msg=path)
