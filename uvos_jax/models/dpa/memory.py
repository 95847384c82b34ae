"""Recurrent state of DPA: the prototypes of N reference frames."""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.models.dpa.attention import Tokens

Memory = dict[str, Tokens]  # keys and values, by stream


@flax.struct.dataclass
class State:
    """Recurrent state of DPA.

    Attributes:
        memory: Keys and values by stream, ``[1, N, t, C']``: ``t = C'`` prototypes, or pixels, of each reference.
        interval: int32, frames between two references of a stream; 0 if the references were chosen from the whole
            video and never change.
        position: int32, frames processed so far.
    """

    memory: Memory
    interval: jax.Array
    position: jax.Array


def reference_indices(length: int, count: int, official: bool) -> tuple[int, ...]:
    """Returns the indices of the reference frames of a video: Eq. 8, from the first to the last frame.

    Eq. 8 divides by N - 1; for N = 1 the reference is frame 0.

    Args:
        length: Number of frames of the video.
        count: N, the number of references.
        official: Whether to take multiples of ``length // N`` as the published code, which never reaches the end.
    """
    if count == 1:
        return (0,)
    if official:
        return tuple(i * (length // count) for i in range(count))
    return tuple(i * (length - 1) // (count - 1) for i in range(count))


def initial_state(memory: Memory, count: int) -> State:
    """Returns the state before the first frame.

    Args:
        memory: Keys and values of ``r`` reference frames, ``[r, t, C']``: ``count`` frames of the whole video, which
            never change, or the first frame of a stream, which fills all slots.
        count: N, the number of references.

    Raises:
        ValueError: ``r`` is neither N nor 1.
    """
    given = {leaf.shape[0] for leaf in jax.tree.leaves(memory)}
    if not given <= {1, count}:
        raise ValueError(f"The number of reference frames must be 1 or {count}, not {sorted(given)}.")
    filled = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:]))[None], memory)
    return State(filled, interval=jnp.int32(0 if given <= {count} else 1), position=jnp.int32(0))


def update_memory(state: State, memory: Memory) -> State:
    """Keeps the references of a stream spread over its past; references of a whole video never change.

    Frames 0, s, 2 s, ... are references, with s = 1 at first. When all N slots are full and the next reference is due,
    s doubles and the slots of every second reference become free. A freed reference stays in use until its slot is
    overwritten. There are always N different past frames (frame 0 fills the slots until N frames have been seen), at
    least half of them at equal distances from the first to nearly the last frame.

    Args:
        state: State before this frame.
        memory: Keys and values of this frame, ``[1, t, C']``.
    """
    if not jax.tree.leaves(state.memory):
        return state
    position, interval = state.position, state.interval
    count = jax.tree.leaves(state.memory)[0].shape[1]

    def write(old):
        full = position // interval == count
        order = jnp.where(full, jnp.asarray([*range(0, count, 2), *range(1, count, 2)]), jnp.arange(count))
        new_interval = jnp.where(full, 2 * interval, interval)
        slot, is_reference = position // new_interval, position % new_interval == 0

        def write_slot(old, new):
            old = jnp.take(old, order, axis=1)
            return old.at[:, slot].set(jnp.where(is_reference, new, old[:, slot]))

        return jax.tree.map(write_slot, old, memory), new_interval

    due = (interval > 0) & (position > 0) & (position % jnp.maximum(interval, 1) == 0)
    slots, interval = lax.cond(due, write, lambda old: (old, interval), state.memory)
    return State(slots, interval=interval, position=position + 1)
