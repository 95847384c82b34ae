"""Pooling: with PyTorch's size rules, and means over squares that cover all of a picture."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from uvos_jax.ops.resize import multiply_banded, resize_matrix


def max_pool(x: jax.Array, *, window: int = 3, stride: int = 2, padding: int = 1, ceil_mode: bool = False) -> jax.Array:
    """Max pooling as PyTorch's ``MaxPool2d``; padding never wins.

    Args:
      x: ``[b, h, w, c]`` float.
      window: side of the square window, in pixels.
      stride: step of the output grid, in pixels.
      padding: pixels of minus infinity on every side, at most ``window // 2``.
      ceil_mode: whether the output size is rounded up. As in PyTorch, a last window that would start beyond
        the input and its leading padding is dropped again.

    Returns:
      ``[b, h_out, w_out, c]`` with ``n_out = floor or ceil((n + 2 * padding - window) / stride) + 1``.
    """
    if window == stride == 2 and padding == 0 and not ceil_mode:
        # Maxima of neighboring rows, then columns: on a CPU its gradient takes a fifteenth of a window reduction's.
        # Of equal values each gets its share of the gradient, where PyTorch chooses the first.
        h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        rows = jnp.maximum(x[:, 0:h:2, :w], x[:, 1:h:2, :w])
        return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])
    pads = []
    for axis in (1, 2):
        n = x.shape[axis]
        span = n + 2 * padding - window
        out = (-(-span // stride) if ceil_mode else span // stride) + 1
        if ceil_mode and (out - 1) * stride >= n + padding:
            out -= 1
        behind = (out - 1) * stride + window - n - padding
        if behind < 0:  # pixels that floor mode never reads; as a negative pad they would have no gradient
            x = lax.slice_in_dim(x, 0, n + behind, axis=axis)
        pads.append((padding, max(behind, 0)))
    # A NumPy scalar: only with a concrete start value does JAX know this for a max and give it a gradient.
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, window, window, 1),
                             (1, stride, stride, 1), ((0, 0), *pads, (0, 0)))


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean over both spatial axes, summed in float32: ``[b, h, w, c] -> [b, 1, 1, c]`` (``AdaptiveAvgPool2d(1)``)."""
    return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)


def average_pool(x: jax.Array, step: int) -> jax.Array:
    """Means over squares of ``step`` pixels; at the far borders the last pixels are repeated to fill them.

    Args:
      x: ``[h, w]`` or ``[h, w, c]``, float32.
      step: side of a square in pixels.

    Returns:
      ``[ceil(h / step), ceil(w / step)]``, and ``c`` if it was there.
    """
    rows, columns = (-(-side // step) for side in x.shape[:2])
    # Sums of strided views: XLA's reduction over split axes takes four times as long on a CPU.
    x = _filled(x, 0, rows * step)
    x = _filled(sum(x[i::step] for i in range(step)), 1, columns * step)
    return sum(x[:, i::step] for i in range(step)) / step**2


def average_unpool(x: jax.Array, step: int, size: tuple[int, int]) -> jax.Array:
    """What maps of :func:`average_pool`'s size say at every pixel, bilinear between the centers of the squares.

    Args:
      x: ``[..., ceil(h / step), ceil(w / step)]`` float32.
      step: as for :func:`average_pool`.
      size: ``(h, w)``.

    Returns:
      ``[..., h, w]`` float32.
    """
    columns = resize_matrix(x.shape[-1], x.shape[-1] * step, "bilinear", align_corners=False)[:size[1]]
    x = multiply_banded(x, columns)
    # Every row of squares becomes `step` rows between the middles of its neighbors. Without gathers, since XLA makes
    # the result anew in everything that uses it.
    apart = (np.arange(step, dtype=np.float32)[:, None] + 0.5) / step - 0.5
    before, after = (jnp.concatenate(rows, -2)[..., None, :]
                     for rows in ((x[..., :1, :], x[..., :-1, :]), (x[..., 1:, :], x[..., -1:, :])))
    x = x[..., None, :]
    x = x * (1 - np.abs(apart)) + before * np.maximum(-apart, 0) + after * np.maximum(apart, 0)
    return x.reshape(*x.shape[:-3], -1, size[1])[..., :size[0], :]


def _filled(x, axis, length):
    """``x`` with its last row or column repeated."""
    padding = [(0, length - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, padding, mode="edge")
