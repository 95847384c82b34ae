"""Recurrent update operator of RAFT: motion encoder, convolutional GRU, flow head and upsampling."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.nn.layers import Conv, torch_default
from uvos_jax.ops.conv import conv2d
from uvos_jax.ops.resize import resize_bilinear

UPSAMPLING = 8  # stride of the feature maps


class ConvGRU(nn.Module):
    """Convolutional gated recurrent unit; with two kernels, a separable one (Eq. 3-5).

    Each of the gates z, r and q is a convolution of (hidden state, context, motion). The context is constant over the
    iterations, so its contribution is computed once, by :meth:`context_terms`.

    Attributes:
        hidden: Channels of the hidden state.
        context_features: Channels of the context.
        motion_features: Channels of the motion features.
        kernels: (height, width) of the kernels, one per step.
        dtype: Computation dtype.
    """

    hidden: int
    context_features: int
    motion_features: int
    kernels: tuple[tuple[int, int], ...]
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Creates the submodules."""
        width = self.hidden + self.context_features + self.motion_features
        names = [""] if len(self.kernels) == 1 else range(1, len(self.kernels) + 1)
        self.gates = [[_ConvWeights((*kernel, width, self.hidden), name=f"conv{gate}{name}") for gate in "zrq"]
                      for name, kernel in zip(names, self.kernels, strict=True)]

    def context_terms(self, context: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the context's contribution to the gates of each step, bias included.

        Args:
            context: ``[b, h, w, context_features]``.

        Returns:
            ``[b, h, w, 3 * hidden]`` per step: z, r and q.
        """
        inputs = slice(self.hidden, self.hidden + self.context_features)
        terms = []
        for gates in self.gates:
            kernels, biases = zip(*(gate() for gate in gates), strict=True)
            kernel = jnp.concatenate(kernels, -1)[:, :, inputs].astype(self.dtype)
            terms.append(conv2d(context.astype(self.dtype), kernel) + jnp.concatenate(biases).astype(self.dtype))
        return tuple(terms)

    def __call__(self, hidden: jax.Array, context_terms: tuple[jax.Array, ...], motion: jax.Array) -> jax.Array:
        """Returns the next hidden state.

        Args:
            hidden: ``[b, h, w, hidden]``.
            context_terms: Result of :meth:`context_terms`.
            motion: ``[b, h, w, motion_features]``.

        Returns:
            ``[b, h, w, hidden]``.
        """
        n = self.hidden
        for gates, term in zip(self.gates, context_terms, strict=True):
            z, r, q = (jnp.concatenate([kernel[:, :, :n], kernel[:, :, n + self.context_features:]], 2)
                       .astype(self.dtype) for kernel, _ in (gate() for gate in gates))
            zr = jnp.concatenate([z, r], -1)
            logits = conv2d(jnp.concatenate([hidden, motion], -1), zr, in_loop=True) + term[..., :2 * n]
            update, reset = jnp.split(nn.sigmoid(logits), 2, -1)
            candidate = nn.tanh(conv2d(jnp.concatenate([reset * hidden, motion], -1), q, in_loop=True)
                                + term[..., 2 * n:])
            hidden = (1 - update) * hidden + update * candidate
        return hidden


class _ConvWeights(nn.Module):
    """Kernel and bias of a convolution that is applied in parts."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self):
        return (self.param("kernel", torch_default, self.shape, jnp.float32),
                self.param("bias", nn.initializers.zeros, self.shape[-1:], jnp.float32))


class MotionEncoder(nn.Module):
    """Encodes the correlation window and the current flow; the last two channels of the result are the flow.

    Attributes:
        correlation: Channels and kernels of the convolutions of the window.
        flow: Channels of the 7x7 and the 3x3 convolution of the flow.
        features: Channels of the result, flow included.
        dtype: Computation dtype.
    """

    correlation: tuple[tuple[int, int], ...]
    flow: tuple[int, int]
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, window: jax.Array, flow: jax.Array) -> jax.Array:
        """``[b, h, w, points], [b, h, w, 2] -> [b, h, w, features]``."""
        conv = partial(Conv, use_bias=True, dtype=self.dtype, kernel_init=torch_default, in_loop=True)
        correlation_features, flow_features = window, flow
        for i, (features, kernel) in enumerate(self.correlation, 1):
            correlation_features = nn.relu(conv(features, kernel, name=f"convc{i}")(correlation_features))
        for i, (features, kernel) in enumerate(zip(self.flow, (7, 3), strict=True), 1):
            flow_features = nn.relu(conv(features, kernel, name=f"convf{i}")(flow_features))
        both = jnp.concatenate([correlation_features, flow_features], -1)
        return jnp.concatenate([nn.relu(conv(self.features - 2, name="conv")(both)), flow.astype(self.dtype)], -1)


class UpdateBlock(nn.Module):
    """One iteration: motion encoder, GRU and flow head; and the mask head for convex upsampling.

    Attributes:
        hidden: Channels of the hidden state.
        context_features: Channels of the context.
        small: Whether it belongs to the small network.
        dtype: Computation dtype.
    """

    hidden: int
    context_features: int
    small: bool
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Creates the submodules."""
        conv = partial(Conv, use_bias=True, dtype=self.dtype, kernel_init=torch_default, in_loop=True)
        if self.small:
            motion, kernels = (((96, 1),), (64, 32), 82), ((3, 3),)
        else:
            motion, kernels = (((256, 1), (192, 3)), (128, 64), 128), ((1, 5), (5, 1))
        self.motion = MotionEncoder(*motion, self.dtype)
        self.gru = ConvGRU(self.hidden, self.context_features, motion[-1], kernels, self.dtype)
        self.flow_conv1 = conv(128 if self.small else 256)
        self.flow_conv2 = conv(2)
        if not self.small:
            self.mask_conv1 = conv(256)
            self.mask_conv2 = conv(9 * UPSAMPLING**2, 1)

    def context_terms(self, context: jax.Array) -> tuple[jax.Array, ...]:
        """See ``ConvGRU.context_terms``."""
        return self.gru.context_terms(context)

    def __call__(self, hidden: jax.Array, context_terms: tuple[jax.Array, ...], window: jax.Array, flow: jax.Array
                 ) -> tuple[jax.Array, jax.Array]:
        """Computes one update of the flow.

        Args:
            hidden: ``[b, h, w, hidden]``.
            context_terms: Result of :meth:`context_terms`.
            window: ``[b, h, w, points]`` correlations around the current flow.
            flow: ``[b, h, w, 2]`` float32, current flow in pixels of this grid.

        Returns:
            The next hidden state and the change of the flow, ``[b, h, w, 2]`` float32 in pixels of this grid.
        """
        hidden = self.gru(hidden, context_terms, self.motion(window, flow))
        return hidden, self.flow_conv2(nn.relu(self.flow_conv1(hidden))).astype(jnp.float32)

    def upsample(self, hidden: jax.Array, flow: jax.Array) -> jax.Array:
        """Upsamples flow ``[b, h, w, 2]`` to ``[b, 8 h, 8 w, 2]``, vectors in pixels of the fine grid."""
        if self.small:
            size = tuple(UPSAMPLING * n for n in flow.shape[1:3])
            return UPSAMPLING * resize_bilinear(flow, size, align_corners=True)
        # The published code scales the mask by 0.25 "to balance gradients".
        logits = 0.25 * self.mask_conv2(nn.relu(self.mask_conv1(hidden))).astype(jnp.float32)
        return convex_upsample(flow, logits)


def convex_upsample(flow: jax.Array, logits: jax.Array) -> jax.Array:
    """Makes each vector of the fine grid a convex combination of the 3x3 nearest coarse vectors (Sec. 3.3).

    Args:
        flow: ``[b, h, w, 2]`` float32, in pixels of the coarse grid; zero beyond the border.
        logits: ``[b, h, w, 9 * 64]`` weights before the softmax, by coarse neighbor (row by row), then row and column
            within the 8x8 fine pixels.

    Returns:
        ``[b, 8 h, 8 w, 2]``, vectors in pixels of the fine grid.
    """
    b, h, w, _ = flow.shape
    weights = nn.softmax(logits.reshape(b, h, w, 9, UPSAMPLING, UPSAMPLING), axis=3)
    padded = jnp.pad(UPSAMPLING * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    neighbors = jnp.stack([padded[:, i:i + h, j:j + w] for i in range(3) for j in range(3)], 3)
    fine = jnp.einsum("bhwkij,bhwkc->bhiwjc", weights, neighbors, precision=lax.Precision.HIGHEST)
    return fine.reshape(b, UPSAMPLING * h, UPSAMPLING * w, 2)
