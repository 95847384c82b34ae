"""First samples of a new target: the frame in which it appeared, and made-up ones that show it elsewhere.

One frame says little about how an object will look. FRTM (Robinson et al. 2020) makes more of it: the object is cut
out, the hole in the background filled, and the object put back changed. What changes, and by how much, is ours.
"""

import cv2
import numpy as np

_ROTATION = 20.0  # degrees to either side
_SCALE = 1.25  # as large, or as small, at most
_SHIFT = 0.25  # of the frame's sides, to either side
_BLUR = 0.004  # of the frame's shorter side, Gaussian, at most
_FILLED_AT = 120  # pixels of the shorter side at which holes are filled: finer texture would not be right either
_MARGIN = 0.01  # of the shorter side, by which the hole is wider than the mask: edges are seldom exact


def samples(frame: np.ndarray, mask: np.ndarray, count: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Makes samples of an object for its target model.

    Args:
        frame: uint8 [h, w, 3].
        mask: bool [h, w], the object; not empty.
        count: How many samples, the frame itself among them, 1 or more.
        seed: Of everything random.

    Returns:
        Frames uint8 [count, h, w, 3], the frame itself first, and masks uint8 [count, h, w], 255 on the object, 0
        elsewhere. Every mask has at least one pixel.

    Raises:
        ValueError: The mask is empty.
    """
    if not mask.any():
        raise ValueError("there is no object in the mask")
    rng = np.random.default_rng(seed)
    frames, masks = [frame], [np.where(mask, np.uint8(255), np.uint8(0))]
    if count > 1:
        background = without(frame, mask).astype(np.float32)
        alpha = mask.astype(np.float32)
        object_ = frame * alpha[..., None]
    while len(frames) < count:
        matrix = _draw_map(rng, mask)
        sigma = rng.uniform(0, _BLUR) * min(mask.shape)
        # Colors that were multiplied by the mask before cannot take the old background along.
        moved, weight = (_moved(picture, matrix, sigma) for picture in (object_, alpha))
        label = np.where(weight > 0.5, np.uint8(255), np.uint8(0))
        if label.any():
            frames.append(np.round(background * (1 - weight[..., None]) + moved).clip(0, 255).astype(np.uint8))
            masks.append(label)
        else:  # an object of few pixels, at the end of the frame or blurred away
            frames.append(frame)
            masks.append(masks[0])
    return np.stack(frames), np.stack(masks)


def without(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills the place of an object with what is around it (Telea 2004, on a small copy).

    Args:
        frame: uint8 [h, w, 3].
        mask: bool [h, w].

    Returns:
        uint8 [h, w, 3], unchanged but for the mask and a narrow margin around it.
    """
    h, w = mask.shape
    margin = 2 * max(1, round(_MARGIN * min(h, w))) + 1
    hole = cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin)))
    if hole.all():
        return np.broadcast_to(np.uint8(frame.mean((0, 1))), frame.shape)
    scale = min(1.0, _FILLED_AT / min(h, w))
    small = (max(1, round(w * scale)), max(1, round(h * scale)))
    share = cv2.resize(1 - hole.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    seen = cv2.resize(frame * (1 - hole[..., None].astype(np.float32)), small, interpolation=cv2.INTER_AREA)
    known = share > 0.01
    colors = np.where(known[..., None], seen / np.maximum(share, 0.01)[..., None], 0)
    filled = cv2.inpaint(np.round(colors).astype(np.uint8), (~known).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    filled = cv2.resize(filled, (w, h), interpolation=cv2.INTER_LINEAR)
    return np.where(hole[..., None] > 0, filled, frame)


def _draw_map(rng, mask):
    """A random affine map [2, 3] of the frame's pixels that leaves the middle of the mask's box within the frame."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    size = np.array(mask.shape[::-1])
    center = np.array([x + (width - 1) / 2, y + (height - 1) / 2])
    angle = np.deg2rad(rng.uniform(-_ROTATION, _ROTATION))
    scale = _SCALE ** rng.uniform(-1, 1)
    mirrored = -1 if rng.random() < 0.5 else 1
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([mirrored, 1])
    place = np.clip(center + rng.uniform(-_SHIFT, _SHIFT, 2) * size, 0, size - 1)
    return np.column_stack([turn, place - turn @ center])


def _moved(picture, matrix, sigma):
    moved = cv2.warpAffine(picture, matrix, picture.shape[1::-1], flags=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(moved, (0, 0), sigma) if sigma > 0.1 else moved
