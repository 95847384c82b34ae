"""Training examples by index: sampling, decoding, geometric and color augmentation, object ids.

An example is a dictionary of NumPy arrays:

- ``"frames"``: uint8 [t, h, w, 3], RGB;
- ``"labels"``: uint8 [t, h, w], 0 background, object ids, 255 void;
- ``"flow"``: float32 [t, h, w, 2], (dx, dy) in pixels to the next frame of the video; only with ``flow=True``;
- ``"categories"``: uint8 [objects], the category of objects 1, 2, ... as a 1-based index into the configured names, 0
  for unused ids; only with ``categories``;
- ``"still"``: bool, whether the example comes from a still image (recipe "still");
- ``"example"``: int64, global index of the example.
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
from uvos_jax.data.examples.geometry import GEOMETRIES, options_of, reduction, warp_flow, warp_image, warp_labels
from uvos_jax.data.examples.sampling import (
    EXAMPLE,
    RECIPES,
    SIZE,
    alternating_entry,
    choose_videos,
    entry_of_example,
    epoch_item,
    generator,
)
from uvos_jax.errors import UserError, pluralize
from uvos_jax.labels import VOID

Batch = dict[str, np.ndarray]

_MAX_CYCLE = 10_000  # sum of the shares of a mixture; the order of one cycle is held in memory
_OBJECTS = integer(None, 1, VOID - 1)
# Options of ``make_clip_dataset`` and ``mixture_entry``.
DATASET_OPTIONS = {
    "size": one_or_more(size(REQUIRED)), "batch_size": integer(REQUIRED, 1), "seed": integer(REQUIRED, 0, 2**32 - 1),
    "geometry": mapping({"kind": "resize"}), "color": optional(mapping(None)), "flow": boolean(False),
    "paste": fraction(0.0), "alternate": boolean(False), "categories": names(()),
    "objects": Option(None, f"None, 'foreground' or the maximum number of objects, {_OBJECTS.expected}",
                      lambda value: value is None or value == "foreground" or _OBJECTS.is_valid(value)),
}
MIXTURE_OPTIONS = {"share": integer(1, 1, _MAX_CYCLE), "exclude": names(()), "only": names(())}


@dataclass(frozen=True, eq=False)
class MixtureEntry:
    """One dataset of a mixture; created by ``mixture_entry``.

    Attributes:
        store: See ``uvos_jax.data.storage.store``.
        title: Name and split, for messages.
        share: Number of examples (steps, if entries alternate) in one cycle of the mixture.
        recipe: Key of ``RECIPES``.
        options: All options of the recipe.
        items: int [n, 2], video index and item of the recipe.
    """

    store: Any
    title: str
    share: int
    recipe: str
    options: dict
    items: np.ndarray = field(repr=False)


def mixture_entry(store: Any, recipe: dict, share: int = 1, split: str = "", exclude: Sequence[str] = (),
         only: Sequence[str] = ()) -> MixtureEntry:
    """Prepares a dataset for a mixture.

    Args:
        store: See ``uvos_jax.data.storage.store``.
        recipe: ``{"name": ..., option: value}``, see ``RECIPES``.
        share: Integer number of examples (steps, if entries alternate) in one cycle of the mixture.
        split: Split of the dataset, for messages.
        exclude: Sequences to leave out.
        only: Sequences to keep; all if empty.

    Raises:
        UserError: The recipe, an option or a sequence is unknown, or no frame can be used.
    """
    title = f"{store.name} {split}".strip()
    check_options({"share": share, "exclude": exclude, "only": only}, MIXTURE_OPTIONS, "mixture")
    name, options = check_named(recipe, {row: RECIPES[row].options for row in RECIPES}, "recipe")
    items = [(v, item) for v in choose_videos(store.videos, title, exclude, only)
             for item in RECIPES[name].items(store.videos[v], options)]
    if not items:
        raise UserError(f"No frame of {title} has the labels that recipe '{name}' needs. Choose another split or"
                        " recipe.")
    return MixtureEntry(store, title, share, name, options, np.array(items, np.int64))


@dataclass(frozen=True, eq=False)
class ClipDataset:
    """Training examples by index; created by ``make_clip_dataset`` or ``from_config``.

    Attributes:
        mixture: The datasets.
        sizes: Heights and widths of the frames; each step uses one of them.
        batch_size: Examples per step, over all processes.
        seed: Seed of all random draws.
        length: Frames per clip.
        kind: Key of ``geometry.GEOMETRIES``.
        geometry: All options of the geometry.
        independent: Whether each frame of a clip has its own affine map.
        fill: RGB color outside the frame.
        fill_label: Label outside the frame.
        color: Ranges of the color changes, see ``color.draw``.
        independent_color: Whether each frame of a clip has its own color changes.
        flow: Whether examples have optical flow.
        objects: None, "foreground" or the maximum number of objects, see ``draw_id_mapping``.
        paste: Fraction of examples with pasted objects of another clip.
        alternate: Whether each batch comes from one entry of the mixture, in rotation.
        categories: Category names; empty if examples have no categories.
    """

    mixture: tuple[MixtureEntry, ...]
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
        """Returns the height and width of the frames of a step, the same for all its examples."""
        return self.sizes[generator(self.seed, SIZE, step).integers(len(self.sizes))]

    def batch(self, step: int) -> Batch:
        """Returns the global batch of a step; the keys are listed in the module docstring."""
        return stack([self.example(step, position) for position in range(self.batch_size)])

    def describe(self, step: int, position: int) -> str:
        """Returns the dataset, video and frames of an example, for messages."""
        chosen, v, frames, _ = self._choose(step, position)
        return f"{chosen.title}: {chosen.store.videos[v].name}, frames {', '.join(map(str, frames))}"

    def example(self, step: int, position: int) -> Batch:
        """Returns one example of a batch, without the batch axis.

        Args:
            step: Training step, 0 or more.
            position: Position in the global batch, 0 to ``batch_size - 1``.
        """
        chosen, v, indices, rng = self._choose(step, position)
        size = self.size_of(step)
        clip, categories = self._clip(chosen, v, indices, rng, size), self._categories(chosen, v)
        if self.paste and rng.random() < self.paste:
            # The other clip comes from the same dataset; its geometry and colors are drawn separately.
            other, item = map(int, chosen.items[rng.integers(len(chosen.items))])
            indices = RECIPES[chosen.recipe].frames(rng, chosen.store.videos[other], item, **chosen.options)
            categories = _merge_categories(clip["labels"], categories, self._categories(chosen, other))
            clip = paste_objects(clip, self._clip(chosen, other, indices, rng, size))
        table = draw_id_mapping(rng, clip["labels"], self.objects, chosen.recipe == "sequence")
        if self.categories:
            clip["categories"] = np.zeros(256, np.uint8)
            clip["categories"][table] = categories
            clip["categories"] = clip["categories"][1:self.objects + 1]
        return clip | {"labels": remap_labels(clip["labels"], table), "still": np.bool_(chosen.recipe == "still"),
                       "example": np.int64(step * self.batch_size + position)}

    def _categories(self, chosen: MixtureEntry, v: int) -> np.ndarray:
        """Returns the 1-based category of each object id of a video, uint8 [256]; 0 for unused ids."""
        categories = np.zeros(256, np.uint8)
        if self.categories:
            for number, name in chosen.store.videos[v].categories:
                categories[number] = 1 + self.categories.index(name)
        return categories

    def _clip(self, chosen: MixtureEntry, v: int, indices: list[int], rng: np.random.Generator,
              size: tuple[int, int]) -> Batch:
        """Returns frames, labels with the ids of the store and, if enabled, flow of a clip."""
        store = chosen.store
        # A clip may contain a frame more than once.
        sources = {t: store.labels(v, t) for t in dict.fromkeys(indices)}
        labels = np.stack([sources[t] for t in indices])
        draw, options = GEOMETRIES[self.kind].draw, self.geometry
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

    def _choose(self, step: int, position: int) -> tuple[MixtureEntry, int, list[int], np.random.Generator]:
        """Returns the mixture entry, video and frames of an example, and the generator for its other draws."""
        shares = tuple(entry.share for entry in self.mixture)
        index, visit = (alternating_entry(step, position, self.batch_size, shares) if self.alternate else
                        entry_of_example(self.seed, step * self.batch_size + position, shares))
        chosen = self.mixture[index]
        v, item = map(int, chosen.items[epoch_item(self.seed, index, visit, len(chosen.items))])
        rng = generator(self.seed, EXAMPLE, step, position)
        frames = RECIPES[chosen.recipe].frames(rng, chosen.store.videos[v], item, **chosen.options)
        return chosen, v, frames, rng

    def _flow(self, store: Any, v: int, t: int, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        flow = store.flow(v, t)
        if flow is None:  # for example, of a last frame
            return np.zeros((*size, 2), np.float32)
        return warp_flow(flow, matrix, size, store.videos[v].size)


def paste_objects(clip: Batch, other: Batch) -> Batch:
    """Pastes the objects of one clip onto another (after Ghiasi et al. 2021, "Simple Copy-Paste").

    This combines every object with every background even when there are few videos. The clip is returned unchanged if
    there is no object to paste, or if the objects cover more than half of the pixels and would hide the clip.

    Args:
        clip: ``"frames"`` uint8 [t, h, w, 3], ``"labels"`` uint8 [t, h, w] with 0 background and 255 void, optionally
            ``"flow"`` float32 [t, h, w, 2].
        other: Clip of the same length and size whose objects are pasted.

    Returns:
        The clip with the objects pasted, blended over one pixel at their edges. Their ids start after the ids of
        ``clip``; they keep their own flow.
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


def _merge_categories(labels: np.ndarray, categories: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns the categories by object id, uint8 [256], after ``paste_objects`` appended the pasted ids."""
    last = int(labels[labels != VOID].max(initial=0))
    both = categories.copy()
    both[last + 1:VOID] = theirs[1:VOID - last]
    return both


def draw_id_mapping(rng: np.random.Generator, labels: np.ndarray, objects: str | int | None, prompted: bool = False
                ) -> np.ndarray:
    """Draws new object ids for a clip, so that a network cannot learn anything from the ids.

    Args:
        rng: Random generator.
        labels: uint8 [t, h, w] with 255 for void.
        objects: None keeps the ids, "foreground" maps all to 1, and a number n maps the objects of the clip to ids 1 to
            at most n in random order. Objects beyond n become void: a network with ``max_objects=n`` should neither
            find them nor learn that they are background.
        prompted: Whether the first frame is the prompt. Objects that are absent from it become background, as at test
            time.

    Returns:
        uint8 [256], the new id of each label.
    """
    if objects is None:
        return np.arange(256, dtype=np.uint8)
    table = np.zeros(256, np.uint8)
    table[VOID] = VOID
    if objects == "foreground":
        table[1:VOID] = 1
    else:
        present = np.bincount((labels[0] if prompted else labels).ravel(), minlength=256)
        ids = rng.permutation(np.flatnonzero(present[1:VOID]) + 1)
        table[ids] = VOID
        table[ids[:objects]] = np.arange(1, len(ids[:objects]) + 1)
    return table


def remap_labels(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Applies a table of new labels, uint8 [256], to labels uint8 [t, h, w]."""
    return cv2.LUT(labels.reshape(-1, labels.shape[-1]), table).reshape(labels.shape)


def make_clip_dataset(mixture: Sequence[MixtureEntry], size: tuple[int, int] | Sequence[tuple[int, int]],
                      batch_size: int, seed: int, geometry: dict, color: dict | None = None, flow: bool = False,
                      objects: str | int | None = None, paste: float = 0.0, alternate: bool = False,
                      categories: Sequence[str] = ()) -> ClipDataset:
    """Validates and completes the description of training examples.

    Args:
        mixture: The datasets; their recipes must give clips of equal length.
        size: Height and width of the frames, or a list of sizes; each step uses one (a function of seed and step).
        batch_size: Examples per step, over all processes.
        seed: Seed of all random draws, 0 or more.
        geometry: ``{"kind": ..., option: value}``, see ``geometry.GEOMETRIES``; also ``"independent"``, ``"fill"`` and
            ``"fill_label"``.
        color: Ranges of the color changes, see ``color.draw``; also ``"independent"``.
        flow: Whether examples have optical flow; every dataset must store it.
        objects: See ``draw_id_mapping``.
        paste: Fraction of examples with pasted objects of another clip of the same dataset, see ``paste_objects``.
        alternate: Whether each batch comes from one entry of the mixture, in order, ``share`` steps in a row.
        categories: Category names, if examples should have categories; every dataset must store them, and ``objects``
            must be a number.

    Raises:
        UserError: A value is invalid, or values contradict each other.
    """
    lengths = [RECIPES[entry.recipe].length(entry.options) for entry in mixture]
    if len(set(lengths)) > 1:
        raise UserError("The recipes of a mixture must give clips of equal length: " + ", ".join(
            f"{entry.recipe} of {entry.title} gives {pluralize(length, 'frame')}"
            for entry, length in zip(mixture, lengths, strict=True)) + ".")
    cycle = sum(entry.share for entry in mixture)
    if cycle > _MAX_CYCLE:
        raise UserError(f"The shares of the mixture sum to {cycle}; the maximum is {_MAX_CYCLE}. Give smaller shares"
                        " of the same ratio.")
    checked = check_options({"size": size, "batch_size": batch_size, "seed": seed, "geometry": geometry,
                             "color": color, "flow": flow, "objects": objects, "paste": paste, "alternate": alternate,
                             "categories": categories},
                            DATASET_OPTIONS, "data")
    without = [entry.title for entry in mixture if flow and not entry.store.has_flow]
    if without:
        raise UserError(f"No optical flow in {', '.join(without)}. Convert with 'uvos convert-data --flow', or set flow"
                        " to False.")
    if categories:
        _check_categories(mixture, objects, categories)
    kind, options = check_named(checked["geometry"], {row: options_of(row) for row in GEOMETRIES}, "geometry", "kind")
    tones = check_options(checked["color"] or {}, colors.OPTIONS, "color")
    sizes = tuple(tuple(map(int, each)) for each in (size if np.ndim(size) == 2 else [size]))
    return ClipDataset(tuple(mixture), sizes, int(batch_size), int(seed), lengths[0],
                 kind=kind, independent=options.pop("independent"), fill=tuple(options.pop("fill")),
                 fill_label=options.pop("fill_label"), geometry=options,
                 independent_color=tones.pop("independent"),
                 color={name: tuple(value) for name, value in tones.items() if value is not None},
                 flow=flow, objects=objects, paste=float(paste), alternate=alternate, categories=tuple(categories))


def _check_categories(mixture, objects, names):
    if not isinstance(objects, int) or len(names) > 255 or len(set(names)) < len(names):
        raise UserError("Invalid categories. Give at most 255 different names, and set objects to a number.")
    for entry in mixture:
        videos = [entry.store.videos[v] for v in np.unique(entry.items[:, 0])]
        incomplete = [video.name for video in videos
                  if not {i for ids in video.objects for i in ids} <= {number for number, _ in video.categories}]
        if incomplete:
            raise UserError(f"{entry.title} has no categories for objects of {incomplete[0]}. Remove 'categories' from"
                            " the configuration.")
        unknown = sorted({name for video in videos for _, name in video.categories} - set(names))
        if unknown:
            more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
            raise UserError(f"{entry.title} has the category '{unknown[0]}'{more}, missing from the configuration's"
                            " categories. Add it.")


def stack(examples: Sequence[Batch]) -> Batch:
    """Stacks examples into a batch."""
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
