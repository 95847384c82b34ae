"""Recurrent state of CFBI: embeddings and labels of the reference frames and of the previous frame."""

import flax.struct
import jax
import jax.numpy as jnp

UNLABELED = -1  # label of a pixel that belongs to no object: void, or in a reference that is not in use


@flax.struct.dataclass
class State:
    """Recurrent state of CFBI. No shape depends on the number of object slots.

    Attributes:
        reference: ``[b, r, h, w, c]`` embeddings of the frames whose masks were given.
        reference_labels: ``[b, r, h, w]`` int32 labels of these frames; -1 for void and for references not in use.
        references: ``[b]`` int32, number of frames with given masks so far; it may exceed r.
        previous: ``[b, h, w, c]`` embedding of the previous frame.
        previous_labels: ``[b, h, w]`` int32 labels of the previous frame; -1 for void.
        count: ``[b]`` int32, number of objects so far; they use the slots 1 to ``count``.
    """

    reference: jax.Array
    reference_labels: jax.Array
    references: jax.Array
    previous: jax.Array
    previous_labels: jax.Array
    count: jax.Array


def empty_state(embed: jax.Array, references: int) -> State:
    """Returns the state without references and objects.

    Args:
        embed: ``[b, h, w, c]`` embedding of the first frame.
        references: r, room for reference frames.
    """
    b, h, w, c = embed.shape
    return State(jnp.zeros((b, references, h, w, c), embed.dtype),
                 jnp.full((b, references, h, w), UNLABELED, jnp.int32), jnp.zeros(b, jnp.int32),
                 embed, jnp.zeros((b, h, w), jnp.int32), jnp.zeros(b, jnp.int32))


def add_references(state: State, highest: jax.Array) -> State:
    """Adds the previous frame to the references of the videos for which a mask was given.

    When all references are in use, the frame replaces the oldest one except the first.

    Args:
        state: State of ``b`` videos.
        highest: ``[b]`` int32, highest object slot in the given mask; 0 if no mask was given.
    """
    is_given, room = highest > 0, state.reference.shape[1]
    oldest = jnp.minimum(1 + (state.references - room) % max(1, room - 1), room - 1)
    index = jnp.where(state.references < room, state.references, oldest)
    write = ((jnp.arange(room) == index[:, None]) & is_given[:, None])[..., None, None]
    return state.replace(
        reference=jnp.where(write[..., None], state.previous[:, None], state.reference),
        reference_labels=jnp.where(write, state.previous_labels[:, None], state.reference_labels),
        references=state.references + is_given, count=jnp.maximum(state.count, highest))
