"""Bounding boxes against brute force, crops against OpenCV and NumPy in float64."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.crops import bounding_boxes, crop_and_resize, expand_boxes, object_crops

# y0, x0, y1, x1: upscaled, downscaled on both axes or on one, one row, one pixel, the whole image.
BOXES = np.array([[3, 5, 20, 31], [0, 2, 60, 90], [10, 40, 12, 88], [59, 0, 60, 90], [7, 9, 8, 10], [0, 0, 60, 90]])

_crops = jax.jit(crop_and_resize, static_argnums=2)
_context = jax.jit(expand_boxes, static_argnums=(1, 2))


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Boxes


@pytest.mark.parametrize(("count", "dtype"), [(3, np.uint8), (40, np.int32), (64, np.int32)])
def test_boxes_equal_brute_force(count, dtype):
    rng = np.random.default_rng(count)
    labels = np.zeros((25, 40), dtype)
    for k in range(1, count + 1):
        if k % 3:  # every third object is empty; later objects may cover earlier ones
            y, x = rng.integers(0, 22), rng.integers(0, 34)
            labels[y:y + rng.integers(1, 6), x:x + rng.integers(1, 9)] = k
    labels[20:, :7] = 255  # no object: void in uint8 labels, otherwise an id beyond the last object
    if dtype == np.int32:
        labels[:4, 30:] = -1
    boxes, present = jax.jit(bounding_boxes, static_argnums=1)(labels, count)
    assert boxes.shape == (count, 4) and boxes.dtype == jnp.float32
    for k in range(count):
        y, x = np.nonzero(labels == k + 1)
        assert present[k] == (len(y) > 0)
        expected = [y.min(), x.min(), y.max() + 1, x.max() + 1] if len(y) else [0, 0, 0, 0]
        assert boxes[k].tolist() == expected


@pytest.mark.parametrize(("box", "factor", "expected"), [
    ((10, 20, 30, 60), 1.2, (8, 16, 32, 64)),  # the center is kept where there is room
    ((0, 1, 20, 11), 1.2, (0, 0, 24, 12)),  # at the top left border the sides keep their length
    ((90, 80, 100, 100), 1.2, (89, 78, 100, 100)),  # at the bottom right border they are clipped
    ((10, 12, 16, 18), 1.5, (8, 10, 17, 19)),  # 8.5 and 10.5 round to even, sides 9
    ((40, 50, 41, 51), 1.2, (40, 50, 41, 51)),  # a single pixel is not enlarged
    ((5, 6, 17, 40), 1.0, (5, 6, 17, 40)),
    ((0, 0, 0, 0), 1.2, (0, 0, 0, 0)),
])
def test_expanded_boxes_equal_hand_computed_values(box, factor, expected):
    assert _context(jnp.array([box], jnp.float32), (100, 100), factor)[0].tolist() == list(expected)


# Crops


@pytest.mark.parametrize("size", [(128, 128), (20, 33)])
def test_crops_equal_opencv(size):
    image = _noise(60, 90, 3)
    crops = _crops(image, BOXES.astype(np.float32), size)
    assert crops.shape == (len(BOXES), *size, 3) and crops.dtype == jnp.float32
    for crop, (y0, x0, y1, x1) in zip(crops, BOXES, strict=True):
        theirs = cv2.resize(image[y0:y1, x0:x1], size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(crop, theirs, atol=1e-4)


def test_crops_of_large_images_are_exact():
    """The coordinates are large enough that float32 would be off by 1e-4 pixels."""
    image, (x0, x1) = _noise(1, 1600, 1, seed=1), (301, 1598)
    source = np.clip((np.arange(128) + 0.5) * (x1 - x0) / 128 - 0.5, 0, x1 - x0 - 1)
    expected = np.interp(source, np.arange(x1 - x0), image[0, x0:x1, 0].astype(np.float64))
    crop = _crops(image, np.array([[0, x0, 1, x1]], np.float32), (1, 128))
    np.testing.assert_allclose(crop[0, 0, :, 0], expected, atol=2e-6)


def test_crops_ignore_pixels_outside_boxes():
    image = np.full((30, 30, 3), np.nan, np.float32)
    image[4:11, 6:29] = 3
    assert (np.asarray(_crops(image, np.array([[4, 6, 11, 29]]), (16, 16))) == 3).all()


def test_object_crops_include_context():
    image, labels = _noise(50, 70, 3, seed=2), np.zeros((50, 70), np.uint8)
    labels[20:30, 10:30] = 2
    crops, boxes, present = jax.jit(object_crops, static_argnums=(2, 3))(image, labels, 3, (32, 32))
    assert present.tolist() == [False, True, False] and boxes[1].tolist() == [20, 10, 30, 30]
    np.testing.assert_allclose(crops[1], cv2.resize(image[19:31, 8:32], (32, 32)), atol=1e-4)
    assert (np.asarray(crops[0]) == image[0, 0]).all()
