"""Initial training samples of a target model: the target's first frame and synthetic variations of it.

A single frame does not show how an object will change. FRTM (Robinson et al. 2020) augments it: the object is cut out,
the hole in the background is inpainted, and the transformed object is pasted back. The transformations are ours.
"""

import cv2
import numpy as np

_ROTATION = 20.0  # maximum rotation in degrees, either way
_SCALE = 1.25  # maximum factor of enlargement and reduction
_SHIFT = 0.25  # maximum translation as a share of the frame's sides
_BLUR = 0.004  # maximum sigma of the Gaussian blur as a share of the shorter side
_INPAINT_SIDE = 120  # shorter side at which holes are inpainted; finer texture would not be correct either
_MARGIN = 0.01  # dilation of the hole as a share of the shorter side, since mask edges are inexact


def augmented_samples(frame: np.ndarray, mask: np.ndarray, count: int = 5, seed: int = 0
                      ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the initial samples of an object for its target model.

    Args:
        frame: uint8 [h, w, 3].
        mask: bool [h, w], the object; not empty.
        count: Number of samples including the frame itself, at least 1.
        seed: Random seed.

    Returns:
        Frames uint8 [count, h, w, 3], the frame itself first, and masks uint8 [count, h, w], 255 on the object, 0
        elsewhere. Every mask has at least one pixel.

    Raises:
        ValueError: If the mask is empty.
    """
    if not mask.any():
        raise ValueError("the mask is empty")
    rng = np.random.default_rng(seed)
    frames, masks = [frame], [np.where(mask, np.uint8(255), np.uint8(0))]
    if count > 1:
        background = inpaint_object(frame, mask).astype(np.float32)
        alpha = mask.astype(np.float32)
        object_ = frame * alpha[..., None]
    while len(frames) < count:
        matrix = _random_affine(rng, mask)
        sigma = rng.uniform(0, _BLUR) * min(mask.shape)
        # Premultiplied colors, so that interpolation does not mix in the old background.
        moved, weight = (_transform(image, matrix, sigma) for image in (object_, alpha))
        label = np.where(weight > 0.5, np.uint8(255), np.uint8(0))
        if label.any():
            frames.append(np.round(background * (1 - weight[..., None]) + moved).clip(0, 255).astype(np.uint8))
            masks.append(label)
        else:  # a small object that left the frame or was blurred away
            frames.append(frame)
            masks.append(masks[0])
    return np.stack(frames), np.stack(masks)


def inpaint_object(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Inpaints an object from its surroundings (Telea 2004, on a reduced frame).

    Args:
        frame: uint8 [h, w, 3].
        mask: bool [h, w].

    Returns:
        uint8 [h, w, 3], unchanged outside the mask and a narrow margin around it.
    """
    h, w = mask.shape
    margin = 2 * max(1, round(_MARGIN * min(h, w))) + 1
    hole = cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin)))
    if hole.all():
        return np.broadcast_to(np.uint8(frame.mean((0, 1))), frame.shape)
    scale = min(1.0, _INPAINT_SIDE / min(h, w))
    small = (max(1, round(w * scale)), max(1, round(h * scale)))
    share = cv2.resize(1 - hole.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    visible = cv2.resize(frame * (1 - hole[..., None].astype(np.float32)), small, interpolation=cv2.INTER_AREA)
    known = share > 0.01
    colors = np.where(known[..., None], visible / np.maximum(share, 0.01)[..., None], 0)
    filled = cv2.inpaint(np.round(colors).astype(np.uint8), (~known).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    filled = cv2.resize(filled, (w, h), interpolation=cv2.INTER_LINEAR)
    return np.where(hole[..., None] > 0, filled, frame)


def _random_affine(rng, mask):
    """Random affine matrix [2, 3] that keeps the center of the mask's box inside the frame."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    size = np.array(mask.shape[::-1])
    center = np.array([x + (width - 1) / 2, y + (height - 1) / 2])
    angle = np.deg2rad(rng.uniform(-_ROTATION, _ROTATION))
    scale = _SCALE ** rng.uniform(-1, 1)
    mirrored = -1 if rng.random() < 0.5 else 1
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * rotation @ np.diag([mirrored, 1])
    target = np.clip(center + rng.uniform(-_SHIFT, _SHIFT, 2) * size, 0, size - 1)
    return np.column_stack([linear, target - linear @ center])


def _transform(image, matrix, sigma):
    moved = cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(moved, (0, 0), sigma) if sigma > 0.1 else moved
