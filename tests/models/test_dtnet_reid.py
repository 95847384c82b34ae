"""Re-identification: triplet loss against brute force and PyTorch, training crops, and the network."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.models.dtnet.model import DTNet
from uvos_jax.models.dtnet.reid import (
    CROP,
    PreActivationBlock,
    ReIDNet,
    embed_present,
    embedding_loss,
    l2_normalize,
    training_crops,
)
from uvos_jax.ops.crops import object_crops
from uvos_jax.ops.losses import batch_hard_triplet

_triplet = jax.jit(batch_hard_triplet, static_argnums=3)
_tracks = jax.jit(training_crops, static_argnums=2)
SMALL = ReIDNet((1, 1, 1), width=4, features=8, hidden=16)


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _batch(seed=0, n=24, d=5):
    """Embeddings of six identities, one of them with a single vector; some are invalid."""
    rng = np.random.default_rng(seed)
    identities = rng.integers(0, 5, n).astype(np.int32)
    identities[3] = 9
    return _noise(n, d, seed=seed), identities, rng.random(n) > 0.2


def _by_definition(embeddings, identities, valid, margin):
    losses, anchors = np.zeros(len(valid)), np.zeros(len(valid), bool)
    for a in np.flatnonzero(valid):
        distances = np.linalg.norm(embeddings.astype(np.float64) - embeddings[a], axis=1)
        own = [distances[i] for i in np.flatnonzero(valid) if i != a and identities[i] == identities[a]]
        other = [distances[i] for i in np.flatnonzero(valid) if identities[i] != identities[a]]
        if own and other:
            excess = max(own) - min(other)
            losses[a] = np.log1p(np.exp(excess)) if margin is None else max(excess + margin, 0)
            anchors[a] = True
    return losses, anchors


# The loss


@pytest.mark.parametrize("margin", [0.2, None])
@pytest.mark.parametrize("seed", [0, 1])
def test_triplet_loss_equals_brute_force(seed, margin):
    batch = _batch(seed)
    batch[2][3] = True  # the only vector of its identity
    losses, anchors = _triplet(*batch, margin)
    expected, expected_anchors = _by_definition(*batch, margin)
    assert 0 < expected_anchors.sum() < batch[2].sum()
    assert losses.dtype == jnp.float32 and anchors.tolist() == expected_anchors.tolist()
    np.testing.assert_allclose(losses, expected, atol=1e-5)


def test_triplet_loss_equals_hand_computed_values():
    embeddings = np.array([[0, 0], [3, 4], [0, 1], [0, 6]], np.float32)
    losses, anchors = _triplet(embeddings, np.array([7, 7, 2, 7]), np.array([True, True, True, False]), 0.5)
    # From (0, 0): positive at 5, negative at 1. From (3, 4): 5 and sqrt(18). (0, 1) has no positive.
    np.testing.assert_allclose(losses, [4.5, 5.5 - 18**0.5, 0, 0], atol=1e-6)
    assert anchors.tolist() == [True, True, False, False]


@pytest.mark.parametrize(("identities", "valid"), [([1, 1, 1], 1), ([1, 2, 3], 1), ([1, 1, 2], 0)])
def test_triplet_loss_without_pair_is_zero(identities, valid):
    def total(x):
        return _triplet(x, np.array(identities), np.full(3, bool(valid)))[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(_noise(3, 4))
    assert value == 0 and (np.asarray(gradient) == 0).all()


def test_triplet_loss_is_permutation_equivariant():
    batch, order = _batch(2), np.random.default_rng(5).permutation(24)
    losses, anchors = _triplet(*batch)
    again, anchors_again = _triplet(*(x[order] for x in batch))
    np.testing.assert_allclose(again, losses[order], rtol=1e-6)
    assert anchors_again.tolist() == anchors[order].tolist()


def test_triplet_loss_ignores_invalid_vectors():
    embeddings, identities, valid = _batch(3)
    gradient = jax.jit(jax.grad(lambda x: _triplet(x, identities, valid)[0].sum()))(embeddings)
    assert not np.asarray(gradient)[~valid].any() and np.asarray(gradient)[valid].any()
    changed = np.where(valid[:, None], embeddings, 50).astype(np.float32)
    np.testing.assert_array_equal(_triplet(changed, identities, valid)[0],
                                  _triplet(embeddings, identities, valid)[0])


@pytest.mark.parametrize("margin", [0.2, None])
def test_triplet_loss_gradient_of_equal_vectors_is_finite(margin):
    embeddings = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    identities, valid = np.array([0, 0, 1, 1]), np.ones(4, bool)
    gradient = jax.jit(jax.grad(lambda x: _triplet(x, identities, valid, margin)[0].sum()))(embeddings)
    assert np.isfinite(np.asarray(gradient)).all() and np.asarray(gradient).any()


@pytest.mark.torch
@pytest.mark.parametrize("margin", [0.2, None])
def test_triplet_loss_and_gradient_equal_torch(torch, margin):
    embeddings, identities, _ = _batch(4)
    identities[3] = identities[0]
    weights = np.random.default_rng(6).random(24).astype(np.float32)
    theirs_x = torch.from_numpy(embeddings.copy()).requires_grad_()
    distance = torch.cdist(theirs_x, theirs_x, compute_mode="donot_use_mm_for_euclid_dist")
    same = torch.from_numpy(identities[:, None] == identities[None])
    own, other = same & ~torch.eye(24, dtype=torch.bool), ~same
    excess = distance.masked_fill(~own, -1).amax(1) - distance.masked_fill(~other, 1e9).amin(1)
    theirs = torch.nn.functional.softplus(excess) if margin is None else torch.relu(excess + margin)
    (theirs * torch.from_numpy(weights)).sum().backward()

    def total(x):
        losses, anchors = _triplet(x, identities, np.ones(24, bool), margin)
        return (losses * weights).sum(), (losses, anchors)

    gradient, (losses, anchors) = jax.jit(jax.grad(total, has_aux=True))(embeddings)
    assert anchors.all()
    np.testing.assert_allclose(losses, theirs.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(gradient, theirs_x.grad.numpy(), atol=1e-5)


def test_embedding_loss_is_mean_over_anchors_of_clip():
    embeddings = _noise(12, 4)
    identities = np.array([[0, 1, 0, 1], [2, 3, 2, 3], [4, 5, 4, 5]], np.int32)
    valid = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
    loss, parts = jax.jit(embedding_loss)(embeddings, identities, valid)
    each, _ = _by_definition(embeddings, identities.reshape(-1), valid.reshape(-1), 0.2)
    # The second object of the first clip is visible once; no object of the last clip is visible twice.
    np.testing.assert_allclose(loss, [each[[0, 2]].mean(), each[4:8].mean(), 0], rtol=1e-5)
    assert loss.dtype == jnp.float32 and parts.keys() == {"triplet"}


def test_negatives_are_shared_between_devices():
    embeddings = _noise(4 * 6, 5)
    identities = np.tile(np.array([0, 1, 0, 1, 0, 1], np.int32), (4, 1)) + 2 * np.arange(4)[:, None]
    valid = np.random.default_rng(7).random((4, 6)) > 0.2
    # Each device numbers its identities from 0.
    parts = [identities[:2].reshape(1, 2, 6), identities[:2].reshape(1, 2, 6)]

    def whole(x):
        loss, _ = embedding_loss(x, identities, valid)
        return loss.mean(), loss

    def mapped(x):
        loss, _ = jax.vmap(functools.partial(embedding_loss, axis_name="devices"), axis_name="devices")(
            x.reshape(2, 12, 5), np.concatenate(parts), valid.reshape(2, 2, 6))
        return loss.mean(), loss.reshape(-1)

    gradient, loss = jax.jit(jax.grad(whole, has_aux=True))(embeddings)
    mapped_gradient, mapped_loss = jax.jit(jax.grad(mapped, has_aux=True))(embeddings)
    np.testing.assert_allclose(mapped_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(mapped_gradient, gradient, atol=1e-6)


# Crops of tracks


def test_training_crops_equal_opencv():
    frames = _noise(2, 2, 60, 80, 3)
    labels = np.zeros((2, 2, 60, 80), np.int32)
    labels[0, 0, 10:30, 20:40] = 1
    labels[0, 1, 20:50, 30:60] = 1
    labels[0, 1, :9, :30] = 2  # height of 9 pixels, below the minimum of 10
    labels[1, 0, 30:50, 10:70] = 3
    labels[1, 1] = -1  # void
    crops, identities, valid = _tracks(frames, labels, 3)
    assert crops.shape == (12, 128, 128, 3)
    assert identities.tolist() == [[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]]
    assert valid.tolist() == [[True, False, False, True, False, False], [False, False, True, False, False, False]]
    there = {0: frames[0, 0, 8:32, 18:42], 3: frames[0, 1, 17:53, 27:63], 8: frames[1, 0, 28:52, 4:76]}
    there = {i: cv2.resize(cut, (128, 128), interpolation=cv2.INTER_LINEAR) for i, cut in there.items()}
    for i, crop in there.items():
        np.testing.assert_allclose(crops[i], crop, atol=1e-4)
    # The other slots hold each of these crops three times.
    held = [next(i for i, crop in there.items() if np.allclose(crops[k], crop, atol=1e-4)) for k in range(12)]
    assert [held.count(i) for i in there] == [4, 4, 4]


def test_clips_without_objects_give_finite_crops():
    crops, _, valid = _tracks(_noise(2, 2, 60, 80, 3), np.zeros((2, 2, 60, 80), np.int32), 3)
    assert not valid.any() and np.isfinite(np.asarray(crops)).all()


# The network


def test_kernel_count_equals_published_network():
    shapes = jax.eval_shape(ReIDNet().init, jax.random.key(0), jnp.zeros((1, 128, 128, 3)))["params"]
    kernels = sum(x.size for path, x in jax.tree.leaves_with_path(shapes) if path[-1].key == "kernel")
    # All layers of the PReMVOS configuration: taps, input channels, output channels, count.
    table = [(9, 3, 64, 1), (9, 64, 128, 1), (1, 64, 128, 1), (9, 128, 128, 5), (9, 128, 256, 1), (1, 128, 256, 1),
             (9, 256, 256, 5), (9, 256, 512, 1), (1, 256, 512, 1), (9, 512, 512, 11), (9, 512, 512, 1),
             (1, 512, 1024, 1), (9, 512, 1024, 3), (9, 1024, 512, 2), (1, 1024, 512, 1), (9, 512, 1024, 1),
             (1, 1024, 2048, 2), (1, 2048, 1024, 1), (9, 1024, 2048, 1), (1, 2048, 4096, 2), (9, 4096, 500, 1),
             (1, 4 * 500, 500, 1), (1, 500, 500, 1), (1, 500, 128, 1)]
    assert kernels == sum(taps * before * behind * often for taps, before, behind, often in table)


@pytest.mark.torch
@pytest.mark.parametrize(("widths", "stride"), [((6, 6), 2), ((6, 6), 1), ((6, 10), 2), ((4, 6, 10), 2)])
def test_pre_activation_block_equals_torch(torch, widths, stride):
    x = _noise(2, 8, 8, 6)
    model = PreActivationBlock(widths, stride)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: rng.uniform(0.3, 1, p.shape).astype(np.float32) - 0.5, variables["params"])
    stats = jax.tree.map(lambda p: rng.uniform(0.5, 2, p.shape).astype(np.float32), variables["batch_stats"])

    def norm(y, name):
        mean, var, scale, bias = (torch.from_numpy(values[key]) for values, key in (
            (stats[name], "mean"), (stats[name], "var"), (params[name], "scale"), (params[name], "bias")))
        return torch.relu(torch.nn.functional.batch_norm(y, mean, var, scale, bias))

    def conv(y, name, step):
        kernel = torch.from_numpy(params[name]["kernel"]).permute(3, 2, 0, 1)
        return torch.nn.functional.conv2d(y, kernel, stride=step, padding=kernel.shape[-1] // 2)

    y = torch.from_numpy(x).permute(0, 3, 1, 2)
    first = norm(y, "bn1")
    residual = conv(first, "shortcut", stride) if widths[-1] != 6 or stride != 1 else y
    at_first = widths[0] == widths[-1]
    y = conv(first, "conv1", stride if at_first else 1)
    y = conv(norm(y, "bn2"), "conv2", 1 if at_first else stride)
    if len(widths) == 3:
        y = conv(norm(y, "bn3"), "conv3", 1)
    ours = jax.jit(model.apply)({"params": params, "batch_stats": stats}, x)
    np.testing.assert_allclose(ours, (y + residual).permute(0, 2, 3, 1).numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 128, 128, 3)))

    def start(path, leaf):
        if path[-1].key == "kernel":
            return (rng.standard_normal(leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree.map_with_path(start, shapes)


def test_embeddings_have_unit_norm_and_are_independent(small):
    crops = _noise(3, 128, 128, 3)
    apply = jax.jit(SMALL.apply)
    vectors = apply(small, crops)
    assert vectors.shape == (3, 8) and vectors.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # The same crop at another position, with two other crops.
    others = np.concatenate([_noise(2, 128, 128, 3, seed=4), crops[:1]])
    np.testing.assert_allclose(apply(small, others)[2], vectors[0], atol=1e-5)


@pytest.mark.slow
def test_gradient_reaches_every_parameter_with_equal_crops(small):
    crops = _noise(4, 128, 128, 3)
    crops[1] = crops[0]
    identities, valid = np.array([[0, 1], [0, 1]]), np.ones((2, 2), bool)

    @jax.jit
    def step(params):
        def total(params):
            variables = {**small, "params": params}
            vectors, new = SMALL.clone(remat=True).apply(variables, crops, True, mutable="batch_stats")
            return embedding_loss(vectors, identities, valid)[0].sum(), (vectors, new)
        return jax.grad(total, has_aux=True)(params)

    gradient, (vectors, new) = step(small["params"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(np.asarray(leaf)).all() and np.asarray(leaf).any(), path
    before, after = (np.asarray(x["batch_stats"]["head_bn"]["mean"]) for x in (small, new))
    assert (before != after).all()


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
def test_only_present_crops_are_embedded(count):
    crops, present = _noise(9, 2, 3), np.zeros(9, bool)
    present[np.random.default_rng(count).permutation(9)[:count]] = True
    rounds = []

    def embed(some):
        jax.debug.callback(lambda: rounds.append(len(some)))
        return jnp.concatenate([some.sum(1), some[:, 0] ** 2], 1)

    found = jax.jit(functools.partial(embed_present, embed))(crops, present)
    jax.effects_barrier()
    expected = np.concatenate([crops.sum(1), crops[:, 0] ** 2], 1) * present[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert rounds == [4] * -(-count // 4)


@pytest.mark.slow
def test_model_embeds_proposals_of_every_frame(small):
    model = DTNet(max_proposals=5, reid_depths=SMALL.depths, reid_width=SMALL.width, embedding=SMALL.features,
                  reid_hidden=SMALL.hidden)
    variables = {kind: {"reid": values} for kind, values in small.items()}
    frames, labels = _noise(3, 40, 60, 3), np.zeros((3, 40, 60), np.uint8)
    labels[0, 5:20, 8:30], labels[0, 25:38, 30:50], labels[2, 10:30, 20:50] = 1, 4, 3
    found = np.asarray(jax.jit(functools.partial(model.apply, method="embed_proposals"))(variables, frames, labels))
    assert found.shape == (3, 5, 8)
    assert np.argwhere(found.any(-1)).tolist() == [[0, 0], [0, 3], [2, 2]]
    for frame, place in ((0, 0), (0, 3), (2, 2)):
        crops, _, _ = object_crops(frames[frame], labels[frame], 5, CROP)
        expected = jax.jit(SMALL.apply)(small, crops[place:place + 1])[0]
        np.testing.assert_allclose(found[frame, place], expected, atol=1e-5)


def test_l2_normalize_of_zeros_is_zero_with_finite_gradient():
    zeros = jnp.zeros((1, 3))
    vectors, gradient = l2_normalize(zeros), jax.jit(jax.grad(lambda x: l2_normalize(x).sum()))(zeros)
    assert (np.asarray(vectors) == 0).all() and np.isfinite(np.asarray(gradient)).all()
