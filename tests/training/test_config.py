"""Configurations: files, presets, overrides and error messages."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from tests.helpers.command_line import uvos
from tests.helpers.paths import CONFIGS
from uvos_jax.errors import UserError
from uvos_jax.training.config import CHANGEABLE, changed_keys, check, config_hash, load_config, override, plain
from uvos_jax.training.optimizers import make_schedule
from uvos_jax.training.phases import phases
from uvos_jax.training.setup import check_transfer, setup

FILE = '''
from ml_collections import ConfigDict
from configs import common

def get_config(arg="full"):
    steps = {"full": 1000, "tiny": 3}[arg]
    return ConfigDict({
        "model": {"name": "adnet", "short_side": 65, "depths": (1, 1, 1, 1)},
        "batch_size": common.BATCH, "optimizer": {"name": "sgd", "clip_norm": None, "momentum": 0.9},
        "schedule": {"name": "poly", "lr": 1e-3}, "data": {"size": (65, 65), "flow": False},
        "phases": [{"name": "a", "steps": steps}, {"name": "b", "steps": 7}],
    })
'''


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "common.py").write_text("BATCH = 6\n")
    (folder / "mine.py").write_text(FILE)
    return folder / "mine.py"


def test_preset_selects_settings_of_a_file(file):
    full, tiny = load_config(str(file)), load_config(f"{file}:tiny")
    assert full["phases"][0]["steps"] == 1000 and tiny["phases"][0]["steps"] == 3
    assert full["batch_size"] == 6
    assert full["seed"] == 0 and full["launcher"] == "pmap" and full["validate"] is None  # defaults
    assert full["data"]["size"] == [65, 65]


def test_sibling_modules_are_imported_from_the_folder_of_the_file(file, tmp_path):
    other = tmp_path / "elsewhere" / "configs"
    other.mkdir(parents=True)
    (other / "common.py").write_text("BATCH = 17\n")
    (other / "mine.py").write_text(FILE)
    modules, path = set(sys.modules), list(sys.path)
    assert load_config(str(other / "mine.py"))["batch_size"] == 17
    assert load_config(str(file))["batch_size"] == 6
    assert load_config(str(other / "mine.py"))["batch_size"] == 17
    assert sys.path == path and "configs" not in set(sys.modules) - modules


def test_recipes_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("default:fold0") == load_config(f"{CONFIGS / 'default.py'}:fold0")
    assert load_config("raft") == load_config(str(CONFIGS / "raft.py"))
    (tmp_path / "raft").mkdir()  # a folder of the same name is ignored
    assert load_config("raft:tiny") == load_config(f"{CONFIGS / 'raft.py'}:tiny")
    with pytest.raises(UserError, match=r"no configuration file or recipe 'defalt'. Recipes: adnet, cfbi, default, .*"
                                        r"Did you mean 'default'"):
        load_config("defalt:fold0")
    with pytest.raises(UserError, match="no configuration file or recipe 'common'"):
        load_config("common")


def test_relative_imports_work_for_a_file_given_by_path(tmp_path):
    folder = tmp_path / "my-configs"  # not an identifier
    folder.mkdir()
    (folder / "__init__.py").write_text("BATCH = 5\n")
    (folder / "common.py").write_text("from . import BATCH\n")
    (folder / "mine.py").write_text(FILE.replace("from configs import common", "from . import common"))
    assert load_config(str(folder / "mine.py"))["batch_size"] == 5


@pytest.mark.parametrize(("entry", "where", "value"), [
    ("batch_size=12", ("batch_size",), 12),
    ("optimizer.clip_norm=1", ("optimizer", "clip_norm"), 1),
    ("optimizer.clip_norm=None", ("optimizer", "clip_norm"), None),
    ("optimizer.momentum=0", ("optimizer", "momentum"), 0.0),
    ("schedule.lr=2.5e-4", ("schedule", "lr"), 2.5e-4),
    ("launcher=jit", ("launcher",), "jit"),
    ("schedule.name='cosine'", ("schedule", "name"), "cosine"),
    ("model.name=2016", ("model", "name"), "2016"),
    ("data.flow=True", ("data", "flow"), True),
    ("data.size=(97, 81)", ("data", "size"), [97, 81]),
    ("phases.1.steps=9", ("phases", 1, "steps"), 9),
    ("ema_decay=0.99", ("ema_decay",), 0.99),
    ("data_dir=/data/a=b", ("data_dir",), "/data/a=b"),
    ("data_dir=None", ("data_dir",), None),
    ("optimizer.weight_decay=0.1", ("optimizer", "weight_decay"), 0.1),  # a valid key that the file does not set
    ("model.remat=True", ("model", "remat"), True),
    ("data.geometry={'kind': 'resize'}", ("data", "geometry"), {"kind": "resize"}),
    ("init.backbone=a.pth", ("init", "backbone"), "a.pth"),
    ("phases.1.batch_norm=frozen", ("phases", 1, "batch_norm"), "frozen"),
    ("validate=None", ("validate",), None),
])
def test_overrides_set_value_and_type(file, entry, where, value):
    found = load_config(str(file), [entry])
    for key in where:
        found = found[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("entry", "message"), [
    ("batch_sise=12", "no 'batch_sise'.* Did you mean 'batch_size'"),
    ("phases.2.steps=9", "phases has no 2"),
    ("optimizr.momentum=0.8", "no 'optimizr.momentum'.* Did you mean 'optimizer'"),
    ("data.geometry.flip=1", "data has no geometry"),
    ("data..flow=1", "no 'data..flow'"),
    ("=1", "no ''"),
    ("seed.a=1", "seed has no a"),
    ("batch_size=2.5", "must be an integer"),
    ("batch_size=True", "must be an integer"),
    ("batch_size=many", "must be an integer"),
    ("data.flow=1", "must be True or False"),
    ("schedule.lr=fast", "must be a number"),
    ("data=3", "must be a dict"),
    ("data.size=7", "must be a list"),
    ("batch_size", "has no value"),
    ("batch_size=0", "batch_size must be an integer from 1 to"),
    ("batch_size=None", "Missing key 'batch_size'"),
    ("launcher=pmapp", "launcher must be one of pmap, shard_map, jit, not 'pmapp'.* Did you mean 'pmap'"),
    ("seed=-1", "seed must be"),
    ("seed=99999999999999999999", "seed must be an integer from 0 to 4294967295"),
    ("ema_decay=1.5", "ema_decay"),
    ("data_dir=5", "data_dir must be None or a string"),
    ("model={'width': 3}", "model must be a dict with a name"),
    ("init.backbon=a.pth", "Unknown key 'backbon' in the init configuration.* Did you mean 'backbone'"),
    ("init={'weights': 3}", "init configuration's weights must be"),
    ("validate={'every': 5, 'spilt': 'val'}", "Unknown key 'spilt'.* Did you mean 'split'"),
    ("validate={'every': -1}", "every must be an integer from 0"),
    ("validate={'every': 5, 'only': 'bear'}", "only must be None or a list of names"),
    ("validate={'every': 5, 'size': 'x'}", "size must be None or an integer"),
    ("validate={'every': 5, 'synthetic': 3}", "synthetic must be None or a dict"),
    ("validate={'every': 5, 'synthetic': {'length': 4}}",
     "Missing key 'count' in the validate.synthetic configuration"),
    ("validate={'every': 5, 'synthetic': {'count': 0}}", "validate.synthetic configuration's count must be"),
    ("phases=[]", "at least one phase"),
    ("phases=[3]", "phases must be a list of dicts"),
    ("phases=[{'name': 'a'}]", "Missing key 'steps' in the phases.0 configuration"),
    ("phases=[{'steps': 0}]", "phases.0 configuration's steps must be"),
    ("phases=[{'steps': 2000000000}, {'steps': 2000000000}]", "more than 2147483647 steps"),
    ("phases=[{'steps': 1, 'data': 3}]", "phases.0 configuration's data must be None or a dict"),
    ("phases=[{'steps': 1, 'optimizer': 'sgd'}]", "optimizer must be None or a dict"),
    ("phases=[{'steps': 1, 'batch_norm': 'locl'}]", "batch_norm must be one of sync, local, frozen"),
    ("phases=[{'steps': 1, 'transfer': [{'from': 'a', 'to': 'b'}]}]", "no earlier phase"),
    ("phases.1.transfer=3", "transfer must be None or a list of dicts"),
    ("phases.1.transfer=[{'from': '(', 'to': 'b'}]", "from must be a regular expression"),
    ("phases.1.transfer=[{'from': 'a'}]", "Missing key 'to' in the phases.1.transfer configuration"),
    (r"phases.1.transfer=[{'from': 'a', 'to': r'\2'}]", "invalid group reference"),
    ("phases=[{'steps': 1, 'optimizr': {}}]", "Did you mean 'optimizer'"),
])
def test_invalid_overrides_are_errors(file, entry, message):
    with pytest.raises(UserError, match=message):
        load_config(str(file), [entry])


@pytest.mark.parametrize(("text", "message"), [
    (None, "no configuration file"),
    ("x = 1\n", "get_config"),
    ("def get_config():\n    return 3\n", "must return"),
    ("def get_config():\n    return {'model': {'name': 'adnet'}}\n", "Missing key 'phases'"),
    ("def get_config(:\n", "SyntaxError"),
    ("import no_such_module_at_all\n", "no_such_module_at_all"),
    ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
])
def test_unusable_files_are_errors(tmp_path, text, message):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(path))
    with pytest.raises(UserError):
        load_config(f"{path}:preset")


def test_unknown_preset_is_an_error(file):
    with pytest.raises(UserError, match="mine.py:huge"):
        load_config(f"{file}:huge")


def test_error_for_unknown_preset_of_a_recipe_lists_valid_ones():
    path = CONFIGS / "adnet.py"
    with pytest.raises(UserError, match=r"^Unknown preset 'tinny'; valid presets: tiny, small \(or none\)\. "
                                        r"Did you mean 'tiny'\?$"):
        load_config(f"{path}:tinny")


def test_resumed_run_may_change_only_changeable_keys(file):
    config = load_config(str(file))
    other = load_config(str(file), ["log_every=3", "launcher=jit", "keep=9", "checkpoint_every=2", "data_dir=/x",
                                    "validate={'every': 3}"])
    assert set(CHANGEABLE) == {"log_every", "launcher", "keep", "checkpoint_every", "data_dir", "validate"}
    assert changed_keys(config, other) == [] and config_hash(config) == config_hash(other)
    for entry in ("seed=1", "batch_size=8", "phases.1.steps=8", "model.short_side=97", "data.flow=True",
                  "precision=bfloat16", "accumulate=2", "ema_decay=0.5"):
        other = load_config(str(file), [entry])
        assert changed_keys(config, other) == [entry.partition("=")[0]]
        assert config_hash(config) != config_hash(other)


def test_plain_and_check_copy_config_dicts(file):
    given = ConfigDict({"a": {"b": (1, {"c": 2})}})
    made = plain(given)
    assert made == {"a": {"b": [1, {"c": 2}]}}
    override(made, "a.b.1.c=5")
    assert given.a.b[1]["c"] == 2
    once = load_config(str(file))
    assert check(once) == once and check(ConfigDict(once)) == once


@pytest.mark.parametrize(("arguments", "message"), [
    (["--config", "{file}", "--config.bach_size=3"], "Did you mean 'batch_size'?"),
    (["--config", "{file}", "--wrokdir=x"], "Did you mean '--workdir'?"),
    (["--config", "{tmp}/none.py"], "no configuration file"),
    (["--config", "{file}", "--config.model.name=adnot"], "Did you mean 'adnet'?"),
    (["--config", "{file}", "--config.model.short_side=-4"], "short_side"),
    (["--config", "{file}", "--config.schedule.name=polly"], "polly"),
    (["--config", "{file}", "--config.optimizer.momentun=0.8"], "Did you mean 'momentum'?"),
    (["--config", "{file}", "--config.data.flwo=True"], "Did you mean 'flow'?"),
])
def test_command_line_errors_are_one_line(file, tmp_path, capfd, arguments, message):
    arguments = [text.format(file=file, tmp=tmp_path) for text in arguments]
    if "--workdir" not in arguments:
        arguments += ["--workdir", str(tmp_path / "run")]
    code, _, err = uvos("train", *arguments)
    assert code == 2, err
    assert message in err and err.startswith("Error: ") and err.count("\n") == 1
    assert capfd.readouterr() == ("", "")  # libraries print nothing
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_errors_of_a_separate_process_are_one_line(file, tmp_path):
    done = subprocess.run([sys.executable, "-m", "uvos_jax", "train", "--config", f"{file}:no", "--workdir",
                           str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert "cannot be read" in done.stderr and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


def test_adnet_recipe_matches_the_paper():
    """Sec. 4: batch 8, 30,000 iterations, learning rate .005 (1 - it / 40,000)^.9, weight decay 5e-4."""
    path = CONFIGS / "adnet.py"
    config = load_config(str(path))
    (phase,) = config["phases"]
    assert (config["batch_size"], phase["steps"], config["optimizer"]["weight_decay"]) == (8, 30_000, 5e-4)
    rate = make_schedule(config["schedule"], phase["steps"])
    np.testing.assert_allclose([rate(0), rate(20_000), rate(30_000)], [0.005, 0.005 * 0.5**0.9, 0.005 * 0.25**0.9],
                               rtol=1e-5)
    tiny = load_config(f"{path}:tiny")
    held_back = set(tiny["validate"]["only"])
    assert len(held_back) == 5 and held_back == set(tiny["data"]["mixture"][0]["exclude"])


F2NET = CONFIGS / "f2net.py"


def test_f2net_recipe_matches_the_paper():
    """Sec. 4: batch 16 at 473x473, SGD with learning rate 2.5e-4, poly decay with power .9, twice 20 epochs."""
    config = load_config(str(F2NET))
    recipe = phases(config)
    assert (config["batch_size"], config["data"]["size"], config["optimizer"]["momentum"]) == (16, [473, 473], 0.9)
    assert config["optimizer"]["weight_decay"] == 5e-4
    assert [phase.model["prior_from"] for phase in recipe] == ["truth", "predicted"]
    videos = [step for phase in recipe for step in range(phase.start, phase.stop) if step % 3]
    assert 40 * 2079 <= 16 * len(videos) < 40 * 2079 + 40 * 16  # the last batch of an epoch may be partial
    # One learning rate curve over both phases.
    rates = [make_schedule(phase.schedule, phase.stop - phase.start) for phase in recipe]
    for step in (0, 1_000, 3_899, 3_900, 5_000, 7_799):
        rate, first = (rates[0], 0) if step < 3_900 else (rates[1], 3_900)
        assert float(rate(step - first)) == pytest.approx(2.5e-4 * (1 - step / 7_800) ** 0.9, rel=2e-4)


def test_f2net_pretrained_parameters_have_a_low_rate_on_videos():
    config = load_config(str(F2NET))
    encoder, new = config["optimizer"]["groups"]
    first, second = phases(config)
    for phase in (first, second):
        parts = [entry.get("recipe", phase.data["recipe"])["name"] for entry in phase.data["mixture"]
                 for _ in range(entry["share"])]
        assert phase.data["alternate"] and list(zip(parts, encoder["lr"], strict=True)) == [
            ("still", 1.0), ("previous", 0.01), ("previous", 0.01)]
    assert new == {"match": ".*", "lr": 10.0}
    params = flatten_dict(setup(config, first).state.params, sep="/")
    theirs = sum(leaf.size for path, leaf in params.items() if re.fullmatch(encoder["match"], path))
    # Parameters of ResNet-101 without its classifier, and of the whole published checkpoint.
    assert (theirs, sum(leaf.size for leaf in params.values())) == (42_500_160, 80_247_400)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "net"), [(":tiny", "csa"), (":tiny_ad", "ad"), (":tiny_cgad", "cgad")])
def test_f2net_tiny_presets_share_data_and_held_back_sequences(preset, net):
    config, tiny = load_config(f"{F2NET}{preset}"), load_config(f"{F2NET}:tiny")
    recipe = phases(config)
    first, second = (setup(config, phase) for phase in recipe)
    check_transfer(first, second, recipe[1])
    assert first.model.net == net and (first.model.prior_from, second.model.prior_from) == ("truth", "predicted")
    assert jax.tree.map(np.shape, first.state.params) == jax.tree.map(np.shape, second.state.params)
    assert {key: value for key, value in config.items() if key != "model"} == {
        key: value for key, value in tiny.items() if key != "model"}
    assert config["validate"]["only"] == config["data"]["mixture"][1]["exclude"] == load_config(
        f"{F2NET.parent / 'adnet.py'}:tiny")["validate"]["only"]


CFBI = CONFIGS / "cfbi.py"


def test_cfbi_recipe_matches_the_paper():
    """Sec. 4: 465x465, batch 8, SGD .01 for 100,000 steps; on DAVIS only .006, 50,000 steps, batch 3 per GPU."""
    config, alone = load_config(str(CFBI)), load_config(f"{CFBI}:davis")
    assert (config["batch_size"], config["data"]["size"], config["batch_norm"]) == (8, [465, 465], "frozen")
    assert (config["optimizer"]["momentum"], config["optimizer"]["weight_decay"]) == (0.9, 15e-5)
    assert config["data"]["geometry"]["balanced"] and config["data"]["recipe"]["length"] == 1 + 3
    for settings, peak, steps in ((config, 0.01, 100_000), (alone, 0.006, 50_000)):
        (phase,) = phases(settings)
        assert phase.stop == steps
        assert not {"use_predicted_masks", "bootstrap_steps"} & phase.model.keys()  # the model's defaults
        rate = make_schedule(phase.schedule, steps)
        middle = 1_000 + (steps - 1_000) // 2
        np.testing.assert_allclose([rate(0), rate(500), rate(1_000), rate(middle)],
                                   [0, peak / 2, peak, peak * 0.5**0.9], rtol=1e-4)
    assert alone["batch_size"] == 2 * 3
    assert [entry["name"] for entry in alone["data"]["mixture"]] == ["davis2017/semi"]


@pytest.mark.slow
def test_cfbi_official_preset_matches_the_published_schedule():
    config = load_config(f"{CFBI}:official", ["model.depths=[1,1,1,1]", "model.features=16"])
    recipe = phases(config)
    assert [(phase.stop, phase.model["use_predicted_masks"], phase.model["bootstrap_steps"]) for phase in recipe] == [
        (50_000, False, 50_000), (100_000, True, 50_000)]
    rates = [make_schedule(phase.schedule, phase.stop - phase.start) for phase in recipe]
    for step in (1_000, 40_000, 49_999, 50_000, 75_000, 99_999):
        rate, first = (rates[0], 0) if step < 50_000 else (rates[1], 50_000)
        assert float(rate(step - first)) == pytest.approx(0.01 * (1 - (step - 1_000) / 99_000) ** 0.9, rel=5e-3)
    first, second = (setup(config, phase) for phase in recipe)
    check_transfer(first, second, recipe[1])
    # As published, only the scales and biases of the backbone's batch norms are frozen.
    (group,) = config["optimizer"]["groups"]
    params = flatten_dict(first.state.params, sep="/")
    still = {path for path in params if re.fullmatch(group["match"], path)}
    assert group["lr"] == 0
    assert still == {path for path in params if path.startswith("backbone/") and not path.endswith("kernel")}


def test_cfbi_ablation_options_are_valid():
    text = CFBI.read_text()
    options = re.findall(r"--config\.((?:model|data)\.[\w.]+=\w+)", text)
    assert len(options) == len(set(options)) == 8
    config = load_config(str(CFBI), ["model.depths=[1,1,1,1]", *options])
    (phase,) = phases(config)
    model = setup(config, phase).model
    for field in ("background_matching", "background_attention", "match_bias", "multi_local", "ensembler",
                  "instance_attention"):
        assert getattr(model, field) is False
    assert phase.data["recipe"]["length"] == 2 and phase.data["geometry"]["balanced"] is False


def test_cfbi_tiny_preset_holds_back_the_common_sequences():
    config = load_config(f"{CFBI}:tiny")
    held_back = load_config(f"{CFBI.parent / 'adnet.py'}:tiny")["validate"]["only"]
    davis, synthetic = config["data"]["mixture"]
    assert config["validate"]["only"] == davis["exclude"] == held_back and synthetic["name"] == "synthetic"
