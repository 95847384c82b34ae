"""Looking at batches: frames with their masks, and optical flow in colours."""

import cv2
import numpy as np

from uvos_jax.video import Look, draw_overlay
from uvos_jax.video.masks import VOID

# Steps between red, yellow, green, cyan, blue, magenta and red on the wheel of Baker et al.
_WHEEL_STEPS = (15, 6, 4, 11, 13, 6)
_WHEEL_CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))
_GAP = 4  # pixels between pictures
_PAPER = 255


def contact_sheet(batch: dict[str, np.ndarray], width: int = 240) -> np.ndarray:
    """Draws a batch: a row an example, its frames with tinted objects side by side, its flow beside them.

    Args:
        batch: ``"frames"`` uint8 [b, t, h, w, 3], ``"labels"`` uint8 [b, t, h, w] and perhaps ``"flow"`` float32
            [b, t, h, w, 2]. Void is darkened.
        width: Width of one picture in pixels.

    Returns:
        uint8 [h', w', 3], RGB.
    """
    rows = []
    for example in range(len(batch["frames"])):
        clip = zip(batch["frames"][example], batch["labels"][example], strict=True)
        pictures = [_with_labels(frame, labels) for frame, labels in clip]
        if "flow" in batch:
            pictures += [flow_to_rgb(flow) for flow in batch["flow"][example]]
        rows.append(_side_by_side([_scaled(picture, width) for picture in pictures], axis=1))
    return _side_by_side(rows, axis=0)


def flow_to_rgb(flow: np.ndarray) -> np.ndarray:
    """Draws optical flow on the colour wheel of Baker et al. (IJCV 2011), as RAFT's code does: hue is direction.

    Args:
        flow: float32 [h, w, 2], (dx, dy).

    Returns:
        uint8 [h, w, 3], RGB; white is no motion, and the longest vector of the field has full colour.
    """
    wheel = _wheel()
    radius = np.sqrt((flow**2).sum(-1))
    scale = radius.max() + 1e-5
    x, y = flow[..., 0] / scale, flow[..., 1] / scale
    radius = np.sqrt(x**2 + y**2)[..., None]
    position = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(position).astype(int)
    share = (position - low)[..., None]
    colour = (1 - share) * wheel[low] + share * wheel[(low + 1) % len(wheel)]
    return np.floor(255 * np.where(radius <= 1, 1 - radius * (1 - colour), 0.75 * colour)).astype(np.uint8)


def _wheel() -> np.ndarray:
    """Returns the 55 colours of the wheel, float64 [55, 3] in [0, 1]."""
    colours = []
    for i, steps in enumerate(_WHEEL_STEPS):
        start, end = np.array(_WHEEL_CORNERS[i]), np.array(_WHEEL_CORNERS[(i + 1) % 6])
        # The published wheel holds whole levels of 255.
        ramp = np.floor(255 * np.arange(steps) / steps)[:, None] / 255
        colours.append(start + (end - start) * ramp)
    return np.concatenate(colours)


def _with_labels(frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
    picture = draw_overlay(frame, labels, Look(alpha=0.4))
    picture[labels == VOID] //= 3
    return picture


def _scaled(picture: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    shrinks = width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)


def _side_by_side(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    shape = list(pictures[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, _PAPER, np.uint8)
    return np.concatenate([piece for picture in pictures for piece in (picture, gap)][:-1], axis=axis)
