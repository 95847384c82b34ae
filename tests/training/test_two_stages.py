"""Two-stage training, optical flow, frames of several sizes, and DPA configurations."""

import json
import re
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.paths import CONFIGS
from tests.helpers.tiny_system import Tiny, config
from uvos_jax.data.examples.clip_dataset import make_clip_dataset, mixture_entry
from uvos_jax.data.examples.pipeline import batches, from_config
from uvos_jax.data.storage.store import MemoryStore, SyntheticStore
from uvos_jax.errors import UserError
from uvos_jax.inference import Segmenter
from uvos_jax.inference.flow.estimators import FlowEstimator, dis_estimator
from uvos_jax.models import SYSTEMS, System
from uvos_jax.training.config import check, load_config
from uvos_jax.training.loop import train
from uvos_jax.training.phases import phases, transfer
from uvos_jax.training.setup import setup
from uvos_jax.training.validation import choose, validate
from uvos_jax.weights import checkpoints

CONFIG = CONFIGS / "dpa.py"
DATA = {"mixture": [{"name": "synthetic", "count": 3, "length": 4, "size": [48, 64]}],
        "recipe": {"name": "references", "count": 1}, "geometry": {"kind": "resize"}, "size": [24, 32],
        "objects": "foreground"}
SIZES = [[24, 32], [16, 24]]


class Flowing(Tiny):
    """The tiny system with flow as the input of its second encoder."""

    @property
    def inputs(self):
        return ("frame", "flow") if self.two else ("frame",)

    def _logits(self, inputs, train):
        features = self.rgb_encoder(inputs["frame"], train)
        if self.two:
            features += self.flow_encoder(inputs["flow"], train)
        return self.head(self.drop(features, deterministic=not train))

    def __call__(self, batch, train=False):
        return {"logits": self._logits(batch, train)}, {}

    def encode(self, inputs):
        return {"logits": self._logits(inputs, False)}

    @nn.nowrap
    def training_batch(self, clip):
        made = Tiny.training_batch(self, clip)
        return made | ({"flow": self.flow_input(clip["flow"][:, 0], clip["flow"].shape[2:4])} if self.two else {})

    @nn.nowrap
    def flow_input(self, flow, size):
        flow = jnp.concatenate([flow, jnp.zeros_like(flow[..., :1])], -1)
        return jax.image.resize(flow, (len(flow), *size, 3), "linear")

    @nn.nowrap
    def example_batch(self):
        return {name: jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32) for name in self.inputs}


pytestmark = pytest.mark.usefixtures("compiled_programs")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "tiny", System(Flowing, "Tiny", "tests", "frames"))


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def source(settings, fails_at=None):
    """Returns the batches of a configuration; optionally, the batch of step ``fails_at`` raises an error."""
    def given(phase, first):
        data = phases(check(settings))[phase].data
        clips = from_config(data | {"batch_size": settings["batch_size"], "seed": 0})
        for batch in batches(clips, first, engine="threads", workers=1):
            if batch["example"][0] == (fails_at or -1) * settings["batch_size"]:
                raise ConnectionError("the data is gone")
            yield batch

    return given


@pytest.mark.slow
def test_each_size_compiles_once_and_sizes_repeat_after_resume(tmp_path, monkeypatch):
    traced = Counter()
    whole = Flowing.training_batch

    def counted(self, clip):
        traced[clip["frames"].shape[2:4]] += 1
        return whole(self, clip)

    monkeypatch.setattr(Flowing, "training_batch", nn.nowrap(counted))
    settings = config(data=DATA | {"size": SIZES}, phases=[{"name": "only", "steps": 14}])
    train(settings, tmp_path / "whole", batches=source(settings))
    met = [next(source(settings)(0, step))["frames"].shape[2:4] for step in range(14)]
    assert set(met) == {tuple(size) for size in SIZES} and min(Counter(met).values()) > 1
    assert traced == dict.fromkeys(met, 1)
    with pytest.raises(ConnectionError):
        train(settings, tmp_path / "run", batches=source(settings, fails_at=8))
    train(settings, tmp_path / "run", batches=source(settings))  # from step 5 on
    losses = [[entry["loss"] for entry in lines(tmp_path / name)] for name in ("whole", "run")]
    assert losses[0] == losses[1] and len(losses[0]) == 14
    trees = [checkpoints.load(tmp_path / name / "last")[2] for name in ("whole", "run")]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))


TWO_STAGES = [
    {"name": "stills", "steps": 4, "data": {"recipe": {"name": "still"}}},
    {"name": "videos", "steps": 8, "model": {"two": True}, "data": {"flow": True},
     "transfer": [{"from": "rgb_", "to": "flow_"}]}]


@pytest.mark.slow
def test_two_stages_with_validation_by_computed_flow(tmp_path, monkeypatch):
    asked = []

    def counted(first, second):
        asked.extend(first.mean((1, 2, 3)))
        return dis_estimator.compute(first, second)

    monkeypatch.setattr("uvos_jax.training.validation.dis_estimator",
                        FlowEstimator("dis", dis_estimator.identity, counted, 2))
    held_back = SyntheticStore(2, 4, (48, 64), seed=50)
    settings = config(data=DATA, phases=TWO_STAGES, validate={"every": 4, "phases": ["videos"]})
    final = train(settings, tmp_path, batches=source(settings), held_back=held_back)
    scored = [entry["step"] for entry in lines(tmp_path) if "validation" in entry]
    assert scored == [8, 12], "stills are not validated, though their last step is 4"
    # Flow of each of 2 x 4 frames is computed once; the second validation reads it from files.
    assert len(asked) == 8 == len(list((tmp_path / "flow").iterdir()))
    name, model, variables = checkpoints.load(tmp_path / "last")
    assert model.two and "flow_encoder" in variables["params"]
    expected, _ = validate(Segmenter(name, model, variables), held_back, choose(held_back, None))
    assert final["validation"] == expected
    # The weights of the second stream matter: without them the scores differ.
    blind = jax.tree.map(np.copy, variables)
    blind["params"]["flow_encoder"]["conv"]["kernel"] *= 0
    assert validate(Segmenter(name, model, blind), held_back, choose(held_back, None))[0] != expected


def test_validating_an_unknown_phase_is_an_error():
    with pytest.raises(UserError, match="name 'video', which is no phase. Did you mean 'videos'"):
        train(config(phases=TWO_STAGES, validate={"every": 4, "phases": ["video"]}), "nowhere")


def test_missing_flow_is_an_error(tmp_path):
    store = MemoryStore("stills", [("one", np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 8, 8), np.uint8), None)])
    with pytest.raises(UserError, match="No optical flow in stills. Convert with 'uvos convert-data --flow'"):
        make_clip_dataset([mixture_entry(store, {"name": "still"})], (8, 8), 1, 0, {"kind": "resize"}, flow=True)


@pytest.mark.slow
def test_rates_and_batches_alternate_across_phases(tmp_path, monkeypatch):
    whole, asked = Flowing.training_batch, []

    def noted(self, clip):
        asked.append((clip["still"].shape, str(clip["still"].dtype)))
        return whole(self, clip)

    monkeypatch.setattr(Flowing, "training_batch", nn.nowrap(noted))
    synthetic = DATA["mixture"][0]
    data = DATA | {"mixture": [synthetic | {"recipe": {"name": "still", "length": 2}}, synthetic | {"share": 2}],
                   "alternate": True}
    every_third = {"name": "sgd", "momentum": 0.0, "groups": [{"match": ".*", "lr": [1.0, 0.0, 0.0]}]}

    def weights(*steps):
        folder = tmp_path / "".join(map(str, steps))
        train(config(data=data, optimizer=every_third, schedule={"name": "constant", "lr": 0.05}, accumulate=2,
                     phases=[{"name": str(i), "steps": n} for i, n in enumerate(steps)]), folder)
        return flatten_dict(checkpoints.load(folder / "last")[2]["params"])

    # Steps 0 and 3 have a nonzero rate; the next would be 6. The second phase starts at step 4.
    through = weights(4, 2)
    assert through["head", "bias"].any()  # its initial value is 0
    for path, leaf in weights(4).items():
        np.testing.assert_array_equal(through[path], leaf)
    assert set(asked) == {((4,), "bool"), ((2,), "bool")}  # the check before training, and a micro-batch


STREAMS = {"": {"appearance", "motion"}, ":tiny": {"appearance", "motion"}, ":tiny_appearance": {"appearance"},
           ":tiny_motion": {"motion"}}


@pytest.mark.parametrize(("preset", "changes"), [
    *((preset, ()) for preset in STREAMS), (":tiny", ("model.ima=False",)), (":tiny", ("model.ifa=False",)),
    ("", ("model.ima=False", "model.ifa=False")), (":tiny_motion", ("model.ifa=False",))])
def test_parameters_of_dpa_transfer_between_phases(preset, changes):
    settings = load_config(f"{CONFIG}{preset}", (*changes, "model.width=4", "model.embedding=8"))
    recipe = phases(settings)
    first, second = (setup(settings, phase) for phase in recipe)
    shapes = [{"params": parts.state.params, "batch_stats": parts.state.batch_stats} for parts in (first, second)]
    rng = np.random.default_rng(0)
    before, fresh = (jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), tree) for tree in shapes)
    trained = flatten_dict(before, sep="/")
    after = flatten_dict(transfer(before, shapes[1], lambda: fresh, recipe[1].transfer, "videos"), sep="/")
    seen = Counter()
    for path, leaf in after.items():
        stage_one = path.replace("motion_", "appearance_")
        if stage_one in trained:
            np.testing.assert_array_equal(leaf, trained[stage_one], err_msg=path)
            seen[path.split("/")[1]] += 1
        else:
            assert re.search("ima|fuse|query", path), f"only what joins two streams is new, not {path}"
    assert {f"{stream}_encoder" for stream in STREAMS[preset]} <= seen.keys() and seen.total() > len(after) / 2
    assert first.model.inputs == ("frame",)
    assert second.model.inputs == (("frame",) if preset == ":tiny_appearance" else ("frame", "flow"))
    assert recipe[1].data["flow"] and not recipe[0].data.get("flow")
