"""RAFT: Recurrent All-Pairs Field Transforms for Optical Flow (Teed and Deng, ECCV 2020).

Both frames are encoded at stride 8, and the features of every pixel of the first frame are correlated with those of
every pixel of the second. A gated recurrent unit then reads the correlations around the current flow and updates the
flow, a fixed number of times.

The only variant is ``official``: paper and published code differ only in the order of a window's axes, to which the
published weights are tied (see ``ops/correlation.py``).
"""

from collections.abc import Mapping
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
from uvos_jax.models.raft.modules import UpdateBlock
from uvos_jax.nn.layers import Policy
from uvos_jax.ops.correlation import correlation_volumes, feature_pyramid, lookup, lookup_on_demand

NETS = ("large", "small")
CORRELATIONS = ("stored", "on_demand")
_LEVELS = 4
_GAMMA = 0.8  # loss weight of an iteration relative to the next one
_MAX_FLOW = 400.0  # pixels; longer ground truth vectors are excluded from the loss
_MAX_VALID = 1000  # pixels; larger components mark unknown flow


class RAFT(Model):
    """RAFT, large or small.

    Attributes:
        variant: ``"official"``.
        net: ``"large"`` (5.3 million parameters) or ``"small"`` (1 million).
        iterations: Default number of updates of the flow. Published: 12 in training, 24 on KITTI, 32 on Sintel, 20 in
            the demo.
        correlation: ``"stored"`` computes the correlation volumes once, which takes memory quadratic in the number of
            pixels; ``"on_demand"`` computes the correlations of each window when it is read.
        axis_name: Mapped axis over which batch norm shares its statistics in training.
        dtype: Dtype of the convolutions; correlation, coordinates and flow stay float32.
        remat: Whether training recomputes blocks and iterations in the backward pass to save memory.
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
        """Creates the submodules."""
        small = self.net == "small"
        self.hidden, self.context_features = (96, 64) if small else (128, 128)
        self.radius = 3 if small else 4
        shape = {"stem_features": 32, "widths": (32, 64, 96), "bottleneck": True} if small \
            else {"stem_features": 64, "widths": (64, 96, 128)}
        shape |= {"policy": Policy(self.dtype, self.axis_name), "remat": self.remat}
        self.fnet = Encoder(128 if small else 256, norm="instance", **shape)
        self.cnet = Encoder(self.hidden + self.context_features, norm="none" if small else "batch", **shape)
        self.update = UpdateBlock(self.hidden, self.context_features, small, self.dtype)

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False, iterations: int | None = None,
                 start: jax.Array | None = None):
        """Estimates the flow from the first frame of each pair to the second.

        Args:
            batch: ``{"first": [b, h, w, 3], "second": [b, h, w, 3]}`` float, RGB in 0..255, sides multiples of 8
                (see ``padding.pad_to_eight``).
            train: Whether to use batch statistics and to return the flow of every iteration.
            iterations: Number of updates of the flow; None uses the model's default.
            start: ``[b, h / 8, w / 8, 2]`` initial flow in pixels of that grid (see :func:`warm_start`); None for zero.

        Returns:
            ``({"flow": [b, h, w, 2], "low": [b, h / 8, w / 8, 2]}, intermediates)``, vectors in pixels of their grid;
            with ``train`` also ``"flows"``, ``[iterations, b, h, w, 2]``. Intermediates: ``fmap1`` and ``fmap2``, the
            features of both frames; ``cnet``, the output of the context encoder; ``corr``, the windows of the first
            iteration; ``net``, the hidden state after the last one.

        Raises:
            ValueError: A side is not a multiple of 8.
        """
        b, h, w, _ = batch["first"].shape
        if h % 8 or w % 8:
            raise ValueError(f"Sides must be multiples of 8, not {h}x{w}. Pad the frames with pad_to_eight.")
        first, second = (2 * (batch[name].astype(jnp.float32) / 255) - 1 for name in ("first", "second"))
        if self.correlation == "on_demand" and not train:
            # Frame by frame: encoding both at once would need more memory than the volumes that are saved.
            scan = nn.scan(lambda encoder, carry, x: (carry, encoder(x)), variable_broadcast="params",
                           split_rngs={"params": False})
            map1, map2 = scan(self.fnet, None, jnp.stack([first, second]))[1]
        else:
            map1, map2 = jnp.split(self.fnet(jnp.concatenate([first, second]), train), 2)
        context = self.cnet(first, train)
        map1, map2 = map1.astype(jnp.float32), map2.astype(jnp.float32)
        lookup_windows = self._lookup(map1, map2)
        hidden = nn.tanh(context[..., :self.hidden])
        context_terms = self.update.context_terms(nn.relu(context[..., self.hidden:]))
        grid = jnp.stack(jnp.meshgrid(jnp.arange(w // 8), jnp.arange(h // 8)), -1).astype(jnp.float32)

        def iterate(update, carry, _):
            hidden, flow = carry
            flow = lax.stop_gradient(flow)
            hidden, change = update(hidden, context_terms, lookup_windows(grid + flow), flow)
            return (hidden, flow + change), update.upsample(hidden, flow + change) if train else None

        start = jnp.zeros((b, h // 8, w // 8, 2), jnp.float32) if start is None else start.astype(jnp.float32)
        steps = nn.scan(nn.remat(iterate) if self.remat else iterate, variable_broadcast="params",
                        split_rngs={"params": False}, length=self.iterations if iterations is None else iterations)
        (hidden, low), flows = steps(self.update, (hidden, start), None)
        outputs = {"flow": flows[-1], "flows": flows} if train else {"flow": self.update.upsample(hidden, low)}
        return outputs | {"low": low}, {"fmap1": map1, "fmap2": map2, "cnet": context,
                                        "corr": lookup_windows(grid + start), "net": hidden}

    def _lookup(self, first, second):
        """Returns a function from points ``[b, h, w, 2]`` of the second frame to the correlations around them."""
        pyramid = feature_pyramid(second, _LEVELS)
        if self.correlation == "on_demand":
            return lambda points: lookup_on_demand(first, pyramid, points, self.radius)
        volumes = correlation_volumes(first, pyramid)
        return lambda points: lookup(volumes, points, self.radius)

    @nn.nowrap
    def training_batch(self, clip: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch for ``__call__`` and ``loss`` from clips of two frames.

        Args:
            clip: ``{"frames": [b, 2, h, w, 3] uint8 RGB, "flow": [b, 2, h, w, 2]}``, the flow from each frame to the
                next in pixels; sides multiples of 8. Components that are not finite or not below 1000 mark unknown
                flow.

        Raises:
            UserError: There is no flow, or a side is not a multiple of 8.
        """
        if "flow" not in clip or any(side % 8 for side in clip["frames"].shape[2:4]):
            raise UserError("RAFT needs clips with optical flow and sides that are multiples of 8. Set data.flow and"
                            " data.size.")
        flow = clip["flow"][:, 0].astype(jnp.float32)
        valid = (jnp.abs(flow) < _MAX_VALID).all(-1)
        first, second = (clip["frames"][:, i].astype(jnp.float32) for i in range(2))
        return {"first": first, "second": second, "flow": jnp.where(valid[..., None], flow, 0), "valid": valid}

    @nn.nowrap
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], step: jax.Array):
        """Computes the L1 distance to the true flow, summed over iterations with increasing weights (Eq. 7).

        As published, the distance is averaged over both components and over *all* pixels, with zero for excluded
        pixels: those without valid flow and those whose true vector is 400 pixels or longer.

        Args:
            outputs: Outputs of ``__call__``; without ``"flows"`` (evaluation) only the final flow is used.
            batch: ``"flow"`` ``[b, h, w, 2]`` and ``"valid"`` ``[b, h, w]`` bool.
            step: Unused.

        Returns:
            ``([b] float32, {name: [b]})``: the loss, and measures of the final flow on the included pixels: ``epe``,
            the mean endpoint error in pixels, and ``within_1px``, ``within_3px`` and ``within_5px``, fractions of
            pixels with a smaller error.
        """
        del step
        truth = batch["flow"]
        included = batch["valid"] & (jnp.linalg.norm(truth, axis=-1) < _MAX_FLOW)
        flows = outputs.get("flows", outputs["flow"][None])
        distance = (jnp.abs(flows - truth) * included[..., None]).mean((2, 3, 4))
        weights = _GAMMA ** np.arange(len(flows) - 1, -1, -1, dtype=np.float32)
        error = jnp.linalg.norm(outputs["flow"] - truth, axis=-1)
        total = jnp.maximum(included.sum((1, 2)), 1)
        parts = {"epe": (error * included).sum((1, 2)) / total}
        parts |= {f"within_{n}px": ((error < n) & included).sum((1, 2)) / total for n in (1, 3, 5)}
        return weights @ distance, parts

    @nn.nowrap
    def torch_rules(self) -> Rules:
        """Returns the name rules for the published checkpoints."""
        return official.torch_rules(self)

    @nn.nowrap
    def example_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a minimal batch for ``__call__``, from which the variables' shapes follow."""
        frame = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        return {"first": frame, "second": frame}


def warm_start(low_flow: jax.Array) -> jax.Array:
    """Projects the flow of a pair forward, as the initial flow of the next pair.

    Every pixel takes the vector that ends nearest to it. Vectors that end on or beyond the border are ignored.

    Args:
        low_flow: ``[b, h, w, 2]`` float32, output ``"low"`` of the previous pair.

    Returns:
        ``[b, h, w, 2]`` float32; zero if no vector ends inside the image.
    """
    _, h, w, _ = low_flow.shape
    columns, rows = (jnp.arange(n, dtype=jnp.float32) for n in (w, h))

    def project(flow):
        flow = flow.reshape(-1, 2)
        x, y = jnp.tile(columns, h) + flow[:, 0], jnp.repeat(rows, w) + flow[:, 1]
        inside = (x > 0) & (x < w) & (y > 0) & (y < h)
        x, y = jnp.where(inside, x, jnp.inf), jnp.where(inside, y, jnp.inf)
        # Row by row: the matrix of all distances would grow with the square of the number of pixels.
        nearest = lax.map(lambda row: jnp.argmin((x - columns[:, None]) ** 2 + (y - row) ** 2, axis=1), rows)
        return jnp.where(inside.any(), flow[nearest], 0)

    return lax.map(project, low_flow.astype(jnp.float32))
