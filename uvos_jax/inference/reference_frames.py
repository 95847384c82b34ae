"""Which frames a model's state is made from, where it wants others than the first one."""

import contextlib
import dataclasses
from pathlib import Path

import flax.linen as nn
import numpy as np

from uvos_jax.inference.flow.estimators import FlowEstimator
from uvos_jax.inference.flow.folder import with_flow
from uvos_jax.video import Source

# Long enough that a model which looks at a video as a whole asks for other frames of it than the first.
_LONG = 10_000


@dataclasses.dataclass(frozen=True)
class ReferenceFrames:
    """The frames that ``init_state`` is given.

    Attributes:
      indices: their indices.
      rule: ``"first frame"`` for models that never want another one; ``"whole video"`` where the model chose from all
        frames; ``"causal"`` where it would have, but the source cannot be looked through before it is segmented.
    """

    indices: tuple[int, ...]
    rule: str


def select_reference_frames(model: nn.Module, source: Source) -> ReferenceFrames:
    """Asks a model for its references in a video; counts the frames of a file, if that matters, by decoding them."""
    if tuple(model.reference_frames(_LONG)) == (0,):
        return ReferenceFrames((0,), "first frame")
    if source.live or not source.rereadable:
        return ReferenceFrames(_ints(model.reference_frames(None)), "causal")
    # The length that a video file states may be wrong, all others are exact.
    known = source.length if source.kind != "file" else None
    length = known or sum(1 for _ in source)
    return ReferenceFrames(_ints(model.reference_frames(length)), "whole video")


def read_reference_frames(source: Source, references: ReferenceFrames, flow: FlowEstimator | Path | None = None,
                    ) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes the references of a source that can be read again.

    Args:
      source: the video.
      references: which frames.
      flow: where their flow comes from, see ``Segmenter``; None for models that want none.

    Returns:
      ``[r, h, w, 3]`` uint8 in their order, and their flow, float32 ``[r, h', w', 2]`` or None.
    """
    wanted, found = set(references.indices), {}
    with contextlib.closing(iter(source)) as frames:
        for i, (frame, its_flow) in enumerate(with_flow(frames, flow, False, wanted.__contains__)):
            if i in wanted:
                found[i] = frame.image, its_flow
            if len(found) == len(wanted):
                break
    images, flows = zip(*(found[i] for i in references.indices), strict=True)
    return np.stack(images), None if flow is None else np.stack(flows)


def _ints(indices) -> tuple[int, ...]:
    return tuple(int(i) for i in indices)  # NumPy's are no JSON
