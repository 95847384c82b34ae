"""Global and local matching against brute force, the published code and PyTorch gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.matching import (
    FAR,
    background_value,
    global_distance,
    group_by_object,
    local_distance,
    match_value,
    nearest_distance,
)
from uvos_jax.ops.resize import resize_bilinear, resize_nearest


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _brute_force(query, keys, labels, objects):
    distances = np.square(query[:, None].astype(np.float64) - keys[None]).sum(-1)
    return np.stack([distances[:, labels == o].min(1) if (labels == o).any() else np.full(len(query), FAR)
                     for o in range(objects)], 1)


# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
_global = quick_jit(global_distance, static_argnums=(3, 4))
_local = quick_jit(local_distance, static_argnums=(3, 4))


@functools.partial(quick_jit, static_argnums=(3, 4))
def _search(query, keys, labels, objects, tile):
    grouped = group_by_object(jnp.asarray(keys), jnp.asarray(labels), objects, tile)
    return nearest_distance(jnp.asarray(query), grouped, objects, tile)


@pytest.mark.slow
# Objects that fill tiles exactly, span several, have one pixel or are absent; labels that are no object.
@pytest.mark.parametrize("tile", [1, 4, 7, 64])
@pytest.mark.parametrize("labels", [[0] * 20, [0] * 8 + [1] * 8 + [3] * 4, [2] + [0] * 19, [-1, 255, 4, 9] + [1] * 16])
def test_global_matching_equals_brute_force(labels, tile):
    query, keys, labels = _noise(11, 5), _noise(20, 5, seed=1), np.array(labels)
    expected = _brute_force(query, keys, labels, 4)
    np.testing.assert_allclose(_search(query, keys, labels, 4, tile), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(_global(query, keys, labels, 4, tile), expected, rtol=1e-5)


def test_no_labeled_pixel_gives_maximum_distance():
    labels = np.full(9, -1)
    assert (np.asarray(_search(_noise(3, 2), _noise(9, 2), labels, 2, 4)) == FAR).all()
    np.testing.assert_allclose(match_value(jnp.float32(FAR), jnp.float32(0.3)), 1)


def test_empty_tiles_are_skipped():
    labels = np.array([1] * 9 + [0] * 3 + [-1] * 20)
    grouped = quick_jit(group_by_object, static_argnums=(2, 3))(_noise(32, 3), labels, 5, 4)
    assert int(grouped.used) == 3 + 1 and grouped.owner[:4].tolist() == [0, 1, 1, 1]
    assert sorted(grouped.source[:4].reshape(-1).tolist()) == [-1] * 4 + list(range(12))


def test_global_matching_is_equivariant_to_object_order():
    query, keys, labels = _noise(13, 4), _noise(40, 4, seed=1), np.random.default_rng(2).integers(0, 4, 40)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(_search(query, keys, order[labels], 4, 8)[:, order],
                               _search(query, keys, labels, 4, 8), atol=1e-6)


def _local_by_hand(query, previous, labels, objects, window):
    h, w, _ = query.shape
    out = np.full((h, w, objects), FAR)
    for y in range(h):
        for x in range(w):
            for j in range(max(0, y - window), min(h, y + window + 1)):
                for i in range(max(0, x - window), min(w, x + window + 1)):
                    if 0 <= labels[j, i] < objects:
                        d = np.square(query[y, x].astype(np.float64) - previous[j, i]).sum()
                        out[y, x, labels[j, i]] = min(out[y, x, labels[j, i]], d)
    return out


@pytest.mark.parametrize(("size", "windows"), [((5, 7), (1,)), ((6, 4), (3, 1, 2)), ((1, 9), (2,)), ((4, 1), (5,))])
def test_local_matching_equals_brute_force(size, windows):
    query, previous = _noise(*size, 3), _noise(*size, 3, seed=1)
    labels = np.random.default_rng(2).integers(-1, 3, size)
    made = np.asarray(_local(query, previous, labels, 4, windows))
    assert made.shape == (*size, 4, len(windows)) and (made[:, :, 3] == FAR).all()
    for i, window in enumerate(windows):
        np.testing.assert_allclose(made[..., i], _local_by_hand(query, previous, labels, 4, window), rtol=1e-5,
                                   atol=1e-5)


def test_unused_objects_are_skipped_without_recompilation():
    query, previous = _noise(6, 7, 3), _noise(6, 7, 3, seed=1)
    labels = jnp.asarray(np.random.default_rng(2).integers(-1, 4, (6, 7)))
    whole = np.asarray(local_distance(query, previous, labels, 4, (3, 1)))
    search = jax.jit(lambda used: local_distance(query, previous, labels, 4, (3, 1), used))
    for used in range(5):
        made = np.asarray(search(used))
        np.testing.assert_allclose(made[:, :, :used], whole[:, :, :used], rtol=1e-5, atol=1e-6)
        assert (made[:, :, used:] == FAR).all()
    assert search._cache_size() == 1 and (whole < FAR).any((0, 1, 3)).all()


def test_background_value_is_minimum_over_other_objects():
    values = np.random.default_rng(0).random((6, 4, 2)).astype(np.float32)
    there = np.array([True, True, False, True])
    made = np.asarray(background_value(values, there))
    for o in (0, 1, 3):
        others = [i for i in (0, 1, 3) if i != o]
        np.testing.assert_array_equal(made[:, o], values[:, others].min(1))
    alone = np.array([True, False, False, False])
    np.testing.assert_array_equal(background_value(values, alone), values)


@pytest.fixture
def published(golden):
    with np.load(golden / "cfbi_matching_a.npz") as file:
        return dict(file)


def _published_labels(published):
    assert published["onehot"].sum(-1).all()
    return published["onehot"].argmax(-1)


@pytest.mark.slow
def test_global_matching_equals_published_code(published):
    labels, bias = _published_labels(published), published["dis_bias"]
    query, previous, reference = (published[name] for name in ("query", "prev", "ref"))

    def value(search, keys, labels):
        distance = search(query.reshape(-1, 16), keys.reshape(-1, 16), labels.reshape(-1), 3, 128)
        return match_value(distance, bias).reshape(25, 33, 3)

    def close(made, name):
        np.testing.assert_allclose(made, published[name][0, ..., 0], atol=1e-6)

    close(value(_search, reference, labels), "global_eval")
    close(value(_global, reference, labels), "global_train")
    close(value(_search, reference[::2, ::2], labels[::2, ::2]), "global_eval_atrous2")
    close(value(_search, np.stack([reference, previous]), np.stack([labels, labels])), "global_eval_2ref")
    others = background_value(published["global_eval"][0], np.ones(3, bool))
    np.testing.assert_allclose(np.moveaxis(others, 2, 0)[..., 0], published["global_bg"][:, 0], atol=1e-6)


def test_local_matching_equals_published_code(published):
    labels, bias = _published_labels(published), published["dis_bias"][:, None]
    query, previous = published["query"], published["prev"]
    size = 25 // 2 + 1, 33 // 2 + 1
    small = [resize_bilinear(x, size, align_corners=True) for x in (query, previous)]
    distance = _local(*small, resize_nearest(labels[..., None], size)[..., 0], 3, (12, 2, 4, 6, 8, 10))
    value = resize_bilinear(match_value(distance, bias).reshape(*size, -1), (25, 33), align_corners=True)
    for name in ("local_parallel_down", "local_loop_down"):
        np.testing.assert_allclose(value.reshape(25, 33, 3, 6), published[name][0], atol=1e-6)
    value = match_value(_local(query, previous, labels, 3, (4, 2)), bias)
    np.testing.assert_allclose(value, published["local_parallel_nodown"][0], atol=1e-6)


def _torch_matching(torch, query, keys, allowed, bias):
    """Match values from the dense distance matrix, restricted to pairs in ``allowed [objects, n, k]``."""
    distance = (query[:, None] - keys[None]).square().sum(-1)
    least = torch.where(allowed, distance, torch.tensor(FAR)).min(-1).values
    return 2 * torch.sigmoid(least + bias[:, None]) - 1


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["global", "local"])
def test_matching_and_gradients_equal_torch(torch, kind):
    size, objects, window = (6, 7), 3, 2
    query, keys, upstream = _noise(*size, 4), _noise(*size, 4, seed=1), _noise(*size, objects, seed=2)
    bias, labels = np.array([0.1, -0.2, 0.3], np.float32), np.random.default_rng(3).integers(0, 2, size)
    y, x = (grid.reshape(-1) for grid in np.mgrid[:size[0], :size[1]])
    allowed = labels.reshape(-1) == np.arange(objects)[:, None, None]
    near = (np.abs(y[:, None] - y) <= window) & (np.abs(x[:, None] - x) <= window)
    allowed = np.broadcast_to(allowed & near if kind == "local" else allowed, (objects, len(y), len(y)))

    def value(query, keys, bias):
        if kind == "local":
            return match_value(local_distance(query, keys, jnp.asarray(labels), objects, (window,))[..., 0], bias)
        distance = global_distance(query.reshape(-1, 4), keys.reshape(-1, 4), jnp.asarray(labels.reshape(-1)), objects,
                                   16)
        return match_value(distance.reshape(*size, objects), bias)

    @quick_jit
    def forward_and_back(*inputs):
        made, pull = jax.vjp(value, *inputs)
        return made, pull(jnp.asarray(upstream))

    made, gradients = forward_and_back(query, keys, bias)
    tensors = [torch.tensor(a, requires_grad=True) for a in (query.reshape(-1, 4), keys.reshape(-1, 4), bias)]
    theirs = _torch_matching(torch, tensors[0], tensors[1], torch.tensor(allowed), tensors[2])
    theirs.backward(torch.tensor(upstream.reshape(-1, objects).T.copy()))
    np.testing.assert_allclose(made.reshape(-1, objects).T, theirs.detach(), atol=1e-5)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        expected = tensor.grad.numpy()
        np.testing.assert_allclose(gradient.reshape(expected.shape), expected, atol=1e-5 * np.abs(expected).max())


@functools.partial(quick_jit, static_argnums=3)
def _both(query, keys, labels, objects):
    grouped = group_by_object(keys, labels, objects, 8)
    return nearest_distance(query, grouped, objects, 8), global_distance(query, keys, labels, objects, 8)


def test_object_sizes_do_not_trigger_recompilation():
    query, keys = _noise(10, 3), _noise(30, 3, seed=1)
    before = _both._cache_size()
    for labels in (np.zeros(30, int), np.arange(30) % 3, np.full(30, -1)):
        expected = _brute_force(query, keys, labels, 3)
        for made in _both(query, keys, jnp.asarray(labels), 3):
            np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    assert _both._cache_size() == before + 1


def test_bfloat16_embeddings_are_matched_in_float32():
    rng = np.random.default_rng(5)
    query, keys = (jnp.asarray(rng.random((n, 16)), jnp.bfloat16) for n in (30, 40))
    labels = jnp.asarray(rng.integers(0, 3, 40))
    whole = [x.astype(jnp.float32) for x in (query, keys)]
    half = jax.jit(lambda q, k: nearest_distance(q, group_by_object(k, labels, 3, tile=8), 3, tile=16))(query, keys)
    assert half.dtype == jnp.float32
    single = jax.jit(lambda q, k: nearest_distance(q, group_by_object(k, labels, 3), 3))(*whole)
    np.testing.assert_allclose(half, single, atol=1e-5)
