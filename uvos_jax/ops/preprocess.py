"""Preprocessing of native uint8 frames to network input: resizing, channel order, normalization."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.ops.resize import resize_bicubic, resize_bilinear, resize_uint8_as_opencv, resize_uint8_as_pillow


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Frame preprocessing of a system: resize, reorder channels, scale, subtract the mean, divide.

    The steps are applied in this order, as in the published transform.

    Attributes:
        channels: ``"RGB"`` or ``"BGR"``, channel order of the network input.
        scale: Factor on the 0..255 values.
        mean: Subtracted after scaling; one value per channel in the order of ``channels``.
        std: Divisor after the subtraction; one value per channel.
        resize: ``"smooth"``: bilinear with antialiasing. ``"opencv"``: bilinear without antialiasing, in OpenCV's
            fixed-point arithmetic on uint8. ``"pillow"``: bilinear with antialiasing, rounded to integers as Pillow
            (and torchvision with it) resizes uint8 images. ``"cubic"``: bicubic without antialiasing, as OpenCV resizes
            float images.
    """

    channels: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "smooth"

    def replace(self, **changes) -> "Preprocess":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def preprocess(frames: jax.Array, size: tuple[int, int], rule: Preprocess) -> jax.Array:
    """Prepares frames for a network.

    Args:
        frames: ``[b, h, w, 3]`` RGB at native size, uint8 or integers from 0 to 255.
        size: Network ``(height, width)``.
        rule: Preprocessing of the system.

    Returns:
        ``[b, height, width, 3]`` float32.
    """
    if rule.resize == "opencv":
        x = resize_uint8_as_opencv(frames, size).astype(jnp.float32)
    elif rule.resize == "pillow":
        x = resize_uint8_as_pillow(frames, size)
    elif rule.resize == "cubic":
        x = resize_bicubic(frames, size, align_corners=False)
    elif size[0] >= frames.shape[1] and size[1] >= frames.shape[2]:
        x = resize_bilinear(frames, size, align_corners=False)
    else:
        x = jax.image.resize(frames.astype(jnp.float32), (len(frames), *size, 3), "linear", antialias=True)
    if rule.channels == "BGR":
        x = x[..., ::-1]
    return (x * rule.scale - np.asarray(rule.mean, np.float32)) / np.asarray(rule.std, np.float32)
