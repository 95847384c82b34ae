"""A small F2Net with bounded random weights, and clips for it."""

import numpy as np

from tests.helpers.random_variables import bounded
from uvos_jax.models import build
from uvos_jax.weights.convert import expected_variables

SMALL = {"depths": (1, 1, 1, 1), "width": 4, "aspp_features": 8, "embedding": 16, "center_features": 8,
         "center_embedding": 4, "short_side": 65}


def small(seed: int = 0, **overrides):
    """Returns ``(model, variables)``; any score is a center unless ``min_peak_score`` is given."""
    model = build("f2net", **SMALL | {"min_peak_score": 0.0} | overrides)
    # Residual branches start small, or attention would pick single pixels; and heat should not saturate.
    variables = bounded(expected_variables(model), seed,
                        lambda names: 0.2 if names[-2:] == ["bn3", "scale"] else 1.0)
    if "center" in variables["params"]:
        variables["params"]["center"]["frame_heat"]["kernel"] *= np.float32(0.2)
    return model, variables


def clip(b: int = 2, size: tuple[int, int] = (65, 81), seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a clip batch: a bright box moves over noise in each example; the last example is a still."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (b, 3, *size, 3), dtype=np.uint8)
    labels = np.zeros((b, 3, *size), np.uint8)
    still = np.arange(b) == b - 1
    for i in range(b):
        for t in range(3):
            top, left = 10 + 6 * i + (0 if still[i] else 3 * t), 12 + 4 * i + (0 if still[i] else 6 * t)
            frames[i, t, top:top + 24, left:left + 30] = (250, 200, 60)
            labels[i, t, top:top + 24, left:left + 30] = 1 + i
        if still[i]:
            frames[i] = frames[i, :1]
    return {"frames": frames, "labels": labels, "still": still}
