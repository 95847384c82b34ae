"""Looking at results: objects drawn onto the frames."""

import cv2
import numpy as np

from uvos_jax.video.look import PLAIN, Look
from uvos_jax.video.masks import PALETTE, VOID

# Below this many rows a contour of one pixel is enough to be seen.
_ROWS_OF_THIN_CONTOUR = 720
# A blurred frame has no detail that needs more pixels than this on its longer side.
_BLURRED_SIDE = 320
# A window of this part of the longer side leaves no face and no writing to be recognised.
_BLUR_PART = 12


def draw_overlay(image: np.ndarray, labels: np.ndarray, look: Look = PLAIN, palette: np.ndarray = PALETTE
                 ) -> np.ndarray:
    """Tints the objects of a frame, each in the brightened colour of its label, and outlines them.

    Args:
        image: uint8 [h, w, 3], RGB.
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, which is drawn as background.
        look: Tint, outline and background.
        palette: uint8 [256, 3], RGB.

    Returns:
        uint8 [h, w, 3], a new array.

    Raises:
        ValueError: The labels have another size than the image.
    """
    objects = objects_only(image, labels)
    overlay = _background(image, objects, look.background)
    colours = cv2.LUT(cv2.merge([objects] * 3), _brightened(palette)[None])
    cv2.copyTo(cv2.addWeighted(image, 1 - look.alpha, colours, look.alpha, 0), objects, overlay)
    width = look.contour
    if width is None:
        width = 1 if image.shape[0] < _ROWS_OF_THIN_CONTOUR else 2
    if width:
        # A pixel lies on a contour if a neighbour has another label. The contour is drawn inside the object.
        window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        contour = cv2.compare(cv2.dilate(objects, window), cv2.erode(objects, window), cv2.CMP_NE)
        cv2.copyTo(colours, cv2.bitwise_and(contour, objects), overlay)
    return overlay


def _brightened(palette: np.ndarray) -> np.ndarray:
    """Stretches a palette, which is dark (label 1 is half red), by a curve that keeps its colours apart."""
    return np.round(255 * (palette / max(palette.max(), 1)) ** 0.4).clip(0, 255).astype(np.uint8)


def objects_only(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns a copy of labels as uint8 [h, w] with void as background.

    Raises:
        ValueError: The labels have another size than the image [h, w, 3].
    """
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels {list(labels.shape)} do not fit an image {list(image.shape)}")
    objects = labels.astype(np.uint8)
    objects[objects == VOID] = 0
    return objects


def _background(image: np.ndarray, objects: np.ndarray, kind: str | tuple[int, int, int] | None) -> np.ndarray:
    """Returns a new frame to draw the objects onto, see ``Look``."""
    if kind is None:
        return image.copy()
    if kind == "grey":
        return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if kind == "blur":
        return _blurred(image, objects)
    return np.full_like(image, kind)


def _blurred(image: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Blurs what is around the objects; their own colours stay out of it, or they would seem to glow."""
    outside = np.uint8(255) * (objects == 0)
    height, width = outside.shape
    shrink = max(1, max(height, width) / _BLURRED_SIDE)
    small = max(1, round(width / shrink)), max(1, round(height / shrink))
    window = (max(small) // _BLUR_PART | 1,) * 2  # it has to be odd
    colours, weights = (
        cv2.stackBlur(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA).astype(np.float32), window)
        for pixels in (cv2.copyTo(image, outside, np.zeros_like(image)), outside)
    )
    mean = 255 * colours / np.maximum(weights, 1e-3)[..., None]
    return cv2.resize(mean.round().clip(0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
