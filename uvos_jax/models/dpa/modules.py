"""Convolutional parts of DPA: the context at the coarsest scale and the decoder with its four outputs."""

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
    """A 1x1 convolution with bias that no normalization follows."""
    return Conv(features, 1, use_bias=True, dtype=dtype, kernel_init=torch_default)


def pixels(x: jax.Array) -> jax.Array:
    """``[b, h, w, c] -> [b, h * w, c]``."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


class Context(nn.Module):
    """Half the size of block 5, three convolutions and ASPP.

    Attributes:
        features: Output channels.
        policy: See ``Policy``.
    """

    features: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """``[b, h, w, c]`` to two maps ``[b, h // 2, w // 2, features]``: before and after ASPP."""
        x = max_pool(x, window=2, stride=2, padding=0)
        x = Conv(self.features, 1, use_bias=True, dtype=self.policy.dtype, name="reduce")(x)
        for i in (1, 2):
            x = ConvBNReLU(self.features, name=f"unit{i}", policy=self.policy)(x, train)
        return x, ASPP(self.features, (6, 12, 18), use_bias=True, name="aspp", policy=self.policy)(x, train)


class ResidualFusion(nn.Module):
    """A residual block, then half the channels: how two maps that lie side by side in the channels become one.

    Attributes:
        features: Output channels; twice as many come in.
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


class Refine(nn.Module):
    """One step of the decoder to twice the size, with the encoder's fine features where the coarse map says object.

    Attributes:
        features: Channels of the decoder.
        policy: See ``Policy``.
    """

    features: int
    policy: Policy = Policy()

    def setup(self):
        self.reduce = conv1x1(2 * self.features, self.policy.dtype)
        self.unit1 = ConvBNReLU(3 * self.features, policy=self.policy)
        self.unit2 = ConvBNReLU(self.features, policy=self.policy)
        self.predict = conv1x1(1, self.policy.dtype)

    def fine(self, features: jax.Array) -> jax.Array:
        """The encoder's ``[b, h, w, c]`` to ``[b, h, w, 2 * features]``, all that needs no coarse map."""
        return self.reduce(features)

    def __call__(self, fine: jax.Array, gate: jax.Array, coarse: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Refines.

        Args:
            fine: Of :meth:`fine`.
            gate: ``[b, h, w, 1]``, the coarsest probability at this size.
            coarse: ``[b, h, w, features]``, the decoder's features so far at this size.
            train: See ``BatchNorm``.

        Returns:
            The decoder's features ``[b, h, w, features]`` and logits ``[b, h, w, 1]``.
        """
        x = self.unit2(self.unit1(jnp.concatenate([fine * gate.astype(fine.dtype), coarse], -1), train), train)
        return x, self.predict(x)


class Decoder(nn.Module):
    """From the streams' features to four maps of logits, at strides 8, 4, 2 and 1.

    Both streams meet in one map at each of three scales, these in one, and three steps refine it with the fine features
    of one encoder (the appearance stream's, if it is there).

    Attributes:
        embedding: Channels of the streams' maps and of the fusions.
        features: Channels of the fine steps.
        policy: See ``Policy``.
    """

    embedding: int
    features: int
    policy: Policy = Policy()

    def setup(self):
        self.fuse4, self.fuse5, self.fuse6 = (ResidualFusion(self.embedding, policy=self.policy) for _ in range(3))
        self.merge56, self.merge45 = (ResidualFusion(self.embedding, policy=self.policy) for _ in range(2))
        self.reduce45 = conv1x1(self.features, self.policy.dtype)
        self.predict4 = conv1x1(1, self.policy.dtype)
        self.refine1, self.refine2, self.refine3 = (Refine(self.features, policy=self.policy) for _ in range(3))

    def prepare(self, blocks: list[jax.Array], block4: list[jax.Array], train: bool) -> dict[str, jax.Array]:
        """What needs neither block 5 nor another frame.

        Args:
            blocks: Blocks 1, 2 and 3 of the encoder that refines, at strides 1, 2, 4.
            block4: Of the streams, ``[b, h / 8, w / 8, embedding]``, see :meth:`__call__`.
            train: See ``BatchNorm``.

        Returns:
            ``fine1`` to ``fine3``, ``[b, h', w', 2 * features]``, and ``fused4``.
        """
        refines = (self.refine1, self.refine2, self.refine3)
        fine = {f"fine{i}": refine.fine(x) for i, (refine, x) in enumerate(zip(refines, blocks, strict=True), 1)}
        return fine | {"fused4": self.fuse4(_both(block4), train)}

    def __call__(self, prepared: dict[str, jax.Array], block5: list[jax.Array], context: list[jax.Array],
                 train: bool) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
        """Decodes.

        Args:
            prepared: Of :meth:`prepare`.
            block5: One map of each stream, ``[b, h / 16, w / 16, embedding]``. Where there is one stream, it stands in
                for the other: the fusions then begin the second phase of training as what they became in the first, when
                both streams are copies of one.
            context: Alike, ``[b, h / 32, w / 32, embedding]``.
            train: See ``BatchNorm``.

        Returns:
            Four ``[b, h', w', 1]`` logits, coarse to fine, and the fusions.
        """
        fused5, fused6 = self.fuse5(_both(block5), train), self.fuse6(_both(context), train)
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


def _both(maps):
    return jnp.concatenate([maps[0], maps[-1]], -1)


def _with_coarser(x, coarser):
    return jnp.concatenate([x, resize_bilinear(coarser, x.shape[1:3], align_corners=True)], -1)
