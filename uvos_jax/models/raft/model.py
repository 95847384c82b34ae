"""RAFT: Recurrent All-Pairs Field Transforms for Optical Flow (Teed and Deng, ECCV 2020).

Both frames are encoded at an eighth of their size, every pixel of the first is compared with every pixel of the second,
and a gated recurrent unit reads the comparison around the current estimate and corrects it, again and again.

The only variant is ``official``: paper and published code agree but for the order of a window's axes, which the weights
have learned (see ``ops/correlation.py``).
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from uvos_jax.errors import UserError
from uvos_jax.models.base import Model, ParityTrace, Rules
from uvos_jax.models.raft import official
from uvos_jax.models.raft.encoder import Encoder
from uvos_jax.nn.layers import Conv, torch_default
from uvos_jax.ops.conv import conv2d
from uvos_jax.ops.correlation import correlation_volumes, feature_pyramid, lookup, lookup_on_demand
from uvos_jax.ops.resize import resize_bilinear

NETS = ("large", "small")
CORRELATIONS = ("stored", "on_demand")
_LEVELS = 4
_GAMMA = 0.8  # weight of an iteration in the loss, relative to the one after it
_LARGEST = 400.0  # true vectors beyond it, in pixels, do not count in the loss


class GRU(nn.Module):
    """Convolutional gated recurrent unit; with two kernels, one after the other (Eq. 3-5).

    Each of the gates z, r and q is a convolution of (hidden state, context, motion). The context's share never
    changes, so it is computed once, by :meth:`context`.

    Attributes:
      hidden: channels of the state.
      context_features: channels of the context.
      motion_features: channels of the motion features.
      kernels: (height, width) of the convolutions of each step.
      dtype: type of the computation.
    """

    hidden: int
    context_features: int
    motion_features: int
    kernels: tuple[tuple[int, int], ...]
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        width = self.hidden + self.context_features + self.motion_features
        names = [""] if len(self.kernels) == 1 else range(1, len(self.kernels) + 1)
        self.gates = [[_Weights((*kernel, width, self.hidden), name=f"conv{gate}{name}") for gate in "zrq"]
                      for name, kernel in zip(names, self.kernels, strict=True)]

    def context(self, context: jax.Array) -> tuple[jax.Array, ...]:
        """The context's share in the gates of each step, bias included: ``[b, h, w, c] -> [b, h, w, 3 hidden]``."""
        own = slice(self.hidden, self.hidden + self.context_features)
        shares = []
        for gates in self.gates:
            kernels, biases = zip(*(gate() for gate in gates), strict=True)
            kernel = jnp.concatenate(kernels, -1)[:, :, own].astype(self.dtype)
            shares.append(conv2d(context.astype(self.dtype), kernel) + jnp.concatenate(biases).astype(self.dtype))
        return tuple(shares)

    def __call__(self, hidden: jax.Array, shares: tuple[jax.Array, ...], motion: jax.Array) -> jax.Array:
        """The next state ``[b, h, w, hidden]`` from the last one, the context's shares and the motion features."""
        n = self.hidden
        for gates, share in zip(self.gates, shares, strict=True):
            z, r, q = (jnp.concatenate([kernel[:, :, :n], kernel[:, :, n + self.context_features:]], 2)
                       .astype(self.dtype) for kernel, _ in (gate() for gate in gates))
            zr = jnp.concatenate([z, r], -1)
            seen = conv2d(jnp.concatenate([hidden, motion], -1), zr, in_loop=True) + share[..., :2 * n]
            update, reset = jnp.split(nn.sigmoid(seen), 2, -1)
            candidate = nn.tanh(conv2d(jnp.concatenate([reset * hidden, motion], -1), q, in_loop=True)
                                + share[..., 2 * n:])
            hidden = (1 - update) * hidden + update * candidate
        return hidden


class _Weights(nn.Module):
    """Kernel and bias of a convolution, for whoever wants to split it."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self):
        return (self.param("kernel", torch_default, self.shape, jnp.float32),
                self.param("bias", nn.initializers.zeros, self.shape[-1:], jnp.float32))


class Motion(nn.Module):
    """Features of the correlation window and the current flow; the flow itself makes the last two channels.

    Attributes:
      correlation: channels and kernels of the convolutions on the window.
      flow: channels of the 7x7 and the 3x3 convolution on the flow.
      features: channels of the result, with the flow.
      dtype: type of the computation.
    """

    correlation: tuple[tuple[int, int], ...]
    flow: tuple[int, int]
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, window: jax.Array, flow: jax.Array) -> jax.Array:
        """``[b, h, w, points], [b, h, w, 2] -> [b, h, w, features]``."""
        conv = partial(Conv, use_bias=True, dtype=self.dtype, kernel_init=torch_default, in_loop=True)
        seen, moved = window, flow
        for i, (features, kernel) in enumerate(self.correlation, 1):
            seen = nn.relu(conv(features, kernel, name=f"convc{i}")(seen))
        for i, (features, kernel) in enumerate(zip(self.flow, (7, 3), strict=True), 1):
            moved = nn.relu(conv(features, kernel, name=f"convf{i}")(moved))
        both = nn.relu(conv(self.features - 2, name="conv")(jnp.concatenate([seen, moved], -1)))
        return jnp.concatenate([both, flow.astype(self.dtype)], -1)


class Update(nn.Module):
    """One correction of the flow: motion features, recurrent unit, flow head; and the weights for upsampling.

    Attributes:
      hidden: channels of the recurrent state.
      context_features: channels of the context.
      small: whether of the small network.
      dtype: type of the computation.
    """

    hidden: int
    context_features: int
    small: bool
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        conv = partial(Conv, use_bias=True, dtype=self.dtype, kernel_init=torch_default, in_loop=True)
        if self.small:
            motion, kernels = (((96, 1),), (64, 32), 82), ((3, 3),)
        else:
            motion, kernels = (((256, 1), (192, 3)), (128, 64), 128), ((1, 5), (5, 1))
        self.motion = Motion(*motion, self.dtype)
        self.gru = GRU(self.hidden, self.context_features, motion[-1], kernels, self.dtype)
        self.flow_conv1 = conv(128 if self.small else 256)
        self.flow_conv2 = conv(2)
        if not self.small:
            self.mask_conv1 = conv(256)
            self.mask_conv2 = conv(9 * 64, 1)

    def context(self, context: jax.Array) -> tuple[jax.Array, ...]:
        """See ``GRU.context``."""
        return self.gru.context(context)

    def __call__(self, hidden: jax.Array, shares: tuple[jax.Array, ...], window: jax.Array, flow: jax.Array):
        """The next state, and the correction ``[b, h, w, 2]`` float32 in pixels of this grid."""
        hidden = self.gru(hidden, shares, self.motion(window, flow))
        return hidden, self.flow_conv2(nn.relu(self.flow_conv1(hidden))).astype(jnp.float32)

    def upsample(self, hidden: jax.Array, flow: jax.Array) -> jax.Array:
        """Flow at eight times the size, ``[b, 8 h, 8 w, 2]``, vectors in pixels of that grid."""
        if self.small:
            size = tuple(8 * n for n in flow.shape[1:3])
            return 8 * resize_bilinear(flow, size, align_corners=True)
        weights = 0.25 * self.mask_conv2(nn.relu(self.mask_conv1(hidden))).astype(jnp.float32)
        return convex_upsample(flow, weights)


class RAFT(Model):
    """RAFT, large or small.

    Attributes:
      variant: ``"official"``.
      net: ``"large"`` (5.3 million parameters) or ``"small"`` (1 million).
      iterations: corrections of the flow, unless a call asks for another number. Published: 12 in training, 24 on
        KITTI, 32 on Sintel, 20 in the demonstration.
      correlation: ``"stored"``: all products are computed once; ``"on_demand"``: those of each window when it is read,
        for pictures whose squared size does not fit into memory.
      axis_name: mapped axis over which batch norm statistics are shared in training.
      dtype: type of the convolutions; correlation, coordinates and flow stay float32.
      remat: whether training computes blocks and iterations twice to save memory.
    """

    variant: str = "official"
    net: str = "large"
    iterations: int = 12
    correlation: str = "stored"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    task = "flow"
    VARIANTS = ("official",)
    CHOICES: ClassVar = {"net": NETS, "correlation": CORRELATIONS}
    TRACES: ClassVar = {f"raft_{net}": ParityTrace(("image1", "image2", "iters"), official.trace, {"net": net})
                        for net in NETS}

    def setup(self):
        small = self.net == "small"
        self.hidden, self.context_features = (96, 64) if small else (128, 128)
        self.radius = 3 if small else 4
        shape = {"stem": 32, "widths": (32, 64, 96), "bottleneck": True} if small \
            else {"stem": 64, "widths": (64, 96, 128)}
        shape |= {"dtype": self.dtype, "remat": self.remat}
        self.fnet = Encoder(128 if small else 256, norm="instance", **shape)
        self.cnet = Encoder(self.hidden + self.context_features, norm="none" if small else "batch",
                            axis_name=self.axis_name, **shape)
        self.update = Update(self.hidden, self.context_features, small, self.dtype)

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False, iterations: int | None = None,
                 start: jax.Array | None = None):
        """Flow from the first frame of each pair to the second.

        Args:
          batch: ``{"first": [b, h, w, 3], "second": [b, h, w, 3]}`` float, RGB in 0..255, sides multiples of 8
            (see :func:`pad_to_eight`).
          train: whether batch norm uses batch statistics and every iteration's flow is returned.
          iterations: corrections of the flow; None takes the model's.
          start: ``[b, h / 8, w / 8, 2]`` flow to begin with, in pixels of that grid (see :func:`warm_start`);
            None begins with zero.

        Returns:
          ``({"flow": [b, h, w, 2], "low": [b, h / 8, w / 8, 2]}, intermediates)``, with ``train`` also ``"flows"``,
          ``[iterations, b, h, w, 2]``. Intermediates: features of both frames ``fmap1``, ``fmap2`` and the context
          encoder's ``cnet``; ``corr``, the windows that the first iteration reads, and ``net``, the recurrent state
          after the last.

        Raises:
          ValueError: if a side is no multiple of 8.
        """
        b, h, w, _ = batch["first"].shape
        if h % 8 or w % 8:
            raise ValueError(f"RAFT wants sides that are multiples of 8, got {h}x{w}; see pad_to_eight")
        first, second = (2 * (batch[name].astype(jnp.float32) / 255) - 1 for name in ("first", "second"))
        if self.correlation == "on_demand" and not train:
            # One frame after the other: side by side they would take more memory than the volumes that are not there.
            in_turn = nn.scan(lambda encoder, carry, x: (carry, encoder(x)), variable_broadcast="params",
                              split_rngs={"params": False})
            map1, map2 = in_turn(self.fnet, None, jnp.stack([first, second]))[1]
        else:
            map1, map2 = jnp.split(self.fnet(jnp.concatenate([first, second]), train), 2)
        context = self.cnet(first, train)
        map1, map2 = map1.astype(jnp.float32), map2.astype(jnp.float32)
        read = self._reader(map1, map2)
        hidden = nn.tanh(context[..., :self.hidden])
        shares = self.update.context(nn.relu(context[..., self.hidden:]))
        grid = jnp.stack(jnp.meshgrid(jnp.arange(w // 8), jnp.arange(h // 8)), -1).astype(jnp.float32)

        def iterate(update, carry, _):
            hidden, flow = carry
            flow = lax.stop_gradient(flow)
            hidden, change = update(hidden, shares, read(grid + flow), flow)
            return (hidden, flow + change), update.upsample(hidden, flow + change) if train else None

        start = jnp.zeros((b, h // 8, w // 8, 2), jnp.float32) if start is None else start.astype(jnp.float32)
        steps = nn.scan(nn.remat(iterate) if self.remat else iterate, variable_broadcast="params",
                        split_rngs={"params": False}, length=self.iterations if iterations is None else iterations)
        (hidden, low), flows = steps(self.update, (hidden, start), None)
        outputs = {"flow": flows[-1], "flows": flows} if train else {"flow": self.update.upsample(hidden, low)}
        return outputs | {"low": low}, {"fmap1": map1, "fmap2": map2, "cnet": context,
                                        "corr": read(grid + start), "net": hidden}

    def _reader(self, first, second):
        """From points ``[b, h, w, 2]`` of the second frame to the windows around them."""
        pyramid = feature_pyramid(second, _LEVELS)
        if self.correlation == "on_demand":
            return lambda points: lookup_on_demand(first, pyramid, points, self.radius)
        volumes = correlation_volumes(first, pyramid)
        return lambda points: lookup(volumes, points, self.radius)

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What ``__call__`` and ``loss`` take, from clips of two frames.

        Args:
          clip: ``{"frames": [b, 2, h, w, 3] uint8 RGB, "flow": [b, 2, h, w, 2]}``, each frame's flow to the following
            one; sides multiples of 8. Vectors that are not finite, or beyond 1000 pixels, are unknown.

        Raises:
          UserError: if there is no flow, or a side is no multiple of 8.
        """
        if "flow" not in clip or any(side % 8 for side in clip["frames"].shape[2:4]):
            raise UserError("RAFT learns from clips with optical flow (data.flow), sides multiples of 8 (data.size).")
        flow = clip["flow"][:, 0].astype(jnp.float32)
        valid = (jnp.abs(flow) < 1000).all(-1)
        first, second = (clip["frames"][:, i].astype(jnp.float32) for i in range(2))
        return {"first": first, "second": second, "flow": jnp.where(valid[..., None], flow, 0), "valid": valid}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Distance to the true flow over all iterations, later ones weighing more (Eq. 7).

        As published, the L1 distance is averaged over both components and over *all* pixels, those that do not count
        being zero, and vectors beyond 400 pixels do not count.

        Args:
          outputs: of ``__call__``; without ``"flows"`` (evaluation) the one flow counts.
          batch: with ``"flow"`` ``[b, h, w, 2]`` and ``"valid"`` ``[b, h, w]`` bool.
          step: unused.

        Returns:
          ``([b] float32, {name: [b]})``: the parts judge the last flow on the pixels that count: ``epe``, the mean
          length of the error in pixels, and ``within_1px``, ``_3px``, ``_5px``, shares of the pixels.
        """
        del step
        truth = batch["flow"]
        counts = batch["valid"] & (jnp.linalg.norm(truth, axis=-1) < _LARGEST)
        flows = outputs.get("flows", outputs["flow"][None])
        distance = (jnp.abs(flows - truth) * counts[..., None]).mean((2, 3, 4))
        weights = _GAMMA ** np.arange(len(flows) - 1, -1, -1, dtype=np.float32)
        error = jnp.linalg.norm(outputs["flow"] - truth, axis=-1)
        total = jnp.maximum(counts.sum((1, 2)), 1)
        parts = {"epe": (error * counts).sum((1, 2)) / total}
        parts |= {f"within_{n}px": ((error < n) & counts).sum((1, 2)) / total for n in (1, 3, 5)}
        return weights @ distance, parts

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Returns the name rules for the published checkpoints."""
        return official.torch_rules(self)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a smallest batch for ``__call__``, enough to know the variables."""
        frame = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        return {"first": frame, "second": frame}


def convex_upsample(flow: jax.Array, weights: jax.Array) -> jax.Array:
    """Makes each pixel of the eightfold grid a convex combination of the 3x3 coarse vectors around it (Sec. 3.3).

    Args:
      flow: ``[b, h, w, 2]`` float32, in pixels of its grid; beyond the border it is zero.
      weights: ``[b, h, w, 9 * 64]``, logits by neighbor (row by row), row and column within the 8x8 pixels.

    Returns:
      ``[b, 8 h, 8 w, 2]``, vectors in pixels of the fine grid.
    """
    b, h, w, _ = flow.shape
    weights = nn.softmax(weights.reshape(b, h, w, 9, 8, 8), axis=3)
    padded = jnp.pad(8 * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    near = jnp.stack([padded[:, i:i + h, j:j + w] for i in range(3) for j in range(3)], 3)
    fine = jnp.einsum("bhwkij,bhwkc->bhiwjc", weights, near, precision=lax.Precision.HIGHEST)
    return fine.reshape(b, 8 * h, 8 * w, 2)


def warm_start(low_flow: jax.Array) -> jax.Array:
    """Carries a pair's flow forward along itself, as the start for the pair that follows.

    Every pixel takes the vector whose tip lies nearest to it; tips on or beyond the border do not count.

    Args:
      low_flow: ``[b, h, w, 2]`` float32, ``"low"`` of the pair before.

    Returns:
      ``[b, h, w, 2]`` float32; zero where no tip lies within the picture.
    """
    _, h, w, _ = low_flow.shape
    columns, rows = (jnp.arange(n, dtype=jnp.float32) for n in (w, h))

    def carry(flow):
        flow = flow.reshape(-1, 2)
        x, y = jnp.tile(columns, h) + flow[:, 0], jnp.repeat(rows, w) + flow[:, 1]
        inside = (x > 0) & (x < w) & (y > 0) & (y < h)
        x, y = jnp.where(inside, x, jnp.inf), jnp.where(inside, y, jnp.inf)
        # A row of pixels at a time: all distances at once would grow with the square of the picture.
        nearest = lax.map(lambda row: jnp.argmin((x - columns[:, None]) ** 2 + (y - row) ** 2, axis=1), rows)
        return jnp.where(inside.any(), flow[nearest], 0)

    return lax.map(carry, low_flow.astype(jnp.float32))
