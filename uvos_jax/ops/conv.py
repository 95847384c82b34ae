"""Two-dimensional convolution with PyTorch's symmetric padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from uvos_jax.ops.resize import resize_matrix

# From this dilation on, a 3x3 kernel on a stride-8 feature map reaches past the border with so much of itself that
# shifted matrix products over the valid rows beat one convolution over a padded map: on a two-core CPU ASPP's three
# branches (61x108, 2048 to 512 channels, dilations 12, 24, 36) take 1.9 s instead of 4.9. On maps as low as twice the
# dilation it holds for any (7x11, 512 to 64, dilation 6: 9 ms with gradients instead of 20).
_SHIFTED_FROM_DILATION = 12


def conv2d(x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1, groups: int = 1,
           in_loop: bool = False) -> jax.Array:
    """Convolves (cross-correlates, as PyTorch's ``Conv2d``) with zero padding ``dilation * (k - 1) // 2``.

    All five systems pad so that a stride of 1 keeps the size; a stride of 2 then gives ``ceil(size / 2)``.
    1x1 kernels become one matrix product, strongly dilated ones a sum of shifted products without the rows
    that would only see padding, and depthwise ones a sum of shifted images (without a forward-mode derivative); always
    the same sum in another order.

    Args:
      x: ``[b, h, w, c_in]`` float.
      kernel: ``[kh, kw, c_in // groups, c_out]``, odd ``kh`` and ``kw``, same dtype as ``x``.
      stride: step of the output grid in both axes, in pixels.
      dilation: distance between kernel taps in both axes, in pixels.
      groups: number of channel groups; ``c_in`` for a depthwise convolution.
      in_loop: whether this is differentiated in the body of a ``lax.scan``, where a CPU needs the gradient in a form of
        its own to be fast (stride 1 only); forward-mode differentiation is not possible then.

    Returns:
      ``[b, ceil(h / stride), ceil(w / stride), c_out]``, dtype of ``x``. float32 is computed with the highest
      matrix product precision the device has, other types with its default.
    """
    kh, kw = kernel.shape[:2]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"conv2d wants odd kernel sizes, got {kh}x{kw}")
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    if groups == 1 and kh == kw == 1:
        x = x[:, ::stride, ::stride]
        return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0], precision=precision)
    strongly = dilation >= min(_SHIFTED_FROM_DILATION, max(2, x.shape[1] / 2))
    if groups == 1 and stride == 1 and strongly:
        return _conv2d_shifted(x, kernel, dilation, precision)
    if groups == x.shape[-1] == kernel.shape[-1] and stride == 1:
        return _conv2d_depthwise(x, kernel[:, :, 0], dilation)
    if in_loop and groups == stride == dilation == 1:
        return _loop_conv(x, kernel)
    return _conv(x, kernel, [dilation * (k - 1) // 2 for k in (kh, kw)], stride, dilation, groups)


def conv2d_resized(x: jax.Array, kernel: jax.Array, size: tuple[int, int], kind: str) -> jax.Array:
    """``conv2d(resize(x, size), kernel)``, without making the resized features.

    Both are linear, so the kernel's taps multiply the coarse pixels, and what comes out is resized and shifted. Four
    times as many pixels in both directions leave a sixth of the arithmetic.

    Args:
      x: ``[b, h, w, c_in]`` float, coarse.
      kernel: ``[kh, kw, c_in, c_out]``, odd ``kh`` and ``kw``, same dtype as ``x``.
      size: ``(height, width)`` of the resized features.
      kind: ``"bilinear"`` or ``"bicubic"``; corners are aligned.

    Returns:
      ``[b, height, width, c_out]``, dtype of ``x``; resizing is float32.
    """
    precision = lax.Precision.HIGHEST
    rows, columns = (_shifted_resizing(n_in, n_out, taps, kind)
                     for n_in, n_out, taps in zip(x.shape[1:3], size, kernel.shape[:2], strict=True))
    y = jnp.einsum("bhwc,ijcd->bihjwd", x, kernel, precision=precision if x.dtype == jnp.float32 else None)
    y = jnp.einsum("iyh,bihjwd->byjwd", rows, y.astype(jnp.float32), precision=precision)
    return jnp.einsum("jxw,byjwd->byxd", columns, y, precision=precision).astype(x.dtype)


def _shifted_resizing(n_in, n_out, taps, kind):
    """``[taps, n_out, n_in]``: what every tap of a kernel sees of one resized axis, zeros beyond the ends."""
    matrix = np.pad(resize_matrix(n_in, n_out, kind, align_corners=True), ((taps // 2, taps // 2), (0, 0)))
    return np.stack([matrix[i:i + n_out] for i in range(taps)])


def _conv(x, kernel, padding, stride=1, dilation=1, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(side, side) for side in padding], rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else None)


@jax.custom_vjp
def _loop_conv(x, kernel):
    """Convolution of stride 1, whose gradient is fast inside loops too.

    XLA's CPU compiler knows a fast convolution for one order of the axes only. It brings gradients into that order
    itself, but not in the body of a loop, where they took twenty times as long; so they are written in it here. Other
    devices want the gradient as JAX writes it.
    """
    return _conv(x, kernel, [k // 2 for k in kernel.shape[:2]])


def _loop_forward(x, kernel):
    return _loop_conv(x, kernel), (x, kernel)


def _loop_backward(saved, gradient):
    x, kernel = saved
    padding = [k // 2 for k in kernel.shape[:2]]

    def ordered(x, kernel, gradient):
        # Channels take the place of pictures, and pictures that of channels: what slides over x is the gradient.
        of_kernel = _conv(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), padding)
        return _conv(gradient, kernel[::-1, ::-1].swapaxes(2, 3), padding), of_kernel.transpose(1, 2, 0, 3)

    def as_jax(x, kernel, gradient):
        return jax.vjp(lambda x, kernel: _conv(x, kernel, padding), x, kernel)[1](gradient)

    return lax.platform_dependent(x, kernel, gradient, cpu=ordered, default=as_jax)


_loop_conv.defvjp(_loop_forward, _loop_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv2d_depthwise(x, kernel, dilation):
    """A sum of shifted images, in float32: a tenth of the time that XLA's CPU compiler makes of such a convolution."""
    h, w = x.shape[1:3]
    dtype, kernel = x.dtype, kernel.astype(jnp.float32)
    x = _padded(x, kernel, dilation)
    return sum(x[:, i * dilation:i * dilation + h, j * dilation:j * dilation + w] * kernel[i, j]
               for i, j in np.ndindex(kernel.shape[:2])).astype(dtype)


def _depthwise_forward(x, kernel, dilation):
    return _conv2d_depthwise(x, kernel, dilation), (x, kernel)


def _depthwise_backward(dilation, saved, gradient):
    """The gradient of a kernel is a sum over all pixels for each tap: picture by picture, so that caches hold them."""
    x, kernel = saved
    h, w = x.shape[1:3]

    def one(total, pair):
        picture, its = pair
        seen = [(picture[i * dilation:i * dilation + h, j * dilation:j * dilation + w] * its).sum((0, 1))
                for i, j in np.ndindex(kernel.shape[:2])]
        return total + jnp.stack(seen).reshape(total.shape), None

    start = jnp.zeros(kernel.shape, jnp.float32)
    of_kernel, _ = lax.scan(one, start, (_padded(x, kernel, dilation), gradient.astype(jnp.float32)))
    return _conv2d_depthwise(gradient, kernel[::-1, ::-1], dilation), of_kernel.astype(kernel.dtype)


_conv2d_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _padded(x, kernel, dilation):
    return jnp.pad(x.astype(jnp.float32), ((0, 0), *((dilation * (k // 2),) * 2 for k in kernel.shape[:2]), (0, 0)))


def _conv2d_shifted(x, kernel, dilation, precision):
    """Stride-1 convolution, one matrix product per kernel row over the image rows that row of taps really sees.

    Leaving out the columns too (a product per tap) would save more arithmetic, but XLA then holds a copy of the input
    for every tap at once: two and a half times the memory, and no faster.
    """
    (_, h, w, _), (kh, kw) = x.shape, kernel.shape[:2]
    out = jnp.zeros((*x.shape[:3], kernel.shape[-1]), x.dtype)
    for i in range(kh):
        dy = (i - kh // 2) * dilation
        y0, y1 = max(0, -dy), min(h, h - dy)
        if y0 >= y1:
            continue
        rows = jnp.einsum("bhwc,jcd->bhwjd", x[:, y0 + dy:y1 + dy], kernel[i], precision=precision)
        for j in range(kw):
            dx = (j - kw // 2) * dilation
            x0, x1 = max(0, -dx), min(w, w - dx)
            if x0 < x1:
                out = out.at[:, y0:y1, x0:x1].add(rows[:, :, x0 + dx:x1 + dx, j])
    return out
