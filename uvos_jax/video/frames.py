"""Frames of a video: an opened source, the range that is read, and the decoding of that range.

A reader yields a ``LazyFrame`` for each frame of a video. ``decode_range`` turns those inside a ``FrameRange`` into
``Frame`` objects and treats the ones that cannot be decoded. A ``Source`` is what a caller iterates over.
"""

import contextlib
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from uvos_jax.errors import UserError, pluralize

DEFAULT_FPS = 24.0
# Pixels of the largest frame, room for 8K. The header of a broken file may ask for more than the memory holds.
LARGEST_FRAME = 1 << 26
OnError = Literal["stop", "skip"]
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)s?")
_LATEST = 1e9  # seconds; later than the end of any video, and small enough to compute with
Item = TypeVar("Item")


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        name: The stem of its image file, or its five-digit index ("00000") in a source without image files.
        image: uint8 [h, w, 3], RGB.
        time: Seconds since the first frame, by the time stamps of the video (for a camera: by the clock). None if
            there are no time stamps.
        broken: Why the frame could not be decoded, or None. A broken frame has the last good image before it, or the
            first good image of the video if there is none before it.
    """

    name: str
    image: np.ndarray = field(repr=False)
    time: float | None = None
    broken: str | None = None


class FrameError(UserError):
    """One frame cannot be read; the frames after it may be intact.

    Attributes:
        reason: What is wrong with the frame, in a few words.
    """

    def __init__(self, message: str, reason: str):
        """Creates the error.

        Args:
            message: The whole message.
            reason: What is wrong with the frame, in a few words.
        """
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class LazyFrame:
    """A frame that a reader has reached and not yet decoded to an array.

    Attributes:
        name: As in ``Frame``.
        load: Returns the image, uint8 [h, w, 3], RGB; raises ``FrameError`` if it cannot be decoded.
        time: As in ``Frame``.
        error: Set if the reader already knows that the frame cannot be decoded.
    """

    name: str
    load: Callable[[], np.ndarray]
    time: float | None = None
    error: FrameError | None = None


@dataclass
class Source:
    """The frames of one video; opened by ``open_source`` and read by iterating.

    Every iteration starts at the first frame, unless ``rereadable`` is False. All frames have the same size.

    Attributes:
        name: A short name of the video, such as the stem of its file.
        kind: Where the frames come from; arrays count as "iterator".
        start: Begins a new pass over the frames. Iterate over the source instead of calling it.
        fps: Frames per second, divided by the ``every`` of ``ClipOptions``: the average rate of a video file, a stream
            or stdin, the rate that a camera reports, and 24.0 for other sources.
        length: Number of frames: exact for image files and arrays, an estimate for a video file, None if unknown.
        live: True if frames arrive one by one from a camera, a stream or an iterator of unknown length, so that a
            consumer must not hold them back.
        rereadable: False for a camera, a stream, stdin and a one-shot iterator.
        paths: The files and folders that the frames are read from; empty for other sources.
    """

    name: str
    kind: Literal["file", "folder", "glob", "iterator", "camera", "stream", "stdin"]
    start: Callable[[], Generator[Frame, None, None]] = field(repr=False)
    fps: float = DEFAULT_FPS
    length: int | None = None
    live: bool = False
    rereadable: bool = True
    paths: tuple[Path, ...] = ()
    _exhausted: bool = field(default=False, init=False, repr=False)

    def __iter__(self) -> Iterator[Frame]:
        """Starts a pass over the frames.

        Raises:
            UserError: Immediately, on the second pass over a source that can be read once. While reading: a frame
                cannot be decoded or differs from the first frame in size, or the source has no frame.
        """
        if self._exhausted:
            remedy = "Give a list" if self.kind == "iterator" else "Open it again"
            raise UserError(f"Cannot read the {self.kind} {self.name!r} a second time. {remedy}.")
        self._exhausted = not self.rereadable
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        empty = True
        with contextlib.closing(self.start()) as frames:
            for frame in frames:
                empty = False
                yield frame
        if empty:
            raise UserError(f"The source {self.name!r} has no frames.")


@dataclass(frozen=True)
class FrameRange:
    """A range of a video. A position is a frame index (int) or seconds from the start (float).

    Attributes:
        start: First position inside the range.
        end: First position after the range; None is the end of the video.
        every: Keep every ``every``-th frame of the range, beginning with its first.
    """

    start: int | float = 0
    end: int | float | None = None
    every: int = 1

    def select(self, items: Iterable[Item], fps: float) -> Iterator[tuple[Item, bool]]:
        """Yields the items inside the range, each with whether it is kept; reads none after the end.

        Args:
            items: The frames of a video, each with a ``time`` in seconds or None.
            fps: Frame rate that times the items without a time stamp.

        Raises:
            UserError: There are frames, but none inside the range.
        """
        inside = index = 0
        time = 0.0
        for index, item in enumerate(items, 1):
            time = (index - 1) / fps if item.time is None else item.time
            if self.end is not None and not _is_before(index - 1, time, self.end):
                break
            if not _is_before(index - 1, time, self.start):
                yield item, inside % self.every == 0
                inside += 1
        else:
            if index and not inside:
                raise UserError(
                    f"The start ({_position_text(self.start)}) is after the end of the video, which has "
                    f"{pluralize(index, 'frame')}, the last one at {time:.3f} s. Give an earlier start."
                )
        if not inside and index:
            raise UserError(
                f"There is no frame between the start ({_position_text(self.start)}) and the end "
                f"({_position_text(self.end)}); the video has {pluralize(index, 'frame')} up to the end. "
                "Widen the range."
            )

    def count(self, length: int, fps: float) -> int:
        """Returns how many of ``length`` frames at a constant frame rate are kept."""
        first = _first_index(self.start, fps)
        end = length if self.end is None else min(length, _first_index(self.end, fps))
        return max(0, -(-(end - first) // self.every))


def parse_frame_range(start: int | str | None = None, end: int | str | None = None, every: int = 1) -> FrameRange:
    """Parses the range options of a user.

    Args:
        start: Index of the first frame, counted from 0, or a time: "90" and "90s" are seconds, "1:05" is minutes and
            seconds, "1:02:03.5" includes hours. None is the start of the video.
        end: Index or time of the first frame after the range; None is the end of the video.
        every: Keep one frame in this many.

    Raises:
        UserError: An option cannot be parsed, or the range is empty.
    """
    if not _is_index(every) or every < 1:
        raise UserError(f"'every' must be a whole number of frames, at least 1; got {every!r}.")
    end_position = None if end is None else _parse_position("end", end)
    parsed = FrameRange(_parse_position("start", start or 0), end_position, every)
    if parsed.end is not None and isinstance(parsed.end, type(parsed.start)) and parsed.end <= parsed.start:
        raise UserError(f"The end ({_position_text(parsed.end)}) must be after the start "
                        f"({_position_text(parsed.start)}).")
    if parsed.end == 0:
        raise UserError("The end is 0, so no frame is left. Give a later end.")
    return parsed


def decode_range(
    frames: Iterator[LazyFrame], frame_range: FrameRange, fps: float, on_error: OnError
) -> Iterator[Frame]:
    """Decodes the frames inside a range; frames outside it are never turned into arrays.

    Args:
        frames: All frames of a video.
        frame_range: The frames to keep.
        fps: Frame rate that times the frames without a time stamp.
        on_error: "stop" raises at the first broken frame inside the range. "skip" repeats the last good image in its
            place, or the first good image for broken frames before it.

    Yields:
        The kept frames.

    Raises:
        UserError: With "stop", a frame is broken or differs from the first frame in size. With "skip", all frames are
            broken. The range has no frame.
    """
    first: tuple[str, np.ndarray] | None = None
    last_good = None
    leading: list[tuple[LazyFrame, FrameError]] = []  # broken frames before the first good one
    for frame, kept in frame_range.select(frames, fps):
        try:
            # Raised even for a frame that is not kept: later frames of a video file build on it.
            if frame.error:
                raise frame.error
            if not kept:
                continue
            image = frame.load()
            if first is not None and image.shape != first[1].shape:
                raise _size_error(frame.name, image, *first)
        except FrameError as error:
            if on_error == "stop":
                remedy = "To continue without it: --on-error skip (Python: on_error='skip')."
                raise UserError(f"{error} {remedy}") from error
            if kept and last_good is None:
                leading.append((frame, error))
            elif kept:
                yield Frame(frame.name, last_good, frame.time, error.reason)
            continue
        if first is None:
            first = frame.name, image
            yield from (Frame(other.name, image, other.time, error.reason) for other, error in leading)
        last_good = image
        yield Frame(frame.name, image, frame.time)
    if first is None and leading:
        raise UserError(f"No frame can be decoded. {leading[0][1]}")


def _parse_position(name: str, value: object) -> int | float:
    if _is_index(value) and value >= 0:
        return value
    match = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    # Text is always a time: the command line cannot give an index.
    expected = "" if isinstance(value, str) else "a frame index or "
    expected += "a time such as '90', '12.5s', '1:05' or '1:02:03.5'"
    if match is None:
        raise UserError(f"The {name} is {value!r}. Give {expected}.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    if (match[1] and minutes >= 60) or (match[2] and seconds >= 60):
        raise UserError(f"The {name} is {value!r}, but numbers after a colon must be below 60. Give {expected}.")
    return min(3600 * hours + 60 * minutes + seconds, _LATEST)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_before(index: int, time: float, position: int | float) -> bool:
    return (time if isinstance(position, float) else index) < position


def _first_index(position: int | float, fps: float) -> int:
    """Returns the first index that is not before a position, at a constant frame rate."""
    if not isinstance(position, float):
        return position
    index = max(0, math.ceil(position * fps) - 1)  # rounding may have put it one too high
    while _is_before(index, index / fps, position):
        index += 1
    return index


def _position_text(position: int | float) -> str:
    return f"{position:g} s" if isinstance(position, float) else f"frame {position}"


def _size_error(name: str, image: np.ndarray, first_name: str, first: np.ndarray) -> FrameError:
    size, expected = (f"{array.shape[1]}x{array.shape[0]}" for array in (image, first))
    return FrameError(
        f"Frame {name!r} is {size} but the first frame, {first_name!r}, is {expected} (width x height). "
        "Give frames of one size.",
        f"its size is {size}, not {expected}",
    )
