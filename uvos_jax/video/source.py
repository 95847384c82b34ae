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
        time: Seconds from the first frame of the video by its own time stamps (a camera: by the clock); None where
            there are none.
        broken: Why it could not be decoded; then the image is the last good one, or the first good one where none
            came before. None for a frame that is whole.
    """

    name: str
    image: np.ndarray
    time: float | None = None
    broken: str | None = None


@dataclass
class Source:
    """The frames of one video, made by ``open_source`` and read by iterating.

    Every iteration starts anew, unless ``rereadable`` is False. All frames have the size of the first.

    Attributes:
        name: A short name of the video, such as the stem of its file.
        kind: Where the frames come from; arrays count as "iterator".
        start: Begins a new pass over the frames; iterate over the source itself.
        fps: Frames per second: the average rate of a video file, a stream or stdin, what a camera says of itself,
            and 24.0 for all else; divided by ``every`` where only one of so many is given.
        length: Number of frames. Exact for a folder, a glob, image files and arrays; for a video file an
            estimate good enough for a progress bar; None where nothing is known.
        live: True if frames come one by one from a camera, a stream or an iterator of unknown length:
            whoever reads them must not hold them back.
        rereadable: False for a camera, a stream, stdin and a one-shot iterator.
        paths: The files and folders that the frames are read from; empty for all that is no file.
    """

    name: str
    kind: Literal["file", "folder", "glob", "iterator", "camera", "stream", "stdin"]
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
            UserError: At once, on the second pass over what can be read once. While reading: a frame cannot
                be decoded or differs from the first one in size, or there is no frame at all.
        """
        if self._spent:
            what = "an iterator that can be read only once; give a list" if self.kind == "iterator" else (
                f"a {self.kind} that can be read only once; open it again"
            )
            raise UserError(f"these frames came from {what}.")
        self._spent = not self.rereadable
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        empty = True
        with contextlib.closing(self.start()) as frames:
            for frame in frames:
                empty = False
                yield frame
        if empty:
            raise UserError(f"the source {self.name!r} holds no frame.")
