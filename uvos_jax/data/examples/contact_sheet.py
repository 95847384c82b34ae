"""Contact sheets of training batches: frames with masks, and color-coded optical flow."""

import cv2
import numpy as np

from uvos_jax.labels import VOID
from uvos_jax.video import OverlayStyle, draw_overlay
from uvos_jax.video.flow_io import flow_picture

_GAP = 4  # pixels between images
_BACKGROUND = 255


def contact_sheet(batch: dict[str, np.ndarray], width: int = 240) -> np.ndarray:
    """Draws a batch with one row per example: frames with mask overlays, then optical flow.

    Args:
        batch: ``"frames"`` uint8 [b, t, h, w, 3], ``"labels"`` uint8 [b, t, h, w], optionally ``"flow"`` float32
            [b, t, h, w, 2]. Void is darkened.
        width: Width of one image in pixels.

    Returns:
        uint8 [h', w', 3], RGB.
    """
    rows = []
    for example in range(len(batch["frames"])):
        clip = zip(batch["frames"][example], batch["labels"][example], strict=True)
        images = [_with_labels(frame, labels) for frame, labels in clip]
        if "flow" in batch:
            images += [flow_picture(flow) for flow in batch["flow"][example]]
        rows.append(_concatenate([_scaled(image, width) for image in images], axis=1))
    return _concatenate(rows, axis=0)


def _with_labels(frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
    image = draw_overlay(frame, labels, OverlayStyle(alpha=0.4))
    image[labels == VOID] //= 3
    return image


def _scaled(image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)


def _concatenate(images: list[np.ndarray], axis: int) -> np.ndarray:
    shape = list(images[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, _BACKGROUND, np.uint8)
    return np.concatenate([piece for image in images for piece in (image, gap)][:-1], axis=axis)
