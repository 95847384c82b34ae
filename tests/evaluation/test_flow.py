"""Endpoint error and outlier rates against hand-computed values."""

import numpy as np
import pytest

from uvos_jax.evaluation.flow import endpoint_error, flow_scores


def test_endpoint_error_is_the_euclidean_distance():
    truth = np.zeros((2, 1, 2, 2), np.float32)
    truth[1, 0, 0] = 1, -2
    flow = np.zeros_like(truth)
    flow[0, 0, 0] = 3, -4
    flow[1, 0, 1] = -6, 8
    np.testing.assert_allclose(endpoint_error(flow, truth), [[[5, 0]], [[5**0.5, 10]]], rtol=1e-12)


def test_flow_scores_are_mean_epe_and_outlier_rates():
    truth = np.tile(np.float32([2, -1]), (2, 4, 1))
    # An error equal to a threshold is not an outlier.
    offsets = np.float32([[0, 1, 2, 3], [4, 5, 6, 11]])
    scores = flow_scores(truth + offsets[..., None] * np.float32([0, 1]), truth)
    assert scores == {"epe": 4.0, "over_1px": 6 / 8, "over_3px": 4 / 8, "over_5px": 2 / 8}


def test_invalid_pixels_are_ignored():
    truth = np.zeros((1, 3, 2), np.float32)
    flow = np.float32([[[3, 4], [1e9, 0], [0, 0]]])
    scores = flow_scores(flow, truth, np.array([[True, False, True]]))
    assert scores == {"epe": 2.5, "over_1px": 0.5, "over_3px": 0.5, "over_5px": 0.0}
    assert all(np.isnan(value) for value in flow_scores(flow, truth, np.zeros((1, 3), bool)).values())


def test_mismatched_shapes_are_errors():
    with pytest.raises(ValueError, match="must have the same shape"):
        endpoint_error(np.zeros((2, 3, 2)), np.zeros((2, 1, 2)))
    with pytest.raises(ValueError, match="must have the same shape"):
        endpoint_error(np.zeros((2, 3)), np.zeros((2, 3)))
