"""A small CFBI with bounded random weights, and clips for it."""

import numpy as np

from tests.helpers.random_variables import bounded, small_residuals
from uvos_jax.models import build
from uvos_jax.weights.convert import expected_torch_shapes, expected_variables
from uvos_jax.weights.parity import weights_of

SMALL = {"depths": (1, 1, 1, 1), "width": 4, "features": 16, "embedding": 8, "max_objects": 3, "references": 2,
         "short_side": 65}
SIZE = 65, 81  # (height, width) of its frames


def published(**overrides) -> dict[str, np.ndarray]:
    """Returns arrays by published key, drawn like those of the reference files."""
    shapes = expected_torch_shapes("cfbi", **SMALL | overrides)
    tame = [[r"feature_extracter\.backbone\.layer\d\.\d+\.bn3\.weight", 0.2], [r"bn2\.(weight|bias)", 0.2]]
    return weights_of({"keys": shapes, "scale": tame})


def small(seed: int = 0, **overrides):
    """Returns ``(model, variables)``; fields select rows of the paper's tables, values depend on the leaves' names."""
    model = build("cfbi", **SMALL | overrides)

    def damp(names):  # embeddings start small too, or all distances would be far
        return 0.2 if names[1:4] == ["embed", "pointwise", "norm"] else small_residuals(names)

    return model, bounded(expected_variables(model), seed, damp)


def boxes(size: tuple[int, int], *objects: tuple[int, float, float, float, float]) -> np.ndarray:
    """Draws boxes ``(label, top, left, height, width)``, relative to the sides; returns ``[h, w]`` uint8 labels."""
    labels = np.zeros(size, np.uint8)
    for label, *box in objects:
        top, left, height, width = (round(part * side) for part, side in zip(box, (*size, *size), strict=True))
        labels[top:top + height, left:left + width] = label
    return labels


def clip(b: int = 2, t: int = 4, size: tuple[int, int] = SIZE, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a clip batch: two colored boxes move over noise, with some void; one box is hidden once."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (b, t, *size, 3), dtype=np.uint8)
    labels = np.stack([[boxes(size, (1, 0.1 + 0.05 * i, 0.1 + 0.06 * j, 0.4, 0.3),
                              (2, 0.4, 0.5 - 0.05 * j, 0.5, 0.4), (255, 0.9, 0, 0.1, 0.3))
                        for j in range(t)] for i in range(b)])
    labels[0, t - 2] = np.where(labels[0, t - 2] == 1, 0, labels[0, t - 2])
    for label, color in ((1, (250, 60, 60)), (2, (60, 60, 250))):
        frames[labels == label] = color
    return {"frames": frames, "labels": labels}
