"""2-D convolution with PyTorch's symmetric padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from uvos_jax.ops.resize import resize_matrix

# From this dilation on, so much of a 3x3 kernel on a stride-8 feature map lies outside the image that shifted matrix
# products over the valid rows are faster than one convolution over a padded map: on a two-core CPU the three branches
# of ASPP (61x108, 2048 to 512 channels, dilations 12, 24, 36) take 1.9 s instead of 4.9. On maps no higher than twice
# the dilation this holds for any dilation (7x11, 512 to 64, dilation 6: 9 ms with gradients instead of 20).
_SHIFTED_FROM_DILATION = 12


def conv2d(x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1, groups: int = 1,
           in_loop: bool = False) -> jax.Array:
    """Convolves (cross-correlates, as PyTorch's ``Conv2d``) with zero padding ``dilation * (k - 1) // 2``.

    All systems pad so that stride 1 keeps the size; stride 2 then gives ``ceil(size / 2)``. Special cases are computed
    as the same sum in another order: 1x1 kernels as one matrix product, strongly dilated kernels as a sum of shifted
    products without the rows that only see padding, depthwise kernels as a sum of shifted images (which has no
    forward-mode derivative).

    Args:
        x: ``[b, h, w, c_in]`` float.
        kernel: ``[kh, kw, c_in // groups, c_out]`` with odd ``kh`` and ``kw``, dtype of ``x``.
        stride: Stride along both axes in pixels.
        dilation: Dilation along both axes in pixels.
        groups: Number of channel groups; ``c_in`` for a depthwise convolution.
        in_loop: Whether the convolution is differentiated in the body of a ``lax.scan``. A CPU then needs the gradient
            in a special form to be fast (stride 1 only), which excludes forward-mode differentiation.

    Returns:
        ``[b, ceil(h / stride), ceil(w / stride), c_out]``, dtype of ``x``. float32 is computed with the highest matrix
        product precision of the device, other dtypes with its default.

    Raises:
        ValueError: A side of the kernel is even.
    """
    kh, kw = kernel.shape[:2]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"Kernel size {kh}x{kw} is not supported. Use odd sides.")
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    if groups == 1 and kh == kw == 1:
        x = x[:, ::stride, ::stride]
        return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0], precision=precision)
    strongly_dilated = dilation >= min(_SHIFTED_FROM_DILATION, max(2, x.shape[1] / 2))
    if groups == 1 and stride == 1 and strongly_dilated:
        return _conv2d_shifted(x, kernel, dilation, precision)
    if groups == x.shape[-1] == kernel.shape[-1] and stride == 1:
        return _conv2d_depthwise(x, kernel[:, :, 0], dilation)
    if in_loop and groups == stride == dilation == 1:
        return _loop_conv(x, kernel)
    return _conv(x, kernel, [dilation * (k - 1) // 2 for k in (kh, kw)], stride, dilation, groups)


def conv2d_resized(x: jax.Array, kernel: jax.Array, size: tuple[int, int], method: str) -> jax.Array:
    """Computes ``conv2d(resize(x, size), kernel)`` without materializing the resized features.

    Both operations are linear, so the kernel's taps are applied to the coarse pixels, and the products are resized and
    shifted. At a resize factor of 4 this takes a sixth of the arithmetic.

    Args:
        x: Coarse features, ``[b, h, w, c_in]`` float.
        kernel: ``[kh, kw, c_in, c_out]`` with odd ``kh`` and ``kw``, dtype of ``x``.
        size: ``(height, width)`` of the resized features.
        method: ``"bilinear"`` or ``"bicubic"``; corners are aligned.

    Returns:
        ``[b, height, width, c_out]``, dtype of ``x``; resizing is float32.
    """
    precision = lax.Precision.HIGHEST
    rows, columns = (_shifted_resizing(n_in, n_out, taps, method)
                     for n_in, n_out, taps in zip(x.shape[1:3], size, kernel.shape[:2], strict=True))
    y = jnp.einsum("bhwc,ijcd->bihjwd", x, kernel, precision=precision if x.dtype == jnp.float32 else None)
    y = jnp.einsum("iyh,bihjwd->byjwd", rows, y.astype(jnp.float32), precision=precision)
    return jnp.einsum("jxw,byjwd->byxd", columns, y, precision=precision).astype(x.dtype)


def _shifted_resizing(n_in, n_out, taps, method):
    """Returns the resizing matrix of one axis as seen by every kernel tap, ``[taps, n_out, n_in]``.

    Rows outside the image are zero.
    """
    matrix = np.pad(resize_matrix(n_in, n_out, method, align_corners=True), ((taps // 2, taps // 2), (0, 0)))
    return np.stack([matrix[i:i + n_out] for i in range(taps)])


def _conv(x, kernel, padding, stride=1, dilation=1, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(side, side) for side in padding], rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else None)


@jax.custom_vjp
def _loop_conv(x, kernel):
    """Stride-1 convolution with a gradient that is fast inside loops.

    XLA's CPU compiler has a fast convolution for one axis order only. It transposes gradients into that order itself,
    except in the body of a loop, where they took twenty times as long; so they are written in that order here. Other
    devices use the gradient as JAX writes it.
    """
    return _conv(x, kernel, [k // 2 for k in kernel.shape[:2]])


def _loop_forward(x, kernel):
    return _loop_conv(x, kernel), (x, kernel)


def _loop_backward(saved, gradient):
    x, kernel = saved
    padding = [k // 2 for k in kernel.shape[:2]]

    def cpu_order(x, kernel, gradient):
        # Batch and channel axes are swapped, and the gradient takes the role of the kernel.
        kernel_gradient = _conv(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), padding)
        return _conv(gradient, kernel[::-1, ::-1].swapaxes(2, 3), padding), kernel_gradient.transpose(1, 2, 0, 3)

    def default_order(x, kernel, gradient):
        return jax.vjp(lambda x, kernel: _conv(x, kernel, padding), x, kernel)[1](gradient)

    return lax.platform_dependent(x, kernel, gradient, cpu=cpu_order, default=default_order)


_loop_conv.defvjp(_loop_forward, _loop_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv2d_depthwise(x, kernel, dilation):
    """Sums shifted images in float32: a tenth of the time of a grouped convolution by XLA's CPU compiler."""
    h, w = x.shape[1:3]
    dtype, kernel = x.dtype, kernel.astype(jnp.float32)
    x = _padded(x, kernel, dilation)
    return sum(x[:, i * dilation:i * dilation + h, j * dilation:j * dilation + w] * kernel[i, j]
               for i, j in np.ndindex(kernel.shape[:2])).astype(dtype)


def _depthwise_forward(x, kernel, dilation):
    return _conv2d_depthwise(x, kernel, dilation), (x, kernel)


def _depthwise_backward(dilation, saved, gradient):
    """Sums the kernel gradient over all pixels for each tap, image by image to stay within the caches."""
    x, kernel = saved
    h, w = x.shape[1:3]

    def add_image(total, pair):
        image, image_gradient = pair
        taps = [(image[i * dilation:i * dilation + h, j * dilation:j * dilation + w] * image_gradient).sum((0, 1))
                for i, j in np.ndindex(kernel.shape[:2])]
        return total + jnp.stack(taps).reshape(total.shape), None

    start = jnp.zeros(kernel.shape, jnp.float32)
    kernel_gradient, _ = lax.scan(add_image, start, (_padded(x, kernel, dilation), gradient.astype(jnp.float32)))
    return _conv2d_depthwise(gradient, kernel[::-1, ::-1], dilation), kernel_gradient.astype(kernel.dtype)


_conv2d_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _padded(x, kernel, dilation):
    return jnp.pad(x.astype(jnp.float32), ((0, 0), *((dilation * (k // 2),) * 2 for k in kernel.shape[:2]), (0, 0)))


def _conv2d_shifted(x, kernel, dilation, precision):
    """Stride-1 convolution as one matrix product per kernel row, over the image rows that it covers.

    Excluding columns too (one product per tap) would save more arithmetic, but XLA then holds a copy of the input for
    every tap at once: 2.5 times the memory, and no faster.
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
