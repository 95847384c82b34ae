"""The objects of one run: which object id has which slot in the model, and when each object is introduced.

*Object ids* are the values in the user's masks, 1 to 254 with gaps. *Slots* are the model's numbering, 1, 2, ...:
objects introduced in the same frame take slots in the order of their ids, later objects take the next ones. 0 is
background in both.

An object is introduced by the first mask that shows it. Later masks of the same object are ignored, so that a folder
with the ground truth of every frame leaks none of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.inference.auto_prompt import AutoPrompt, AutoPromptFinder
from uvos_jax.inference.prompts import MAX_OBJECTS, FirstMask, PromptMasks
from uvos_jax.labels import VOID
from uvos_jax.video import Frame, Source

_AUTO_IDS = (1,)  # an automatic prompt is one foreground


class ObjectEntry(NamedTuple):
    """One registered object.

    Attributes:
        id: Its id in the user's masks.
        index: Index in the run of the frame that introduces it.
        frame: Name of that frame.
    """

    id: int
    index: int
    frame: str


class ObjectRegistry:
    """The objects of one run through one video.

    Attributes:
        entries: The registered objects; ``entries[i]`` has slot ``i + 1``. Set it to continue an earlier run.
        palette: uint8 ``[256, 3]``, the palette of the first mask file that has one; else None.
        notes: Remarks about the prompt for the user, one sentence each.
        identity: A text that is equal for equal prompts.
    """

    def __init__(self, first_mask: FirstMask, source: Source, finder: Any = None):
        """Reads and validates the prompt.

        Args:
            first_mask: A file for the first frame; a folder of files named after their frames, or a folder with such a
                folder named after the video; an array of object ids ``[h, w]`` for the first frame; or a mapping from
                a frame's name, or its index among the frames that are read, to a file or an array. Ignored if there
                is a ``finder``.
            source: The video.
            finder: A ``Segmenter`` that needs no prompt. The foreground in the first frame where it finds an object
                becomes object 1.

        Raises:
            UserError: If a mask cannot be used, or there is no object or too many.
        """
        self.entries: list[ObjectEntry] = []
        self._source, self._max_objects = source, 0
        self._finder = AutoPromptFinder(finder, source) if finder else None
        self._auto_prompt: AutoPrompt | None = None
        self._masks = None if finder else PromptMasks(first_mask, source)
        prompt = self._finder or self._masks
        self.identity: str = prompt.identity
        self.palette: np.ndarray | None = None if finder else prompt.palette
        self.notes: list[str] = [] if finder else prompt.notes

    @property
    def slot_to_id(self) -> np.ndarray:
        """uint8 ``[256]``, the object id of every slot; 0 for free slots."""
        table = np.zeros(256, np.uint8)
        table[1:len(self.entries) + 1] = [entry.id for entry in self.entries]
        return table

    @property
    def unused_ids(self) -> list[int]:
        """Ids in masks whose frames the run has not reached."""
        registered = {entry.id for entry in self.entries}
        masks = self._masks.ids.values() if self._masks else [_AUTO_IDS] if self._auto_prompt else []
        return sorted({object_id for ids in masks for object_id in ids} - registered)

    def entries_before(self, index: int) -> list[ObjectEntry]:
        """The objects introduced before this frame of the run."""
        return [entry for entry in self.entries if entry.index < index]

    def check_mask_sizes(self) -> None:
        """Raises ``UserError`` if a mask differs in size from the first frame of a video that can be read twice."""
        if self._masks:
            self._masks.check_sizes_early()

    def find_auto_prompt(self, on_start: Callable[[], object] = lambda: None) -> None:
        """Searches the video for the object of ``--first-mask auto``.

        Does nothing if there are masks, if the object is known already, or if the video can be read only once: then
        :meth:`register` searches.

        Args:
            on_start: See ``Segmenter.run``; called for the model that searches.

        Raises:
            UserError: If no object is found.
        """
        if self._finder and not self.entries and not self._auto_prompt and self._source.rereadable:
            self._set_auto_prompt(self._finder.search(on_start))

    def register(self, index: int, frames: Sequence[Frame], chunk: int) -> np.ndarray | None:
        """Registers the objects that consecutive frames introduce.

        Args:
            index: Index of the first of these frames in the run.
            frames: At most ``chunk`` frames.
            chunk: Length of the result.

        Returns:
            uint8 ``[chunk, h, w]``, the slots of the new objects and 0 elsewhere; in the first frame of the run also
            255 for void. None if no object is new.

        Raises:
            UserError: At the first call, if a mask differs in size from the frames; if the first frame cannot be
                decoded; or see :meth:`find_auto_prompt`.
        """
        if self._masks:
            self._masks.check_sizes(frames[0].image.shape[:2])
        new = {i: slots for i, frame in enumerate(frames)
               if (slots := self._register_frame(index + i, frame)) is not None}
        if not new:
            return None
        result = np.zeros((chunk, *frames[0].image.shape[:2]), np.uint8)
        for i, slots in new.items():
            result[i] = slots
        return result

    def grow_slots(self, max_objects: int) -> tuple[int, str | None]:
        """Returns the number of slots that the model needs, doubled until all objects fit and 80 at most.

        Args:
            max_objects: Slots of the model to begin with.

        Returns:
            The number, and a sentence for the user if it has grown since the last call.
        """
        before, slots = self._max_objects or max_objects, max(max_objects, self._max_objects)
        while slots < len(self.entries):
            slots = min(2 * slots, MAX_OBJECTS)
        recompiles = bool(self._max_objects)
        self._max_objects = slots
        if slots == before:
            return slots, None
        return slots, (f"{len(self.entries)} objects from frame {self.entries[-1].frame} on: using {slots} object slots"
                       f"{' and compiling again' * recompiles}.")

    def _register_frame(self, index, frame):
        """Slots uint8 ``[h, w]`` of the objects that one frame introduces; None if there are none."""
        if self._finder and not self.entries and not self._auto_prompt and not self._source.rereadable:
            self._set_auto_prompt(self._finder.search_frame(index, frame))
        registered = {entry.id for entry in self.entries}
        ids, read = self._prompt_of(index, frame)
        new = [object_id for object_id in ids if object_id not in registered]
        if not new or (frame.broken is not None and index > 0):
            return None
        if frame.broken is not None:
            raise UserError(f"Cannot decode the first frame, {frame.name} ({frame.broken}), so its mask cannot be used."
                            " Start later with --start, and give a mask of that frame.")
        slot_of = np.zeros(256, np.uint8)
        slot_of[VOID] = VOID if index == 0 else 0
        slot_of[new] = len(self.entries) + 1 + np.arange(len(new))
        self.entries += [ObjectEntry(object_id, index, frame.name) for object_id in new]
        return slot_of[read()]

    def _prompt_of(self, index, frame):
        """The object ids in the mask of a frame, and a function that reads the mask."""
        if self._masks:
            key = self._masks.key(index, frame)
            return () if key is None else self._masks.ids[key], lambda: self._masks.read(key)
        prompt = self._auto_prompt
        return _AUTO_IDS if prompt and prompt.index == index else (), lambda: prompt.labels

    def _set_auto_prompt(self, prompt):
        self._auto_prompt = prompt
        if prompt is not None:
            self.notes.append(self._finder.note)
