"""Conversion of PyTorch checkpoints: names, layouts, and error messages for mismatches."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from uvos_jax.errors import UserError
from uvos_jax.models import build
from uvos_jax.models.adnet import model as adnet
from uvos_jax.nn.vgg import VGG16
from uvos_jax.weights import backbone_from_torch, from_torch, unwrap
from uvos_jax.weights.convert import convert, expected_variables
from uvos_jax.weights.parity import weights_of

SMALL = {"depths": (1, 2, 1, 2), "width": 4, "aspp_features": 6, "embedding": 5, "hidden": 3}


def _norm_shapes(name, c, counter=False):
    shapes = {f"{name}.{leaf}": (c,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return shapes | ({f"{name}.num_batches_tracked": ()} if counter else {})


def _resnet_shapes(depths, width, deep_stem, prefix="", counter=False):
    """Names and shapes of a bottleneck ResNet in torchvision's format, optionally with a deep stem."""
    stem = [(3, width, 3), (width, width, 3), (width, 2 * width, 3)] if deep_stem else [(3, width, 7)]
    shapes = {}
    for i, (c_in, c_out, k) in enumerate(stem, 1):
        shapes[f"{prefix}conv{i}.weight"] = (c_out, c_in, k, k)
        shapes |= _norm_shapes(f"{prefix}bn{i}", c_out, counter)
    c_in = stem[-1][1]
    for layer, blocks in enumerate(depths, 1):
        planes = width << (layer - 1)
        for i in range(blocks):
            block = f"{prefix}layer{layer}.{i}."
            for conv, (a, b, k) in enumerate(
                [(c_in, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)], 1
            ):
                shapes[f"{block}conv{conv}.weight"] = (b, a, k, k)
                shapes |= _norm_shapes(f"{block}bn{conv}", b, counter)
            if i == 0:
                shapes[f"{block}downsample.0.weight"] = (4 * planes, c_in, 1, 1)
                shapes |= _norm_shapes(f"{block}downsample.1", 4 * planes, counter)
            c_in = 4 * planes
    return shapes


def _adnet_shapes(net="full", depths=(3, 4, 23, 3), width=64, aspp_features=512, embedding=128, hidden=128):
    prefix = "" if net == "base" else "features."
    shapes = _resnet_shapes(depths, width, True, prefix)
    a, c = aspp_features, 1 if net == "base" else embedding
    for i, k in enumerate((1, 3, 3, 3), 1):
        shapes[f"{prefix}head.0.conv{i}.0.weight"] = (a, 32 * width, k, k)
        shapes |= _norm_shapes(f"{prefix}head.0.conv{i}.1", a)
    shapes[f"{prefix}head.0.image_pooling.1.weight"] = (a, 32 * width, 1, 1)
    shapes |= _norm_shapes(f"{prefix}head.0.image_pooling.2", a)
    shapes[f"{prefix}head.0.conv_bn_dropout.0.weight"] = (a, 5 * a, 1, 1)
    shapes |= _norm_shapes(f"{prefix}head.0.conv_bn_dropout.1", a)
    shapes |= {f"{prefix}head.1.weight": (c, a, 1, 1), f"{prefix}head.1.bias": (c,)}
    shapes[f"{prefix}dsn.0.weight"] = (a, 16 * width, 3, 3)
    shapes |= _norm_shapes(f"{prefix}dsn.1", a)
    shapes |= {f"{prefix}dsn.3.weight": (c, a, 1, 1), f"{prefix}dsn.3.bias": (c,)}
    if net != "base":
        seen = {"full": 3}.get(net, 2) * c
        shapes |= {"cls.0.weight": (hidden, seen, 1, 1), "cls.0.bias": (hidden,)} | _norm_shapes(
            "cls.1", hidden
        )
        shapes |= {"cls.3.weight": (1, hidden, 1, 1), "cls.3.bias": (1,)}
    return shapes


def _values(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {key: np.int64(7) if key.endswith("tracked") else rng.standard_normal(shape).astype(np.float32)
            for key, shape in shapes.items()}


@pytest.fixture
def small():
    return _values(_adnet_shapes(**SMALL))


def _assert_same(a, b):
    a, b = flatten_dict(a), flatten_dict(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=str(path))


def _refusal(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_key_names_and_shapes_equal_published_checkpoint(golden):
    manifest = json.loads((golden / "adnet_manifest.json").read_text())
    assert {key: tuple(shape) for key, shape in manifest["keys"].items()} == _adnet_shapes()


@pytest.mark.slow
def test_published_checkpoint_converts_completely(golden):
    manifest = json.loads((golden / "adnet_manifest.json").read_text())
    theirs = weights_of(manifest)
    assert len(theirs) == 577
    ours = from_torch("adnet", theirs)
    assert sum(leaf.size for leaf in jax.tree.leaves(ours["params"])) == manifest["n_params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(ours)) == sum(value.size for value in theirs.values())
    block = ours["params"]["backbone"]["layer3_22"]
    np.testing.assert_array_equal(block["conv2"]["kernel"][2, 0],
                                  theirs["features.layer3.22.conv2.weight"][:, :, 2, 0].T)
    np.testing.assert_array_equal(ours["params"]["embed"]["bias"], theirs["features.head.1.bias"])
    np.testing.assert_array_equal(ours["batch_stats"]["aspp"]["pool"]["bn"]["var"],
                                  theirs["features.head.0.image_pooling.2.running_var"])


@pytest.mark.parametrize("net", adnet.NETS)
def test_every_value_is_converted_exactly_once(net):
    theirs = _values(_adnet_shapes(net, **SMALL))
    ours = from_torch("adnet", theirs, net=net, **SMALL)
    _assert_same(
        jax.tree.map(np.shape, ours),
        jax.tree.map(lambda leaf: leaf.shape, expected_variables(build("adnet", net=net, **SMALL))),
    )
    arrived = sorted(
        np.concatenate([leaf.ravel() for path, leaf in flatten_dict(ours).items() if path[-1] != "scale"])
    )
    sent = sorted(np.concatenate([value.ravel() for key, value in theirs.items()
                                  if value.ndim > 1 or not key.endswith(".weight")]))
    np.testing.assert_array_equal(arrived, sent)
    scales = sorted(
        np.concatenate([leaf for path, leaf in flatten_dict(ours).items() if path[-1] == "scale"])
    )
    weights = np.concatenate(
        [value for key, value in theirs.items() if value.ndim == 1 and key.endswith(".weight")]
    )
    np.testing.assert_allclose(scales, sorted(np.abs(weights) + 1e-5), rtol=1e-6)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(ours))


def test_kernel_layouts_of_conv_linear_and_norm():
    class Unit(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 5), name="conv")(x)
            x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)
            return nn.Dense(2, name="dense")(nn.BatchNorm(use_running_average=True, name="norm")(x))

    expected = jax.eval_shape(Unit().init, jax.random.key(0), np.zeros((1, 3, 3, 6), np.float32))
    theirs = _values({"a.weight": (4, 6, 3, 5), "a.bias": (4,), "d.weight": (4, 1, 3, 3), "d.bias": (4,),
                      "l.weight": (2, 4), "l.bias": (2,)} | _norm_shapes("n", 4))
    rules = [
        ("conv", "a", "conv"),
        ("depthwise", "d", "conv"),
        ("dense", "l", "linear"),
        ("norm", "n", "norm"),
    ]
    ours = convert(expected, theirs, rules, "the unit")["params"]
    for o in range(4):
        for i in range(6):
            np.testing.assert_array_equal(ours["conv"]["kernel"][:, :, i, o], theirs["a.weight"][o, i])
        np.testing.assert_array_equal(ours["depthwise"]["kernel"][:, :, 0, o], theirs["d.weight"][o, 0])
    np.testing.assert_array_equal(ours["dense"]["kernel"], theirs["l.weight"].T)
    np.testing.assert_array_equal(ours["norm"]["scale"], theirs["n.weight"])  # sign kept
    abn = convert(expected, theirs, [*rules[:3], ("norm", "n", "abn")], "the unit")["params"]
    np.testing.assert_allclose(abn["norm"]["scale"], np.abs(theirs["n.weight"]) + 1e-5, rtol=1e-6)
    assert "l.weight [4, 2], not [2, 4]" in _refusal(
        convert, expected, theirs | {"l.weight": theirs["l.weight"].T}, rules, "it"
    )


def test_wrappers_prefixes_and_counters_are_ignored(small):
    plain = from_torch("adnet", small, **SMALL)
    counted = small | {"features.bn1.num_batches_tracked": np.int64(3), "num_batches_tracked": np.int64(1)}
    parallel = {f"module.{key}": value for key, value in small.items()}
    twice = {f"module.{key}": value for key, value in parallel.items()}
    for form in (counted, parallel, twice, {"state_dict": small, "epoch": 3, "optimizer": {"lr": 1.0}},
                 {"model": parallel}, {"model_state_dict": small}, {"state_dict": {"model": small}}):
        _assert_same(from_torch("adnet", form, **SMALL), plain)


def test_unwrap_keeps_prefix_shared_by_only_some_keys():
    mixed = {"module.a": 1, "b": 2}
    assert unwrap(mixed) == mixed
    assert unwrap({"model": np.zeros(2)}).keys() == {"model"}  # a tensor named "model" is not a wrapper


def test_values_are_converted_to_float32(small):
    doubled = {key: value.astype(np.float64) for key, value in small.items()}
    _assert_same(from_torch("adnet", doubled, **SMALL), from_torch("adnet", small, **SMALL))


@pytest.mark.parametrize("count", [1, 10, 12])
def test_error_counts_mismatches_and_lists_at_most_ten(small, count):
    names = list(small)
    gone, wrong = names[:count], names[40:40 + count]
    theirs = {key: value for key, value in small.items() if key not in gone}
    theirs |= {key: np.zeros((9, 9, 9), np.float32) for key in wrong}
    theirs |= {f"surplus{i:02}.weight": np.zeros(1) for i in range(count)}
    message = _refusal(from_torch, "adnet", theirs, **SMALL)
    assert message.startswith("This checkpoint does not fit adnet: ")
    for title in ("keys missing", "keys too many", "misshapen"):
        assert f"{count} {title if count > 1 else title.replace('keys', 'key')} (" in message
    shown = min(count, 10)
    assert sum(f"surplus{i:02}." in message for i in range(count)) == shown
    # Missing keys are listed in our order, not in PyTorch's: any ten of them.
    assert sum(f"{key}," in message or f"{key})" in message for key in gone) == shown
    assert message.count(" [9, 9, 9], not [") == shown
    assert message.count(", ...") == (3 if count > 10 else 0)


def test_shape_mismatches_are_reported_in_torch_layout(small):
    theirs = small | {"features.conv1.weight": np.zeros((4, 3, 5, 5)), "cls.0.bias": np.zeros(8)}
    message = _refusal(from_torch, "adnet", theirs, **SMALL)
    assert "2 misshapen" in message
    assert "features.conv1.weight [4, 3, 5, 5], not [4, 3, 3, 3]" in message
    assert "cls.0.bias [8], not [3]" in message
    assert "missing" not in message and "too many" not in message


def test_checkpoint_of_another_net_is_rejected(small):
    assert "cls.0.weight [3, 15, 1, 1], not [3, 10, 1, 1]" in _refusal(
        from_torch, "adnet", small, net="intra", **SMALL
    )
    assert "keys missing" in _refusal(from_torch, "adnet", {}, **SMALL)


class Wrapper(nn.Module):
    """A model with a VGG-16 backbone and a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(VGG16(width=2, name="backbone")(x)["stage5"])


def _zeros(shapes):
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.25, np.float32), shapes)


def _adnet_variables(depths, deep_stem):
    return _zeros(expected_variables(build("adnet", **SMALL | {"depths": depths}, deep_stem=deep_stem)))


RESNETS = {"resnet50": ((3, 4, 6, 3), False, 320), "resnet101": ((3, 4, 23, 3), False, 626),
           "deep resnet101": ((3, 4, 23, 3), True, 638)}


def _classifier(depths, deep_stem, width=4):
    shapes = _resnet_shapes(depths, width, deep_stem, counter=True)
    return _values(shapes | {"fc.weight": (10, 32 * width), "fc.bias": (10,)})


@pytest.mark.parametrize(("depths", "deep_stem", "keys"), RESNETS.values(), ids=RESNETS.keys())
def test_resnet_classifier_is_loaded_as_backbone(depths, deep_stem, keys):
    theirs = _classifier(depths, deep_stem)
    assert len(theirs) == keys
    before = _adnet_variables(depths, deep_stem)
    after = backbone_from_torch(before, theirs)
    for collection in before:
        for name in before[collection].keys() - {"backbone"}:
            _assert_same(before[collection][name], after[collection][name])
    backbone = after["params"]["backbone"]
    assert not any((leaf == 0.25).all() for leaf in jax.tree.leaves(backbone))
    for ours, key in (
        ("layer1_0/conv1", "layer1.0.conv1"),
        ("layer1_0/downsample_conv", "layer1.0.downsample.0"),
        ("layer4_2/conv2", "layer4.2.conv2"),
    ):
        block, leaf = ours.split("/")
        np.testing.assert_array_equal(
            backbone[block][leaf]["kernel"], theirs[f"{key}.weight"].transpose(2, 3, 1, 0)
        )
    last_stem = "3" if deep_stem else "1"
    np.testing.assert_array_equal(backbone[f"conv{last_stem}"]["kernel"],
                                  theirs[f"conv{last_stem}.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        backbone["bn1"]["scale"], theirs["bn1.weight"]
    )  # plain batch norm: the sign is kept
    np.testing.assert_array_equal(after["batch_stats"]["backbone"]["layer2_0"]["downsample_bn"]["var"],
                                  theirs["layer2.0.downsample.1.running_var"])
    _assert_same(before["params"]["backbone"], jax.tree.map(lambda leaf: np.full_like(leaf, 0.25), backbone))
    wrapped = {"state_dict": {f"module.{key}": value for key, value in theirs.items()}}
    _assert_same(backbone_from_torch(before, wrapped), after)


def test_vgg_classifier_is_loaded_as_backbone():
    shapes, c_in = {}, 3
    for index, c in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
                        (2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16), strict=True):
        shapes |= {f"features.{index}.weight": (c, c_in, 3, 3), f"features.{index}.bias": (c,)}
        c_in = c
    for index in (0, 3, 6):
        shapes |= {f"classifier.{index}.weight": (4, 4), f"classifier.{index}.bias": (4,)}
    theirs = _values(shapes)
    assert len(theirs) == 32
    frame = np.zeros((1, 32, 32, 3), np.float32)
    before = _zeros(jax.eval_shape(Wrapper().init, jax.random.key(0), frame))
    after = backbone_from_torch(before, theirs)
    _assert_same(after["params"]["head"], before["params"]["head"])
    for ours, index in (("conv1_1", 0), ("conv2_2", 7), ("conv3_3", 14), ("conv5_1", 24), ("conv5_3", 28)):
        np.testing.assert_array_equal(after["params"]["backbone"][ours]["kernel"],
                                      theirs[f"features.{index}.weight"].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(
            after["params"]["backbone"][ours]["bias"], theirs[f"features.{index}.bias"]
        )
    assert "keys missing" in _refusal(backbone_from_torch, before, _classifier((1, 1, 1, 1), False))


def test_classifiers_are_loaded_as_three_dtnet_backbones():
    small = {"depths": (1, 2, 1, 1), "width": 4, "features": 8, "decoder": 16, "reid_width": 2, "reid_hidden": 4,
             "reid_depths": (1,) * 6, "target_depths": (1, 1, 1, 1), "target_width": 4}
    model = build("dtnet", **small)
    before = _zeros(expected_variables(model))
    theirs, other = _classifier((1, 2, 1, 1), False), _classifier((1, 1, 1, 1), False)
    after = backbone_from_torch(before, theirs, *model.backbones)
    stem = theirs["conv1.weight"].transpose(2, 3, 1, 0)
    dnet = after["params"]["dnet"]
    np.testing.assert_array_equal(dnet["backbone"]["conv1"]["kernel"], stem)
    np.testing.assert_array_equal(dnet["guide_backbone"]["conv1"]["kernel"][:, :, :3], stem)
    assert not dnet["guide_backbone"]["conv1"]["kernel"][:, :, 3].any()  # saliency channel starts at zero
    _assert_same(dnet["backbone"]["layer2_1"], dnet["guide_backbone"]["layer2_1"])
    _assert_same(after["params"]["target_backbone"], before["params"]["target_backbone"])
    last = backbone_from_torch(after, other, "target_backbone")
    _assert_same(last["params"]["dnet"], dnet)
    np.testing.assert_array_equal(last["params"]["target_backbone"]["layer4_0"]["conv2"]["kernel"],
                                  other["layer4.0.conv2.weight"].transpose(2, 3, 1, 0))


def test_mismatched_backbone_is_rejected():
    resnet50 = _adnet_variables((3, 4, 6, 3), False)
    message = _refusal(backbone_from_torch, resnet50, _classifier((3, 4, 23, 3), False))
    assert (
        f"{17 * 15} keys too many (layer3.6.conv1.weight" in message
    )  # 17 blocks: 3 kernels and 3 norms of 4 arrays
    assert "layer3.6.bn1.num_batches_tracked" not in message
    missing = _refusal(
        backbone_from_torch, _adnet_variables((3, 4, 23, 3), False), _classifier((3, 4, 6, 3), False)
    )
    assert f"{17 * 15} keys missing" in missing
    assert "conv1.weight [4, 3, 3, 3], not [4, 3, 7, 7]" in _refusal(
        backbone_from_torch, resnet50, _classifier((3, 4, 6, 3), True))
    assert "misshapen" in _refusal(backbone_from_torch, resnet50, _classifier((3, 4, 6, 3), False, width=8))
    assert "'encoder'" in _refusal(
        backbone_from_torch, resnet50, _classifier((3, 4, 6, 3), False), "encoder"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1j])
def test_non_finite_or_non_real_weights_are_rejected(small, value):
    key = "features.conv1.weight"
    spoilt = small[key].astype(np.complex64 if value == 1j else np.float32)
    spoilt[0, 0, 0, 0] = value
    assert key in _refusal(from_torch, "adnet", small | {key: spoilt}, **SMALL)
    assert key in _refusal(from_torch, "adnet", small | {key: [1.0, "x"]}, **SMALL)


def test_models_without_published_weights_are_rejected():
    with pytest.raises(UserError, match="Cannot convert weights for dtnet: its authors have published none"):
        from_torch("dtnet", {})


def test_variable_without_a_name_rule_is_a_programming_error():
    expected = {"params": {"head": {"kernel": np.zeros((1, 1, 2, 3), np.float32)}}}
    with pytest.raises(AssertionError, match="no name rule covers params/head/kernel"):
        convert(expected, {}, ((r"stem/.*", "stem", "conv"),), "model")
