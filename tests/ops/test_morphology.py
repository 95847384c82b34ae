"""Binary morphology against loops and OpenCV."""

import cv2
import numpy as np
import pytest

from uvos_jax.ops.morphology import dilate, erode, opening


def _blobs(size, seed):
    """Random mask of rectangles and single pixels, some at borders and corners."""
    rng = np.random.default_rng(seed)
    mask = rng.random(size) > 0.999
    for _ in range(6):
        y, x = (rng.integers(-12, n) for n in size)
        mask[max(y, 0):max(y + rng.integers(2, 34), 0), max(x, 0):max(x + rng.integers(2, 34), 0)] = True
    mask[0, -1] = mask[-1, 0] = True
    return mask


@pytest.mark.parametrize("side", [3, 15, 101])
@pytest.mark.parametrize("seed", [0, 1])
def test_morphology_equals_opencv(side, seed):
    mask = _blobs((90, 131), seed)
    square = np.ones((side, side), np.uint8)
    theirs = mask.astype(np.uint8)
    np.testing.assert_array_equal(dilate(mask, side), cv2.dilate(theirs, square) > 0)
    np.testing.assert_array_equal(erode(mask, side), cv2.erode(theirs, square) > 0)
    np.testing.assert_array_equal(opening(mask, side), cv2.morphologyEx(theirs, cv2.MORPH_OPEN, square) > 0)


@pytest.mark.parametrize("side", [1, 3, 5, 7, 9])
def test_dilation_and_erosion_equal_loops(side):
    mask = np.random.default_rng(side).random((6, 8)) > 0.7
    r = side // 2
    around = [[mask[max(i - r, 0):i + r + 1, max(j - r, 0):j + r + 1] for j in range(8)] for i in range(6)]
    np.testing.assert_array_equal(dilate(mask, side), [[a.any() for a in row] for row in around])
    np.testing.assert_array_equal(erode(mask, side), [[a.all() for a in row] for row in around])


def test_opening_removes_parts_thinner_than_kernel():
    mask = np.zeros((20, 20), bool)
    mask[2:4, 2:12] = True  # two pixels thin
    mask[8:15, 5:11] = True
    opened = np.asarray(opening(mask, 5))
    assert not opened[:6].any()
    np.testing.assert_array_equal(opened[8:], mask[8:])
    np.testing.assert_array_equal(opening(opened, 5), opened)


def test_full_and_empty_masks_are_unchanged():
    for value in (False, True):
        mask = np.full((4, 5), value)
        for form in (dilate, erode, opening):
            np.testing.assert_array_equal(form(mask, 15), mask)


def test_leading_axes_are_batch_axes():
    masks = np.stack([_blobs((12, 17), s) for s in range(3)])[:, None]
    whole = np.asarray(dilate(masks, 5))
    for i in range(3):
        np.testing.assert_array_equal(whole[i, 0], dilate(masks[i, 0], 5))


def test_even_side_raises():
    for form in (dilate, erode, opening):
        with pytest.raises(ValueError, match="odd"):
            form(np.zeros((3, 3), bool), 4)
