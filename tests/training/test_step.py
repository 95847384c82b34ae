"""The training step against PyTorch and hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.small_adnet import SMALL, clip
from tests.helpers.tiny_training import TinyNet, clips, parts
from uvos_jax import weights
from uvos_jax.errors import UserError
from uvos_jax.models import build
from uvos_jax.training.state import create_state
from uvos_jax.training.step import make_train_step
from uvos_jax.weights.convert import convert, expected_variables

LR = 0.005
# The smallest complete AD-Net: an activation within rounding of a ReLU's kink may change gradients by 1e-3.
TINY = SMALL | {"width": 4, "aspp_features": 8, "embedding": 8, "hidden": 8}
BGR_MEAN = np.float32([104.00698793, 116.66876762, 122.67891434])


def _pairs(step, size=(33, 41)):
    """``{"frames": [4, 2, h, w, 3], "labels": [4, 2, h, w]}``: a bright disk on a texture."""
    frames = np.stack([clip(9, size, seed=10 * step + i)[[0, 3 + i]] for i in range(4)])
    return {"frames": frames, "labels": (frames[..., 0] > 200).astype(np.uint8)}


def _compiled(factory):
    """Returns the single-device step, compiled without optimization."""
    return jax.jit(factory(None), compiler_options={"xla_backend_optimization_level": 0})


def _assert_close(ours, theirs, rtol):
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(a - b).max() <= rtol * np.abs(b).max(), jax.tree_util.keystr(path)


@pytest.mark.torch
@pytest.mark.slow
def test_three_steps_of_adnet_equal_torch(torch):
    """Compares parameters and running statistics in float32.

    Both libraries round differently, so the network is small and its values stay away from the kinks of ReLUs.
    """
    from tests.helpers import torch_training
    from tests.helpers.torch_adnet import TorchADNet
    hyper = {k: v for k, v in TINY.items() if k != "short_side"}
    net = TorchADNet(**hyper)
    with torch.no_grad():
        for name, x in net.named_parameters():
            if name.endswith("bias"):  # far from zero, to keep values away from the kinks of ReLUs
                x.copy_(3 * torch.randn_like(x).sign())
    start = weights.from_torch("adnet", net.published_state_dict(), **TINY)
    torch_training.trainable(net)
    batches = [_pairs(step) for step in range(3)]

    model = build("adnet", dropout=0.0, **TINY)
    state, factory = parts(model, schedule={"name": "poly", "lr": LR, "steps": 4}, variables=start)
    step, losses = _compiled(factory), []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))

    theirs = torch_training.sgd_steps(
        net, [(*((b["frames"][:, i, ..., ::-1] - BGR_MEAN) for i in (0, 1)),
               b["labels"][:, 1, ..., None].astype(np.float32)) for b in batches], LR, 4)
    np.testing.assert_allclose(losses, theirs, rtol=1e-5)
    rules = [(path, key, layout.replace("abn", "norm")) for path, key, layout in model.torch_rules()]
    theirs = convert(expected_variables(model), net.published_state_dict(), rules, "adnet")
    _assert_close(state.params, theirs["params"], 1e-5)
    _assert_close(state.batch_stats, theirs["batch_stats"], 1e-5)
    moved = [np.abs(a - b).max() / np.abs(b).max()
             for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(start["params"]), strict=True)]
    assert np.median(moved) > 1e-4


@pytest.mark.slow
def test_remat_does_not_change_the_step():
    results = {}
    for remat in (False, True):
        state, factory = parts(build("adnet", remat=remat, dropout=0.0, **TINY),
                               schedule={"name": "constant", "lr": 0.01})
        results[remat] = _compiled(factory)(state, _pairs(0))
    (a, metrics), (b, _) = results[True], results[False]
    _assert_close(a.params, b.params, 1e-5)
    _assert_close(a.batch_stats, b.batch_stats, 1e-5)
    assert metrics["grad_norm"] > 0


def test_accumulated_gradients_equal_full_batch_gradients():
    """With frozen statistics, micro-batches are independent and their mean gradient is that of the batch."""
    batch, results = clips(0), []
    for accumulate in (1, 4):
        state, factory = parts(batch_norm="frozen", accumulate=accumulate)
        results.append(_compiled(factory)(state, batch))
    (a, seen_a), (b, seen_b) = results
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)
    assert seen_a.keys() == seen_b.keys()
    for name in seen_a:
        np.testing.assert_allclose(seen_a[name], seen_b[name], rtol=1e-5)


def test_statistics_are_updated_by_each_micro_batch():
    """Reference: one forward pass per micro-batch; each micro-batch has every second example."""
    batch = clips(0)
    state, factory = parts(accumulate=2)
    after, _ = _compiled(factory)(state, batch)
    model, batch_stats = TinyNet(), state.batch_stats
    for i in range(2):
        inputs = model.training_batch({name: x[i::2] for name, x in batch.items()})
        _, updated = model.apply({"params": state.params, "batch_stats": batch_stats}, inputs, True,
                                 mutable=["batch_stats"])
        batch_stats = updated["batch_stats"]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), after.batch_stats, batch_stats)
    with pytest.raises(UserError, match="16 examples per device are not divisible by accumulate=3"):
        parts(accumulate=3)[1](None)(state, batch)


def test_frozen_batch_norm_keeps_statistics_with_active_dropout():
    state, factory = parts(TinyNet(dropout=0.5), batch_norm="frozen")
    step, batch = _compiled(factory), clips(0)
    after, first = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)
    inputs = TinyNet().training_batch(batch)
    outputs, _ = TinyNet().apply({"params": state.params, "batch_stats": state.batch_stats}, inputs)
    without = TinyNet().loss(outputs, inputs, 0)[0].mean()
    assert abs(first["loss"] - without) > 1e-3
    # Dropout masks depend on the seed and the step.
    assert step(state, batch)[1]["loss"] == first["loss"]
    assert step(state.replace(step=state.step + 1), batch)[1]["loss"] != first["loss"]
    other, _ = parts(TinyNet(dropout=0.5), seed=4)
    assert step(state.replace(key=other.key), batch)[1]["loss"] != first["loss"]
    # Without dropout, the loss of the frozen step equals the evaluation loss.
    plain, factory = parts(batch_norm="frozen")
    np.testing.assert_allclose(_compiled(factory)(plain, batch)[1]["loss"], without, rtol=1e-6)


def test_moving_average_equals_hand_computed_values():
    state, factory = parts(ema=True, ema_decay=0.2)
    step, expected = _compiled(factory), {"params": state.params, "batch_stats": state.batch_stats}
    for i in range(3):
        state, _ = step(state, clips(i))
        weight = (0.1, 2 / 11, 0.2)[i]  # 0.2, but (1 + t) / (10 + t) at most
        expected = jax.tree.map(lambda e, p, w=weight: w * e + (1 - w) * p, expected,
                                {"params": state.params, "batch_stats": state.batch_stats})
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), state.ema, expected)
    with pytest.raises(ValueError, match="moving average"):
        parts(ema_decay=0.9)[1](None)(parts()[0], clips(0))


@pytest.mark.slow
def test_metrics_equal_a_direct_computation():
    state, factory = parts(schedule={"name": "poly", "lr": 0.02, "steps": 10}, batch_norm="frozen")
    batch, model = clips(0), TinyNet()
    inputs = model.training_batch(batch)

    def loss(params):
        outputs, _ = model.apply({"params": params, "batch_stats": state.batch_stats}, inputs)
        return model.loss(outputs, inputs, 0)[0].mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    step = _compiled(factory)
    after, metrics = step(state, batch)
    assert metrics.keys() == {"loss", "loss/bce", "grad_norm", "learning_rate"}
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())
    norm = np.sqrt(sum(np.square(np.float64(g)).sum() for g in jax.tree.leaves(grads)))
    for name, expected in {"loss": value, "loss/bce": value, "grad_norm": norm, "learning_rate": 0.02}.items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)
    assert after.step == 1
    assert step(after, batch)[1]["learning_rate"] == pytest.approx(0.02 * 0.9 ** 0.9)
    # The schedule of a phase starts at its first step.
    _, factory = parts(schedule={"name": "poly", "lr": 0.02, "steps": 10}, first_step=7)
    step = _compiled(factory)
    assert step(state.replace(step=state.step + 7), batch)[1]["learning_rate"] == pytest.approx(0.02)
    assert step(state.replace(step=state.step + 8), batch)[1]["learning_rate"] == pytest.approx(0.02 * 0.9 ** 0.9)


def test_bfloat16_keeps_float32_parameters():
    losses = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        state, factory = parts(TinyNet(dtype=dtype))
        after, metrics = _compiled(factory)(state, clips(0))
        assert {x.dtype for x in jax.tree.leaves((after.params, after.batch_stats))} == {jnp.dtype("float32")}
        losses[dtype] = float(metrics["loss"])
    difference = abs(losses[jnp.bfloat16] - losses[jnp.float32])
    assert 0 < difference < 0.02 * losses[jnp.float32]


def test_initialization_depends_on_the_seed():
    state, _ = parts()
    tx = optax.sgd(0.1)
    a, b, c = (create_state(TinyNet(), tx, None, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert not np.array_equal(a.params["conv1"]["kernel"], c.params["conv1"]["kernel"])
    assert jax.tree.structure(a.params) == jax.tree.structure(state.params) and a.ema is None
    # Any optax transform works; the learning rate follows the global step.
    step = _compiled(lambda axis: make_train_step(TinyNet(), tx, lambda count: 0.1 * count))
    assert step(a.replace(step=jnp.int32(3)), clips(0))[1]["learning_rate"] == pytest.approx(0.3)


def test_unknown_options_are_errors():
    with pytest.raises(UserError, match="sync, local, frozen"):
        parts(batch_norm="synced")[1](None)
    with pytest.raises(UserError, match="at least 1"):
        parts(accumulate=0)[1](None)
