"""From the pictures that a reader comes by to the frames it gives: which are kept, and what stands for broken ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.video.source import Frame
from uvos_jax.video.span import Span

# Pixels of the largest frame: room for 8K. The header of a broken file may ask for more than there is memory.
LARGEST_FRAME = 1 << 26


class Damaged(UserError):
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
        load: Gives the array, uint8 [h, w, 3]; raises ``Damaged`` if it cannot.
        time: As in ``Frame``.
        damage: What is known to be wrong with it before ``load`` is called.
    """

    name: str
    load: Callable[[], np.ndarray]
    time: float | None = None
    damage: Damaged | None = None


def frames_of(
    pictures: Iterator[Picture], span: Span, fps: float, on_error: Literal["stop", "skip"]
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
    leading: list[tuple[Picture, Damaged]] = []
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
        except Damaged as damage:
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


def _another_size(name: str, image: np.ndarray, first_name: str, first: np.ndarray) -> Damaged:
    size, wanted = (f"{array.shape[1]}x{array.shape[0]}" for array in (image, first))
    return Damaged(
        f"frame {name!r} is {size} but the first one, {first_name!r}, is {wanted} (width x height); "
        "give frames of one size.",
        f"it is {size}, not {wanted}",
    )
