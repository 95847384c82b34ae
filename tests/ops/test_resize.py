"""Resizing against loops over the coordinate rules, PyTorch and OpenCV."""

import math

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.resize import (
    multiply_banded,
    resize_bicubic,
    resize_bilinear,
    resize_matrix,
    resize_nearest,
    resize_uint8_as_opencv,
    resize_uint8_as_pillow,
)

# (input, output): upscaling, downscaling, mixed, one axis kept, from one pixel, to one pixel.
SIZES = [
    ((4, 5), (9, 11)),
    ((9, 7), (4, 3)),
    ((3, 8), (7, 5)),
    ((6, 6), (6, 3)),
    ((1, 6), (4, 3)),
    ((5, 4), (1, 1)),
    ((2, 2), (16, 3)),
]


def _image(size, channels=2, seed=0):
    return np.random.default_rng(seed).standard_normal((*size, channels)).astype(np.float32)


def _coordinate(i, n_in, n_out, align_corners):
    if align_corners:
        return i * (n_in - 1) / (n_out - 1) if n_out > 1 else 0.0
    return (i + 0.5) * n_in / n_out - 0.5


def _tent(distance):
    return max(0.0, 1 - abs(distance))


def _keys(distance, a=-0.75):
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _resize_by_loops(x, size, align_corners, kernel, reach):
    """Weighted sum of pixels within ``reach`` of the source coordinate, clamped to the image."""
    (h, w), out = x.shape[:2], np.zeros((*size, x.shape[2]))
    for i in range(size[0]):
        for j in range(size[1]):
            y, z = _coordinate(i, h, size[0], align_corners), _coordinate(j, w, size[1], align_corners)
            for p in range(math.floor(y) - reach + 1, math.floor(y) + reach + 1):
                for q in range(math.floor(z) - reach + 1, math.floor(z) + reach + 1):
                    pixel = x[min(max(p, 0), h - 1), min(max(q, 0), w - 1)]
                    out[i, j] += kernel(y - p) * kernel(z - q) * pixel.astype(np.float64)
    return out


@pytest.mark.parametrize(("size", "new"), SIZES)
def test_nearest_equals_loops(size, new):
    x = _image(size)
    expected = np.array([[x[i * size[0] // new[0], j * size[1] // new[1]] for j in range(new[1])]
                         for i in range(new[0])])
    np.testing.assert_array_equal(resize_nearest(x, new), expected)


def test_nearest_with_aligned_corners_samples_like_bilinear():
    column = np.arange(97, dtype=np.float32)[:, None, None]
    picked = resize_nearest(column, (25, 1), align_corners=True)
    np.testing.assert_array_equal(picked, resize_bilinear(column, (25, 1), align_corners=True))  # every fourth pixel
    # Multiples of 239 / 32 fall between pixels: the nearest pixel is taken, the last one at the end.
    picked = np.asarray(resize_nearest(np.arange(240)[:, None, None], (33, 1), align_corners=True))[:, 0, 0]
    np.testing.assert_array_equal(picked, np.round(np.linspace(0, 239, 33)))
    np.testing.assert_array_equal(resize_nearest(column, (1, 1), align_corners=True), column[:1])


@pytest.mark.slow
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size", "new"), SIZES)
def test_bilinear_equals_loops(size, new, align_corners):
    x = _image(size)
    expected = _resize_by_loops(x, new, align_corners, _tent, 1)
    np.testing.assert_allclose(resize_bilinear(x, new, align_corners=align_corners), expected, atol=1e-6)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size", "new"), SIZES)
def test_bicubic_equals_loops(size, new, align_corners):
    x = _image(size)
    expected = _resize_by_loops(x, new, align_corners, _keys, 2)
    np.testing.assert_allclose(resize_bicubic(x, new, align_corners=align_corners), expected, atol=2e-6)


def test_leading_axes_are_batch_axes():
    x = np.stack([_image((4, 5), seed=s) for s in range(6)]).reshape(2, 3, 4, 5, 2)
    for resize in (resize_nearest, lambda x, s: resize_bicubic(x, s, align_corners=False)):
        whole = np.asarray(resize(x, (7, 3)))
        assert whole.shape == (2, 3, 7, 3, 2)
        np.testing.assert_allclose(whole[1, 2], resize(x[1, 2], (7, 3)), atol=1e-6)


def test_resize_to_same_size_is_identity():
    x = _image((5, 6))
    np.testing.assert_array_equal(resize_bilinear(x, (5, 6), align_corners=False), x)
    np.testing.assert_array_equal(resize_bicubic(x, (5, 6), align_corners=True), x)


@pytest.mark.parametrize("resize", [resize_bilinear, resize_bicubic])
def test_integer_input_gives_float32_output(resize):
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    out = resize(x, (6, 9), align_corners=False)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, resize(x.astype(np.float32), (6, 9), align_corners=False))


@pytest.mark.parametrize("resize", [resize_bilinear, resize_bicubic])
def test_bfloat16_is_preserved_but_computed_in_float32(resize):
    x = jnp.asarray(_image((4, 5)), jnp.bfloat16)
    out = resize(x, (13, 9), align_corners=True)
    assert out.dtype == jnp.bfloat16
    expected = resize(x.astype(jnp.float32), (13, 9), align_corners=True).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out.astype(jnp.float32), expected.astype(jnp.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.bool_])
def test_nearest_preserves_dtype(dtype):
    x = (np.arange(20).reshape(4, 5, 1) % 2).astype(dtype)
    out = resize_nearest(x, (3, 11))
    assert out.dtype == dtype
    np.testing.assert_array_equal(np.asarray(out)[:, :, 0], x[[0, 1, 2]][:, np.arange(11) * 5 // 11, 0])


@pytest.mark.parametrize(
    ("native", "size"),
    [((48, 85), (57, 97)), ((60, 90), (33, 49)), ((108, 192), (49, 89)), ((480, 854), (481, 857)), ((9, 7), (9, 30)),
     ((5, 9), (11, 9)), ((1, 4), (3, 9)), ((6, 8), (6, 8))],
)
def test_uint8_resize_is_bit_exact_with_opencv(native, size):
    frame = np.random.default_rng(1).integers(0, 256, (*native, 3), np.uint8)
    ours = np.asarray(resize_uint8_as_opencv(jnp.asarray(frame)[None], size))[0]
    theirs = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(ours, theirs)


def test_uint8_resize_is_within_one_level_of_exact_interpolation():
    frame = np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)
    exact = np.asarray(resize_bilinear(frame, (73, 105), align_corners=False))
    assert np.abs(np.asarray(resize_uint8_as_opencv(frame, (73, 105))) - exact).max() <= 1


@pytest.mark.parametrize(("native", "size"), [((96, 171), (64, 64)), ((40, 52), (64, 96)), ((37, 64), (37, 29))])
def test_uint8_resize_equals_pillow(native, size):
    Image = pytest.importorskip("PIL.Image")
    frame = np.random.default_rng(0).integers(0, 256, (*native, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR)).astype(np.float32)
    ours = np.asarray(resize_uint8_as_pillow(frame[None], size))[0]
    # Fixed-point weights may round exact halves in the other direction.
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01


def test_resize_matrix_equals_hand_computed_weights():
    np.testing.assert_array_equal(resize_matrix(2, 3, "bilinear", align_corners=True), [[1, 0], [0.5, 0.5], [0, 1]])
    # Halfway between pixels the four taps are -3, 19, 19 and -3 over 32; taps beyond the border use the edge pixel.
    np.testing.assert_allclose(32 * resize_matrix(4, 7, "bicubic", align_corners=True)[[1, 3, 5]],
                               [[16, 19, -3, 0], [-3, 19, 19, -3], [0, -3, 19, 16]])


@pytest.mark.parametrize("sizes", [(5, 12), (300, 140), (150, 290), (1, 129)])
def test_banded_product_equals_dense_product(sizes):
    x = np.random.default_rng(0).random((3, 2, sizes[0]), np.float32)
    matrix = resize_matrix(*sizes, "bicubic", align_corners=False)
    expected = x.astype(float) @ matrix.T
    np.testing.assert_allclose(multiply_banded(jnp.asarray(x), matrix), expected, atol=1e-6)
