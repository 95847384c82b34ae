"""RAFT: padding, upsampling, warm start, loss, and parity with the published code and PyTorch."""

import contextlib
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.command_line import uvos
from uvos_jax.errors import UserError
from uvos_jax.models import build, hyper_parameters
from uvos_jax.models.raft.model import warm_start
from uvos_jax.models.raft.modules import convex_upsample
from uvos_jax.models.raft.padding import pad_to_eight, unpad
from uvos_jax.weights import from_torch, parity
from uvos_jax.weights.convert import convert

NETS = ("large", "small")
# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _manifest(golden, net):
    return json.loads((golden / f"raft_{net}_manifest.json").read_text())


@pytest.fixture
def small(golden):
    """The small network with the weights of its reference file."""
    return build("raft", net="small"), from_torch("raft", parity.weights_of(_manifest(golden, "small")), net="small")


def _pair(b, h, w, seed=0):
    first, second = np.random.default_rng(seed).uniform(0, 255, (2, b, h, w, 3)).astype(np.float32)
    return {"first": first, "second": second}


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_parity_command_accepts_published_tensors(golden, net):
    code, out, _ = uvos("parity", golden / f"raft_{net}_a.npz")
    errors = {line.split()[0]: float(line.split()[1]) for line in out.splitlines()[:-1]}
    assert code == 0 and list(errors) == [
        "pad", "fmap1_c16", "cnet_c32", "corr_iter1", "net_iter1_c16", "delta_iter1", "flow_up_iter1", "flow_low",
        "flow_up", "flow_unpadded"]
    assert max(errors.values()) <= 2e-5, errors


@pytest.mark.parametrize(("net", "keys", "parameters"), [("large", 179, 5_257_536), ("small", 106, 990_162)])
def test_published_checkpoint_converts_completely(golden, net, keys, parameters):
    manifest = _manifest(golden, net)
    assert len(manifest["keys"]) == keys
    weights = parity.weights_of(manifest)
    variables = from_torch("raft", {f"module.{key}": value for key, value in weights.items()}, net=net)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert ("batch_stats" in variables) == (net == "large")
    with pytest.raises(UserError, match=r"keys? (missing|too many)"):
        from_torch("raft", weights, net="small" if net == "large" else "large")


def test_duplicate_norm_may_be_missing_but_not_differ(golden):
    weights = parity.weights_of(_manifest(golden, "large"))
    expected = from_torch("raft", weights)
    for dropped in ("norm3", "downsample.1"):
        once = {key: value for key, value in weights.items() if dropped not in key}
        assert len(once) < len(weights)
        jax.tree.map(np.testing.assert_array_equal, from_torch("raft", once), expected)
    weights["cnet.layer3.0.downsample.1.bias"] = weights["cnet.layer3.0.downsample.1.bias"] + 1
    with pytest.raises(UserError, match=r"cnet\.layer3\.0\.downsample\.1\.bias.*cnet\.layer3\.0\.norm3\.bias"):
        from_torch("raft", weights)


@pytest.mark.parametrize(("size", "mode", "padding"), [
    ((480, 854), "sintel", (0, 0, 1, 1)),
    ((436, 1024), "sintel", (2, 2, 0, 0)),
    ((375, 1242), "kitti", (0, 1, 3, 3)),
    ((370, 1226), "kitti", (0, 6, 3, 3)),
    ((17, 25), "sintel", (3, 4, 3, 4)),
    ((17, 25), "kitti", (0, 7, 3, 4)),
    ((16, 24), "kitti", (0, 0, 0, 0)),
])
def test_padding_replicates_border_and_is_invertible(size, mode, padding):
    images = np.random.default_rng(0).integers(0, 255, (2, *size, 3))
    padded, added = pad_to_eight(images, mode)
    assert added == padding
    assert padded.shape[1] % 8 == 0 == padded.shape[2] % 8
    top, _, left, _ = padding
    rows = np.clip(np.arange(padded.shape[1]) - top, 0, size[0] - 1)
    columns = np.clip(np.arange(padded.shape[2]) - left, 0, size[1] - 1)
    np.testing.assert_array_equal(padded, images[:, rows][:, :, columns])
    np.testing.assert_array_equal(unpad(padded, added), images)


def test_size_not_divisible_by_eight_raises(small):
    model, variables = small
    with pytest.raises(ValueError, match="20x24"):
        model.apply(variables, _pair(1, 20, 24))


def test_convex_upsampling_selects_weighted_neighbor():
    flow = np.random.default_rng(0).standard_normal((1, 3, 4, 2)).astype(np.float32)
    logits = np.full((1, 3, 4, 9, 8, 8), -100, np.float32)
    logits[:, :, :, 5] = 0  # the neighbor to the right
    logits[0, 1, 2, :, 6, 3] = -100
    logits[0, 1, 2, 0, 6, 3] = logits[0, 1, 2, 7, 6, 3] = 50  # one pixel: half upper left, half below
    fine = np.array(convex_upsample(flow, logits.reshape(1, 3, 4, -1))).reshape(3, 8, 4, 8, 2)
    np.testing.assert_allclose(fine[1, 6, 2, 3], 4 * (flow[0, 0, 1] + flow[0, 2, 2]), rtol=1e-5)
    fine[1, 6, 2, 3] = fine[1, 6, 2, 4]
    right = np.pad(8 * flow[0, :, 1:], ((0, 0), (0, 1), (0, 0)))  # zero beyond the border
    np.testing.assert_allclose(fine, np.broadcast_to(right[:, None, :, None], fine.shape), rtol=1e-5)


def test_warm_start_equals_nearest_griddata():
    from scipy.interpolate import griddata  # the published code forwards flow with griddata

    flow = (4 * np.random.default_rng(0).standard_normal((2, 11, 17, 2))).astype(np.float32)
    made = np.asarray(warm_start(flow))
    y, x = np.mgrid[:11, :17]
    for one, ours in zip(flow, made, strict=True):
        tips = np.stack([x, y], -1) + one
        inside = ((tips > 0) & (tips < (17, 11))).all(-1)
        assert not inside.all()
        np.testing.assert_array_equal(ours, griddata(tips[inside], one[inside], (x, y), method="nearest"))


def test_warm_start_of_single_vector_and_of_flow_out_of_frame():
    flow = np.zeros((2, 6, 8, 2), np.float32)
    flow[0, 2, 3] = (2.0, 1.0)
    flow[1] = 100
    made = np.asarray(warm_start(jnp.asarray(flow)))
    assert made[0, 3, 5].tolist() in ([2, 1], [0, 0])  # two vectors end at the same pixel
    assert not made[0, :2].any() and not made[1].any()


@pytest.mark.slow
def test_iterations_continue_from_previous_estimate(small):
    model, variables = small
    pair = _pair(1, 32, 48)

    @quick_jit
    def run(start):
        outputs, _ = model.apply(variables, pair, True, iterations=3)
        once, _ = model.apply(variables, pair, iterations=1)
        none, _ = model.apply(variables, pair, iterations=0, start=start)
        return outputs, once, none

    start = np.random.default_rng(0).standard_normal((1, 4, 6, 2)).astype(np.float32)
    outputs, once, none = run(start)
    assert outputs["flows"].shape == (3, 1, 32, 48, 2) and outputs["low"].shape == (1, 4, 6, 2)
    scale = np.abs(np.asarray(outputs["flow"])).max()
    assert scale > 0.1 and set(once) == {"flow", "low"}
    np.testing.assert_array_equal(outputs["flows"][-1], outputs["flow"])
    np.testing.assert_allclose(outputs["flows"][0], once["flow"], atol=1e-5 * scale)
    assert np.abs(np.asarray(outputs["flows"][1] - outputs["flows"][0])).max() > 1e-3 * scale
    np.testing.assert_array_equal(none["low"], start)  # the initial estimate
    np.testing.assert_allclose(none["flow"][0, ::31, ::47], 8 * start[0, ::3, ::5], rtol=1e-5)


@pytest.mark.slow
def test_on_demand_and_bfloat16_agree_with_default(small):
    model, variables = small
    pair = _pair(2, 40, 56)
    flows = {}
    for name, changed in (("float32", model), ("on_demand", model.clone(correlation="on_demand")),
                          ("bfloat16", model.clone(dtype=jnp.bfloat16))):
        outputs, _ = quick_jit(functools.partial(changed.apply, iterations=2))(variables, pair)
        assert outputs["flow"].dtype == jnp.float32
        flows[name] = np.asarray(outputs["flow"])
    scale = np.abs(flows["float32"]).max()
    np.testing.assert_allclose(flows["on_demand"], flows["float32"], atol=1e-5 * scale)
    assert np.abs(flows["bfloat16"] - flows["float32"]).mean() < 0.05 * scale


def test_training_batch_has_frame_pair_and_forward_flow():
    rng = np.random.default_rng(0)
    clip = {"frames": rng.integers(0, 255, (2, 2, 16, 24, 3), dtype=np.uint8),
            "flow": rng.standard_normal((2, 2, 16, 24, 2)).astype(np.float32)}
    clip["flow"][0, 0, 3, 4, 1], clip["flow"][1, 0, 0, 0] = np.nan, (5, -2000)
    batch = build("raft").training_batch(clip)
    np.testing.assert_array_equal(batch["first"], clip["frames"][:, 0])
    np.testing.assert_array_equal(batch["second"], clip["frames"][:, 1])
    unknown = np.argwhere(~np.asarray(batch["valid"])).tolist()
    assert unknown == [[0, 3, 4], [1, 0, 0]]
    assert batch["flow"][0, 3, 4].tolist() == [0, 0]
    np.testing.assert_array_equal(batch["flow"][0, 5:], clip["flow"][0, 0, 5:])


def test_loss_equals_hand_computed_values():
    truth = np.zeros((2, 8, 8, 2), np.float32)
    truth[0, 0, 0] = (390, 100)  # magnitude above 400 pixels
    truth[1, :, :4] = 7  # unknown
    valid = np.ones((2, 8, 8), bool)
    valid[1, :, :4] = False
    flows = np.zeros((3, 2, 8, 8, 2), np.float32)
    flows[0, ..., 0], flows[1, ..., 0] = 10, 5
    flows[2, ..., 0], flows[2, ..., 1] = 3, -4
    batch = {"flow": truth, "valid": valid}
    total, parts = build("raft").loss({"flows": flows, "flow": flows[-1]}, batch, 0)
    everywhere = 0.64 * 10 / 2 + 0.8 * 5 / 2 + 7 / 2
    np.testing.assert_allclose(total, [everywhere * 63 / 64, everywhere / 2], rtol=1e-6)
    np.testing.assert_allclose(parts["epe"], [5, 5], rtol=1e-6)
    alone, parts = build("raft").loss({"flow": truth + np.float32([1.5, 0])}, batch, 0)
    np.testing.assert_allclose(alone, [0.75 * 63 / 64, 0.375], rtol=1e-6)
    for name, share in (("within_1px", 0), ("within_3px", 1), ("within_5px", 1)):
        np.testing.assert_allclose(parts[name], [share, share])


@pytest.mark.slow
def test_gradient_step_lowers_loss_and_reaches_every_parameter(small):
    rng = np.random.default_rng(0)
    clip = {"frames": rng.integers(0, 255, (2, 2, 24, 32, 3), dtype=np.uint8),
            "flow": np.full((2, 2, 24, 32, 2), (2, -1), np.float32)}
    model, variables = small
    batch = model.training_batch(clip)

    def loss(params):
        return model.loss(model.apply({"params": params}, batch, True, iterations=2)[0], batch, 0)[0].sum()

    step = quick_jit(jax.value_and_grad(loss))
    value, gradient = step(variables["params"])
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    params, gradient = jax.device_get((variables["params"], gradient))  # avoids compiling a sum per shape
    length = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
    moved = jax.tree.map(lambda p, g: p - 0.01 * g / length, params, gradient)
    assert step(moved)[0] < value


def test_fields_round_trip_through_json_and_errors_name_them():
    model = build("raft", net="small", correlation="on_demand", iterations=7)
    assert build("raft", **json.loads(json.dumps(hyper_parameters(model)))) == model
    for options, word in (({"net": "smal"}, "'small'"), ({"correlation": "store"}, "'stored'"),
                          ({"variant": "paper"}, "official")):
        with pytest.raises(UserError, match=word):
            build("raft", **options)


def _torch_raft(torch, golden, net):
    """The PyTorch network and our variables with the weights of the reference file."""
    from tests.helpers.torch_raft import TorchRAFT

    weights = parity.weights_of(_manifest(golden, net))
    theirs = TorchRAFT(net).eval()
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return theirs, from_torch("raft", weights, net=net)


def _nchw(torch, x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


@pytest.mark.torch
@pytest.mark.slow
def test_parity_of_torch_file_with_other_size_and_iterations(torch, golden, tmp_path):
    net = "small"
    theirs, _ = _torch_raft(torch, golden, net)
    images = torch.from_numpy(np.random.default_rng(3).uniform(0, 255, (2, 2, 3, 133, 142)).astype(np.float32))
    pad = (1, 1, 1, 2)
    with torch.no_grad():
        seen = theirs(*(torch.nn.functional.pad(x, pad, mode="replicate") for x in images), 3)
    tensors = {"fmap1": seen["fmap1"], "fmap2_c7": seen["fmap2"][:, :7], "cnet_c32": seen["cnet"][:, ::5],
               "corr_iter1": seen["corr"][:, ::6], "net_iter1_s2": seen["net_iter1"][..., ::2, ::2],
               "delta_iter1": seen["delta_iter1"], "flow_low": seen["low"], "flow_up": seen["flow"],
               "flow_unpadded": seen["flow"][..., 1:-2, 1:-1]}
    shutil.copy(golden / f"raft_{net}_manifest.json", tmp_path)
    np.savez(tmp_path / "other.npz", image1=images[0], image2=images[1], iters=np.int32(3), pad=np.array(pad),
             system=f"raft_{net}", variant="official", tolerance=1e-4, **tensors)
    results = parity.check(tmp_path / "other.npz")
    assert len(results) == 10
    assert all(result.ok and result.error < 2e-5 for result in results), results
    assert np.abs(seen["flow"].numpy()).max() > 0.5


@pytest.mark.torch
@pytest.mark.parametrize("net", NETS)
def test_update_block_and_gradients_equal_torch(torch, golden, net):
    theirs, variables = _torch_raft(torch, golden, net)
    model, block = build("raft", net=net), theirs.update_block
    rng = np.random.default_rng(0)
    hidden, context, points = (128, 128, 324) if net == "large" else (96, 64, 196)
    inputs = [rng.standard_normal((2, 5, 7, c)).astype(np.float32) for c in (hidden, context, points, 2)]
    pulls = [rng.standard_normal((2, 5, 7, c)).astype(np.float32) for c in (hidden, 2)]

    def ours(params, hidden, context, window, flow):
        def update(raft):
            return raft.update(hidden, raft.update.context_terms(context), window, flow)
        return model.apply(variables | {"params": params}, method=update)

    @quick_jit
    def forward_and_back(params, inputs):
        made, back = jax.vjp(ours, params, *inputs)
        return made, back(tuple(jnp.asarray(pull) for pull in pulls))

    made, gradients = forward_and_back(variables["params"], inputs)
    tensors = [_nchw(torch, x).requires_grad_() for x in inputs]
    expected = block(*tensors)
    torch.autograd.backward(expected, [_nchw(torch, pull) for pull in pulls])
    for a, b in zip((*made, *gradients[1:]), (*expected, *(x.grad for x in tensors)), strict=True):
        b = np.moveaxis(b.detach().numpy() if b.requires_grad else b.numpy(), 1, -1)
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    _compare_gradients(theirs, model, variables, gradients[0], at_least="update")


@pytest.mark.torch
@pytest.mark.slow
def test_loss_gradients_equal_torch(torch, golden):
    """One batch in four must agree closely, since rounding decides the gradient of a ReLU near zero."""
    theirs, variables = _torch_raft(torch, golden, "large")
    theirs.train()
    model = build("raft", iterations=2, remat=True)

    @quick_jit
    def run(params, batch):
        def loss(params):
            (outputs, _), _ = model.apply(variables | {"params": params}, batch, True, mutable=["batch_stats"])
            return model.loss(outputs, batch, 0)[0].sum()

        return jax.value_and_grad(loss)(params)

    for seed in range(2, 6):
        batch = _pair(2, 128, 136, seed=seed)
        rng = np.random.default_rng(seed + 2)
        batch |= {"flow": rng.standard_normal((2, 128, 136, 2)).astype(np.float32),
                  "valid": rng.random((2, 128, 136)) > .3}
        value, gradients = run(variables["params"], batch)
        theirs.zero_grad()
        flows = theirs(_nchw(torch, batch["first"]), _nchw(torch, batch["second"]), 2, every=True)["flows"]
        truth, valid = _nchw(torch, batch["flow"]), torch.from_numpy(batch["valid"])[:, None]
        expected = sum(weight * ((flow - truth).abs() * valid).mean((1, 2, 3)).sum()
                       for weight, flow in zip((0.8, 1), flows, strict=True))
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
        _compare_gradients(theirs, model, variables, gradients, tolerance=0.1)
        with contextlib.suppress(AssertionError):
            _compare_gradients(theirs, model, variables, gradients, tolerance=5e-3)
            return
    pytest.fail("the gradients of no batch agree within 5e-3 of their largest value")


def _compare_gradients(theirs, model, variables, gradients, at_least="", tolerance=1e-4):
    """Compares our gradients with PyTorch gradients converted by the rules of the weights."""
    moved = {key: np.zeros_like(value.numpy()) for key, value in theirs.state_dict().items()}
    for key, parameter in theirs.named_parameters(remove_duplicate=False):
        if parameter.grad is not None:
            moved[key] = parameter.grad.numpy()
    expected = convert(variables, moved, model.torch_rules(), "the gradients")["params"]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        scale = np.abs(b).max()
        # A bias before an instance norm has no effect: both gradients are rounding errors.
        assert np.abs(np.asarray(a) - b).max() <= tolerance * scale + 1e-5 * largest, name
    reached = [np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected[at_least] if at_least else expected)]
    assert np.mean(reached) > 0.8
