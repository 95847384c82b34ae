"""Optical flow as network input: color wheel, resizing, warping and camera motion."""


import cv2
import jax
import numpy as np
import pytest

from tests.helpers.paths import GOLDEN
from uvos_jax.ops.optical_flow import flow_to_rgb, percentile, resize_flow, subtract_camera, warp


@pytest.fixture(scope="module")
def wheel_file():
    with np.load(GOLDEN / "flow_to_rgb.npz") as file:
        return dict(file)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_color_wheel_equals_published_code(wheel_file, number):
    drawn = jax.jit(flow_to_rgb)(wheel_file[f"flow{number}"])
    np.testing.assert_array_equal(np.asarray(drawn), wheel_file[f"rgb{number}"])


def test_vectors_beyond_radius_are_darker(wheel_file):
    np.testing.assert_array_equal(np.asarray(flow_to_rgb(wheel_file["unnorm_uv"], 4.0)), wheel_file["unnorm_rgb"])


@pytest.mark.slow
def test_flow_fields_of_batch_are_scaled_independently(wheel_file):
    flow = wheel_file["flow1"]
    drawn = np.asarray(flow_to_rgb(np.stack([flow, 100 * flow])))
    np.testing.assert_array_equal(drawn[0], wheel_file["rgb1"])
    assert np.abs(drawn[1] - drawn[0]).max() <= 1  # the 1e-5 in the denominator matters less at the larger radius


@pytest.mark.parametrize("n", [1, 2, 7, 778])
@pytest.mark.parametrize("share", [0, 33.3, 50, 99, 100])
def test_percentile_equals_numpy(n, share):
    x = np.random.default_rng(n).random((3, n), np.float32) ** 8
    x[0, ::2] = 0  # ties
    x[1] *= np.logspace(-30, 30, n, dtype=np.float32)
    np.testing.assert_allclose(jax.jit(percentile, static_argnums=1)(x, share), np.percentile(x, share, axis=-1),
                               rtol=2e-6)


def test_warp_equals_opencv_remap():
    rng = np.random.default_rng(0)
    maps, flow = rng.random((9, 12, 3), np.float32), rng.normal(0, 4, (9, 12, 2)).astype(np.float32)
    flow[0, 0], flow[8, 11], flow[4, 4] = 0, 0, [1, -2]
    y, x = np.mgrid[:9, :12].astype(np.float32)
    expected = cv2.remap(maps, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    found = np.asarray(jax.jit(warp)(maps, flow))
    # OpenCV rounds coordinates to 1/32 of a pixel.
    np.testing.assert_allclose(found, expected, atol=0.07)
    assert np.abs(found - expected).mean() < 0.01
    for row, column, source in ((0, 0, (0, 0)), (8, 11, (8, 11)), (4, 4, (2, 5))):
        np.testing.assert_allclose(found[row, column], maps[source], rtol=1e-6)
    halves = np.asarray(jax.jit(warp)(maps, np.full((9, 12, 2), 0.5, np.float32)))
    np.testing.assert_allclose(halves[:-1, :-1], (maps[:-1, :-1] + maps[1:, :-1] + maps[:-1, 1:] + maps[1:, 1:]) / 4,
                               rtol=1e-5)


def test_zero_flow_is_white():
    assert (np.asarray(flow_to_rgb(np.zeros((1, 4, 5, 2), np.float32))) == 255).all()


@pytest.mark.parametrize("size", [(24, 40), (6, 10), (24, 10), (12, 20)])
def test_resized_zoom_flow_equals_zoom_at_new_size(size):
    def zoom(h, w):
        y, x = np.meshgrid(np.arange(h) + 0.5 - h / 2, np.arange(w) + 0.5 - w / 2, indexing="ij")
        return np.stack([0.1 * x, 0.1 * y], -1)[None].astype(np.float32)

    resized = np.asarray(resize_flow(zoom(12, 20), size))
    inner = (slice(None), slice(2, -2), slice(2, -2))  # interpolation clamps at the borders
    np.testing.assert_allclose(resized[inner], zoom(*size)[inner], atol=1e-5)


def _plane_seen_by_a_moving_camera(h, w, seed):
    """Exact first-order flow of a plane in aspect-corrected coordinates: eight parameters."""
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w) * (w / h), indexing="ij")
    a = np.random.default_rng(seed).uniform(-3, 3, 8)
    return np.stack([a[0] + a[1] * x + a[2] * y + a[6] * x * x + a[7] * x * y,
                     a[3] + a[4] * x + a[5] * y + a[6] * x * y + a[7] * y * y], -1).astype(np.float32)


def test_subtract_camera_keeps_object_motion():
    flow, objects = [], []
    for seed in range(4):
        camera = _plane_seen_by_a_moving_camera(48, 80, seed)
        own = np.zeros_like(camera)
        own[10 + 3 * seed:30 + 2 * seed, 20:50] = (4 - seed, 3 + seed)  # up to 1/6 of the frame
        flow.append(camera + own)
        objects.append(own)
    left = np.asarray(jax.jit(subtract_camera)(np.stack(flow)))
    np.testing.assert_allclose(left, np.stack(objects), atol=0.02)


@pytest.mark.slow
def test_subtract_camera_removes_camera_motion():
    camera = np.stack([_plane_seen_by_a_moving_camera(33, 57, seed) for seed in range(3)])
    noise = np.random.default_rng(0).normal(0, 0.1, camera.shape).astype(np.float32)
    assert np.abs(np.asarray(subtract_camera(camera))).max() < 0.01
    error = np.asarray(subtract_camera(camera + noise)) - noise
    assert np.sqrt(np.square(error).mean()) < 0.02  # the fit of 8 parameters to 1881 vectors averages out the noise


@pytest.mark.slow
def test_subtract_camera_keeps_zero_flow():
    still = np.zeros((1, 20, 30, 2), np.float32)
    np.testing.assert_allclose(np.asarray(subtract_camera(still)), still, atol=1e-6)
