"""The full-size training step lowers for TPU and GPU on any machine, with the expected collectives."""

import json
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax import export

from tests.helpers.tiny_training import clips, in_processes, parts
from uvos_jax.models import build
from uvos_jax.training import optimizers
from uvos_jax.training.launchers import Launcher
from uvos_jax.training.state import create_state
from uvos_jax.training.step import make_train_step

# Collective operations, as named in StableHLO and in compiled HLO.
COLLECTIVES = r"(?:all_reduce|all_gather|all_to_all|reduce_scatter|collective_\w+)"
BATCH = {"frames": jax.ShapeDtypeStruct((8, 2, 481, 857, 3), jnp.uint8),
         "labels": jax.ShapeDtypeStruct((8, 2, 481, 857), jnp.uint8)}


def main(output):
    """Returns the results that the tests below check, from a process with eight devices."""
    model, found = build("adnet"), {}
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example_batch())
    rate = optimizers.make_schedule({"name": "poly", "lr": 0.005, "steps": 40000}, 30000)
    tx = optimizers.make_optimizer({"name": "sgd", "weight_decay": 5e-4}, rate, shapes["params"])
    state = jax.eval_shape(lambda v: create_state(model, tx, v, 0), shapes)
    for kind in ("shard_map", "jit"):
        call = Launcher(kind).compile(lambda axis: make_train_step(model, tx, rate, axis_name=axis))
        exported = export.export(call, platforms=["tpu", "cuda"])(state, BATCH)
        new_state, metrics = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        found[kind] = {"platforms": exported.platforms, "devices": exported.nr_devices,
                       "same_state": jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype),
                                                  new_state, state) == jax.tree.map(lambda _: True, state),
                       "metrics": sorted(metrics),
                       "collectives": Counter(re.findall(rf"stablehlo\.({COLLECTIVES})", exported.mlir_module()))}
    found["parameters"] = len(jax.tree.leaves(state.params))
    found["statistics"] = len(jax.tree.leaves(state.batch_stats))
    # The collectives of the jit form appear only after compilation; here for a small network.
    tiny_state, factory = parts()
    launcher = Launcher("jit")
    call, args = launcher.compile(factory), (launcher.place_state(tiny_state), launcher.place_batch(clips(0)))
    text = call.lower(*args).compile().as_text()
    found["compiled"] = Counter(re.findall(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
                                           r"(?:-start)?\(", text))
    with open(output, "w") as file:
        json.dump(found, file)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    output = tmp_path_factory.mktemp("export") / "found.json"
    in_processes("tests.training.test_export", output, devices=8)
    return json.loads(output.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shard_map", "jit"])
def test_full_size_step_lowers_for_tpu_and_gpu(found, kind):
    assert found[kind]["platforms"] == ["tpu", "cuda"] and found[kind]["devices"] == 8
    assert found[kind]["same_state"]
    assert found[kind]["metrics"] == ["grad_norm", "learning_rate", "loss", "loss/logits"]


@pytest.mark.slow
def test_devices_exchange_only_gradients_and_statistics(found):
    """All-reduces: one per gradient, two (mean, variance) per batch norm forward and backward, two for metrics.

    The loss does not use the auxiliary head, so its batch norm has no backward all-reduces.
    """
    norms = found["statistics"] // 2
    backwards = 2 * (norms - 1)
    assert found["shard_map"]["collectives"] == {
        "all_reduce": found["parameters"] + found["statistics"] + backwards + 2}
    assert found["jit"]["collectives"] == {}  # the compiler inserts them


@pytest.mark.slow
def test_compiled_jit_step_uses_only_all_reduces(found):
    assert set(found["compiled"]) == {"all-reduce"}
