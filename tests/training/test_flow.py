"""Training and validation of optical flow: endpoint errors, selection of the best weights, and RAFT recipes."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny_system
from tests.helpers.paths import CONFIGS
from uvos_jax.data.examples.pipeline import from_config
from uvos_jax.data.storage.store import MemoryStore, SyntheticStore
from uvos_jax.data.synthetic.clip import make_clip
from uvos_jax.errors import UserError
from uvos_jax.models import SYSTEMS, Model, System, build
from uvos_jax.training.config import load_config
from uvos_jax.training.flow_validation import choose, estimator, validate
from uvos_jax.training.loop import train
from uvos_jax.training.optimizers import make_schedule
from uvos_jax.weights import checkpoints

CONFIG = CONFIGS / "raft.py"
SIZE = (40, 56)


class Drift(Model):
    """A model whose only parameter is one flow vector for all pixels of all pairs."""

    task = "flow"
    VARIANTS = ("official",)

    variant: str = "official"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch, train=False):
        vector = self.param("vector", nn.initializers.zeros, (2,))
        return {"flow": jnp.broadcast_to(vector, (*batch["first"].shape[:3], 2))}, {}

    @nn.nowrap
    def training_batch(self, clip):
        return {"first": clip["frames"][:, 0], "second": clip["frames"][:, 1], "flow": clip["flow"][:, 0]}

    @nn.nowrap
    def loss(self, outputs, batch, step):
        return jnp.square(outputs["flow"] - batch["flow"]).mean((1, 2, 3)), {}

    @nn.nowrap
    def example_batch(self):
        return dict.fromkeys(("first", "second"), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))


def shifts(length=4, size=SIZE, seed=0):
    """Returns a clip for ``MemoryStore``: a texture that moves by (3, -2) pixels per frame."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (size[0] // 4, size[1] // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    frames = np.stack([np.roll(texture, (-2 * t, 3 * t), (0, 1)) for t in range(length)])
    flow = np.broadcast_to(np.float32([3, -2]), (length, *size, 2)).copy()
    return f"shift{seed}", frames, np.zeros((length, *size), np.uint8), flow


def clips(phase, start):
    del phase
    while True:
        _, frames, labels, flow = shifts(2, seed=start)
        yield {"frames": frames[None], "labels": labels[None], "flow": flow[None], "example": np.array([start])}
        start += 1


def test_scores_of_a_perfect_and_a_constant_estimate():
    store = MemoryStore("held-back", [shifts(3), shifts(4, seed=1)])
    videos = choose(store, None)
    assert videos == (0, 1)
    scores, panel = validate(lambda first, second: shifts()[3][0], store, videos)
    assert (scores["epe"], scores["over_1px"]) == (0, 0) and set(scores["sequences"]) == {"shift0", "shift1"}
    assert panel.dtype == np.uint8 and panel.shape[2] == 3 and np.ptp(panel) > 100
    scores, _ = validate(lambda first, second: np.zeros((*SIZE, 2), np.float32), store, videos)
    assert scores["epe"] == pytest.approx(13**0.5) and (scores["over_3px"], scores["over_5px"]) == (1, 0)
    json.dumps(scores)  # scores are written to the log


def test_flow_is_estimated_from_each_frame_to_the_next():
    store = MemoryStore("held-back", [shifts(4)])
    pairs = []
    validate(lambda first, second: pairs.append((first, second)) or np.zeros((*SIZE, 2)), store, (0,))
    frames = shifts(4)[1]
    assert len(pairs) == 3
    for t, (first, second) in enumerate(pairs):
        np.testing.assert_array_equal(first, frames[t])
        np.testing.assert_array_equal(second, frames[t + 1])


def test_scores_are_means_over_videos_of_any_length():
    still = ("still", *shifts(9)[1:3], np.zeros((9, *SIZE, 2), np.float32))
    scores, _ = validate(lambda first, second: np.zeros((*SIZE, 2)), MemoryStore("m", [shifts(2), still]), (0, 1))
    assert scores["epe"] == pytest.approx(13**0.5 / 2)
    assert scores["sequences"]["still"]["epe"] == 0


def test_videos_are_divided_among_processes(monkeypatch):
    from jax.experimental import multihost_utils

    store = MemoryStore("held-back", [shifts(2), shifts(3, seed=1), shifts(2, seed=2)])
    expected, _ = validate(lambda first, second: first[..., :2] / 50, store, (0, 1, 2))
    parts = []
    monkeypatch.setattr(multihost_utils, "process_allgather",
                        lambda values: parts.append(values) or np.stack([values, 0 * values]))
    for index in range(2):
        validate(lambda first, second: first[..., :2] / 50, store, (0, 1, 2), index, 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda values: np.stack(parts))
    assert validate(lambda first, second: first[..., :2] / 50, store, (0, 1, 2), 0, 2)[0] == expected


def test_unusable_validation_data_are_errors():
    with pytest.raises(UserError, match="'plain' has no optical flow"):
        choose(MemoryStore("plain", [(*shifts()[:3], None)]), None)
    computed = MemoryStore("computed", [shifts()])
    computed.flow_origin = "DIS, preset medium"  # as recorded in a converted dataset
    with pytest.raises(UserError, match="no ground truth"):
        choose(computed, None)
    with pytest.raises(UserError, match="'shift0' of 'short' .* flow needs two frames"):
        choose(MemoryStore("short", [shifts(1)]), None)
    with pytest.raises(UserError, match="Did you mean 'shift0'"):
        choose(MemoryStore("named", [shifts()]), ["shfit0"])


@pytest.mark.slow
def test_loop_keeps_weights_with_the_lowest_endpoint_error(tmp_path, monkeypatch, capsys):
    row = System(Drift, "Drift", "tests", "frames")
    monkeypatch.setitem(SYSTEMS, "drift", row)
    # After step 2 the flow is close to the ground truth, after step 4 it overshoots.
    config = tiny_system.config(
        model={"name": "drift"}, batch_size=1, validate={"every": 2}, optimizer={"name": "sgd", "momentum": 0.0},
        phases=[{"name": "near", "steps": 2, "schedule": {"name": "constant", "lr": 0.8}},
                {"name": "far", "steps": 2, "schedule": {"name": "constant", "lr": 2.5}}])
    final = train(config, tmp_path, batches=clips, held_back=MemoryStore("held-back", [shifts(3, seed=7)]))
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    errors = {entry["step"]: entry["validation"]["epe"] for entry in logged if "validation" in entry}
    # The loss is the mean over both components, so a step with rate r scales the error by 1 - r.
    assert errors == pytest.approx({2: 13**0.5 * 0.2**2, 4: 13**0.5 * 0.2**2 * 1.5**2}, rel=1e-4)
    assert final["validation"]["epe"] == errors[4]
    best, last = (checkpoints.load(tmp_path / name)[2]["params"]["vector"] for name in ("best", "last"))
    np.testing.assert_allclose(best, np.float32([3, -2]) * (1 - 0.2**2), rtol=1e-4)
    assert np.abs(last - best).max() > 0.1
    said = capsys.readouterr().out
    assert "epe 0.1442" in said and "(best so far)" in said and "(best 0.1442, step 2)" in said


@pytest.mark.slow
def test_raft_learns_a_constant_shift(tmp_path):
    config = tiny_system.config(
        model={"name": "raft", "net": "small", "iterations": 2}, batch_size=2, log_every=5, validate={"every": 40},
        optimizer={"name": "adamw", "clip_norm": 1.0}, schedule={"name": "one_cycle", "lr": 1e-3, "anneal": "linear"},
        phases=[{"name": "shift", "steps": 40}])

    def pairs(phase, start):
        stream = clips(phase, start)
        while True:
            both = next(stream), next(stream)
            yield {name: np.concatenate([batch[name] for batch in both]) for name in both[0]}

    name, *arrays = shifts(3, seed=1000)
    odd = MemoryStore("held-back", [(name, *(x[:, :37, :50] for x in arrays))])  # not divisible by 8
    train(config, tmp_path, batches=pairs, held_back=odd)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert logged[-1]["validation"]["epe"] < 2.5  # zero flow has an error of 3.6 pixels
    name, model, variables = checkpoints.load(tmp_path / "last")
    assert (name, model.net) == ("raft", "small")
    scores, _ = validate(estimator(model, variables), odd, (0,))
    assert scores["epe"] == pytest.approx(logged[-1]["validation"]["epe"], rel=1e-3)


def test_raft_recipe_matches_the_published_script():
    """Stage "chairs": batch 10, crops 368x496, AdamW, decay 1e-4, clip 1, 12 iterations, one cycle of 100,100."""
    config = load_config(str(CONFIG))
    (phase,) = config["phases"]
    assert (config["batch_size"], phase["steps"], config["data"]["size"]) == (10, 100_000, [368, 496])
    assert config["optimizer"] == {"name": "adamw", "weight_decay": 1e-4, "eps": 1e-8, "clip_norm": 1.0}
    rate = make_schedule(config["schedule"], phase["steps"])
    # The warm-up takes 5 % of the steps from 1/25 of the peak; then the rate falls linearly to almost 0.
    np.testing.assert_allclose([rate(0), rate(5_004), rate(52_552)], [1.6e-5, 4e-4, 2e-4], rtol=1e-3)
    assert rate(100_099) < 1e-8
    fields = {key: value for key, value in config["model"].items() if key != "name"}
    assert (build("raft", **fields).net, fields["iterations"]) == ("large", 12)


def test_raft_examples_are_pairs_with_flow_to_the_second_frame():
    data = load_config(str(CONFIG))["data"]
    clips = from_config(data | {"batch_size": 1, "seed": 3, "color": None})
    y, x = np.mgrid[:368, :496]
    for step in range(2):
        batch = clips.batch(step)
        (first, second), flow = batch["frames"][0].astype(np.float32), batch["flow"][0, 0]

        def difference(sign, first=first, second=second, flow=flow):
            column, row = (np.round(place + sign * flow[..., i]).astype(int) for i, place in enumerate((x, y)))
            inside = (column >= 0) & (column < 496) & (row >= 0) & (row < 368)
            return np.abs(first[inside] - second[row[inside], column[inside]]).mean()

        # The residual from noise, shadows and occlusion is well below that of uncompensated motion.
        assert difference(1) < 0.75 * difference(0) and difference(0) < difference(-1)
    assert load_config(str(CONFIG))["validate"]["synthetic"]["seed"] >= data["mixture"][0]["count"]


def test_raft_tiny_preset_fits_converted_synthetic_clips():
    config = load_config(f"{CONFIG}:tiny")
    assert config["model"]["net"] == "small" and all(side % 8 == 0 for side in config["data"]["size"])
    (part,) = config["data"]["mixture"]
    assert (part["name"], part["split"], config["validate"]["split"]) == ("synthetic", "train", "val")
    assert choose(SyntheticStore(2, length=3, size=(32, 48)), None) == (0, 1)
    assert (np.array(make_clip(0, 1).frames.shape[1:3]) >= config["data"]["size"]).all()
