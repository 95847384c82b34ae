"""What an opened video is: a named sequence of frames of one size."""

import contextlib
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

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


Item = TypeVar("Item")
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)s?")

_LATEST = 1e9  # seconds; beyond any video, and safe to compute with


@dataclass(frozen=True)
class FrameRange:
    """A stretch of a video. A position is the index of a frame (int) or seconds from the start (float).

    Attributes:
        start: The first position that belongs to it.
        end: The first position behind it; None is the end of the video.
        every: Of the frames between, each ``every``-th is kept, the first one too.
    """

    start: int | float = 0
    end: int | float | None = None
    every: int = 1

    def select(self, items: Iterable[Item], fps: float) -> Iterator[tuple[Item, bool]]:
        """Yields the items between start and end, each with whether it is kept; reads none behind the end.

        Args:
            items: The frames of a video, each with a ``time`` in seconds or None.
            fps: Tells the time of those that have none.

        Raises:
            UserError: There are frames, and none of them lies in the span.
        """
        inside = index = 0
        time = 0.0
        for index, item in enumerate(items, 1):
            time = (index - 1) / fps if item.time is None else item.time
            if self.end is not None and not _before(index - 1, time, self.end):
                break
            if not _before(index - 1, time, self.start):
                yield item, inside % self.every == 0
                inside += 1
        else:
            if index and not inside:
                raise UserError(
                    f"the start, {_shown(self.start)}, lies behind the end of the video, which has {_many(index)} "
                    f"(the last one at {time:.3f} s); give an earlier start."
                )
        if not inside and index:
            raise UserError(
                f"no frame lies between the start, {_shown(self.start)}, and the end, {_shown(self.end)}; "
                f"the video has {_many(index)} up to there."
            )

    def count(self, length: int, fps: float) -> int:
        """Returns how many of ``length`` frames at a steady rate are kept."""
        first = _first_index(self.start, fps)
        behind = length if self.end is None else min(length, _first_index(self.end, fps))
        return max(0, -(-(behind - first) // self.every))


def frame_range(start: int | str | None = None, end: int | str | None = None, every: int = 1) -> FrameRange:
    """Reads what a user asked for.

    Args:
        start: Index of the first frame, counted from 0, or a time: "90" and "90s" are seconds, "1:05" is minutes and
            seconds, "1:02:03.5" hours too. None is the start of the video.
        end: The same for the first frame that is not wanted any more; None is the end of the video.
        every: 5 keeps one frame of five.

    Raises:
        UserError: They cannot be read, or no frame can lie between them.
    """
    if not _is_index(every) or every < 1:
        raise UserError(f"'every' is {every!r}; it must be a whole number of frames, at least 1.")
    span = FrameRange(_position("start", start or 0), None if end is None else _position("end", end), every)
    if span.end is not None and isinstance(span.end, type(span.start)) and span.end <= span.start:
        raise UserError(f"the end, {_shown(span.end)}, does not lie behind the start, {_shown(span.start)}.")
    if span.end == 0:
        raise UserError("the end is 0, which leaves no frame; give a later end.")
    return span


def _position(name: str, given: object) -> int | float:
    if _is_index(given) and given >= 0:
        return given
    match = _TIME.fullmatch(given.strip()) if isinstance(given, str) else None
    if match is None:
        # Text is always a time; nobody who writes text, as on the command line, can give an index.
        wanted = "" if isinstance(given, str) else "the index of a frame or "
        raise UserError(f"the {name} is {given!r}; give {wanted}a time such as '90', '12.5s', '1:05' or '1:02:03.5'.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return min(3600 * hours + 60 * minutes + seconds, _LATEST)


def _is_index(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _before(index: int, time: float, position: int | float) -> bool:
    return (time if isinstance(position, float) else index) < position


def _first_index(position: int | float, fps: float) -> int:
    """Returns the first index that is not before a position, at a steady rate."""
    if not isinstance(position, float):
        return position
    index = max(0, math.ceil(position * fps) - 1)  # rounding may have put it one too high
    while _before(index, index / fps, position):
        index += 1
    return index


def _shown(position: int | float) -> str:
    return f"{position:g} s" if isinstance(position, float) else f"frame {position}"


def _many(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


# Pixels of the largest frame: room for 8K. The header of a broken file may ask for more than there is memory.
LARGEST_FRAME = 1 << 26


class FrameError(UserError):
    """One frame cannot be had, while those behind it may be whole.

    Attributes:
        why: What is wrong with it, in a few words.
    """

    def __init__(self, sentence: str, why: str):
        super().__init__(sentence)
        self.why = why


@dataclass(frozen=True)
class Picture:
    """A frame that a reader has come by and not yet turned into an array.

    Attributes:
        name: As in ``Frame``.
        load: Gives the array, uint8 [h, w, 3]; raises ``FrameError`` if it cannot.
        time: As in ``Frame``.
        damage: What is known to be wrong with it before ``load`` is called.
    """

    name: str
    load: Callable[[], np.ndarray]
    time: float | None = None
    damage: FrameError | None = None


def frames_of(
    pictures: Iterator[Picture], span: FrameRange, fps: float, on_error: Literal["stop", "skip"]
) -> Iterator[Frame]:
    """Yields the frames of a span; the pictures beside it are never turned into arrays.

    Args:
        pictures: All pictures of a video.
        span: Which of them to keep.
        fps: Their rate, which tells the time of those without one.
        on_error: "stop" raises at the first broken picture within the span; "skip" gives the last good image in its
            place, and the first good one for those that come before it.

    Raises:
        UserError: A picture is broken or of another size than the first (with "stop"); every one is (with "skip");
            the span holds none.
    """
    first: tuple[str, np.ndarray] | None = None
    held = None
    leading: list[tuple[Picture, FrameError]] = []
    for picture, kept in span.select(pictures, fps):
        try:
            # A broken picture of a video file stops even where it would be dropped: later ones build on it.
            if picture.damage:
                raise picture.damage
            if not kept:
                continue
            image = picture.load()
            if first is not None and image.shape != first[1].shape:
                raise _another_size(picture.name, image, *first)
        except FrameError as damage:
            if on_error == "stop":
                raise UserError(
                    f"{str(damage).removesuffix('.')}, or go on without it: --on-error skip (Python: on_error='skip')."
                ) from damage
            if kept and held is None:
                leading.append((picture, damage))
            elif kept:
                yield Frame(picture.name, held, picture.time, damage.why)
            continue
        if first is None:
            first = picture.name, image
            yield from (Frame(other.name, image, other.time, damage.why) for other, damage in leading)
        held = image
        yield Frame(picture.name, image, picture.time)
    if first is None and leading:
        raise UserError(f"not one frame can be used: {leading[0][1]}")


def _another_size(name: str, image: np.ndarray, first_name: str, first: np.ndarray) -> FrameError:
    size, wanted = (f"{array.shape[1]}x{array.shape[0]}" for array in (image, first))
    return FrameError(
        f"frame {name!r} is {size} but the first one, {first_name!r}, is {wanted} (width x height); "
        "give frames of one size.",
        f"it is {size}, not {wanted}",
    )
