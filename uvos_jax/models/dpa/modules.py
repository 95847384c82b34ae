"""Convolutional modules of DPA: multi-scale context and the decoder with its four outputs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.aspp import ASPP
from uvos_jax.nn.layers import Conv, ConvNorm, Policy, torch_default
from uvos_jax.ops.pooling import max_pool
from uvos_jax.ops.resize import resize_bilinear

# The bias has no effect before the batch norm; the published checkpoints contain it.
ConvBNReLU = functools.partial(ConvNorm, use_bias=True)


def conv1x1(features: int, dtype: jnp.dtype) -> Conv:
    """Returns a 1x1 convolution with bias, for use without normalization."""
    return Conv(features, 1, use_bias=True, dtype=dtype, kernel_init=torch_default)


class ContextModule(nn.Module):
    """Context at stride 32: max pooling of block 5, three convolutions and ASPP.

    Attributes:
        features: Output channels.
        policy: See ``Policy``.
    """

    features: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the context before and after ASPP.

        Args:
            x: ``[b, h, w, c]``.
            train: See ``BatchNorm``.

        Returns:
            Two maps ``[b, h // 2, w // 2, features]``.
        """
        x = max_pool(x, window=2, stride=2, padding=0)
        x = Conv(self.features, 1, use_bias=True, dtype=self.policy.dtype, name="reduce")(x)
        for i in (1, 2):
            x = ConvBNReLU(self.features, name=f"unit{i}", policy=self.policy)(x, train)
        return x, ASPP(self.features, (6, 12, 18), use_bias=True, name="aspp", policy=self.policy)(x, train)


class ResidualFusion(nn.Module):
    """Fuses two concatenated feature maps by a residual block and a convolution that halves the channels.

    Attributes:
        features: Output channels; the input has twice as many.
        policy: See ``Policy``.
    """

    features: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[b, h, w, 2 * features] -> [b, h, w, features]``."""
        y = ConvBNReLU(2 * self.features, name="unit1", policy=self.policy)(x, train)
        y = Conv(2 * self.features, use_bias=True, dtype=self.policy.dtype, name="conv2")(y)
        return ConvBNReLU(self.features, name="unit3", policy=self.policy)(nn.relu(x + y), train)


class RefinementBlock(nn.Module):
    """One decoder step at twice the resolution, with encoder features gated by the coarse foreground probability.

    Attributes:
        features: Channels of the decoder.
        policy: See ``Policy``.
    """

    features: int
    policy: Policy = Policy()

    def setup(self):
        """Creates the submodules."""
        self.reduce = conv1x1(2 * self.features, self.policy.dtype)
        self.unit1 = ConvBNReLU(3 * self.features, policy=self.policy)
        self.unit2 = ConvBNReLU(self.features, policy=self.policy)
        self.predict = conv1x1(1, self.policy.dtype)

    def fine(self, features: jax.Array) -> jax.Array:
        """Reduces encoder features ``[b, h, w, c]`` to ``[b, h, w, 2 * features]``, independently of coarser maps."""
        return self.reduce(features)

    def __call__(self, fine: jax.Array, gate: jax.Array, coarse: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Refines the decoder's features.

        Args:
            fine: ``[b, h, w, 2 * features]``, result of :meth:`fine`.
            gate: ``[b, h, w, 1]``, foreground probability of the coarsest output, resized to this resolution.
            coarse: ``[b, h, w, features]``, features of the previous step, resized to this resolution.
            train: See ``BatchNorm``.

        Returns:
            Features ``[b, h, w, features]`` and logits ``[b, h, w, 1]``.
        """
        x = self.unit2(self.unit1(jnp.concatenate([fine * gate.astype(fine.dtype), coarse], -1), train), train)
        return x, self.predict(x)


class Decoder(nn.Module):
    """Decodes the features of both streams to four logit maps at strides 8, 4, 2 and 1.

    The streams are fused at each of three scales and the scales are fused with each other. Three steps then refine the
    result with the fine features of one encoder (appearance, if it exists).

    Attributes:
        embedding: Channels of the streams' maps and of the fusions.
        features: Channels of the refinement steps.
        policy: See ``Policy``.
    """

    embedding: int
    features: int
    policy: Policy = Policy()

    def setup(self):
        """Creates the submodules."""
        self.fuse4, self.fuse5, self.fuse6 = (ResidualFusion(self.embedding, policy=self.policy) for _ in range(3))
        self.merge56, self.merge45 = (ResidualFusion(self.embedding, policy=self.policy) for _ in range(2))
        self.reduce45 = conv1x1(self.features, self.policy.dtype)
        self.predict4 = conv1x1(1, self.policy.dtype)
        self.refine1, self.refine2, self.refine3 = (
            RefinementBlock(self.features, policy=self.policy) for _ in range(3))

    def prepare(self, blocks: list[jax.Array], block4: list[jax.Array], train: bool) -> dict[str, jax.Array]:
        """Computes the inputs of the decoder that depend neither on block 5 nor on other frames.

        Args:
            blocks: Blocks 1, 2 and 3 of the refining encoder, at strides 1, 2 and 4.
            block4: One map per stream, ``[b, h / 8, w / 8, embedding]``; see :meth:`__call__` for a single stream.
            train: See ``BatchNorm``.

        Returns:
            ``fine1`` to ``fine3``, ``[b, h', w', 2 * features]``, and ``fused4``, ``[b, h / 8, w / 8, embedding]``.
        """
        refines = (self.refine1, self.refine2, self.refine3)
        fine = {f"fine{i}": refine.fine(x) for i, (refine, x) in enumerate(zip(refines, blocks, strict=True), 1)}
        return fine | {"fused4": self.fuse4(_concatenate(block4), train)}

    def __call__(self, prepared: dict[str, jax.Array], block5: list[jax.Array], context: list[jax.Array],
                 train: bool) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
        """Decodes the features of the streams.

        Args:
            prepared: Result of :meth:`prepare`.
            block5: One map per stream, ``[b, h / 16, w / 16, embedding]``. A single stream is used twice, so that the
                fusions are already trained when the second phase of training starts with two copies of that stream.
            context: One map per stream, ``[b, h / 32, w / 32, embedding]``.
            train: See ``BatchNorm``.

        Returns:
            Four logit maps ``[b, h', w', 1]``, coarse to fine, and the fused maps by name.
        """
        fused5, fused6 = self.fuse5(_concatenate(block5), train), self.fuse6(_concatenate(context), train)
        merged5 = self.merge56(_with_coarser(fused5, fused6), train)
        x = self.reduce45(self.merge45(_with_coarser(prepared["fused4"], merged5), train))
        inner = {"fused4": prepared["fused4"], "fused5": fused5, "fused6": fused6, "merged5": merged5, "merged4": x}
        logits = [self.predict4(x)]
        for refine, name in ((self.refine3, "fine3"), (self.refine2, "fine2"), (self.refine1, "fine1")):
            fine = prepared[name]
            gate, x = (resize_bilinear(y, fine.shape[1:3], align_corners=True) for y in (nn.sigmoid(logits[0]), x))
            x, refined = refine(fine, gate, x, train)
            logits.append(refined)
        return tuple(logits), inner


def _concatenate(maps):
    return jnp.concatenate([maps[0], maps[-1]], -1)


def _with_coarser(x, coarser):
    return jnp.concatenate([x, resize_bilinear(coarser, x.shape[1:3], align_corners=True)], -1)
