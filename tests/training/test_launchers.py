"""pmap, shard_map and jit on several devices and processes equal training on one device."""

import pickle

import jax
import numpy as np
import pytest

from tests.helpers.tiny_training import SCHEDULE, TinyNet, clips, in_processes, parts, run
from uvos_jax.errors import UserError
from uvos_jax.training import distributed
from uvos_jax.training.launchers import KINDS, Launcher

SMALL_STEPS = {**SCHEDULE, "lr": 1e-3}


def main(output):
    """Returns the results that the tests below check, from a process with eight devices."""
    one, results = jax.devices()[:1], {}
    run_on = {"one": Launcher("jit", one)} | {kind: Launcher(kind) for kind in KINDS}
    cases = {"sync": {}, "frozen": {"batch_norm": "frozen"}, "accumulate": {"accumulate": 2},
             "local": {"batch_norm": "local"}}
    for case, options in cases.items():
        state, factory = parts(schedule=SMALL_STEPS, **options)
        for name, launcher in run_on.items():
            if case == "local" and name == "jit":
                continue
            steps = 20 if case == "sync" else 3
            call = launcher.compile(factory)
            three, seen = run(launcher, state, factory, range(3), call=call)
            later = run(launcher, three, factory, range(3, steps), call=call)[1] if steps > 3 else {}
            results[case, name] = three, later, seen
            if case == "local" and name == "pmap":
                results["local_first"], _ = run(launcher, state, factory, [0], call=call)
        results[case, "start"] = state

    # One run that changes launcher or devices after every step.
    state, factory = parts(schedule=SMALL_STEPS)
    for step, (kind, n) in enumerate([("pmap", 8), ("jit", 4), ("shard_map", 2), ("pmap", 1)]):
        state, _ = run(Launcher(kind, jax.devices()[:n]), state, factory, [step])
    results["moved"] = state
    state, factory = parts(schedule=SMALL_STEPS)
    results["stayed"], _ = run(run_on["one"], state, factory, range(4))

    # Eight copies of one example, dropout on.
    def same(step):
        return {name: np.repeat(x[:1], 8, 0) for name, x in clips(0).items()}

    state, factory = parts(TinyNet(dropout=0.5), batch_norm="frozen")
    results["dropout_eight"] = run(Launcher("pmap"), state, factory, [0], same)[1]["loss"]
    results["dropout_again"] = run(Launcher("shard_map"), state, factory, [0], same)[1]["loss"]
    results["dropout_one"] = run(Launcher("pmap", one), state, factory, [0],
                                 lambda step: {name: x[:1] for name, x in same(step).items()})[1]["loss"]
    results["errors"] = [_error(lambda kind=kind: Launcher(kind).place_batch(clips(0, 12))) for kind in KINDS]
    results["errors"].append(_error(lambda: Launcher("jit").compile(parts(batch_norm="local")[1])))
    results["errors"].append(_error(lambda: run(Launcher("pmap"), *parts(accumulate=3), [0])))
    with open(output, "wb") as file:
        pickle.dump(results, file)


def two(output):
    """Runs three steps with every launcher in one of two processes; the first one writes the results."""
    distributed.initialize()
    distributed.initialize()  # has no effect in a single process
    assert jax.process_count() == 2
    results = {}
    state, factory = parts(schedule=SMALL_STEPS)
    for kind in KINDS:
        state_3, seen = run(Launcher(kind), state, factory, range(3))
        # Another launcher continues from the state of this one.
        moved, _ = run(Launcher(KINDS[KINDS.index(kind) - 1]), state_3, factory, range(3, 5))
        results[kind] = Launcher(kind).size, state_3, seen, moved
    if jax.process_index() == 0:
        with open(output, "wb") as file:
            pickle.dump(results, file)


def _error(call):
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def _in_processes(tmp_path_factory, function, **kwargs):
    output = tmp_path_factory.mktemp("launch") / "results"
    in_processes("tests.training.test_launchers", output, function=function, **kwargs)
    with open(output, "rb") as file:
        return pickle.load(file)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return _in_processes(tmp_path_factory, "main", devices=8)


def _assert_equal_states(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["sync", "frozen", "accumulate"])
def test_eight_devices_equal_one(eight, case, kind):
    (one, one_later, one_seen), (many, later, seen) = eight[case, "one"], eight[case, kind]
    _assert_equal_states(many, one)
    moved = max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(one.params), jax.tree.leaves(
        eight[case, "start"].params), strict=True))
    assert moved > 1e-4  # a hundred times the tolerance
    for name in one_seen:
        np.testing.assert_allclose(seen[name], one_seen[name], rtol=1e-5, atol=1e-5)
    if case == "sync":
        assert len(later["loss"]) == 17
        np.testing.assert_allclose(later["loss"], one_later["loss"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_launcher_and_device_count_may_change_between_steps(eight):
    _assert_equal_states(eight["moved"], eight["stayed"])


@pytest.mark.slow
def test_local_statistics_are_averaged_over_devices(eight):
    """Reference: the step on each device's two examples, then averages of gradients and running statistics."""
    start, factory = eight["local", "start"], parts(schedule=SMALL_STEPS)[1]
    step = jax.jit(factory(None))
    batch = clips(0)
    alone = [step(start, {name: x[2 * d:2 * d + 2] for name, x in batch.items()}) for d in range(8)]
    for kind in ("pmap", "shard_map"):
        launched, _, seen = eight["local", kind]
        np.testing.assert_allclose(seen["loss"][0], np.mean([m["loss"] for _, m in alone]), rtol=1e-6)
        _assert_equal_states(launched, eight["local", "pmap"][0])
    # The first SGD step is linear in the gradient, so averaged parameters are those of the averaged gradient.
    expected = jax.tree.map(lambda *x: np.mean(x, 0), *[s.batch_stats for s, _ in alone])
    params = jax.tree.map(lambda *x: np.mean(x, 0), *[s.params for s, _ in alone])
    launched = eight["local_first"]
    _assert_equal_states(launched.batch_stats, expected)
    _assert_equal_states(launched.params, params)
    shared = step(start, batch)[0].batch_stats
    assert np.abs(shared["bn1"]["var"] - expected["bn1"]["var"]).max() > 1e-5  # otherwise the test could not fail


@pytest.mark.slow
def test_dropout_differs_between_devices(eight):
    assert abs(eight["dropout_eight"] - eight["dropout_one"]) > 1e-4
    np.testing.assert_allclose(eight["dropout_eight"], eight["dropout_again"], rtol=1e-6)


@pytest.mark.slow
def test_indivisible_batches_are_errors(eight):
    *batch, local, accumulate = eight["errors"]
    assert all("multiple of 8" in text for text in batch)
    assert "pmap or shard_map" in local
    assert "2 examples per device are not divisible by accumulate=3" in accumulate


@pytest.mark.slow
def test_two_processes_of_four_devices_equal_one_device(tmp_path_factory):
    state, factory = parts(schedule=SMALL_STEPS)
    one_3, one_seen = run(Launcher("jit"), state, factory, range(3))
    one_5, _ = run(Launcher("jit"), one_3, factory, range(3, 5))
    results = _in_processes(tmp_path_factory, "two", devices=4, processes=2)
    for kind in KINDS:
        size, state_3, seen, moved = results[kind]
        assert size == 8
        _assert_equal_states(state_3, one_3)
        _assert_equal_states(moved, one_5)
        np.testing.assert_allclose(seen["loss"], one_seen["loss"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_placed_state_is_a_copy(kind):
    """The step donates its state; the caller's NumPy or JAX arrays stay valid."""
    state, factory = parts(ema=True, ema_decay=0.9)
    for given in (state, jax.tree.map(jax.numpy.asarray, state)):
        before = jax.tree.map(lambda x: np.array(x, copy=True), given)
        run(Launcher(kind), given, factory, range(2))
        jax.tree.map(np.testing.assert_array_equal, given, before)


@pytest.mark.parametrize("kind", KINDS)
def test_placed_state_is_donated(kind):
    state, factory = parts()
    launcher = Launcher(kind)
    placed = launcher.place_state(state)
    launcher.compile(factory)(placed, launcher.place_batch(clips(0)))
    assert all(x.is_deleted() for x in jax.tree.leaves(placed.params))


def test_host_copies_survive_later_steps():
    state, factory = parts()
    launcher = Launcher("jit")
    call, state = launcher.compile(factory), launcher.place_state(state)
    state, _ = call(state, launcher.place_batch(clips(0)))
    host = launcher.to_host(state)
    before = jax.tree.map(lambda x: x.copy(), host)
    for step in range(1, 4):
        state, _ = call(state, launcher.place_batch(clips(step)))
    jax.tree.map(np.testing.assert_array_equal, host, before)


def test_unknown_launcher_is_an_error():
    with pytest.raises(UserError, match="Did you mean 'pmap'"):
        Launcher("pmpa")
