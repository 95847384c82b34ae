"""Color histograms against their per-pixel definition."""

import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.color_models import color_bins, color_histogram, log_odds


def test_bins_match_definition_and_stay_in_range():
    picture = np.random.default_rng(1).random((20, 30, 3), np.float32)
    picture[0, :4] = [(0, 0, 0), (1, 1, 1), (0, 0, 1), (1 / 8, 2 / 8, 3 / 8)]
    cells = np.minimum(np.floor(picture * 8), 7).astype(int)
    found = color_bins(jnp.asarray(picture), 8)
    np.testing.assert_array_equal(found, (cells[..., 0] * 8 + cells[..., 1]) * 8 + cells[..., 2])
    assert found[0, :4].tolist() == [0, 511, 7, 64 + 16 + 3]


@pytest.mark.slow
def test_histogram_equals_sum_of_smoothed_votes():
    rng, bins = np.random.default_rng(2), 4
    indices, weights = rng.integers(0, bins**3, (5, 7)), rng.random((5, 7))
    expected = np.zeros((bins + 2,) * 3)
    for index, weight in zip(indices.ravel(), weights.ravel(), strict=True):
        cell = np.array(np.unravel_index(index, (bins,) * 3)) + 1
        for offset in np.ndindex(3, 3, 3):
            expected[tuple(cell + offset - 1)] += weight * np.prod([(0.25, 0.5, 0.25)[o] for o in offset])
    expected = expected[1:-1, 1:-1, 1:-1].ravel()  # votes outside the histogram are dropped
    found = color_histogram(jnp.asarray(indices), jnp.asarray(weights, jnp.float32), bins)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_log_odds_use_normalized_histograms():
    first, second = jnp.array([3.0, 1.0, 0.0, 0.0]), jnp.array([1.0, 1.0, 2.0, 0.0]) * 50
    found = np.asarray(log_odds(first, second, 1e-4))
    np.testing.assert_allclose(found[:2], [np.log(3), 0], atol=1e-3)
    assert found[2] < -8 and found[3] == 0
    np.testing.assert_allclose(log_odds(second, first, 1e-4), -found, atol=1e-6)
    assert not np.asarray(log_odds(jnp.zeros(4), jnp.zeros(4), 1e-4)).any()
