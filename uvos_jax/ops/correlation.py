"""All-pairs correlation of two feature maps, read at moving windows (RAFT, Sec. 3.2).

The volume holds the product of every pixel of the first map with every pixel of the second one, over a pyramid of the
second; its memory grows with the square of the picture. ``lookup_on_demand`` reads the same windows without it.

A window of (2 r + 1)**2 points touches (2 r + 2)**2 pixels. They are cut out, and as all points lie at one fraction
between pixels, bilinear reading is a product with a small matrix for the rows and another for the columns. Beyond the
border the matrices are empty, which is the zero padding of the published code.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# Query pixels that lookup_on_demand works on at once: 26 MB of features at 256 channels and radius 4.
_CHUNK = 256
# Up to so many pixels, all products with a map take less time than collecting the features that windows touch.
_WHOLE = 10_000


def feature_pyramid(features: jax.Array, levels: int) -> tuple[jax.Array, ...]:
    """Halves a feature map ``levels - 1`` times by 2x2 means; an odd last row or column is dropped.

    Args:
      features: ``[b, h, w, c]`` float.
      levels: number of maps.

    Returns:
      ``levels`` maps ``[b, h // 2**l, w // 2**l, c]``; small pictures end in maps without pixels.
    """
    maps = [features]
    for _ in range(levels - 1):
        b, h, w, c = maps[-1].shape
        even = maps[-1][:, :h // 2 * 2, :w // 2 * 2]
        maps.append(even.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4)))
    return tuple(maps)


def correlation_volumes(first: jax.Array, pyramid: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Products of all pixels of one map with all pixels of each map of a pyramid, over ``sqrt(c)``.

    The published code pools the finest volume instead; products with pooled features are the same numbers.

    Args:
      first: ``[b, h, w, c]`` float32.
      pyramid: of the second picture, maps ``[b, h_l, w_l, c]``.

    Returns:
      A volume ``[b * h * w, h_l, w_l]`` for each level.
    """
    b, h, w, c = first.shape
    queries = first.reshape(b, h * w, c) * c**-0.5
    return tuple(jnp.einsum("bqc,bhwc->bqhw", queries, level, precision=lax.Precision.HIGHEST)
                 .reshape(b * h * w, *level.shape[1:3]) for level in pyramid)


def lookup(volumes: tuple[jax.Array, ...], points: jax.Array, radius: int) -> jax.Array:
    """Reads a window of every level of a stored correlation volume around a point for each query pixel.

    Args:
      volumes: of ``correlation_volumes``.
      points: ``[b, h, w, 2]`` float32 (x, y) in pixels of the finest level.
      radius: of the windows, in pixels of each level.

    Returns:
      ``[b, h, w, levels * (2 radius + 1)**2]``. Within a window the *first* axis moves along x and the second along
      y, as in the published code.
    """
    flat = points.reshape(-1, 2)
    windows = []
    for i, volume in enumerate(volumes):
        size, corners = _cuts(flat / 2**i, volume.shape[1:], radius)
        cuts = jax.vmap(partial(_cut, size=size))(volume, corners)
        windows.append(_read(cuts, flat / 2**i, corners, radius))
    return jnp.concatenate(windows, -1).reshape(*points.shape[:3], -1)


def _cuts(points, size, radius):
    """Height and width of what windows touch in a map of ``size``, and its first (row, column) ``[q, 2]`` for each."""
    cut = tuple(min(2 * radius + 2, n) for n in size)
    last = jnp.array([n - m for n, m in zip(size, cut, strict=True)], jnp.float32)
    return cut, jnp.clip(jnp.floor(points[:, ::-1]) - radius, 0, last).astype(jnp.int32)


def _cut(image, corner, size):
    """Rows and columns ``size`` of ``[h, w, ...]`` from a corner on."""
    image = lax.dynamic_slice_in_dim(image, corner[0], size[0], axis=0)
    return lax.dynamic_slice_in_dim(image, corner[1], size[1], axis=1)


def _read(cuts, points, corners, radius):
    """Windows ``[q, (2 radius + 1)**2]`` around points ``[q, 2]`` of a map, from what was cut out of it at corners."""
    rows, columns = (_bilinear_weights(points[:, 1 - axis] - corners[:, axis], cuts.shape[1 + axis], radius) for axis in range(2))
    precision = lax.Precision.HIGHEST
    narrow = jnp.einsum("qby,qyx->qbx", rows, cuts, precision=precision)
    window = jnp.einsum("qax,qbx->qab", columns, narrow, precision=precision)
    return window.reshape(len(points), (2 * radius + 1) ** 2)


def _bilinear_weights(centers, size, radius):
    """Bilinear weights ``[q, 2 radius + 1, size]`` of ``size`` pixels for the points ``center - radius ...``."""
    points = centers[:, None] + jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    return jnp.maximum(0, 1 - jnp.abs(points[..., None] - jnp.arange(size, dtype=jnp.float32)))


def lookup_on_demand(first: jax.Array, pyramid: tuple[jax.Array, ...], points: jax.Array, radius: int) -> jax.Array:
    """As ``lookup(correlation_volumes(first, pyramid), points, radius)``, without the volumes.

    A few query pixels at a time are multiplied with the pixels that their windows touch, or with all of a small map.
    Memory grows with the picture and not with its square; so does the gradient's, which computes the products again.

    Args:
      first: ``[b, h, w, c]`` float32.
      pyramid: of the second picture, maps ``[b, h_l, w_l, c]``.
      points: ``[b, h, w, 2]`` float32 (x, y) in pixels of the finest level.
      radius: of the windows, in pixels of each level.

    Returns:
      ``[b, h, w, levels * (2 radius + 1)**2]``.
    """
    b, h, w, c = first.shape
    chunk = min(_CHUNK, h * w)
    chunks = -(-h * w // chunk)

    def in_chunks(x):
        x = jnp.pad(x.reshape(b, h * w, -1), ((0, 0), (0, chunks * chunk - h * w), (0, 0)))
        return x.reshape(b * chunks, chunk, -1)

    @jax.checkpoint
    def windows(part):
        queries, at, picture = part
        read = []
        for i, level in enumerate(pyramid):
            features, (size, corners) = level[picture], _cuts(at / 2**i, level.shape[1:3], radius)
            if features.shape[0] * features.shape[1] <= _WHOLE:
                products = jnp.einsum("qc,yxc->qyx", queries, features, precision=lax.Precision.HIGHEST)
                products = jax.vmap(partial(_cut, size=size))(products, corners)
            else:
                near = jax.vmap(partial(_cut, features, size=size))(corners)
                products = jnp.einsum("qc,qyxc->qyx", queries, near, precision=lax.Precision.HIGHEST)
            read.append(_read(products, at / 2**i, corners, radius))
        return jnp.concatenate(read, -1)

    picture = jnp.repeat(jnp.arange(b), chunks)
    made = lax.map(windows, (in_chunks(first) * c**-0.5, in_chunks(points), picture))
    return made.reshape(b, chunks * chunk, -1)[:, :h * w].reshape(b, h, w, -1)
