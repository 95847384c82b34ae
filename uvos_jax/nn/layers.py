"""Convolution and batch norm with PyTorch's conventions, and their name rules for PyTorch checkpoints."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.ops.conv import conv2d

# Kaiming normal over the fan-out: what ResNets are started with.
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
# Uniform within 1 / sqrt(fan-in), PyTorch's own; what ends in one channel needs it, whose fan-out is 1.
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """Convolution that keeps the size at stride 1 (zero padding ``dilation * (k - 1) // 2``).

    Attributes:
      features: output channels.
      kernel: side of the square kernel, or (height, width); odd.
      stride: output step in pixels.
      dilation: distance of the taps in pixels.
      groups: channel groups.
      use_bias: whether a bias is added.
      dtype: type of the computation; parameters stay float32.
      kernel_init: initializer of the kernel.
      bias_start: where biases start.
      in_loop: whether it runs in the body of a ``lax.scan`` that is differentiated, see ``conv2d``.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = kaiming_fan_out
    bias_start: float = 0.0
    in_loop: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), features]``."""
        sides = (self.kernel,) * 2 if isinstance(self.kernel, int) else tuple(self.kernel)
        shape = (*sides, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, dilation=self.dilation,
                   groups=self.groups, in_loop=self.in_loop)
        if self.use_bias:
            start = nn.initializers.constant(self.bias_start)
            x = x + self.param("bias", start, (self.features,), jnp.float32).astype(self.dtype)
        return x


class BatchNorm(nn.Module):
    """Batch normalization over ``b, h, w`` as PyTorch's ``BatchNorm2d``.

    Normalizing uses the biased variance of the batch, the running variance is updated with the unbiased one
    (Flax's own layer uses the biased one for both). Statistics are float32 whatever ``dtype`` is.

    Attributes:
      epsilon: added to the variance.
      momentum: weight of the *new* batch in the running statistics (PyTorch's meaning).
      axis_name: mapped axis over which training statistics are shared, or None.
      dtype: type of the result.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalizes ``[b, h, w, c]``; with ``train`` by the batch's own statistics, updating ``batch_stats``."""
        c = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, c, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, c, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, c, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, c, jnp.float32)
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var, count = _moments(x.astype(jnp.float32), None if self.is_initializing() else self.axis_name)
            if not self.is_initializing():
                m = self.momentum
                running_mean.value = (1 - m) * running_mean.value + m * mean
                running_var.value = (1 - m) * running_var.value + m * var * (count / max(count - 1, 1))
        factor = scale * lax.rsqrt(var + self.epsilon)
        return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.dtype)


class GroupNorm(nn.Module):
    """Normalizes groups of channels of every picture as PyTorch's ``GroupNorm``; statistics are float32.

    Flax's own layer sums over pixels and the channels of a group at once, which a CPU does four times as slowly as
    first over pixels and then over channels.

    Attributes:
      groups: how many; a divisor of the channels.
      initial: scale at the start of training.
      epsilon: added to the biased variance.
      dtype: type of the result.
    """

    groups: int
    initial: float = 1.0
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, c]``."""
        b, _, _, c = x.shape
        scale = self.param("scale", nn.initializers.constant(self.initial), (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)

        def group_mean(y):
            """``[b, h, w, c] -> [b, 1, 1, c]``."""
            means = y.mean(2).mean(1).reshape(b, self.groups, -1).mean(-1, keepdims=True)
            return jnp.broadcast_to(means, (b, self.groups, c // self.groups)).reshape(b, 1, 1, c)

        x = x.astype(jnp.float32)
        mean = group_mean(x)
        factor = scale * lax.rsqrt(group_mean(jnp.square(x - mean)) + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


class PReLU(nn.Module):
    """Leaky ReLU whose one slope, for all channels, is learned (He et al. 2015; ``torch.nn.PReLU``)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., c] -> [..., c]``."""
        slope = self.param("slope", nn.initializers.constant(0.25), (1,), jnp.float32)
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Normalizes every channel of every picture by its own mean and biased variance, as ``InstanceNorm2d``.

    Args:
      x: ``[b, h, w, c]`` float.
      epsilon: added to the variance.

    Returns:
      ``[b, h, w, c]``, dtype of ``x``; statistics are float32.
    """
    y = x.astype(jnp.float32)
    mean = y.mean((1, 2), keepdims=True)
    var = jnp.square(y - mean).mean((1, 2), keepdims=True)
    return ((y - mean) * lax.rsqrt(var + epsilon)).astype(x.dtype)


def _moments(x, axis_name):
    """Mean, biased variance and number of values per channel, over all devices of ``axis_name``."""
    axes, count = (0, 1, 2), x.size // x.shape[-1]
    mean = x.mean(axes)
    if axis_name is not None:
        mean = lax.pmean(mean, axis_name)
        count *= lax.axis_size(axis_name)
    var = jnp.square(x - mean).mean(axes)  # two passes: E[x²] - E[x]² cancels for large means
    if axis_name is not None:
        var = lax.pmean(var, axis_name)
    return mean, var, count


def leaky_relu(x: jax.Array) -> jax.Array:
    """Leaky ReLU with slope 0.01 (PyTorch's and in-place ABN's default)."""
    return jnp.where(x >= 0, x, 0.01 * x)
