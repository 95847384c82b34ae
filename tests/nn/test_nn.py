"""Flax layers and backbones against NumPy, the published in-place ABN and PyTorch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import BatchNorm, Conv, ConvNorm, GroupNorm, Policy, instance_norm, leaky_relu
from uvos_jax.nn.resnet import ResNet
from uvos_jax.nn.vgg import VGG16
from uvos_jax.ops.conv import conv2d
from uvos_jax.weights.convert import convert

# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _rng(seed=0):
    return np.random.default_rng(seed)


def _noise(*shape, seed=0):
    return _rng(seed).standard_normal(shape).astype(np.float32)


def _norm_variables(c=3):
    rng = _rng(1)
    return {"params": {"scale": rng.standard_normal(c).astype(np.float32), "bias": _noise(c, seed=2)},
            "batch_stats": {"mean": _noise(c, seed=3), "var": rng.uniform(0.5, 2, c).astype(np.float32)}}


def _normalized(x, mean, var, params, epsilon=1e-5):
    return (x - mean) / np.sqrt(var + epsilon) * params["scale"] + params["bias"]


def test_batch_norm_uses_running_statistics_in_evaluation():
    variables, x = _norm_variables(), _noise(2, 4, 5, 3)
    stats = variables["batch_stats"]
    expected = _normalized(x.astype(np.float64), stats["mean"], stats["var"], variables["params"])
    np.testing.assert_allclose(BatchNorm().apply(variables, x), expected, atol=2e-6)


@pytest.mark.parametrize("momentum", [0.1, 0.37])
def test_batch_norm_trains_with_biased_and_stores_unbiased_variance(momentum):
    variables, x = _norm_variables(), _noise(2, 2, 3, 3) * 3 + 100  # far from 0: E[x²] - E[x]² would cancel
    y, new = BatchNorm(momentum=momentum).apply(variables, x, True, mutable="batch_stats")
    wide = x.astype(np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    np.testing.assert_allclose(y, _normalized(wide, mean, var, variables["params"]), atol=1e-4)
    old = variables["batch_stats"]
    np.testing.assert_allclose(
        new["batch_stats"]["mean"], (1 - momentum) * old["mean"] + momentum * mean, rtol=1e-5
    )
    unbiased = var * 12 / 11
    np.testing.assert_allclose(
        new["batch_stats"]["var"], (1 - momentum) * old["var"] + momentum * unbiased, rtol=1e-5
    )


def test_batch_norm_init_in_training_gives_zero_mean_unit_variance():
    variables = BatchNorm().init(jax.random.key(0), _noise(2, 3, 3, 4) + 5, True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(4))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(4))


def test_batch_norm_keeps_float32_statistics_for_bfloat16():
    x = jnp.asarray(_noise(2, 8, 8, 3) + 3, jnp.bfloat16)
    y, new = BatchNorm(policy=Policy(jnp.bfloat16)).apply(_norm_variables(), x, True, mutable="batch_stats")
    assert y.dtype == jnp.bfloat16
    assert new["batch_stats"]["mean"].dtype == jnp.float32
    exact = 0.9 * _norm_variables()["batch_stats"]["mean"] + 0.1 * np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["mean"], exact, rtol=1e-5)


def test_batch_norm_synchronizes_statistics_over_mapped_axis():
    variables, x, seed = _norm_variables(), _noise(3, 2, 4, 5, 3), _noise(3, 2, 4, 5, 3, seed=9)
    x = x + np.arange(3, dtype=np.float32).reshape(
        3, 1, 1, 1, 1
    )  # shards differ, so unsynchronized statistics would differ

    def whole(x):
        y, new = BatchNorm().apply(variables, x.reshape(6, 4, 5, 3), True, mutable="batch_stats")
        return (y.reshape(x.shape) * seed).sum(), (y.reshape(x.shape), new)

    def mapped(x):
        def part(x):
            return BatchNorm(policy=Policy(axis_name="parts")).apply(variables, x, True, mutable="batch_stats")

        y, new = jax.vmap(part, axis_name="parts")(x)
        return (y * seed).sum(), (y, new)

    gradient, (y, new) = jax.jit(jax.grad(whole, has_aux=True))(x)
    mapped_gradient, (mapped_y, mapped_new) = jax.jit(jax.grad(mapped, has_aux=True))(x)
    np.testing.assert_allclose(mapped_y, y, atol=1e-5)
    np.testing.assert_allclose(mapped_gradient, gradient, atol=1e-5)
    for name in ("mean", "var"):
        for i in range(3):
            np.testing.assert_allclose(
                mapped_new["batch_stats"][name][i], new["batch_stats"][name], rtol=1e-5
            )


def test_in_place_abn_equals_published_code(golden):
    with np.load(golden / "adnet_abn_unit.npz") as file:
        reference = dict(file)
    assert (reference["weight"] < 0).any()
    x = reference["x"].transpose(0, 2, 3, 1)
    expected = jax.eval_shape(nn.Sequential([BatchNorm()]).init, jax.random.key(0), x)
    theirs = {f"n.{name}": reference[name] for name in ("weight", "bias", "running_mean", "running_var")}
    variables = convert(expected, theirs, [("layers_0", "n", "abn")], "the unit")
    y = leaky_relu(nn.Sequential([BatchNorm()]).apply(variables, x))
    difference = np.abs(np.asarray(y).transpose(0, 3, 1, 2) - reference["y_leaky"]).max()
    assert difference <= 1e-6 * np.abs(reference["y_leaky"]).max()


def test_leaky_relu_slope():
    np.testing.assert_allclose(leaky_relu(jnp.array([-2.0, 0.0, 3.0])), [-0.02, 0, 3], rtol=1e-6)


def test_conv_adds_bias():
    variables = {"params": {"kernel": _noise(3, 3, 2, 4), "bias": _noise(4, seed=1)}}
    x = _noise(1, 5, 6, 2, seed=2)
    expected = np.asarray(conv2d(x, variables["params"]["kernel"], stride=2)) + variables["params"]["bias"]
    np.testing.assert_allclose(Conv(4, stride=2, use_bias=True).apply(variables, x), expected, atol=1e-6)


def _run(module, x, **kwargs):
    """Output, outputs of all submodules by path, and random variables with bounded activations."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    rng = _rng(4)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return (rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:3]))).astype(np.float32)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    out, seen = quick_jit(
        lambda v, x: module.apply(v, x, capture_intermediates=True, mutable="intermediates")
    )(variables, x)
    return out, seen["intermediates"], variables


def test_resnet_stages_have_strides_and_channels_of_paper():
    model = ResNet((1, 2, 1, 1), width=2)
    stages = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0],
                            jax.ShapeDtypeStruct((1, 64, 97, 3), np.float32))
    assert {name: stage.shape[1:] for name, stage in stages.items()} == {
        "stem": (16, 25, 2),
        "layer1": (16, 25, 8),
        "layer2": (8, 13, 16),
        "layer3": (4, 7, 32),
        "layer4": (2, 4, 64),
    }


def test_resnet_stem_uses_ceil_mode_only_if_configured():
    for ceil_pool, size in ((False, 15), (True, 16)):
        model = ResNet((1, 1, 1, 1), width=2, deep_stem=True, ceil_pool=ceil_pool)
        stages = jax.eval_shape(lambda x, model=model: model.init_with_output(jax.random.key(0), x)[0],
                                jax.ShapeDtypeStruct((1, 60, 61, 3), np.float32))
        assert stages["stem"].shape == (1, size, 16, 4)


def test_resnet_dilations_follow_layer_and_multi_grid():
    model = ResNet((1, 1, 2, 4), width=2, deep_stem=True, ceil_pool=True, strides=(1, 2, 1, 1),
                   dilations=(1, 1, 2, 4), multi_grid=(1, 2, 4))
    stages, seen, variables = _run(model, _noise(1, 145, 153, 3))
    assert stages["layer4"].shape == (1, 19, 20, 64)
    dilations = {
        "layer1_0": 1,
        "layer3_0": 2,
        "layer3_1": 2,
        "layer4_0": 4,
        "layer4_1": 8,
        "layer4_2": 16,
        "layer4_3": 16,
    }
    convolved = jax.jit(conv2d, static_argnames="dilation")
    for block, dilation in dilations.items():
        before = jax.nn.relu(seen[block]["bn1"]["__call__"][0])
        kernel = variables["params"][block]["conv2"]["kernel"]
        made = np.asarray(seen[block]["conv2"]["__call__"][0])
        matching = [d for d in (1, 2, 4, 8, 16)
                    if np.allclose(convolved(before, kernel, dilation=d), made, atol=1e-4 * np.abs(made).max())]
        assert matching == [dilation], block


def test_bottleneck_adds_shortcut_before_last_relu():
    _, seen, _ = _run(ResNet((2, 1, 1, 1), width=2), _noise(1, 33, 33, 3))
    first, second = seen["layer1_0"], seen["layer1_1"]
    out = first["__call__"][0]
    np.testing.assert_allclose(
        out, jax.nn.relu(first["bn3"]["__call__"][0] + first["downsample_bn"]["__call__"][0]), atol=1e-6)
    assert "downsample_bn" not in second
    np.testing.assert_allclose(
        second["__call__"][0], jax.nn.relu(second["bn3"]["__call__"][0] + out), atol=1e-6
    )


def test_vgg_stages_halve_size_and_end_before_pooling():
    stages, seen, _ = _run(VGG16(width=2), _noise(1, 33, 50, 3))
    assert {name: stage.shape[1:] for name, stage in stages.items()} == {
        "stage1": (33, 50, 2),
        "stage2": (16, 25, 4),
        "stage3": (8, 12, 8),
        "stage4": (4, 6, 16),
        "stage5": (2, 3, 16),
    }
    assert len(seen) - 1 == 13  # convolutions, without the module itself
    for stage, last in (("stage1", "conv1_2"), ("stage3", "conv3_3"), ("stage5", "conv5_3")):
        np.testing.assert_array_equal(stages[stage], jax.nn.relu(seen[last]["__call__"][0]))


@pytest.mark.slow
@pytest.mark.parametrize("model", [VGG16(width=1), ResNet((1, 1, 1, 1), width=1)], ids=["vgg", "resnet"])
def test_backbone_gradients_are_finite_for_odd_sizes(model):
    _, _, variables = _run(model, _noise(1, 35, 33, 3))

    def total(params, x):
        return sum(stage.sum() for stage in model.apply(variables | {"params": params}, x).values())

    gradient = quick_jit(jax.grad(total))(variables["params"], _noise(1, 35, 33, 3))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(np.asarray(leaf)).all(), path
    first = gradient["conv1_1" if isinstance(model, VGG16) else "conv1"]["kernel"]
    assert np.abs(np.asarray(first)).max() > 0


def test_aspp_concatenates_branches_in_published_order():
    model = ASPP(3, (12, 24), leaky_relu)
    out, seen, variables = _run(model, _noise(1, 14, 27, 4))
    branches = [
        leaky_relu(seen[name]["bn"]["__call__"][0]) for name in ("branch0", "branch1", "branch2", "pool")
    ]
    assert branches[3].shape == (1, 1, 1, 3)
    x = np.concatenate([np.broadcast_to(b, (1, 14, 27, 3)) for b in branches], -1)
    np.testing.assert_allclose(x @ variables["params"]["project"]["conv"]["kernel"][0, 0],
                               seen["project"]["conv"]["__call__"][0], atol=1e-5)
    np.testing.assert_array_equal(out, leaky_relu(seen["project"]["bn"]["__call__"][0]))


def test_aspp_image_pooling_is_constant_and_permutation_invariant():
    model, x = ASPP(2, (12,), leaky_relu), _noise(2, 5, 6, 4)
    _, _, variables = _run(model, x)
    kernel = np.zeros_like(variables["params"]["project"]["conv"]["kernel"])
    kernel[0, 0, 4:] = np.eye(2)  # passes only the pooled branch
    variables["params"]["project"]["conv"]["kernel"] = kernel
    out = np.asarray(model.apply(variables, x))
    np.testing.assert_allclose(out, np.broadcast_to(out[:, :1, :1], out.shape), atol=1e-6)
    shuffled = x.reshape(2, 30, 4)[:, _rng(5).permutation(30)].reshape(x.shape)
    np.testing.assert_allclose(model.apply(variables, shuffled), out, atol=1e-5)
    assert np.abs(out[0] - out[1]).max() > 1e-3


@pytest.mark.torch
def test_batch_norm_equals_torch_over_steps(torch):
    variables = _norm_variables()
    theirs = torch.nn.BatchNorm2d(3)
    for name, value in (
        ("weight", variables["params"]["scale"]),
        ("bias", variables["params"]["bias"]),
        ("running_mean", variables["batch_stats"]["mean"]),
        ("running_var", variables["batch_stats"]["var"]),
    ):
        getattr(theirs, name).data = torch.from_numpy(value.copy())
    for step in range(3):
        x, seed = _noise(2, 3, 4, 3, seed=step) * 2 + step, _noise(2, 3, 4, 3, seed=50 + step)

        def loss(params, x, seed=seed, variables=variables):
            y, new = BatchNorm().apply(variables | {"params": params}, x, True, mutable="batch_stats")
            return (y * seed).sum(), (y, new)

        gradients, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        theirs_x = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
        theirs_y = theirs(theirs_x)
        theirs.zero_grad()
        (theirs_y * torch.from_numpy(seed).permute(0, 3, 1, 2)).sum().backward()
        variables = variables | new
        pairs = [
            (np.asarray(y).transpose(0, 3, 1, 2), theirs_y.detach()),
            (np.asarray(gradients[1]).transpose(0, 3, 1, 2), theirs_x.grad),
            (gradients[0]["scale"], theirs.weight.grad),
            (gradients[0]["bias"], theirs.bias.grad),
            (new["batch_stats"]["mean"], theirs.running_mean),
            (new["batch_stats"]["var"], theirs.running_var),
        ]
        for ours, expected in pairs:
            assert np.abs(np.asarray(ours) - expected.numpy()).max() <= 1e-5 * expected.abs().max().item()
    theirs.eval()
    x = _noise(1, 2, 3, 3, seed=8)
    np.testing.assert_allclose(np.asarray(BatchNorm().apply(variables, x)).transpose(0, 3, 1, 2),
                               theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().numpy(), atol=1e-5)


@pytest.mark.torch
def test_group_norm_equals_torch(torch):
    rng = np.random.default_rng(0)
    x, scale, bias = 3 + rng.standard_normal((2, 5, 4, 6)), rng.standard_normal(6), rng.standard_normal(6)
    theirs = torch.nn.functional.group_norm(
        torch.from_numpy(np.moveaxis(x, 3, 1).copy()), 3, torch.from_numpy(scale), torch.from_numpy(bias))
    params = {"params": {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}}
    made = GroupNorm(3).apply(params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(made, np.moveaxis(theirs.numpy(), 1, 3), atol=1e-5)
    made = GroupNorm(3, dtype=jnp.bfloat16).apply(params, jnp.asarray(x, jnp.float32))
    assert made.dtype == jnp.bfloat16
    np.testing.assert_allclose(made.astype(jnp.float32), np.moveaxis(theirs.numpy(), 1, 3), atol=0.05)


@pytest.mark.parametrize(("norm", "parameters"), [("batch", {"conv", "bn"}), ("group", {"conv", "norm"}),
                                                  ("instance", {"conv"}), ("none", {"conv"})])
def test_conv_norm_equals_separate_layers(norm, parameters):
    x = _noise(2, 6, 7, 3)
    model = ConvNorm(4, stride=2, use_bias=True, norm=norm, norm_groups=2)
    out, _, variables = _run(model, x)
    assert variables["params"].keys() == parameters
    expected = Conv(4, stride=2, use_bias=True).apply({"params": variables["params"]["conv"]}, x)
    if norm == "batch":
        own = {name: tree["bn"] for name, tree in variables.items()}
        expected = BatchNorm().apply(own, expected)
    elif norm == "group":
        expected = GroupNorm(2).apply({"params": variables["params"]["norm"]}, expected)
    elif norm == "instance":
        expected = instance_norm(expected)
    np.testing.assert_allclose(out, jax.nn.relu(expected), atol=1e-6)


def test_conv_norm_follows_policy():
    model = ConvNorm(4, policy=Policy(jnp.bfloat16), activation=None)
    out, _, variables = _run(model, _noise(1, 5, 5, 3))
    assert out.dtype == jnp.bfloat16 and (np.asarray(out, np.float32) < 0).any()
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    assert Policy(jnp.bfloat16, "devices").float32 == Policy(jnp.float32, "devices")


def test_conv_norm_rejects_unknown_norm():
    with pytest.raises(ValueError, match="Unknown norm 'layer'.*batch, group"):
        ConvNorm(4, norm="layer").init(jax.random.key(0), _noise(1, 5, 5, 3))
