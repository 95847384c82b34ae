"""Which frames of a video are asked for: from where, to where, every how many."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from uvos_jax.errors import UserError

Item = TypeVar("Item")
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)s?")

_LATEST = 1e9  # seconds; beyond any video, and safe to compute with


@dataclass(frozen=True)
class Span:
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


def span_of(start: int | str | None = None, end: int | str | None = None, every: int = 1) -> Span:
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
    span = Span(_position("start", start or 0), None if end is None else _position("end", end), every)
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
