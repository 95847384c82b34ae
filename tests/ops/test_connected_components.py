"""Connected components and hole filling against OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.connected_components import fill_holes, label_components


@pytest.mark.parametrize("density", [0.3, 0.45, 0.6, 0.9])
def test_components_and_filled_holes_equal_opencv(density):
    mask = np.random.default_rng(0).random((40, 61)) < density
    count, expected = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    labels = np.asarray(jax.jit(label_components)(mask))
    pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == count == len({label for label, _ in pairs}) == len({label for _, label in pairs})
    assert all(labels.ravel()[label - 1] == label for label, _ in pairs if label)
    filled = np.zeros(mask.shape, np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    np.testing.assert_array_equal(np.asarray(jax.jit(fill_holes)(mask)), filled > 0)


def test_serpentine_component_has_one_label():
    mask = np.zeros((33, 41), bool)
    mask[::4] = True
    mask[1::8, -1] = mask[2::8, -1] = mask[3::8, -1] = True
    mask[5::8, 0] = mask[6::8, 0] = mask[7::8, 0] = True
    assert len(np.unique(np.asarray(label_components(jnp.asarray(mask))))) == 2
