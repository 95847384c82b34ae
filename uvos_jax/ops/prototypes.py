"""Prototypes: a feature map told by a few vectors, and maps of where each of them is (DPA, Sec. 3)."""

import jax
import jax.numpy as jnp
from jax import lax

_SMALLEST_NORM = 1e-6  # of a vector that has a direction


def prototypes(embedding: jax.Array, *, detached: bool = False) -> jax.Array:
    """One prototype per channel: the mean of all pixels' embeddings, weighted by where that channel is strong.

    Args:
      embedding: ``[b, n, c]``, ``n`` pixels.
      detached: whether no gradient flows through the weights, as in DPA's published code.

    Returns:
      ``[b, c, c]``, float32: prototypes, then their channels. Weights are a softmax over the pixels.
    """
    embedding = embedding.astype(jnp.float32)
    weights = jax.nn.softmax(embedding, axis=1)
    weights = lax.stop_gradient(weights) if detached else weights
    return jnp.einsum("bnk,bnc->bkc", weights, embedding, precision=lax.Precision.HIGHEST)


def cosine_maps(vectors: jax.Array, pixels: jax.Array) -> jax.Array:
    """Cosine of every vector with every pixel.

    Args:
      vectors: ``[b, k, c]``.
      pixels: ``[b, n, c]``.

    Returns:
      ``[b, n, k]`` float32 in [-1, 1]; 0 (with a gradient of 0) where a norm is below 1e-6.
    """
    return jnp.einsum("bnc,bkc->bnk", _unit(pixels), _unit(vectors), precision=lax.Precision.HIGHEST)


def nearest_neighbors(x: jax.Array, count: int) -> jax.Array:
    """Indices of the nearest vectors by Euclidean distance, the vector itself among them.

    Args:
      x: ``[b, n, c]``.
      count: how many, at most ``n``.

    Returns:
      ``[b, n, count]`` int32, nearest first; of equals the lower index.
    """
    x = x.astype(jnp.float32)
    squares = jnp.square(x).sum(-1)
    products = jnp.einsum("bnc,bmc->bnm", x, x, precision=lax.Precision.HIGHEST)
    return lax.top_k(2 * products - squares[:, :, None] - squares[:, None, :], count)[1]


def _unit(x):
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    large = square > _SMALLEST_NORM**2
    return jnp.where(large, x * lax.rsqrt(jnp.where(large, square, 1)), 0)
