"""Looking at results: objects drawn onto the frames."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.video.mask_io import PALETTE, VOID

EFFECTS = ("blur", "gray")
_WIDEST_CONTOUR = 100


@dataclass(frozen=True)
class OverlayStyle:
    """How objects are drawn onto a frame, and what becomes of the rest of it.

    Attributes:
        alpha: Weight of the tint, 0 (none) to 1 (the object is of one color).
        contour: Width of the outline in pixels, 0 for none; None chooses by the size of the frame.
        background: What is put behind the objects: None for the frame as it is, "blur" or "gray" for the frame
            blurred or without color, or (red, green, blue), 0..255 each. A color with ``alpha`` and ``contour`` 0
            gives the objects cut out on that color.
    """

    alpha: float = 0.5
    contour: int | None = None
    background: str | tuple[int, int, int] | None = None


DEFAULT_STYLE = OverlayStyle()


def overlay_style(alpha: float = DEFAULT_STYLE.alpha, contour: int | None = None, background: str | None = None) -> OverlayStyle:
    """Makes a ``OverlayStyle`` of what was written on a command line.

    Args:
        alpha: 0 to 1.
        contour: 0 to 100 pixels; None chooses by the size of the frame.
        background: "blur", "gray" (or "grey"), "0,255,0", "#00ff00" or any other color that CSS has a form for; None
            or "" keeps the frame. For the plain color gray write "#808080".

    Raises:
        UserError: One of them is out of range or means nothing.
    """
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise UserError(f"alpha is the strength of the tint, from 0 (none) to 1 (solid); got {alpha:g}.")
    if contour is not None and not 0 <= contour <= _WIDEST_CONTOUR:
        raise UserError(f"contour is a width of 0 (none) to {_WIDEST_CONTOUR} pixels; got {contour}.")
    return OverlayStyle(float(alpha), contour, _background_of(background.strip().lower()) if background else None)


def _background_of(text: str) -> str | tuple[int, int, int]:
    from PIL import ImageColor

    if text in (*EFFECTS, "grey"):
        return text.replace("grey", "gray")
    try:
        color = ImageColor.getrgb(f"rgb({text})" if "," in text and "(" not in text else text)
    except ValueError:
        raise UserError(f"There is no background {text!r}.{nearest_hint(text, (*EFFECTS, *ImageColor.colormap))} Give "
                        "'blur', 'gray', or a color such as 'green', '#00ff00' or '0,255,0'.") from None
    if len(color) != 3 or max(color) > 255:
        raise UserError(f"The background {text!r} is no color of three values from 0 to 255; for transparency make a "
                        "cut-out (--cutout).")
    return color


# Below this many rows a contour of one pixel is enough to be seen.
_ROWS_OF_THIN_CONTOUR = 720
# A blurred frame has no detail that needs more pixels than this on its longer side.
_BLURRED_SIDE = 320
# A window of this part of the longer side leaves no face and no writing to be recognized.
_BLUR_PART = 12


def draw_overlay(image: np.ndarray, labels: np.ndarray, style: OverlayStyle = DEFAULT_STYLE, palette: np.ndarray = PALETTE
                 ) -> np.ndarray:
    """Tints the objects of a frame, each in the brightened color of its label, and outlines them.

    Args:
        image: uint8 [h, w, 3], RGB.
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, which is drawn as background.
        style: Tint, outline and background.
        palette: uint8 [256, 3], RGB.

    Returns:
        uint8 [h, w, 3], a new array.

    Raises:
        ValueError: The labels have another size than the image.
    """
    objects = objects_only(image, labels)
    overlay = _background(image, objects, style.background)
    colors = cv2.LUT(cv2.merge([objects] * 3), _brightened(palette)[None])
    cv2.copyTo(cv2.addWeighted(image, 1 - style.alpha, colors, style.alpha, 0), objects, overlay)
    width = style.contour
    if width is None:
        width = 1 if image.shape[0] < _ROWS_OF_THIN_CONTOUR else 2
    if width:
        # A pixel lies on a contour if a neighbor has another label. The contour is drawn inside the object.
        window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        contour = cv2.compare(cv2.dilate(objects, window), cv2.erode(objects, window), cv2.CMP_NE)
        cv2.copyTo(colors, cv2.bitwise_and(contour, objects), overlay)
    return overlay


def _brightened(palette: np.ndarray) -> np.ndarray:
    """Stretches a palette, which is dark (label 1 is half red), by a curve that keeps its colors apart."""
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
    """Returns a new frame to draw the objects onto, see ``OverlayStyle``."""
    if kind is None:
        return image.copy()
    if kind == "gray":
        return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if kind == "blur":
        return _blurred(image, objects)
    return np.full_like(image, kind)


def _blurred(image: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Blurs what is around the objects; their own colors stay out of it, or they would seem to glow."""
    outside = np.uint8(255) * (objects == 0)
    height, width = outside.shape
    shrink = max(1, max(height, width) / _BLURRED_SIDE)
    small = max(1, round(width / shrink)), max(1, round(height / shrink))
    window = (max(small) // _BLUR_PART | 1,) * 2  # it has to be odd
    colors, weights = (
        cv2.stackBlur(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA).astype(np.float32), window)
        for pixels in (cv2.copyTo(image, outside, np.zeros_like(image)), outside)
    )
    mean = 255 * colors / np.maximum(weights, 1e-3)[..., None]
    return cv2.resize(mean.round().clip(0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


CUTOUTS = ("png", "mov", "webm")


def cut_out(image: np.ndarray, labels: np.ndarray, probability: np.ndarray | None = None, margin: int = 0
            ) -> np.ndarray:
    """Makes everything but the objects transparent.

    Args:
        image: uint8 [h, w, 3], RGB.
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, neither of which is an object.
        probability: uint8 [h, w], 255 for sure foreground; taken as opacity where given, instead of the labels.
        margin: Width in pixels of a seam outside the objects that keeps its colors. Beyond it, transparent pixels
            are black, so that nothing of the background can be brought back. Lossy compression mixes neighboring
            colors, which without a seam would darken the rim of the objects.

    Returns:
        uint8 [h, w, 4], RGB and opacity (straight, not multiplied in).

    Raises:
        ValueError: The labels or the probability have another size than the image.
    """
    objects = objects_only(image, labels)
    if probability is not None and probability.shape != objects.shape:
        raise ValueError(f"probability {list(probability.shape)} does not fit an image {list(image.shape)}")
    opacity = np.uint8(255) * (objects > 0) if probability is None else probability
    keep = cv2.dilate(opacity, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)) if margin else opacity
    return np.dstack([cv2.copyTo(image, keep, np.zeros_like(image)), opacity])
