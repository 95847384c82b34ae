"""Losses against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.models.f2net.official import mask_loss
from uvos_jax.ops.losses import binary_cross_entropy, bootstrapped_cross_entropy, focal_loss, soft_iou


def _batch(seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((3, 4, 5, 1)) * 4).astype(np.float32), rng.random((3, 4, 5, 1)) > 0.5


def _by_definition(logits, target):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -(target * np.log(p) + (1 - target) * np.log(1 - p))


def test_bce_is_mean_per_example():
    logits, mask = _batch()
    loss = binary_cross_entropy(logits, mask)
    assert loss.shape == (3,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, _by_definition(logits, mask).mean((1, 2, 3)), rtol=1e-5)


def test_bce_accepts_soft_targets():
    logits, _ = _batch()
    soft = np.random.default_rng(1).random(logits.shape).astype(np.float32)
    np.testing.assert_allclose(
        binary_cross_entropy(logits, soft), _by_definition(logits, soft).mean((1, 2, 3)), rtol=1e-5
    )


def test_bce_ignores_invalid_pixels():
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
    logits = logits * np.float32(scale)  # max and abs are not differentiable at zero logits
    gradient = jax.grad(lambda x: binary_cross_entropy(x, mask).sum())(logits)
    expected = (1 / (1 + np.exp(-logits.astype(np.float64))) - mask) / 20
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_bce_of_bfloat16_logits_is_computed_in_float32():
    logits, mask = _batch()
    half = jnp.asarray(logits, jnp.bfloat16)
    loss = binary_cross_entropy(half, mask)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, binary_cross_entropy(half.astype(jnp.float32), mask))


def test_soft_iou_equals_published_code(golden):
    with np.load(golden / "dpa_loss.npz") as file:
        losses = [soft_iou(file["preds"][:, i:i + 1], file["gt"]) for i in range(4)]
        np.testing.assert_allclose(np.mean(losses), file["iou_loss"][0], rtol=1e-6)


def test_soft_iou_of_binary_masks_is_one_minus_iou():
    ours, theirs = np.zeros((2, 4, 4, 1), bool), np.zeros((2, 4, 4, 1), bool)
    ours[0, :2], theirs[0, 1:3], theirs[1, 0, 0] = True, True, True
    np.testing.assert_allclose(soft_iou(ours, theirs), [1 - 4 / 12, 1])


def test_soft_iou_ignores_invalid_pixels():
    rng = np.random.default_rng(0)
    probability, target = rng.random((2, 5, 6, 1)).astype(np.float32), rng.random((2, 5, 6, 1)) > 0.5
    valid = np.ones(target.shape, bool)
    valid[:, 3:] = False
    np.testing.assert_allclose(soft_iou(probability, target, valid), soft_iou(probability[:, :3], target[:, :3]),
                               rtol=1e-6)
    assert not np.asarray(soft_iou(probability, target, np.zeros_like(valid))).any()  # no valid pixel: no loss


def _heat(*peaks, size=(6, 7)):
    """Target [1, h, w, 1] with a linear falloff around each peak (row, column)."""
    target = np.zeros((1, *size, 1), np.float32)
    y, x = np.mgrid[:size[0], :size[1]]
    for row, column in peaks:
        spot = np.maximum(1 - 0.3 * (abs(y - row) + abs(x - column)), 0)
        target[0, ..., 0] = np.maximum(target[0, ..., 0], spot)
    return target


def test_focal_loss_equals_published_code(golden):
    with np.load(golden / "f2net_units.npz") as file:
        p, target = (file[name].transpose(0, 2, 3, 1) for name in ("focal_pred", "focal_gt"))
        logits = np.log(p.astype(np.float64) / (1 - p))
        np.testing.assert_allclose(focal_loss(logits.astype(np.float32), target), file["focal_loss"], rtol=1e-6)


def test_f2net_mask_loss_equals_published_code(golden):
    """F2Net's ``official`` loss: cross-entropy with one weight for all pixels plus 0.8 times the L1 error."""
    with np.load(golden / "f2net_units.npz") as file:
        p, label = (file[name].transpose(0, 2, 3, 1) for name in ("bce_pred", "bce_label"))
        logits = np.log(p.astype(np.float64) / (1 - p)).astype(np.float32)
        loss = mask_loss(logits, label > 0, np.ones(label.shape, bool))
        np.testing.assert_allclose(loss, file["wbce"] + 0.8 * file["l1"], rtol=1e-6)


def test_focal_loss_equals_hand_computed_values():
    # p = 1/2 everywhere. The loss of the peak is log(2) / 4; of the pixel with target 0.5 a sixteenth of that; of the
    # pixel with target 0 the same as of the peak.
    target = np.array([[1, 0.5, 0]], np.float32)
    np.testing.assert_allclose(focal_loss(np.zeros((1, 3)), target), [np.log(2) / 4 * (2 + 1 / 16)], rtol=1e-6)
    # p = 3/4 at the peak and 1/4 in the background: (1/4)^2 log(4/3) each.
    logits = np.log(np.array([[3, 1 / 3]], np.float32))
    np.testing.assert_allclose(focal_loss(logits, np.array([[1, 0]])), [np.log(4 / 3) / 8], rtol=1e-5)


def test_focal_loss_is_normalized_by_peaks_per_example():
    logits = np.random.default_rng(0).standard_normal((3, 6, 7, 1)).astype(np.float32)
    target = np.concatenate([_heat(), _heat((1, 2)), _heat((0, 0), (5, 6))])
    loss = np.asarray(focal_loss(logits, target))
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for i, divisor in enumerate((1, 1, 2)):
        peak = target[i] == 1
        total = -((1 - p[i]) ** 2 * np.log(p[i]))[peak].sum()
        total -= ((1 - target[i]) ** 4 * p[i] ** 2 * np.log(1 - p[i]))[~peak].sum()
        np.testing.assert_allclose(loss[i], total / divisor, rtol=1e-5)
        np.testing.assert_allclose(focal_loss(logits[i:i + 1], target[i:i + 1]), loss[i:i + 1], rtol=1e-6)
    assert loss.shape == (3,) and loss.dtype == np.float32


def test_focal_loss_of_perfect_heatmap_is_zero():
    target = np.concatenate([_heat((2, 3)), _heat()])
    np.testing.assert_array_equal(focal_loss(np.where(target == 1, 200, -200).astype(np.float32), target), [0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("value", [1e4, 100.0, -100.0, -1e4])
def test_focal_loss_and_gradient_of_extreme_logits(value):
    target = np.concatenate([_heat((2, 3)), _heat()])
    logits = np.full_like(target, value)
    loss, gradient = jax.value_and_grad(lambda x: focal_loss(x, target).sum())(logits)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    if value < 0:  # all pixels are correct except the peak
        np.testing.assert_allclose(loss, -value, rtol=1e-6)
        assert gradient[0, 2, 3, 0] == -1 and (np.asarray(gradient) != 0).sum() == 1
    else:
        np.testing.assert_allclose(gradient, np.where(target == 1, 0, (1 - target) ** 4), rtol=1e-6)


def test_focal_loss_ignores_zero_weight_pixels():
    logits = np.random.default_rng(0).standard_normal((1, 6, 7, 1)).astype(np.float32)
    target, weight = _heat((1, 1), (1, 5)), np.ones((1, 6, 7, 1), bool)
    weight[:, :, 4:] = False  # excludes the second peak
    np.testing.assert_allclose(focal_loss(logits, target, weight), focal_loss(logits[:, :, :4], target[:, :, :4]),
                               rtol=1e-6)
    assert not np.asarray(focal_loss(logits, target, np.zeros_like(weight))).any()


def _scored(seed=0, size=(17, 19), n=4, b=2):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((b, *size, n))).astype(np.float32)
    labels = rng.integers(0, n, (b, *size))
    labels[rng.random(labels.shape) < 0.2] = 255
    return logits, labels


def _hardest(logits, labels, count):
    """Mask of the hardest pixels, cross-entropy and probabilities of one example in float64."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    own = np.take_along_axis(p, np.where(labels == 255, 0, labels)[..., None], -1)[..., 0]
    losses = np.where(labels == 255, 0, -np.log(own))
    chosen = np.zeros(losses.size, bool)
    chosen[np.argsort(-losses.ravel(), kind="stable")[:count]] = True
    return chosen.reshape(losses.shape), losses, p


def test_bootstrapped_cross_entropy_equals_published_code(golden):
    with np.load(golden / "cfbi_loss.npz") as file:
        logits, labels = file["logits"].transpose(0, 2, 3, 1), file["label"]
        for step, expected in zip(file["steps"], file["loss"], strict=True):
            ramp = min(1.0, step / 50_000)
            loss = jax.jit(bootstrapped_cross_entropy)(logits, labels, ramp * 0.15 + (1 - ramp))
            np.testing.assert_allclose(loss, [expected], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "count"), [(1.0, 323), (0.5, 161), (0.15, 48), (33 / 323, 33), (1e-6, 1)])
def test_bootstrapped_cross_entropy_is_mean_of_hardest_pixels(share, count):
    logits, labels = _scored()
    loss, gradient = jax.value_and_grad(lambda x: bootstrapped_cross_entropy(x, labels, share).sum())(logits)
    expected = 0
    for i in range(2):
        chosen, losses, p = _hardest(logits[i], labels[i], count)
        expected += losses[chosen].mean()
        # Softmax minus one-hot target, for the selected pixels only.
        slope = (p - np.eye(4)[np.where(labels[i] == 255, 0, labels[i])]) / count
        np.testing.assert_allclose(gradient[i], slope * (chosen & (labels[i] != 255))[..., None], atol=1e-7)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_void_pixels_have_zero_loss_but_count_in_mean():
    logits, labels = _scored()
    labels[0], labels[1, :9] = 255, 255  # all void; 8 of 17 rows labeled
    loss = np.asarray(bootstrapped_cross_entropy(logits, labels, 0.9))
    chosen, losses, _ = _hardest(logits[1], labels[1], int(0.9 * 323))
    assert loss[0] == 0 and losses[chosen].min() == 0
    np.testing.assert_allclose(loss[1], losses.sum() / int(0.9 * 323), rtol=1e-5)


@pytest.mark.slow
def test_bootstrapped_cross_entropy_of_extreme_logits_is_finite():
    logits, labels = np.zeros((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2), int)
    logits[0, 0, 0, 1], logits[0, 1, 1, 0] = 1e4, -1e4  # -1e4 is the logit of a slot without an object
    loss, gradient = jax.value_and_grad(lambda x: bootstrapped_cross_entropy(x, labels, 0.5)[0])(logits)
    np.testing.assert_allclose(loss, 1e4 + np.log(2) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 1, 1], [-0.5, 0.25, 0.25])
    assert np.isfinite(gradient).all()


@pytest.mark.torch
def test_bootstrapped_cross_entropy_gradient_equals_torch(torch):
    logits, labels = _scored(3, b=3)
    x = torch.tensor(logits.transpose(0, 3, 1, 2), requires_grad=True)
    losses = torch.nn.functional.cross_entropy(x, torch.tensor(labels), ignore_index=255, reduction="none").flatten(1)
    value = torch.topk(losses, int(0.3 * losses.shape[1])).values.mean()
    value.backward()
    ours, gradient = jax.value_and_grad(lambda x: bootstrapped_cross_entropy(x, labels, 0.3).mean())(logits)
    np.testing.assert_allclose(ours, value.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad.permute(0, 2, 3, 1).numpy(), atol=1e-8)
