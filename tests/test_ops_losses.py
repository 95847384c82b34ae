"""Losses against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.losses import binary_cross_entropy, soft_iou


def _batch(seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((3, 4, 5, 1)) * 4).astype(np.float32), rng.random((3, 4, 5, 1)) > 0.5


def _by_definition(logits, target):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -(target * np.log(p) + (1 - target) * np.log(1 - p))


def test_bce_is_the_mean_of_each_example():
    logits, mask = _batch()
    loss = binary_cross_entropy(logits, mask)
    assert loss.shape == (3,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, _by_definition(logits, mask).mean((1, 2, 3)), rtol=1e-5)


def test_bce_takes_soft_targets():
    logits, _ = _batch()
    soft = np.random.default_rng(1).random(logits.shape).astype(np.float32)
    np.testing.assert_allclose(
        binary_cross_entropy(logits, soft), _by_definition(logits, soft).mean((1, 2, 3)), rtol=1e-5
    )


def test_bce_counts_only_valid_pixels():
    logits, mask = _batch()
    valid = np.random.default_rng(2).random(logits.shape) > 0.4
    valid[2] = False
    loss = np.asarray(binary_cross_entropy(logits, mask, valid))
    for i in range(2):
        np.testing.assert_allclose(loss[i], _by_definition(logits[i], mask[i])[valid[i]].mean(), rtol=1e-5)
    assert loss[2] == 0
    changed = np.where(valid, logits, 77).astype(np.float32)
    np.testing.assert_array_equal(binary_cross_entropy(changed, mask, valid), loss)
    gradient = jax.grad(lambda x: binary_cross_entropy(x, mask, valid).sum())(logits)
    assert (np.asarray(gradient)[~valid] == 0).all() and (np.asarray(gradient)[valid] != 0).all()


@pytest.mark.parametrize("value", [1e4, 88.0, 3e38])
def test_bce_of_extreme_logits_is_finite(value):
    logits = np.array([[value], [-value]], np.float32)
    for mask, expected in (([[True], [False]], [0, 0]), ([[False], [True]], [value, value])):
        loss = binary_cross_entropy(logits, np.array(mask))
        np.testing.assert_allclose(loss, np.float32(expected), rtol=1e-6, atol=1e-30)
        gradient = jax.grad(lambda x, mask=mask: binary_cross_entropy(x, np.array(mask)).sum())(logits)
        assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_bce_gradient_is_probability_minus_target(scale):
    logits, mask = _batch()
    logits = logits * np.float32(scale)  # zero logits sit on the kinks of max and abs
    gradient = jax.grad(lambda x: binary_cross_entropy(x, mask).sum())(logits)
    expected = (1 / (1 + np.exp(-logits.astype(np.float64))) - mask) / 20
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_bce_of_bfloat16_logits_is_computed_in_float32():
    logits, mask = _batch()
    half = jnp.asarray(logits, jnp.bfloat16)
    loss = binary_cross_entropy(half, mask)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, binary_cross_entropy(half.astype(jnp.float32), mask))


def test_soft_iou_equals_the_published_code(golden):
    with np.load(golden / "dpa_loss.npz") as file:
        losses = [soft_iou(file["preds"][:, i:i + 1], file["gt"]) for i in range(4)]
        np.testing.assert_allclose(np.mean(losses), file["iou_loss"][0], rtol=1e-6)


def test_soft_iou_of_masks_is_one_minus_their_overlap():
    ours, theirs = np.zeros((2, 4, 4, 1), bool), np.zeros((2, 4, 4, 1), bool)
    ours[0, :2], theirs[0, 1:3], theirs[1, 0, 0] = True, True, True
    np.testing.assert_allclose(soft_iou(ours, theirs), [1 - 4 / 12, 1])


def test_soft_iou_leaves_out_what_does_not_count():
    rng = np.random.default_rng(0)
    probability, target = rng.random((2, 5, 6, 1)).astype(np.float32), rng.random((2, 5, 6, 1)) > 0.5
    valid = np.ones(target.shape, bool)
    valid[:, 3:] = False
    np.testing.assert_allclose(soft_iou(probability, target, valid), soft_iou(probability[:, :3], target[:, :3]),
                               rtol=1e-6)
    assert not np.asarray(soft_iou(probability, target, np.zeros_like(valid))).any()  # nothing counts: no loss
