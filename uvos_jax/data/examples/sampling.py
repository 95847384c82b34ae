"""Frame sampling: the recipes of the papers, and mixtures of datasets.

Every choice is a function of the example index. A cycle has ``sum(shares)`` examples, in which every entry of a
mixture has exactly its share. Within an entry, items follow one random permutation after another, so each is used
once per epoch. A recipe defines the items of a video and expands an item to the frames of a clip.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from uvos_jax.config_schema import Option, boolean, fraction, integer
from uvos_jax.data.storage.store import Video
from uvos_jax.errors import UserError, nearest_hint

# First element of ``purpose``; separates the random streams of one seed.
_CYCLE, _EPOCH, EXAMPLE, SIZE = range(4)
_MAX_LENGTH = 1000  # frames per clip


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Returns a random generator that depends on the arguments alone.

    Args:
        seed: Seed of the run, 0 or more.
        purpose: Non-negative integers that separate this stream from others of the same seed.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=purpose))


def pair(rng: np.random.Generator, video: Video, item: int, *, first: bool = True) -> list[int]:
    """Samples an anchor and the frame to segment (AD-Net, Sec. 4).

    Args:
        rng: Random generator.
        video: The video.
        item: Index of the frame to segment. The first frame is included, as at test time.
        first: Whether the anchor is the first frame of the video, or any other frame.

    Returns:
        ``[anchor, item]``.
    """
    return [0 if first else _others(rng, video, item, 1)[0], item]


def previous(rng: np.random.Generator, video: Video, item: int, *, first: bool = True) -> list[int]:
    """Samples an anchor, the previous frame and the frame to segment (F2Net, Sec. 4).

    Args:
        rng: Random generator.
        video: The video.
        item: Index of the frame to segment; frame 0 is its own previous frame. The previous frame needs no labels.
        first: Whether the anchor is the first frame of the video, or any frame other than ``item``.

    Returns:
        ``[anchor, item - 1, item]``.
    """
    anchor, _ = pair(rng, video, item, first=first)
    return [anchor, max(item - 1, 0), item]


def references(rng: np.random.Generator, video: Video, item: int, *, count: int = 4) -> list[int]:
    """Samples the frame to segment and random references of its video (DPA, Sec. 4: four of them).

    The published code may draw the frame itself or the same reference twice; here all frames differ as long as the
    video is long enough.

    Args:
        rng: Random generator.
        video: The video.
        item: Index of the frame to segment.
        count: Number of references.

    Returns:
        ``[item, reference, ...]``, ``1 + count`` indices.
    """
    return [item, *_others(rng, video, item, count)]


def following(rng: np.random.Generator, video: Video, item: int) -> list[int]:
    """Returns a frame and the next one, between which flow is estimated (RAFT).

    Args:
        rng: Unused.
        video: Unused.
        item: Index of the first frame.

    Returns:
        ``[item, item + 1]``.
    """
    del rng, video
    return [item, item + 1]


def starts(video: Video, length: int) -> Sequence[int]:
    """Returns the items of ``sequence``: positions among the labeled frames where a run can start."""
    if not any(video.objects[t] for t in video.labeled):
        return ()  # no object to track
    return range(max(1, len(video.labeled) - length + 1))


def sequence(rng: np.random.Generator, video: Video, item: int, *, length: int = 3, max_gap: int = 3,
             reverse: float = 0.5) -> list[int]:
    """Samples a reference that shows an object, and a run of frames to segment in order (CFBI, Sec. 4).

    All positions count labeled frames: with every fifth frame labeled, a gap of 1 is five frames. One gap, drawn from
    those that fit, is used for the whole run, as in a video of lower frame rate. A video shorter than the run repeats
    its last frame.

    Args:
        rng: Random generator.
        video: The video.
        item: Position among the labeled frames where the run starts.
        length: Frames in the run.
        max_gap: Maximum distance between consecutive frames of the run, in labeled frames.
        reverse: Probability of reversing time.

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
    """Samples a nearby labeled frame and the frame to segment (D-Net, Sec. 3.1).

    The paper uses the previous frame. Larger gaps and reversed time are ours: they act as additional videos of the same
    objects.

    Args:
        rng: Random generator.
        video: The video.
        item: Index of the frame. A frame without a neighbor on the drawn side uses the nearest end of the video.
        max_gap: Maximum distance between the two frames, in labeled frames.
        reverse: Probability that the neighbor comes later in the video.

    Returns:
        ``[neighbor, item]``.
    """
    labeled = video.labeled
    away = (1 if rng.random() < reverse else -1) * int(rng.integers(1, max_gap + 1))
    return [labeled[min(max(labeled.index(item) + away, 0), len(labeled) - 1)], item]


def still(rng: np.random.Generator, video: Video, item: int, *, length: int = 1) -> list[int]:
    """Repeats one frame; augmented independently, the copies form a clip with a moving camera.

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
    """Returns the items of the recipes whose target is one frame."""
    del options
    return video.labeled


def _others(rng: np.random.Generator, video: Video, item: int, count: int) -> list[int]:
    """Returns ``count`` frames other than ``item``; distinct if the video is long enough."""
    if video.length == 1:
        return [item] * count
    drawn = rng.choice(video.length - 1, count, replace=video.length - 1 < count)
    return [int(t) + (t >= item) for t in drawn]


@dataclass(frozen=True)
class Recipe:
    """A row of ``RECIPES``.

    Attributes:
        options: Options of the recipe.
        frames: ``(rng, video, item, **options) -> indices``.
        items: ``(video, options) -> items`` of a video; each is used once per epoch.
        length: ``(options) -> number of frames`` in a clip.
    """

    options: dict[str, Option]
    frames: Callable[..., list[int]]
    items: Callable[[Video, dict], Sequence[int]]
    length: Callable[[dict], int]


RECIPES = {
    "pair": Recipe({"first": boolean(True)}, pair, _labeled, lambda options: 2),
    "previous": Recipe({"first": boolean(True)}, previous, _labeled, lambda options: 3),
    "references": Recipe({"count": integer(4, 1, _MAX_LENGTH)}, references, _labeled,
                         lambda options: 1 + options["count"]),
    "sequence": Recipe({"length": integer(3, 1, _MAX_LENGTH), "max_gap": integer(3, 1), "reverse": fraction(0.5)},
                       sequence, lambda video, options: starts(video, options["length"]),
                       lambda options: 1 + options["length"]),
    "neighbor": Recipe({"max_gap": integer(3, 1), "reverse": fraction(0.5)}, neighbor, _labeled, lambda options: 2),
    "next": Recipe({}, following, lambda video, options: range(video.length - 1), lambda options: 2),
    "still": Recipe({"length": integer(1, 1, _MAX_LENGTH)}, still, _labeled, lambda options: options["length"]),
}


def choose_videos(videos: Sequence[Video], title: str, exclude: Sequence[str] = (), only: Sequence[str] = ()
                  ) -> list[int]:
    """Selects videos by name.

    Args:
        videos: Videos of a store.
        title: Dataset and split, for messages.
        exclude: Names to leave out.
        only: Names to keep; all if empty.

    Returns:
        Indices into ``videos``, ascending.

    Raises:
        UserError: A name is unknown, or no video is left.
    """
    names = {video.name for video in videos}
    for name in (*exclude, *only):
        if name not in names:
            raise UserError(f"{title} has no sequence '{name}' (in '{'only' if name in only else 'exclude'}')."
                            f"{nearest_hint(name, names)}")
    kept = [v for v, video in enumerate(videos)
            if video.name not in exclude and (not only or video.name in only)]
    if not kept:
        raise UserError(f"No sequence of {title} is left. Change 'only' or 'exclude'.")
    return kept


def entry_of_example(seed: int, number: int, shares: tuple[int, ...]) -> tuple[int, int]:
    """Assigns an example to an entry of a mixture.

    Args:
        seed: Seed of the run.
        number: Global index of the example.
        shares: Integer share of each entry.

    Returns:
        Index of the entry, and the number of its earlier examples.
    """
    cycle, position = divmod(number, sum(shares))
    order = _cycle(seed, cycle, shares)
    entry = int(order[position])
    return entry, cycle * shares[entry] + int(np.count_nonzero(order[:position] == entry))


def alternating_entry(step: int, position: int, batch_size: int, shares: tuple[int, ...]) -> tuple[int, int]:
    """Assigns an example to an entry if entries alternate by batch, ``share`` steps in a row each.

    Args:
        step: Training step.
        position: Position in the global batch.
        batch_size: Examples per step.
        shares: Integer share of each entry; the order depends on ``step % sum(shares)`` alone.

    Returns:
        Index of the entry, and the number of its earlier examples.
    """
    cycle, turn = divmod(step, sum(shares))
    entry = 0
    while turn >= shares[entry]:
        turn -= shares[entry]
        entry += 1
    return entry, (cycle * shares[entry] + turn) * batch_size + position


def epoch_item(seed: int, entry: int, visit: int, count: int) -> int:
    """Returns the item for a visit of a mixture entry; every epoch is a new permutation of all items.

    Args:
        seed: Seed of the run.
        entry: Index of the entry.
        visit: Number of the earlier examples of the entry.
        count: Number of its items.
    """
    epoch, position = divmod(visit, count)
    return int(_epoch(seed, entry, epoch, count)[position])


@lru_cache(64)
def _cycle(seed: int, cycle: int, shares: tuple[int, ...]) -> np.ndarray:
    return generator(seed, _CYCLE, cycle).permutation(np.repeat(np.arange(len(shares)), shares))


@lru_cache(32)
def _epoch(seed: int, entry: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, _EPOCH, entry, epoch).permutation(count)
