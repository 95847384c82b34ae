"""Random changes of brightness, contrast, color and sharpness, as in Pillow's ``ImageEnhance``.

Every change blends the image with a degenerate version of it: ``degenerate + factor * (image - degenerate)``, clipped
to 0..255 and rounded down. A factor of 1 changes nothing, 0 gives the degenerate version, above 1 exaggerates.
"""

import cv2
import numpy as np

from uvos_jax.config_schema import boolean, interval, optional

# Turns OpenCV's rounding to nearest into rounding down; 0.499 and not 0.5, so that integers with float error stay.
_DOWN = -0.499
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def jitter(image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
    """Applies changes in the order brightness, contrast, color, sharpness.

    Args:
        image: uint8 [h, w, 3], RGB.
        factors: Factors of 0 or more, by name of the change.

    Returns:
        uint8 [h, w, 3].
    """
    for name, change in CHANGES.items():
        if name in factors:
            image = change(image, factors[name])
    return image


def draw(rng: np.random.Generator, ranges: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Draws factors uniformly from their ranges.

    Args:
        rng: Random generator.
        ranges: ``{name: (min, max)}``. DPA uses brightness and contrast 0.5 to 1.5, color 0 to 2, sharpness 0 to 3.
    """
    return {name: rng.uniform(*ranges[name]) for name in CHANGES if name in ranges}


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black."""
    return _mix_levels(image, 0, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the mean gray level of the image."""
    return _mix_levels(image, int(_gray(image).mean() + 0.5), factor)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the grayscale image."""
    return _mix(image, cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB), factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a version smoothed over 3x3 pixels; border pixels are not smoothed."""
    plain = image.copy()
    plain[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return _mix(image, plain, factor)


CHANGES = {"brightness": brightness, "contrast": contrast, "color": color, "sharpness": sharpness}
OPTIONS = {name: optional(interval(None, 0, 100)) for name in CHANGES} | {"independent": boolean(False)}


def _gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _mix(image: np.ndarray, plain: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, plain, 1 - factor, _DOWN)


def _mix_levels(image: np.ndarray, plain: int, factor: float) -> np.ndarray:
    """Same as ``_mix`` with a constant degenerate level, computed by a lookup table."""
    levels = plain + factor * (np.arange(256) - plain)
    return cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))
