"""Prototypes, cosine maps and nearest neighbors against hand-computed values and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.prototypes import cosine_maps, nearest_neighbors, prototypes


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_prototype_selects_pixel_with_dominant_channel():
    # Channel 0 is far stronger at pixel 2, channel 1 at pixel 0: the softmax selects only those pixels.
    embedding = np.array([[[1.0, 60.0], [2.0, 3.0], [50.0, -4.0]]], np.float32)
    np.testing.assert_allclose(prototypes(embedding), [[[50, -4], [1, 60]]], atol=1e-5)


def test_prototype_of_constant_channel_is_mean_pixel():
    embedding = np.stack([np.full((1, 4), 0.7, np.float32), [[1.0, 2.0, 3.0, 6.0]]], -1)
    np.testing.assert_allclose(prototypes(embedding)[0, 0], [0.7, 3.0], rtol=1e-6)


def test_prototypes_are_invariant_to_pixel_order():
    x = _noise(2, 9, 4)
    order = np.random.default_rng(1).permutation(9)
    np.testing.assert_allclose(prototypes(x), prototypes(x[:, order]), atol=1e-6)


@pytest.mark.slow
def test_detached_weights_pass_no_gradient():
    x = _noise(1, 6, 3)
    weights = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    # With fixed weights the gradient of a prototype's channel sum at each pixel is the weight of that pixel.
    gradient = jax.grad(lambda x: prototypes(x, detached=True)[0, 1].sum())(x)
    np.testing.assert_allclose(gradient[0], np.repeat(weights[0, :, 1:2], 3, 1), rtol=1e-5)
    free = jax.grad(lambda x: prototypes(x)[0, 1].sum())(x)
    np.testing.assert_allclose(free[0, :, 0], weights[0, :, 1], rtol=1e-5)  # prototype 1 has no weight from channel 0
    assert np.abs(np.asarray(free - gradient))[0, :, 1].max() > 1e-2


def test_cosine_maps_equal_hand_computed_values():
    vectors = np.array([[[3.0, 4.0], [0.0, -2.0]]], np.float32)
    pixels = np.array([[[1.0, 0.0], [0.0, 5.0], [30.0, 40.0]]], np.float32)
    np.testing.assert_allclose(cosine_maps(vectors, pixels), [[[0.6, 0], [0.8, -1], [1, -0.8]]], atol=1e-6)


def test_cosine_with_zero_vector_is_zero_with_finite_gradient():
    pixels = np.zeros((1, 2, 3), np.float32)
    pixels[0, 1] = 1
    value, gradient = jax.value_and_grad(lambda x: cosine_maps(jnp.ones((1, 1, 3)), x).sum())(pixels)
    np.testing.assert_allclose(value, 1, rtol=1e-6)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[0, 0].any()


def test_neighbors_equal_brute_force():
    x = _noise(2, 30, 5)
    distance = np.square(x[:, :, None].astype(np.float64) - x[:, None]).sum(-1)
    found = nearest_neighbors(x, 7)
    np.testing.assert_array_equal(found, np.argsort(distance, -1)[..., :7])
    np.testing.assert_array_equal(found[..., 0], np.broadcast_to(np.arange(30), (2, 30)))
