"""Inter-modality attention of DPA's published code, its name rules, and the parity trace.

In the published code the prototypes of a frame pass through a graph network before they are compared with the frame's
pixels, and the resulting maps of both modalities attend to each other pixel by pixel. The code's forward pass has all
of this commented out, but the checkpoints contain its parameters.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.errors import UserError
from uvos_jax.models.base import Model, Rules, flatten_pixels, nchw, nhwc
from uvos_jax.models.dpa.modules import ConvBNReLU
from uvos_jax.nn import vgg
from uvos_jax.nn.layers import BatchNorm, Policy
from uvos_jax.ops.attention import tiled_attention
from uvos_jax.ops.prototypes import cosine_maps, nearest_neighbors, prototypes
from uvos_jax.ops.resize import resize_bilinear

_NEIGHBORS = 10


class _TokenNorm(nn.Module):
    """Batch norm and ReLU of ``[b, n, c]`` tokens, over ``b`` and ``n``."""

    policy: Policy

    @nn.compact
    def __call__(self, x, train):
        x = BatchNorm(policy=self.policy, name="bn")(x[:, :, None], train)
        return nn.relu(x[:, :, 0])


class TokenAttention(nn.Module):
    """Unscaled attention of tokens to tokens in half the channels.

    Attributes:
        normalized_residual: Whether the residual is the normalized input rather than the input.
        own_values: Whether the values come from the queries' tokens; then there must be as many keys as queries.
        policy: See ``Policy``.
    """

    normalized_residual: bool
    own_values: bool
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, other: jax.Array, train: bool) -> jax.Array:
        """``[b, n, c]`` queries and ``[b, m, c]`` keys to ``[b, n, c]``."""
        c = x.shape[-1]
        norm = _TokenNorm(self.policy, name="norm")

        def dense(features, name):
            return nn.Dense(features, dtype=self.policy.dtype, precision="highest", name=name)

        a = norm(x, train)
        b = a if other is x else norm(other, train)
        mixed = tiled_attention(dense(c // 2, "theta")(a), dense(c // 2, "phi")(b),
                                dense(c // 2, "g")(a if self.own_values else b), scale=1.0)
        return dense(c, "out")(mixed) + (a if self.normalized_residual else x)


class GraphNetwork(nn.Module):
    """Self-attention of prototypes, then three edge convolutions over their nearest neighbors.

    Attributes:
        policy: See ``Policy``.
    """

    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[b, n, c] -> [b, n, c]``, ``n`` prototypes."""
        x = TokenAttention(False, False, name="attention", policy=self.policy)(x, x, train)
        for i in (1, 2, 3):
            index = nearest_neighbors(x, min(_NEIGHBORS, x.shape[1]))
            neighbors = jax.vmap(lambda rows, at: rows[at])(x, index)  # [b, n, neighbors, c]
            own = jnp.broadcast_to(x[:, :, None], neighbors.shape)
            edges = jnp.concatenate([neighbors - own, own], -1)
            edges = nn.Dense(x.shape[-1], use_bias=False, dtype=self.policy.dtype, precision="highest",
                             name=f"edge{i}")(edges)
            edges = BatchNorm(name=f"edge{i}_bn", policy=self.policy)(edges, train)
            x = nn.leaky_relu(edges, 0.2).max(2)
        return x


class GraphAttention(nn.Module):
    """One modality's part of the published inter-modality attention; ``MutualRefinement`` runs between its methods.

    Attributes:
        features: Channels of the input and the output.
        embedding: Channels of the prototypes.
        policy: See ``Policy``.
    """

    features: int
    embedding: int
    policy: Policy = Policy()

    def setup(self):
        """Creates the submodules."""
        self.graph = GraphNetwork(policy=self.policy)
        self.fuse = ConvBNReLU(self.features, 1, policy=self.policy)

    def maps(self, query: jax.Array, train: bool) -> jax.Array:
        """Returns the cosine similarity of pixels and graph-updated prototypes: ``[b, h, w, c] -> [b, h * w, c]``."""
        tokens = flatten_pixels(query)
        return cosine_maps(self.graph(prototypes(tokens, detached=True), train), tokens)

    def __call__(self, features: jax.Array, maps: jax.Array, train: bool) -> jax.Array:
        """``[b, h, w, features]`` and refined maps ``[b, h * w, c]`` to ``[b, h, w, features]``."""
        maps = maps.reshape(*features.shape[:3], -1).astype(features.dtype)
        return self.fuse(jnp.concatenate([features, maps], -1), train)


class MutualRefinement(nn.Module):
    """Cross-attention between the pixels of both modalities' maps, with values from the map that is refined.

    Attributes:
        policy: See ``Policy``.
    """

    policy: Policy = Policy()

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Refines the ``[b, n, c]`` maps of ``appearance`` and ``motion``."""
        return {name: TokenAttention(True, True, self.policy, name=name)(maps[name], maps[other], train)
                for name, other in (("appearance", "motion"), ("motion", "appearance"))}


def torch_rules(model: Model) -> Rules:
    """Returns the name rules for the published checkpoints (588 keys): official variants with both streams.

    Raises:
        UserError: The model is another variant or has one stream.
    """
    if model.variant == "paper" or model.streams != "both":
        raise UserError("DPA's published checkpoints do not fit this network. Use --variant official or official_full"
                        " with both streams.")
    rules = []
    for ours, theirs in (("appearance", "rgb"), ("motion", "flow")):
        stream = f"{ours}_stream"
        rules += vgg.torch_rules(f"{ours}_encoder", f"{theirs}_encoder.vgg.")
        rules += [(rf"{stream}/query([45])", rf"{theirs}_sq\1.0", "conv"),
                  (rf"{stream}/squeeze([45])", rf"{theirs}_COMP\1.0", "conv"),
                  (f"{stream}/context/reduce", f"{theirs}_COMP6.1", "conv"),
                  (f"{stream}/context/unit1/conv", f"{theirs}_COMP6.2", "conv"),
                  (f"{stream}/context/unit1/bn", f"{theirs}_COMP6.3", "norm"),
                  (f"{stream}/context/unit2/conv", f"{theirs}_COMP6.5", "conv"),
                  (f"{stream}/context/unit2/bn", f"{theirs}_COMP6.6", "norm"),
                  (f"{stream}/ifa/key", f"{theirs}_TAM.K", "conv"),
                  (f"{stream}/ifa/value", f"{theirs}_TAM.V", "conv"),
                  (f"{stream}/ifa/fuse/conv", f"{theirs}_TAM.fusion.0", "conv"),
                  (f"{stream}/ifa/fuse/bn", f"{theirs}_TAM.fusion.1", "norm"),
                  (f"{stream}/fuse5", f"{theirs}_fuse5.0", "conv"),
                  (rf"{stream}/ima([45])/fuse/conv", rf"DAM\1.{theirs}_fusion.0", "conv"),
                  (rf"{stream}/ima([45])/fuse/bn", rf"DAM\1.{theirs}_fusion.1", "norm")]
        for our_branch, their_branch in (("branch0", "1x1_1"), ("branch1", "3x3_1"), ("branch2", "3x3_2"),
                                         ("branch3", "3x3_3"), ("pool", "1x1_2"), ("project", "1x1_3")):
            aspp, name = f"{stream}/context/aspp/{our_branch}", f"conv_{their_branch}"
            rules += [(f"{aspp}/conv", f"{theirs}_aspp.{name}", "conv"),
                      (f"{aspp}/bn", f"{theirs}_aspp.bn_{name}", "norm")]
        graph, theirs_graph = rf"{stream}/ima([45])/graph", rf"DAM\1.{theirs}_OCR.GAN"
        rules += _attention_rules(f"{graph}/attention", f"{theirs_graph}.TF")
        rules += [(rf"{graph}/edge([123])", rf"{theirs_graph}.conv\2.0", "edge"),
                  (rf"{graph}/edge([123])_bn", rf"{theirs_graph}.conv\2.1", "norm"),
                  (rf"DAM[45]\.{theirs}_OCR\.(GAN\.fc|out\.[01])\..*", "", "unused")]
    rules += _attention_rules("mutual([45])/appearance", r"DAM\1.CCM.can1")
    rules += _attention_rules("mutual([45])/motion", r"DAM\1.CCM.can2")
    for ours, theirs in (("fuse([456])", r"total_fuse\1"), ("merge56", "rgb_merge_co_56"),
                         ("merge45", "rgb_merge_co_45.0")):
        rules += [(f"head/{ours}/unit1/conv", f"{theirs}.conv1.0", "conv"),
                  (f"head/{ours}/unit1/bn", f"{theirs}.conv1.1", "norm"),
                  (f"head/{ours}/conv2", f"{theirs}.conv1.3", "conv"),
                  (f"head/{ours}/unit3/conv", f"{theirs}.conv2.0", "conv"),
                  (f"head/{ours}/unit3/bn", f"{theirs}.conv2.1", "norm")]
    refine = r"rgb_refine_\1"
    return (*rules, ("head/reduce45", "rgb_merge_co_45.1", "conv"), ("head/predict4", "rgb_get_pred_4.pred.0", "conv"),
            ("head/refine([123])/reduce", f"{refine}.cmprs", "conv"),
            ("head/refine([123])/unit1/conv", f"{refine}.merge_conv.0", "conv"),
            ("head/refine([123])/unit1/bn", f"{refine}.merge_conv.1", "norm"),
            ("head/refine([123])/unit2/conv", f"{refine}.merge_conv.3", "conv"),
            ("head/refine([123])/unit2/bn", f"{refine}.merge_conv.4", "norm"),
            ("head/refine([123])/predict", f"{refine}.pred.pred.0", "conv"))


def _attention_rules(ours, theirs):
    return [(f"{ours}/norm/bn", f"{theirs}.bn_relu.0", "norm"), (f"{ours}/theta", f"{theirs}.theta", "linear"),
            (f"{ours}/phi", f"{theirs}.phi", "linear"), (f"{ours}/g", f"{theirs}.g", "linear"),
            (f"{ours}/out", f"{theirs}.W", "linear")]


def trace(model: Model, variables: dict, inputs: Mapping, expected: Mapping) -> dict:
    """Runs DPA on the inputs of a reference file; see ``ParityTrace``."""
    del expected
    batch = {"frame": nhwc(inputs["image"]), "flow": nhwc(inputs["flow"])}
    for name, theirs in (("frame", "ref_images"), ("flow", "ref_flows")):  # concatenated along the channels
        references = inputs[theirs].reshape(len(inputs[theirs]), -1, 3, *inputs[theirs].shape[2:])
        batch[f"reference_{name}"] = jnp.moveaxis(jnp.asarray(references), 2, -1)
    outputs, inner = jax.jit(model.apply)(variables, batch)
    names = {"fuse6": "fused6", "fuse5": "fused5", "fuse4": "fused4", "m56": "merged5", "m45": "merged4"}
    for ours, theirs in (("appearance", "rgb"), ("motion", "flow")):
        names |= {f"{theirs}_sq4": f"{ours}_query4", f"{theirs}_sq5": f"{ours}_query5",
                  f"dam4_{theirs}": f"{ours}_ima4", f"dam5_{theirs}": f"{ours}_ima5", f"{theirs}_tam": f"{ours}_ifa",
                  f"{theirs}_comp6": f"{ours}_coarse", f"{theirs}_aspp": f"{ours}_context"}
    # "_c": the first 16 channels, or all if there are at most 32.
    made = {f"{theirs}_c": nchw(inner[ours]) for theirs, ours in names.items() if ours in inner}
    made = {name: x if x.shape[1] <= 32 else x[:, :16] for name, x in made.items()}
    size = batch["frame"].shape[1:3]
    for i, logits in zip((4, 3, 2, 1), outputs["logits"], strict=True):
        whole = nchw(resize_bilinear(jax.nn.sigmoid(logits), size, align_corners=True))
        made[f"pred{i}"] = whole if i == 1 else whole[..., ::2, ::2]
    return made
