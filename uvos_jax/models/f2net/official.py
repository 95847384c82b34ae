"""The published code of F2Net: its prior and loss, parameter names, and the run on a reference file."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.models.base import Model, Rules, nchw, nhwc
from uvos_jax.models.f2net.modules import SIDE, SIGMA, STRIDE
from uvos_jax.nn import resnet
from uvos_jax.ops.center_heatmaps import gaussian_prior
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.ops.resize import resize_bilinear


def center_prior(center: jax.Array, map_size: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """Returns the Gaussian prior as the published code draws it: at the size of the input, then resized.

    Args:
        center: ``[b, 2]`` (x, y) in pixels of the center map.
        map_size: (height, width) of the center map, at stride 4.
        size: (height, width) of the embedding, at stride 8.

    Returns:
        ``[b, *size, 1]`` float32 in 0..1.
    """
    input_size = tuple(STRIDE * (n - 1) + 1 for n in map_size)
    prior = gaussian_prior(STRIDE * center, input_size, SIGMA * min(input_size) / SIDE)
    return resize_bilinear(prior, size, align_corners=False)


def to_native(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Converts float32 logits ``[b, h, w, 1]`` to probabilities ``[b, *size, 1]`` through the network's input size."""
    input_size = tuple(8 * (n - 1) + 1 for n in logits.shape[1:3])
    return resize_bilinear(nn.sigmoid(resize_bilinear(logits, input_size, align_corners=False)), size,
                           align_corners=False)


def mask_loss(logits: jax.Array, mask: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the cross-entropy times the ratio of all to foreground pixels, plus 0.8 times the mean absolute error.

    The published code counts the pixels of the batch; here each example counts its own.

    Args:
        logits: ``[b, h, w, 1]`` float32.
        mask: ``[b, h, w, 1]`` bool.
        valid: ``[b, h, w, 1]`` bool; False for void pixels.

    Returns:
        ``[b]`` float32.
    """
    pixels, foreground = valid.sum((1, 2, 3)), (mask & valid).sum((1, 2, 3))
    error = (jnp.abs(nn.sigmoid(logits) - mask) * valid).sum((1, 2, 3)) / jnp.maximum(pixels, 1)
    return binary_cross_entropy(logits, mask, valid) * pixels / jnp.maximum(foreground, 1) + 0.8 * error


def torch_rules(model: Model) -> Rules:
    """Returns the name rules for the published checkpoints (742 keys); a net ignores the keys of parts it lacks."""
    parts = {"center": r"(upsample|fc|motion_conv_[wb])\b.*", "ca": "channel_attention_.*",
             "sa": "spatial_attention_conv.*"}
    nets = {"baseline": (), "ad": (), "cgad": ("center",), "ca": ("center", "ca"), "sa": ("center", "sa")}
    has = nets.get(model.net, tuple(parts)) if model.variant == "paper" else tuple(parts)
    aspp = "encoder.layer5."
    return (
        *resnet.torch_rules("backbone", "encoder."),
        ("aspp/pool/conv", f"{aspp}conv", "conv"),
        ("aspp/pool/bn", f"{aspp}bn_x", "norm"),
        (r"aspp/branch(\d)/conv", rf"{aspp}conv2d_\1", "conv"),
        (r"aspp/branch(\d)/bn", rf"{aspp}bn_\1", "norm"),
        ("embed/conv", f"{aspp}bottleneck", "conv"),
        ("embed/bn", f"{aspp}bn", "norm"),
        ("embed_prelu", f"{aspp}prelu", "prelu"),
        ("static", "encoder.main_classifier", "conv"),
        (r"center/up(\d)/skip/conv", r"upsample.up\1.u_skip", "conv"),
        (r"center/up(\d)/skip/bn", r"upsample.up\1.bn1", "norm"),
        (r"center/up(\d)/up/conv", r"upsample.up\1.up_conv", "conv"),
        (r"center/up(\d)/up/bn", r"upsample.up\1.bn2", "norm"),
        ("center/cross/conv", "upsample.up4.cross_conv", "conv"),
        ("center/cross/bn", "upsample.up4.bn5", "norm"),
        ("center/hidden", "fc.0", "conv"),
        ("center/frame_heat", "fc.2", "conv"),
        ("center/scale", "motion_conv_w", "conv"),
        ("center/shift", "motion_conv_b", "conv"),
        ("fusion/squeeze/conv", "channel_attention_conv1", "conv"),
        ("fusion/squeeze/bn", "channel_attention_bn", "norm"),
        ("fusion/expand", "channel_attention_conv2", "conv"),
        ("fusion/spatial", "spatial_attention_conv", "conv"),
        ("classifier_hidden/conv", "cls.0", "conv"),
        ("classifier_hidden/bn", "cls.1", "norm"),
        ("classifier", "cls.3", "conv"),
        *((pattern, "", "unused") for part, pattern in parts.items() if part not in has),
    )


def trace(model: Model, variables: dict, inputs: Mapping, expected: Mapping) -> dict:
    """Runs F2Net on the inputs of a reference file; see ``ParityTrace``."""
    del expected
    means = jnp.asarray(model.preprocess.mean)
    frames = [jnp.asarray(smooth_noise(int(seed), SIDE, SIDE) * 255) - means for seed in inputs["seeds"]]
    anchor, frame = frames[0][None], frames[2][None]  # the published network takes the second frame and ignores it
    batch = {"anchor": anchor, "frame": frame, "previous": nhwc(inputs["prev_gauss"]),
             "center": jnp.asarray(inputs["ct"]) / STRIDE}  # from pixels of the frame to pixels of the heat map
    outputs, inner = jax.jit(model.apply)(variables, batch)
    stages = {"maxpool": "stem", "l1": "layer1", "l2": "layer2", "l3": "layer3", "l4": "layer4"}
    tensors = {f"cur_{theirs}": nchw(inner[ours])[1:, :8, ::4, ::4] for theirs, ours in stages.items()}
    tensors |= {"ref_s16": nchw(anchor)[..., ::16, ::16], "cur_s16": nchw(frame)[..., ::16, ::16]}
    every_second = {"ref_aspp_c32": inner["embed"][:1, ..., :32], "cur_aspp_c32": inner["embed"][1:, ..., :32],
                    "cls_in_c32": inner["fused"][..., :32], "up_c16": inner["center_features"][..., :16]}
    tensors |= {name: nchw(x)[..., ::2, ::2] for name, x in every_second.items()}
    tensors |= {"heat_fc": nchw(inner["frame_heat"]), "heat": nchw(outputs["heat_logits"]),
                "ca_logits": nchw(inner["channel_logits"])}
    for name, logits in (("pred", outputs["logits"]), ("temp", outputs["static_logits"])):
        tensors[name] = nchw(nn.sigmoid(resize_bilinear(logits, (SIDE, SIDE), align_corners=False)))
    return tensors


def smooth_noise(seed: int, height: int, width: int, cell: int = 16) -> np.ndarray:
    """Generates the images that some reference files name by their seed: smooth random colors with a little noise.

    Args:
        seed: Seed of ``PCG64``.
        height: Height in pixels.
        width: Width in pixels.
        cell: Distance between the random colors that are interpolated, in pixels.

    Returns:
        ``[height, width, 3]`` float32 in 0..1.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    x = rng.random((3, height // cell + 2, width // cell + 2))
    for axis, size in ((1, height), (2, width)):
        position = np.linspace(0, x.shape[axis] - 1, size)
        below = np.minimum(np.floor(position), x.shape[axis] - 2).astype(int)
        fraction = (position - below).reshape((-1, 1) if axis == 1 else (-1,))
        x = x.take(below, axis) * (1 - fraction) + x.take(below + 1, axis) * fraction
    x = np.clip(x + 0.02 * rng.standard_normal((3, height, width)), 0, 1)
    return np.moveaxis(x, 0, -1).astype(np.float32)
