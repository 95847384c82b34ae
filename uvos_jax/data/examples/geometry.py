"""Where the pixels of a training example come from: one affine map a frame, and one interpolation.

A map is a float64 [2, 3] array that takes a position (x, y) of the output to the source. Positions are continuous: a
picture spans [0, width] x [0, height] and the center of its first pixel is (0.5, 0.5), so that a map does not depend
on the resolution at which pixels are sampled. A function that draws maps takes ``(rng, labels, size, **options)``:
the labels of the clip's frames [t, h, w] (one frame of them where frames get maps of their own), the size (height,
width) of the output; and returns one map.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from uvos_jax.config_schema import Option, boolean, color, fraction, integer, interval, optional
from uvos_jax.data.storage.store import REDUCTIONS, VOID

_MEAN_COLOR = (124, 116, 104)  # of ImageNet, so that what is outside a frame is about 0 after normalization
_LARGEST_ZOOM = 4.0  # of a crop around the foreground; without a bound a foreground of few pixels would fill the output
_TRIES = 5  # of a balanced crop (CFBI's configuration)


def resize(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int], *, flip: float = 0.0) -> np.ndarray:
    """The whole frame, its aspect not kept.

    Args:
        rng: Random numbers.
        labels: uint8 [t, h, w].
        size: Height and width of the output.
        flip: Probability of mirroring left and right.

    Returns:
        The map, [2, 3].
    """
    height, width = labels.shape[1:]
    return _flipped(rng, flip, size, _box(0, 0, width, height, size))


def foreground_crop(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int], *, flip: float = 0.0,
                    upright: float = 0.51) -> np.ndarray:
    """A region of random size around the foreground of all frames, turned by a multiple of 45 degrees (AD-Net, Sec. 4).

    The paper does not say how a region becomes the network's input: here it has the shape of the output, so that
    nothing is distorted, and turns about its center, which may take part of the foreground out of sight. Without
    a turn all of it is inside; the region reaches beyond the frame only if no region of its shape holds it otherwise.

    Args:
        rng: Random numbers.
        labels: uint8 [t, h, w]; foreground is what is neither 0 nor 255, anywhere in the frame if there is none.
        size: Height and width of the output.
        flip: Probability of mirroring, of which the paper says nothing.
        upright: Probability of no turn; the other seven are equally probable.

    Returns:
        The map, [2, 3].
    """
    height, width = labels.shape[1:]
    foreground = ((labels > 0) & (labels < VOID)).any(0)
    rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
    largest = min(width / size[1], height / size[0])  # source pixels for one of the output
    smallest = largest / _LARGEST_ZOOM
    if rows.size:
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        smallest = max(smallest, (right - left) / size[1], (bottom - top) / size[0])
    scale = rng.uniform(smallest, max(smallest, largest))
    spans = scale * size[1], scale * size[0]
    if not rows.size:
        left, top = rng.uniform(0, width - spans[0]), rng.uniform(0, height - spans[1])
        right, bottom = left + spans[0], top + spans[1]
    x = _around(rng, left, right, spans[0], width)
    y = _around(rng, top, bottom, spans[1], height)
    turn = 0 if rng.random() < upright else 45 * int(rng.integers(1, 8))
    return _flipped(rng, flip, size, _turned(turn, size, _box(x, y, x + spans[0], y + spans[1], size)))


def random_crop(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int], *, short_side: int | None = None,
                scale: tuple[float, float] = (1.0, 1.3), flip: float = 0.5, balanced: bool = False) -> np.ndarray:
    """A crop of the output's size out of the frame at a random scale (CFBI, D-Net, F2Net).

    Where the scaled frame is smaller than the crop, the crop reaches beyond it.

    Args:
        rng: Random numbers.
        labels: uint8 [t, h, w].
        size: Height and width of the output.
        short_side: The frame's shorter side at scale 1, in pixels; as it is if None.
        scale: Smallest and largest scale.
        flip: Probability of mirroring left and right.
        balanced: Whether up to five places are tried until the first frame's crop holds foreground.

    Returns:
        The map, [2, 3].
    """
    height, width = labels.shape[1:]
    step = min(height, width) / ((short_side or min(height, width)) * rng.uniform(*scale))  # source pixels a pixel
    for _ in range(_TRIES if balanced else 1):
        # Whole pixels of the scaled frame, so that nothing is interpolated at scale 1.
        x, y = (step * _place(rng, int(side / step + 1e-6) - span)
                for side, span in ((width, size[1]), (height, size[0])))
        matrix = _box(x, y, x + step * size[1], y + step * size[0], size)
        if balanced:
            seen = warp_labels(labels[0], matrix, size, VOID)
            if ((seen > 0) & (seen < VOID)).any():
                break
    return _flipped(rng, flip, size, matrix)


def margin_crop(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int], *, flip: float = 0.5,
                margin: int = 30, turn: float = 0.2, degrees: int = 15) -> np.ndarray:
    """The frame less a margin, turned a little, its aspect not kept (DPA's published code).

    Args:
        rng: Random numbers.
        labels: uint8 [t, h, w].
        size: Height and width of the output.
        flip: Probability of mirroring left and right.
        margin: Height and width each lose a random whole number of pixels below this one, half of it on either side.
        turn: Probability of a turn.
        degrees: Largest turn; whole degrees are drawn.

    Returns:
        The map, [2, 3].
    """
    height, width = labels.shape[1:]
    rows, columns = (min(int(rng.integers(margin)), side - 1) for side in (height, width))
    left, top = columns // 2, rows // 2
    span = height - rows, width - columns
    angle = int(rng.integers(-degrees, degrees + 1)) if rng.random() < turn else 0
    crop = _turned(angle, span, _box(left, top, left + span[1], top + span[0], span))
    return _flipped(rng, flip, size, compose(crop, _box(0, 0, span[1], span[0], size)))


@dataclass(frozen=True)
class Kind:
    """A row of ``KINDS``.

    Attributes:
        draw: ``(rng, labels, size, **options) -> map``.
        options: The options it knows.
        fill: Color of what is outside the frame, RGB.
        fill_label: Its label.
    """

    draw: Callable[..., np.ndarray]
    options: dict[str, Option]
    fill: tuple[int, int, int] = _MEAN_COLOR
    fill_label: int = VOID


KINDS = {
    "resize": Kind(resize, {"flip": fraction(0.0)}),
    "foreground_crop": Kind(foreground_crop, {"flip": fraction(0.0), "upright": fraction(0.51)}),
    "random_crop": Kind(random_crop, {
        "short_side": optional(integer(None, 1, 2**15 - 1)), "scale": interval((1.0, 1.3), 0.01, 100),
        "flip": fraction(0.5), "balanced": boolean(False)}),
    "margin_crop": Kind(margin_crop, {
        "flip": fraction(0.5), "margin": integer(30, 1), "turn": fraction(0.2),
        "degrees": integer(15, 0, 180)}, fill=(0, 0, 0), fill_label=0),
}


def options_of(kind: str) -> dict[str, Option]:
    """Returns the options of a kind: its own, and those that all of them have."""
    row = KINDS[kind]
    return row.options | {"independent": boolean(False), "fill": color(row.fill),
                          "fill_label": integer(row.fill_label, 0, 255)}


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Returns the map that applies ``inner`` and then ``outer``."""
    return outer[:, :2] @ inner + [[0, 0, outer[0, 2]], [0, 0, outer[1, 2]]]


def reduction(matrix: np.ndarray) -> int:
    """Returns the largest of ``REDUCTIONS`` at which a frame can be decoded and still has the output's detail.

    What remains for the interpolation is a step of less than two pixels, as long as no frame shrinks by over 16.
    """
    step = np.linalg.svd(matrix[:, :2], compute_uv=False)[-1]  # of the axis that shrinks less
    return max(reduce for reduce in REDUCTIONS if reduce <= max(1.0, step + 1e-9))


def warp_image(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: tuple[int, int, int],
               reduce: int = 1) -> np.ndarray:
    """Samples an image, bilinear.

    Args:
        image: uint8 [h', w', 3], decoded at 1/reduce of its size.
        matrix: Output to source at full size, [2, 3].
        size: Height and width of the output.
        fill: Color of pixels whose center is outside the image.
        reduce: See above.

    Returns:
        uint8 [h, w, 3].
    """
    matrix = matrix / reduce
    # The edge is repeated for the half pixel beyond the outermost centers, which is inside the image.
    warped = _warp(image, matrix, size, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    if _is_within(matrix, size, image.shape[:2]):
        return warped
    return cv2.copyTo(warped, _inside(matrix, size, image.shape[:2]), np.full_like(warped, fill))


def warp_labels(labels: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: int) -> np.ndarray:
    """Samples labels, nearest.

    Args:
        labels: uint8 [h, w].
        matrix: Output to source, [2, 3].
        size: Height and width of the output.
        fill: Label of pixels outside.

    Returns:
        uint8 [*size].
    """
    return _warp(labels, matrix, size, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, fill)


def warp_flow(flow: np.ndarray, matrix: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> np.ndarray:
    """Samples a flow field, bilinear, and turns and scales its vectors with the picture; 0 outside.

    The vectors are those between this frame and the next one *under the same map*: with a map for each frame they
    are the motion of the scene, and say nothing of where the next frame's own map shows it.

    Args:
        flow: float32 [h', w', 2], (dx, dy) in pixels of the frame, perhaps at fewer places than the frame has pixels.
        matrix: Output to source, [2, 3].
        size: Height and width of the output.
        frame: Height and width of the frame, in whose pixels the map counts.

    Returns:
        float32 [*size, 2], in pixels of the output.
    """
    grid = np.diag([flow.shape[1] / frame[1], flow.shape[0] / frame[0]]) @ matrix
    vectors = cv2.transform(flow, np.linalg.inv(matrix[:, :2]))  # before there are more of them
    sampled = _warp(vectors, grid, size, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return sampled if _is_within(matrix, size, frame) else cv2.copyTo(sampled, _inside(matrix, size, frame))


def _is_within(matrix: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> bool:
    """Says whether the whole output shows places of the frame."""
    corners = matrix @ [[0, size[1], 0, size[1]], [0, 0, size[0], size[0]], [1, 1, 1, 1]]
    return bool((corners > -1e-6).all() and (corners < np.array(frame[::-1])[:, None] + 1e-6).all())


def _inside(matrix: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> np.ndarray:
    """Returns 1 where a pixel of the output lies in the frame and 0 elsewhere, uint8 [*size]."""
    return _warp(np.ones(frame, np.uint8), matrix, size, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)


def _warp(pixels: np.ndarray, matrix: np.ndarray, size: tuple[int, int], interpolation: int, border: int,
          fill: int = 0) -> np.ndarray:
    # OpenCV counts from the center of the first pixel.
    offset = matrix[:, :2].sum(1) / 2 + matrix[:, 2] - 0.5
    indices = np.column_stack([matrix[:, :2], offset])
    return cv2.warpAffine(pixels, indices, (size[1], size[0]), flags=interpolation | cv2.WARP_INVERSE_MAP,
                          borderMode=border, borderValue=fill)


def _box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> np.ndarray:
    """Returns the map that shows a box of the source."""
    return np.array([[(right - left) / size[1], 0, left], [0, (bottom - top) / size[0], top]], np.float64)


def _turned(degrees: int, size: tuple[int, int], matrix: np.ndarray) -> np.ndarray:
    """Returns ``matrix`` with its picture turned anticlockwise about its center."""
    # Quarter turns are exact, so that they move pixels onto pixels.
    cosine, sine = (np.round(f(np.deg2rad(degrees)), 15) for f in (np.cos, np.sin))
    x, y = size[1] / 2, size[0] / 2
    turn = np.array([[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]])
    return compose(matrix, turn)


def _flipped(rng: np.random.Generator, probability: float, size: tuple[int, int], matrix: np.ndarray) -> np.ndarray:
    mirror = np.array([[-1.0, 0, size[1]], [0, 1, 0]])
    return compose(matrix, mirror) if rng.random() < probability else matrix


def _around(rng: np.random.Generator, low: float, high: float, span: float, limit: float) -> float:
    """Draws where a span begins that holds [low, high] and, if it can, lies in [0, limit]."""
    first, last = (max(high - span, 0), min(low, limit - span)) if span <= limit else (limit - span, 0.0)
    return rng.uniform(min(first, last), last)  # rounding may put a single place in the wrong order


def _place(rng: np.random.Generator, room: int) -> int:
    """Draws a whole offset of a crop in a frame that is ``room`` pixels longer, or shorter if it is negative."""
    return int(rng.integers(min(room, 0), max(room, 0) + 1))
