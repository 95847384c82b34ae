"""Re-identification: vectors that are near for crops of the same object and far for others.

T-Net compares proposals with targets by the cosine of such vectors (Eq. 10) and takes them from UnOVOST, which takes
them from PReMVOS (Luiten et al. 2018). ``Embedding`` is that network, a Wide ResNet-38 with pre-activation, and learns
by the batch-hard triplet loss on tracks.

Any other embedding may stand in its place: a function from crops ``[n, 128, 128, 3]`` float32, normalized as
``PREPROCESS`` says, to vectors ``[n, d]`` of length 1. Without any training, for instance, the pooled features of an
ImageNet ResNet::

    def embed(crops):
        return unit(global_average_pool(resnet.apply(variables, crops)["layer4"])[:, 0, 0])
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.nn.layers import BatchNorm, Conv, Policy, torch_default
from uvos_jax.ops.crops import object_crops
from uvos_jax.ops.losses import batch_hard_triplet
from uvos_jax.ops.pooling import max_pool
from uvos_jax.ops.preprocess import Preprocess

PREPROCESS = Preprocess("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CROP = (128, 128)
DEPTHS = (3, 3, 6, 3, 1, 1)
# Of the convolutions in a unit of each stage of Wide ResNet-38, channels as multiples of the stem's.
_WIDTHS = ((2, 2), (4, 4), (8, 8), (8, 16), (8, 16, 32), (16, 32, 64))
_HALVING = 5  # stages that halve the size; the sixth keeps it
_MOMENTUM = 0.05
TOGETHER = 4  # crops that are embedded at once


class PreActivationBlock(nn.Module):
    """A residual unit with batch norm and ReLU before its convolutions (He et al. 2016, "Identity mappings").

    Attributes:
      widths: channels of its convolutions: two 3x3, or 1x1, 3x3, 1x1.
      stride: step; the first convolution takes it, or the second in a unit that widens within itself.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation.
    """

    widths: tuple[int, ...]
    stride: int = 1
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), widths[-1]]``."""
        kernels = (1, 3, 1) if len(self.widths) == 3 else (3, 3)
        step = 0 if self.widths[0] == self.widths[-1] else 1
        y = nn.relu(_norm(self, "bn1")(x, train))
        if self.stride != 1 or x.shape[-1] != self.widths[-1]:
            x = Conv(self.widths[-1], 1, self.stride, dtype=self.dtype, name="shortcut")(y)
        for i, (features, kernel) in enumerate(zip(self.widths, kernels, strict=True)):
            y = nn.relu(_norm(self, f"bn{i + 1}")(y, train)) if i else y
            y = Conv(features, kernel, self.stride if i == step else 1, dtype=self.dtype, name=f"conv{i + 1}")(y)
        return x + y


class Embedding(nn.Module):
    """Crops to vectors.

    Stages, head and the momentum of batch norm are those of PReMVOS's published configuration. Ours: padding on both
    sides, where TensorFlow pads strided convolutions on one, and vectors of length 1 already in training, since Eq. 10
    compares by the cosine.

    Attributes:
      depths: units of each stage, up to six stages.
      width: channels of the first convolution; the units' go with it.
      features: length of the vectors.
      hidden: channels of the head's 3x3 convolution and of its two hidden layers.
      axis_name: mapped axis over which batch norm statistics are shared in training.
      dtype: type of the computation; normalization and the vectors stay float32.
      remat: whether training computes the units twice to save memory.
    """

    depths: tuple[int, ...] = DEPTHS
    width: int = 64
    features: int = 128
    hidden: int = 500
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, crops: jax.Array, train: bool = False) -> jax.Array:
        """Embeds crops.

        Args:
          crops: ``[n, 128, 128, 3]`` after ``PREPROCESS``. Parameters fit one size of crops only.
          train: whether batch norm uses and updates batch statistics.

        Returns:
          ``[n, features]`` float32, of length 1.
        """
        unit_of = nn.remat(PreActivationBlock, static_argnums=(2,)) if self.remat else PreActivationBlock
        x = Conv(self.width, dtype=self.dtype, name="stem")(crops)
        for stage, (depth, widths) in enumerate(zip(self.depths, _WIDTHS, strict=False), 1):
            for i in range(depth):
                x = unit_of(tuple(self.width * factor for factor in widths), 2 if i == 0 and stage <= _HALVING else 1,
                            self.axis_name, self.dtype, name=f"stage{stage}_{i}")(x, train)
        x = Conv(self.hidden, dtype=self.dtype, name="head_conv")(nn.relu(_norm(self, "head_bn")(x, train)))
        x = max_pool(x, window=3, stride=3, padding=1).reshape(len(x), 1, 1, -1)
        for i, features in enumerate((self.hidden, self.hidden, self.features), 1):
            x = nn.relu(x) if i > 1 else x
            x = _norm(self, f"layer{i}_bn")(x, train)
            x = Conv(features, 1, use_bias=True, dtype=self.dtype, kernel_init=torch_default, name=f"layer{i}")(x)
        return unit(x[:, 0, 0])


def unit(vectors: jax.Array) -> jax.Array:
    """``[..., d]`` divided by its length, float32; zeros stay zeros."""
    vectors = vectors.astype(jnp.float32)
    return vectors * lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-12))


def embed_present(embed: Callable[[jax.Array], jax.Array], crops: jax.Array, present: jax.Array) -> jax.Array:
    """Embeds crops a few at a time, and only those of something: of twenty proposals a frame mostly has two or three.

    Args:
      embed: ``[k, ...]`` crops to ``[k, d]`` float32.
      crops: ``[n, ...]``.
      present: ``[n]`` bool.

    Returns:
      ``[n, d]`` float32, 0 where nothing is present.
    """
    together = min(TOGETHER, len(crops))
    places = jnp.argsort(~present, stable=True)  # the present ones first
    places = jnp.pad(places, (0, -len(crops) % together), constant_values=len(crops))  # beyond the end, so dropped
    length = jax.eval_shape(embed, crops[:together]).shape[-1]

    def some(i, found):
        at = lax.dynamic_slice_in_dim(places, i * together, together)
        return found.at[at].set(embed(crops.at[at].get(mode="clip")), mode="drop")

    rounds = -(-present.sum() // together)
    found = lax.fori_loop(0, rounds, some, jnp.zeros((len(crops), length), jnp.float32))
    return jnp.where(present[:, None], found, 0)


def track_crops(frames: jax.Array, labels: jax.Array, objects: int,
                smallest: int = 10) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Crops of every object in every frame of clips, to learn from.

    Places without a crop hold copies of the crops that there are, by turns: blanks would count in batch norm.

    Args:
      frames: ``[b, t, h, w, 3]`` float, normalized.
      labels: ``[b, t, h, w]`` int, 1 to ``objects``; 0 is background, -1 void.
      objects: in a clip at most.
      smallest: rows and columns that an object's box has at least, to be of use; in pixels, ours.

    Returns:
      Crops ``[b * t * objects, 128, 128, 3]`` float32, clip by clip and frame by frame; their identities, int32
      ``[b, t * objects]``, 0 to ``b * objects - 1``; and which of them are valid, bool ``[b, t * objects]``.
    """
    b, t, h, w, c = frames.shape
    crops, boxes, present = jax.vmap(lambda image, truth: object_crops(image, truth, objects, CROP))(
        frames.reshape(-1, h, w, c), labels.reshape(-1, h, w))
    sides = boxes[..., 2:] - boxes[..., :2]
    valid = (present & (sides.min(-1) >= smallest)).reshape(-1)
    identities = jnp.arange(b)[:, None, None] * objects + jnp.arange(objects)
    identities = jnp.broadcast_to(identities, (b, t, objects)).reshape(b, -1)
    usable = jnp.argsort(~valid, stable=True)  # indices of valid crops first
    turn = (jnp.cumsum(~valid) - 1) % jnp.maximum(valid.sum(), 1)
    source = jnp.where(valid, jnp.arange(len(valid)), usable[turn])
    return crops.reshape(-1, *crops.shape[2:])[source], identities, valid.reshape(b, -1)


def embedding_loss(embeddings: jax.Array, identities: jax.Array, valid: jax.Array, margin: float | None = 0.2,
                   axis_name: str | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Batch-hard triplet loss, averaged over the anchors of each clip.

    The hardest are sought in the batches of all devices, so that their number changes neither loss nor gradient.

    Args:
      embeddings: ``[b * m, d]`` of the crops of ``track_crops``.
      identities: ``[b, m]`` int, of this device's clips.
      valid: ``[b, m]`` bool.
      margin: see ``batch_hard_triplet``.
      axis_name: mapped axis of the devices, or None.

    Returns:
      ``([b] float32, {"triplet": [b]})``; 0 for a clip without anchors.
    """
    shape, n, first = valid.shape, len(embeddings), 0
    identities, valid = identities.reshape(-1), valid.reshape(-1)
    if axis_name is not None:
        first = lax.axis_index(axis_name) * n  # more than this device's identities
        embeddings, identities, valid = lax.all_gather((embeddings, identities + first, valid), axis_name, tiled=True)
    loss, anchor = batch_hard_triplet(embeddings, identities, valid, margin)
    loss, anchor = (lax.dynamic_slice_in_dim(x, first, n).reshape(shape) for x in (loss, anchor))
    loss = loss.sum(1) / jnp.maximum(anchor.sum(1), 1)
    return loss, {"triplet": loss}


def _norm(module, name):
    return BatchNorm(momentum=_MOMENTUM, policy=Policy(module.dtype, module.axis_name), name=name)
