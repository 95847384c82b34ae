"""Name rules for the published AD-Net checkpoints, and the parity trace."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvos_jax.models.base import Model, Rules, nchw, nhwc
from uvos_jax.nn import resnet
from uvos_jax.ops.attention import attention_weights
from uvos_jax.ops.resize import resize_bilinear


def torch_rules(model: Model) -> Rules:
    """Returns the name rules for the checkpoints ``ad`` (577 keys), ``inter``, ``intra``, ``concat`` and ``base``."""
    prefix = "" if model.net == "base" else "features."
    aspp = (
        *((rf"aspp/branch{i}/conv", rf"{prefix}head.0.conv{i + 1}.0", "conv") for i in range(4)),
        *((rf"aspp/branch{i}/bn", rf"{prefix}head.0.conv{i + 1}.1", "abn") for i in range(4)),
        ("aspp/pool/conv", f"{prefix}head.0.image_pooling.1", "conv"),
        ("aspp/pool/bn", f"{prefix}head.0.image_pooling.2", "abn"),
        ("aspp/project/conv", f"{prefix}head.0.conv_bn_dropout.0", "conv"),
        ("aspp/project/bn", f"{prefix}head.0.conv_bn_dropout.1", "abn"),
    )
    heads = (
        ("embed", f"{prefix}head.1", "conv"),
        ("aux/conv", f"{prefix}dsn.0", "conv"),
        ("aux/bn", f"{prefix}dsn.1", "abn"),
        ("aux_embed", f"{prefix}dsn.3", "conv"),
        ("classifier_hidden/conv", "cls.0", "conv"),
        ("classifier_hidden/bn", "cls.1", "abn"),
        ("classifier", "cls.3", "conv"),
    )
    return resnet.torch_rules("backbone", prefix, norm="abn") + aspp + heads


def trace(model: Model, variables: dict, inputs: Mapping, expected: Mapping) -> dict:
    """Runs AD-Net on the inputs of a reference file; see ``ParityTrace``."""
    batch = {"anchor": nhwc(inputs["ref"]), "frame": nhwc(inputs["cur"])}
    outputs, inner = jax.jit(model.apply)(variables, batch)
    b = batch["frame"].shape[0]
    made = {}
    for name in ("stem", "layer1", "layer2", "layer3", "layer4", "aspp", "embed", "aux"):
        stacked = nchw(inner[name])
        made[f"ref_{name}"], made[f"cur_{name}"] = stacked[:b], stacked[b:]
    anchor, frame = (x.reshape(b, -1, x.shape[-1]) for x in jnp.split(inner["embed"], 2))

    def rows_of(queries):
        return lambda rows: attention_weights(queries[:, :rows], frame, scale=frame.shape[-1] ** -0.5)

    made |= {"P_anchor": rows_of(anchor), "P_intra": rows_of(frame), "logit": nchw(outputs["logits"])}
    made |= {f"feat_{name}": nchw(inner[f"diffused_{name}"]) for name in ("anchor", "intra")
             if f"diffused_{name}" in inner}
    if "logit_up" in expected:  # at the size of the annotation, known only from the reference
        size = expected["logit_up"].shape[-2:]
        made["logit_up"] = nchw(resize_bilinear(outputs["logits"], size, align_corners=True))
    return made
