"""Random scenes of synthetic clips: background, objects and camera, each with smooth motion."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from uvos_jax.data.synthetic.compositor import Layer, Oscillation, Ripples, paint
from uvos_jax.data.synthetic.shapes import BodyPart, Shape, curve, draw_shape, ellipse, signed_distance
from uvos_jax.data.synthetic.textures import backdrop, noise, texture
from uvos_jax.errors import UserError

_MIN_SIDE = 32
_MAX_OBJECTS = 20
# Size of the background relative to the frame; it is mirrored beyond its border.
_BACKGROUND_SCALE = 1.7


@dataclass(frozen=True)
class Scene:
    """The content of a clip at any time, and the properties of the camera.

    Attributes:
        layers: From the farthest to the nearest.
        shutter: Exposure time, in frames.
        blur: Standard deviation of the lens blur, in pixels.
        noise: Standard deviation of the sensor noise, in gray levels.
        quality: JPEG quality applied to the frames, or None.
        light: Relative brightness of the frame and its slopes to the right and downwards, over time.
        seed: Seed of the sensor noise.
    """

    layers: tuple[Layer, ...]
    shutter: float
    blur: float
    noise: float
    quality: int | None
    light: Oscillation
    seed: int


def draw_scene(seed: int, size: tuple[int, int], objects: tuple[int, int], still_camera: bool) -> Scene:
    """Draws a scene; the arguments are those of ``make_clip``.

    Raises:
        UserError: The seed, size or number of objects is out of range.
    """
    if seed < 0:
        raise UserError(f"The seed of a synthetic clip must be 0 or more, not {seed}.")
    if min(size) < _MIN_SIDE:
        raise UserError(f"A synthetic clip must be at least {_MIN_SIDE} pixels high and wide, not {size}.")
    if not 0 <= objects[0] <= objects[1] <= _MAX_OBJECTS:
        raise UserError(f"A synthetic clip can have 0 to {_MAX_OBJECTS} objects, not {objects[0]} to {objects[1]}.")
    # Separate generators, so that no element depends on the number of draws of another.
    choices, ground_rng, plane_rng, front_rng, camera_rng, film_rng, *object_rngs = np.random.default_rng(seed).spawn(
        6 + _MAX_OBJECTS
    )
    unit = float(np.sqrt(size[0] * size[1]))
    count = int(choices.integers(objects[0], objects[1], endpoint=True))
    water, plane, front = choices.random(3) < (0.12, 0.3, 0.28)
    sun = choices.uniform(-0.9 * np.pi, -0.1 * np.pi)
    movers = [_draw_moving_object(rng, size, first=n == 0, crowd=count) for n, rng in enumerate(object_rngs[:count])]
    camera = _camera(camera_rng, size, still_camera, movers[0].path if movers else None)
    layers = [_background(ground_rng, size, camera, bool(water), sun)]
    if plane:
        layers.append(_middle_plane(plane_rng, size, camera))
    numbers = choices.permutation(count)
    for number in numbers:
        layers += _object_layers(movers[number], int(number) + 1, camera, sun)
    if front:
        layers.append(_occluder(front_rng, size, camera))
    return Scene(
        tuple(layers),
        shutter=film_rng.uniform(0.2, 0.9) if film_rng.random() < 0.6 else 0.0,
        blur=film_rng.uniform(0, 0.9) * unit / 320,
        noise=film_rng.uniform(0.3, 6) if film_rng.random() < 0.7 else 0.3,
        quality=int(film_rng.integers(40, 92)) if film_rng.random() < 0.35 else None,
        light=_draw_oscillation(
            film_rng, np.array([film_rng.uniform(0.85, 1.15), 0, 0]), film_rng.uniform(0, 0.1, 3), 0.02, 0.25
        ),
        seed=int(film_rng.integers(2**32)),
    )


@dataclass(frozen=True)
class _MovingObject:
    """An object before its layers are built: shape, path and deformation."""

    rng: np.random.Generator
    shape: Shape
    radius: float
    path: Oscillation
    turn: Oscillation
    facing: float
    stride: float
    ripples: Ripples | None


def _draw_moving_object(rng: np.random.Generator, size: tuple[int, int], first: bool, crowd: int) -> _MovingObject:
    """Draws an object that wanders, crosses the frame or moves in place."""
    height, width = size
    unit = float(np.sqrt(height * width))
    shape = draw_shape(rng)
    largest = {1: 0.48, 2: 0.33}.get(crowd, 0.25)  # many objects are smaller
    radius = unit * _log_uniform(rng, 0.35 * largest, largest)
    speed = unit * _log_uniform(rng, 0.003, 0.028)
    way = rng.choice(["wander", "cross", "stay"], p=[0.6, 0.2, 0.2])
    across = {"wander": rng.uniform(0.12, 0.35), "cross": rng.uniform(0.6, 0.9), "stay": 0.02}[way] * width
    down = (0.1 if shape.upright else 0.6) * rng.uniform(0.2, 1) * min(across, 0.3 * width)
    # A second, faster sine keeps the path from being an ellipse.
    amplitude = np.array([[across, down], [0.15 * across, 0.3 * down]])
    rate = np.minimum(speed / amplitude * np.array([[1.0, 0.7], [0.9, 0.9]]), 0.4)
    phase = rng.uniform(0, 2 * np.pi, (2, 2))
    begin = np.array([rng.uniform(-0.28, 0.28) * width, rng.uniform(-0.12, 0.2) * height])
    path = Oscillation(np.zeros(2), amplitude, rate, phase)
    if way != "cross" or first:
        path = Oscillation(begin - path(0), amplitude, rate, phase)
    # Angle and logarithm of the scale.
    free = 0.1 if shape.upright else rng.uniform(0.1, 1.2)
    angle = 0.0 if shape.upright else rng.uniform(0, 6.3)
    turn = _draw_oscillation(rng, np.array([angle, 0]), np.array([free, 0.15]), 0.03, 0.12)
    wavelength = radius * rng.uniform(1.3, 2.6)
    ripples = _draw_ripples(rng, wavelength, rng.uniform(0.25, 0.6) * (1 - shape.stiffness), 0.06, 0.4)
    facing = 1.0 if path(1)[0] >= path(0)[0] else -1.0
    return _MovingObject(rng, shape, radius, path, turn, facing, _log_uniform(rng, 0.12, 0.5), ripples)


def _object_layers(mover: _MovingObject, label: int, camera: Callable, sun: float) -> list[Layer]:
    """Builds the layers of an object: its shadow on the ground, then its parts from far to near."""
    rng, shape, radius = mover.rng, mover.shape, mover.radius
    outlines = [signed_distance(part, radius, 3.0) for part in shape.parts]
    ends = [np.array(origin) for _, origin in outlines]
    low = -np.max(ends, 0).astype(int)
    high = np.max([np.array(d.shape[::-1]) - o for (d, _), o in zip(outlines, ends, strict=True)], 0).astype(int)
    room = (int(high[1] - low[1]), int(high[0] - low[0]))
    coats = [texture(own, room, "coat", _log_uniform(rng, 0.25, 0.8)) for own in rng.spawn(2)]
    body = _body_pose(mover, camera)
    layers = []
    if shape.upright and rng.random() < 0.7:
        layers.append(_shadow(mover, camera, rng.uniform(0.25, 0.5)))
    for part, (distance, origin) in zip(shape.parts, outlines, strict=True):
        x, y = (-np.array(origin) - low).astype(int)
        color = coats[part.coat][y : y + distance.shape[0], x : x + distance.shape[1]]
        shaded = _shade(color, distance, sun, mover.facing)
        layers.append(Layer(label, shaded, distance, origin, _part_pose(mover, part, body), mover.ripples))
    return layers


def _body_pose(mover: _MovingObject, camera: Callable) -> Callable:
    """Returns the map from the rest position of an object to the frame."""

    def pose(time: float) -> np.ndarray:
        angle, scale = mover.turn(time)
        return camera(time, 1.0) @ _similarity(mover.path(time), angle, np.exp(scale)) @ np.diag([mover.facing, 1, 1])

    return pose


def _part_pose(mover: _MovingObject, part: BodyPart, body: Callable) -> Callable:
    """Returns the map from the rest position of a part to the frame.

    The part rotates about its joint and follows its parent.
    """
    parent = body if part.parent is None else _part_pose(mover, mover.shape.parts[part.parent], body)
    pivot = np.array(part.pivot) * mover.radius
    if part.rolls:
        reach = mover.radius * np.linalg.norm(part.outlines[0] - part.pivot, axis=1).max()

    def pose(time: float) -> np.ndarray:
        if part.rolls:
            angle = mover.facing * (mover.path(time)[0] - mover.path.offset[0]) / reach
        else:
            angle = part.swing * np.sin(mover.stride * time + part.phase)
        return parent(time) @ _similarity(pivot, angle, 1.0) @ _similarity(-pivot, 0.0, 1.0)

    return pose if part.rolls or part.swing else parent


def _shadow(mover: _MovingObject, camera: Callable, opacity: float) -> Layer:
    """Returns a soft dark ellipse on the ground below an object."""
    width, height = 0.75 * mover.radius, 0.14 * mover.radius
    foot = mover.shape.bottom * mover.radius
    distance, origin = signed_distance(BodyPart((ellipse((0, 0), width, height),)), 1.0, 0.6 * height + 2)

    def pose(time: float) -> np.ndarray:
        _, scale = mover.turn(time)
        x, y = mover.path(time)
        return camera(time, 1.0) @ _similarity((x, y + np.exp(scale) * foot), 0.0, np.exp(scale))

    dark = np.full((*distance.shape, 3), (14, 16, 22), np.uint8)
    return Layer(None, dark, distance, origin, pose, softness=1.2 * height, opacity=opacity)


def _shade(color: np.ndarray, distance: np.ndarray, sun: float, facing: float) -> np.ndarray:
    """Shades a part as convex: darker at the rim, brighter towards the sun (an angle in the frame)."""
    deepest = max(-float(distance.min()), 1.0)
    rim = np.clip(1 + distance / (0.9 * deepest), 0, 1)
    bulge = cv2.GaussianBlur(np.sqrt(1 - rim**2), (0, 0), 0.15 * deepest + 0.5)
    slope_x = cv2.Sobel(bulge, cv2.CV_32F, 1, 0) * (deepest / 8)
    slope_y = cv2.Sobel(bulge, cv2.CV_32F, 0, 1) * (deepest / 8)
    towards = slope_x * float(-np.cos(sun) * facing) + slope_y * float(-np.sin(sun))
    light = 0.72 + 0.3 * bulge + 0.3 * np.clip(towards, -1, 1)
    return np.clip(color * light[..., None], 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, size: tuple[int, int], camera: Callable, water: bool, sun: float) -> Layer:
    """Returns the farthest layer: moving water, or a backdrop that may contain static things (label 0)."""
    height, width = (int(np.ceil(_BACKGROUND_SCALE * side)) for side in size)
    unit = float(np.sqrt(size[0] * size[1]))
    origin = ((width - 1) / 2, (height - 1) / 2)
    if water:
        color = texture(rng, (height, width), "water")
        ripples = _draw_ripples(rng, unit * rng.uniform(0.12, 0.3), rng.uniform(0.25, 0.55), 0.2, 0.8)
        drift = _draw_oscillation(rng, np.zeros(2), unit * rng.uniform(0, 0.15, 2), 0.02, 0.06)
        return Layer(0, color, None, origin, lambda t: camera(t, 1.0) @ _similarity(drift(t), 0.0, 1.0), ripples)
    color = backdrop(rng, (height, width), water=rng.random() < 0.1)
    if rng.random() < 0.45:
        canvas = color.astype(np.float32)
        for own in rng.spawn(int(rng.integers(1, 4))):
            thing = _draw_moving_object(own, size, first=True, crowd=3)
            for layer in _object_layers(thing, 0, lambda *_: _similarity(np.array(origin), 0.0, 1.0), sun):
                paint(canvas, layer, 0)
        color = np.clip(canvas, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        # Out of focus. Only the background is, so the surface is blurred and not the frame.
        color = cv2.GaussianBlur(color, (0, 0), unit / 320 * rng.uniform(0.7, 3))
    return Layer(0, color, None, origin, lambda time: camera(time, 1.0))


def _middle_plane(rng: np.random.Generator, size: tuple[int, int], camera: Callable) -> Layer:
    """Returns a plane between background and objects: a bank, a hedge, or a shore."""
    height, width = size
    unit = float(np.sqrt(height * width))
    parallax = rng.uniform(1.1, 1.6)
    profile = noise(rng.spawn(1)[0], (1, 96), rng.uniform(3, 9), rng.uniform(0.3, 0.6))[0]
    top = height * (rng.uniform(0.08, 0.35) + rng.uniform(0.01, 0.05) * profile)
    x = np.linspace(-1.1 * width, 1.1 * width, 96)
    outline = np.concatenate([np.stack([x, top], 1), [[x[-1], 1.2 * height], [x[0], 1.2 * height]]])
    water = rng.random() < 0.3
    ripples = _draw_ripples(rng, unit * 0.2, rng.uniform(0.2, 0.45), 0.15, 0.6) if water or rng.random() < 0.3 else None
    return _scenery(rng, outline[None], "water" if water else "ground", camera, parallax, ripples)


def _occluder(rng: np.random.Generator, size: tuple[int, int], camera: Callable) -> Layer:
    """Returns scenery in front of the objects: a trunk, a fence or a bush."""
    height, width = size
    unit = float(np.sqrt(height * width))
    kind = rng.choice(["trunk", "fence", "bush"])
    place = rng.uniform(-0.45, 0.45) * width
    y = np.linspace(-1.2 * height, 1.2 * height, 60)
    if kind == "bush":
        angles = np.arange(40) * 2 * np.pi / 40
        size_at = unit * (rng.uniform(0.25, 0.4) + 0.025 * noise(rng.spawn(1)[0], (1, 40), 12, 0.6)[0])
        lumps = np.stack([1.3 * size_at * np.cos(angles) + place, size_at * np.sin(angles) + 0.62 * height], 1)
        outlines = [curve(lumps)]
    else:
        bars = [0.0] if kind == "trunk" else (np.arange(5) - 2.0) * rng.uniform(0.18, 0.3) * unit
        half = unit * (rng.uniform(0.03, 0.09) if kind == "trunk" else rng.uniform(0.006, 0.016))
        rough = 0.12 * half if kind == "trunk" else 0.0
        outlines = []
        for bar, own in zip(bars, rng.spawn(len(bars)), strict=True):
            left, right = noise(own, (2, 60), 8, 0.6) * rough
            sides = [np.stack([place + bar - half + left, y], 1), np.stack([place + bar + half + right, y], 1)[::-1]]
            outlines.append(np.concatenate(sides))
    return _scenery(rng, outlines, "ground", camera, rng.uniform(1.2, 1.8), None)


def _scenery(rng: np.random.Generator, outlines, kind: str, camera: Callable, parallax: float, ripples) -> Layer:
    """Returns a textured plane with the given outlines, at a depth given by its parallax."""
    distance, origin = signed_distance(BodyPart(tuple(outlines)), 1.0, 3.0)
    color = texture(rng, distance.shape, kind)
    return Layer(0, color, distance, origin, lambda time: camera(time, parallax), ripples)


def _camera(rng: np.random.Generator, size: tuple[int, int], still: bool, target: Oscillation | None) -> Callable:
    """Draws a camera: static, hand-held, panning with zoom and rotation, or following an object.

    Returns:
        A function of time and of the parallax of a plane (1 for the ground of the objects). It returns the map from
        the plane, with its origin in the middle of the frame, to the frame, float [3, 3].
    """
    height, width = size
    unit = float(np.sqrt(height * width))
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    way = "still" if still else rng.choice(["still", "hand", "pan", "follow"], p=[0.15, 0.25, 0.35, 0.25])
    if way == "still":
        return lambda time, parallax: _similarity(middle, 0.0, 1.0)
    speed = unit * _log_uniform(rng, 0.0025, 0.02)
    reach = unit * rng.uniform(0.08, 0.3) * rng.uniform(0.2, 1, 2)
    if way == "hand":
        speed, reach = 0.2 * speed, 0.1 * reach
    rate = np.minimum(speed / reach, 0.3)[None]
    phase = rng.uniform(0, 2 * np.pi, (1, 2))
    pan = Oscillation(-reach * np.sin(phase[0]), reach[None], rate, phase)
    shake = _draw_oscillation(rng, np.zeros(2), unit * np.full(2, rng.uniform(0, 0.004)), 0.5, 2.2)
    # Angle and logarithm of the zoom.
    sway = np.array([rng.uniform(0, 0.1), rng.uniform(0, 0.18)]) * (0.15 if way == "hand" else 1.0)
    view = _draw_oscillation(rng, np.zeros(2), sway, 0.02, 0.1)
    share = rng.uniform(0.6, 1.0) if way == "follow" and target is not None else 0.0

    def camera(time: float, parallax: float) -> np.ndarray:
        angle, zoom = view(time)
        place = pan(time) + (share * (target(time) - target(0)) if share else 0.0)
        seen = _similarity(middle + shake(time), angle, np.exp(zoom))
        return seen @ _similarity(-parallax * place, 0.0, 1.0)

    return camera


def _similarity(move: np.ndarray | tuple[float, float], angle: float, scale: float) -> np.ndarray:
    """Returns the map that scales, then rotates, then translates, float [3, 3]."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, move[0]], [sin, cos, move[1]], [0.0, 0.0, 1.0]])


def _draw_oscillation(
    rng: np.random.Generator, offset: np.ndarray, amplitude: np.ndarray, slow: float, fast: float
) -> Oscillation:
    """Draws two sines with the given total amplitude and rates between slow and fast (radians per frame)."""
    shape = (2, len(offset))
    shares = np.array([[0.7], [0.3]])
    return Oscillation(offset, shares * amplitude, rng.uniform(slow, fast, shape), rng.uniform(0, 2 * np.pi, shape))


def _draw_ripples(rng: np.random.Generator, length: float, strength: float, slow: float, fast: float) -> Ripples | None:
    """Draws three waves of about the given length (pixels) whose |amplitude| |wave| sum to the strength."""
    if strength < 0.02:
        return None
    angles, towards = rng.uniform(0, 2 * np.pi, (2, 3))
    numbers = 2 * np.pi / (length * rng.uniform(0.8, 1.6, 3))
    sizes = strength * rng.dirichlet([3, 3, 3]) / numbers
    return Ripples(
        numbers[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1),
        sizes[:, None] * np.stack([np.cos(towards), np.sin(towards)], 1),
        rng.uniform(slow, fast, 3),
        rng.uniform(0, 2 * np.pi, 3),
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a positive number with uniform logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
