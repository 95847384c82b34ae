"""All-pairs correlation of two feature maps, sampled at moving windows (RAFT, Sec. 3.2).

The correlation volume holds the product of every pixel of the first map with every pixel of a pyramid of the second;
its memory grows with the square of the image size. ``lookup_on_demand`` reads the same windows without storing the
volume.

A window of (2 r + 1)**2 points covers (2 r + 2)**2 pixels. These are sliced out; all points share one fractional
offset, so bilinear sampling is a product with a small matrix for the rows and another for the columns. Outside the
image the matrices are zero, which is the zero padding of the published code.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# Query pixels that lookup_on_demand processes at a time: 26 MB of features at 256 channels and radius 4.
_CHUNK = 256
# For maps of at most this many pixels, computing all products is faster than gathering the features in the windows.
_DENSE_PIXELS = 10_000


def feature_pyramid(features: jax.Array, levels: int) -> tuple[jax.Array, ...]:
    """Halves a feature map ``levels - 1`` times by 2x2 average pooling.

    An odd last row or column is dropped.

    Args:
        features: ``[b, h, w, c]`` float.
        levels: Number of maps.

    Returns:
        ``levels`` maps ``[b, h // 2**l, w // 2**l, c]``; for small images the last ones have no pixels.
    """
    maps = [features]
    for _ in range(levels - 1):
        b, h, w, c = maps[-1].shape
        even = maps[-1][:, :h // 2 * 2, :w // 2 * 2]
        maps.append(even.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4)))
    return tuple(maps)


def correlation_volumes(first: jax.Array, pyramid: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Multiplies all pixels of one map with all pixels of each pyramid level, divided by ``sqrt(c)``.

    The published code pools the finest volume instead; products with pooled features are the same numbers.

    Args:
        first: ``[b, h, w, c]`` float32.
        pyramid: Pyramid of the second image, maps ``[b, h_l, w_l, c]``.

    Returns:
        A volume ``[b * h * w, h_l, w_l]`` for each level.
    """
    b, h, w, c = first.shape
    queries = first.reshape(b, h * w, c) * c**-0.5
    return tuple(jnp.einsum("bqc,bhwc->bqhw", queries, level, precision=lax.Precision.HIGHEST)
                 .reshape(b * h * w, *level.shape[1:3]) for level in pyramid)


def lookup(volumes: tuple[jax.Array, ...], points: jax.Array, radius: int) -> jax.Array:
    """Samples a window of every level of a stored correlation volume around one point per query pixel.

    Args:
        volumes: Volumes from :func:`correlation_volumes`.
        points: ``[b, h, w, 2]`` float32 (x, y) in pixels of the finest level.
        radius: Radius of the windows, in pixels of each level.

    Returns:
        ``[b, h, w, levels * (2 radius + 1)**2]``. Within a window the *first* axis runs along x and the second along y,
        as in the published code.
    """
    flat = points.reshape(-1, 2)
    windows = []
    for i, volume in enumerate(volumes):
        size, corners = _window_slices(flat / 2**i, volume.shape[1:], radius)
        slices = jax.vmap(partial(_slice, size=size))(volume, corners)
        windows.append(_sample_windows(slices, flat / 2**i, corners, radius))
    return jnp.concatenate(windows, -1).reshape(*points.shape[:3], -1)


def _window_slices(points, size, radius):
    """Returns the ``(height, width)`` that windows cover, and their first (row, column), ``[q, 2]``."""
    extent = tuple(min(2 * radius + 2, n) for n in size)
    last = jnp.array([n - m for n, m in zip(size, extent, strict=True)], jnp.float32)
    return extent, jnp.clip(jnp.floor(points[:, ::-1]) - radius, 0, last).astype(jnp.int32)


def _slice(image, corner, size):
    """Slices ``size`` rows and columns of ``[h, w, ...]`` starting at a corner."""
    image = lax.dynamic_slice_in_dim(image, corner[0], size[0], axis=0)
    return lax.dynamic_slice_in_dim(image, corner[1], size[1], axis=1)


def _sample_windows(slices, points, corners, radius):
    """Samples windows ``[q, (2 radius + 1)**2]`` around points ``[q, 2]`` from slices at ``corners``."""
    rows, columns = (_bilinear_weights(points[:, 1 - axis] - corners[:, axis], slices.shape[1 + axis], radius)
                     for axis in range(2))
    precision = lax.Precision.HIGHEST
    narrow = jnp.einsum("qby,qyx->qbx", rows, slices, precision=precision)
    window = jnp.einsum("qax,qbx->qab", columns, narrow, precision=precision)
    return window.reshape(len(points), (2 * radius + 1) ** 2)


def _bilinear_weights(centers, size, radius):
    """Returns bilinear weights ``[q, 2 radius + 1, size]`` of ``size`` pixels around each center."""
    points = centers[:, None] + jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    return jnp.maximum(0, 1 - jnp.abs(points[..., None] - jnp.arange(size, dtype=jnp.float32)))


def lookup_on_demand(first: jax.Array, pyramid: tuple[jax.Array, ...], points: jax.Array, radius: int) -> jax.Array:
    """Computes :func:`lookup` of :func:`correlation_volumes` without storing the volumes.

    A few query pixels at a time are multiplied with the pixels their windows cover, or with all pixels of a small map.
    Memory grows linearly with the image size, for the gradient too, which recomputes the products.

    Args:
        first: ``[b, h, w, c]`` float32.
        pyramid: Pyramid of the second image, maps ``[b, h_l, w_l, c]``.
        points: ``[b, h, w, 2]`` float32 (x, y) in pixels of the finest level.
        radius: Radius of the windows, in pixels of each level.

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
    def windows(chunk_inputs):
        queries, centers, image_index = chunk_inputs
        sampled = []
        for i, level in enumerate(pyramid):
            features, (size, corners) = level[image_index], _window_slices(centers / 2**i, level.shape[1:3], radius)
            if features.shape[0] * features.shape[1] <= _DENSE_PIXELS:
                products = jnp.einsum("qc,yxc->qyx", queries, features, precision=lax.Precision.HIGHEST)
                products = jax.vmap(partial(_slice, size=size))(products, corners)
            else:
                features_in_window = jax.vmap(partial(_slice, features, size=size))(corners)
                products = jnp.einsum("qc,qyxc->qyx", queries, features_in_window, precision=lax.Precision.HIGHEST)
            sampled.append(_sample_windows(products, centers / 2**i, corners, radius))
        return jnp.concatenate(sampled, -1)

    image_index = jnp.repeat(jnp.arange(b), chunks)
    result = lax.map(windows, (in_chunks(first) * c**-0.5, in_chunks(points), image_index))
    return result.reshape(b, chunks * chunk, -1)[:, :h * w].reshape(b, h, w, -1)
