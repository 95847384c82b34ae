"""What colors a region has, and which of two regions a pixel's color speaks for."""

import jax
import jax.numpy as jnp


def color_bins(picture: jax.Array, bins: int) -> jax.Array:
    """The bin of every pixel in a histogram of RGB.

    Args:
      picture: ``[h, w, 3]`` float32 in [0, 1].
      bins: a side of the histogram has so many.

    Returns:
      ``[h, w]`` int32, less than ``bins ** 3``.
    """
    red, green, blue = jnp.moveaxis(jnp.clip((picture * bins).astype(jnp.int32), 0, bins - 1), -1, 0)
    return (red * bins + green) * bins + blue


def color_histogram(indices: jax.Array, weights: jax.Array, bins: int) -> jax.Array:
    """How much weight each color has; every pixel gives half of its to its bin's neighbors along each axis.

    Args:
      indices: ``[h, w]`` of ``color_bins``.
      weights: ``[h, w]`` float32, 0 or more.
      bins: as for ``color_bins``.

    Returns:
      ``[bins ** 3]`` float32.
    """
    counts = jnp.zeros(bins**3).at[indices.ravel()].add(weights.ravel()).reshape((bins,) * 3)
    for axis in range(3):
        padded = jnp.pad(counts, [(int(axis == each),) * 2 for each in range(3)])
        before, after = (jax.lax.slice_in_dim(padded, start, start + bins, axis=axis) for start in (0, 2))
        counts = before / 4 + counts / 2 + after / 4
    return counts.ravel()


def log_odds(first: jax.Array, second: jax.Array, floor: float) -> jax.Array:
    """Which of two histograms a color speaks for: the logarithm of how much more of its weight the first has there.

    Args:
      first: ``[n]`` float32, 0 or more.
      second: of the same shape.
      floor: added to both shares; what hardly occurs in either says nothing.

    Returns:
      ``[n]`` float32.
    """
    shares = [counts / jnp.maximum(counts.sum(), 1e-6) for counts in (first, second)]
    return jnp.log((shares[0] + floor) / (shares[1] + floor))
