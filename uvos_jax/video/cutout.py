"""Objects cut out of their frames, with a transparent background, for whoever edits pictures and videos."""

import cv2
import numpy as np

from uvos_jax.video.overlay import objects_only

CUTOUTS = ("png", "mov", "webm")


def cut_out(image: np.ndarray, labels: np.ndarray, probability: np.ndarray | None = None, margin: int = 0
            ) -> np.ndarray:
    """Makes everything but the objects transparent.

    Args:
        image: uint8 [h, w, 3], RGB.
        labels: Integer or bool [h, w], 0..255; 0 is background and 255 void, neither of which is an object.
        probability: uint8 [h, w], 255 for sure foreground; taken as opacity where given, instead of the labels.
        margin: Width in pixels of a seam outside the objects that keeps its colours. Beyond it, transparent pixels
            are black, so that nothing of the background can be brought back. Lossy compression mixes neighbouring
            colours, which without a seam would darken the rim of the objects.

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
