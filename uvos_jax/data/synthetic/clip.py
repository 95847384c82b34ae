"""Synthetic clips of textured, deforming objects, with exact labels and optical flow.

The content follows published recipes for learning to segment moving objects from generated clips: layered sprites as
in OCLR (Xie et al. 2022), smooth affine cameras and random shapes as in SIMO (Lamdouar et al. 2021), with procedural
textures and outlines instead of photographs. Distractors are included: rippling water, planes at several depths,
static things, occluders.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from uvos_jax.data.synthetic.compositor import GroundTruth, paint
from uvos_jax.data.synthetic.scene import Scene, draw_scene
from uvos_jax.errors import UserError

_MAX_EXPOSURES = 7


@dataclass(frozen=True)
class Clip:
    """A synthetic clip.

    Attributes:
        frames: uint8 [t, h, w, 3], RGB.
        labels: uint8 [t, h, w], 0 background, 1..k objects.
        flow: float32 [t, h, w, 2], (dx, dy) in pixels from the surface point at a pixel to its position in the next
            frame, even if it is occluded there. The last frame has flow too, since the scene continues.
    """

    frames: np.ndarray
    labels: np.ndarray
    flow: np.ndarray


def make_clip(
    seed: int,
    length: int = 8,
    size: tuple[int, int] = (240, 424),
    *,
    objects: tuple[int, int] = (1, 3),
    still_camera: bool = False,
    clean: bool = False,
) -> Clip:
    """Generates a clip; equal arguments give equal clips, and a longer clip starts with the shorter one.

    The scene does not depend on the size, for a given aspect ratio.

    Args:
        seed: Seed of the scene, 0 or more.
        length: Number of frames.
        size: (height, width).
        objects: Minimum and maximum number of objects; object 1 is visible in the first frame.
        still_camera: The camera does not move.
        clean: Omit shadows, changing light, blur, noise and JPEG, so that surface colors are constant.

    Returns:
        The clip.

    Raises:
        UserError: The seed, length, size or number of objects is out of range.
    """
    if length < 1:
        raise UserError(f"A synthetic clip needs at least one frame, not {length}.")
    scene = draw_scene(seed, size, objects, still_camera)
    rendered = [render(scene, time, size, clean) for time in range(length)]
    return Clip(*(np.stack(part) for part in zip(*rendered, strict=True)))


def render(scene: Scene, time: int, size: tuple[int, int], clean: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders one frame; labels and flow are those of the middle of the exposure.

    Args:
        scene: The scene.
        time: Index of the frame.
        size: (height, width).
        clean: See ``make_clip``.

    Returns:
        Frame, labels and flow as in ``Clip``, without the time axis.
    """
    canvas = np.zeros((*size, 3), np.float32)
    ground_truth = GroundTruth(np.zeros(size, np.uint8), np.zeros((*size, 2), np.float32))
    layers = [layer for layer in scene.layers if not (clean and layer.label is None)]
    for layer in layers:
        paint(canvas, layer, time, ground_truth)
    if clean:
        return np.round(canvas).astype(np.uint8), ground_truth.labels, ground_truth.flow
    # Enough exposures to blur edges continuously: about one per 3 pixels of motion.
    swept = scene.shutter * np.percentile(np.abs(ground_truth.flow[::4, ::4]).max(-1), 98)
    extra = min(int(np.ceil(swept / 6)) if swept > 0.7 else 0, _MAX_EXPOSURES // 2)
    total = canvas.copy()
    for step in (*range(-extra, 0), *range(1, extra + 1)):
        for layer in layers:
            paint(canvas, layer, time + scene.shutter / 2 * step / extra)
        total += canvas
    return _develop(scene, total / (2 * extra + 1), time), ground_truth.labels, ground_truth.flow


def _develop(scene: Scene, canvas: np.ndarray, time: int) -> np.ndarray:
    """Applies light, lens blur, sensor noise and JPEG to a rendered frame; returns uint8 [h, w, 3]."""
    height, width = canvas.shape[:2]
    gain, right, down = scene.light(time)
    x, y = np.linspace(-1, 1, width)[None], np.linspace(-1, 1, height)[:, None]
    vignette = 1 - 0.1 * (x**2 + y**2)
    canvas *= (gain * vignette + right * x + down * y).astype(np.float32)[..., None]
    if scene.blur > 0.25:
        canvas = cv2.GaussianBlur(canvas, (0, 0), scene.blur)
    grain = np.random.default_rng([scene.seed, time]).standard_normal(canvas.shape, np.float32)
    frame = np.clip(np.round(canvas + scene.noise * grain), 0, 255).astype(np.uint8)
    if scene.quality is None:
        return frame
    coded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, scene.quality])[1]
    return np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])
