"""Padding of frames to sides that are multiples of 8, as RAFT requires."""

import jax
import jax.numpy as jnp


def pad_to_eight(images: jax.Array, mode: str = "sintel") -> tuple[jax.Array, tuple[int, int, int, int]]:
    """Pads images by repeating border pixels until both sides are multiples of 8.

    Args:
        images: ``[b, h, w, c]``.
        mode: ``"sintel"`` pads both sides evenly, an odd pixel at the bottom or right; ``"kitti"`` does so in width and
            pads the height at the bottom only.

    Returns:
        The padded images and the padding ``(top, bottom, left, right)`` in pixels, for :func:`unpad`.
    """
    high, wide = (-n % 8 for n in images.shape[1:3])
    top, left = 0 if mode == "kitti" else high // 2, wide // 2
    padding = (top, high - top, left, wide - left)
    return jnp.pad(images, ((0, 0), padding[:2], padding[2:], (0, 0)), mode="edge"), padding


def unpad(images: jax.Array, padding: tuple[int, int, int, int]) -> jax.Array:
    """Removes the padding of :func:`pad_to_eight` from ``[b, h, w, c]``."""
    top, bottom, left, right = padding
    return images[:, top:images.shape[1] - bottom, left:images.shape[2] - right]
