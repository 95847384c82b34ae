"""Connected components of a mask, on the device."""

import jax
import jax.numpy as jnp


def label_components(mask: jax.Array) -> jax.Array:
    """Labels the 8-connected components of a mask.

    Args:
        mask: ``[h, w]`` bool.

    Returns:
        ``[h, w]`` int32: 0 for background, otherwise 1 + the largest index ``y * w + x`` in the component.
    """
    ids = jnp.arange(1, mask.size + 1, dtype=jnp.int32).reshape(mask.shape)
    return _propagate(jnp.where(mask, ids, 0), mask, corners=True)


def fill_holes(mask: jax.Array) -> jax.Array:
    """Fills the background that is not 4-connected to the image border; ``[h, w]`` bool."""
    inner = jnp.zeros(tuple(n - 2 for n in mask.shape), bool)
    border = jnp.pad(inner, 1, constant_values=True)
    return _propagate((border & ~mask).astype(jnp.int32), ~mask, corners=False) == 0


def _propagate(values, free, corners):
    """Propagates the largest value of each component to all of its free pixels; values elsewhere are 0.

    A step runs along whole runs of free pixels, so compact components need few steps.
    """
    def step(values):
        for axis in (0, 1):
            for backwards in (False, True):
                values = _along_runs(values, free, axis, backwards)
        if corners:
            around = jax.lax.reduce_window(values, jnp.int32(0), jax.lax.max, (3, 3), (1, 1), "SAME")
            values = jnp.where(free, around, 0)
        return values

    def body(carry):
        values, _ = carry
        new = step(values)
        return new, (new != values).any()

    return jax.lax.while_loop(lambda carry: carry[1], body, (values, jnp.bool_(True)))[0]


def _along_runs(values, free, axis, backwards):
    """Computes the running maximum within each run of free pixels; 0 elsewhere."""
    def step(line, here):
        value, is_free = here
        line = jnp.where(is_free, jnp.maximum(line, value), 0)
        return line, line

    lines = (values, free) if axis == 0 else (values.T, free.T)
    _, new = jax.lax.scan(step, jnp.zeros(lines[0].shape[1], values.dtype), lines, reverse=backwards)
    return new if axis == 0 else new.T
