"""The objects that a model is to follow: the masks that a user gives, and each object's place in the model.

*Ids* are the numbers in the masks, 1 to 254 with gaps; *places* are 1, 2, ... in the model: objects that appear
together in the order of their ids, later ones behind. 0 is background in both.

An object is given once, by the first mask that shows it. What later masks say of it is not looked at, so that a folder
with the truth of every frame gives nothing of it away.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uvos_jax.atomic_io import quoted
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.video import Frame, Source, read_mask
from uvos_jax.video.image_io import list_images
from uvos_jax.video.mask_io import VOID, read_palette

MOST_OBJECTS = 80
AUTO = "auto"
# Frames that an unsupervised model may look at until it shows an object, and the share of a frame that is one.
_MOST_LOOKS = 100
_SMALLEST = 1e-3
_NAMED = 6  # names in a message

FirstMask = Any  # None, "auto", a Segmenter, a path, an array of ids, or a mapping from frames to paths and arrays


class ObjectEntry(NamedTuple):
    """An object that has been given: its id, and the index and name of the frame it was given for."""

    id: int
    index: int
    frame: str


class Objects:
    """The objects of one run through one video.

    Attributes:
      known: those that were given so far, the first one has place 1; set where a run goes on from an earlier one.
      palette: uint8 ``[256, 3]``, of the first mask that has one; or None.
      notes: sentences about the masks.
    """

    def __init__(self, first_mask: FirstMask, source: Source, starter: Any = None):
        """Reads and judges all masks.

        Args:
          first_mask: a file, for the first frame; a folder of files named as their frames, or with a folder of them
            called as the video; an array of ids ``[h, w]`` for the first frame; or a mapping from a frame's name, or
            its index among the frames that are read, to a file or an array. None where ``starter`` finds the object.
          source: the video.
          starter: a segmenter that needs no mask; its foreground, in the first frame that shows one, is object 1.

        Raises:
          UserError: if there is nothing to follow, too much, or something that cannot be used.
        """
        self.known: list[ObjectEntry] = []
        self.palette: np.ndarray | None = None
        self.notes: list[str] = []
        self._source, self._starter, self._looked, self._room = source, starter, 0, 0
        self._before: np.ndarray | None = None
        self._masks: dict[str | int, Path | np.ndarray] = {} if starter else _masks_of(first_mask, source)
        self._numbered: set[str | int] = set()
        self._ids: dict[str | int, tuple[int, ...]] = {}
        self._shapes: dict[str | int, tuple[int, ...]] = {}
        if starter:
            self.identity = f"{AUTO}: {starter.name} {starter.weights_digest}"
        else:
            self._judge(first_mask)

    @property
    def lookup(self) -> np.ndarray:
        """The id of every place, uint8 ``[256]``."""
        table = np.zeros(256, np.uint8)
        table[1:len(self.known) + 1] = [known.id for known in self.known]
        return table

    @property
    def missed(self) -> list[int]:
        """Ids that are in a mask but were never given, since the run did not come by its frame."""
        known = {entry.id for entry in self.known}
        return sorted({number for ids in self._ids.values() for number in ids} - known)

    def before(self, index: int) -> list[ObjectEntry]:
        """Those of ``known`` that were given for frames before this one."""
        return [known for known in self.known if known.index < index]

    def check(self) -> None:
        """Raises ``UserError`` if a mask has another size than the first frame, of a video that can be read twice."""
        first = None
        if self._source.rereadable:
            with contextlib.closing(iter(self._source)) as frames, contextlib.suppress(UserError):  # the run tells that
                first = next(frames, None)
        if first is not None:
            self._check_sizes(first.image.shape[:2])

    def look(self) -> None:
        """Has the starter find the object, where the video can be read twice and nothing is known yet."""
        if self._starter is None or self.known or self._masks or not self._source.rereadable:
            return
        with contextlib.closing(self._starter.run(self._source)) as answers:
            for index, answer in enumerate(itertools.islice(answers, _MOST_LOOKS)):
                if answer.frame.broken is None and _shows(answer.labels):
                    self._found(index, answer.frame, answer.labels)
                    return
        raise self._nothing_found(index + 1)

    def given(self, index: int, frames: Sequence[Frame], chunk: int) -> np.ndarray | None:
        """What is newly given for frames that follow each other; notes who has which place.

        Args:
          index: of the first of them in the run.
          frames: at most ``chunk``.
          chunk: length of the result.

        Returns:
          Places, uint8 ``[chunk, h, w]`` with 0 where nothing is given, and of the first frame of the run 255 where it
          is void; None if nothing is given for any of them.

        Raises:
          UserError: at the first call, if any mask has another size than the frames; or see :meth:`look`.
        """
        self._check_sizes(frames[0].image.shape[:2])
        found = {i: places for i, frame in enumerate(frames)
                 if (places := self._new_in(index + i, frame)) is not None}
        if not found:
            return None
        result = np.zeros((chunk, *frames[0].image.shape[:2]), np.uint8)
        for i, places in found.items():
            result[i] = places
        return result

    def room(self, max_objects: int) -> tuple[int, str | None]:
        """How many places a model of ``max_objects`` must have by now: as many, or doubled until all have one, 80 at most.

        Returns:
          The number, and a sentence if it has grown since the last time.
        """
        before, room = self._room or max_objects, max(max_objects, self._room)
        while room < len(self.known):
            room = min(2 * room, MOST_OBJECTS)
        compiled = bool(self._room)
        self._room = room
        if room == before:
            return room, None
        return room, (f"{len(self.known)} objects: room for {room} from frame {self.known[-1].frame} on"
                      f"{', compiled once more' * compiled}.")

    def _new_in(self, index, frame):
        key = frame.name if frame.name in self._masks else index
        if key != index and index in self._masks:
            raise UserError(f"Frame {frame.name} is given two masks, one by its name and one by its index {index};"
                            " leave one of them out.")
        if self._starter is not None and not self.known and not self._source.rereadable:
            self._look_at(index, frame)
        numbers = {known.id for known in self.known}
        new = [number for number in self._ids.get(key, ()) if number not in numbers]
        if not new or (frame.broken is not None and index > 0):
            return None
        if frame.broken is not None:
            raise UserError(f"The first frame, {frame.name}, could not be decoded ({frame.broken}), so that its mask"
                            " fits no picture; start behind it with --start, and give the mask of that frame.")
        labels = self._read(key)
        table = np.zeros(256, np.uint8)
        table[VOID] = VOID if index == 0 else 0
        table[new] = len(self.known) + 1 + np.arange(len(new))
        self.known += [ObjectEntry(number, index, frame.name) for number in new]
        return table[labels]

    def _look_at(self, index, frame):
        """One look of the starter at a frame that will not come again, and at the one before if it sees motion."""
        if frame.broken is not None:
            return
        frames = [frame.image] if self._before is None else [self._before, frame.image]
        labels = self._starter.segment(np.stack(frames))[-1]
        if "flow" in self._starter.model.inputs:
            self._before = frame.image
        self._looked += 1
        if _shows(labels):
            self._found(index, frame, labels)
        elif self._looked == _MOST_LOOKS:
            raise self._nothing_found(self._looked)

    def _found(self, index, frame, labels):
        self._masks, self._ids = {index: labels}, {index: (1,)}
        self.notes.append(f"{self._starter.name} shows an object in frame {frame.name}; it is followed from there on.")

    def _nothing_found(self, looks):
        frames = "frame" if looks == 1 else f"{looks} frames"
        return UserError(f"{self._starter.name} shows no object in the first {frames} of '{self._source.name}'; draw a"
                         " mask of it (--first-mask PNG), or have another model look (--first-model, --first-weights).")

    def _judge(self, first_mask):
        """Reads every mask: ids, void, palette, and a digest of all."""
        # Gray masks of one object each are read as such, unless one beside them shows that theirs are numbers.
        if len(self._masks) > 1 and any(len(_ids(self._read(key))) > 1 for key in self._masks):
            self._numbered = {key for key, mask in self._masks.items() if isinstance(mask, Path)}
        digest, void = hashlib.sha256(), []
        for key, mask in self._masks.items():
            labels = self._read(key)
            self._ids[key], self._shapes[key] = _ids(labels), labels.shape
            digest.update(f"{key} {labels.shape}".encode() + np.ascontiguousarray(labels).tobytes())
            if (labels == VOID).any():
                void.append(_called(key, mask))
            if self.palette is None and isinstance(mask, Path):
                self.palette = read_palette(mask)
        self.identity = digest.hexdigest()
        numbers = {number for ids in self._ids.values() for number in ids}
        whose = _whose(first_mask)
        if not numbers:
            raise UserError(f"{whose}: no object is in it, only background{' and void (255)' * bool(void)}; mark the"
                            " objects to follow by numbers from 1 on.")
        if len(numbers) > MOST_OBJECTS:
            raise UserError(f"{whose}: {len(numbers)} objects are in it, and at most {MOST_OBJECTS} can be followed in"
                            " one run; set the others to 0.")
        if void:
            self.notes.append(f"255 is void, no object, and is not followed: {_few(void)}.")
        self._check_frames(first_mask)

    def _check_sizes(self, size):
        for key, (height, width) in self._shapes.items():
            if (height, width) != size:
                raise UserError(f"The mask {_called(key, self._masks[key])} is {width}x{height} (width x height), but"
                                f" the frames are {size[1]}x{size[0]}; resize it without smoothing (nearest).")
        self._shapes = {}

    def _check_frames(self, first_mask):
        """Whether a video that can be read twice comes by one of the masks."""
        with_objects = {key for key, ids in self._ids.items() if ids}
        if 0 in with_objects or not self._source.rereadable:
            return
        names = []
        with contextlib.closing(iter(self._source)) as frames, contextlib.suppress(UserError):  # the run will tell that
            for index, frame in enumerate(frames):
                if index in with_objects or frame.name in with_objects:
                    return
                names.append(frame.name)
        if names:
            raise UserError(f"{_whose(first_mask)}: no mask of an object is named as a frame of '{self._source.name}'"
                            f" that is to be segmented ({names[0]} to {names[-1]}).")

    def _read(self, key):
        mask = self._masks[key]
        return read_mask(mask, numbered=key in self._numbered) if isinstance(mask, Path) else mask


def folder_of_masks(folder: Path, video: str) -> Path:
    """The folder with the masks of one video: the folder itself, or that of the video's name in it.

    Raises:
      UserError: if neither has an image.
    """
    if list_images(folder):
        return folder
    if (folder / video).is_dir() and list_images(folder / video):
        return folder / video
    below = [path.name for path in folder.iterdir() if path.is_dir()]
    raise UserError(f"{quoted(folder)} holds no masks, neither itself nor in a folder '{video}' as the video is"
                    f" called.{nearest_hint(video, below)}")


def _masks_of(first_mask, source):
    """Files and arrays by the name or the index of their frame."""
    if isinstance(first_mask, Mapping):
        return {_key(key, source): _mask(mask, f"the mask of frame {key!r}") for key, mask in first_mask.items()}
    if isinstance(first_mask, str) and not first_mask:
        raise UserError("The first mask has no name; give the path of an image or of a folder of images.")
    if isinstance(first_mask, (str, Path)) and Path(first_mask).is_dir():
        return _masks_in(folder_of_masks(Path(first_mask), source.name), source)
    return {0: _mask(first_mask, "the first mask")}


def _masks_in(folder, source):
    names = _frame_names(source)
    masks, odd = {}, []
    for path in list_images(folder):
        name = _frame_name(path.stem, names)
        if name is None:
            odd.append(path.name)
        elif name in masks:
            raise UserError(f"{quoted(masks[name])} and {quoted(path)} are masks of one frame; remove one of them.")
        else:
            masks[name] = path
    if odd:
        wanted = f"as its frame, such as {names[0]}.png" if names else "by the number of its frame, such as 00000.png"
        raise UserError(f"Masks in {quoted(folder)} are named as no frame of '{source.name}': {_few(odd)}; a mask is"
                        f" named {wanted}.")
    return masks


def _frame_names(source):
    """Names of the frames that have files of their own; none where frames are numbered."""
    if source.kind == "glob":
        return [path.stem for path in source.paths]
    return [path.stem for place in source.paths if place.is_dir() for path in list_images(place)]


def _frame_name(name, names):
    """The frame that a mask of that name belongs to, as frames are called; None if there is none."""
    if names:
        return name if name in names else None
    return f"{int(name):05d}" if name.isascii() and name.isdigit() else None


def _key(key, source):
    if isinstance(key, str):
        names = _frame_names(source)
        name = _frame_name(key, names)
        if name is None:
            raise UserError(f"No frame of '{source.name}' is called '{key}'; its frames are"
                            f" {f'{names[0]} to {names[-1]}' if names else '00000, 00001, ...'}.")
        return name
    last = source.length if source.kind != "file" else None
    if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or key < 0 or (last is not None and key >= last):
        frames = f"; the video has {last} frames" if last is not None else ""
        raise UserError(f"Masks are given for the name of a frame or its index from 0 on, not for {key!r}{frames}.")
    return int(key)


def _mask(mask, what):
    """A file that is there, or labels uint8 ``[h, w]``."""
    if isinstance(mask, (str, Path)):
        return Path(mask)
    labels = np.asarray(mask)
    if labels.ndim != 2 or labels.dtype.kind not in "bui" or labels.size == 0:
        kind = f"{labels.dtype} {list(labels.shape)}" if labels.ndim else f"of type {type(mask).__name__}"
        raise UserError(f"{what} is {kind}; it must hold whole numbers [height, width], or be the path of an image.")
    if labels.dtype != bool and (labels.min() < 0 or labels.max() > VOID):
        raise UserError(f"{what} holds {labels.min()} to {labels.max()}; objects have numbers from 1 to {VOID - 1}.")
    return labels.astype(np.uint8)


def _ids(labels):
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=VOID + 1))
    return tuple(int(number) for number in present if 0 < number < VOID)


def _shows(labels):
    return (labels > 0).mean() >= _SMALLEST


def _called(key, mask):
    return quoted(mask) if isinstance(mask, Path) else f"of frame {key}"


def _whose(first_mask):
    return f"The first mask {quoted(first_mask)}" if isinstance(first_mask, (str, Path)) else "The given masks"


def _few(names):
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
