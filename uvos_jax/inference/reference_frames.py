"""Selection and decoding of the reference frames that a model's initial state is built from."""

import contextlib
import dataclasses
from pathlib import Path

import flax.linen as nn
import numpy as np

from uvos_jax.inference.flow.estimators import FlowEstimator
from uvos_jax.inference.flow.folder import with_flow
from uvos_jax.video import Source

# A length at which every model that uses more than the first frame asks for other frames, too.
_LONG_VIDEO = 10_000


@dataclasses.dataclass(frozen=True)
class ReferenceFrames:
    """The frames that ``init_state`` receives.

    Attributes:
        indices: Their indices in the video.
        rule: ``"first frame"`` if the model uses only that one; ``"whole video"`` if it selected from all frames;
            ``"causal"`` if it would have, but the source cannot be read ahead.
    """

    indices: tuple[int, ...]
    rule: str


def select_reference_frames(model: nn.Module, source: Source) -> ReferenceFrames:
    """Asks a model for its reference frames in a video.

    If the selection depends on the length of a video file, the frames are counted by decoding them.
    """
    if tuple(model.reference_frames(_LONG_VIDEO)) == (0,):
        return ReferenceFrames((0,), "first frame")
    if source.live or not source.rereadable:
        return ReferenceFrames(_to_ints(model.reference_frames(None)), "causal")
    # The length in the header of a video file may be wrong; other lengths are exact.
    exact = source.length if source.kind != "file" else None
    length = exact or sum(1 for _ in source)
    return ReferenceFrames(_to_ints(model.reference_frames(length)), "whole video")


def read_reference_frames(source: Source, references: ReferenceFrames, flow: FlowEstimator | Path | None = None,
                          ) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes the reference frames of a source that can be read twice.

    Args:
        source: The video.
        references: Which frames.
        flow: Source of their flow, see ``Segmenter``; None for models without flow input.

    Returns:
        uint8 ``[r, h, w, 3]`` in the order of ``references``, and their flow, float32 ``[r, h', w', 2]`` or None.
    """
    wanted, decoded = set(references.indices), {}
    with contextlib.closing(iter(source)) as frames:
        for i, (frame, frame_flow) in enumerate(with_flow(frames, flow, False, wanted.__contains__)):
            if i in wanted:
                decoded[i] = frame.image, frame_flow
            if len(decoded) == len(wanted):
                break
    images, flows = zip(*(decoded[i] for i in references.indices), strict=True)
    return np.stack(images), None if flow is None else np.stack(flows)


def _to_ints(indices) -> tuple[int, ...]:
    return tuple(int(i) for i in indices)  # NumPy integers cannot be written as JSON
