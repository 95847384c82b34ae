"""What an opened video is: a named sequence of frames of one size."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from uvos_jax.errors import UserError

DEFAULT_FPS = 24.0


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        name: The stem of its image file, or its five-digit index ("00000") where it has no file of its own.
        image: uint8 [h, w, 3], RGB.
    """

    name: str
    image: np.ndarray


@dataclass
class Source:
    """The frames of one video, made by ``open_source`` and read by iterating.

    Every iteration starts anew, unless ``rereadable`` is False. All frames have the size of the first.

    Attributes:
        name: A short name of the video, such as the stem of its file.
        kind: Where the frames come from; arrays count as "iterator".
        start: Begins a new pass over the frames; iterate over the source itself, which checks them.
        fps: The average rate of a video file; 24.0 for all else.
        length: Number of frames. Exact for a folder, a glob, a single image and arrays; for a video file an
            estimate good enough for a progress bar; None where nothing is known.
        live: True if frames come one by one from an iterator of unknown length, perhaps a camera:
            whoever reads them must not hold them back.
        rereadable: False for a one-shot iterator.
        paths: The files and folders that the frames are read from; empty for arrays.
    """

    name: str
    kind: Literal["file", "folder", "glob", "iterator"]
    start: Callable[[], Generator[Frame, None, None]] = field(repr=False)
    fps: float = DEFAULT_FPS
    length: int | None = None
    live: bool = False
    rereadable: bool = True
    paths: tuple[Path, ...] = ()
    _spent: bool = field(default=False, init=False, repr=False)

    def __iter__(self) -> Iterator[Frame]:
        """Starts a pass over the frames.

        Raises:
            UserError: At once, on the second pass over a one-shot iterator. While reading: a frame cannot
                be decoded or differs from the first one in size, or there is no frame at all.
        """
        if self._spent:
            raise UserError("these frames came from an iterator that can be read only once; give a list.")
        self._spent = not self.rereadable
        return self._checked_frames()

    def _checked_frames(self) -> Iterator[Frame]:
        first = None
        with contextlib.closing(self.start()) as frames:
            for frame in frames:
                first = first or frame
                if frame.image.shape != first.image.shape:
                    raise UserError(
                        f"frame {frame.name!r} is {_size(frame)} but the first one, {first.name!r}, is "
                        f"{_size(first)} (width x height); all frames of a video must have one size."
                    )
                yield frame
        if first is None:
            raise UserError(f"the source {self.name!r} holds no frame.")


def _size(frame: Frame) -> str:
    height, width = frame.image.shape[:2]
    return f"{width}x{height}"
