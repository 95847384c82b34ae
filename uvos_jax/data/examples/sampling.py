"""Which frames make an example: the recipes of the papers, and mixtures of datasets.

Everything is a function of the number of an example. Examples come in cycles of ``sum(shares)``, in which every part
of a mixture has exactly its share; within a part the items are walked in one permutation after another, so that each
is used once an epoch. A recipe says what an item is and completes it to the frames of a clip.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from uvos_jax.config_schema import Option, boolean, fraction, integer
from uvos_jax.data.storage.store import Video
from uvos_jax.errors import UserError, nearest_hint

# What a random number is for; it keeps the streams of one seed apart.
_CYCLE, _EPOCH, EXAMPLE, SIZE = range(4)
_LONGEST = 1000  # frames of a clip


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Returns random numbers that depend on the arguments alone.

    Args:
        seed: Seed of the run, 0 or more.
        purpose: Numbers of 0 or more that tell this use from others.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=purpose))


def pair(rng: np.random.Generator, video: Video, item: int, *, first: bool = True) -> list[int]:
    """An anchor and the frame to be segmented (AD-Net, Sec. 4).

    Args:
        rng: Random numbers.
        video: The video.
        item: Index of the frame to be segmented; the first frame itself is one of them, as it is in a test.
        first: Whether the anchor is the first frame of the video, or any other frame.

    Returns:
        ``[anchor, item]``.
    """
    return [0 if first else _others(rng, video, item, 1)[0], item]


def previous(rng: np.random.Generator, video: Video, item: int, *, first: bool = True) -> list[int]:
    """An anchor, the frame to be segmented and, between them, the one before it (F2Net, Sec. 4).

    Args:
        rng: Random numbers.
        video: The video.
        item: Index of the frame to be segmented; before the first one comes itself. The frame before needs no labels.
        first: Whether the anchor is the first frame of the video, or any frame other than ``item``.

    Returns:
        ``[anchor, item - 1, item]``.
    """
    anchor, _ = pair(rng, video, item, first=first)
    return [anchor, max(item - 1, 0), item]


def references(rng: np.random.Generator, video: Video, item: int, *, count: int = 4) -> list[int]:
    """The frame to be segmented and random other frames of its video (DPA, Sec. 4: four of them).

    The published code draws them whether or not they are the frame itself; here they differ from it and from each
    other as long as the video has enough frames.

    Args:
        rng: Random numbers.
        video: The video.
        item: Index of the frame to be segmented.
        count: Number of references.

    Returns:
        ``[item, reference, ...]``, ``1 + count`` indices.
    """
    return [item, *_others(rng, video, item, count)]


def following(rng: np.random.Generator, video: Video, item: int) -> list[int]:
    """A frame and the one after it, between which flow is estimated (RAFT).

    Args:
        rng: Unused.
        video: Unused.
        item: Index of the first of the two.

    Returns:
        ``[item, item + 1]``.
    """
    del rng, video
    return [item, item + 1]


def starts(video: Video, length: int) -> Sequence[int]:
    """Items of ``sequence``: positions among the labeled frames at which ``length`` of them can begin."""
    if not any(video.objects[t] for t in video.labeled):
        return ()  # nothing to follow
    return range(max(1, len(video.labeled) - length + 1))


def sequence(rng: np.random.Generator, video: Video, item: int, *, length: int = 3, max_gap: int = 3,
             reverse: float = 0.5) -> list[int]:
    """A reference frame that shows an object, and a run of frames to be segmented one after the other (CFBI, Sec. 4).

    All positions count labeled frames, so that a gap of 1 is one of five frames where every fifth is labeled. One
    gap holds for the whole run, as for a video of a lower rate; it is drawn from those that fit. A video that is
    shorter than the run repeats its last frame.

    Args:
        rng: Random numbers.
        video: The video.
        item: Position among the labeled frames at which the run begins.
        length: Frames of the run.
        max_gap: Largest distance of two of them.
        reverse: Probability that time runs backwards.

    Returns:
        ``[reference, frame, ...]``, ``1 + length`` indices.
    """
    labeled = video.labeled
    visible = [t for t in labeled if video.objects[t]]
    reference = visible[rng.integers(len(visible))]
    room = (len(labeled) - 1 - item) // max(1, length - 1)
    gap = 1 + int(rng.integers(min(max_gap, max(1, room))))
    run = [labeled[min(item + i * gap, len(labeled) - 1)] for i in range(length)]
    return [reference, *(run[::-1] if rng.random() < reverse else run)]


def neighbor(rng: np.random.Generator, video: Video, item: int, *, max_gap: int = 3, reverse: float = 0.5
              ) -> list[int]:
    """A labeled frame and, before it, another one from nearby (D-Net, Sec. 3.1).

    The paper has the previous frame; larger gaps and time that runs backwards, not in the paper, are other videos of
    the same objects.

    Args:
        rng: Random numbers.
        video: The video.
        item: Index of the frame; where there is none before it, it is its own neighbor.
        max_gap: Largest distance of the two, counted in labeled frames.
        reverse: Probability that the neighbor comes later in the video.

    Returns:
        ``[neighbor, item]``.
    """
    labeled = video.labeled
    away = (1 if rng.random() < reverse else -1) * int(rng.integers(1, max_gap + 1))
    return [labeled[min(max(labeled.index(item) + away, 0), len(labeled) - 1)], item]


def still(rng: np.random.Generator, video: Video, item: int, *, length: int = 1) -> list[int]:
    """One frame, ``length`` times; augmented independently they make a clip of a moving camera.

    Args:
        rng: Unused.
        video: Unused.
        item: Index of the frame.
        length: Number of repetitions.

    Returns:
        ``[item] * length``.
    """
    del rng, video
    return [item] * length


def _labeled(video: Video, options: dict) -> Sequence[int]:
    """Items of the recipes whose target is one frame."""
    del options
    return video.labeled


def _others(rng: np.random.Generator, video: Video, item: int, count: int) -> list[int]:
    """Returns ``count`` frames of a video other than ``item``; distinct, and other, where there are enough."""
    if video.length == 1:
        return [item] * count
    drawn = rng.choice(video.length - 1, count, replace=video.length - 1 < count)
    return [int(t) + (t >= item) for t in drawn]


@dataclass(frozen=True)
class Recipe:
    """A row of ``RECIPES``.

    Attributes:
        options: The options it knows.
        frames: ``(rng, video, item, **options) -> indices``.
        items: ``(video, options) -> items`` of a video; each is used once an epoch.
        length: ``(options) -> number of frames`` of a clip.
    """

    options: dict[str, Option]
    frames: Callable[..., list[int]]
    items: Callable[[Video, dict], Sequence[int]]
    length: Callable[[dict], int]


RECIPES = {
    "pair": Recipe({"first": boolean(True)}, pair, _labeled, lambda options: 2),
    "previous": Recipe({"first": boolean(True)}, previous, _labeled, lambda options: 3),
    "references": Recipe({"count": integer(4, 1, _LONGEST)}, references, _labeled,
                         lambda options: 1 + options["count"]),
    "sequence": Recipe({"length": integer(3, 1, _LONGEST), "max_gap": integer(3, 1), "reverse": fraction(0.5)},
                       sequence, lambda video, options: starts(video, options["length"]),
                       lambda options: 1 + options["length"]),
    "neighbor": Recipe({"max_gap": integer(3, 1), "reverse": fraction(0.5)}, neighbor, _labeled, lambda options: 2),
    "next": Recipe({}, following, lambda video, options: range(video.length - 1), lambda options: 2),
    "still": Recipe({"length": integer(1, 1, _LONGEST)}, still, _labeled, lambda options: options["length"]),
}


def choose_videos(videos: Sequence[Video], what: str, exclude: Sequence[str] = (), only: Sequence[str] = ()
                  ) -> list[int]:
    """Picks the videos of a part by name.

    Args:
        videos: Those of its store.
        what: Dataset and split, for messages.
        exclude: Names to leave out.
        only: Names to keep; all if empty.

    Returns:
        Their positions, ascending.

    Raises:
        UserError: A name is not in the store, or nothing is left.
    """
    names = {video.name for video in videos}
    for name in (*exclude, *only):
        if name not in names:
            raise UserError(f"{what} has no sequence '{name}' to be {'kept' if name in only else 'left out'}."
                            f"{nearest_hint(name, names)}")
    kept = [v for v, video in enumerate(videos)
            if video.name not in exclude and (not only or video.name in only)]
    if not kept:
        raise UserError(f"No sequence of {what} is left.")
    return kept


def part_of(seed: int, number: int, shares: tuple[int, ...]) -> tuple[int, int]:
    """Says of which part of a mixture an example is.

    Args:
        seed: Seed of the run.
        number: Global number of the example.
        shares: Whole-number share of each part.

    Returns:
        The part, and how many examples of it came before.
    """
    cycle, place = divmod(number, sum(shares))
    order = _cycle(seed, cycle, shares)
    part = int(order[place])
    return part, cycle * shares[part] + int(np.count_nonzero(order[:place] == part))


def alternating_part(step: int, place: int, batch_size: int, shares: tuple[int, ...]) -> tuple[int, int]:
    """Returns the mixture part of an example if parts alternate by batch: each has ``share`` steps in a row.

    Args:
        step: Step of the training.
        place: Place in the global batch.
        batch_size: Examples of a step.
        shares: Whole-number share of each part; what comes when follows from ``step % sum(shares)`` alone.

    Returns:
        The part, and how many examples of it came before.
    """
    cycle, turn = divmod(step, sum(shares))
    part = 0
    while turn >= shares[part]:
        turn -= shares[part]
        part += 1
    return part, (cycle * shares[part] + turn) * batch_size + place


def item_of(seed: int, part: int, visit: int, count: int) -> int:
    """Says which item a visit of a part gets: a new permutation of all of them every epoch.

    Args:
        seed: Seed of the run.
        part: The part.
        visit: Number of the part's examples before this one.
        count: Number of its items.
    """
    epoch, place = divmod(visit, count)
    return int(_epoch(seed, part, epoch, count)[place])


@lru_cache(64)
def _cycle(seed: int, cycle: int, shares: tuple[int, ...]) -> np.ndarray:
    return generator(seed, _CYCLE, cycle).permutation(np.repeat(np.arange(len(shares)), shares))


@lru_cache(32)
def _epoch(seed: int, part: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, _EPOCH, part, epoch).permutation(count)
