"""Convolution, pooling and preprocessing against loops and PyTorch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from uvos_jax.ops.conv import conv2d, conv2d_resized
from uvos_jax.ops.pooling import global_average_pool, max_pool
from uvos_jax.ops.preprocess import Preprocess, preprocess

# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# h, w, c_in, c_out, kernel (h, w), stride, dilation, groups
CONVS = {
    "1x1": (4, 5, 3, 2, (1, 1), 1, 1, 1),
    "1x1 strided, odd": (5, 7, 2, 3, (1, 1), 2, 1, 1),
    "1x1 strided, even": (4, 6, 2, 3, (1, 1), 2, 1, 1),
    "3x3": (5, 6, 3, 2, (3, 3), 1, 1, 1),
    "3x3 strided, odd": (7, 5, 2, 3, (3, 3), 2, 1, 1),
    "3x3 strided, even": (6, 8, 2, 3, (3, 3), 2, 1, 1),
    "7x7 strided": (9, 10, 2, 2, (7, 7), 2, 1, 1),
    "1x5": (4, 6, 2, 2, (1, 5), 1, 1, 1),
    "dilation 2": (7, 6, 2, 2, (3, 3), 1, 2, 1),
    "dilation 2, strided": (7, 6, 2, 2, (3, 3), 2, 2, 1),
    "dilation 12, only the center tap": (5, 7, 2, 2, (3, 3), 1, 12, 1),
    "dilation 12, one axis reached": (6, 15, 2, 2, (3, 3), 1, 12, 1),
    "dilation 12, all taps": (26, 14, 2, 2, (3, 3), 1, 12, 1),
    "dilation 12, strided": (15, 14, 2, 2, (3, 3), 2, 12, 1),
    "dilation 12, depthwise": (14, 13, 3, 3, (3, 3), 1, 12, 3),
    "depthwise": (5, 6, 4, 4, (3, 3), 1, 1, 4),
    "two groups": (5, 4, 4, 6, (3, 3), 2, 1, 2),
    "1x1 in two groups": (3, 4, 4, 2, (1, 1), 1, 1, 2),
    "one pixel": (1, 1, 2, 2, (3, 3), 2, 1, 1),
}
convs = pytest.mark.parametrize("case", CONVS.values(), ids=CONVS.keys())


def _arrays(case, batch=2):
    h, w, c_in, c_out, kernel, _, _, groups = case
    rng = np.random.default_rng(0)
    return (rng.standard_normal((batch, h, w, c_in)).astype(np.float32),
            rng.standard_normal((*kernel, c_in // groups, c_out)).astype(np.float32))


def _conv_by_loops(x, kernel, stride, dilation, groups):
    (b, h, w, _), (kh, kw, per_group, c_out) = x.shape, kernel.shape
    out = np.zeros((b, -(-h // stride), -(-w // stride), c_out))
    for y, z, i, j in itertools.product(range(out.shape[1]), range(out.shape[2]), range(kh), range(kw)):
        p, q = y * stride + (i - kh // 2) * dilation, z * stride + (j - kw // 2) * dilation
        if 0 <= p < h and 0 <= q < w:
            for o in range(c_out):
                first = o // (c_out // groups) * per_group
                out[:, y, z, o] += x[:, p, q, first:first + per_group].astype(np.float64) @ kernel[i, j, :, o]
    return out


@convs
def test_conv_equals_loops(case):
    x, kernel = _arrays(case)
    *_, stride, dilation, groups = case
    expected = _conv_by_loops(x, kernel, stride, dilation, groups)
    np.testing.assert_allclose(
        conv2d(x, kernel, stride=stride, dilation=dilation, groups=groups), expected, atol=2e-5
    )


@pytest.mark.torch
@convs
def test_conv_equals_torch(torch, case):
    x, kernel = _arrays(case)
    *_, (kh, kw), stride, dilation, groups = case
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(kernel).permute(3, 2, 0, 1),
        stride=stride,
        padding=(dilation * (kh // 2), dilation * (kw // 2)),
        dilation=dilation,
        groups=groups,
    ).permute(0, 2, 3, 1)
    ours = np.asarray(conv2d(x, kernel, stride=stride, dilation=dilation, groups=groups))
    assert ours.shape == tuple(theirs.shape)
    assert np.abs(ours - theirs.numpy()).max() <= 1e-5 * theirs.abs().max().item()


@pytest.mark.parametrize(("size", "dilation"), [((5, 7), 12), ((13, 30), 12), ((26, 25), 24)])
def test_shifted_conv_and_gradients_equal_padded_conv(size, dilation):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, *size, 2)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 2, 3)).astype(np.float32)
    seed = rng.standard_normal((1, *size, 3)).astype(np.float32)

    def padded(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(dilation, dilation)] * 2,
            rhs_dilation=(dilation,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )

    def value_and_gradients(form):
        return jax.jit(jax.value_and_grad(lambda x, k: (form(x, k) * seed).sum(), (0, 1)))(x, kernel)

    (ours, ours_grad), (plain, plain_grad) = (
        value_and_gradients(form) for form in (lambda x, k: conv2d(x, k, dilation=dilation), padded))
    np.testing.assert_allclose(ours, plain, rtol=1e-4)
    for a, b in zip(ours_grad, plain_grad, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (5, 1), (7, 7)])
def test_in_loop_gradients_equal_jax_autodiff(kernel):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 9, 3)).astype(np.float32)
    weights = 0.2 * rng.standard_normal((*kernel, 3, 3)).astype(np.float32)

    def plain(x, weights):
        return lax.conv_general_dilated(x, weights, (1, 1), [(k // 2, k // 2) for k in kernel], precision="highest",
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradients(form):
        def total(x, weights):
            return jnp.square(lax.scan(lambda c, _: (jnp.tanh(form(c, weights)), None), x, None, length=3)[0]).sum()

        return jax.jit(jax.grad(total, (0, 1)))(x, weights)

    for ours, theirs in zip(gradients(lambda x, w: conv2d(x, w, in_loop=True)), gradients(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_conv_preserves_bfloat16():
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in _arrays(CONVS["dilation 12, all taps"]))
    for dilation in (1, 12):
        assert conv2d(x, kernel, dilation=dilation).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2, 2)])
def test_even_kernel_raises(shape):
    with pytest.raises(ValueError, match="Use odd sides"):
        conv2d(np.zeros((1, 4, 4, 1), np.float32), np.zeros((*shape, 1, 1), np.float32))


def _pool_by_loops(x, window, stride, padding, ceil_mode):
    """Pools every window of PyTorch's size rule; a window that starts past the end of the input is dropped."""
    def starts(n):
        count, found = n + 2 * padding - window, []
        for i in range(n + 2 * padding + 1):
            whole = i * stride <= count
            partial = ceil_mode and (i - 1) * stride < count and i * stride - padding < n
            if whole or partial:
                found.append(i * stride - padding)
        return found

    _, h, w, _ = x.shape
    return np.stack(
        [
            np.stack([x[:, max(p, 0) : p + window, max(q, 0) : q + window].max((1, 2)) for q in starts(w)], 1)
            for p in starts(h)
        ],
        1,
    )


POOLS = [
    (3, 2, 1),
    (2, 2, 0),
    (3, 2, 0),
    (2, 2, 1),
    (1, 2, 0),
    (2, 3, 1),
    (3, 1, 1),
]  # window, stride, padding


def _pool_input(h, w):
    # Negative everywhere, so that padding with zeros would change the maximum.
    return (np.random.default_rng(h * 31 + w).standard_normal((2, h, w, 2)) - 9).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("window", "stride", "padding"), POOLS)
def test_max_pool_equals_loops(window, stride, padding, ceil_mode):
    for h, w in [(3, 4), (4, 3), (5, 8), (8, 7), (9, 6)]:
        x = _pool_input(h, w)
        ours = np.asarray(max_pool(x, window=window, stride=stride, padding=padding, ceil_mode=ceil_mode))
        np.testing.assert_array_equal(
            ours, _pool_by_loops(x, window, stride, padding, ceil_mode), str((h, w))
        )


def test_ceil_mode_drops_window_of_only_padding():
    x = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    pooled = max_pool(x, window=2, stride=2, padding=1, ceil_mode=True)
    assert pooled[0, :, 0, 0].tolist() == [
        0,
        2,
    ]  # the ceiling gives three windows, the last starts past the input
    kept = max_pool(x[:, :2], window=3, stride=2, padding=1, ceil_mode=True)
    assert kept[0, :, 0, 0].tolist() == [1, 1]  # here the last window covers a pixel


@pytest.mark.parametrize(("window", "padding"), [(3, 1), (2, 0)])
def test_max_pool_gradient_under_jit(window, padding):
    x = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    pool = functools.partial(max_pool, window=window, padding=padding)
    # Training differentiates through jit, where nothing is a compile-time constant.
    gradient = np.asarray(jax.grad(jax.jit(lambda x: pool(x).sum()))(x))[0, :, :, 0]
    won = np.asarray(pool(x)).astype(int).ravel()  # each value is its flat index
    np.testing.assert_array_equal(gradient, np.bincount(won, minlength=25).reshape(5, 5))


@pytest.mark.torch
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("window", "stride", "padding"), POOLS)
def test_max_pool_and_gradient_equal_torch(torch, window, stride, padding, ceil_mode):
    for h, w in [(4, 7), (8, 3)]:
        x = _pool_input(h, w)
        theirs_x = torch.from_numpy(x).permute(0, 3, 1, 2).clone().requires_grad_()
        theirs = torch.nn.functional.max_pool2d(theirs_x, window, stride, padding, ceil_mode=ceil_mode)
        seed = np.random.default_rng(1).standard_normal(theirs.shape).astype(np.float32)
        (theirs * torch.from_numpy(seed)).sum().backward()

        def pool(x):
            return max_pool(x, window=window, stride=stride, padding=padding, ceil_mode=ceil_mode)

        @quick_jit
        def forward_and_back(x, seed, pool=pool):
            ours, back = jax.vjp(pool, x)
            return ours, back(seed)[0]

        ours, gradient = (np.asarray(a) for a in forward_and_back(x, seed.transpose(0, 2, 3, 1)))
        np.testing.assert_array_equal(ours.transpose(0, 3, 1, 2), theirs.detach().numpy(), str((h, w)))
        np.testing.assert_allclose(
            gradient.transpose(0, 3, 1, 2), theirs_x.grad.numpy(), atol=1e-6, err_msg=str((h, w))
        )


def test_global_average_pool_accumulates_in_float32():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32) + 7
    np.testing.assert_allclose(
        global_average_pool(x), x.astype(np.float64).mean((1, 2), keepdims=True), rtol=1e-6
    )
    ones = jnp.ones((1, 40, 40, 1), jnp.bfloat16)  # a bfloat16 sum of ones saturates at 256
    pooled = global_average_pool(ones)
    assert pooled.dtype == jnp.bfloat16 and pooled.shape == (1, 1, 1, 1)
    assert float(pooled[0, 0, 0, 0]) == 1


RULE = Preprocess("BGR", 1.0, (104.0, 116.5, 122.25), (1.0, 1.0, 1.0))


def test_preprocess_reorders_channels_then_subtracts_mean():
    frame = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    out = np.asarray(preprocess(frame, (4, 5), RULE))
    assert out.dtype == np.float32
    for ours, theirs, mean in zip((0, 1, 2), (2, 1, 0), RULE.mean, strict=True):
        np.testing.assert_array_equal(
            out[..., ours], frame[..., theirs].astype(np.float32) - np.float32(mean)
        )


def test_preprocess_scales_before_mean_and_std():
    rule = Preprocess("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    frame = np.random.default_rng(0).integers(0, 256, (1, 3, 3, 3), np.uint8)
    expected = (frame / 255 - np.array(rule.mean)) / np.array(rule.std)
    np.testing.assert_allclose(preprocess(frame, (3, 3), rule), expected, atol=1e-6)


def test_preprocess_rounds_like_opencv_only_if_configured():
    frame = np.random.default_rng(0).integers(0, 256, (1, 5, 4, 3), np.uint8)
    plain = np.asarray(preprocess(frame, (9, 9), RULE.replace(mean=(0, 0, 0))))
    rounded = np.asarray(preprocess(frame, (9, 9), RULE.replace(mean=(0, 0, 0), resize="opencv")))
    assert (plain % 1 != 0).any()
    assert (rounded % 1 == 0).all()
    assert np.abs(plain - rounded).max() <= 1


@pytest.mark.parametrize("size", [(17, 31), (40, 9), (65, 20)])
def test_downscaling_equals_pillow_antialiasing(size):
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)
    plain = Preprocess("RGB", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    expected = np.stack([np.stack([Image.fromarray(frame[..., c].astype(np.float32)).resize(
        size[::-1], Image.Resampling.BILINEAR) for c in range(3)], -1) for frame in frames])
    np.testing.assert_allclose(preprocess(frames, size, plain), expected, atol=1e-2)
    # Antialiasing turns a one-pixel checkerboard into its mean gray; point sampling would not.
    board = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (30, 40))[None, ..., None].repeat(3, -1)
    assert np.abs(np.asarray(preprocess(board, (10, 13), plain))[:, 1:-1, 1:-1] - 127.5).max() < 3


@pytest.mark.torch
@pytest.mark.parametrize(("size", "new", "kernel", "kind"), [
    ((3, 5), (9, 17), (3, 3), "bilinear"), ((3, 5), (9, 17), (3, 3), "bicubic"), ((4, 3), (7, 3), (1, 5), "bicubic"),
    ((5, 6), (3, 4), (3, 1), "bilinear"), ((1, 4), (6, 4), (3, 3), "bicubic")])
def test_conv_of_resized_input_equals_torch(torch, size, new, kernel, kind):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2, *size, 3)), rng.standard_normal((*kernel, 3, 4))
    theirs_x, theirs_weights = (torch.from_numpy(np.moveaxis(a, axes, range(4)).copy()).requires_grad_()
                                for a, axes in ((x, (0, 3, 1, 2)), (weights, (3, 2, 0, 1))))
    resized = torch.nn.functional.interpolate(theirs_x, new, mode=kind, align_corners=True)
    theirs = torch.nn.functional.conv2d(resized, theirs_weights, padding=[k // 2 for k in kernel])
    seed = rng.standard_normal((2, *new, 4))
    theirs.backward(torch.from_numpy(np.moveaxis(seed, 3, 1).copy()))

    @jax.jit
    def forward_and_back(x, weights, seed):
        made, back = jax.vjp(lambda x, weights: conv2d_resized(x, weights, new, kind), x, weights)
        return made, *back(seed)

    made = forward_and_back(*(a.astype(np.float32) for a in (x, weights, seed)))
    expected = (np.moveaxis(theirs.detach().numpy(), 1, 3), np.moveaxis(theirs_x.grad.numpy(), 1, 3),
                theirs_weights.grad.numpy().transpose(2, 3, 1, 0))
    for ours, wanted in zip(made, expected, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())
