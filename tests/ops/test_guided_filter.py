"""The guided filter against its per-window definition."""

import jax
import numpy as np
import pytest

from uvos_jax.ops import guided_filter as module
from uvos_jax.ops.guided_filter import box_filter

guided_filter = jax.jit(module.guided_filter, static_argnames=("radius", "step"))


def _by_definition(guide, x, radius, epsilon):
    """Eq. 19 to 21: a linear fit per window, averaged over all windows that contain a pixel."""
    h, w = x.shape
    slopes, starts = np.zeros((h, w, 3)), np.zeros((h, w))
    for i, j in np.ndindex(h, w):
        window = np.s_[max(0, i - radius):i + radius + 1, max(0, j - radius):j + radius + 1]
        colors, values = guide[window].reshape(-1, 3), x[window].ravel()
        spread = np.cov(colors.T, bias=True) + epsilon * np.eye(3)
        slopes[i, j] = np.linalg.solve(spread, ((colors - colors.mean(0)) * values[:, None]).mean(0))
        starts[i, j] = values.mean() - slopes[i, j] @ colors.mean(0)
    out = np.zeros((h, w))
    for i, j in np.ndindex(h, w):
        window = np.s_[max(0, i - radius):i + radius + 1, max(0, j - radius):j + radius + 1]
        out[i, j] = slopes[window].mean((0, 1)) @ guide[i, j] + starts[window].mean()
    return out


@pytest.mark.parametrize(("radius", "epsilon"), [(1, 1e-2), (3, 1e-4), (20, 1e-3)])
def test_equals_definition_in_paper(radius, epsilon):
    rng = np.random.default_rng(radius)
    guide, x = rng.random((13, 17, 3), np.float32), rng.random((13, 17), np.float32)
    expected = _by_definition(guide.astype(float), x.astype(float), radius, epsilon)
    np.testing.assert_allclose(guided_filter(guide, x, radius=radius, epsilon=epsilon), expected, atol=2e-5)


@pytest.mark.slow
def test_sharpens_blurred_edge_and_keeps_constant_mask():
    guide = np.full((48, 64, 3), 0.2, np.float32)
    guide[:, 30:] = [0.9, 0.5, 0.3]
    truth = (np.arange(64) >= 30) * np.ones((48, 1))
    blurred = np.clip((np.arange(64) - 24) / 11, 0, 1) * np.ones((48, 1), np.float32)
    blurred = blurred.astype(np.float32)
    for step in (1, 4):
        filtered = np.asarray(guided_filter(guide, blurred, radius=12 // step, epsilon=1e-4, step=step))
        assert ((filtered > 0.5) == truth).all(), step
        assert np.abs(filtered - truth).max() < 0.3
    level = np.full((48, 64), 0.7, np.float32)
    np.testing.assert_allclose(guided_filter(guide, level, radius=3, epsilon=1e-4, step=4), level, atol=1e-6)


@pytest.mark.slow
def test_subsampled_filter_approximates_exact_filter():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :96]
    guide = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1).astype(np.float32) / 2 + 0.5
    guide += rng.normal(0, 0.01, guide.shape).astype(np.float32)
    mask = ((x - 50) ** 2 + (y - 30) ** 2 < 400).astype(np.float32)
    exact = guided_filter(guide, mask, radius=8, epsilon=1e-3)
    coarse = guided_filter(guide, mask, radius=4, epsilon=1e-3, step=2)
    assert np.abs(exact - coarse).mean() < 0.02 < np.abs(exact - mask).mean()


@pytest.mark.parametrize("radius", [0, 1, 3, 9])
def test_box_filter_windows_are_clipped_at_border(radius):
    maps = np.random.default_rng(radius).random((2, 5, 8), np.float32)
    found = np.asarray(jax.jit(box_filter, static_argnums=1)(maps, radius))
    for i, j in np.ndindex(5, 8):
        window = np.s_[:, max(0, i - radius):i + radius + 1, max(0, j - radius):j + radius + 1]
        np.testing.assert_allclose(found[:, i, j], maps[window].mean((1, 2)), rtol=1e-5)
