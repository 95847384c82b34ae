"""Procedural color textures of synthetic clips: ground, sky, water and object surfaces.

All lengths in a texture are fractions of its longer side, and coarse detail is drawn before fine detail, so the same
generator gives the same image at another size, with more or less detail.
"""

import cv2
import numpy as np

# Dark, middle and light color (RGB) of materials that are common in videos.
_GROUNDS = {
    "grass": ((38, 52, 20), (86, 112, 44), (150, 168, 88)),
    "foliage": ((18, 34, 20), (48, 82, 40), (112, 140, 70)),
    "earth": ((52, 36, 24), (110, 80, 54), (170, 138, 100)),
    "sand": ((140, 112, 78), (196, 168, 124), (232, 212, 172)),
    "stone": ((58, 58, 60), (118, 116, 112), (184, 180, 172)),
    "snow": ((160, 172, 190), (214, 222, 230), (250, 250, 250)),
    "wood": ((58, 34, 18), (124, 80, 44), (182, 134, 84)),
    "brick": ((84, 40, 30), (150, 78, 58), (196, 130, 102)),
    "asphalt": ((40, 42, 46), (78, 80, 84), (126, 126, 124)),
    "plaster": ((150, 140, 124), (196, 188, 170), (228, 222, 206)),
}
_SKIES = {
    "clear": ((112, 152, 196), (166, 196, 222), (236, 240, 242)),
    "gray": ((130, 136, 142), (176, 180, 184), (222, 224, 224)),
    "dusk": ((92, 84, 112), (168, 128, 128), (236, 188, 146)),
}
_WATERS = {
    "sea": ((16, 44, 58), (44, 96, 116), (164, 196, 202)),
    "lake": ((22, 36, 34), (58, 84, 76), (150, 166, 150)),
    "pool": ((20, 92, 120), (60, 152, 176), (190, 226, 228)),
}
_COATS = {
    "fur": ((44, 28, 18), (128, 88, 52), (210, 180, 136)),
    "black": ((14, 14, 16), (44, 44, 48), (104, 104, 108)),
    "white": ((128, 124, 118), (200, 196, 190), (246, 244, 238)),
    "ginger": ((84, 42, 14), (178, 104, 44), (232, 182, 120)),
    "denim": ((22, 30, 52), (54, 74, 112), (116, 138, 170)),
    "skin": ((112, 68, 52), (186, 130, 104), (234, 190, 164)),
}


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: float = 3, roughness: float = 0.55) -> np.ndarray:
    """Draws 1/f noise, octave by octave.

    Args:
        rng: Random generator. The number of draws depends on the shape, so pass a separate generator.
        shape: (height, width).
        cells: Number of the largest bumps along the longer side.
        roughness: Amplitude of an octave relative to the next coarser one; 0.5 is 1/f.

    Returns:
        float32 [height, width], mean 0 and standard deviation 1.
    """
    height, width = shape
    side = max(shape)
    count = max(2, int(np.ceil(cells)))
    field = rng.standard_normal((count, count), np.float32)
    strength = 1.0
    while count < side / 2:
        count *= 2
        strength *= roughness
        field = cv2.resize(field, (count, count), interpolation=cv2.INTER_CUBIC)
        field += strength * rng.standard_normal((count, count), np.float32)
    field = cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC)[:height, :width]
    return (field - field.mean()) / (field.std() + 1e-6)


def texture(rng: np.random.Generator, shape: tuple[int, int], kind: str, scale: float = 1.0) -> np.ndarray:
    """Draws a textured, colored surface; about half of the ground and coat textures blend two materials.

    Args:
        rng: Random generator.
        shape: (height, width).
        kind: "ground", "sky", "water" or "coat" (surface of an object).
        scale: Number of details along the longer side, relative to a background.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    first, second, mixing, pattern = rng.spawn(4)
    color = _material(first, shape, kind, scale)
    if rng.random() < (0.5 if kind in ("ground", "coat") else 0):
        border = noise(mixing, shape, rng.uniform(2, 5), 0.6) - rng.uniform(-0.5, 0.8)
        share = np.clip(border / rng.uniform(0.1, 1.2), 0, 1)[..., None]
        color += share * (_material(second, shape, kind, scale) - color)
    color *= 1 + 0.1 * noise(pattern, shape, 2, 0.4)[..., None]
    return np.clip(color, 0, 255).astype(np.uint8)


def backdrop(rng: np.random.Generator, shape: tuple[int, int], water: bool = False) -> np.ndarray:
    """Draws a background: one surface, an open landscape or a room.

    Args:
        rng: Random generator.
        shape: (height, width).
        water: Whether the ground is water.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    height, width = shape
    above, below, skyline = rng.spawn(3)
    ground = texture(below, shape, "water" if water else "ground")
    scene = rng.choice(["surface", "landscape", "room"], p=[0.35, 0.45, 0.2])
    if scene == "surface":
        return ground
    # Perspective view of the ground plane: its detail shrinks towards the horizon.
    horizon = rng.uniform(0.34, 0.52)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    depth = np.maximum(y / height - horizon, 0) + 0.3
    ground = cv2.remap(
        ground,
        (x - width / 2) * (0.6 / depth).astype(np.float32) + width / 2,
        (1 - 0.75 / depth).astype(np.float32) * height,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    far = texture(above, shape, "sky" if scene == "landscape" else "ground").astype(np.float32)
    if scene == "landscape":
        bumps = noise(skyline, (1, width), rng.uniform(3, 8), 0.5)[0] * rng.uniform(0.004, 0.03)
        hills = np.clip((y / height - (horizon - 0.05) - 3 * bumps) * height / 2, 0, 1)[..., None]
        far = far + hills * (texture(skyline, shape, "ground") * 0.55 + far * 0.45 - far)
        edge = y / height - horizon - bumps / 4
    else:
        edge = y / height - horizon
    share = np.clip(edge * height / 1.5 + 0.5, 0, 1)[..., None]
    return (far + share * (ground - far)).astype(np.uint8)


def _material(rng: np.random.Generator, shape: tuple[int, int], kind: str, scale: float) -> np.ndarray:
    """Draws one pattern in the colors of one material, float32 [height, width, 3]."""
    coarse, fine = rng.spawn(2)
    stops = _colors(rng, kind)
    if kind == "sky":
        heights = np.linspace(rng.uniform(0, 0.3), rng.uniform(0.5, 0.9), shape[0], dtype=np.float32)
        level = heights[:, None] + rng.uniform(0, 0.25) * np.maximum(noise(coarse, shape, 3, 0.5), 0)
        relief = 0.0
    elif kind == "water":
        ripples = noise(coarse, (shape[0], shape[1] // 3 + 1), rng.uniform(20, 40), 0.5)
        level = 0.4 + 0.16 * cv2.resize(_ridged(ripples), shape[::-1], interpolation=cv2.INTER_LINEAR)
        relief = 0.1
    else:
        level = _pattern(coarse, shape, scale)
        relief = rng.uniform(0.05, 0.25)
    level = np.clip(level + rng.uniform(0.02, 0.07) * noise(fine, shape, 40, 0.8), 0, 1).astype(np.float32)
    places = (level * 1023).astype(np.int32)
    table = np.stack([np.interp(np.linspace(0, 2, 1024), range(3), channel) for channel in stops.T], 1)
    color = table.astype(np.float32)[places]
    if relief:
        # Relief: the lightness of the pattern is treated as height, lit from one side.
        smooth = cv2.GaussianBlur(level, (0, 0), max(shape) / 600 + 0.5)
        slope = cv2.Sobel(smooth, cv2.CV_32F, 1, 0) + cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        color *= 1 + relief * np.clip(slope / (2 * slope.std() + 1e-6), -1.5, 1.5)[..., None]
    return color


def _colors(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Draws the dark, middle and light color of a material, float [3, 3] RGB in 0..255."""
    if kind == "coat" and rng.random() < 0.4:
        # Cloth and paint can have any hue; only the saturation is bounded.
        hue, saturation = rng.uniform(0, 180), rng.uniform(50, 160)
        values = ((60, 1.1), (150, 1.0), (220, 0.7))
        hsv = np.array([[[hue, min(saturation * factor, 255), value] for value, factor in values]], np.uint8)
        stops = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].astype(float)
    else:
        known = {"ground": _GROUNDS, "sky": _SKIES, "water": _WATERS, "coat": _COATS}[kind]
        stops = np.array(known[rng.choice(list(known))], float)
    stops += rng.normal(0, 5, 3)
    return np.clip(stops * rng.uniform(0.75, 1.15), 4, 252)


def _pattern(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Draws the lightness pattern of a ground or coat, float32 [height, width], mostly within 0..1."""
    bends, details = rng.spawn(2)
    kind = rng.choice(["noise", "marble", "cells", "stripes", "checks", "spots", "plain"], p=_PATTERN_SHARES)
    if kind == "noise":
        return 0.5 + 0.2 * noise(details, shape, rng.uniform(4, 16) * scale, rng.uniform(0.55, 0.8))
    if kind == "spots":
        return 0.3 + 0.4 * _step(noise(details, shape, rng.uniform(8, 20) * scale, 0.4) - rng.uniform(-0.3, 0.8), 0.3)
    if kind == "plain":
        return 0.5 + 0.1 * noise(details, shape, 3, 0.6)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) / max(shape)
    bend = rng.uniform(0.005, 0.06) * noise(bends, shape, rng.uniform(3, 8), 0.45)
    if kind == "cells":
        return _cells(details, shape, int(rng.uniform(10, 26) * scale) + 2, rng.uniform(0.1, 0.5))
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle) + bend, y * np.cos(angle) - x * np.sin(angle) + bend
    count = 2 * np.pi * rng.uniform(6, 22) * scale
    if kind == "marble":
        return 0.5 + 0.3 * np.sin(count / 3 * (along + 3 * bend)) + 0.1 * noise(details, shape, 12, 0.6)
    stripes = _step(np.sin(count * along), rng.uniform(0.2, 1.0))
    if kind == "checks":
        stripes = (stripes + _step(np.sin(count * rng.choice([1, 1.5, 2]) * across), 0.4)) / 2
    return 0.3 + rng.uniform(0.2, 0.45) * stripes + 0.06 * noise(details, shape, 10, 0.7)


_PATTERN_SHARES = [0.26, 0.12, 0.16, 0.12, 0.08, 0.12, 0.14]


def _cells(rng: np.random.Generator, shape: tuple[int, int], count: int, joint: float) -> np.ndarray:
    """Draws Voronoi cells (paving, cracked earth, scales) of random lightness, with dark joints."""
    side = max(shape)
    corners = np.stack(np.mgrid[:count, :count], -1).reshape(-1, 2)
    points = ((corners + rng.uniform(0.1, 0.9, corners.shape)) * side / count).astype(int)
    values = rng.uniform(0.3, 0.8, count * count).astype(np.float32)
    seen = (points[:, 0] < shape[0]) & (points[:, 1] < shape[1])
    points, values = points[seen], values[seen]
    sites = np.ones(shape, np.uint8)
    sites[points[:, 0], points[:, 1]] = 0
    distance, nearest = cv2.distanceTransformWithLabels(sites, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    # OpenCV numbers the cells in an unspecified order.
    lightness = np.zeros(nearest.max() + 1, np.float32)
    lightness[nearest[points[:, 0], points[:, 1]]] = values
    relative = distance * count / side
    edges = (cv2.dilate(nearest.astype(np.float32), None) != nearest).astype(np.float32)
    edges = cv2.GaussianBlur(edges, (0, 0), side / count / 14 + 0.5)
    return lightness[nearest] * (1 - joint * np.minimum(2 * edges, 1)) - 0.15 * relative


def _step(values: np.ndarray, softness: float) -> np.ndarray:
    """Returns a soft step from 0 to 1 around 0."""
    return np.clip(values / softness + 0.5, 0, 1)


def _ridged(values: np.ndarray) -> np.ndarray:
    """Returns noise with sharp crests, like waves."""
    return 1 - 2 * np.abs(values)
