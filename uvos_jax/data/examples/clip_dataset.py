"""Training examples: sampling, decoding, geometry, color and labels put together, by the number of an example.

Examples are NumPy:

- ``"frames"``: uint8 [t, h, w, 3], RGB;
- ``"labels"``: uint8 [t, h, w], 0 background, ids, 255 void;
- ``"flow"``: float32 [t, h, w, 2], (dx, dy) in pixels to the following frame of the video, if asked for;
- ``"categories"``: uint8 [objects], of objects 1, 2, ... from 1 in the order of the configuration, 0 where there is no
  such object, if asked for;
- ``"still"``: bool, whether the example is a picture (of the recipe "still"), not a video;
- ``"example"``: int64, global number of the example.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from uvos_jax.config_schema import (
    REQUIRED,
    Option,
    boolean,
    check_named,
    check_options,
    fraction,
    integer,
    mapping,
    names,
    one_or_more,
    optional,
    size,
)
from uvos_jax.data.examples import color as colors
from uvos_jax.data.examples.geometry import KINDS, options_of, reduction, warp_flow, warp_image, warp_labels
from uvos_jax.data.examples.sampling import (
    EXAMPLE,
    RECIPES,
    SIZE,
    alternating_part,
    choose_videos,
    generator,
    item_of,
    part_of,
)
from uvos_jax.data.storage.store import VOID
from uvos_jax.errors import UserError

Batch = dict[str, np.ndarray]

_LONGEST_CYCLE = 10_000  # examples after which a mixture has its exact shares: the order of one is held in memory
_OBJECTS = integer(None, 1, VOID - 1)
# The options of ``make_clips`` and ``part``.
SETTINGS = {
    "size": one_or_more(size(REQUIRED)), "batch_size": integer(REQUIRED, 1), "seed": integer(REQUIRED, 0, 2**32 - 1),
    "geometry": mapping({"kind": "resize"}), "color": optional(mapping(None)), "flow": boolean(False),
    "paste": fraction(0.0), "alternate": boolean(False), "categories": names(()),
    "objects": Option(None, f"None, 'foreground' or the largest number of objects, {_OBJECTS.expected}",
                      lambda value: value is None or value == "foreground" or _OBJECTS.is_valid(value)),
}
PART_SETTINGS = {"share": integer(1, 1, _LONGEST_CYCLE), "exclude": names(()), "only": names(())}


@dataclass(frozen=True, eq=False)
class Part:
    """A dataset of a mixture; made by ``part``.

    Attributes:
        store: See ``uvos_jax.data.storage.store``.
        what: Its name and split, for messages.
        share: Examples of it, or steps if the parts alternate, in a cycle of the mixture.
        recipe: Name in ``RECIPES``.
        options: All options of the recipe.
        items: int [n, 2], video and the recipe's item.
    """

    store: Any
    what: str
    share: int
    recipe: str
    options: dict
    items: np.ndarray = field(repr=False)


def part(store: Any, recipe: dict, share: int = 1, split: str = "", exclude: Sequence[str] = (),
         only: Sequence[str] = ()) -> Part:
    """Prepares a dataset for a mixture.

    Args:
        store: See ``uvos_jax.data.storage.store``.
        recipe: ``{"name": ..., option: value}``, see ``RECIPES``.
        share: Whole number of examples, or of steps if the parts alternate, in a cycle of the mixture.
        split: Its split, for messages.
        exclude: Sequences to leave out.
        only: Sequences to keep; all if empty.

    Raises:
        UserError: There is no such recipe, option or sequence, or nothing to learn from.
    """
    what = f"{store.name} {split}".strip()
    check_options({"share": share, "exclude": exclude, "only": only}, PART_SETTINGS, "mixture")
    name, options = check_named(recipe, {row: RECIPES[row].options for row in RECIPES}, "recipe")
    items = [(v, item) for v in choose_videos(store.videos, what, exclude, only)
             for item in RECIPES[name].items(store.videos[v], options)]
    if not items:
        raise UserError(f"No frame of {what} has the labels that the recipe {name} needs.")
    return Part(store, what, share, name, options, np.array(items, np.int64))


@dataclass(frozen=True, eq=False)
class Clips:
    """Training examples by their number; made by ``make_clips`` or ``from_config``.

    Attributes:
        parts: The mixture.
        sizes: Heights and widths of the frames; the batch of a step has one of them.
        batch_size: Examples of a step, of all processes together.
        seed: Seed of everything random.
        length: Frames of a clip.
        kind: Name in ``geometry.KINDS``.
        geometry: All its options.
        independent: Whether each frame of a clip has a map of its own.
        fill: Color outside the frame, RGB.
        fill_label: Label outside the frame.
        color: Ranges, see ``color.draw``.
        independent_color: Whether each frame of a clip has changes of its own.
        flow: Whether examples have optical flow.
        objects: None, "foreground" or the largest number of objects, see ``renumbering``.
        paste: Share of the examples that get the objects of another clip.
        alternate: Whether each whole batch comes from one part, in rotation.
        categories: Names of what objects are, if examples tell it.
    """

    parts: tuple[Part, ...]
    sizes: tuple[tuple[int, int], ...]
    batch_size: int
    seed: int
    length: int
    kind: str
    geometry: dict
    independent: bool
    fill: tuple[int, int, int]
    fill_label: int
    color: dict
    independent_color: bool
    flow: bool
    objects: str | int | None
    paste: float
    alternate: bool
    categories: tuple[str, ...] = ()

    def size_of(self, step: int) -> tuple[int, int]:
        """Returns height and width of the frames of a step, the same for all its examples."""
        return self.sizes[generator(self.seed, SIZE, step).integers(len(self.sizes))]

    def batch(self, step: int) -> Batch:
        """Returns the whole batch of a step, see the module's text."""
        return stack([self.example(step, place) for place in range(self.batch_size)])

    def describe(self, step: int, place: int) -> str:
        """Names the dataset, the video and the frames of an example."""
        chosen, v, frames, _ = self._choose(step, place)
        return f"{chosen.what}: {chosen.store.videos[v].name}, frames {', '.join(map(str, frames))}"

    def example(self, step: int, place: int) -> Batch:
        """Returns one example of a batch, without the batch axis.

        Args:
            step: Step of the training, 0 or more.
            place: Place in the global batch, 0 to ``batch_size - 1``.
        """
        chosen, v, indices, rng = self._choose(step, place)
        size = self.size_of(step)
        clip, kinds = self._clip(chosen, v, indices, rng, size), self._kinds(chosen, v)
        if self.paste and rng.random() < self.paste:
            # The other clip is of the same dataset, with a geometry and colors of its own.
            other, item = map(int, chosen.items[rng.integers(len(chosen.items))])
            its = RECIPES[chosen.recipe].frames(rng, chosen.store.videos[other], item, **chosen.options)
            kinds = _side_by_side(clip["labels"], kinds, self._kinds(chosen, other))
            clip = paste(clip, self._clip(chosen, other, its, rng, size))
        table = renumbering(rng, clip["labels"], self.objects, chosen.recipe == "sequence")
        if self.categories:
            clip["categories"] = np.zeros(256, np.uint8)
            clip["categories"][table] = kinds
            clip["categories"] = clip["categories"][1:self.objects + 1]
        return clip | {"labels": relabel(clip["labels"], table), "still": np.bool_(chosen.recipe == "still"),
                       "example": np.int64(step * self.batch_size + place)}

    def _kinds(self, chosen: Part, v: int) -> np.ndarray:
        """Returns the category of each id of a video, uint8 [256], from 1; 0 for what is no object."""
        kinds = np.zeros(256, np.uint8)
        if self.categories:
            for number, name in chosen.store.videos[v].categories:
                kinds[number] = 1 + self.categories.index(name)
        return kinds

    def _clip(self, chosen: Part, v: int, indices: list[int], rng: np.random.Generator, size: tuple[int, int]) -> Batch:
        """Returns the frames of a clip, their labels as they are in the store and, if asked for, their flow."""
        store = chosen.store
        # A frame may be in a clip several times.
        sources = {t: store.labels(v, t) for t in dict.fromkeys(indices)}
        labels = np.stack([sources[t] for t in indices])
        draw, options = KINDS[self.kind].draw, self.geometry
        if self.independent:
            maps = [draw(rng, labels[i:i + 1], size, **options) for i in range(len(indices))]
        else:
            maps = [draw(rng, labels, size, **options)] * len(indices)
        images, frames = {}, []
        for t, matrix in zip(indices, maps, strict=True):
            reduce = reduction(matrix)
            if (t, reduce) not in images:
                images[t, reduce] = store.image(v, t, reduce)
            frames.append(warp_image(images[t, reduce], matrix, size, self.fill, reduce))
        if self.color:
            factors = [colors.draw(rng, self.color) for _ in (indices if self.independent_color else (0,))]
            frames = [colors.jitter(frame, factors[i % len(factors)]) for i, frame in enumerate(frames)]
        clip = {"frames": np.stack(frames),
                "labels": np.stack([warp_labels(sources[t], matrix, size, self.fill_label)
                                    for t, matrix in zip(indices, maps, strict=True)])}
        if self.flow:
            clip["flow"] = np.stack([self._flow(store, v, t, matrix, size)
                                     for t, matrix in zip(indices, maps, strict=True)])
        return clip

    def _choose(self, step: int, place: int) -> tuple[Part, int, list[int], np.random.Generator]:
        """Returns the part, video and frames of an example, and random numbers for the rest."""
        shares = tuple(part.share for part in self.parts)
        index, visit = (alternating_part(step, place, self.batch_size, shares) if self.alternate else
                        part_of(self.seed, step * self.batch_size + place, shares))
        chosen = self.parts[index]
        v, item = map(int, chosen.items[item_of(self.seed, index, visit, len(chosen.items))])
        rng = generator(self.seed, EXAMPLE, step, place)
        frames = RECIPES[chosen.recipe].frames(rng, chosen.store.videos[v], item, **chosen.options)
        return chosen, v, frames, rng

    def _flow(self, store: Any, v: int, t: int, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        flow = store.flow(v, t)
        if flow is None:  # such as that of a last frame
            return np.zeros((*size, 2), np.float32)
        return warp_flow(flow, matrix, size, store.videos[v].size)


def paste(clip: Batch, other: Batch) -> Batch:
    """Puts the objects of one clip in front of another (after Ghiasi et al. 2021, "Simple Copy-Paste").

    A few videos then show every object before every background. Nothing is pasted if there is no object, or if the
    objects fill more than half of the picture and would leave nothing of the clip behind them.

    Args:
        clip: ``"frames"`` uint8 [t, h, w, 3], ``"labels"`` uint8 [t, h, w], 0 background, ids, 255 void, and perhaps
            ``"flow"`` float32 [t, h, w, 2].
        other: The clip whose objects are pasted, as long and as large.

    Returns:
        The clip with the objects, whose ids follow its own; they move as they did, and their edges are softened by a
        pixel.
    """
    labels, theirs = clip["labels"], other["labels"]
    masks = (theirs > 0) & (theirs != VOID)
    if not masks.any() or masks.mean() > 0.5:
        return clip
    frames = []
    for ground, object_, mask in zip(clip["frames"], other["frames"], masks, strict=True):
        weight = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)[..., None]
        frames.append(np.round(ground + (object_.astype(np.float32) - ground) * weight).astype(np.uint8))
    last = int(labels[labels != VOID].max(initial=0))
    ids = np.minimum(theirs.astype(int) + last, VOID - 1)
    pasted = {"frames": np.stack(frames), "labels": np.where(masks, ids, labels).astype(np.uint8)}
    if "flow" in clip:
        pasted["flow"] = np.where(masks[..., None], other["flow"], clip["flow"])
    return pasted


def _side_by_side(labels: np.ndarray, kinds: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns the categories of a clip's ids, uint8 [256], after ``paste``, which puts theirs behind its own."""
    last = int(labels[labels != VOID].max(initial=0))
    both = kinds.copy()
    both[last + 1:VOID] = theirs[1:VOID - last]
    return both


def renumbering(rng: np.random.Generator, labels: np.ndarray, objects: str | int | None, follow: bool = False
                ) -> np.ndarray:
    """Draws new numbers for the objects of a clip, so that a network learns nothing from their numbers.

    Args:
        rng: Random numbers.
        labels: uint8 [t, h, w] with 255 for void.
        objects: None leaves the numbers as they are, "foreground" makes all of them 1, and a number n gives the
            clip's objects the numbers 1 to at most n in random order. Objects beyond n become void, as a network
            with n max_objects should neither find them nor learn that they are background.
        follow: Whether objects are given in the first frame and followed. Those not in it are then background, as
            they are in a test.

    Returns:
        uint8 [256], the new number of each.
    """
    if objects is None:
        return np.arange(256, dtype=np.uint8)
    table = np.zeros(256, np.uint8)
    table[VOID] = VOID
    if objects == "foreground":
        table[1:VOID] = 1
    else:
        present = np.bincount((labels[0] if follow else labels).ravel(), minlength=256)
        ids = rng.permutation(np.flatnonzero(present[1:VOID]) + 1)
        table[ids] = VOID
        table[ids[:objects]] = np.arange(1, len(ids[:objects]) + 1)
    return table


def relabel(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns labels uint8 [t, h, w] with the numbers of a table, uint8 [256]."""
    return cv2.LUT(labels.reshape(-1, labels.shape[-1]), table).reshape(labels.shape)


def make_clips(parts: Sequence[Part], size: tuple[int, int] | Sequence[tuple[int, int]], batch_size: int, seed: int,
               geometry: dict, color: dict | None = None, flow: bool = False, objects: str | int | None = None,
               paste: float = 0.0, alternate: bool = False, categories: Sequence[str] = ()) -> Clips:
    """Checks and completes a description of training examples.

    Args:
        parts: The mixture; their recipes give clips of one length.
        size: Height and width of the frames; or several, of which each step has one (a function of seed and step).
        batch_size: Examples of a step, of all processes together.
        seed: Seed of everything random, 0 or more.
        geometry: ``{"kind": ..., option: value}``, see ``geometry.KINDS``; also ``"independent"``, ``"fill"`` and
            ``"fill_label"``.
        color: Ranges of changes, see ``color.draw``; also ``"independent"``.
        flow: Whether examples have optical flow; every dataset must.
        objects: See ``renumbering``.
        paste: Share of the examples that get the objects of another clip of their dataset, see ``paste``.
        alternate: Whether each whole batch comes from one part of the mixture: in its order, each for ``share`` steps
            in a row.
        categories: Names of what objects are, if examples shall tell it; every dataset must, and ``objects`` be a
            number.

    Raises:
        UserError: Something of it does not fit.
    """
    lengths = [RECIPES[part.recipe].length(part.options) for part in parts]
    if len(set(lengths)) > 1:
        raise UserError("The recipes of a mixture must give clips of one length; here " + ", ".join(
            f"{part.recipe} of {part.what} gives {length} frames"
            for part, length in zip(parts, lengths, strict=True)) + ".")
    cycle = sum(part.share for part in parts)
    if cycle > _LONGEST_CYCLE:
        raise UserError(f"The shares of the mixture sum up to {cycle}; choose smaller ones of the same ratio, "
                        f"{_LONGEST_CYCLE} at most together.")
    checked = check_options({"size": size, "batch_size": batch_size, "seed": seed, "geometry": geometry,
                             "color": color, "flow": flow, "objects": objects, "paste": paste, "alternate": alternate,
                             "categories": categories},
                            SETTINGS, "data")
    without = [part.what for part in parts if flow and not part.store.has_flow]
    if without:
        raise UserError(f"Flow is asked for, but {', '.join(without)} has none; convert it with --flow, or set flow "
                        "to False.")
    if categories:
        _check_categories(parts, objects, categories)
    kind, options = check_named(checked["geometry"], {row: options_of(row) for row in KINDS}, "geometry", "kind")
    tones = check_options(checked["color"] or {}, colors.OPTIONS, "color")
    sizes = tuple(tuple(map(int, each)) for each in (size if np.ndim(size) == 2 else [size]))
    return Clips(tuple(parts), sizes, int(batch_size), int(seed), lengths[0],
                 kind=kind, independent=options.pop("independent"), fill=tuple(options.pop("fill")),
                 fill_label=options.pop("fill_label"), geometry=options,
                 independent_color=tones.pop("independent"),
                 color={name: tuple(value) for name, value in tones.items() if value is not None},
                 flow=flow, objects=objects, paste=float(paste), alternate=alternate, categories=tuple(categories))


def _check_categories(parts, objects, names):
    if not isinstance(objects, int) or len(names) > 255 or len(set(names)) < len(names):
        raise UserError("Categories are up to 255 different names, and want the largest number of objects (objects).")
    for part in parts:
        videos = [part.store.videos[v] for v in np.unique(part.items[:, 0])]
        untold = [video.name for video in videos
                  if not {i for ids in video.objects for i in ids} <= {number for number, _ in video.categories}]
        if untold:
            raise UserError(f"Categories are asked for, but {part.what} does not tell those of {untold[0]}.")
        strange = sorted({name for video in videos for _, name in video.categories} - set(names))
        if strange:
            raise UserError(f"{part.what} has the category '{strange[0]}', which the configuration's categories do not"
                            f" have{f', and {len(strange) - 1} more such' if strange[1:] else ''}.")


def stack(examples: Sequence[Batch]) -> Batch:
    """Puts examples into a batch."""
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
