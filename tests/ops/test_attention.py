"""Attention against loops and PyTorch; tiled attention against plain attention."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.attention import attention, attention_weights, tiled_attention

# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
_attention = quick_jit(attention, static_argnames="scale")
_tiled = quick_jit(tiled_attention, static_argnames=("scale", "query_tile", "key_tile"))


def _inputs(n, k, c=3, d=2, b=2, seed=0, gain=1.0):
    rng = np.random.default_rng(seed)
    q, keys, v = (rng.standard_normal(s).astype(np.float32) for s in ((b, n, c), (b, k, c), (b, k, d)))
    return q * np.float32(gain), keys, v


def _attention_by_loops(q, k, v, scale):
    out = np.zeros((*q.shape[:2], v.shape[2]))
    weights = np.zeros((*q.shape[:2], k.shape[1]))
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            scores = [float(np.dot(q[b, i].astype(np.float64), k[b, j])) * scale for j in range(k.shape[1])]
            powers = [math.exp(s - max(scores)) for s in scores]
            for j, power in enumerate(powers):
                weights[b, i, j] = power / sum(powers)
                out[b, i] += weights[b, i, j] * v[b, j].astype(np.float64)
    return out, weights


def test_attention_equals_loops():
    q, k, v = _inputs(5, 7)
    out, weights = _attention_by_loops(q, k, v, 0.7)
    np.testing.assert_allclose(attention(q, k, v, scale=0.7), out, atol=2e-6)
    np.testing.assert_allclose(attention_weights(q, k, scale=0.7), weights, atol=2e-6)


def test_attention_weights_sum_to_one():
    q, k, _ = _inputs(6, 9, gain=50)
    weights = np.asarray(attention_weights(q, k, scale=1.0))
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


TILES = [
    (8, 12, 4, 3),
    (7, 11, 4, 3),
    (1, 1, 1024, 1024),
    (1, 9, 4, 4),
    (9, 1, 4, 4),
    (6, 5, 100, 100),
    (10, 9, 1, 1),
    (13, 13, 12, 12),
]


@pytest.mark.parametrize(("n", "k", "query_tile", "key_tile"), TILES)
def test_tiled_attention_equals_loops(n, k, query_tile, key_tile):
    q, keys, v = _inputs(n, k)
    tiled = _tiled(q, keys, v, scale=0.6, query_tile=query_tile, key_tile=key_tile)
    assert tiled.shape == (*v.shape[:1], n, v.shape[2])
    np.testing.assert_allclose(tiled, _attention_by_loops(q, keys, v, 0.6)[0], atol=2e-6)


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_scores_beyond_range_of_exp(shift):
    q, k, v = _inputs(6, 10, gain=400)
    # A constant channel shifts all scores of a row equally; the softmax is invariant to that.
    q, k = (
        np.concatenate([x, np.full((*x.shape[:2], 1), value, np.float32)], -1)
        for x, value in ((q, shift), (k, 1))
    )
    assert np.abs(np.einsum("bnc,bkc->bnk", q, k)).max() > 500
    expected = _attention_by_loops(q, k, v, 1.0)[0]
    for out in (_attention(q, k, v, scale=1.0), _tiled(q, k, v, scale=1.0, query_tile=4, key_tile=3)):
        np.testing.assert_allclose(out, expected, atol=2e-3)  # float32 resolves scores of 1e3 to 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k", "tile"), [(7, 11, 3), (1, 6, 4), (5, 1, 2)])
def test_tiled_gradients_equal_plain_gradients(n, k, tile):
    seed = np.random.default_rng(5).standard_normal((2, n, 2)).astype(np.float32)

    @quick_jit
    def gradients(*inputs):
        return [jax.grad(lambda *a, form=form: (form(*a, scale=0.6) * seed).sum(), (0, 1, 2))(*inputs)
                for form in (attention, functools.partial(tiled_attention, query_tile=tile, key_tile=tile))]

    for gain in (1.0, 300.0):
        plain, tiled = gradients(*_inputs(n, k, gain=gain))
        for name, a, b in zip("qkv", tiled, plain, strict=True):
            assert np.isfinite(np.asarray(a)).all(), (name, gain)
            np.testing.assert_allclose(a, b, atol=1e-5 * gain, err_msg=f"{name} at {gain}")


def test_invariant_to_key_order_and_equivariant_to_query_order():
    q, k, v = _inputs(7, 9)
    form = jax.jit(lambda *a: tiled_attention(*a, scale=0.5, query_tile=3, key_tile=4))
    out = np.asarray(form(q, k, v))
    rng = np.random.default_rng(2)
    keys, queries = rng.permutation(9), rng.permutation(7)
    np.testing.assert_allclose(form(q, k[:, keys], v[:, keys]), out, atol=1e-6)
    np.testing.assert_allclose(form(q[:, queries], k, v), out[:, queries], atol=1e-6)


def test_outputs_lie_within_range_of_values():
    q, k, v = _inputs(6, 8, gain=10)
    out = np.asarray(_tiled(q, k, v, scale=1.0, query_tile=4, key_tile=3))
    assert (out <= v.max(1, keepdims=True) + 1e-6).all() and (out >= v.min(1, keepdims=True) - 1e-6).all()


def test_bfloat16_inputs_give_bfloat16_outputs():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in _inputs(5, 300, seed=3))
    expected = _attention_by_loops(*(np.asarray(x, np.float32) for x in (q, k, v)), 0.5)[0]
    for out in (
        _attention(q, k, v, scale=0.5),
        _tiled(q, k, v, scale=0.5, query_tile=2, key_tile=64),
    ):
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.02)


def _footprint(form, n, c=8):
    """Scratch memory of the compiled program in bytes and the element count of its largest array.

    Both are needed: a backend may fuse attention into one kernel and not count the memory of that kernel.
    """
    pixels = jax.ShapeDtypeStruct((1, n, c), jnp.float32)
    program = jax.jit(form).lower(pixels, pixels, pixels).compile()
    shapes = re.findall(r"\[(\d+(?:,\d+)*)\]\{", program.as_text())
    return program.memory_analysis().temp_size_in_bytes, max(
        math.prod(map(int, s.split(","))) for s in shapes
    )


def test_tiled_attention_never_stores_full_affinity():
    n = 4096
    tiled = functools.partial(tiled_attention, scale=1.0, query_tile=256, key_tile=256)
    one_tile = functools.partial(tiled_attention, scale=1.0, query_tile=n, key_tile=n)
    scratch, largest = _footprint(one_tile, n)
    assert scratch >= 4 * n * n and largest >= n * n  # the measurement detects a stored affinity matrix
    scratch, largest = _footprint(tiled, n)
    assert scratch < 4 * n * n / 16 and largest < n * n / 16
    scratch, largest = _footprint(jax.grad(lambda *a: tiled(*a).sum(), (0, 1, 2)), n)
    assert scratch < 4 * n * n / 8 and largest < n * n / 8


@pytest.mark.torch
@pytest.mark.parametrize("form", [attention, functools.partial(tiled_attention, query_tile=16, key_tile=7)],
                         ids=["plain", "tiled"])
def test_attention_and_gradients_equal_torch(torch, form):
    inputs = _inputs(35, 24, c=8, d=5)
    seed = np.random.default_rng(5).standard_normal((2, 35, 5)).astype(np.float32)
    q, k, v = leaves = [torch.from_numpy(x).requires_grad_() for x in inputs]
    theirs = (q @ k.transpose(1, 2) * 8**-0.5).softmax(-1) @ v
    (theirs * torch.from_numpy(seed)).sum().backward()

    @quick_jit
    def forward_and_back(*inputs):
        ours, back = jax.vjp(lambda *a: form(*a, scale=8**-0.5), *inputs)
        return [ours, *back(jnp.asarray(seed))]

    expected = [theirs.detach(), *(leaf.grad for leaf in leaves)]
    for a, b in zip(forward_and_back(*inputs), expected, strict=True):
        assert np.abs(np.asarray(a) - b.numpy()).max() <= 1e-5 * b.abs().max().item()
