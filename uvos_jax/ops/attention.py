"""Dot-product attention over pixels: a plain reference form and a tiled form that never stores the affinity.

``n`` query pixels and ``k`` key pixels of one frame at 480x854 and stride 8 are 6,588 each: the affinity of one
pair of frames is 174 MB in float32. The tiled form walks over blocks of it and keeps, for every query, a running
maximum and a running sum (Rabe & Staats 2021; Milakov & Gimelshein 2018), so its memory is a constant.
"""

import jax
import jax.numpy as jnp
from jax import lax


def attention_weights(q: jax.Array, k: jax.Array, *, scale: float) -> jax.Array:
    """Row-wise softmax of scaled dot products.

    Args:
      q: ``[b, n, c]`` queries.
      k: ``[b, k, c]`` keys.
      scale: factor of the dot products, e.g. ``c ** -0.5``.

    Returns:
      ``[b, n, k]`` float32; every row sums to 1.
    """
    return jax.nn.softmax(_affinity(q, k) * scale, axis=-1)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float) -> jax.Array:
    """The reference form: ``softmax(q kᵀ · scale) v`` with the whole ``[b, n, k]`` matrix in memory.

    Args:
      q: ``[b, n, c]`` queries.
      k: ``[b, k, c]`` keys.
      v: ``[b, k, d]`` values.
      scale: factor of the dot products.

    Returns:
      ``[b, n, d]``, dtype of ``v``.
    """
    weights = attention_weights(q, k, scale=scale)
    return _mix(weights, v).astype(v.dtype)


def tiled_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float,
                    query_tile: int = 1024, key_tile: int = 1024) -> jax.Array:
    """Equals :func:`attention` up to rounding; stores at most ``[b, query_tile, key_tile]`` of the affinity.

    Tiles are made equal in size (so little is wasted on padding) and at most as large as asked. Gradients are
    computed tile by tile too: a tile's affinity is computed again in the backward pass instead of kept.

    Args:
      q: ``[b, n, c]`` queries.
      k: ``[b, k, c]`` keys.
      v: ``[b, k, d]`` values.
      scale: factor of the dot products.
      query_tile: queries per block; the best sizes depend on the device.
      key_tile: keys per block.

    Returns:
      ``[b, n, d]``, dtype of ``v``. Running sums are float32 whatever the inputs.
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
    """``[b, n, c] -> [tiles, b, rows, c]`` with equal rows, the last tile filled up with zeros."""
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
