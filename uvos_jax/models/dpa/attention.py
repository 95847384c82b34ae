"""Prototype attention of DPA, and the layers of one stream (appearance or motion)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.models.base import flatten_pixels
from uvos_jax.models.dpa.modules import ContextModule, ConvBNReLU, conv1x1
from uvos_jax.models.dpa.official import GraphAttention
from uvos_jax.nn.layers import Policy
from uvos_jax.ops.attention import attention, tiled_attention
from uvos_jax.ops.prototypes import cosine_maps, prototypes

Tokens = tuple[jax.Array, jax.Array]  # keys and values, [b, t, c] each


class PrototypeAttention(nn.Module):
    """Attention to the prototypes of a source, fused into a feature map.

    Inter-modality attention (Eq. 1-7 of DPA) takes the other modality as source; inter-frame attention (Eq. 9-12) takes
    the reference frames. The paper does not scale before the softmax.

    Attributes:
        features: Channels of the input and the output.
        embedding: Channels ``C'`` of queries, keys and values.
        use_prototypes: Whether prototypes attend to prototypes; otherwise pixels attend to pixels (Table 1, rows IX to
            XI).
        published: Whether to compute as the published code: similarities divided by ``sqrt(C')``, keys in place of
            values (``value`` has parameters but is unused), no gradient through the weights of the prototypes.
        policy: See ``Policy``; prototypes and softmax stay float32.
    """

    features: int
    embedding: int
    use_prototypes: bool = True
    published: bool = False
    policy: Policy = Policy()

    def setup(self):
        """Creates the submodules."""
        self.key = conv1x1(self.embedding, self.policy.dtype)
        self.value = conv1x1(self.embedding, self.policy.dtype)
        self.fuse = ConvBNReLU(self.features, 1, policy=self.policy)

    def source(self, features: jax.Array) -> Tokens:
        """Returns keys and values ``[b, t, C']`` of ``[b, h, w, c]`` features; ``t`` is ``C'`` prototypes or pixels."""
        keys, values = flatten_pixels(self.key(features)), flatten_pixels(self.value(features))
        if self.use_prototypes:
            keys, values = (prototypes(x, detached=self.published) for x in (keys, values))
        return keys, keys if self.published else values

    def __call__(self, features: jax.Array, query: jax.Array, source: Tokens, train: bool) -> jax.Array:
        """Attends to the source and fuses the resulting maps with the features.

        Args:
            features: ``[b, h, w, c]``.
            query: ``[b, h, w, C']``, embedding of the features.
            source: Keys and values of the source, ``[b, t, C']`` each.
            train: See ``BatchNorm``.

        Returns:
            ``[b, h, w, c]``.
        """
        query_pixels, (keys, values) = flatten_pixels(query), source
        if self.use_prototypes:
            scale = self.embedding ** -0.5 if self.published else 1.0
            mixed = attention(prototypes(query_pixels, detached=self.published), keys, values, scale=scale)
            maps = cosine_maps(mixed, query_pixels)
        else:
            maps = tiled_attention(query_pixels, keys, values, scale=1.0)
        maps = maps.reshape(query.shape).astype(features.dtype)
        return self.fuse(jnp.concatenate([features, maps], -1), train)


class Stream(nn.Module):
    """Layers of one modality between its encoder and the decoder.

    The attentions to the other modality, ``ima4`` and ``ima5``, are called by the model, which has both modalities.

    Attributes:
        channels: Channels of blocks 4 and 5.
        embedding: Channels ``C'`` of queries, keys, values and the decoder's inputs.
        modal_kind: Inter-modality attention (IMA) at blocks 4 and 5: ``"prototypes"``, ``"pixels"``, ``"graph"`` as in
            the published code, or ``""`` for none.
        frame_kind: Inter-frame attention (IFA) at block 5: ``"prototypes"``, ``"pixels"``, ``"published"``, or ``""``
            for none.
        policy: See ``Policy``.
    """

    channels: int
    embedding: int
    modal_kind: str
    frame_kind: str
    policy: Policy = Policy()

    def setup(self):
        """Creates the submodules."""
        sizes = (self.channels, self.embedding)
        if self.modal_kind:
            self.query4 = conv1x1(self.embedding, self.policy.dtype)
            if self.modal_kind == "graph":
                self.ima4, self.ima5 = (GraphAttention(*sizes, policy=self.policy) for _ in range(2))
            else:
                self.ima4, self.ima5 = (PrototypeAttention(*sizes, self.modal_kind == "prototypes", policy=self.policy)
                                        for _ in range(2))
        if self.modal_kind or self.frame_kind:
            self.query5 = conv1x1(self.embedding, self.policy.dtype)
        if self.frame_kind:
            self.ifa = PrototypeAttention(*sizes, self.frame_kind != "pixels", self.frame_kind == "published",
                                          policy=self.policy)
        if self.modal_kind and self.frame_kind:
            self.fuse5 = conv1x1(self.channels, self.policy.dtype)
        self.squeeze4, self.squeeze5 = (conv1x1(self.embedding, self.policy.dtype) for _ in range(2))
        self.context = ContextModule(self.embedding, policy=self.policy)

    def __call__(self, block5: jax.Array, query: jax.Array | None, refined: jax.Array | None, source: Tokens | None,
                 train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns block 5 as input of the decoder; IMA and IFA run in parallel and are fused.

        Args:
            block5: ``[b, h, w, channels]``, before both attentions.
            query: ``[b, h, w, C']``, embedding of ``block5``; None without attention.
            refined: ``[b, h, w, channels]``, block 5 after IMA; None without IMA.
            source: Keys and values of the reference frames; None without IFA.
            train: See ``BatchNorm``.

        Returns:
            ``[b, h, w, embedding]``, and intermediates by name: ``ifa``, and the context before (``coarse``) and after
            ASPP (``context``).
        """
        inner, x = {}, block5 if refined is None else refined
        if source is not None:
            inner["ifa"] = self.ifa(block5, query, source, train)
            x = inner["ifa"] if refined is None else self.fuse5(jnp.concatenate([refined, inner["ifa"]], -1))
            if self.is_initializing() and self.modal_kind:
                self.fuse5(jnp.concatenate([x, x], -1))  # creates its parameters where IMA does not run
        inner["coarse"], inner["context"] = self.context(x, train)
        return self.squeeze5(x), inner
