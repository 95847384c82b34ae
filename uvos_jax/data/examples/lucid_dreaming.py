"""A still a moment later, so that pictures with masks teach motion, too.

After Khoreva et al., "Lucid Data Dreaming for Video Object Segmentation" (IJCV 2019): the foreground and what is
behind it move, each on its own. Flow between the two shows the shapes of many pictures, with the errors that its
method makes at real edges.
"""

import cv2
import numpy as np

from uvos_jax.data.storage.store import VOID

# Standard deviations of the camera's motion, and of the object's on top of it: shift and bending (which stands for
# depth and for limbs) as shares of the longer side, turn in radians, zoom.
_CAMERA = {"shift": 0.012, "turn": 0.01, "zoom": 0.015, "bend": 0.002}
_OBJECT = {"shift": 0.025, "turn": 0.04, "zoom": 0.025, "bend": 0.006}
_KNOTS = (4, 5)  # of the grid that bends
_FILL_SIDE = 96  # longer side of the copy in which what is behind the object is made up


def moved_copy(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves the foreground of a picture, and its camera.

    Args:
        image: uint8 [h, w, 3].
        labels: uint8 [h, w], 0 background, 255 void, which stays with the background.
        rng: Random numbers.

    Returns:
        uint8 [h, w, 3].
    """
    mask = ((labels > 0) & (labels < VOID)).astype(np.uint8)
    rows, columns = np.nonzero(mask)
    center = (columns.mean(), rows.mean()) if len(rows) else (0.0, 0.0)
    camera = _field(mask.shape, rng, (mask.shape[1] / 2, mask.shape[0] / 2), **_CAMERA)
    both = camera + _field(mask.shape, rng, center, **_OBJECT)
    behind = _sample(_without(image, mask), camera, cv2.BORDER_REFLECT_101)
    front = _sample(image, both, cv2.BORDER_REFLECT_101).astype(np.float32)
    share = cv2.GaussianBlur(_sample(mask.astype(np.float32), both, cv2.BORDER_CONSTANT), (3, 3), 0)[..., None]
    return np.round(behind + (front - behind) * share).astype(np.uint8)


def _field(size, rng, center, shift, turn, zoom, bend):
    """Where the pixels come from, less their own places: float32 ``[h, w, 2]``, (dx, dy)."""
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


def _without(image, mask):
    """The picture with something made up, which moves like the background, where the foreground is."""
    scale = min(1.0, _FILL_SIDE / max(mask.shape))
    size = tuple(max(1, round(side * scale)) for side in mask.shape[::-1])
    hidden = cv2.dilate(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.ones((3, 3), np.uint8))
    filled = cv2.inpaint(cv2.resize(image, size, interpolation=cv2.INTER_AREA), hidden, 3, cv2.INPAINT_TELEA)
    return np.where(mask[..., None] > 0, cv2.resize(filled, mask.shape[::-1]), image)
