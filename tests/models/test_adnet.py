"""AD-Net: model contract, frame sizes, losses, and outputs and gradients against PyTorch."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.models import build, hyper_parameters
from uvos_jax.models.adnet import model as adnet
from uvos_jax.weights import from_torch
from uvos_jax.weights.convert import convert, expected_variables

SMALL = {"depths": (1, 1, 2, 3), "width": 8, "aspp_features": 16, "embedding": 8, "hidden": 8}
TINY = {"depths": (1, 1, 1, 1), "width": 2, "aspp_features": 4, "embedding": 4, "hidden": 4}

# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _frames(h, w, b=2, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((b, h, w, 3)).astype(np.float32) for name in ("anchor", "frame")}


def _arrays(shapes, seed=0):
    """Values by PyTorch key: norm weights of both signs, running statistics different from 0 and 1."""
    rng, arrays = np.random.default_rng(seed), {}
    for key, shape in shapes.items():
        if key.endswith("running_var"):
            value = rng.uniform(0.5, 2, shape)
        elif key.endswith(("running_mean", "bias")):
            value = 0.2 * rng.standard_normal(shape)
        elif len(shape) == 1:
            value = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        else:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        arrays[key] = value.astype(np.float32)
    return arrays


def _random_variables(model, seed=0):
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return (rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:3]))).astype(np.float32)
        low, high = (0.5, 1.5) if name in ("scale", "var") else (-0.3, 0.3)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, expected_variables(model))


@pytest.mark.slow
@pytest.mark.parametrize("net", adnet.NETS)
def test_recurrent_step_equals_training_forward(net):
    model = build("adnet", net=net, **TINY)
    variables, batch = _random_variables(model), _frames(49, 41)

    @quick_jit
    def by_steps(variables, batch):
        anchor = model.apply(variables, {"frame": batch["anchor"]}, method="encode")
        state = model.init_state(anchor)
        features = model.apply(variables, {"frame": batch["frame"]}, method="encode")
        logits, aux = model.apply(variables, state, features, method="predict")
        after = model.commit(state, features, jnp.zeros((2, 49, 41), jnp.int32), aux)
        # Only nets with anchor attention depend on the anchor.
        noise = 9 * np.random.default_rng(7).standard_normal(state.anchor.shape).astype(np.float32)
        other, _ = model.apply(variables, adnet.State(noise), features, method="predict")
        return logits, state, after, other, model.apply(variables, batch)

    logits, state, after, other, (outputs, _) = by_steps(variables, batch)
    assert logits.shape == (2, 7, 6, 1)
    scale = np.abs(np.asarray(outputs["logits"])).max()
    np.testing.assert_allclose(logits, outputs["logits"], atol=1e-5 * scale)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    np.testing.assert_array_equal(state.anchor, after.anchor)
    assert (np.abs(np.asarray(other - logits)).max() > 1e-4 * scale) == (net in ("anchor", "concat", "full"))


def test_anchor_and_intra_diffusion_agree_on_first_frame():
    model = build("adnet", **TINY)
    frames = _frames(33, 41)["frame"]
    _, inner = quick_jit(model.apply)(_random_variables(model), {"anchor": frames, "frame": frames})
    np.testing.assert_allclose(inner["diffused_anchor"], inner["diffused_intra"], atol=1e-6)


def test_loss_is_per_example_and_permutation_equivariant():
    model = build("adnet", **TINY)
    variables, batch = _random_variables(model), _frames(33, 41, b=3)
    batch["mask"] = np.random.default_rng(3).random((3, 30, 44, 1)) > 0.5

    @quick_jit
    def loss(variables, batch):
        return model.loss(model.apply(variables, batch)[0], batch, 0)

    total, parts = loss(variables, batch)
    assert total.shape == (3,) and total.dtype == jnp.float32
    assert all(part.shape == (3,) for part in parts.values())
    order = np.array([2, 0, 1])
    permuted, _ = loss(variables, {name: value[order] for name, value in batch.items()})
    np.testing.assert_allclose(permuted, np.asarray(total)[order], rtol=1e-5)
    assert len(np.unique(np.asarray(total).round(4))) == 3


@pytest.mark.parametrize("background", [1.0, 0.25])
def test_loss_equals_hand_computed_value(background):
    model = build("adnet", background_weight=background, **TINY)
    mask = np.zeros((1, 9, 9, 1), bool)
    mask[:, :, :4] = True
    logits = jnp.full((1, 2, 2, 1), 2.0)
    total, parts = model.loss({"logits": logits}, {"mask": mask}, 0)
    hit, missed = np.log1p(np.exp(-2)), 2 + np.log1p(np.exp(-2))
    np.testing.assert_allclose(total, [(4 * hit + 5 * background * missed) / (4 + 5 * background)], rtol=1e-6)
    assert set(parts) == {"logits"}


def test_base_net_loss_includes_auxiliary_head():
    model = build("adnet", net="base", **TINY)
    batch = _frames(33, 41) | {"mask": np.random.default_rng(3).random((2, 33, 41, 1)) > 0.5}
    outputs, inner = quick_jit(model.apply)(_random_variables(model), batch)
    np.testing.assert_array_equal(outputs["aux_logits"], inner["aux"][2:])
    total, parts = model.loss(outputs, batch, 0)
    assert set(parts) == {"logits", "aux_logits"}
    np.testing.assert_allclose(total, parts["logits"] + 0.4 * parts["aux_logits"], rtol=1e-6)
    alone, _ = model.loss({"logits": outputs["logits"]}, batch, 0)
    np.testing.assert_allclose(alone, parts["logits"], rtol=1e-6)


@pytest.mark.slow
def test_training_updates_batch_statistics_and_drops_channels():
    model = build("adnet", **TINY | {"dropout": 0.5})
    variables, batch = _random_variables(model), _frames(33, 41)

    @quick_jit
    def forward(key):
        return model.apply(variables, batch, True, rngs={"dropout": key}, mutable="batch_stats")

    (first, inner), new = forward(jax.random.key(0))
    (again, _), _ = forward(jax.random.key(0))
    (other, _), _ = forward(jax.random.key(1))
    np.testing.assert_array_equal(first["logits"], again["logits"])
    assert np.abs(np.asarray(first["logits"] - other["logits"])).max() > 1e-4
    dropped = (np.asarray(inner["aspp"]) == 0).all((1, 2))
    assert dropped.any() and not dropped.all()  # dropout of whole channels per example
    old = variables["batch_stats"]["backbone"]["bn1"]["mean"]
    kernel = variables["params"]["backbone"]["conv1"]["kernel"]
    both = np.concatenate([batch["anchor"], batch["frame"]])
    stem = jax.lax.conv_general_dilated(
        both,
        kernel,
        (2, 2),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    np.testing.assert_allclose(new["batch_stats"]["backbone"]["bn1"]["mean"],
                               0.9 * old + 0.1 * np.asarray(stem).mean((0, 1, 2)), atol=1e-5)


def test_paper_outputs_probabilities_and_official_logits():
    logits = jnp.array([-3.0, 0.2, 0.6, 4.0]).reshape(1, 2, 2, 1)
    paper, official = build("adnet"), build("adnet", variant="official")
    up = np.asarray(official.to_native(logits, (5, 7)))
    assert up.shape == (1, 5, 7, 1) and up.dtype == np.float32
    np.testing.assert_allclose(
        up[0, [0, 0, -1, -1], [0, -1, 0, -1], 0], [-3.0, 0.2, 0.6, 4.0], rtol=1e-6
    )  # corners are kept
    np.testing.assert_allclose(up[0, 0, :, 0], np.linspace(-3, 0.2, 7), atol=1e-6)
    np.testing.assert_allclose(paper.to_native(logits, (5, 7)), 1 / (1 + np.exp(-up)), rtol=1e-5)
    assert paper.to_native(logits.astype(jnp.bfloat16), (3, 3)).dtype == jnp.float32
    # A logit of 0.2 is foreground for the paper (p = 0.55) and background for the published code.
    assert paper.to_native(logits, (2, 2))[0, 0, 1, 0] > paper.threshold
    assert official.to_native(logits, (2, 2))[0, 0, 1, 0] < official.threshold


def test_variants_differ_in_resize_and_postprocess():
    paper, official = build("adnet"), build("adnet", variant="official")
    assert (paper.preprocess.resize, official.preprocess.resize) == ("smooth", "opencv")
    assert (paper.postprocess, official.postprocess) == ((), ("temporal_gate",))
    for model in (paper, official):
        assert model.preprocess.channels == "BGR"
        assert [round(mean) for mean in model.preprocess.mean] == [104, 117, 123]


@pytest.mark.parametrize(("native", "scale", "paper", "official"), [
    ((480, 854), 1.0, (481, 857), (481, 857)),
    ((480, 854), 0.75, (353, 641), (353, 641)),
    ((480, 854), 1.5, (721, 1281), (721, 1281)),
    ((854, 480), 1.0, (857, 481), (481, 857)),
    ((1080, 1920), 1.0, (481, 857), (481, 857)),
    ((480, 640), 1.0, (481, 641), (481, 857)),
    ((30, 40), 1.0, (481, 641), (481, 857)),
    ((100, 100), 0.5, (233, 233), (233, 425)),
])
def test_frame_sizes(native, scale, paper, official):
    assert build("adnet").frame_size(native, scale) == paper
    assert build("adnet", variant="official").frame_size(native, scale) == official


@pytest.mark.parametrize("short_side", [9, 65, 240, 481])
def test_frame_sizes_are_aligned_and_keep_aspect_ratio(short_side):
    model = build("adnet", short_side=short_side)
    for native in ((480, 854), (1, 1), (720, 576), (33, 2000), (2160, 3840)):
        for scale in (0.01, 0.75, 1.0, 1.5):
            size = model.frame_size(native, scale)
            assert all(side >= 9 and side % 8 == 1 for side in size)
        size = model.frame_size(native)
        assert abs(min(size) - short_side) <= 4
        assert abs(max(size) - short_side * max(native) / min(native)) <= 4


def test_official_with_other_short_side_keeps_aspect_ratio():
    assert build("adnet", variant="official", short_side=241).frame_size((480, 854)) == (241, 425)


def test_reference_frame_is_first_frame():
    for length in (1, 7, 10_000, None):
        assert tuple(build("adnet").reference_frames(length)) == (0,)


def test_full_model_has_published_parameter_count():
    sizes = [leaf.size for leaf in jax.tree.leaves(expected_variables(build("adnet"))["params"])]
    assert sum(sizes) == 79_250_113


def test_hyper_parameters_round_trip_through_json():
    model = build("adnet", net="intra", variant="official", dtype=jnp.bfloat16, **SMALL)
    stored = json.loads(json.dumps(hyper_parameters(model)))
    again = build("adnet", **stored)
    assert again == model
    assert again.depths == (1, 1, 2, 3) and jnp.dtype(again.dtype) == jnp.bfloat16


@pytest.mark.parametrize(("name", "options", "words"), [
    ("adnett", {}, ["'adnett'", "'adnet'"]),
    ("zzz", {}, ["'zzz'", "adnet"]),
    ("adnet", {"widht": 3}, ["widht", "'width'"]),
    ("adnet", {"variant": "offical"}, ["offical", "'official'", "paper"]),
    ("adnet", {"net": "anchr"}, ["anchr", "'anchor'", "full"]),
    ("adnet", {"parent": 1}, ["'parent'"]),
])
def test_build_error_names_mistake_and_suggestion(name, options, words):
    with pytest.raises(UserError) as caught:
        build(name, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    if name == "zzz":
        assert "Did you mean" not in message


@pytest.mark.slow
def test_bfloat16_logits_are_close_to_float32():
    variables, batch = _random_variables(build("adnet", **TINY)), _frames(33, 41)
    logits = {dtype: quick_jit(build("adnet", dtype=dtype, **TINY).apply)(variables, batch)[0]["logits"]
              for dtype in ("float32", "bfloat16")}
    assert logits["bfloat16"].dtype == jnp.bfloat16
    reference = np.asarray(logits["float32"])
    assert (
        np.abs(np.asarray(logits["bfloat16"], np.float32) - reference).mean() < 0.05 * np.abs(reference).max()
    )


def _torch_pair(torch, net, config, seed=0):
    from tests.helpers.torch_adnet import TorchADNet

    theirs = TorchADNet(net, **config).eval()
    arrays = _arrays({key: value.shape for key, value in theirs.published_state_dict().items()}, seed)
    embed = next(key for key in arrays if key.endswith("head.1.weight"))
    arrays[embed] *= np.float32(0.5)  # attention between one-hot and uniform
    return theirs.load_published(arrays), arrays


def _nchw(torch, x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


@pytest.mark.torch
@pytest.mark.parametrize("net", adnet.NETS)
def test_logits_equal_torch(torch, net):
    theirs, arrays = _torch_pair(torch, net, SMALL)
    variables = from_torch("adnet", arrays, net=net, **SMALL)
    forward = quick_jit(build("adnet", net=net, **SMALL).apply)
    for h, w in ((65, 81), (97, 129)):
        batch = _frames(h, w, b=1, seed=h)
        with torch.no_grad():
            expected, seen = theirs(_nchw(torch, batch["anchor"]), _nchw(torch, batch["frame"]))
        outputs, inner = forward(variables, batch)
        pairs = {"logits": (outputs["logits"], expected)}
        for name in ("stem", "layer1", "layer2", "layer3", "layer4", "aspp", "embed", "aux"):
            pairs[name] = inner[name], torch.cat([seen[f"ref_{name}"], seen[f"cur_{name}"]])
        pairs |= {
            name: (inner[name], seen[name.replace("diffused", "feat")])
            for name in inner
            if "diffused" in name
        }
        for name, (a, b) in pairs.items():
            error = np.abs(np.asarray(a).transpose(0, 3, 1, 2) - b.numpy()).max() / b.abs().max().item()
            assert error <= 1e-5, (name, error)
        if net == "full":
            rows = seen["P_intra"][0].max(-1).values
            assert (
                1.2 / seen["P_intra"].shape[-1] < rows.median() < 0.99
            )  # the attention is neither uniform nor one-hot


@pytest.mark.torch
@pytest.mark.parametrize("net", ["full", "base"])
def test_loss_gradients_equal_torch(torch, net):
    config = SMALL | {"depths": (1, 1, 1, 1)}
    theirs, arrays = _torch_pair(torch, net, config, seed=1)
    model = build("adnet", net=net, dropout=0.0, **config)
    variables = from_torch("adnet", arrays, net=net, **config)
    batch = _frames(49, 57, seed=4) | {"mask": np.random.default_rng(3).random((2, 40, 50, 1)) > 0.6}

    def loss(params):
        return model.loss(model.apply(variables | {"params": params}, batch)[0], batch, 0)[0].sum()

    value, gradients = quick_jit(jax.value_and_grad(loss))(variables["params"])

    logits, seen = theirs(_nchw(torch, batch["anchor"]), _nchw(torch, batch["frame"]))
    mask = _nchw(torch, batch["mask"].astype(np.float32))
    functional = torch.nn.functional

    def bce(logits):
        up = functional.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=True)
        return functional.binary_cross_entropy_with_logits(up, mask, reduction="none").mean((1, 2, 3)).sum()

    expected = bce(logits) + (0.4 * bce(seen["cur_aux"]) if net == "base" else 0)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    # Converts the PyTorch gradients with the rules of the weights; |weight| of the norms flips signs.
    theirs_by_key = dict((theirs.features if net == "base" else theirs).named_parameters())
    moved = {key: np.zeros_like(value) for key, value in arrays.items()}
    for key, parameter in theirs_by_key.items():
        if parameter.grad is not None:
            gradient = parameter.grad.numpy()
            is_norm = key.endswith(".weight") and parameter.ndim == 1
            moved[key] = gradient * np.sign(arrays[key]) if is_norm else gradient
    rules = [
        (ours, key, "norm" if layout == "abn" else layout) for ours, key, layout in model.torch_rules()
    ]
    expected_gradients = convert(variables, moved, rules, "the gradients")["params"]
    largest = 0.0
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        scale = np.abs(b).max()
        error = np.abs(np.asarray(a) - b).max() / (scale or 1)
        assert error <= 1e-4, (jax.tree_util.keystr(path), error)
        largest = max(largest, scale)
        head = "aux" in jax.tree_util.keystr(path)
        assert (scale > 0) == (net == "base" or not head)  # only the base net trains its auxiliary head
    assert largest > 0
