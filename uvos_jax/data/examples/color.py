"""Random changes of brightness, contrast, color and sharpness, each as Pillow's ``ImageEnhance`` defines it.

Every change mixes the image with a plain version of it: ``plain + factor * (image - plain)``, cut off to 0..255 and
rounded down. A factor of 1 changes nothing, 0 gives the plain version, more than 1 exaggerates.
"""

import cv2
import numpy as np

from uvos_jax.config_schema import boolean, interval, optional

# Rounds down rather than to nearest, with OpenCV's rounding; results a whisker below an integer go up to it.
_DOWN = -0.499
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def jitter(image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
    """Applies changes in the order brightness, contrast, color, sharpness.

    Args:
        image: uint8 [h, w, 3], RGB.
        factors: Some of these four names with a factor of 0 or more.

    Returns:
        uint8 [h, w, 3].
    """
    for name, change in CHANGES.items():
        if name in factors:
            image = change(image, factors[name])
    return image


def draw(rng: np.random.Generator, ranges: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Draws factors, uniform in their ranges.

    Args:
        rng: Random numbers.
        ranges: ``{name: (smallest, largest)}``; DPA has brightness and contrast 0.5 to 1.5, color 0 to 2, sharpness
            0 to 3.
    """
    return {name: rng.uniform(*ranges[name]) for name in CHANGES if name in ranges}


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Mixes with black."""
    return _mix_levels(image, 0, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Mixes with the mean of its own gray levels."""
    return _mix_levels(image, int(_gray(image).mean() + 0.5), factor)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Mixes with its gray version."""
    return _mix(image, cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB), factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Mixes with a version smoothed over 3x3 pixels; the outermost pixels are not smoothed."""
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
    """As ``_mix`` with one plain level, by a table of all levels."""
    levels = plain + factor * (np.arange(256) - plain)
    return cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))
