"""Stateful post-processing: stages between the fused score and the labels.

A stage is a pair of functions, ``init(native_size) -> state`` and ``apply(state, score, threshold, context) ->
(state, score)``, with scores ``[1, h, w, 1]`` at native size. ``model.postprocess`` names the stages of a model in
order; ``STAGES`` maps the names to the functions. ``run.json`` holds the names.
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

# Constants of the published AD-Net evaluation, in pixels of the native frame.
_GATE_AREA = (5_000, 100_000)  # foreground area at which the temporal gate applies
_OPENING_SIZE = 15
_GATE_DILATION = 101
_SPLIT_AREA = (40_000, 100_000)  # foreground area at which components are compared
_JOIN_DILATION = 31
_MAIN_MIN_AREA = 30_000
_MAIN_MIN_IOU = 0.3
# Temporal smoothing: shorter side of the reduced frame, radius of the windows in which colors are compared, largest
# weight of the previous score, and the squared color difference at which that weight has fallen by a factor of e.
_SMOOTHING_ROWS = 120
_SMOOTHING_RADIUS = 2
_SMOOTHING_MAX_WEIGHT = 0.75
_SMOOTHING_COLOR_VARIANCE = 0.04
# Color refinement: shorter side of the reduced frame, histogram bins per channel, distance from the object within which
# the background is sampled as a share of the shorter side, decay of the histograms per frame, floor of a histogram
# entry, and the largest contribution of a color to a pixel in logits.
_COLOR_ROWS = 120
_COLOR_BINS = 32
_COLOR_BAND = 0.25
_COLOR_DECAY = 0.9
_COLOR_FLOOR = 1e-4
_COLOR_MAX_LOGIT = 2.0
_PROB_MARGIN = 1e-3  # probabilities are kept this far from 0 and 1 before the logit
# Edge refinement: shorter side of the reduced frame, radius of the guided filter and its regularization.
_EDGE_ROWS = 160
_EDGE_RADIUS = 5
_EDGE_EPSILON = 1e-4


@flax.struct.dataclass
class FrameContext:
    """The inputs of a stage other than the score.

    Attributes:
        frame: ``[h, w, 3]`` uint8, RGB.
        flow: ``[h', w', 2]`` float32, optical flow in pixels of its own grid; None for models without flow input.
        causal: Whether the flow is backward (to the previous frame, as for live sources) rather than forward.
    """

    frame: jax.Array
    flow: jax.Array | None
    causal: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class GateState:
    """State of the temporal gate.

    Attributes:
        last_mask: ``[h, w]`` bool, foreground of the previous frame before gating.
    """

    last_mask: jax.Array


def temporal_gate_init(native_size: tuple[int, int]) -> GateState:
    """Returns a state without foreground, so that the gate does not apply to the first frame."""
    return GateState(jnp.zeros(native_size, bool))


def temporal_gate(state: GateState, score: jax.Array, threshold: float, context: FrameContext | None = None
                  ) -> tuple[GateState, jax.Array]:
    """Restricts foreground to the neighborhood of the previous frame's foreground.

    From AD-Net's published code, not in the paper. If the previous frame had between 5,000 and 100,000 foreground
    pixels (exclusive), scores are set to 0 outside that mask opened by 15x15 and dilated by 101x101 pixels. The state
    keeps the foreground *before* gating.

    Args:
        state: State after the previous frame.
        score: ``[1, h, w, 1]`` logits, averaged over views.
        threshold: Scores above it are foreground.
        context: Not used.

    Returns:
        The next state, and the gated score.
    """
    del context
    area = state.last_mask.sum()
    gate = dilate(opening(state.last_mask, _OPENING_SIZE), _GATE_DILATION)
    applies = (area > _GATE_AREA[0]) & (area < _GATE_AREA[1])
    gated = jnp.where(applies & ~gate[None, :, :, None], 0.0, score)
    return GateState(score[0, :, :, 0] > threshold), gated


@flax.struct.dataclass
class MainComponentState:
    """State of the main component stage.

    Attributes:
        last_mask: ``[h, w]`` bool, foreground of the previous frame after this stage.
        seen: bool, whether there was a previous frame.
    """

    last_mask: jax.Array
    seen: jax.Array


def main_component_init(native_size: tuple[int, int]) -> MainComponentState:
    """Returns the state before the first frame."""
    return MainComponentState(jnp.zeros(native_size, bool), jnp.zeros((), bool))


def main_component(state: MainComponentState, score: jax.Array, threshold: float, context: FrameContext | None = None
                   ) -> tuple[MainComponentState, jax.Array]:
    """Restricts foreground to the bounding box of its largest component.

    AD-Net's published code does this after instance pruning; it is not in the paper. It applies if the frame has
    between 40,000 and 100,000 foreground pixels (exclusive), the mask opened by 15x15 and dilated by 31x31 has several
    components, and the contour of the largest encloses more than 30,000 pixels. Scores are then set to 0 outside the
    bounding box of that component, unless the box has an IoU of 0.3 or less with the previous frame's foreground.

    Args:
        state: State after the previous frame.
        score: ``[1, h, w, 1]`` logits, averaged over views.
        threshold: Scores above it are foreground.
        context: Not used.

    Returns:
        The next state, and the score.
    """
    del context
    mask = score[0, :, :, 0] > threshold
    area = mask.sum()
    inside = jax.lax.cond((area > _SPLIT_AREA[0]) & (area < _SPLIT_AREA[1]), lambda: _main_box(mask, state),
                          lambda: jnp.ones_like(mask))
    score = jnp.where(inside[None, :, :, None], score, 0.0)
    return MainComponentState(score[0, :, :, 0] > threshold, jnp.ones((), bool)), score


def _main_box(mask, state):
    """``[h, w]`` bool, where scores are kept: inside the main box, or everywhere if the rule does not apply."""
    # OpenCV's outer contours ignore holes and the components inside them.
    regions = fill_holes(dilate(opening(mask, _OPENING_SIZE), _JOIN_DILATION))
    labels = label_components(regions)
    # A contour passes through the centers of boundary pixels. By Pick's theorem its area is the number of pixels minus
    # half of the boundary pixels minus one; off by a pixel where a component is one pixel thin.
    padded = jnp.pad(regions, 1)
    middle = padded[1:-1, 1:-1]
    inner = middle & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    enclosed = jnp.where(regions, jnp.where(inner, 1.0, 0.5), 0.0)
    sizes = jnp.zeros(mask.size + 1).at[labels.ravel()].add(enclosed.ravel()).at[0].set(0)
    several = (sizes > 0).sum() > 1
    main = labels == sizes.argmax()
    box = _fill_span(main.any(1))[:, None] & _fill_span(main.any(0))[None]
    overlap = (box & state.last_mask).sum() / (box | state.last_mask).sum()
    applies = several & (sizes.max() - 1 > _MAIN_MIN_AREA) & (~state.seen | (overlap > _MAIN_MIN_IOU))
    return box | ~applies


def _fill_span(line):
    """``[n]`` bool, true from the first to the last true element."""
    return (jnp.cumsum(line) > 0) & (jnp.cumsum(line[::-1]) > 0)[::-1]


@flax.struct.dataclass
class SmoothingState:
    """State of the temporal smoothing, on a reduced grid.

    Attributes:
        score: ``[h', w']`` float32, smoothed score of the previous frame.
        colors: ``[h', w', 3]`` float32, its RGB in [0, 1].
        flow: ``[h', w', 2]`` float32, its flow in pixels of the reduced grid.
        seen: bool, whether there was a previous frame.
    """

    score: jax.Array
    colors: jax.Array
    flow: jax.Array
    seen: jax.Array


def smooth_over_time_init(native_size: tuple[int, int]) -> SmoothingState:
    """Returns the state before the first frame."""
    step = _reduction(native_size, _SMOOTHING_ROWS)
    size = tuple(-(-side // step) for side in native_size)
    return SmoothingState(jnp.zeros(size), jnp.zeros((*size, 3)), jnp.zeros((*size, 2)), jnp.zeros((), bool))


def smooth_over_time(state: SmoothingState, score: jax.Array, threshold: float, context: FrameContext
                     ) -> tuple[SmoothingState, jax.Array]:
    """Stage ``smooth_over_time``: smooths the score over time by warping the previous one along the flow.

    The previous score has most weight where the warped colors match those of the frame. Where they differ (cuts,
    disocclusion, wrong flow), the frame keeps its own score.

    Args:
        state: State after the previous frame.
        score: ``[1, h, w, 1]`` probabilities.
        threshold: Not used.
        context: Frame and flow. If the flow is forward, the previous frame's flow is used, with its inverse
            approximated by its negative.

    Returns:
        The next state, and the score.
    """
    del threshold
    step = _reduction(score.shape[1:3], _SMOOTHING_ROWS)
    current, colors = average_pool(score[0, :, :, 0], step), average_pool(context.frame / jnp.float32(255), step)
    size = current.shape
    flow = resize_flow(context.flow[None], size)[0]
    backward = flow if context.causal else -state.flow
    warped = warp(jnp.concatenate([state.score[..., None], state.colors], -1), backward)
    difference = box_filter(jnp.square(warped[..., 1:] - colors).sum(-1), _SMOOTHING_RADIUS)
    weight = jnp.where(state.seen, _SMOOTHING_MAX_WEIGHT * jnp.exp(-difference / _SMOOTHING_COLOR_VARIANCE), 0)
    smooth = current + weight * (warped[..., 0] - current)
    change = average_unpool(smooth - current, step, score.shape[1:3])
    return SmoothingState(smooth, colors, flow, jnp.ones((), bool)), score + change[None, :, :, None]


@flax.struct.dataclass
class ColorState:
    """State of the color refinement: color histograms with exponential decay.

    Attributes:
        foreground: ``[bins ** 3]`` float32, histogram of the foreground's colors.
        background: ``[bins ** 3]`` float32, histogram of the colors around it.
    """

    foreground: jax.Array
    background: jax.Array


def refine_by_color_init(native_size: tuple[int, int]) -> ColorState:
    """Returns empty histograms."""
    del native_size
    return ColorState(*jnp.zeros((2, _COLOR_BINS**3)))


def refine_by_color(state: ColorState, score: jax.Array, threshold: float, context: FrameContext
                    ) -> tuple[ColorState, jax.Array]:
    """Stage ``refine_by_color``: refines the score with color histograms of the object and its surroundings.

    Confident pixels of this and earlier frames fill the histograms. The log odds of each pixel's color under the two
    are then added to the logit of its score.

    Args:
        state: State after the previous frame.
        score: ``[1, h, w, 1]`` probabilities.
        threshold: Not used.
        context: The frame.

    Returns:
        The next state, and the score, in [0, 1].
    """
    del threshold
    step = _reduction(score.shape[1:3], _COLOR_ROWS)
    prob = average_pool(score[0, :, :, 0], step)
    indices = color_bins(average_pool(context.frame / jnp.float32(255), step), _COLOR_BINS)
    around = dilate(prob > 0.5, 2 * round(_COLOR_BAND * min(prob.shape)) + 1)
    state = ColorState(*(
        _COLOR_DECAY * previous + (1 - _COLOR_DECAY) * color_histogram(indices, weights, _COLOR_BINS)
        for previous, weights in ((state.foreground, jnp.clip(2 * prob - 1, 0, 1)),
                                (state.background, jnp.clip(1 - 2 * prob, 0, 1) * around))))
    odds = jnp.clip(log_odds(state.foreground, state.background, _COLOR_FLOOR), -_COLOR_MAX_LOGIT, _COLOR_MAX_LOGIT)
    odds = average_unpool(box_filter(odds[indices], 1), step, score.shape[1:3])
    clipped = jnp.clip(score, _PROB_MARGIN, 1 - _PROB_MARGIN)
    return state, jax.nn.sigmoid(jnp.log(clipped / (1 - clipped)) + odds[None, :, :, None])


def refine_edges(state: tuple, score: jax.Array, threshold: float, context: FrameContext) -> tuple[tuple, jax.Array]:
    """Stage ``refine_edges``: aligns a coarse score with the frame's edges by the fast guided filter.

    Args:
        state: Empty.
        score: ``[1, h, w, 1]`` probabilities.
        threshold: Not used.
        context: The frame.

    Returns:
        The empty state, and the score, in [0, 1].
    """
    del threshold
    filtered = guided_filter(context.frame / jnp.float32(255), score[0, :, :, 0], radius=_EDGE_RADIUS,
                             epsilon=_EDGE_EPSILON, step=_reduction(score.shape[1:3], _EDGE_ROWS))
    return state, jnp.clip(filtered, 0, 1)[None, :, :, None]


def _reduction(size, rows):
    """Reduction factor that brings the shorter side to about ``rows`` pixels."""
    return max(1, round(min(size) / rows))


STAGES = {
    "temporal_gate": (temporal_gate_init, temporal_gate),
    "main_component": (main_component_init, main_component),
    "smooth_over_time": (smooth_over_time_init, smooth_over_time),
    "refine_by_color": (refine_by_color_init, refine_by_color),
    "refine_edges": (lambda native_size: (), refine_edges),
}
