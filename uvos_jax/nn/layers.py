"""Convolution, normalization and activation layers with PyTorch's conventions; layout NHWC, kernels HWIO."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.ops.conv import conv2d

NORMS = ("batch", "group", "instance", "none")

# Kaiming normal over the fan-out, the initialization of ResNets.
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
# PyTorch's default, uniform within 1 / sqrt(fan-in), for layers with one output channel: their fan-out is too small.
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class Policy:
    """Settings that a model passes on to all of its blocks.

    A block takes them as one attribute, ``policy``, and gives that to its submodules. A model keeps ``dtype`` and
    ``axis_name`` as fields of its own, because they are hyper-parameters, and builds the policy in ``setup``.

    Attributes:
        dtype: Computation dtype. Parameters, batch statistics and normalization stay float32.
        axis_name: Mapped axis over which batch norm shares its statistics in training, or None.
    """

    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @property
    def float32(self) -> "Policy":
        """This policy with float32 computation."""
        return dataclasses.replace(self, dtype=jnp.float32)


class Conv(nn.Module):
    """2-D convolution that keeps the size at stride 1 (zero padding ``dilation * (k - 1) // 2``).

    Attributes:
        features: Output channels.
        kernel: Odd side of the square kernel, or (height, width).
        stride: Stride in pixels.
        dilation: Dilation in pixels.
        groups: Channel groups.
        use_bias: Whether to add a bias.
        dtype: Computation dtype; parameters stay float32.
        kernel_init: Initializer of the kernel.
        bias_init: Initial value of the bias.
        in_loop: Whether it runs in the body of a ``lax.scan`` that is differentiated; see ``conv2d``.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = kaiming_fan_out
    bias_init: float = 0.0
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
            start = nn.initializers.constant(self.bias_init)
            x = x + self.param("bias", start, (self.features,), jnp.float32).astype(self.dtype)
        return x


class BatchNorm(nn.Module):
    """Batch normalization over ``b, h, w`` as in PyTorch's ``BatchNorm2d``.

    The batch is normalized by its biased variance; the running variance is updated with the unbiased one. (Flax's
    layer uses the biased one for both.) Statistics are float32 whatever the computation dtype.

    Attributes:
        epsilon: Added to the variance.
        momentum: Weight of the *new* batch in the running statistics, as in PyTorch.
        policy: Dtype of the result, and the mapped axis over which training statistics are shared.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalizes ``[b, h, w, c]``.

        Args:
            x: ``[b, h, w, c]`` float.
            train: Whether to normalize by the statistics of the batch and update ``batch_stats``.

        Returns:
            ``[b, h, w, c]`` of the policy's dtype.
        """
        c = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, c, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, c, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, c, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, c, jnp.float32)
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var, count = _moments(x.astype(jnp.float32),
                                        None if self.is_initializing() else self.policy.axis_name)
            if not self.is_initializing():
                m = self.momentum
                running_mean.value = (1 - m) * running_mean.value + m * mean
                running_var.value = (1 - m) * running_var.value + m * var * (count / max(count - 1, 1))
        factor = scale * lax.rsqrt(var + self.epsilon)
        return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.policy.dtype)


class GroupNorm(nn.Module):
    """Group normalization as in PyTorch's ``GroupNorm``; statistics are float32.

    Flax's layer sums over the pixels and channels of a group at once, which is four times slower on a CPU than
    summing over pixels first and over channels second.

    Attributes:
        groups: Number of groups, a divisor of the channels.
        scale_init: Initial scale.
        epsilon: Added to the biased variance.
        dtype: Dtype of the result.
    """

    groups: int
    scale_init: float = 1.0
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, c]``."""
        b, _, _, c = x.shape
        scale = self.param("scale", nn.initializers.constant(self.scale_init), (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)

        def group_mean(y):
            """``[b, h, w, c] -> [b, 1, 1, c]``."""
            means = y.mean(2).mean(1).reshape(b, self.groups, -1).mean(-1, keepdims=True)
            return jnp.broadcast_to(means, (b, self.groups, c // self.groups)).reshape(b, 1, 1, c)

        x = x.astype(jnp.float32)
        mean = group_mean(x)
        factor = scale * lax.rsqrt(group_mean(jnp.square(x - mean)) + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


class ConvNorm(nn.Module):
    """Convolution, normalization and activation.

    Submodules: ``conv``, and ``bn`` (batch norm) or ``norm`` (group norm); instance norm has no parameters.

    Attributes:
        features: Output channels.
        kernel: Odd side of the square kernel, or (height, width).
        stride: Stride in pixels.
        dilation: Dilation in pixels.
        groups: Channel groups of the convolution.
        use_bias: Whether the convolution has a bias. It has no effect before a batch norm, but some published
            checkpoints contain one.
        norm: One of ``NORMS``.
        norm_groups: Groups of the group norm, a divisor of ``features``.
        norm_scale_init: Initial scale of the group norm.
        momentum: See ``BatchNorm``.
        activation: Applied last; None for none.
        kernel_init: Initializer of the kernel.
        policy: Dtype, and the mapped axis of the batch statistics.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    norm: str = "batch"
    norm_groups: int = 1
    norm_scale_init: float = 1.0
    momentum: float = 0.1
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    kernel_init: Callable = kaiming_fan_out
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), features]``; for ``train`` see ``BatchNorm``."""
        x = Conv(self.features, self.kernel, self.stride, self.dilation, self.groups, self.use_bias,
                 dtype=self.policy.dtype, kernel_init=self.kernel_init, name="conv")(x)
        if self.norm == "batch":
            x = BatchNorm(momentum=self.momentum, policy=self.policy, name="bn")(x, train)
        elif self.norm == "group":
            x = GroupNorm(self.norm_groups, self.norm_scale_init, dtype=self.policy.dtype, name="norm")(x)
        elif self.norm == "instance":
            x = instance_norm(x)
        elif self.norm != "none":
            raise ValueError(f"Unknown norm '{self.norm}'. Use one of {', '.join(NORMS)}.")
        return x if self.activation is None else self.activation(x)


class PReLU(nn.Module):
    """Leaky ReLU with one learned slope for all channels (He et al. 2015; ``torch.nn.PReLU``)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., c] -> [..., c]``."""
        slope = self.param("slope", nn.initializers.constant(0.25), (1,), jnp.float32)
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Normalizes each channel of each image by its mean and biased variance, as in ``InstanceNorm2d``.

    Args:
        x: ``[b, h, w, c]`` float.
        epsilon: Added to the variance.

    Returns:
        ``[b, h, w, c]``, dtype of ``x``; statistics are float32.
    """
    y = x.astype(jnp.float32)
    mean = y.mean((1, 2), keepdims=True)
    var = jnp.square(y - mean).mean((1, 2), keepdims=True)
    return ((y - mean) * lax.rsqrt(var + epsilon)).astype(x.dtype)


def _moments(x, axis_name):
    """Returns mean, biased variance and number of values per channel, over all devices of ``axis_name``."""
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
    """Leaky ReLU with slope 0.01, the default of PyTorch and of in-place ABN."""
    return jnp.where(x >= 0, x, 0.01 * x)
