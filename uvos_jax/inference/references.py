"""Which frames a model's state is made from, where it wants others than the first one."""

import contextlib
import dataclasses

import flax.linen as nn
import numpy as np

from uvos_jax.video import Source

# Long enough that a model which looks at a video as a whole asks for other frames of it than the first.
_LONG = 10_000


@dataclasses.dataclass(frozen=True)
class References:
    """The frames that ``init_state`` is given.

    Attributes:
      frames: their indices.
      rule: ``"first frame"`` for models that never want another one; ``"whole video"`` where the model chose from all
        frames; ``"causal"`` where it would have, but the source cannot be looked through before it is segmented.
    """

    frames: tuple[int, ...]
    rule: str


def find_references(model: nn.Module, source: Source) -> References:
    """Asks a model for its references in a video; counts the frames of a file, if that matters, by decoding them."""
    if tuple(model.reference_frames(_LONG)) == (0,):
        return References((0,), "first frame")
    if source.live or not source.rereadable:
        return References(_ints(model.reference_frames(None)), "causal")
    # The length that a video file states may be wrong, all others are exact.
    known = source.length if source.kind != "file" else None
    length = known or sum(1 for _ in source)
    return References(_ints(model.reference_frames(length)), "whole video")


def read_references(source: Source, references: References) -> np.ndarray:
    """Decodes the references of a source that can be read again: ``[r, h, w, 3]`` uint8, in their order."""
    wanted, found = set(references.frames), {}
    with contextlib.closing(iter(source)) as frames:
        for i, frame in enumerate(frames):
            if i in wanted:
                found[i] = frame.image
            if len(found) == len(wanted):
                break
    return np.stack([found[i] for i in references.frames])


def _ints(indices) -> tuple[int, ...]:
    return tuple(int(i) for i in indices)  # NumPy's are no JSON
