"""Compositor of textured, deforming layers, with the exact motion of every visible surface point.

A surface point p of a layer is seen at X(p, t) = A(t) (p + d(p, t)): A is the affine map of the layer's pose and the
camera, d a sum of traveling sine waves. To find p for a pixel X, the affine map is inverted (q = A(t)^-1 X), then
p <- q - d(p, t) is iterated, which converges because d is a contraction. Color, outline and label are functions of p
alone, so the motion of the pixel is X(p, t + 1) - X(p, t), without any estimation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

# The iteration stops when no point moves by more, in pixels; the remaining error is then below 1e-3.
_TOLERANCE = 3e-4
# Sufficient for exposures that are only averaged for motion blur.
_COARSE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Oscillation:
    """A sum of sines over time around an offset: a smooth path that stays within bounds.

    Attributes:
        offset: float [k].
        amplitude: float [n, k].
        rate: float [n, k], radians per frame.
        phase: float [n, k], radians.
    """

    offset: np.ndarray
    amplitude: np.ndarray
    rate: np.ndarray
    phase: np.ndarray

    def __call__(self, time: float) -> np.ndarray:
        """Returns the position at a time in frames, float [k]."""
        return self.offset + (self.amplitude * np.sin(self.rate * time + self.phase)).sum(0)


@dataclass(frozen=True)
class Ripples:
    """A smooth deformation d(p, t) of a surface: sine waves traveling over it.

    Attributes:
        wave: float [n, 2], wave vectors in radians per pixel.
        amplitude: float [n, 2], in pixels; the sum of |amplitude| |wave| must stay below 1.
        rate: float [n], radians per frame.
        phase: float [n], radians.
    """

    wave: np.ndarray
    amplitude: np.ndarray
    rate: np.ndarray
    phase: np.ndarray

    def max_displacement(self) -> float:
        """Returns an upper bound of the displacement, in pixels."""
        return float(np.abs(self.amplitude).sum())

    def __call__(self, x: np.ndarray, y: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the displacement (dx, dy) of the points (x, y), float32 arrays of equal shape."""
        dx, dy = np.zeros_like(x), np.zeros_like(y)
        for (wx, wy), (ax, ay), rate, phase in zip(self.wave, self.amplitude, self.rate, self.phase, strict=True):
            # Python floats keep the arrays in float32.
            height = np.sin(x * float(wx) + (y * float(wy) + float(rate * time + phase)))
            dx += float(ax) * height
            dy += float(ay) * height
        return dx, dy

    def invert(self, x: np.ndarray, y: np.ndarray, time: float, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the points that the deformation moves to (x, y).

        Iterates until the change is below the tolerance, in pixels.
        """
        px, py = x, y
        for _ in range(100):
            dx, dy = self(px, py, time)
            nx, ny = x - dx, y - dy
            change = max(np.abs(nx - px).max(), np.abs(ny - py).max())
            px, py = nx, ny
            if change < tolerance:
                break
        return px, py


@dataclass(frozen=True)
class Layer:
    """A textured surface. Surface coordinates are in pixels; the pose maps them to the frame.

    Attributes:
        label: Label of its pixels, 0 for scenery; None for a shadow, which darkens without changing labels and flow.
        color: uint8 [h, w, 3], RGB.
        distance: float32 [h, w], signed distance to the outline in pixels, negative inside; None for a layer that fills
            the frame.
        origin: (x, y), column and row of surface point (0, 0).
        pose: Affine map from surface to frame at a time in frames, float [3, 3].
        ripples: Deformation, or None.
        softness: Width of the edge in pixels.
        opacity: 1 hides the layers behind.
    """

    label: int | None
    color: np.ndarray
    distance: np.ndarray | None
    origin: tuple[float, float]
    pose: Callable[[float], np.ndarray]
    ripples: Ripples | None = None
    softness: float = 1.0
    opacity: float = 1.0


@dataclass
class GroundTruth:
    """Labels uint8 [h, w] and flow float32 [h, w, 2] of the frame being rendered."""

    labels: np.ndarray
    flow: np.ndarray


def project(layer: Layer, x: np.ndarray, y: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Projects surface points to the frame.

    Args:
        layer: Layer of the points.
        x: float32, any shape: surface coordinates in pixels.
        y: Same as ``x``.
        time: Time in frames.

    Returns:
        Column and row in the frame, float32 of that shape.
    """
    if layer.ripples is not None:
        dx, dy = layer.ripples(x, y, time)
        x, y = x + dx, y + dy
    return _apply(layer.pose(time), x, y)


def paint(canvas: np.ndarray, layer: Layer, time: float, ground_truth: GroundTruth | None = None) -> None:
    """Paints a layer onto the canvas and writes its labels and flow where it is visible.

    Args:
        canvas: float32 [h, w, 3], changed in place.
        layer: The layer.
        time: Time in frames.
        ground_truth: Changed in place, if given.
    """
    pose = layer.pose(time)
    box = _box(layer, pose, canvas.shape[:2])
    if box is None:
        return
    rows, columns = box
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None]
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    px, py = _apply(np.linalg.inv(pose), x, y)
    if layer.ripples is not None:
        px, py = layer.ripples.invert(px, py, time, _COARSE_TOLERANCE if ground_truth is None else _TOLERANCE)
    at_x, at_y = px + float(layer.origin[0]), py + float(layer.origin[1])
    color = cv2.remap(layer.color, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if layer.distance is None:
        canvas[rows, columns] = color
        seen = np.s_[:]
    else:
        far = float(layer.softness + 4)
        distance = cv2.remap(
            layer.distance, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=far
        )
        scale = float(np.sqrt(abs(np.linalg.det(pose[:2, :2]))) / layer.softness)
        cover = np.clip(0.5 - scale * distance, 0, 1)[..., None] * np.float32(layer.opacity)
        behind = canvas[rows, columns]
        behind += cover * (color - behind)
        seen = distance < 0
    if ground_truth is None or layer.label is None:
        return
    ground_truth.labels[rows, columns][seen] = layer.label
    next_x, next_y = project(layer, px[seen], py[seen], time + 1)
    here_x, here_y = np.broadcast_to(x, px.shape)[seen], np.broadcast_to(y, py.shape)[seen]
    ground_truth.flow[rows, columns][seen] = np.stack([next_x - here_x, next_y - here_y], -1)


def _apply(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Applies an affine map to float32 coordinates, keeping float32."""
    (a, b, c), (d, e, f) = matrix[:2].tolist()
    return x * a + (y * b + c), x * d + (y * e + f)


def _box(layer: Layer, pose: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Returns the rows and columns of the frame that a layer can cover; None if it is out of view."""
    if layer.distance is None:
        return slice(0, size[0]), slice(0, size[1])
    height, width = layer.distance.shape
    reach = layer.ripples.max_displacement() if layer.ripples is not None else 0.0
    left, top = -layer.origin[0] - reach, -layer.origin[1] - reach
    right, bottom = left + width - 1 + 2 * reach, top + height - 1 + 2 * reach
    corners = pose @ np.array([[left, right, left, right], [top, top, bottom, bottom], [1, 1, 1, 1]])
    low = np.maximum(np.floor(corners[:2].min(1)), 0).astype(int)
    high = np.minimum(np.ceil(corners[:2].max(1)) + 1, size[::-1]).astype(int)
    if (low >= high).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])
