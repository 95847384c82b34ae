"""D-Net: ablations of Table 3, guidance, losses, simulated previous masks and recipes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.paths import CONFIGS
from tests.helpers.small_dtnet import SIZE, pairs, small
from uvos_jax.data.examples.sampling import RECIPES
from uvos_jax.errors import UserError
from uvos_jax.models import build
from uvos_jax.models.dtnet import dnet
from uvos_jax.models.dtnet.model import DTNet
from uvos_jax.models.dtnet.modules import GuidanceExcitation
from uvos_jax.nn.layers import Policy
from uvos_jax.training.config import load_config
from uvos_jax.training.loop import train
from uvos_jax.training.phases import phases
from uvos_jax.weights.convert import expected_variables

CONFIG = CONFIGS / "dtnet.py"

# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
losses, training_pairs = jax.jit(dnet.losses, static_argnums=2), jax.jit(dnet.training_pairs)


def _outputs(h, w, b=1, channels=1, seed=None):
    rng = np.random.default_rng(seed)
    shapes = {"salient_logits": channels, "heat": 1, "offsets": 2}
    return {name: rng.standard_normal((b, h, w, c)).astype(np.float32) * (seed is not None)
            for name, c in shapes.items()}


# The network


@pytest.mark.parametrize(("row", "size"), [
    ({"policy": Policy(jnp.bfloat16)}, (34, 50)), ({"guidance": False}, (1, 9)),
    ({"squeeze": "mixed", "categories": 40}, (480, 853))])
def test_any_size_can_be_traced(row, size):
    model, variables = small(**row)

    def run(variables, frame, prob):
        features = model.apply(variables, frame, method="encode")
        guided = model.apply(variables, frame, prob, method="guide") if model.guidance else None
        return features, guided, model.apply(variables, features, guided, size, method="decode")

    features, guided, made = jax.eval_shape(
        run, variables, *(jax.ShapeDtypeStruct((2, *size, c), jnp.float32) for c in (3, 1)))
    channels = {"salient_logits": 41 if row.get("categories") else 1, "heat": 1, "offsets": 2}
    assert {name: x.shape for name, x in made.items()} == {name: (2, *size, c) for name, c in channels.items()}
    assert all(x.dtype == jnp.float32 for x in made.values())
    assert all(x.dtype == model.policy.dtype for x in features.values())
    strides = {"layer1": 4, "layer2": 8, "salient": 16, "instance": 16}
    assert {name: x.shape[1:3] for name, x in features.items()} == {
        name: tuple(-(-n // stride) for n in size) for name, stride in strides.items()}
    assert guided is None or guided.shape == features["salient"].shape


def test_ablations_have_expected_parameters():
    params = {name: small(**row)[1]["params"] for name, row in (
        ("full", {}), ("mixed", {"squeeze": "mixed"}), ("without", {"guidance": False}))}
    guide = {"guide_backbone", "guide_aspp", "salient_excitation", "instance_excitation"}
    assert set(params["full"]) - set(params["without"]) == guide and set(params["without"]) <= set(params["full"])
    assert jax.tree.map(jnp.shape, params["full"]) == jax.tree.map(jnp.shape, params["mixed"])
    assert params["full"]["guide_backbone"]["conv1"]["kernel"].shape[2] == 4
    assert params["full"]["backbone"]["conv1"]["kernel"].shape[2] == 3
    with pytest.raises(ValueError, match="Unknown squeeze 'both'. Use one of literal, mixed."):
        small(squeeze="both")


def test_parameter_counts_equal_published_architecture():
    frame, prob = (jax.ShapeDtypeStruct((1, 65, 65, c), jnp.float32) for c in (3, 1))
    shapes = jax.eval_shape(dnet.DNet().init, jax.random.key(0), frame, frame, prob)["params"]
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    # torchvision's resnet50 without its classifier has 23,508,032; the second stem has one more input channel.
    assert count["backbone"] == 23_508_032 and count["guide_backbone"] == 23_508_032 + 64 * 49
    # DeepLabv3 ASPP: 1x1, three 3x3 and pooling from 2048, the projection from 5 * 256, and six norms.
    assert count["salient_aspp"] == 2048 * 256 * (1 + 3 * 9 + 1) + 1280 * 256 + 6 * 512
    assert count["salient_excitation"] == 512 * 16 + 16 + 16 * 512 + 512
    merged = {"layer2": (256 + 64, 256), "layer1": (256 + 32, 256)}  # channels of 5x5 and 1x1
    assert count["salient_decoder"] == (512 * 64 + 2 * 64) + (256 * 32 + 2 * 32) + sum(
        25 * c + 2 * c + c * d + 2 * d for c, d in merged.values())
    assert count["heat_head"] == 25 * 128 + 2 * 128 + 128 * 32 + 2 * 32 + 33


@functools.cache
def _run():
    """Returns ``(variables, compiled network)``."""
    model, variables = small()
    return variables, quick_jit(model.apply)


@pytest.mark.slow
def test_outputs_depend_on_guidance():
    (variables, run), (frames, _) = _run(), pairs(1)
    probs = [np.full((1, *SIZE, 1), p, np.float32) for p in (0, 1)]
    before = run(variables, frames[:, 1], frames[:, 0], probs[0])
    for other in ((frames[:, 0], probs[1]), (frames[:, 1], probs[0])):
        for name, made in run(variables, frames[:, 1], *other).items():
            assert np.abs(np.asarray(made - before[name])).max() > 1e-3, name


def test_outputs_depend_on_every_parameter():
    (variables, run), (frames, _) = _run(), pairs(1)
    prob, rng = np.full((1, *SIZE, 1), 0.5, np.float32), np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(variables)
    before = run(variables, frames[:, 1], frames[:, 0], prob)
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(variables)):
        other = leaf * rng.uniform(0.2, 2, leaf.shape).astype(np.float32)
        made = run(tree.unflatten([*leaves[:i], other, *leaves[i + 1:]]), frames[:, 1], frames[:, 0], prob)
        moved = {name for name in made if np.abs(np.asarray(made[name] - before[name])).max() > 1e-5}
        top, whole = path[1].key, {"salient_logits", "heat", "offsets"}
        assert moved == {"salient_decoder": {"salient_logits"}, "salient_head": {"salient_logits"},
                         "salient_excitation": {"salient_logits"}, "instance_decoder": {"heat", "offsets"},
                         "instance_excitation": {"heat", "offsets"}, "heat_head": {"heat"},
                         "offset_head": {"offsets"}}.get(top, whole), jax.tree_util.keystr(path)


# Guidance


def _excite(kernel, bias, x, guided, squeezed):
    """Applies a 2-channel excitation whose hidden units equal the squeezed channels; the last layer is given."""
    squeeze = np.zeros((4, 16), np.float32)
    squeeze[:, :4] = np.eye(4)
    params = {"squeeze": {"kernel": squeeze, "bias": np.zeros(16, np.float32)},
              "expand": {"kernel": kernel, "bias": bias}}
    return np.asarray(GuidanceExcitation().apply({"params": params}, x, guided, squeezed))


def test_excitation_equals_hand_computed_values():
    rng = np.random.default_rng(0)
    x, guided, a, b = (rng.standard_normal((1, 2, 3, 2)).astype(np.float32) for _ in range(4))
    zeros = np.zeros((16, 4), np.float32)
    # Equal weights give the mean of both.
    np.testing.assert_allclose(_excite(zeros, np.zeros(4, np.float32), x, guided, (a, b)), (x + guided) / 2, rtol=1e-5)
    # Logit 3 for channel 0 of x; logit 2 for channel 1 of the guidance: mean of the first channel of the second map.
    kernel = zeros.copy()
    kernel[2, 3] = 1
    b[..., 0] += 2 - b[..., 0].mean()
    made = _excite(kernel, np.array([3, 0, 0, 0], np.float32), x, guided, (a, b))
    first, second = 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(2))
    np.testing.assert_allclose(made[..., 0], first * x[..., 0] + (1 - first) * guided[..., 0], rtol=1e-5)
    np.testing.assert_allclose(made[..., 1], second * x[..., 1] + (1 - second) * guided[..., 1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("squeeze", ["literal", "mixed"])
def test_squeeze_option_selects_excitation_inputs(squeeze):
    """Literal: weights of each head depend on both heads; mixed: on features of that head and the guidance."""
    rng = np.random.default_rng(1)
    model, variables = small(squeeze=squeeze)
    shapes = jax.eval_shape(functools.partial(model.apply, method="encode"), variables, pairs(1)[0][:, 0])
    features = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    guided, more = rng.standard_normal((2, 1, 3, 4, 16)).astype(np.float32)
    decode = quick_jit(lambda features: model.apply(variables, features, guided, SIZE, method="decode"))
    before, after = decode(features), decode(features | {"instance": features["instance"] + 5 * np.abs(more)})
    same = np.allclose(before["salient_logits"], after["salient_logits"], atol=1e-6)
    assert same == (squeeze == "mixed")
    assert not np.allclose(before["heat"], after["heat"], atol=1e-6)


# Losses


def test_losses_equal_hand_computed_values():
    # 8 x 10 pixels: one pixel corresponds to 80 pixels of a 640 crop.
    labels = np.zeros((2, 8, 10), np.int32)
    labels[0, 2:4, 2:5] = 1  # center (2.5, 3); the Gaussian is at (2, 3)
    labels[0, 6:] = -1
    made = _outputs(8, 10, 2)
    made["salient_logits"][0, 2:4, 2:5] = 2
    made["offsets"][0, 2:4, 2:5] = [0.5, -1]
    total, parts = losses(made, labels, 3)
    valid, log2 = 60, np.log(2)
    np.testing.assert_allclose(parts["salient"], [(54 * log2 + 6 * np.log1p(np.exp(-2))) / valid, log2], rtol=1e-5)
    y, x = np.mgrid[:6, :10]
    bell = np.exp(-((y - 2) ** 2 + (x - 3) ** 2) / 32)  # truncated at 13 pixels
    np.testing.assert_allclose(parts["heat"], [200 * (bell**2).mean(), 0], rtol=1e-5)
    # Vertical offsets to the center are 0.5 and -0.5: errors 0 and 1. Horizontal targets are 1, 0 and -1.
    wrong = (0 + 1) / 2 / 2 + (2 + 1 + 0) / 3 / 2
    np.testing.assert_allclose(parts["offsets"], [0.01 * wrong * 640 / 8, 0], rtol=1e-5)
    np.testing.assert_allclose(total, sum(parts.values()))


def test_losses_ignore_void_and_object_order():
    rng = np.random.default_rng(2)
    labels = np.kron(rng.integers(-1, 4, (3, 4, 5)), np.ones((1, 4, 4), int)).astype(np.int32)
    made = _outputs(16, 20, 3, seed=3)
    before = losses(made, labels, 3)
    renumbered = np.where(labels > 0, np.array([0, 3, 1, 2])[labels], labels).astype(np.int32)
    changed = {name: np.where((labels < 0)[..., None], 9, x).astype(np.float32) for name, x in made.items()}
    for one, other in ((losses(made, renumbered, 5), before), (losses(changed, labels, 3), before)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), one, other)
    nothing = losses(made, np.full_like(labels, -1), 3)[0]
    assert not np.asarray(nothing).any()


def test_salient_loss_uses_object_categories():
    labels = np.array([[[0, 1, 2, -1]]], np.int32)
    made = _outputs(1, 4, channels=4)
    made["salient_logits"][0, 0] = [[1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 3], [0, 9, 0, 0]]
    right, wrong = (losses(made, labels, 2, np.array([kinds], np.int32))[1]["salient"][0]
                    for kinds in ((2, 3), (1, 3)))
    own = [k - np.log(3 + np.exp(k)) for k in (1, 2, 3)]
    np.testing.assert_allclose(right, -np.mean(own), rtol=1e-5)
    np.testing.assert_allclose(wrong, -(np.sum(own) - 2) / 3, rtol=1e-5)
    with pytest.raises(ValueError, match="Give those of the objects"):
        losses(made, labels, 2)


@pytest.mark.torch
def test_losses_equal_torch(torch):
    from torch.nn import functional as F

    labels = np.kron(np.random.default_rng(4).integers(-1, 3, (2, 3, 4)), np.ones((1, 5, 5), int)).astype(np.int32)
    made, kinds = _outputs(15, 20, 2, channels=6, seed=5), np.array([[5, 2], [1, 1]], np.int32)
    parts = losses(made, labels, 2, kinds)[1]
    places = np.stack(np.mgrid[:15, :20], -1)
    for i, frame in enumerate(labels):
        classes = torch.tensor(np.where(frame > 0, kinds[i][frame - 1], frame), dtype=torch.long)[None]
        logits = torch.tensor(made["salient_logits"][i]).permute(2, 0, 1)[None]
        np.testing.assert_allclose(parts["salient"][i], F.cross_entropy(logits, classes, ignore_index=-1), rtol=1e-5)
        inside = frame > 0
        wanted = (np.stack([places[frame == n].mean(0) for n in (1, 2)])[frame - 1] - places)[inside]
        error = F.l1_loss(torch.tensor(made["offsets"][i][inside]), torch.tensor(wanted, dtype=torch.float32))
        np.testing.assert_allclose(parts["offsets"][i], 0.01 * error * 640 / 15, rtol=1e-5)


# The previous frame in training


def _many(b, size=(97, 161)):
    """Returns the same pair ``b`` times, each with different void pixels."""
    frames, labels = pairs(1, size)
    frames, labels = np.repeat(frames, b, 0), np.repeat(labels, b, 0)
    labels[np.arange(b), 0, 0, np.arange(b) % size[1]] = -1
    labels[np.arange(b), 0, 1, np.arange(b) // size[1]] = -1
    return frames, labels


@pytest.mark.slow
def test_previous_masks_have_simulated_errors():
    b = 160
    frames, labels = _many(b)
    previous, prob, frame, wanted = (np.asarray(x) for x in training_pairs(frames, labels))
    np.testing.assert_array_equal(frame, frames[:, 1])
    np.testing.assert_array_equal(wanted, labels[:, 1])
    assert prob.shape == (b, 97, 161, 1) and prob.min() == 0 and prob.max() <= 1
    first = (previous == frames[:, 1]).all((1, 2, 3))
    assert (previous[~first] == frames[0, 0]).all() and not prob[first].any()
    masks, truth = prob[..., 0] > 0.5, labels[0, 0] > 0
    empty = ~masks.any((1, 2))
    kept = [(masks & (labels[0, 0] == n)).sum((1, 2)) / (labels[0, 0] == n).sum() for n in (1, 2)]
    lost = (np.minimum(*kept) < 0.1) & ~empty
    # Of 160: 10%, 19% (no previous frame or nothing detected in it), and 20% of the others.
    for share, expected in ((first.mean(), 0.1), (empty.mean(), 0.19), (lost.mean(), 0.2 * 0.81)):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / b)
    assert (kept[0][lost] < 0.1).any() and (kept[1][lost] < 0.1).any()
    rest = masks[~empty & ~lost]
    overlap = (rest & truth).sum((1, 2)) / (rest | truth).sum((1, 2))
    assert 0.5 < overlap.min() < 0.75 and 0.75 < overlap.mean() < 0.95 and overlap.max() < 1.001
    area = rest.sum((1, 2)) / truth.sum()
    assert area.min() < 0.85 and area.max() > 1.15  # eroded and dilated


def test_previous_masks_depend_only_on_labels():
    frames, labels = _many(160)
    made = np.asarray(training_pairs(frames, labels)[1])
    again = np.asarray(training_pairs(frames[::-1] + 1, labels[::-1])[1])
    np.testing.assert_array_equal(made, again[::-1])
    assert len({x.tobytes() for x in made}) > 100  # one void pixel changes the random seed


# Recipes


def test_phases_of_tiny_recipe_train_separate_parts():
    config = load_config(f"{CONFIG}:tiny")
    fields = {name: value for name, value in config["model"].items() if name != "name"}
    paths = flatten_dict(expected_variables(build("dtnet", **fields))["params"], sep="/")
    embedding, discovery = phases(config)
    for phase, part in ((embedding, "reid/"), (discovery, "dnet/")):
        groups = phase.optimizer["groups"]
        taught = {path for path in paths
                  if next(group for group in groups if re.fullmatch(group["match"], path)).get("lr", 1) > 0}
        assert taught == {path for path in paths if path.startswith(part)}
        # The losses only use object ids up to max_tracks.
        assert phase.data["objects"] <= phase.model.get("max_tracks", DTNet.max_tracks)
    # The saved model runs discovery with the default number of tracks.
    assert discovery.model.get("trained_part", "discovery") == "discovery" and "max_tracks" not in discovery.model
    lengths = [RECIPES[name].length(options) for name, options in (
        (phase.data["recipe"]["name"], phase.data["recipe"]) for phase in (embedding, discovery))]
    assert lengths == [3, 2] and set(config["validate"]["phases"]) == {"discovery"}


def test_recipe_documents_options_of_table_3():
    options = re.findall(r"--config\.(model\.[\w.]+=\w+)", CONFIG.read_text())
    model = load_config(str(CONFIG), options)["model"]
    assert model["guidance"] is False and model["squeeze"] == "mixed" and len(options) == 2


@pytest.mark.slow
def test_youtube_vis_preset_trains_categories(tmp_path):
    """Checks shapes from the data to the loss, and that model and data must agree on the categories."""
    config = load_config(f"{CONFIG}:youtube_vis")
    assert config["model"]["categories"] == len(config["data"]["categories"]) == 40
    clip = {"frames": jax.ShapeDtypeStruct((2, 2, 33, 49, 3), np.uint8),
            "labels": jax.ShapeDtypeStruct((2, 2, 33, 49), np.uint8),
            "categories": jax.ShapeDtypeStruct((2, 20), np.uint8)}
    model = DTNet(categories=40, depths=(1, 1, 1, 1), width=4, features=16, decoder=16)
    batch = jax.eval_shape(model.training_batch, clip)
    assert batch["categories"].shape == (2, 20)
    outputs = {name: jax.ShapeDtypeStruct((2, 33, 49, channels), np.float32)
               for name, channels in (("salient_logits", 41), ("heat", 1), ("offsets", 2))}
    assert jax.eval_shape(model.loss, outputs, batch, 0)[0].shape == (2,)
    small = [f"model.{field}={value}" for field, value in (
        ("depths", "[1,1,1,1]"), ("width", 4), ("features", 16), ("decoder", 16), ("use_target_backbone", False))]
    synthetic = ["data.mixture=[{'name': 'synthetic', 'count': 2, 'length': 2}]", "data.categories=[]"]
    for options, message in ((["model.categories=3", *synthetic], "is 3, but data.categories lists none"),
                             (["data.categories=['dog', 'cat']", synthetic[0]], "has no categories for objects of")):
        with pytest.raises(UserError, match=message):
            train(load_config(f"{CONFIG}:youtube_vis", [*small, *options]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
