"""Post-processing that remembers: stages between the fused score and the labels, each with a state of its own.

A stage is a pair of functions: ``init(native_size) -> state`` and ``apply(state, score, threshold) -> (state, score)``
with scores ``[1, h, w, 1]`` at native size. Models name the stages that their published code uses.
"""

import flax.struct
import jax
import jax.numpy as jnp

from uvos_jax.ops.morphology import dilate, opening

# Numbers of the published AD-Net evaluation, in pixels of the native frame.
_GATE_AREA = (5_000, 100_000)
_OPENING = 15
_REACH = 101


@flax.struct.dataclass
class GateState:
    """The previous frame's foreground before gating, ``[h, w]`` bool."""

    last_mask: jax.Array


def temporal_gate_init(native_size: tuple[int, int]) -> GateState:
    """No foreground before the first frame, which therefore passes."""
    return GateState(jnp.zeros(native_size, bool))


def temporal_gate(state: GateState, score: jax.Array, threshold: float) -> tuple[GateState, jax.Array]:
    """AD-Net's published gate (not in the paper): foreground may only appear near the last frame's foreground.

    If the last frame had between 5,000 and 100,000 foreground pixels (exclusive), scores are zeroed outside that mask
    opened by 15x15 and dilated by 101x101 pixels. What is remembered is the foreground *before* gating.

    Args:
      state: from the frame before.
      score: ``[1, h, w, 1]`` averaged logits.
      threshold: above it is foreground.

    Returns:
      The next state, and the gated score.
    """
    area = state.last_mask.sum()
    gate = dilate(opening(state.last_mask, _OPENING), _REACH)
    applies = (area > _GATE_AREA[0]) & (area < _GATE_AREA[1])
    gated = jnp.where(applies & ~gate[None, :, :, None], 0.0, score)
    return GateState(score[0, :, :, 0] > threshold), gated


STAGES = {"temporal_gate": (temporal_gate_init, temporal_gate)}
