"""Prototypes: a feature map summarized by a few vectors, and their similarity maps (DPA, Sec. 3)."""

import jax
import jax.numpy as jnp
from jax import lax

_SMALLEST_NORM = 1e-6  # shorter vectors count as zero


def prototypes(embedding: jax.Array, *, detached: bool = False) -> jax.Array:
    """Computes one prototype per channel: the mean embedding weighted by a softmax of that channel.

    Args:
        embedding: ``[b, n, c]``, ``n`` pixels.
        detached: Whether the weights receive no gradient, as in the published code of DPA.

    Returns:
        ``[b, c, c]`` float32: prototypes, then their channels. The softmax runs over the pixels.
    """
    embedding = embedding.astype(jnp.float32)
    weights = jax.nn.softmax(embedding, axis=1)
    weights = lax.stop_gradient(weights) if detached else weights
    return jnp.einsum("bnk,bnc->bkc", weights, embedding, precision=lax.Precision.HIGHEST)


def cosine_maps(vectors: jax.Array, pixels: jax.Array) -> jax.Array:
    """Computes the cosine similarity of every vector with every pixel.

    Args:
        vectors: ``[b, k, c]``.
        pixels: ``[b, n, c]``.

    Returns:
        ``[b, n, k]`` float32 in [-1, 1]; 0 (with a gradient of 0) where a norm is below 1e-6.
    """
    return jnp.einsum("bnc,bkc->bnk", _normalize(pixels), _normalize(vectors), precision=lax.Precision.HIGHEST)


def nearest_neighbors(x: jax.Array, count: int) -> jax.Array:
    """Finds the nearest vectors by Euclidean distance, including the vector itself.

    Args:
        x: ``[b, n, c]``.
        count: Number of neighbors, at most ``n``.

    Returns:
        Indices ``[b, n, count]`` int32, nearest first; ties by lower index.
    """
    x = x.astype(jnp.float32)
    squares = jnp.square(x).sum(-1)
    products = jnp.einsum("bnc,bmc->bnm", x, x, precision=lax.Precision.HIGHEST)
    return lax.top_k(2 * products - squares[:, :, None] - squares[:, None, :], count)[1]


def _normalize(x):
    """Normalizes vectors to length 1; vectors shorter than 1e-6 become 0 without a gradient."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    large = square > _SMALLEST_NORM**2
    return jnp.where(large, x * lax.rsqrt(jnp.where(large, square, 1)), 0)
