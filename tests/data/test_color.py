"""Color augmentation against Pillow's ImageEnhance."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from uvos_jax.data.examples import color as color
from uvos_jax.data.examples.sampling import generator

PILLOW = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "color": ImageEnhance.Color,
          "sharpness": ImageEnhance.Sharpness}


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (7, 9, 3)).astype(np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)
    return np.concatenate([smooth, rng.integers(0, 256, (48, 16, 3)).astype(np.uint8)], axis=1)


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("factor", [0.0, 0.37, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_jitter_equals_pillow(image, name, factor):
    ours = color.jitter(image, {name: factor})
    theirs = np.asarray(PILLOW[name](Image.fromarray(image)).enhance(factor))
    difference = np.abs(ours.astype(int) - theirs)
    # One level for rounding; the factor amplifies a different rounding of the degenerate image.
    assert difference.max() <= max(1, np.ceil(abs(1 - factor))), difference.max()
    assert (difference > 0).mean() < 0.02


def test_color_operations_are_applied_in_order(image):
    factors = {"sharpness": 1.7, "brightness": 0.8, "color": 1.4, "contrast": 1.2}
    theirs = Image.fromarray(image)
    for name in ("brightness", "contrast", "color", "sharpness"):
        theirs = PILLOW[name](theirs).enhance(factors[name])
    assert np.abs(color.jitter(image, factors).astype(int) - np.asarray(theirs)).mean() < 0.2
    np.testing.assert_array_equal(color.jitter(image, {}), image)


def test_factors_are_drawn_within_their_ranges():
    ranges = {"contrast": (0.5, 1.5), "sharpness": (0, 3)}
    drawn = [color.draw(generator(seed), ranges) for seed in range(400)]
    assert all(set(factors) == set(ranges) for factors in drawn)
    for name, (low, high) in ranges.items():
        values = np.array([factors[name] for factors in drawn])
        assert low <= values.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.06 * (high - low)
