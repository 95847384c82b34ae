"""Dot-product attention over pixels, in a plain form and in a tiled form of constant memory.

A frame of 480x854 at stride 8 has 6,588 pixels, so the affinity matrix of a pair of frames takes 174 MB in float32. The
tiled form never stores it: it is processed block by block, with a running maximum and a running sum for every query
(Rabe & Staats 2021; Milakov & Gimelshein 2018).
"""

import jax
import jax.numpy as jnp
from jax import lax


def attention_weights(q: jax.Array, k: jax.Array, *, scale: float) -> jax.Array:
    """Computes the row-wise softmax of scaled dot products.

    Args:
        q: Queries, ``[b, n, c]``.
        k: Keys, ``[b, k, c]``.
        scale: Factor on the dot products, e.g. ``c ** -0.5``.

    Returns:
        ``[b, n, k]`` float32; every row sums to 1.
    """
    return jax.nn.softmax(_affinity(q, k) * scale, axis=-1)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float) -> jax.Array:
    """Computes ``softmax(q kᵀ · scale) v`` with the whole ``[b, n, k]`` matrix in memory.

    Args:
        q: Queries, ``[b, n, c]``.
        k: Keys, ``[b, k, c]``.
        v: Values, ``[b, k, d]``.
        scale: Factor on the dot products.

    Returns:
        ``[b, n, d]``, dtype of ``v``.
    """
    weights = attention_weights(q, k, scale=scale)
    return _mix(weights, v).astype(v.dtype)


def tiled_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float,
                    query_tile: int = 1024, key_tile: int = 1024) -> jax.Array:
    """Computes :func:`attention` up to rounding without storing the affinity matrix.

    At most ``[b, query_tile, key_tile]`` of it is in memory. Tiles have equal sizes, to waste little on padding, and
    are at most as large as requested. Gradients are computed tile by tile too: the backward pass recomputes the
    affinity of a tile.

    Args:
        q: Queries, ``[b, n, c]``.
        k: Keys, ``[b, k, c]``.
        v: Values, ``[b, k, d]``.
        scale: Factor on the dot products.
        query_tile: Largest number of queries per tile; the best sizes depend on the device.
        key_tile: Largest number of keys per tile.

    Returns:
        ``[b, n, d]``, dtype of ``v``. Running sums are float32 for every input dtype.
    """
    b, n, _ = q.shape
    n_keys, d = v.shape[1:]
    q_tiles = _tiles(q, query_tile)
    k_tiles, v_tiles = _tiles(k, key_tile), _tiles(v, key_tile)
    count, size = k_tiles.shape[0], k_tiles.shape[2]
    is_key = (jnp.arange(count * size) < n_keys).reshape(count, size)

    def one_query_tile(q_tile):
        @jax.checkpoint
        def one_key_tile(carry, tile):
            maximum, total, mixed = carry
            k_tile, v_tile, is_key_tile = tile
            score = jnp.where(is_key_tile, _affinity(q_tile, k_tile) * scale, -jnp.inf)
            new_maximum = jnp.maximum(maximum, score.max(-1, keepdims=True))
            # The maximum only keeps exp in range: it cancels in the result, so no gradient flows through it.
            new_maximum = lax.stop_gradient(new_maximum)
            kept = jnp.exp(maximum - new_maximum)
            weights = jnp.exp(score - new_maximum)
            return (new_maximum, total * kept + weights.sum(-1, keepdims=True),
                    mixed * kept + _mix(weights, v_tile)), None

        rows = q_tile.shape[1]
        start = (jnp.full((b, rows, 1), -jnp.inf, jnp.float32), jnp.zeros((b, rows, 1), jnp.float32),
                 jnp.zeros((b, rows, d), jnp.float32))
        (_, total, mixed), _ = lax.scan(one_key_tile, start, (k_tiles, v_tiles, is_key))
        return mixed / total

    out = lax.map(one_query_tile, q_tiles)  # [tiles, b, rows, d]
    return jnp.moveaxis(out, 0, 1).reshape(b, -1, d)[:, :n].astype(v.dtype)


def _tiles(x, at_most):
    """Splits ``[b, n, c]`` into ``[tiles, b, rows, c]`` of equal rows, the last one padded with zeros."""
    b, n, c = x.shape
    count = -(-n // at_most)
    rows = -(-n // count)
    x = jnp.pad(x, ((0, 0), (0, count * rows - n), (0, 0)))
    return jnp.moveaxis(x.reshape(b, count, rows, c), 1, 0)


def _affinity(q, k):
    return jnp.einsum("bnc,bkc->bnk", q, k, precision=_precision(q), preferred_element_type=jnp.float32)


def _mix(weights, v):
    return jnp.einsum("bnk,bkd->bnd", weights.astype(v.dtype), v, precision=_precision(v),
                      preferred_element_type=jnp.float32)


def _precision(x):
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
