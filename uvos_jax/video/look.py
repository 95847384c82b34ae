"""How an overlay looks, as said in Python or on the command line."""

import math
from dataclasses import dataclass

from uvos_jax.errors import UserError, nearest_hint

EFFECTS = ("blur", "grey")
_WIDEST_CONTOUR = 100


@dataclass(frozen=True)
class Look:
    """How objects are drawn onto a frame, and what becomes of the rest of it.

    Attributes:
        alpha: Weight of the tint, 0 (none) to 1 (the object is of one colour).
        contour: Width of the outline in pixels, 0 for none; None chooses by the size of the frame.
        background: What is put behind the objects: None for the frame as it is, "blur" or "grey" for the frame
            blurred or without colour, or (red, green, blue), 0..255 each. A colour with ``alpha`` and ``contour`` 0
            gives the objects cut out on that colour.
    """

    alpha: float = 0.5
    contour: int | None = None
    background: str | tuple[int, int, int] | None = None


PLAIN = Look()


def look_of(alpha: float = PLAIN.alpha, contour: int | None = None, background: str | None = None) -> Look:
    """Makes a ``Look`` of what was written on a command line.

    Args:
        alpha: 0 to 1.
        contour: 0 to 100 pixels; None chooses by the size of the frame.
        background: "blur", "grey" (or "gray"), "0,255,0", "#00ff00" or any other colour that CSS has a form for; None
            or "" keeps the frame. For the plain colour grey write "#808080".

    Raises:
        UserError: One of them is out of range or means nothing.
    """
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise UserError(f"alpha is the strength of the tint, from 0 (none) to 1 (solid); got {alpha:g}.")
    if contour is not None and not 0 <= contour <= _WIDEST_CONTOUR:
        raise UserError(f"contour is a width of 0 (none) to {_WIDEST_CONTOUR} pixels; got {contour}.")
    return Look(float(alpha), contour, _background_of(background.strip().lower()) if background else None)


def _background_of(text: str) -> str | tuple[int, int, int]:
    from PIL import ImageColor

    if text in (*EFFECTS, "gray"):
        return text.replace("gray", "grey")
    try:
        colour = ImageColor.getrgb(f"rgb({text})" if "," in text and "(" not in text else text)
    except ValueError:
        raise UserError(f"There is no background {text!r}.{nearest_hint(text, (*EFFECTS, *ImageColor.colormap))} Give "
                        "'blur', 'grey', or a colour such as 'green', '#00ff00' or '0,255,0'.") from None
    if len(colour) != 3 or max(colour) > 255:
        raise UserError(f"The background {text!r} is no colour of three values from 0 to 255; for transparency make a "
                        "cut-out (--cutout).")
    return colour
