"""Shapes of the objects in synthetic clips: blobs, creatures and vehicles made of articulated parts."""

from dataclasses import dataclass

import cv2
import numpy as np

# Outlines are rasterized at this multiple of the resolution, so that thin parts keep their width.
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class BodyPart:
    """A part of an object in its rest position; lengths in radii of the object, y downwards.

    Attributes:
        outlines: Closed polygons [n, 2]; the part is their union.
        holes: Closed polygons [n, 2] cut out of it.
        parent: Index of the part that this one is attached to; None for the root.
        pivot: (x, y) of the joint.
        swing: Maximum angle to either side of the rest position, radians.
        phase: Phase of the swing at time 0, radians.
        coat: Texture of the part, 0 or 1 of the object's two textures.
        rolls: Whether it is a wheel, which rotates with the motion of the object.
    """

    outlines: tuple[np.ndarray, ...]
    holes: tuple[np.ndarray, ...] = ()
    parent: int | None = None
    pivot: tuple[float, float] = (0.0, 0.0)
    swing: float = 0.0
    phase: float = 0.0
    coat: int = 0
    rolls: bool = False


@dataclass(frozen=True)
class Shape:
    """An object at rest.

    Attributes:
        parts: Parts from the farthest to the nearest; a parent may come later in the list.
        upright: Whether it stands on the ground; otherwise it may have any orientation.
        stiffness: 0 for rubber, 1 for metal.
        bottom: y of its lowest point.
    """

    parts: tuple[BodyPart, ...]
    upright: bool
    stiffness: float
    bottom: float = 1.0


def draw_shape(rng: np.random.Generator) -> Shape:
    """Draws the shape of an object.

    Args:
        rng: Random generator.

    Returns:
        A shape of radius about 1.
    """
    makers = [_blob, _many_armed, _biped, _quadruped, _wheeled, _winged]
    return makers[rng.choice(len(makers), p=[0.22, 0.12, 0.22, 0.2, 0.12, 0.12])](rng)


def signed_distance(part: BodyPart, radius: float, margin: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Computes the signed distance to the outline of a part.

    Args:
        part: The part.
        radius: Radius of the object in pixels.
        margin: Margin around the part, in pixels.

    Returns:
        The signed distance in pixels, float32 [h, w], negative inside; and (x, y), the column and row of the object's
        origin in that array.
    """
    points = np.concatenate(part.outlines) * radius
    low = np.floor(points.min(0) - margin)
    width, height = np.ceil(points.max(0) + margin - low).astype(int) + 1
    mask = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    for polygons, value in ((part.outlines, 1), (part.holes, 0)):
        for polygon in polygons:
            # The center of an output pixel is the middle of _SUPERSAMPLING x _SUPERSAMPLING subpixels.
            corners = (polygon * radius - low + 0.5) * _SUPERSAMPLING - 0.5
            cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], value, shift=4)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    # The outline runs between two pixels, half a pixel from each.
    distance = np.where(mask, 0.5 - inside, outside - 0.5) / _SUPERSAMPLING
    distance = cv2.resize(distance.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return distance, (float(-low[0]), float(-low[1]))


def ellipse(center: tuple[float, float], width: float, height: float, angle: float = 0.0) -> np.ndarray:
    """Returns an ellipse with these half axes, rotated by an angle in radians, as a polygon [n, 2]."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x, y = width * np.cos(turn), height * np.sin(turn)
    return np.stack(
        [center[0] + x * np.cos(angle) - y * np.sin(angle), center[1] + x * np.sin(angle) + y * np.cos(angle)], 1
    )


def _limb(start, end, start_width: float, end_width: float) -> np.ndarray:
    """Returns a tapered limb with round ends, given the half widths at its start and end."""
    start, end = np.array(start, float), np.array(end, float)
    angle = np.arctan2(end[1] - start[1], end[0] - start[0])
    half = np.linspace(-np.pi / 2, np.pi / 2, 12)
    cap = np.stack([np.cos(half + angle), np.sin(half + angle)], 1)
    return np.concatenate([end + end_width * cap, start - start_width * cap])


def curve(points: np.ndarray) -> np.ndarray:
    """Returns the closed Catmull-Rom curve through points [n, 2] as a polygon [12 n, 2]."""
    before, after, beyond = np.roll(points, 1, 0), np.roll(points, -1, 0), np.roll(points, -2, 0)
    u = np.linspace(0, 1, 12, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (side[:, None] for side in (before, points, after, beyond))
    inner, outer = p1 + (p2 - p0) / 6, p2 - (p3 - p1) / 6
    segments = (1 - u) ** 3 * p1 + 3 * (1 - u) ** 2 * u * inner + 3 * (1 - u) * u**2 * outer + u**3 * p2
    return segments.reshape(-1, 2)


def _lump(rng: np.random.Generator, center, size: float, roughness: float, count: int = 9) -> np.ndarray:
    """Returns a closed smooth curve around a center, whose radius varies by a fraction ``roughness``."""
    angles = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    radii = size * (1 + roughness * rng.uniform(-1, 1, count))
    return curve(np.array(center) + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1))


def _blob(rng: np.random.Generator) -> Shape:
    """Returns one smooth lump, sometimes with a hole."""
    outline = _lump(rng, (0, 0), 0.85, rng.uniform(0.05, 0.5), int(rng.integers(6, 12)))
    outline = outline * np.array([1, rng.uniform(0.5, 1)])
    holes = ()
    if rng.random() < 0.4:
        side = rng.uniform(-0.12, 0.12)
        holes = (_lump(rng, (side, 0), rng.uniform(0.15, 0.26), 0.2) * np.array([1, 0.8]),)
    return Shape((BodyPart((outline,), holes),), False, rng.uniform(0, 0.6))


def _many_armed(rng: np.random.Generator) -> Shape:
    """Returns a body with thin arms all around, like an octopus, spider or plant."""
    count = int(rng.integers(3, 8))
    body = count  # after the arms, which are behind it
    parts = []
    for arm in range(count):
        angle = 2 * np.pi * (arm + rng.uniform(-0.25, 0.25)) / count
        out = np.array([np.cos(angle), np.sin(angle)])
        reach = rng.uniform(0.75, 1.1)
        limb = _limb(0.25 * out, reach * out, rng.uniform(0.1, 0.18), rng.uniform(0.03, 0.06))
        parts.append(BodyPart((limb,), (), body, tuple(0.3 * out), rng.uniform(0.1, 0.5), rng.uniform(0, 2 * np.pi)))
    lumps = (_lump(rng, (0, 0), 0.45, 0.15), ellipse(rng.uniform(-0.15, 0.15, 2), 0.45, 0.33, rng.uniform(0, 3)))
    return Shape((*parts, BodyPart(lumps, coat=int(rng.integers(2)))), False, rng.uniform(0, 0.5))


def _biped(rng: np.random.Generator) -> Shape:
    """Returns a person-like figure: the far limbs, body and head, the near limbs."""
    hip, neck = 0.12, -0.55
    wide = rng.uniform(0.15, 0.24)
    arm, leg = rng.uniform(0.045, 0.075), rng.uniform(0.07, 0.11)
    stride, phase = rng.uniform(0.25, 0.75), rng.uniform(0, 2 * np.pi)
    lean = rng.uniform(-0.12, 0.12)
    body = 4
    knee, foot = (0.05, 0.55), (0.0, 0.97)
    elbow, hand = (-0.04, -0.12), (0.08, 0.16)

    def side(first: int, late: float, spread: float) -> list[BodyPart]:
        """Returns a leg and an arm that swing in opposition; lower limbs are attached to upper limbs."""
        shoulder = (lean + spread, neck + 0.13)
        upper_leg = BodyPart((_limb((spread, hip), knee, leg, 0.8 * leg),), (), body, (spread, hip), stride, late, 1)
        shin = BodyPart(
            (_limb(knee, foot, 0.8 * leg, 0.5 * leg), _limb(foot, (foot[0] + 0.13, foot[1]), 0.05, 0.04)),
            (), first, knee, 0.6 * stride, late - 1.2, 1,
        )  # fmt: skip
        upper_arm = BodyPart((_limb(shoulder, elbow, arm, 0.8 * arm),), (), body, shoulder, stride, late + np.pi)
        forearm = BodyPart(
            (_limb(elbow, hand, 0.8 * arm, 0.6 * arm),), (), first + 2, elbow, 0.5 * stride, late + 2.2
        )
        return [upper_leg, shin, upper_arm, forearm]

    head = (lean * 1.3 + 0.02, neck - 0.2)
    torso = BodyPart(
        (
            _limb((lean, neck + 0.16), (0, hip), wide, 0.75 * wide),
            _limb((lean, neck + 0.1), head, 0.07, 0.07),
            ellipse(head, rng.uniform(0.12, 0.15), rng.uniform(0.15, 0.18)),
        )
    )
    parts = (*side(0, phase, 0.03), torso, *side(5, phase + np.pi, -0.03))
    return Shape(parts, True, rng.uniform(0.6, 0.95))


def _quadruped(rng: np.random.Generator) -> Shape:
    """Returns a four-legged animal facing right: far legs, tail, body with neck and head, near legs."""
    deep, leg = rng.uniform(0.2, 0.32), rng.uniform(0.05, 0.085)
    height, stride, phase = rng.uniform(0.45, 0.75), rng.uniform(0.25, 0.6), rng.uniform(0, 2 * np.pi)
    x, y = rng.uniform(0.8, 1.0), -rng.uniform(0.25, 0.75)  # of the head
    body = 5
    coat = int(rng.integers(2))

    def limb(first: int, x: float, late: float) -> list[BodyPart]:
        top, knee = (x, 0.12), (x + 0.05, 0.12 + height * 0.5)
        foot = (x - 0.02, 0.12 + height)
        upper = BodyPart((_limb(top, knee, 1.6 * leg, leg),), (), body, top, stride, late, coat)
        return [upper, BodyPart((_limb(knee, foot, leg, 0.75 * leg),), (), first, knee, 0.8 * stride, late - 1.3, coat)]

    tail = BodyPart(
        (_limb((-0.6, -0.08), (-1.0, rng.uniform(-0.5, 0.3)), 0.06, 0.025),), (), body, (-0.6, -0.08), 0.5, phase
    )
    trunk = BodyPart(
        (
            ellipse((0, 0), 0.68, deep, rng.uniform(-0.1, 0.1)),
            _limb((0.45, -0.05), (x - 0.08, y), 0.6 * deep, 0.11),
            _limb((x - 0.1, y - 0.03), (x + 0.15, y + 0.06), 0.13, 0.06),
            _limb((x - 0.1, y - 0.08), (x - 0.13, y - 0.28), 0.05, 0.02),
        )
    )
    far = limb(0, -0.42, phase) + limb(2, 0.46, phase + 2.5)
    near = limb(6, -0.5, phase + np.pi) + limb(8, 0.38, phase + 2.5 + np.pi)
    return Shape((*far, tail, trunk, *near), True, rng.uniform(0.5, 0.9), 0.15 + height)


def _wheeled(rng: np.random.Generator) -> Shape:
    """Returns a bicycle, with thin parts and holes, or a car, both in side view."""
    hubs = ((-0.58, 0.35), (0.58, 0.35))
    if rng.random() < 0.45:
        wheel, body = rng.uniform(0.3, 0.4), 4
        wheels = []
        for hub in hubs:
            angles = np.arange(5) * 2 * np.pi / 5
            ends = [(hub[0] + 0.9 * wheel * np.cos(a), hub[1] + 0.9 * wheel * np.sin(a)) for a in angles]
            inside = (ellipse(hub, 0.82 * wheel, 0.82 * wheel),)
            wheels.append(BodyPart((ellipse(hub, wheel, wheel),), inside, body, hub, coat=1, rolls=True))
            spokes = tuple(_limb(hub, end, 0.03, 0.02) for end in ends)
            wheels.append(BodyPart(spokes, (), body, hub, coat=1, rolls=True))
        rear, front = hubs
        seat, pedals, head, bars = (-0.22, -0.25), (-0.05, 0.35), (0.42, -0.15), (0.38, -0.35)
        tubes = [(rear, seat), (seat, head), (head, pedals), (pedals, seat), (rear, pedals), (front, bars)]
        tubes += [(bars, (0.2, -0.4)), ((-0.33, -0.3), (-0.1, -0.3))]
        frame = BodyPart(tuple(_limb(a, b, 0.035, 0.035) for a, b in tubes))
        return Shape((*wheels, frame), True, 1.0, hubs[0][1] + wheel)
    wheel = rng.uniform(0.15, 0.22)
    roof, nose = rng.uniform(-0.5, -0.2), rng.uniform(-0.1, 0.1)
    corners = [(-0.98, 0.33), (-0.97, nose), (-0.6, roof + 0.05), (-0.2, roof), (0.2, roof + 0.02)]
    corners += [(0.5, nose - 0.03), (0.95, nose + 0.08), (1.0, 0.33), (0.0, 0.36)]
    window = _lump(rng, (0, 0), 0.14, 0.1) + np.array([-0.15, (roof + nose) / 2 + 0.02])
    cabin = BodyPart((curve(np.array(corners)),), (window,) if rng.random() < 0.4 else ())
    wheels = [BodyPart((ellipse(hub, wheel, wheel),), (), 0, hub, coat=1, rolls=True) for hub in hubs]
    return Shape((cabin, *wheels), True, 1.0, hubs[0][1] + wheel)


def _winged(rng: np.random.Generator) -> Shape:
    """Returns a bird, bat, fish or ray: a slender body, two wings or fins, a tail."""
    beat, phase = rng.uniform(0.2, 0.7), rng.uniform(0, 2 * np.pi)
    span, deep = rng.uniform(0.5, 1.1), rng.uniform(0.13, 0.25)
    body = 2

    def wing(sign: int) -> BodyPart:
        tip = (rng.uniform(-0.6, -0.1), sign * span)
        corners = [(0.3, 0.0), (0.2, sign * 0.5 * span), tip, (-0.2, sign * 0.4 * span), (-0.3, 0.0)]
        return BodyPart((curve(np.array(corners)),), (), body, (0.0, 0.0), beat, phase if sign > 0 else phase + np.pi)

    tail = BodyPart(
        (curve(np.array([(-0.5, 0.0), (-1.05, -0.3), (-0.9, 0.0), (-1.05, 0.3)])),), (), body, (-0.5, 0), 0.4, phase, 1
    )
    trunk = BodyPart((ellipse((0, 0), 0.72, deep), ellipse((0.68, 0), 0.2, 0.8 * deep)))
    return Shape((wing(1), tail, trunk, wing(-1)), False, rng.uniform(0.3, 0.8))
