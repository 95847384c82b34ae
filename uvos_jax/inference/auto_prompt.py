"""A prompt without a user: an unsupervised model segments frames until it finds an object (``--first-mask auto``)."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.video import Frame, Source

_MAX_FRAMES = 100  # frames that are searched
_MIN_AREA = 1e-3  # share of the frame's pixels that the foreground must cover


class AutoPrompt(NamedTuple):
    """A mask found by an unsupervised model.

    Attributes:
        index: Index of its frame in the run.
        labels: uint8 ``[h, w]``, 1 for the object and 0 for background.
    """

    index: int
    labels: np.ndarray


class AutoPromptFinder:
    """Finds the first frame in which an unsupervised segmenter segments an object.

    Attributes:
        identity: The segmenter and its weights, as text.
        note: A sentence for the user once an object has been found; else None.
    """

    def __init__(self, segmenter: Any, source: Source):
        """Keeps the segmenter.

        Args:
            segmenter: A ``Segmenter`` whose model needs no prompt.
            source: The video.
        """
        self._segmenter, self._source = segmenter, source
        self._previous: np.ndarray | None = None
        self._searched = 0
        self.identity = f"auto: {segmenter.name} {segmenter.weights_digest}"
        self.note: str | None = None

    def search(self, on_start: Callable[[], object] = lambda: None) -> AutoPrompt:
        """Searches a video that can be read twice.

        Args:
            on_start: See ``Segmenter.run``.

        Raises:
            UserError: If no object is found in the first 100 frames.
        """
        with contextlib.closing(self._segmenter.run(self._source, on_start=on_start)) as results:
            for index, result in enumerate(itertools.islice(results, _MAX_FRAMES)):
                if result.frame.broken is None and _has_object(result.labels):
                    return self._found(index, result.frame, result.labels)
        raise self._error(index + 1)

    def search_frame(self, index: int, frame: Frame) -> AutoPrompt | None:
        """Segments one frame of a stream that can be read only once.

        A model with flow input segments the pair of this frame and the last valid one.

        Args:
            index: Index of the frame in the run.
            frame: The frame; frames must come in order.

        Returns:
            The prompt, or None if the frame shows no object.

        Raises:
            UserError: If this was the 100th frame without an object.
        """
        if frame.broken is not None:
            return None
        images = [frame.image] if self._previous is None else [self._previous, frame.image]
        labels = self._segmenter.segment(np.stack(images))[-1]
        if "flow" in self._segmenter.model.inputs:
            self._previous = frame.image
        self._searched += 1
        if _has_object(labels):
            return self._found(index, frame, labels)
        if self._searched == _MAX_FRAMES:
            raise self._error(self._searched)
        return None

    def _found(self, index, frame, labels):
        self.note = f"{self._segmenter.name} found an object in frame {frame.name}; it is tracked from there."
        return AutoPrompt(index, labels)

    def _error(self, searched):
        frames = "frame" if searched == 1 else f"{searched} frames"
        return UserError(f"{self._segmenter.name} found no object in the first {frames} of '{self._source.name}'. Give"
                         " a mask (--first-mask PNG) or another model that finds one (--first-model, --first-weights).")


def _has_object(labels):
    return (labels > 0).mean() >= _MIN_AREA
