"""From native uint8 frames to what a network eats: resize, channel order, normalization."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.ops.resize import resize_bicubic, resize_bilinear, resize_uint8_as_opencv, resize_uint8_as_pillow


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How a system prepares a frame (its published transform, in order: resize, reorder, scale, shift, divide).

    Attributes:
      channels: ``"RGB"`` or ``"BGR"``, the order in which the network sees the channels.
      scale: factor of the 0..255 values.
      mean: subtracted after scaling, one per channel in the order of ``channels``.
      std: divisor after subtraction, one per channel.
      resize: ``"smooth"`` bilinear interpolation whose kernel grows as a frame shrinks, so that no pixel is skipped; or
        ``"opencv"``, bilinear between neighbors whatever the scale, in OpenCV's fixed-point form on uint8; or
        ``"pillow"``, the smooth one in whole numbers, as Pillow (and torchvision with it) resizes uint8 images; or
        ``"cubic"``, bicubic between neighbors whatever the scale, as OpenCV resizes float images.
    """

    channels: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "smooth"

    def replace(self, **changes) -> "Preprocess":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def preprocess(frames: jax.Array, size: tuple[int, int], rule: Preprocess) -> jax.Array:
    """Prepares frames for a network.

    Args:
      frames: ``[b, h, w, 3]`` RGB at native size, uint8 or whole numbers from 0 to 255.
      size: the network's ``(height, width)``.
      rule: the system's transform.

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
