"""The training loop: phases, logs, validation, weights, errors and signals."""

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers.tiny_system import STILL, clips, config
from uvos_jax.data.storage.store import MemoryStore
from uvos_jax.errors import UserError
from uvos_jax.interrupts import Interrupted
from uvos_jax.training.loop import train
from uvos_jax.weights import checkpoints

pytestmark = pytest.mark.usefixtures("compiled_programs", "tiny_model")


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def held_back(count=2) -> MemoryStore:
    """Returns videos like the training clips."""
    videos = []
    for v in range(count):
        batch = next(clips(0, 1000 + v, 5))
        videos.append((f"video{v}", batch["frames"][:, 0], batch["labels"][:, 0], None))
    return MemoryStore("held-back", videos)


@pytest.mark.slow
def test_run_reduces_loss_and_writes_logs_and_weights(tmp_path):
    final = train(config(phases=[{"name": "only", "steps": 40}], log_every=4), tmp_path, batches=clips)
    logged = lines(tmp_path)
    assert [entry["step"] for entry in logged] == list(range(4, 41, 4))
    for entry in logged:
        assert {"loss", "loss/mask", "learning_rate", "grad_norm", "examples_per_second", "input_wait",
                "device_memory", "seconds"} <= entry.keys()
        assert 0 <= entry["input_wait"] <= 1 and entry["examples_per_second"] > 0
    assert logged[-1]["loss"] < 0.2 * logged[0]["loss"]
    assert final["step"] == 40 and final["loss"] == logged[-1]["loss"]
    name, _, variables = checkpoints.load(tmp_path / "last")
    assert name == "tiny" and set(variables) == {"params", "batch_stats"}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000035", "00000040"]
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 4
    assert list((tmp_path / "tensorboard").iterdir())


def test_each_phase_restarts_the_learning_rate(tmp_path):
    constant = {"name": "constant", "lr": 0.001}
    train(config(phases=[{"name": "a", "steps": 4}, {"name": "b", "steps": 4},
                         {"name": "c", "steps": 2, "schedule": constant}]), tmp_path, batches=clips)
    rates = [entry["learning_rate"] for entry in lines(tmp_path)]
    poly = [0.05 * (1 - step / 4) ** 0.9 for step in range(4)]
    np.testing.assert_allclose(rates, [*poly, *poly, 0.001, 0.001], rtol=1e-5)
    assert [entry["phase"] for entry in lines(tmp_path)] == list("aaaabbbbcc")


def test_transfer_initializes_a_new_module_of_a_phase(tmp_path):
    first = {"name": "appearance", "steps": 3}
    second = {"name": "motion", "steps": 1, "model": {"two": True}, "schedule": STILL,
              "transfer": [{"from": "rgb_encoder", "to": "flow_encoder"}]}
    params = {}
    for name, recipe in {"one": [first], "both": [first, second], "new": [first, second | {"transfer": []}]}.items():
        train(config(phases=recipe), tmp_path / name, batches=clips)
        params[name] = checkpoints.load(tmp_path / name / "last")[2]["params"]
    trained = params["one"]["rgb_encoder"]
    for tree, part, copied in (("both", "rgb_encoder", True), ("both", "flow_encoder", True),
                               ("new", "rgb_encoder", True), ("new", "flow_encoder", False)):
        assert jax.tree.all(jax.tree.map(np.array_equal, params[tree][part], trained)) == copied
    assert jax.tree.all(jax.tree.map(np.array_equal, params["both"]["head"], params["one"]["head"]))


@pytest.mark.parametrize(("rule", "message"), [
    ({"from": "rgb_decoder", "to": "flow_encoder"}, "matches no parameter"),
    ({"from": "rgb_encoder", "to": "head"}, "no such parameter of that shape"),
    ({"form": "rgb_encoder", "to": "head"}, "Unknown key 'form'"),
])
def test_invalid_transfer_rules_are_errors(tmp_path, rule, message):
    phases = [{"name": "a", "steps": 1}, {"name": "b", "steps": 1, "model": {"two": True}, "transfer": [rule]}]
    with pytest.raises(UserError, match=message):
        train(config(phases=phases), tmp_path / "run", batches=clips)
    assert not (tmp_path / "run").exists()  # reported before the first phase


def test_url_as_workdir_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--workdir 'gs:/bucket/run' is an address"):
        train(config(), Path("gs://bucket/run"), batches=clips)
    assert not list(tmp_path.iterdir())


def test_full_disk_is_a_one_line_error(tmp_path, monkeypatch):
    def save(self, path, tree):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore of this")

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointer.save", save)
    with pytest.raises(UserError, match=r"cannot be written: RESOURCE_EXHAUSTED: No space left on device\.$"):
        train(config(), tmp_path, batches=clips)


def test_best_and_last_weights_are_kept(tmp_path, monkeypatch):
    scores = iter([0.3, 0.8, 0.5, 0.8, 0.1])
    monkeypatch.setattr("uvos_jax.training.validation.validate", lambda *args: (
        {"J": 0.0, "F": 0.0, "J&F": next(scores), "sequences": {}}, None))
    seen = {}
    settings = config(validate={"every": 2}, checkpoint_every=1, keep=2)
    from uvos_jax.training import loop

    real = loop.RunCheckpoints.save

    def save(self, step, state, score=None):
        seen[step] = jax.tree.map(np.copy, state.params)
        real(self, step, state, score)

    monkeypatch.setattr(loop.RunCheckpoints, "save", save)
    train(settings, tmp_path, batches=clips, held_back=held_back())
    for name, step in (("best", 4), ("last", 10)):
        stored = checkpoints.load(tmp_path / name)[2]["params"]
        assert jax.tree.all(jax.tree.map(np.array_equal, stored, seen[step]))
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [4, 9, 10]
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["best-00000004", "last-00000010"]


def test_exported_weights_are_the_moving_average(tmp_path):
    def kernel(name, **changes):
        train(config(schedule={"name": "constant", "lr": 0.05}) | changes, tmp_path / name, batches=clips)
        return checkpoints.load(tmp_path / name / "last")[2]["params"]["head"]["kernel"]

    start = kernel("start", phases=[{"name": "a", "steps": 1}], schedule=STILL)
    one, two = (kernel(f"{n}", phases=[{"name": "a", "steps": n}]) for n in (1, 2))
    averaged = kernel("averaged", phases=[{"name": "a", "steps": 2}], ema_decay=0.15)
    by_hand = 0.15 * (0.1 * start + 0.9 * one) + 0.85 * two  # the first decay is at most 1 / 10
    np.testing.assert_allclose(averaged, by_hand, rtol=1e-5, atol=1e-7)


def poisoned(phase, start):
    """Yields clips of floats, in which example 26 (step 7) is NaN."""
    for batch in clips(phase, start):
        batch["frames"] = batch["frames"].astype(np.float32)
        batch["frames"][batch["example"] == 26] = np.nan
        yield batch


def test_error_for_nan_loss_names_the_batch(tmp_path):
    with pytest.raises(UserError, match="loss of step 7 is nan.*examples 24, 25, 26, 27"):
        train(config(checkpoint_every=3, log_every=1), tmp_path, batches=poisoned)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 6]
    assert [entry["step"] for entry in lines(tmp_path)] == list(range(1, 7))
    with pytest.raises(UserError, match="step 7"):  # resumes from the last finite state and fails again
        train(config(checkpoint_every=1, log_every=1), tmp_path, batches=poisoned)
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_state_after_the_step(tmp_path, number):
    def interrupted(phase, start):
        for batch in clips(phase, start):
            if batch["example"][0] == 4 * 6:
                signal.raise_signal(number)  # in this thread, at once
            yield batch

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 7") as stopped:
        train(config(checkpoint_every=100), tmp_path, batches=interrupted)
    assert stopped.value.code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000007"]
    assert signal.getsignal(number) == before  # the handler is restored
    train(config(checkpoint_every=100), tmp_path, batches=clips)
    assert [entry["step"] for entry in lines(tmp_path)] == list(range(1, 11))


def test_second_run_in_the_same_folder_is_an_error(tmp_path):
    def visited(phase, start):
        with pytest.raises(UserError, match="Another run is using"):
            train(config(), tmp_path, batches=clips)
        yield from clips(phase, start)

    assert train(config(), tmp_path, batches=visited)["step"] == 10


def test_data_ending_too_early_is_an_error(tmp_path):
    with pytest.raises(UserError, match="data of phase 'only' ended at step 2"):
        train(config(), tmp_path, batches=lambda phase, start: (b for b, _ in zip(clips(phase, start), range(2),
                                                                                  strict=False)))


def test_profile_is_written(tmp_path, capsys):
    train(config(), tmp_path, batches=clips, profile=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "Trace of 2 steps in" in capsys.readouterr().out


def test_indivisible_batch_size_is_an_error(tmp_path, monkeypatch):
    class Three:
        """Three devices."""

        size = 3

        def __init__(self, kind):
            pass

    monkeypatch.setattr("uvos_jax.training.loop.Launcher", Three)
    with pytest.raises(UserError, match="batch_size is 4"):
        train(config(), tmp_path / "run", batches=clips)
    assert not (tmp_path / "run").exists()


def test_initial_weights_are_loaded(tmp_path):
    train(config(phases=[{"name": "a", "steps": 3}]), tmp_path / "a", batches=clips)
    frozen = config(phases=[{"name": "b", "steps": 1}], schedule=STILL, batch_norm="frozen",
                    init={"weights": str(tmp_path / "a" / "last")})
    train(frozen, tmp_path / "b", batches=clips)
    trees = [checkpoints.load(tmp_path / name / "last")[2] for name in "ab"]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))
    with pytest.raises(UserError, match="other hyper-parameters"):
        train(frozen | {"model": {"name": "tiny", "two": True}}, tmp_path / "c", batches=clips)
    with pytest.raises(UserError, match="nothing.npz"):
        train(frozen | {"init": {"weights": str(tmp_path / "nothing.npz")}}, tmp_path / "d", batches=clips)
    assert not (tmp_path / "d").exists()
