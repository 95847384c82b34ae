"""Geometric augmentation: one affine map per frame, applied with one interpolation.

A map is a float64 [2, 3] array from output position (x, y) to source position. Positions are continuous: an image
spans [0, width] x [0, height] and the center of its first pixel is (0.5, 0.5), so a map does not depend on the
resolution at which pixels are sampled. Functions that draw a map take ``(rng, labels, size, **options)``: the labels
[t, h, w] of the clip (of one frame if frames have independent maps) and the output size (height, width).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from uvos_jax.config_schema import Option, boolean, color, fraction, integer, interval, optional
from uvos_jax.data.storage.store import REDUCTIONS
from uvos_jax.labels import VOID

_MEAN_COLOR = (124, 116, 104)  # ImageNet mean: pixels outside the frame are about 0 after normalization
_MAX_ZOOM = 4.0  # of a foreground crop; without a bound a foreground of a few pixels would fill the output
_TRIES = 5  # positions of a balanced crop (CFBI's configuration)


def resize(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int], *, flip: float = 0.0) -> np.ndarray:
    """Maps the whole frame to the output; the aspect ratio is not kept.

    Args:
        rng: Random generator.
        labels: uint8 [t, h, w].
        size: Height and width of the output.
        flip: Probability of a horizontal flip.

    Returns:
        The map, float64 [2, 3].
    """
    height, width = labels.shape[1:]
    return _flipped(rng, flip, size, _box(0, 0, width, height, size))


def foreground_crop(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int], *, flip: float = 0.0,
                    upright: float = 0.51) -> np.ndarray:
    """Crops a random region around the foreground, rotated by a multiple of 45 degrees (AD-Net, Sec. 4).

    Not stated in the paper; ours: the region has the aspect ratio of the output, so nothing is distorted, and rotates
    about its center, which may move part of the foreground out of view. Without rotation the region contains the
    foreground of all frames; it extends beyond the frame only if no region of its aspect ratio contains it otherwise.

    Args:
        rng: Random generator.
        labels: uint8 [t, h, w]; foreground is any label but 0 and 255. Without foreground the region is placed at
            random.
        size: Height and width of the output.
        flip: Probability of a horizontal flip; not mentioned in the paper.
        upright: Probability of no rotation; the other seven angles are equally likely.

    Returns:
        The map, float64 [2, 3].
    """
    height, width = labels.shape[1:]
    foreground = ((labels > 0) & (labels < VOID)).any(0)
    rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
    largest = min(width / size[1], height / size[0])  # source pixels per output pixel
    smallest = largest / _MAX_ZOOM
    if rows.size:
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        smallest = max(smallest, (right - left) / size[1], (bottom - top) / size[0])
    scale = rng.uniform(smallest, max(smallest, largest))
    spans = scale * size[1], scale * size[0]
    if not rows.size:
        left, top = rng.uniform(0, width - spans[0]), rng.uniform(0, height - spans[1])
        right, bottom = left + spans[0], top + spans[1]
    x = _draw_span_start(rng, left, right, spans[0], width)
    y = _draw_span_start(rng, top, bottom, spans[1], height)
    turn = 0 if rng.random() < upright else 45 * int(rng.integers(1, 8))
    return _flipped(rng, flip, size, _rotated(turn, size, _box(x, y, x + spans[0], y + spans[1], size)))


def random_crop(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int], *, short_side: int | None = None,
                scale: tuple[float, float] = (1.0, 1.3), flip: float = 0.5, balanced: bool = False) -> np.ndarray:
    """Crops a region of the output's size from the frame at a random scale (CFBI, D-Net, F2Net).

    Where the scaled frame is smaller than the crop, the crop extends beyond it.

    Args:
        rng: Random generator.
        labels: uint8 [t, h, w].
        size: Height and width of the output.
        short_side: Shorter side of the frame at scale 1, in pixels; None keeps it.
        scale: Minimum and maximum scale.
        flip: Probability of a horizontal flip.
        balanced: Whether to try up to five positions until the crop of the first frame contains foreground.

    Returns:
        The map, float64 [2, 3].
    """
    height, width = labels.shape[1:]
    # Source pixels per output pixel.
    step = min(height, width) / ((short_side or min(height, width)) * rng.uniform(*scale))
    for _ in range(_TRIES if balanced else 1):
        # Integer offsets in the scaled frame, so that scale 1 needs no interpolation.
        x, y = (step * _draw_offset(rng, int(side / step + 1e-6) - span)
                for side, span in ((width, size[1]), (height, size[0])))
        matrix = _box(x, y, x + step * size[1], y + step * size[0], size)
        if balanced:
            seen = warp_labels(labels[0], matrix, size, VOID)
            if ((seen > 0) & (seen < VOID)).any():
                break
    return _flipped(rng, flip, size, matrix)


def margin_crop(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int], *, flip: float = 0.5,
                margin: int = 30, turn: float = 0.2, degrees: int = 15) -> np.ndarray:
    """Removes a random margin and rotates slightly; the aspect ratio is not kept (DPA's published code).

    Args:
        rng: Random generator.
        labels: uint8 [t, h, w].
        size: Height and width of the output.
        flip: Probability of a horizontal flip.
        margin: Height and width each lose a random integer number of pixels below ``margin``, half on either side.
        turn: Probability of a rotation.
        degrees: Maximum rotation in degrees; integers are drawn.

    Returns:
        The map, float64 [2, 3].
    """
    height, width = labels.shape[1:]
    rows, columns = (min(int(rng.integers(margin)), side - 1) for side in (height, width))
    left, top = columns // 2, rows // 2
    span = height - rows, width - columns
    angle = int(rng.integers(-degrees, degrees + 1)) if rng.random() < turn else 0
    crop = _rotated(angle, span, _box(left, top, left + span[1], top + span[0], span))
    return _flipped(rng, flip, size, compose(crop, _box(0, 0, span[1], span[0], size)))


@dataclass(frozen=True)
class Geometry:
    """A row of ``GEOMETRIES``.

    Attributes:
        draw: ``(rng, labels, size, **options) -> map``.
        options: Options of ``draw``.
        fill: RGB color outside the frame.
        fill_label: Label outside the frame.
    """

    draw: Callable[..., np.ndarray]
    options: dict[str, Option]
    fill: tuple[int, int, int] = _MEAN_COLOR
    fill_label: int = VOID


GEOMETRIES = {
    "resize": Geometry(resize, {"flip": fraction(0.0)}),
    "foreground_crop": Geometry(foreground_crop, {"flip": fraction(0.0), "upright": fraction(0.51)}),
    "random_crop": Geometry(random_crop, {
        "short_side": optional(integer(None, 1, 2**15 - 1)), "scale": interval((1.0, 1.3), 0.01, 100),
        "flip": fraction(0.5), "balanced": boolean(False)}),
    "margin_crop": Geometry(margin_crop, {
        "flip": fraction(0.5), "margin": integer(30, 1), "turn": fraction(0.2),
        "degrees": integer(15, 0, 180)}, fill=(0, 0, 0), fill_label=0),
}


def options_of(kind: str) -> dict[str, Option]:
    """Returns the options of a geometry, including those common to all."""
    row = GEOMETRIES[kind]
    return row.options | {"independent": boolean(False), "fill": color(row.fill),
                          "fill_label": integer(row.fill_label, 0, 255)}


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Returns the map that applies ``inner``, then ``outer``."""
    return outer[:, :2] @ inner + [[0, 0, outer[0, 2]], [0, 0, outer[1, 2]]]


def reduction(matrix: np.ndarray) -> int:
    """Returns the largest of ``REDUCTIONS`` at which a decoded frame keeps the detail of the output.

    The remaining interpolation step is below two pixels, as long as no frame shrinks by more than 16.
    """
    step = np.linalg.svd(matrix[:, :2], compute_uv=False)[-1]  # of the axis that shrinks less
    return max(reduce for reduce in REDUCTIONS if reduce <= max(1.0, step + 1e-9))


def warp_image(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: tuple[int, int, int],
               reduce: int = 1) -> np.ndarray:
    """Warps an image with bilinear interpolation.

    Args:
        image: uint8 [h', w', 3], decoded at 1/reduce of its size.
        matrix: Map from output to full-size source, [2, 3].
        size: Height and width of the output.
        fill: Color of pixels whose center is outside the image.
        reduce: Reduction of ``image``.

    Returns:
        uint8 [h, w, 3].
    """
    matrix = matrix / reduce
    # Replicate the border for the half pixel beyond the outermost centers, which is still inside the image.
    warped = _warp(image, matrix, size, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    if _covers_only_frame(matrix, size, image.shape[:2]):
        return warped
    return cv2.copyTo(warped, _frame_mask(matrix, size, image.shape[:2]), np.full_like(warped, fill))


def warp_labels(labels: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: int) -> np.ndarray:
    """Warps labels with nearest-neighbor interpolation.

    Args:
        labels: uint8 [h, w].
        matrix: Map from output to source, [2, 3].
        size: Height and width of the output.
        fill: Label of pixels outside the frame.

    Returns:
        uint8 [*size].
    """
    return _warp(labels, matrix, size, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, fill)


def warp_flow(flow: np.ndarray, matrix: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> np.ndarray:
    """Warps a flow field with bilinear interpolation and transforms its vectors; 0 outside the frame.

    The vectors describe motion between this frame and the next one *under the same map*. With independent maps per
    frame they describe the motion of the scene, not where the next frame's own map shows it.

    Args:
        flow: float32 [h', w', 2], (dx, dy) in pixels of the frame; may have a lower resolution than the frame.
        matrix: Map from output to source, [2, 3].
        size: Height and width of the output.
        frame: Height and width of the frame in whose pixels the map is expressed.

    Returns:
        float32 [*size, 2], in pixels of the output.
    """
    grid = np.diag([flow.shape[1] / frame[1], flow.shape[0] / frame[0]]) @ matrix
    vectors = cv2.transform(flow, np.linalg.inv(matrix[:, :2]))  # before resampling: fewer vectors
    sampled = _warp(vectors, grid, size, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return sampled if _covers_only_frame(matrix, size, frame) else cv2.copyTo(sampled, _frame_mask(matrix, size, frame))


def _covers_only_frame(matrix: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> bool:
    """Returns whether the whole output lies inside the frame."""
    corners = matrix @ [[0, size[1], 0, size[1]], [0, 0, size[0], size[0]], [1, 1, 1, 1]]
    return bool((corners > -1e-6).all() and (corners < np.array(frame[::-1])[:, None] + 1e-6).all())


def _frame_mask(matrix: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> np.ndarray:
    """Returns 1 where an output pixel lies in the frame and 0 elsewhere, uint8 [*size]."""
    return _warp(np.ones(frame, np.uint8), matrix, size, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)


def _warp(pixels: np.ndarray, matrix: np.ndarray, size: tuple[int, int], interpolation: int, border: int,
          fill: int = 0) -> np.ndarray:
    # OpenCV puts the origin at the center of the first pixel.
    offset = matrix[:, :2].sum(1) / 2 + matrix[:, 2] - 0.5
    indices = np.column_stack([matrix[:, :2], offset])
    return cv2.warpAffine(pixels, indices, (size[1], size[0]), flags=interpolation | cv2.WARP_INVERSE_MAP,
                          borderMode=border, borderValue=fill)


def _box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> np.ndarray:
    """Returns the map that shows a box of the source."""
    return np.array([[(right - left) / size[1], 0, left], [0, (bottom - top) / size[0], top]], np.float64)


def _rotated(degrees: int, size: tuple[int, int], matrix: np.ndarray) -> np.ndarray:
    """Returns ``matrix`` with its image rotated counterclockwise about the center."""
    # Quarter turns are exact, so pixels map onto pixels.
    cosine, sine = (np.round(f(np.deg2rad(degrees)), 15) for f in (np.cos, np.sin))
    x, y = size[1] / 2, size[0] / 2
    turn = np.array([[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]])
    return compose(matrix, turn)


def _flipped(rng: np.random.Generator, probability: float, size: tuple[int, int], matrix: np.ndarray) -> np.ndarray:
    mirror = np.array([[-1.0, 0, size[1]], [0, 1, 0]])
    return compose(matrix, mirror) if rng.random() < probability else matrix


def _draw_span_start(rng: np.random.Generator, low: float, high: float, span: float, limit: float) -> float:
    """Draws the start of a span that contains [low, high] and, if possible, lies in [0, limit]."""
    first, last = (max(high - span, 0), min(low, limit - span)) if span <= limit else (limit - span, 0.0)
    return rng.uniform(min(first, last), last)  # rounding may swap first and last if they are equal


def _draw_offset(rng: np.random.Generator, room: int) -> int:
    """Draws an integer offset of a crop in a frame that is ``room`` pixels longer (shorter if negative)."""
    return int(rng.integers(min(room, 0), max(room, 0) + 1))
