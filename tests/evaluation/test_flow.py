"""Endpoint error and outliers, against numbers worked out by hand."""

import numpy as np
import pytest

from uvos_jax.evaluation.flow import endpoint_error, flow_scores


def test_the_error_is_the_distance_of_the_vectors():
    truth = np.zeros((2, 1, 2, 2), np.float32)
    truth[1, 0, 0] = 1, -2
    flow = np.zeros_like(truth)
    flow[0, 0, 0] = 3, -4
    flow[1, 0, 1] = -6, 8
    np.testing.assert_allclose(endpoint_error(flow, truth), [[[5, 0]], [[5**0.5, 10]]], rtol=1e-12)


def test_scores_are_the_mean_and_the_shares_beyond_1_3_and_5_pixels():
    truth = np.tile(np.float32([2, -1]), (2, 4, 1))
    # Exactly on a limit is not beyond it.
    offsets = np.float32([[0, 1, 2, 3], [4, 5, 6, 11]])
    scores = flow_scores(truth + offsets[..., None] * np.float32([0, 1]), truth)
    assert scores == {"epe": 4.0, "over_1px": 6 / 8, "over_3px": 4 / 8, "over_5px": 2 / 8}


def test_pixels_without_truth_do_not_count():
    truth = np.zeros((1, 3, 2), np.float32)
    flow = np.float32([[[3, 4], [1e9, 0], [0, 0]]])
    scores = flow_scores(flow, truth, np.array([[True, False, True]]))
    assert scores == {"epe": 2.5, "over_1px": 0.5, "over_3px": 0.5, "over_5px": 0.0}
    assert all(np.isnan(value) for value in flow_scores(flow, truth, np.zeros((1, 3), bool)).values())


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must have the same shape"):
        endpoint_error(np.zeros((2, 3, 2)), np.zeros((2, 1, 2)))
    with pytest.raises(ValueError, match="must have the same shape"):
        endpoint_error(np.zeros((2, 3)), np.zeros((2, 3)))
