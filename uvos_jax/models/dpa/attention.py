"""DPA's attention between prototypes, and what belongs to each of its two streams."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.models.dpa.modules import Context, ConvBNReLU, conv1x1, pixels
from uvos_jax.models.dpa.official import GraphAttention
from uvos_jax.nn.layers import Policy
from uvos_jax.ops.attention import attention, tiled_attention
from uvos_jax.ops.prototypes import cosine_maps, prototypes

Tokens = tuple[jax.Array, jax.Array]  # keys and values, [b, t, c] each


class PrototypeAttention(nn.Module):
    """What another source of features knows, told in its own prototypes, added to a map of features.

    Between modalities it is Eq. 1-7 of DPA, with the other modality as source; between frames Eq. 9-12, with the
    reference frames as source. The paper does not scale before the softmax.

    Attributes:
        features: Channels of the map that comes in and goes out.
        embedding: Channels ``C'`` of queries, keys and values.
        use_prototypes: False lets pixels attend to pixels (Table 1, rows IX to XI).
        published: As the published code: similarities over ``sqrt(C')``, keys for values (``value`` is there and unused),
            no gradient through the weights that make prototypes.
        policy: See ``Policy``; prototypes and softmax stay float32.
    """

    features: int
    embedding: int
    use_prototypes: bool = True
    published: bool = False
    policy: Policy = Policy()

    def setup(self):
        self.key = conv1x1(self.embedding, self.policy.dtype)
        self.value = conv1x1(self.embedding, self.policy.dtype)
        self.fuse = ConvBNReLU(self.features, 1, policy=self.policy)

    def source(self, features: jax.Array) -> Tokens:
        """Keys and values of ``[b, h, w, c]`` features: ``[b, t, C']`` each, ``t`` prototypes (``C'``) or pixels."""
        keys, values = pixels(self.key(features)), pixels(self.value(features))
        if self.use_prototypes:
            keys, values = (prototypes(x, detached=self.published) for x in (keys, values))
        return keys, keys if self.published else values

    def __call__(self, features: jax.Array, query: jax.Array, source: Tokens, train: bool) -> jax.Array:
        """Fuses features with where the source's knowledge is found in them.

        Args:
            features: ``[b, h, w, c]``.
            query: ``[b, h, w, C']``, the embedding of these features.
            source: Keys and values, ``[b, t, C']`` each.
            train: See ``BatchNorm``.

        Returns:
            ``[b, h, w, c]``.
        """
        query_pixels, (keys, values) = pixels(query), source
        if self.use_prototypes:
            scale = self.embedding ** -0.5 if self.published else 1.0
            mixed = attention(prototypes(query_pixels, detached=self.published), keys, values, scale=scale)
            maps = cosine_maps(mixed, query_pixels)
        else:
            maps = tiled_attention(query_pixels, keys, values, scale=1.0)
        maps = maps.reshape(query.shape).astype(features.dtype)
        return self.fuse(jnp.concatenate([features, maps], -1), train)


class Stream(nn.Module):
    """All that one modality has beside its encoder.

    Its attentions to the other modality are called from outside, where both modalities meet.

    Attributes:
        channels: Of blocks 4 and 5.
        embedding: Channels ``C'`` of queries, keys, values and of what the decoder gets.
        modal_kind: Of the attention to the other modality at blocks 4 and 5: ``"prototypes"``, ``"pixels"``,
            ``"graph"`` as in the published code, or ``""``, none.
        frame_kind: Of that to the references at block 5: ``"prototypes"``, ``"pixels"``, ``"published"`` or ``""``, none.
        policy: See ``Policy``.
    """

    channels: int
    embedding: int
    modal_kind: str
    frame_kind: str
    policy: Policy = Policy()

    def setup(self):
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
        self.context = Context(self.embedding, policy=self.policy)

    def __call__(self, block5: jax.Array, query: jax.Array | None, refined: jax.Array | None, source: Tokens | None,
                 train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Block 5 as the decoder reads it: what both attentions, side by side, made of it.

        Args:
            block5: ``[b, h, w, channels]``, which neither attention has touched.
            query: ``[b, h, w, C']``, its embedding; None without attention.
            refined: Block 5 after IMA, or None without it.
            source: The references' keys and values, or None without IFA.
            train: See ``BatchNorm``.

        Returns:
            ``[b, h, w, embedding]``, and by name: what IFA made, and the context before and after its ASPP.
        """
        inner, x = {}, block5 if refined is None else refined
        if source is not None:
            inner["ifa"] = self.ifa(block5, query, source, train)
            x = inner["ifa"] if refined is None else self.fuse5(jnp.concatenate([refined, inner["ifa"]], -1))
            if self.is_initializing() and self.modal_kind:
                self.fuse5(jnp.concatenate([x, x], -1))  # there, even where IMA is not run
        inner["coarse"], inner["context"] = self.context(x, train)
        return self.squeeze5(x), inner
