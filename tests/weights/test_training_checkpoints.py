"""Checkpoints of a training run: round trip, retention, damage and publication."""

import json
import shutil
import threading
from typing import NamedTuple

import jax
import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.weights.checkpoints import checkpointer
from uvos_jax.weights.training_checkpoints import RunCheckpoints, publish, withdraw


class Moments(NamedTuple):
    """Stand-in for an optimizer state."""

    count: np.ndarray
    trace: dict


def state(step: int) -> dict:
    """Training state of several leaf types, different at every step."""
    rng = np.random.default_rng(step)
    params = {"a": {"kernel": rng.standard_normal((3, 3, 2, 4), np.float32)}, "b": rng.standard_normal(7, np.float32)}
    return {"step": np.array(step, np.int32), "params": params, "opt": (Moments(np.array(step, np.int32), params), ()),
            "ema": None, "key": rng.integers(0, 2**32, 2, np.uint32)}


def like(step: int) -> dict:
    return state(0)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


@pytest.fixture
def runs(tmp_path):
    made = RunCheckpoints(tmp_path / "checkpoints", keep=2, config_hash="abc")
    yield made
    made.close()


def test_restored_state_is_bit_exact(runs):
    assert runs.restore(like) is None
    for step in (3, 12):
        runs.save(step, state(step))
    runs.wait()
    step, found = runs.restore(like)
    assert step == 12
    assert_same(found, state(12))


def test_save_copies_state_before_returning(runs):
    mine = state(1)
    runs.save(1, mine)
    mine["params"]["b"][:] = 0  # as a device that reuses the buffer
    runs.wait()
    assert_same(runs.restore(like)[1], state(1))


def test_last_and_best_checkpoints_are_kept(runs):
    for step, score in [(1, 0.2), (2, 0.9), (3, None), (4, 0.9), (5, 0.1), (6, None)]:
        runs.save(step, state(step), score)
    runs.wait()
    assert runs.steps() == [2, 5, 6]
    assert runs.best() == (2, 0.9)
    assert RunCheckpoints(runs.folder, 2).best() == (2, 0.9)


def truncate(folder):
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_a_byte(folder):
    for path in (folder / "state").rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def change_a_value(folder):
    """Replaces the arrays by a valid tree of other values, which only the digest detects."""
    from uvos_jax.weights.training_checkpoints import _flat, checkpointer

    shutil.rmtree(folder / "state")
    with checkpointer() as writer:
        writer.save(folder / "state", _flat(state(99)))


DAMAGES = {
    "truncated": truncate,
    "flipped": flip_a_byte,
    "changed": change_a_value,
    "without manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "without a file": lambda folder: next((folder / "state" / "d").iterdir()).unlink(),
    "without arrays": lambda folder: shutil.rmtree(folder / "state"),
    "without json": lambda folder: (folder / "run.json").unlink(),
    "torn json": lambda folder: (folder / "run.json").write_text('{"format": 1, "st'),
    "of a later format": lambda folder: (folder / "run.json").write_text(
        json.dumps(json.loads((folder / "run.json").read_text()) | {"format": 2})),
    "of another configuration": lambda folder: (folder / "run.json").write_text(
        json.dumps(json.loads((folder / "run.json").read_text()) | {"config": "xyz"})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_restore_skips_damaged_checkpoint(runs, damage):
    for step in (10, 20):
        runs.save(step, state(step))
    runs.wait()
    damage(runs.folder / "00000020")
    said = []
    step, found = runs.restore(like, said.append)
    assert step == 10
    assert_same(found, state(10))
    assert len(said) == 1 and "step 20" in said[0] and "skipped" in said[0]
    damage(runs.folder / "00000010")
    with pytest.raises(UserError, match="No checkpoint in .* can be read"):
        runs.restore(like, said.append)


def test_state_of_another_network_is_rejected(runs):
    runs.save(1, state(1))
    runs.wait()
    other = state(0) | {"key": np.zeros(4, np.uint32)}
    with pytest.raises(UserError):
        runs.restore(lambda step: other, lambda text: None)


def test_damaged_checkpoints_do_not_displace_valid_ones(runs):
    for step in (1, 2, 3):
        runs.save(step, state(step))
    runs.wait()
    truncate(runs.folder / "00000003")
    assert runs.restore(like, lambda text: None)[0] == 2
    (runs.folder / ".00000003.partial-77").mkdir()
    runs.clean(2)
    assert runs.steps() == [2]
    assert [path.name for path in runs.folder.glob(".*")] == [".00000003.damaged"]
    runs.save(3, state(3))  # the step of the damaged checkpoint
    runs.wait()
    assert runs.steps() == [2, 3]
    assert_same(runs.restore(like)[1], state(3))


def test_unwritable_folder_raises_user_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    runs = RunCheckpoints(tmp_path / "checkpoints", 1)
    runs.save(1, state(1))
    with pytest.raises(UserError, match="cannot be written"):
        runs.close()


def write(text):
    def make(folder):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(text)
    return make


def test_publish_is_atomic_and_link_survives_move(tmp_path):
    link = tmp_path / "best"
    publish(link, 1, write("first"))
    assert (link / "weights").read_text() == "first"

    def killed(folder):
        (folder.parent / f".{folder.name}.partial-1").mkdir()
        assert (link / "weights").read_text() == "first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(link, 2, killed)
    assert (link / "weights").read_text() == "first"
    publish(link, 3, write("third"))
    assert (link / "weights").read_text() == "third"
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["best-00000003"]
    tmp_path.rename(tmp_path.with_name("moved"))
    assert (tmp_path.with_name("moved") / "best" / "weights").read_text() == "third"
    withdraw(tmp_path.with_name("moved") / "best")
    assert not list((tmp_path.with_name("moved") / "weights").iterdir())
    assert not (tmp_path.with_name("moved") / "best").is_symlink()


def test_concurrent_saves_are_complete(tmp_path):
    """Occurs when the best weights are published during a checkpoint save; plain Orbax hangs here."""
    tree = {str(i): np.full((50, 50), i, np.float32) for i in range(20)}
    whole = []

    def save(name):
        for i in range(4):
            path = tmp_path / f"{name}{i}"
            with checkpointer() as writer:
                writer.save(path, tree)
            with checkpointer() as reader:
                restored = reader.restore(path, jax.tree.map(np.zeros_like, tree))
            whole.append(jax.tree.all(jax.tree.map(np.array_equal, restored, tree)))

    threads = [threading.Thread(target=save, args=(name,), daemon=True) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert whole == [True] * 12
