"""Re-identification: embeddings that are near for crops of the same object and far for crops of different objects.

T-Net compares proposals with targets by the cosine of such embeddings (Eq. 10) and takes them from UnOVOST, which takes
them from PReMVOS (Luiten et al. 2018). ``ReIDNet`` is that network, a Wide ResNet-38 with pre-activation, trained with
the batch-hard triplet loss on tracks.

Any other embedding can replace it: a function from crops ``[n, 128, 128, 3]`` float32, normalized as in ``PREPROCESS``,
to vectors ``[n, d]`` of length 1. For example, without any training, the pooled features of an ImageNet ResNet::

    def embed(crops):
        return l2_normalize(global_average_pool(resnet.apply(variables, crops)["layer4"])[:, 0, 0])
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
CROPS_AT_ONCE = 4  # crops that are embedded in one batch
# Channels of the convolutions in a block, per stage of Wide ResNet-38, as multiples of the stem's.
_WIDTHS = ((2, 2), (4, 4), (8, 8), (8, 16), (8, 16, 32), (16, 32, 64))
_HALVING = 5  # stages that halve the resolution; the sixth keeps it
_MOMENTUM = 0.05


class PreActivationBlock(nn.Module):
    """Residual block with batch norm and ReLU before its convolutions (He et al. 2016, "Identity mappings").

    Attributes:
        widths: Channels of its convolutions: two 3x3, or 1x1, 3x3, 1x1.
        stride: Stride of the first convolution, or of the second one in a block whose width increases inside.
        policy: See ``Policy``.
    """

    widths: tuple[int, ...]
    stride: int = 1
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), widths[-1]]``."""
        dtype = self.policy.dtype
        kernels = (1, 3, 1) if len(self.widths) == 3 else (3, 3)
        strided = 0 if self.widths[0] == self.widths[-1] else 1
        y = nn.relu(_norm(self.policy, "bn1")(x, train))
        if self.stride != 1 or x.shape[-1] != self.widths[-1]:
            x = Conv(self.widths[-1], 1, self.stride, dtype=dtype, name="shortcut")(y)
        for i, (features, kernel) in enumerate(zip(self.widths, kernels, strict=True)):
            y = nn.relu(_norm(self.policy, f"bn{i + 1}")(y, train)) if i else y
            y = Conv(features, kernel, self.stride if i == strided else 1, dtype=dtype, name=f"conv{i + 1}")(y)
        return x + y


class ReIDNet(nn.Module):
    """Embeds crops of objects.

    Stages, head and the momentum of batch norm are those of PReMVOS's published configuration. Ours: padding on both
    sides, where TensorFlow pads strided convolutions on one side; and embeddings have length 1 in training, too, since
    Eq. 10 compares them by their cosine.

    Attributes:
        depths: Number of blocks in each stage, up to six stages.
        width: Channels of the first convolution; those of the blocks are multiples of it.
        features: Length of the embeddings.
        hidden: Channels of the head's 3x3 convolution and of its two hidden layers.
        policy: See ``Policy``; the embeddings are float32.
        remat: Whether training recomputes the blocks to save memory.
    """

    depths: tuple[int, ...] = DEPTHS
    width: int = 64
    features: int = 128
    hidden: int = 500
    policy: Policy = Policy()
    remat: bool = False

    @nn.compact
    def __call__(self, crops: jax.Array, train: bool = False) -> jax.Array:
        """Embeds crops.

        Args:
            crops: ``[n, 128, 128, 3]`` after ``PREPROCESS``. Parameters fit a single size of crops.
            train: Whether batch norm uses and updates batch statistics.

        Returns:
            ``[n, features]`` float32, of length 1.
        """
        policy, dtype = self.policy, self.policy.dtype
        block = nn.remat(PreActivationBlock, static_argnums=(2,)) if self.remat else PreActivationBlock
        x = Conv(self.width, dtype=dtype, name="stem")(crops)
        for stage, (depth, factors) in enumerate(zip(self.depths, _WIDTHS, strict=False), 1):
            widths = tuple(self.width * factor for factor in factors)
            for i in range(depth):
                stride = 2 if i == 0 and stage <= _HALVING else 1
                x = block(widths, stride, policy, name=f"stage{stage}_{i}")(x, train)
        x = Conv(self.hidden, dtype=dtype, name="head_conv")(nn.relu(_norm(policy, "head_bn")(x, train)))
        x = max_pool(x, window=3, stride=3, padding=1).reshape(len(x), 1, 1, -1)
        for i, features in enumerate((self.hidden, self.hidden, self.features), 1):
            x = nn.relu(x) if i > 1 else x
            x = _norm(policy, f"layer{i}_bn")(x, train)
            x = Conv(features, 1, use_bias=True, dtype=dtype, kernel_init=torch_default, name=f"layer{i}")(x)
        return l2_normalize(x[:, 0, 0])


def l2_normalize(vectors: jax.Array) -> jax.Array:
    """Returns vectors ``[..., d]`` divided by their length, float32; zeros stay zeros."""
    vectors = vectors.astype(jnp.float32)
    return vectors * lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-12))


def embed_present(embed: Callable[[jax.Array], jax.Array], crops: jax.Array, present: jax.Array) -> jax.Array:
    """Embeds only the crops that show an object, a few at a time: of twenty proposals, most frames have two or three.

    Args:
        embed: Function from crops ``[k, ...]`` to embeddings ``[k, d]`` float32.
        crops: ``[n, ...]``.
        present: ``[n]`` bool, which crops show an object.

    Returns:
        ``[n, d]`` float32, 0 where no object is present.
    """
    size = min(CROPS_AT_ONCE, len(crops))
    order = jnp.argsort(~present, stable=True)  # present crops first
    order = jnp.pad(order, (0, -len(crops) % size), constant_values=len(crops))  # out of range, so dropped below
    length = jax.eval_shape(embed, crops[:size]).shape[-1]

    def embed_batch(i, embeddings):
        index = lax.dynamic_slice_in_dim(order, i * size, size)
        return embeddings.at[index].set(embed(crops.at[index].get(mode="clip")), mode="drop")

    batches = -(-present.sum() // size)
    embeddings = lax.fori_loop(0, batches, embed_batch, jnp.zeros((len(crops), length), jnp.float32))
    return jnp.where(present[:, None], embeddings, 0)


def training_crops(frames: jax.Array, labels: jax.Array, objects: int,
                   smallest: int = 10) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cuts every object out of every frame of clips, for training.

    Entries without an object hold copies of the valid crops, each equally often: blank crops would distort the batch
    statistics.

    Args:
        frames: ``[b, t, h, w, 3]`` float, normalized.
        labels: ``[b, t, h, w]`` int, 1 to ``objects``; 0 is background, -1 void.
        objects: Highest number of objects in a clip.
        smallest: Fewest rows and columns of a valid object's box, in pixels; ours.

    Returns:
        Crops ``[b * t * objects, 128, 128, 3]`` float32, ordered by clip and frame; their identities
        ``[b, t * objects]`` int32, 0 to ``b * objects - 1``; and which of them are valid, ``[b, t * objects]`` bool.
    """
    b, t, h, w, c = frames.shape
    crops, boxes, present = jax.vmap(lambda image, truth: object_crops(image, truth, objects, CROP))(
        frames.reshape(-1, h, w, c), labels.reshape(-1, h, w))
    sides = boxes[..., 2:] - boxes[..., :2]
    valid = (present & (sides.min(-1) >= smallest)).reshape(-1)
    identities = jnp.arange(b)[:, None, None] * objects + jnp.arange(objects)
    identities = jnp.broadcast_to(identities, (b, t, objects)).reshape(b, -1)
    valid_first = jnp.argsort(~valid, stable=True)
    turn = (jnp.cumsum(~valid) - 1) % jnp.maximum(valid.sum(), 1)
    source = jnp.where(valid, jnp.arange(len(valid)), valid_first[turn])
    return crops.reshape(-1, *crops.shape[2:])[source], identities, valid.reshape(b, -1)


def embedding_loss(embeddings: jax.Array, identities: jax.Array, valid: jax.Array, margin: float | None = 0.2,
                   axis_name: str | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the batch-hard triplet loss, averaged over the anchors of each clip.

    The hardest pairs are selected from the batches of all devices, so that loss and gradient do not depend on the
    number of devices.

    Args:
        embeddings: ``[b * m, d]`` embeddings of the crops of ``training_crops``.
        identities: ``[b, m]`` int, of this device's clips.
        valid: ``[b, m]`` bool.
        margin: See ``batch_hard_triplet``.
        axis_name: Mapped axis of the devices, or None.

    Returns:
        ``([b] float32, {"triplet": [b]})``; 0 for a clip without anchors.
    """
    shape, n, first = valid.shape, len(embeddings), 0
    identities, valid = identities.reshape(-1), valid.reshape(-1)
    if axis_name is not None:
        first = lax.axis_index(axis_name) * n  # n exceeds the identities of a device
        embeddings, identities, valid = lax.all_gather((embeddings, identities + first, valid), axis_name, tiled=True)
    loss, anchor = batch_hard_triplet(embeddings, identities, valid, margin)
    loss, anchor = (lax.dynamic_slice_in_dim(x, first, n).reshape(shape) for x in (loss, anchor))
    loss = loss.sum(1) / jnp.maximum(anchor.sum(1), 1)
    return loss, {"triplet": loss}


def _norm(policy, name):
    return BatchNorm(momentum=_MOMENTUM, policy=policy, name=name)
