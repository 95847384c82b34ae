"""A small AD-Net whose masks have foreground and background, and clips for it."""

import functools

import cv2
import jax
import numpy as np

from uvos_jax.inference import Segmenter
from uvos_jax.inference.loading import random_variables
from uvos_jax.models import build
from uvos_jax.ops.preprocess import preprocess

SMALL = {"depths": (1, 1, 1, 1), "width": 8, "aspp_features": 16, "embedding": 16, "hidden": 16, "short_side": 65}


def small_segmenter(variant: str = "paper", *, scales=(1.0,), flip: bool = False, **overrides) -> Segmenter:
    """Random weights, shifted so that half of a clip is foreground; the same for both variants."""
    model = build("adnet", variant=variant, **(SMALL | overrides))
    variables = random_variables(model)
    # A tame embedding keeps the softmax from picking single pixels, where rounding would decide.
    variables["params"]["embed"]["kernel"] *= 0.02
    # Decided logits: only a few pixels lie so near the threshold that rounding could turn them.
    if "classifier" in variables["params"]:
        variables["params"]["classifier"]["kernel"] *= 10
        logits = np.sort(against_the_first(model, variables, clip(21)[::5]), None)
        # Between two of them: a pixel right at the threshold would be decided by rounding.
        middle = float(logits[len(logits) // 2:][:2].mean())
        variables["params"]["classifier"]["bias"] -= middle - (0.5 if variant == "official" else 0.0)
    return Segmenter("adnet", model, jax.tree.map(np.asarray, variables), scales=scales, flip=flip)


@functools.partial(jax.jit, static_argnames=("model", "scale"),
                   compiler_options={"xla_backend_optimization_level": 0})
def against_the_first(model, variables, frames: np.ndarray, scale: float = 1.0) -> jax.Array:
    """Logits of all frames of a video at once, without the engine: the first one is everyone's anchor."""
    x = preprocess(frames, model.frame_size(frames.shape[1:3], scale), model.preprocess)
    features = model.apply(variables, {"frame": x}, method="encode")["embed"]
    state = model.apply(variables, {"embed": features[:1].repeat(len(frames), 0)}, method="init_state")
    return model.apply(variables, state, {"embed": features}, method="predict")[0]


def clip(length: int, size: tuple[int, int] = (48, 72), seed: int = 0) -> np.ndarray:
    """``[t, h, w, 3]`` uint8: a bright disc that moves over a still texture."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3)).astype(np.float32), (0, 0), 2)
    texture = (texture - texture.min()) / np.ptp(texture) * 160
    frames = []
    for t in range(length):
        frame = texture.copy()
        center = (int(size[1] * (0.2 + 0.6 * t / max(length - 1, 1))), size[0] // 2 + t % 5)
        cv2.circle(frame, center, min(size) // 4, (250, 220, 90), -1, cv2.LINE_AA)
        frames.append(frame.astype(np.uint8))
    return np.stack(frames)


def write_clip(folder, length: int = 3):
    """Writes the frames of ``clip`` as JPEG files into a new folder, and returns it."""
    folder.mkdir(parents=True)
    for i, frame in enumerate(clip(length)):
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), frame)
    return folder
