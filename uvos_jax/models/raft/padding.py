"""Padding of frames to sides that are multiples of 8, as RAFT needs them."""

import jax
import jax.numpy as jnp


def pad_to_eight(images: jax.Array, mode: str = "sintel") -> tuple[jax.Array, tuple[int, int, int, int]]:
    """Repeats border pixels until both sides are multiples of 8.

    Args:
      images: ``[b, h, w, c]``.
      mode: ``"sintel"``: half of the padding on either side, the odd pixel behind; ``"kitti"``: as that in width, all
        of the height's at the bottom.

    Returns:
      The padded images, and what was added ``(top, bottom, left, right)``, for :func:`unpad`.
    """
    high, wide = (-n % 8 for n in images.shape[1:3])
    top, left = 0 if mode == "kitti" else high // 2, wide // 2
    padding = (top, high - top, left, wide - left)
    return jnp.pad(images, ((0, 0), padding[:2], padding[2:], (0, 0)), mode="edge"), padding


def unpad(images: jax.Array, padding: tuple[int, int, int, int]) -> jax.Array:
    """Takes the padding of :func:`pad_to_eight` off ``[b, h, w, c]``."""
    top, bottom, left, right = padding
    return images[:, top:images.shape[1] - bottom, left:images.shape[2] - right]
