"""Pooling with PyTorch's size rules, and block averages that cover the whole image."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from uvos_jax.ops.resize import multiply_banded, resize_matrix


def max_pool(x: jax.Array, *, window: int = 3, stride: int = 2, padding: int = 1, ceil_mode: bool = False) -> jax.Array:
    """Max pooling as PyTorch's ``MaxPool2d``; padding is minus infinity.

    Args:
        x: ``[b, h, w, c]`` float.
        window: Side of the square window in pixels.
        stride: Stride in pixels.
        padding: Padding on every side in pixels, at most ``window // 2``.
        ceil_mode: Whether the output size is rounded up. As in PyTorch, a last window that would start beyond the input
            and its leading padding is dropped.

    Returns:
        ``[b, h_out, w_out, c]`` with ``n_out = floor or ceil((n + 2 * padding - window) / stride) + 1``.
    """
    if window == stride == 2 and padding == 0 and not ceil_mode:
        # Maxima of neighboring rows, then columns: on a CPU the gradient takes a fifteenth of the time of a window
        # reduction. Equal values share the gradient, where PyTorch gives it to the first.
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
        trailing = (out - 1) * stride + window - n - padding
        if trailing < 0:  # pixels that floor mode never reads; a negative pad would have no gradient
            x = lax.slice_in_dim(x, 0, n + trailing, axis=axis)
        pads.append((padding, max(trailing, 0)))
    # A NumPy scalar: JAX recognizes a max reduction, and differentiates it, only with a concrete initial value.
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, window, window, 1),
                             (1, stride, stride, 1), ((0, 0), *pads, (0, 0)))


def global_average_pool(x: jax.Array) -> jax.Array:
    """Averages over both spatial axes in float32: ``[b, h, w, c] -> [b, 1, 1, c]``.

    It equals PyTorch's ``AdaptiveAvgPool2d(1)``.
    """
    return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)


def average_pool(x: jax.Array, step: int) -> jax.Array:
    """Averages blocks of ``step x step`` pixels; edge pixels are repeated to fill the last blocks.

    Args:
        x: ``[h, w]`` or ``[h, w, c]`` float32.
        step: Side of a block in pixels.

    Returns:
        ``[ceil(h / step), ceil(w / step)]``, followed by ``c`` if the input has channels.
    """
    rows, columns = (-(-side // step) for side in x.shape[:2])
    # Sums of strided views: XLA's reduction over split axes is four times slower on a CPU.
    x = _pad_edge(x, 0, rows * step)
    x = _pad_edge(sum(x[i::step] for i in range(step)), 1, columns * step)
    return sum(x[:, i::step] for i in range(step)) / step**2


def average_unpool(x: jax.Array, step: int, size: tuple[int, int]) -> jax.Array:
    """Upsamples maps of :func:`average_pool`'s size bilinearly between the centers of the blocks.

    Args:
        x: ``[..., ceil(h / step), ceil(w / step)]`` float32.
        step: Side of a block in pixels.
        size: Output ``(h, w)``.

    Returns:
        ``[..., h, w]`` float32.
    """
    columns = resize_matrix(x.shape[-1], x.shape[-1] * step, "bilinear", align_corners=False)[:size[1]]
    x = multiply_banded(x, columns)
    # Every row of blocks becomes `step` rows interpolated between its neighbors' centers. Without gathers, because XLA
    # recomputes the result in every consumer.
    offset = (np.arange(step, dtype=np.float32)[:, None] + 0.5) / step - 0.5
    before, after = (jnp.concatenate(rows, -2)[..., None, :]
                     for rows in ((x[..., :1, :], x[..., :-1, :]), (x[..., 1:, :], x[..., -1:, :])))
    x = x[..., None, :]
    x = x * (1 - np.abs(offset)) + before * np.maximum(-offset, 0) + after * np.maximum(offset, 0)
    return x.reshape(*x.shape[:-3], -1, size[1])[..., :size[0], :]


def _pad_edge(x, axis, length):
    """Pads one axis to ``length`` by repeating the last row or column."""
    padding = [(0, length - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, padding, mode="edge")
