"""Rendering of results: objects drawn onto frames (overlay) and cut out on a transparent background (cutout)."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.labels import VOID
from uvos_jax.video.mask_io import PALETTE

EFFECTS = ("blur", "gray")
CUTOUTS = ("png", "mov", "webm")
_MAX_CONTOUR = 100  # pixels
# In frames with fewer rows than this, a contour one pixel wide is visible.
_THIN_CONTOUR_ROWS = 720
# Longer side at which the background is blurred; a blurred frame has no detail that needs more pixels.
_BLURRED_SIDE = 320
# The blur window is the longer side divided by this: wide enough that faces and text cannot be recognized.
_BLUR_DIVISOR = 12


@dataclass(frozen=True)
class OverlayStyle:
    """How objects are drawn onto a frame, and what is shown behind them.

    Attributes:
        alpha: Weight of the tint, 0 (none) to 1 (solid color).
        contour: Width of the outline in pixels, 0 for none; None chooses by the size of the frame.
        background: None for the unchanged frame; "blur" or "gray" for the frame blurred or without color; or a color
            (red, green, blue), 0..255 each. A color with ``alpha`` and ``contour`` 0 shows the objects on that color.
    """

    alpha: float = 0.5
    contour: int | None = None
    background: str | tuple[int, int, int] | None = None


DEFAULT_STYLE = OverlayStyle()


def parse_overlay_style(alpha: float = DEFAULT_STYLE.alpha, contour: int | None = None, background: str | None = None
                        ) -> OverlayStyle:
    """Parses the overlay options of the command line.

    Args:
        alpha: 0 to 1.
        contour: 0 to 100 pixels; None chooses by the size of the frame.
        background: "blur", "gray" (or "grey"), or a color: "0,255,0", "#00ff00" or another CSS color. None or ""
            keeps the frame. For the color gray give "#808080".

    Returns:
        The style.

    Raises:
        UserError: An option is out of range or cannot be parsed.
    """
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise UserError(f"alpha must be from 0 (no tint) to 1 (solid color); got {alpha:g}.")
    if contour is not None and not 0 <= contour <= _MAX_CONTOUR:
        raise UserError(f"contour must be from 0 (none) to {_MAX_CONTOUR} pixels; got {contour}.")
    return OverlayStyle(float(alpha), contour, _parse_background(background.strip().lower()) if background else None)


def draw_overlay(image: np.ndarray, labels: np.ndarray, style: OverlayStyle = DEFAULT_STYLE,
                 palette: np.ndarray = PALETTE) -> np.ndarray:
    """Tints the objects of a frame in the brightened colors of their labels, and outlines them.

    Args:
        image: uint8 [h, w, 3], RGB.
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, which is drawn as background.
        style: Tint, outline and background.
        palette: uint8 [256, 3], RGB.

    Returns:
        uint8 [h, w, 3], a new array.

    Raises:
        ValueError: Labels and image differ in size.
    """
    objects = objects_only(image, labels)
    overlay = _draw_background(image, objects, style.background)
    colors = cv2.LUT(cv2.merge([objects] * 3), _brightened(palette)[None])
    cv2.copyTo(cv2.addWeighted(image, 1 - style.alpha, colors, style.alpha, 0), objects, overlay)
    width = style.contour
    if width is None:
        width = 1 if image.shape[0] < _THIN_CONTOUR_ROWS else 2
    if width:
        # Contour pixels have a neighbor with another label. The contour is drawn inside the object.
        window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        contour = cv2.compare(cv2.dilate(objects, window), cv2.erode(objects, window), cv2.CMP_NE)
        cv2.copyTo(colors, cv2.bitwise_and(contour, objects), overlay)
    return overlay


def cut_out(image: np.ndarray, labels: np.ndarray, probability: np.ndarray | None = None, margin: int = 0
            ) -> np.ndarray:
    """Makes everything except the objects transparent.

    Args:
        image: uint8 [h, w, 3], RGB.
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, neither of which is an object.
        probability: uint8 [h, w], 255 for certain foreground; replaces the labels as opacity.
        margin: Width in pixels of a band around the objects that keeps its colors. Lossy compression mixes neighboring
            colors, which would otherwise darken the border of the objects. Transparent pixels beyond the band are
            black, so that the background cannot be recovered.

    Returns:
        uint8 [h, w, 4], RGB and opacity (straight alpha).

    Raises:
        ValueError: Labels or probability differ from the image in size.
    """
    objects = objects_only(image, labels)
    if probability is not None and probability.shape != objects.shape:
        raise ValueError(f"probability {list(probability.shape)} does not fit an image {list(image.shape)}")
    opacity = np.uint8(255) * (objects > 0) if probability is None else probability
    keep = cv2.dilate(opacity, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)) if margin else opacity
    return np.dstack([cv2.copyTo(image, keep, np.zeros_like(image)), opacity])


def objects_only(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns a copy of the labels as uint8 [h, w] in which void is background.

    Raises:
        ValueError: The labels differ in size from the image [h, w, 3].
    """
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels {list(labels.shape)} do not fit an image {list(image.shape)}")
    objects = labels.astype(np.uint8)
    objects[objects == VOID] = 0
    return objects


def _parse_background(text: str) -> str | tuple[int, int, int]:
    from PIL import ImageColor

    if text in (*EFFECTS, "grey"):
        return text.replace("grey", "gray")
    try:
        color = ImageColor.getrgb(f"rgb({text})" if "," in text and "(" not in text else text)
    except ValueError:
        raise UserError(f"Unknown background {text!r}.{nearest_hint(text, (*EFFECTS, *ImageColor.colormap))} Give "
                        "'blur', 'gray', or a color such as 'green', '#00ff00' or '0,255,0'.") from None
    if len(color) != 3 or max(color) > 255:
        raise UserError(f"The background {text!r} is not a color of three values from 0 to 255. For transparency use "
                        "--cutout.")
    return color


def _brightened(palette: np.ndarray) -> np.ndarray:
    """Brightens a palette by a gamma curve that keeps its colors distinct; label 1 of DAVIS is dark red."""
    return np.round(255 * (palette / max(palette.max(), 1)) ** 0.4).clip(0, 255).astype(np.uint8)


def _draw_background(image: np.ndarray, objects: np.ndarray, background: str | tuple[int, int, int] | None
                     ) -> np.ndarray:
    """Returns a new frame to draw the objects onto; see ``OverlayStyle.background``."""
    if background is None:
        return image.copy()
    if background == "gray":
        return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if background == "blur":
        return _blurred(image, objects)
    return np.full_like(image, background)


def _blurred(image: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Blurs the background without the colors of the objects, which would otherwise bleed into a halo."""
    outside = np.uint8(255) * (objects == 0)
    height, width = outside.shape
    shrink = max(1, max(height, width) / _BLURRED_SIDE)
    small = max(1, round(width / shrink)), max(1, round(height / shrink))
    window = (max(small) // _BLUR_DIVISOR | 1,) * 2  # must be odd
    colors, weights = (
        cv2.stackBlur(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA).astype(np.float32), window)
        for pixels in (cv2.copyTo(image, outside, np.zeros_like(image)), outside)
    )
    mean = 255 * colors / np.maximum(weights, 1e-3)[..., None]
    return cv2.resize(mean.round().clip(0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
