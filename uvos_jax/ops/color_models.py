"""Color histograms of regions and the log odds between two of them."""

import jax
import jax.numpy as jnp


def color_bins(image: jax.Array, bins: int) -> jax.Array:
    """Computes the RGB histogram bin of every pixel.

    Args:
        image: ``[h, w, 3]`` float32 in [0, 1].
        bins: Number of bins per channel.

    Returns:
        ``[h, w]`` int32 in 0..``bins ** 3 - 1``.
    """
    red, green, blue = jnp.moveaxis(jnp.clip((image * bins).astype(jnp.int32), 0, bins - 1), -1, 0)
    return (red * bins + green) * bins + blue


def color_histogram(indices: jax.Array, weights: jax.Array, bins: int) -> jax.Array:
    """Computes a weighted color histogram, smoothed by a (1/4, 1/2, 1/4) kernel along each channel.

    Args:
        indices: ``[h, w]`` bins from :func:`color_bins`.
        weights: ``[h, w]`` float32, non-negative.
        bins: Number of bins per channel.

    Returns:
        ``[bins ** 3]`` float32.
    """
    counts = jnp.zeros(bins**3).at[indices.ravel()].add(weights.ravel()).reshape((bins,) * 3)
    for axis in range(3):
        padded = jnp.pad(counts, [(int(axis == other),) * 2 for other in range(3)])
        before, after = (jax.lax.slice_in_dim(padded, start, start + bins, axis=axis) for start in (0, 2))
        counts = before / 4 + counts / 2 + after / 4
    return counts.ravel()


def log_odds(first: jax.Array, second: jax.Array, floor: float) -> jax.Array:
    """Computes the logarithm of the ratio of two normalized histograms, bin by bin.

    Args:
        first: ``[n]`` float32, non-negative.
        second: The same shape.
        floor: Added to both normalized histograms, so that bins rare in both have log odds near 0.

    Returns:
        ``[n]`` float32; positive where the bin is more frequent in ``first``.
    """
    frequencies = [counts / jnp.maximum(counts.sum(), 1e-6) for counts in (first, second)]
    return jnp.log((frequencies[0] + floor) / (frequencies[1] + floor))
