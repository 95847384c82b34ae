"""What F2Net's published code has of its own: the loss of a mask, and the names of its parameters."""

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


def drawn_prior(center: jax.Array, map_size: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """The Gauss prior as the published code draws it: at the size of the input, then resized.

    Args:
      center: ``[b, 2]``, (x, y) in pixels of the center map.
      map_size: of the center map, at stride 4.
      size: of the embedding, at stride 8.

    Returns:
      ``[b, *size, 1]`` float32 in 0..1.
    """
    whole = tuple(STRIDE * (n - 1) + 1 for n in map_size)
    drawn = gaussian_prior(STRIDE * center, whole, SIGMA * min(whole) / SIDE)
    return resize_bilinear(drawn, size, align_corners=False)


def mask_loss(logits: jax.Array, mask: jax.Array, valid: jax.Array) -> jax.Array:
    """Cross-entropy times pixels over foreground pixels, and 0.8 times the mean absolute error.

    The published code counts pixels over the batch; here each example has its own.

    Args:
      logits: ``[b, h, w, 1]`` float32.
      mask: ``[b, h, w, 1]`` bool.
      valid: ``[b, h, w, 1]`` bool, which pixels count.

    Returns:
      ``[b]`` float32.
    """
    pixels, foreground = valid.sum((1, 2, 3)), (mask & valid).sum((1, 2, 3))
    error = (jnp.abs(nn.sigmoid(logits) - mask) * valid).sum((1, 2, 3)) / jnp.maximum(pixels, 1)
    return binary_cross_entropy(logits, mask, valid) * pixels / jnp.maximum(foreground, 1) + 0.8 * error


def torch_rules(model: Model) -> Rules:
    """Name rules for the published code's checkpoints (742 keys); nets without a part of it leave that unread."""
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
        ("embed_conv", f"{aspp}bottleneck", "conv"),
        ("embed_bn", f"{aspp}bn", "norm"),
        ("embed_prelu", f"{aspp}prelu", "prelu"),
        ("static", "encoder.main_classifier", "conv"),
        (r"center/up(\d)/skip", r"upsample.up\1.u_skip", "conv"),
        (r"center/up(\d)/skip_bn", r"upsample.up\1.bn1", "norm"),
        (r"center/up(\d)/up", r"upsample.up\1.up_conv", "conv"),
        (r"center/up(\d)/up_bn", r"upsample.up\1.bn2", "norm"),
        ("center/cross", "upsample.up4.cross_conv", "conv"),
        ("center/cross_bn", "upsample.up4.bn5", "norm"),
        ("center/hidden", "fc.0", "conv"),
        ("center/fresh", "fc.2", "conv"),
        ("center/scale", "motion_conv_w", "conv"),
        ("center/shift", "motion_conv_b", "conv"),
        ("fusion/squeeze", "channel_attention_conv1", "conv"),
        ("fusion/squeeze_bn", "channel_attention_bn", "norm"),
        ("fusion/expand", "channel_attention_conv2", "conv"),
        ("fusion/spatial", "spatial_attention_conv", "conv"),
        ("cls_conv1", "cls.0", "conv"),
        ("cls_bn", "cls.1", "norm"),
        ("cls_conv2", "cls.3", "conv"),
        *((pattern, "", "unused") for part, pattern in parts.items() if part not in has),
    )


def trace(model: Model, variables: dict, inputs: Mapping, expected: Mapping) -> dict:
    """Runs F2Net on the inputs of a reference file; see ``ParityTrace``."""
    side, means = 473, jnp.asarray(model.preprocess.mean)
    frames = [jnp.asarray(smooth_noise(int(seed), side, side) * 255) - means for seed in inputs["seeds"]]
    anchor, frame = frames[0][None], frames[2][None]  # the published network takes the second and ignores it
    batch = {"anchor": anchor, "frame": frame, "previous": nhwc(inputs["prev_gauss"]),
             "center": jnp.asarray(inputs["ct"]) / 4}  # pixels of the frame there, of the heat map here
    outputs, inner = jax.jit(model.apply)(variables, batch)
    maps = {"maxpool": "stem", "l1": "layer1", "l2": "layer2", "l3": "layer3", "l4": "layer4"}
    made = {f"cur_{theirs}": nchw(inner[ours])[1:, :8, ::4, ::4] for theirs, ours in maps.items()}
    made |= {"ref_s16": nchw(anchor)[..., ::16, ::16], "cur_s16": nchw(frame)[..., ::16, ::16]}
    half = {"ref_aspp_c32": inner["embed"][:1, ..., :32], "cur_aspp_c32": inner["embed"][1:, ..., :32],
            "cls_in_c32": inner["fused"][..., :32], "up_c16": inner["up"][..., :16]}
    made |= {name: nchw(x)[..., ::2, ::2] for name, x in half.items()}
    made |= {"heat_fc": nchw(inner["fresh"]), "heat": nchw(outputs["heat_logits"]),
             "ca_logits": nchw(inner["channel_logits"])}
    for name, logits in (("pred", outputs["logits"]), ("temp", outputs["static_logits"])):
        made[name] = nchw(jax.nn.sigmoid(resize_bilinear(logits, (side, side), align_corners=False)))
    return made


def smooth_noise(seed: int, height: int, width: int, cell: int = 16) -> np.ndarray:
    """The pictures from which some reference files were made: smooth random colors with a little noise.

    Args:
      seed: of ``PCG64``.
      height: in pixels.
      width: in pixels.
      cell: distance of the random colors between which it is interpolated, in pixels.

    Returns:
      ``[height, width, 3]`` float32 in 0..1.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    x = rng.random((3, height // cell + 2, width // cell + 2))
    for axis, size in ((1, height), (2, width)):
        place = np.linspace(0, x.shape[axis] - 1, size)
        below = np.minimum(np.floor(place), x.shape[axis] - 2).astype(int)
        part = (place - below).reshape((-1, 1) if axis == 1 else (-1,))
        x = x.take(below, axis) * (1 - part) + x.take(below + 1, axis) * part
    x = np.clip(x + 0.02 * rng.standard_normal((3, height, width)), 0, 1)
    return np.moveaxis(x, 0, -1).astype(np.float32)
