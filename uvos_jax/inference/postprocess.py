"""Post-processing that remembers: stages between the fused score and the labels, each with a state of its own.

A stage is a pair of functions: ``init(native_size) -> state`` and ``apply(state, score, threshold, sight) ->
(state, score)`` with scores ``[1, h, w, 1]`` at native size. Models name the stages that follow their score.
"""

import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.ops.color_models import color_bins, color_histogram, log_odds
from uvos_jax.ops.connected_components import fill_holes, label_components
from uvos_jax.ops.guided_filter import box_filter, guided_filter
from uvos_jax.ops.morphology import dilate, opening
from uvos_jax.ops.optical_flow import resize_flow, warp
from uvos_jax.ops.pooling import average_pool, average_unpool

# Numbers of the published AD-Net evaluation, in pixels of the native frame.
_GATE_AREA = (5_000, 100_000)
_OPENING = 15
_REACH = 101
_SPLIT_AREA = (40_000, 100_000)
_JOIN = 31
_MAIN_AREA = 30_000
_MAIN_OVERLAP = 0.3
# The copy of the frame in which a score is smoothed, the windows in which colors are compared, the most that the past
# counts, and the squared difference of colors at which it counts 1/e of that.
_FLOW_ROWS = 120
_FLOW_RADIUS = 2
_FLOW_SHARE = 0.75
_FLOW_MISFIT = 0.04
# The copy of the frame whose colors count, bins a side, how far around the object the background is learned as a
# share of the shorter side, what the frames before count, and what a color can say at most, in logits.
_COLOR_ROWS = 120
_COLOR_BINS = 32
_COLOR_REACH = 0.25
_COLOR_MEMORY = 0.9
_COLOR_FLOOR = 1e-4
_COLOR_LIMIT = 2.0
_SURE = 1e-3  # probabilities are kept so far from 0 and 1
# The copy of the frame in which edges are looked for, its windows, and what is no edge.
_EDGE_ROWS = 160
_EDGE_RADIUS = 5
_EDGE_VARIANCE = 1e-4


@flax.struct.dataclass
class FrameContext:
    """What there is to see beside a score.

    Attributes:
      frame: ``[h, w, 3]`` uint8, RGB.
      flow: ``[h', w', 2]`` float32 in pixels of its own grid; None of models without flow.
      causal: whether the flow leads to the frame before, as that of live sources does, and not to the next one.
    """

    frame: jax.Array
    flow: jax.Array | None
    causal: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class GateState:
    """The previous frame's foreground before gating, ``[h, w]`` bool."""

    last_mask: jax.Array


def temporal_gate_init(native_size: tuple[int, int]) -> GateState:
    """No foreground before the first frame, which therefore passes."""
    return GateState(jnp.zeros(native_size, bool))


def temporal_gate(state: GateState, score: jax.Array, threshold: float, sight: FrameContext | None = None
                  ) -> tuple[GateState, jax.Array]:
    """AD-Net's published gate (not in the paper): foreground may only appear near the last frame's foreground.

    If the last frame had between 5,000 and 100,000 foreground pixels (exclusive), scores are zeroed outside that mask
    opened by 15x15 and dilated by 101x101 pixels. What is remembered is the foreground *before* gating.

    Args:
      state: from the frame before.
      score: ``[1, h, w, 1]`` averaged logits.
      threshold: above it is foreground.
      sight: unused.

    Returns:
      The next state, and the gated score.
    """
    del sight
    area = state.last_mask.sum()
    gate = dilate(opening(state.last_mask, _OPENING), _REACH)
    applies = (area > _GATE_AREA[0]) & (area < _GATE_AREA[1])
    gated = jnp.where(applies & ~gate[None, :, :, None], 0.0, score)
    return GateState(score[0, :, :, 0] > threshold), gated


@flax.struct.dataclass
class MainPartState:
    """``last_mask`` ``[h, w]`` bool, the last frame's foreground after this stage; ``seen``, whether there was one."""

    last_mask: jax.Array
    seen: jax.Array


def main_part_init(native_size: tuple[int, int]) -> MainPartState:
    """No previous frame."""
    return MainPartState(jnp.zeros(native_size, bool), jnp.zeros((), bool))


def main_part(state: MainPartState, score: jax.Array, threshold: float, sight: FrameContext | None = None
              ) -> tuple[MainPartState, jax.Array]:
    """What AD-Net's published evaluation does after instance pruning (not in the paper): foreground is in one place.

    If the frame has between 40,000 and 100,000 foreground pixels (exclusive) in several parts, once opened by 15x15 and
    dilated by 31x31, and the largest one's outline encloses more than 30,000, scores are zeroed outside the bounding
    box of that part, unless it overlaps the previous frame's foreground by an intersection over union of 0.3 or less.

    Args:
      state: from the frame before.
      score: ``[1, h, w, 1]`` averaged logits.
      threshold: above it is foreground.
      sight: unused.

    Returns:
      The next state, and the score.
    """
    del sight
    mask = score[0, :, :, 0] > threshold
    area = mask.sum()
    inside = jax.lax.cond((area > _SPLIT_AREA[0]) & (area < _SPLIT_AREA[1]), lambda: _main_box(mask, state),
                          lambda: jnp.ones_like(mask))
    score = jnp.where(inside[None, :, :, None], score, 0.0)
    return MainPartState(score[0, :, :, 0] > threshold, jnp.ones((), bool)), score


def _main_box(mask, state):
    """``[h, w]`` bool, the box that scores are kept in; true everywhere where they all are."""
    # Without holes, and so without the parts in them, of which OpenCV's outer outlines know nothing.
    parts = fill_holes(dilate(opening(mask, _OPENING), _JOIN))
    labels = label_components(parts)
    # An outline runs through the middles of pixels that lie beside the background: by Pick's theorem it encloses all
    # pixels of the part, less half of those and one; a pixel more or less where a part is one pixel thin.
    padded = jnp.pad(parts, 1)
    middle = padded[1:-1, 1:-1]
    inner = middle & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    enclosed = jnp.where(parts, jnp.where(inner, 1.0, 0.5), 0.0)
    sizes = jnp.zeros(mask.size + 1).at[labels.ravel()].add(enclosed.ravel()).at[0].set(0)
    several = (sizes > 0).sum() > 1
    main = labels == sizes.argmax()
    box = _between(main.any(1))[:, None] & _between(main.any(0))[None]
    overlap = (box & state.last_mask).sum() / (box | state.last_mask).sum()
    applies = several & (sizes.max() - 1 > _MAIN_AREA) & (~state.seen | (overlap > _MAIN_OVERLAP))
    return box | ~applies


def _between(line):
    """``[n]`` bool, true from the first true one to the last."""
    return (jnp.cumsum(line) > 0) & (jnp.cumsum(line[::-1]) > 0)[::-1]


@flax.struct.dataclass
class FlowState:
    """The last frame in small: what :func:`follow_flow` made of its score ``[h, w]``, its colors, its flow."""

    score: jax.Array
    colors: jax.Array
    flow: jax.Array
    seen: jax.Array


def follow_flow_init(native_size: tuple[int, int]) -> FlowState:
    """No last frame."""
    step = _step(native_size, _FLOW_ROWS)
    size = tuple(-(-side // step) for side in native_size)
    return FlowState(jnp.zeros(size), jnp.zeros((*size, 3)), jnp.zeros((*size, 2)), jnp.zeros((), bool))


def follow_flow(state: FlowState, score: jax.Array, threshold: float, sight: FrameContext) -> tuple[FlowState, jax.Array]:
    """Smooths a score in time: the last frame's, brought along by the flow, counts where the colors fit, too.

    Where they do not fit (a cut, what was hidden, wrong flow), the frame has its own score.

    Args:
      state: from the frame before.
      score: ``[1, h, w, 1]`` probabilities.
      threshold: unused.
      sight: with flow. A flow to the next frame is that of the frame before, and its inverse is taken to be its
        negative.

    Returns:
      The next state, and the score.
    """
    del threshold
    step = _step(score.shape[1:3], _FLOW_ROWS)
    own, colors = average_pool(score[0, :, :, 0], step), average_pool(sight.frame / jnp.float32(255), step)
    size = own.shape
    flow = resize_flow(sight.flow[None], size)[0]
    way = flow if sight.causal else -state.flow
    came = warp(jnp.concatenate([state.score[..., None], state.colors], -1), way)
    misfit = jnp.square(came[..., 1:] - colors).sum(-1)
    share = jnp.where(state.seen, _FLOW_SHARE * jnp.exp(-box_filter(misfit, _FLOW_RADIUS) / _FLOW_MISFIT), 0)
    smooth = own + share * (came[..., 0] - own)
    change = average_unpool(smooth - own, step, score.shape[1:3])
    return FlowState(smooth, colors, flow, jnp.ones((), bool)), score + change[None, :, :, None]


@flax.struct.dataclass
class ColorState:
    """The colors of the foreground and of what is around it, ``[bins ** 3]`` each, weighted by age."""

    foreground: jax.Array
    background: jax.Array


def follow_colors_init(native_size: tuple[int, int]) -> ColorState:
    """No colors."""
    del native_size
    return ColorState(*jnp.zeros((2, _COLOR_BINS**3)))


def follow_colors(state: ColorState, score: jax.Array, threshold: float, sight: FrameContext
                   ) -> tuple[ColorState, jax.Array]:
    """Lets the colors of the video itself speak for or against a pixel.

    What the score is sure of, in this frame and those before, tells the colors of the object and of its surroundings;
    the log odds of each pixel's color then join those of the score.

    Args:
      state: from the frame before.
      score: ``[1, h, w, 1]`` probabilities.
      threshold: unused.
      sight: of which the frame counts.

    Returns:
      The next state, and the score, in [0, 1].
    """
    del threshold
    step = _step(score.shape[1:3], _COLOR_ROWS)
    own = average_pool(score[0, :, :, 0], step)
    indices = color_bins(average_pool(sight.frame / jnp.float32(255), step), _COLOR_BINS)
    around = dilate(own > 0.5, 2 * round(_COLOR_REACH * min(own.shape)) + 1)
    state = ColorState(*(
        _COLOR_MEMORY * before + (1 - _COLOR_MEMORY) * color_histogram(indices, weights, _COLOR_BINS)
        for before, weights in ((state.foreground, jnp.clip(2 * own - 1, 0, 1)),
                                (state.background, jnp.clip(1 - 2 * own, 0, 1) * around))))
    odds = jnp.clip(log_odds(state.foreground, state.background, _COLOR_FLOOR), -_COLOR_LIMIT, _COLOR_LIMIT)
    odds = average_unpool(box_filter(odds[indices], 1), step, score.shape[1:3])
    sure = jnp.clip(score, _SURE, 1 - _SURE)
    return state, jax.nn.sigmoid(jnp.log(sure / (1 - sure)) + odds[None, :, :, None])


def follow_edges(state: tuple, score: jax.Array, threshold: float, sight: FrameContext) -> tuple[tuple, jax.Array]:
    """Lets a score that a coarse network made follow the frame's edges, by the fast guided filter.

    Args:
      state: nothing.
      score: ``[1, h, w, 1]`` probabilities.
      threshold: unused.
      sight: of which the frame counts.

    Returns:
      Nothing, and the score, in [0, 1].
    """
    del threshold
    filtered = guided_filter(sight.frame / jnp.float32(255), score[0, :, :, 0], radius=_EDGE_RADIUS,
                             epsilon=_EDGE_VARIANCE, step=_step(score.shape[1:3], _EDGE_ROWS))
    return state, jnp.clip(filtered, 0, 1)[None, :, :, None]


def _step(size, rows):
    """Side in pixels of the squares that make a copy with about so many rows (or columns, if these are fewer)."""
    return max(1, round(min(size) / rows))


STAGES = {"temporal_gate": (temporal_gate_init, temporal_gate), "main_part": (main_part_init, main_part),
          "follow_flow": (follow_flow_init, follow_flow), "follow_colors": (follow_colors_init, follow_colors),
          "follow_edges": (lambda native_size: (), follow_edges)}
