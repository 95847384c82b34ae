"""What DPA remembers of a video: the prototypes of N reference frames."""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.models.dpa.attention import Tokens

Memory = dict[str, Tokens]  # keys and values, by stream


@flax.struct.dataclass
class State:
    """What a video's past means to DPA.

    Attributes:
        memory: Keys and values of each stream, ``[1, N, t, C']``: of each reference ``t = C'`` prototypes, or pixels.
        interval: Int32, frames between two references of a video that is not known beforehand; 0 where the references
            were chosen from the whole video and stay.
        position: Int32, frames seen so far.
    """

    memory: Memory
    interval: jax.Array
    position: jax.Array


def begin(memory: Memory, count: int) -> State:
    """The state before the first frame.

    Args:
        memory: Of ``r`` reference frames, ``[r, t, C']``: ``count`` of the whole video, which then never change, or the
            first one of a stream, which fills all slots.
        count: N.

    Raises:
        ValueError: If ``r`` is neither N nor 1.
    """
    given = {leaf.shape[0] for leaf in jax.tree.leaves(memory)}
    if not given <= {1, count}:
        raise ValueError(f"DPA wants 1 or {count} reference frames, got {sorted(given)}")
    filled = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:]))[None], memory)
    return State(filled, interval=jnp.int32(0 if given <= {count} else 1), position=jnp.int32(0))


def update_memory(state: State, memory: Memory) -> State:
    """Keeps the references of a stream spread over its past; those of a whole video stay.

    Frames 0, s, 2 s, ... are references, with s = 1 at first. When the N slots are full and the next one is due, every
    second reference gives up its slot and s doubles; it is looked at until its slot is needed. So there are always N
    different frames of the past (before N were seen, frame 0 stands in), at least half of them at equal distances from
    the first to nearly the last.

    Args:
        state: Before this frame.
        memory: Of this frame, ``[1, t, C']``.
    """
    if not jax.tree.leaves(state.memory):
        return state
    position, interval = state.position, state.interval
    count = jax.tree.leaves(state.memory)[0].shape[1]

    def write(old):
        full = position // interval == count
        order = jnp.where(full, jnp.asarray([*range(0, count, 2), *range(1, count, 2)]), jnp.arange(count))
        wider = jnp.where(full, 2 * interval, interval)
        slot, falls_on_it = position // wider, position % wider == 0

        def one(old, new):
            old = jnp.take(old, order, axis=1)
            return old.at[:, slot].set(jnp.where(falls_on_it, new, old[:, slot]))

        return jax.tree.map(one, old, memory), wider

    due = (interval > 0) & (position > 0) & (position % jnp.maximum(interval, 1) == 0)
    slots, interval = lax.cond(due, write, lambda old: (old, interval), state.memory)
    return State(slots, interval=interval, position=position + 1)
