"""Prompts: the masks that tell a semi-supervised model which objects to segment.

This module finds, reads and validates the masks. :mod:`uvos_jax.inference.object_registry` maps the object ids in them
to the slots of a model, and :mod:`uvos_jax.inference.auto_prompt` makes a prompt where the user gives none.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.errors import UserError, nearest_hint, pluralize, quoted
from uvos_jax.labels import VOID
from uvos_jax.video import Frame, Source, read_mask
from uvos_jax.video.image_io import list_images
from uvos_jax.video.mask_io import read_palette

AUTO = "auto"
MAX_OBJECTS = 80  # object slots of a model, at most
_MAX_LISTED = 6  # names in a message

# None, "auto", a Segmenter, a path, an array of object ids, or a mapping from frames to paths or arrays.
FirstMask = Any


class PromptMasks:
    """The masks that a user gives for one video, by frame.

    Masks hold object ids, 1 to 254 with gaps allowed; 0 is background and 255 is void.

    Attributes:
        ids: The object ids in each mask, keyed by the frame's name or index.
        palette: uint8 ``[256, 3]``, the palette of the first mask file that has one; else None.
        notes: Remarks about the masks for the user, one sentence each.
        identity: SHA-256 of all masks and their keys.
    """

    def __init__(self, first_mask: FirstMask, source: Source):
        """Reads and validates all masks.

        Args:
            first_mask: The masks, see :class:`~uvos_jax.inference.object_registry.ObjectRegistry`.
            source: The video.

        Raises:
            UserError: If a mask cannot be used, or there is no object or more than ``MAX_OBJECTS``.
        """
        self._source = source
        is_path = isinstance(first_mask, (str, Path))
        self._label = f"The first mask {quoted(first_mask)}" if is_path else "The given masks"
        self._masks = _masks_by_frame(first_mask, source)
        self.ids: dict[str | int, tuple[int, ...]] = {}
        self.palette: np.ndarray | None = None
        self.notes: list[str] = []
        self._shapes: dict[str | int, tuple[int, ...]] = {}
        # Gray masks of one object each are read as binary, unless another mask shows that gray levels are ids.
        self._gray_is_id = len(self._masks) > 1 and any(
            len(_object_ids(self._read(key, False))) > 1 for key in self._masks)
        self._read_all()
        self._check_any_frame_matches()

    def key(self, index: int, frame: Frame) -> str | int | None:
        """Returns the key of a frame's mask, or None if it has none.

        Args:
            index: Index of the frame in the run.
            frame: The frame.

        Raises:
            UserError: If there are two masks of the frame.
        """
        if frame.name in self._masks and index in self._masks:
            raise UserError(f"Frame {frame.name} has two masks, one by its name and one by its index {index}. Remove"
                            " one of them.")
        return frame.name if frame.name in self._masks else index if index in self._masks else None

    def read(self, key: str | int) -> np.ndarray:
        """Returns a mask, uint8 ``[h, w]`` of object ids, 0 for background and 255 for void."""
        return self._read(key, self._gray_is_id)

    def check_sizes(self, size: tuple[int, int]) -> None:
        """Raises ``UserError`` if a mask differs in ``(height, width)`` from the frames; checks once."""
        for key, (height, width) in self._shapes.items():
            if (height, width) != size:
                raise UserError(f"The mask {self._describe(key)} is {width}x{height} (width x height), but the frames"
                                f" are {size[1]}x{size[0]}. Resize it with nearest-neighbor interpolation.")
        self._shapes = {}

    def check_sizes_early(self) -> None:
        """Checks the sizes against the first frame, of a video that can be read twice."""
        first = None
        if self._source.rereadable:
            with contextlib.closing(iter(self._source)) as frames, contextlib.suppress(UserError):  # the run reports it
                first = next(frames, None)
        if first is not None:
            self.check_sizes(first.image.shape[:2])

    def _read(self, key, gray_is_id):
        mask = self._masks[key]
        return read_mask(mask, numbered=gray_is_id) if isinstance(mask, Path) else mask

    def _describe(self, key):
        mask = self._masks[key]
        return quoted(mask) if isinstance(mask, Path) else f"of frame {key}"

    def _read_all(self):
        """Collects ids, shapes, palette and digest of all masks; each is read once and not kept."""
        digest, with_void = hashlib.sha256(), []
        for key, mask in self._masks.items():
            labels = self.read(key)
            self.ids[key], self._shapes[key] = _object_ids(labels), labels.shape
            digest.update(f"{key} {labels.shape}".encode() + np.ascontiguousarray(labels).tobytes())
            if (labels == VOID).any():
                with_void.append(self._describe(key))
            if self.palette is None and isinstance(mask, Path):
                self.palette = read_palette(mask)
        self.identity = digest.hexdigest()
        count = len({object_id for ids in self.ids.values() for object_id in ids})
        if not count:
            raise UserError(f"{self._label}: no object in it, only background{' and void (255)' * bool(with_void)}. "
                            " Mark the objects with ids from 1.")
        if count > MAX_OBJECTS:
            raise UserError(f"{self._label}: {count} objects in it, more than the {MAX_OBJECTS} that one run supports."
                            " Set the others to 0.")
        if with_void:
            self.notes.append(f"255 is void, not an object, and is ignored: {_listed(with_void)}.")

    def _check_any_frame_matches(self):
        """Raises ``UserError`` if no frame of a rereadable video has a mask with an object."""
        with_objects = {key for key, ids in self.ids.items() if ids}
        if 0 in with_objects or not self._source.rereadable:
            return
        names = []
        with contextlib.closing(iter(self._source)) as frames, contextlib.suppress(UserError):  # the run reports it
            for index, frame in enumerate(frames):
                if index in with_objects or frame.name in with_objects:
                    return
                names.append(frame.name)
        if names:
            raise UserError(f"{self._label}: no mask with an object has the name of a frame of '{self._source.name}'"
                            f" ({names[0]} to {names[-1]}). Rename the masks after their frames.")


def mask_folder(folder: Path, video: str) -> Path:
    """Returns the folder that holds the masks of a video: ``folder`` itself, or the subfolder named after the video.

    Raises:
        UserError: If neither holds an image.
    """
    if list_images(folder):
        return folder
    if (folder / video).is_dir() and list_images(folder / video):
        return folder / video
    subfolders = [path.name for path in folder.iterdir() if path.is_dir()]
    raise UserError(f"No masks in {quoted(folder)} or in a subfolder '{video}' named after the"
                    f" video.{nearest_hint(video, subfolders)}")


def _masks_by_frame(first_mask, source):
    """Mask files and arrays by the name or the index of their frame."""
    if isinstance(first_mask, Mapping):
        return {_frame_key(key, source): _check_mask(mask, f"The mask of frame {key!r}")
                for key, mask in first_mask.items()}
    if isinstance(first_mask, str) and not first_mask:
        raise UserError("The path of the first mask is empty. Give the path of an image or of a folder of images.")
    if isinstance(first_mask, (str, Path)) and Path(first_mask).is_dir():
        return _masks_in_folder(mask_folder(Path(first_mask), source.name), source)
    return {0: _check_mask(first_mask, "The first mask")}


def _masks_in_folder(folder, source):
    names = _frame_names(source)
    masks, unmatched = {}, []
    for path in list_images(folder):
        name = _frame_of(path.stem, names)
        if name is None:
            unmatched.append(path.name)
        elif name in masks:
            raise UserError(f"{quoted(masks[name])} and {quoted(path)} are masks of the same frame. Remove one of"
                            " them.")
        else:
            masks[name] = path
    if unmatched:
        example = f"its frame, such as {names[0]}.png" if names else "the number of its frame, such as 00000.png"
        raise UserError(f"Masks in {quoted(folder)} match no frame of '{source.name}': {_listed(unmatched)}. Name each"
                        f" mask after {example}.")
    return masks


def _frame_names(source):
    """Names of the frames that are files; empty where frames are numbered."""
    if source.kind == "glob":
        return [path.stem for path in source.paths]
    return [path.stem for folder in source.paths if folder.is_dir() for path in list_images(folder)]


def _frame_of(mask_name, frame_names):
    """Name of the frame that a mask of this name belongs to; None if there is none."""
    if frame_names:
        return mask_name if mask_name in frame_names else None
    return f"{int(mask_name):05d}" if mask_name.isascii() and mask_name.isdigit() else None


def _frame_key(key, source):
    """Validates a key of the user's mapping."""
    if isinstance(key, str):
        names = _frame_names(source)
        name = _frame_of(key, names)
        if name is None:
            raise UserError(f"Unknown frame '{key}' of '{source.name}'. Its frames are"
                            f" {f'{names[0]} to {names[-1]}' if names else '00000, 00001, ...'}.")
        return name
    length = source.length if source.kind != "file" else None
    if (isinstance(key, bool) or not isinstance(key, (int, np.integer)) or key < 0
            or (length is not None and key >= length)):
        frames = f"; the video has {pluralize(length, 'frame')}" if length is not None else ""
        raise UserError(f"Key {key!r} of a mask is not a frame{frames}. Use the name of a frame or its index from 0.")
    return int(key)


def _check_mask(mask, label):
    """Returns a path, or uint8 ``[h, w]`` object ids."""
    if isinstance(mask, (str, Path)):
        return Path(mask)
    labels = np.asarray(mask)
    if labels.ndim != 2 or labels.dtype.kind not in "bui" or labels.size == 0:
        kind = f"{labels.dtype} {list(labels.shape)}" if labels.ndim else f"of type {type(mask).__name__}"
        raise UserError(f"{label} is {kind}. Give an integer array [height, width] or the path of an image.")
    if labels.dtype != bool and (labels.min() < 0 or labels.max() > VOID):
        raise UserError(f"{label} has values from {labels.min()} to {labels.max()}. Use object ids from 1 to"
                        f" {VOID - 1}.")
    return labels.astype(np.uint8)


def _object_ids(labels):
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=VOID + 1))
    return tuple(int(value) for value in present if 0 < value < VOID)


def _listed(names):
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
