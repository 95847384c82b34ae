"""Average pooling over squares and its bilinear inverse."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.pooling import average_pool, average_unpool


@pytest.mark.parametrize("shape", [(12, 18), (12, 18, 3), (13, 20, 2), (1, 1), (4, 7)])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_average_pool_is_mean_with_edge_padding(shape, step):
    x = np.random.default_rng(0).random(shape, np.float32)
    found = np.asarray(average_pool(jnp.asarray(x), step))
    rows, columns = -(-shape[0] // step), -(-shape[1] // step)
    assert found.shape == (rows, columns, *shape[2:])
    for i, j in np.ndindex(rows, columns):
        ys = np.minimum(np.arange(i * step, (i + 1) * step), shape[0] - 1)
        xs = np.minimum(np.arange(j * step, (j + 1) * step), shape[1] - 1)
        np.testing.assert_allclose(found[i, j], x[ys][:, xs].mean((0, 1)), rtol=1e-5)


def test_average_unpool_is_bilinear_without_shift():
    small = np.random.default_rng(1).random((5, 7), np.float32)
    expected = cv2.resize(small, (21, 15), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(average_unpool(jnp.asarray(small), 3, (15, 21)), expected, atol=1e-6)
    maps = jnp.asarray(np.stack([small, 1 - small]))
    np.testing.assert_allclose(average_unpool(maps, 3, (14, 19))[0], expected[:14, :19], atol=1e-6)
    # A ramp is reproduced except within half a square of the border, where values are clamped.
    ramp = np.linspace(0, 1, 40, dtype=np.float32) * np.ones((30, 1), np.float32)
    again = average_unpool(average_pool(jnp.asarray(ramp), 4), 4, (30, 40))
    np.testing.assert_allclose(again[:, 2:-2], ramp[:, 2:-2], atol=1e-6)
