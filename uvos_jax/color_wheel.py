"""The color wheel for drawing optical flow (Baker et al., IJCV 2011)."""

import numpy as np

# Number of colors from red to yellow, green, cyan, blue, magenta and back to red (Baker et al., IJCV 2011).
_STEPS = (15, 6, 4, 11, 13, 6)
_CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))


def color_wheel() -> np.ndarray:
    """Returns the 55 colors of the wheel, float64 [55, 3], RGB, 0..1."""
    colors = []
    for i, steps in enumerate(_STEPS):
        start, end = np.array(_CORNERS[i]), np.array(_CORNERS[(i + 1) % 6])
        # The published wheel has integer levels of 255.
        ramp = np.floor(255 * np.arange(steps) / steps)[:, None] / 255
        colors.append(start + (end - start) * ramp)
    return np.concatenate(colors)
