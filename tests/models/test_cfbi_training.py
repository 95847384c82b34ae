"""CFBI: training forward pass, loss, and the ablations of Tables 4 and 5."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.small_cfbi import SIZE, SMALL, boxes, clip, small
from uvos_jax.models import build
from uvos_jax.weights.convert import expected_variables

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

PLAIN = {"background_matching": False, "background_attention": False, "match_bias": False, "multi_local": False,
         "instance_attention": False, "ensembler": False}  # close to FEELVOS


def _shapes(**fields):
    params = expected_variables(build("cfbi", **SMALL | fields))["params"]
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(dict(params)).items()}


@pytest.mark.slow
def test_ablations_of_tables_4_and_5_have_expected_parameters():
    full = _shapes()
    prehead, gate = "head/prehead/conv/kernel", "head/gate1/linear/kernel"
    assert full[prehead][2] == 15 and full[gate][0] == 4 * SMALL["embedding"]
    assert _shapes(background_matching=False)[prehead][2] == 8
    assert _shapes(multi_local=False)[prehead][2] == 5
    assert _shapes(background_attention=False)[gate][0] == 2 * SMALL["embedding"]
    assert {key for key in full if "bias/" in key} == full.keys() - _shapes(match_bias=False).keys()
    without = _shapes(instance_attention=False)
    assert not [key for key in without if "gate" in key and "linear" in key] and "head/foreground/kernel" not in without
    assert "head/block8/conv3/kernel" in without and "head/block1/conv1/kernel" not in _shapes(ensembler=False)
    baseline = _shapes(**PLAIN)
    assert baseline[prehead][2] == 3 and len(baseline) < len(without) < len(full)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "sees"), [
    ({}, True), ({"background_matching": False}, True), ({"background_attention": False}, True),
    ({"background_matching": False, "background_attention": False, "multi_local": False}, False), (PLAIN, False),
])
def test_only_background_matching_and_attention_use_background(row, sees):
    model, variables = small(**{"ensembler": False} | row)
    rng = np.random.default_rng(0)
    first, second = ({"embed": jnp.asarray(rng.uniform(0, 0.5, (1, 17, 21, 8)), jnp.float32),
                      "low": jnp.zeros((1, 17, 21, 16))} for _ in range(2))
    other = {**first, "embed": first["embed"].at[:, 10:, 10:].set(0.3)}  # distant from the object
    labels = jnp.asarray(boxes(SIZE, (1, 0.1, 0.1, 0.4, 0.3)), jnp.int32)[None]
    predict = quick_jit(functools.partial(model.apply, variables, method="predict"))
    raw = [np.asarray(predict(model.init_state(x, labels), second)[0]) for x in (first, other)]
    changed = np.abs(raw[0] - raw[1]).max((0, 1, 2))
    assert all(np.isfinite(x).all() for x in raw) and changed[0] > 1e-3
    assert changed[1] > 1e-3 if sees else changed[1] < 1e-5


def test_objects_absent_from_reference_become_void():
    seen = clip()
    seen["labels"][1, 0][seen["labels"][1, 0] == 2] = 0  # the second object appears later
    batch = build("cfbi").training_batch(jax.tree.map(jnp.asarray, seen))
    assert batch["reference"].shape == (2, *SIZE, 3) and batch["frames"].shape == (2, 3, *SIZE, 3)
    np.testing.assert_array_equal(batch["reference_labels"], seen["labels"][:, 0])
    np.testing.assert_array_equal(batch["labels"][0], seen["labels"][0, 1:])
    np.testing.assert_array_equal(batch["labels"][1], np.where(seen["labels"][1, 1:] == 2, 255, seen["labels"][1, 1:]))
    np.testing.assert_allclose(batch["frames"][0, 0], (seen["frames"][0, 1] / 255 - (0.485, 0.456, 0.406))
                               / (0.229, 0.224, 0.225), atol=1e-5)


@pytest.mark.parametrize(("bootstrap_steps", "step", "share"), [
    (0, 0, 0.15), (100, 0, 1), (100, 50, 0.575), (100, 400, 0.15)])
def test_loss_is_mean_of_hardest_pixels_per_frame(bootstrap_steps, step, share):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 3, 5, 8, 4)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 4, 5, 8))
    labels[:, :, 0, :2] = 255
    model = build("cfbi", bootstrap_steps=bootstrap_steps)
    losses, parts = model.loss({"logits": logits}, {"labels": jnp.asarray(labels)}, step)
    each = np.zeros((2, 3))
    for i, j in np.ndindex(2, 3):
        pixels = []
        for x, label in zip(logits[i, j].reshape(-1, 4).astype(np.float64), labels[i, j + 1].reshape(-1), strict=True):
            pixels.append(0 if label == 255 else np.log(np.exp(x).sum()) - x[label])
        each[i, j] = np.mean(sorted(pixels, reverse=True)[:int(round(share * 1000) * 40 / 1000)])
    np.testing.assert_allclose(losses, each.mean(1), rtol=1e-5)
    np.testing.assert_allclose(parts["first"], each[:, 0], rtol=1e-5)
    np.testing.assert_allclose(parts["last"], each[:, 2], rtol=1e-5)


@functools.cache
def _trained():
    """Returns variables, batch and jitted loss with gradient of a net without ensembler and bootstrapping."""
    model, variables = small(ensembler=False, use_predicted_masks=False, bootstrap_steps=1000)
    batch = model.training_batch(jax.tree.map(jnp.asarray, clip()))

    @quick_jit
    def run(params, batch):
        def total(params):
            outputs, _ = model.apply(variables | {"params": params}, batch)
            losses, _ = model.loss(outputs, batch, 0)
            return losses.mean(), outputs["logits"]

        return jax.value_and_grad(total, has_aux=True)(params)

    return variables, batch, run


@pytest.mark.slow
def test_gradient_step_lowers_loss_by_predicted_amount():
    variables, batch, run = _trained()
    (before, _), gradient = run(variables["params"], batch)
    length = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(gradient)))
    params = jax.tree.map(lambda x, g: x - 0.001 * g / length, variables["params"], gradient)
    (after, _), _ = run(params, batch)
    assert float(before - after) == pytest.approx(0.001 * length, rel=0.3)


@pytest.mark.slow
def test_predicted_masks_replace_ground_truth():
    variables, batch, run = _trained()
    model = build("cfbi", **SMALL, ensembler=False)
    assert model.use_predicted_masks
    own = np.asarray(quick_jit(model.apply)(variables, batch)[0]["logits"])
    (_, true), _ = run(variables["params"], batch)
    np.testing.assert_allclose(own[:, 0], true[:, 0], atol=1e-4)
    assert np.abs(own[:, 1] - true[:, 1]).max() > 1e-2
    decided = model.to_native(true[:, 0], SIZE).argmax(-1)
    (_, fed), _ = run(variables["params"], batch | {"labels": batch["labels"].at[:, 1].set(decided)})
    np.testing.assert_allclose(own, fed, atol=1e-3)
