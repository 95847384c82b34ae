"""Synthetic motion for still images, so that images with masks also train motion.

After Khoreva et al., "Lucid Data Dreaming for Video Object Segmentation" (IJCV 2019): foreground and background move
independently. Optical flow computed between image and moved copy shows the object shapes of many images, with the
errors that the flow method makes at real edges.
"""

import cv2
import numpy as np

from uvos_jax.labels import VOID

# Standard deviations of the camera motion, and of the object motion added to it: shift and bend (which stands for
# depth and limbs) as fractions of the longer side, turn in radians, zoom as a relative scale.
_CAMERA = {"shift": 0.012, "turn": 0.01, "zoom": 0.015, "bend": 0.002}
_OBJECT = {"shift": 0.025, "turn": 0.04, "zoom": 0.025, "bend": 0.006}
_KNOTS = (4, 5)  # of the bending grid
_FILL_SIDE = 96  # longer side, in pixels, of the copy that is inpainted behind the object


def moved_copy(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves the foreground and the camera of an image by a random small motion.

    Args:
        image: uint8 [h, w, 3].
        labels: uint8 [h, w], 0 background, 255 void; void moves with the background.
        rng: Random generator.

    Returns:
        uint8 [h, w, 3].
    """
    mask = ((labels > 0) & (labels < VOID)).astype(np.uint8)
    rows, columns = np.nonzero(mask)
    center = (columns.mean(), rows.mean()) if len(rows) else (0.0, 0.0)
    camera = _field(mask.shape, rng, (mask.shape[1] / 2, mask.shape[0] / 2), **_CAMERA)
    both = camera + _field(mask.shape, rng, center, **_OBJECT)
    behind = _sample(_inpaint_foreground(image, mask), camera, cv2.BORDER_REFLECT_101)
    front = _sample(image, both, cv2.BORDER_REFLECT_101).astype(np.float32)
    share = cv2.GaussianBlur(_sample(mask.astype(np.float32), both, cv2.BORDER_CONSTANT), (3, 3), 0)[..., None]
    return np.round(behind + (front - behind) * share).astype(np.uint8)


def _field(size, rng, center, shift, turn, zoom, bend):
    """Draws a displacement field: source position minus output position, float32 ``[h, w, 2]``, (dx, dy)."""
    longer = max(size)
    y, x = np.mgrid[:size[0], :size[1]].astype(np.float32)
    angle, factor = rng.normal(0, turn), rng.normal(0, zoom)
    x, y = x - center[0], y - center[1]
    straight = np.stack([factor * x - angle * y, angle * x + factor * y], -1) + rng.normal(0, shift * longer, 2)
    knots = rng.normal(0, bend * longer, (*_KNOTS, 2)).astype(np.float32)
    return (straight + cv2.resize(knots, size[::-1], interpolation=cv2.INTER_CUBIC)).astype(np.float32)


def _sample(picture, field, border):
    y, x = np.mgrid[:field.shape[0], :field.shape[1]].astype(np.float32)
    return cv2.remap(picture, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR, borderMode=border)


def _inpaint_foreground(image, mask):
    """Returns the image with the foreground inpainted at low resolution."""
    scale = min(1.0, _FILL_SIDE / max(mask.shape))
    size = tuple(max(1, round(side * scale)) for side in mask.shape[::-1])
    hidden = cv2.dilate(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.ones((3, 3), np.uint8))
    filled = cv2.inpaint(cv2.resize(image, size, interpolation=cv2.INTER_AREA), hidden, 3, cv2.INPAINT_TELEA)
    return np.where(mask[..., None] > 0, cv2.resize(filled, mask.shape[::-1]), image)
