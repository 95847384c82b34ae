"""Correlation volumes and window lookup, stored and on demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops import correlation
from uvos_jax.ops.correlation import correlation_volumes, feature_pyramid, lookup, lookup_on_demand


def _maps(b, h, w, c, seed=0):
    return np.random.default_rng(seed).standard_normal((2, b, h, w, c)).astype(np.float32)


def _points(b, h, w, spread, seed=1):
    """Points around each pixel; the first four are at a pixel, far away, at the corner and just outside."""
    x, y = np.meshgrid(np.arange(w), np.arange(h))
    points = np.stack([x, y], -1) + spread * np.random.default_rng(seed).standard_normal((b, h, w, 2))
    points[0, 0, :4] = [(2, 3), (-500, 1e7), (w - 1, h - 1), (w - 0.25, -0.5)]
    return points.astype(np.float32)


def _window_by_hand(first, maps, points, radius):
    """Bilinear lookup by loops: weighted products at the four pixels around every point."""
    b, h, w, c = first.shape
    made = np.zeros((b, h, w, len(maps), 2 * radius + 1, 2 * radius + 1))
    for (i, y, x), level in ((place, level) for place in np.ndindex(b, h, w) for level in range(len(maps))):
        products = maps[level][i].astype(np.float64) @ first[i, y, x] / c**0.5
        rows, columns = products.shape
        px, py = points[i, y, x].astype(np.float64) / 2**level
        for s in range(-radius, radius + 1):
            for t in range(-radius, radius + 1):
                left, top = int(np.floor(px + s)), int(np.floor(py + t))
                value = 0.0
                for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
                    if 0 <= row < rows and 0 <= column < columns:
                        value += products[row, column] * (1 - abs(px + s - column)) * (1 - abs(py + t - row))
                made[i, y, x, level, s + radius, t + radius] = value  # x first
    return made.reshape(b, h, w, -1)


@pytest.mark.slow
@pytest.mark.parametrize(("b", "h", "w", "radius", "levels"), [(2, 6, 9, 1, 3), (1, 13, 12, 4, 4), (1, 5, 8, 3, 2)])
def test_lookup_equals_bilinear_brute_force(b, h, w, radius, levels):
    first, second = _maps(b, h, w, 8)
    points = _points(b, h, w, 3)
    maps = feature_pyramid(second, levels)
    made = lookup(correlation_volumes(first, maps), points, radius)
    expected = _window_by_hand(first, [np.asarray(level) for level in maps], points, radius)
    assert made.shape == (b, h, w, levels * (2 * radius + 1) ** 2)
    np.testing.assert_allclose(made, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(expected[0, 0, 1]).max() == 0 and np.abs(expected).max() > 1


@pytest.mark.slow
def test_first_window_axis_is_x():
    second = np.zeros((1, 9, 9, 1), np.float32)
    second[0, 4, 6] = 5  # two pixels to the right of the center
    window = lookup(correlation_volumes(jnp.ones((1, 9, 9, 1)), (jnp.asarray(second),)), jnp.full((1, 9, 9, 2), 4.0), 2)
    window = np.asarray(window).reshape(9, 9, 5, 5)
    assert (window[..., 4, 2] == 5).all() and window.sum() == 5 * 81


def test_pyramid_levels_are_means_without_odd_border_pixels():
    features = np.random.default_rng(0).standard_normal((1, 7, 10, 2)).astype(np.float32)
    maps = feature_pyramid(features, 4)
    assert [level.shape[1:3] for level in maps] == [(7, 10), (3, 5), (1, 2), (0, 1)]
    np.testing.assert_allclose(maps[1][0, 2, 4], features[0, 4:6, 8:10].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(maps[2][0, 0, 1], features[0, :4, 4:8].mean((0, 1)), rtol=1e-5, atol=1e-7)


def test_pooled_features_give_pooled_correlation():
    first, second = _maps(2, 6, 9, 16)
    fine, coarse = correlation_volumes(first, feature_pyramid(second, 2))
    pooled = np.asarray(fine)[:, :, :8].reshape(-1, 3, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(coarse, pooled, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [0, 40])
def test_on_demand_lookup_and_gradient_equal_stored(monkeypatch, whole):
    monkeypatch.setattr(correlation, "_CHUNK", 11)  # does not divide the number of pixels
    monkeypatch.setattr(correlation, "_DENSE_PIXELS", whole)  # dense products for no level, or for the small levels
    first, second = _maps(2, 9, 14, 8)
    points = _points(2, 9, 14, 4)
    pull = np.random.default_rng(5).standard_normal((2, 9, 14, 4 * 49)).astype(np.float32)

    def stored(first, second):
        return lookup(correlation_volumes(first, feature_pyramid(second, 4)), points, 3)

    def on_demand(first, second):
        return lookup_on_demand(first, feature_pyramid(second, 4), points, 3)

    made = []
    for read in (stored, on_demand):
        value, back = jax.vjp(jax.jit(read), first, second)
        made.append((value, *back(pull)))
    for a, b in zip(*made, strict=True):
        assert np.abs(np.asarray(a)).max() > 1
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(np.asarray(a)).max())


@pytest.mark.slow
@pytest.mark.parametrize("whole", [0, 10_000])
@pytest.mark.parametrize("training", [False, True])
def test_on_demand_lookup_needs_fraction_of_volume_memory(monkeypatch, whole, training):
    monkeypatch.setattr(correlation, "_CHUNK", 64)
    monkeypatch.setattr(correlation, "_DENSE_PIXELS", whole)

    def read(first, second, points):
        return lookup_on_demand(first, feature_pyramid(second, 4), points, 4)

    def gradient(*args):
        return jax.grad(lambda *a: jnp.square(read(*a)).sum(), (0, 1))(*args)

    shapes = [jax.ShapeDtypeStruct((1, 64, 80, c), jnp.float32) for c in (16, 16, 2)]
    used = jax.jit(gradient if training else read).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    volume = 4 * (64 * 80) ** 2
    assert used < volume / (4 if training else 8)
