"""Connected parts of a mask, on the device."""

import jax
import jax.numpy as jnp


def label_components(mask: jax.Array) -> jax.Array:
    """Numbers the parts of a mask, pixels that touch at a corner being of one part.

    Args:
      mask: ``[h, w]`` bool.

    Returns:
      ``[h, w]`` int32, 0 for background, else 1 + the largest index ``y * w + x`` in the pixel's part.
    """
    own = jnp.arange(1, mask.size + 1, dtype=jnp.int32).reshape(mask.shape)
    return _spread(jnp.where(mask, own, 0), mask, corners=True)


def fill_holes(mask: jax.Array) -> jax.Array:
    """Adds the background that no way over sides of background pixels leads to from outside; ``[h, w]`` bool."""
    inner = jnp.zeros(tuple(n - 2 for n in mask.shape), bool)
    border = jnp.pad(inner, 1, constant_values=True)
    return _spread((border & ~mask).astype(jnp.int32), ~mask, corners=False) == 0


def _spread(values, free, corners):
    """Gives every free pixel the largest value of its part; values of others are 0.

    A step goes along whole runs of free pixels, so that parts without many turns need few.
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
    """The running maximum of each run of free pixels; outside of runs values are 0."""
    def step(line, here):
        value, is_free = here
        line = jnp.where(is_free, jnp.maximum(line, value), 0)
        return line, line

    lines = (values, free) if axis == 0 else (values.T, free.T)
    _, new = jax.lax.scan(step, jnp.zeros(lines[0].shape[1], values.dtype), lines, reverse=backwards)
    return new if axis == 0 else new.T
