"""What F2Net's published code has of its own: the loss of a mask, and the names of its parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.models.f2net.modules import SIDE, SIGMA, STRIDE
from uvos_jax.nn import resnet
from uvos_jax.ops.center_heatmaps import center_prior
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
    drawn = center_prior(STRIDE * center, whole, SIGMA * min(whole) / SIDE)
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


def torch_rules(model: nn.Module) -> tuple[tuple[str, str, str], ...]:
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
