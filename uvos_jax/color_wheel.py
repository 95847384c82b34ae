"""The color wheel on which optical flow is drawn; NumPy alone, for all rooms."""

import numpy as np

# Steps between red, yellow, green, cyan, blue, magenta and red again (Baker et al., IJCV 2011).
_STEPS = (15, 6, 4, 11, 13, 6)
_CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))


def color_wheel() -> np.ndarray:
    """The 55 colors of the wheel, float64 ``[55, 3]`` RGB in [0, 1]."""
    colors = []
    for i, steps in enumerate(_STEPS):
        start, end = np.array(_CORNERS[i]), np.array(_CORNERS[(i + 1) % 6])
        # The published wheel holds whole levels of 255.
        ramp = np.floor(255 * np.arange(steps) / steps)[:, None] / 255
        colors.append(start + (end - start) * ramp)
    return np.concatenate(colors)
