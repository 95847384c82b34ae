"""Instance pruning: removes distracting instances, found by a detector or tracker, from every frame's score.

The rules need the boxes of the whole video before the first frame, since they compare a box with the boxes at its
location and with the sizes of all boxes. Masks are decoded frame by frame.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from uvos_jax.errors import UserError, pluralize
from uvos_jax.video import Frame, Source
from uvos_jax.video.coco_rle import to_rle
from uvos_jax.video.detections import (
    CAR,
    MIN_SCORE,
    PERSON,
    Detection,
    Detections,
    detections_file,
    frame_key,
    read_detections,
)
from uvos_jax.video.json_results import objects_of

# Mean number of frames of the 30 training videos of DAVIS-2016; the published script scales support by it.
TRAIN_LENGTH = 69.3
_MAX_LISTED = 6  # frames in a message

PruneInput = Any  # None, a path, a segmenter whose labels are instance ids, or an InstancePruner
Rule = Callable[[int], np.ndarray]


class VideoInstances(NamedTuple):
    """All instances of a video.

    Attributes:
        boxes: float64 ``[n, 4]``, x0, y0, x1, y1 in pixels; x1 and y1 are exclusive.
        categories: int64 ``[n]``, COCO's category_id.
        starts: int64 ``[frames + 1]``; the instances of frame i are ``starts[i]`` to ``starts[i + 1]``.
        length: Number of frames of the video, N; at least ``frames``.
    """

    boxes: np.ndarray
    categories: np.ndarray
    starts: np.ndarray
    length: int

    def of(self, frame: int) -> slice:
        """Returns the slice of the instances of a frame."""
        return slice(self.starts[frame], self.starts[frame + 1])

    def nth_largest(self) -> float:
        """Returns the area of the N-th largest box, 0 if there are fewer.

        With about one main object per frame, smaller boxes are likely distractors.
        """
        return float(np.sort(areas(self.boxes))[-self.length]) if len(self.boxes) >= self.length else 0.0


def areas(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas ``[n]`` of boxes ``[n, 4]`` in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the IoU ``[n]`` of a box ``[4]`` with boxes ``[n, 4]``.

    As in the published script, sides count one pixel more, as if x1 and y1 were inclusive; used in both variants.
    """
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.maximum(high - low + 1, 0).prod(-1)
    return shared / ((box[2:] - box[:2] + 1).prod() + (boxes[:, 2:] - boxes[:, :2] + 1).prod(-1) - shared)


def paper_rule(instances: VideoInstances) -> Rule:
    """Algorithm 1 of AD-Net (ICCV 2019): removes small and static instances.

    The paper leaves the definitions open; ours: an instance is static if more than N / 2 boxes of the whole video,
    itself included, lie at its location (IoU above 0.6, the published script's threshold). It is small if its box is
    smaller than the N-th largest. Both must hold.

    Args:
        instances: Instances of the video.

    Returns:
        A function from the index of a frame to bool ``[k]``, true for the instances of the frame to remove.
    """
    size_low = instances.nth_largest()

    def remove(frame: int) -> np.ndarray:
        boxes = instances.boxes[instances.of(frame)]
        return (areas(boxes) < size_low) & (_support(boxes, instances) > 0.5 * instances.length)

    return remove


def official_rule(instances: VideoInstances, train_length: float = TRAIN_LENGTH) -> Rule:
    """The rules of AD-Net's published script, with its constants for frames of 480 x 854 pixels.

    With at most three boxes per frame on average, nothing is removed. Otherwise static instances are removed: those
    smaller than the largest of the frame and at most 47,000 pixels, with more than 0.4 ``train_length`` boxes of the
    whole video at their location. If the largest instance is dominant (a person or car more than twice as large as the
    next), distractors of its category are removed, too: those with an IoU of at most 0.1 with it that are below a third
    of its size, or far from it and towards a side of the frame. If the first dominant instance appears after the 21st
    frame, nothing is removed from that frame on.

    Args:
        instances: Instances of the video.
        train_length: Number of frames that support is measured by; mean training video length of the dataset.

    Returns:
        As :func:`paper_rule`.
    """
    if len(instances.boxes) <= 3 * instances.length:
        return lambda frame: np.zeros(len(instances.boxes[instances.of(frame)]), bool)
    size_target = instances.nth_largest()

    def has_dominant(frame: int) -> bool:
        of_frame = instances.of(frame)
        boxes = instances.boxes[of_frame]
        if len(boxes) < 2:
            return False
        order = np.argsort(areas(boxes))
        second, largest = areas(boxes)[order[-2:]]
        width, height = boxes[order[-1], 2:] - boxes[order[-1], :2]
        return (largest > max(10_000, 2 * second, size_target) and width < 3 * height
                and instances.categories[of_frame][order[-1]] in (PERSON, CAR))

    first = next(filter(has_dominant, range(len(instances.starts) - 1)), 0)
    end = first if first > 20 else len(instances.starts)

    def remove(frame: int) -> np.ndarray:
        of_frame = instances.of(frame)
        boxes, categories = instances.boxes[of_frame], instances.categories[of_frame]
        size = areas(boxes)
        if frame >= end or not len(boxes):
            return np.zeros(len(boxes), bool)
        static = (size <= 47_000) & (size != size.max()) & (_support(boxes, instances) > 0.4 * train_length)
        if not has_dominant(frame):
            return static
        main = np.argsort(size)[-1]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        aside = (np.abs(centers[:, 0] - 450) > 150) & (np.abs(centers - centers[main]).sum(-1) > 200)
        distractor = (size < size[main] // 3) | aside
        return static | (distractor & (iou(boxes[main], boxes) <= 0.1) & (categories == categories[main]))

    return remove


def extra_stages(variant: str) -> tuple[str, ...]:
    """Returns the names of the post-processing stages that pruning adds before those of the model."""
    return ("main_component",) if variant.startswith("official") else ()


class InstancePruner:
    """Removes instances from the frames of one video during a run.

    Attributes:
        identity: Identifies the detections, so that a run is continued only with the same ones.
        removed_instances: Number of instances removed so far.
        pruned_frames: Number of frames with removed instances.
    """

    def __init__(self, prune: PruneInput, source: Source, variant: str,
                 say: Callable[[str], None] = lambda sentence: None):
        """Reads the detections if they come from a file.

        Args:
            prune: A file that ``video.detections.read_detections`` reads; a folder with such a file named after the
                video; or a segmenter whose labels are instance ids, which runs over the whole video.
            source: The video.
            variant: Variant of the model; official variants use the rules of the published script, others the paper's.
            say: Called with remarks for the user, one sentence each.

        Raises:
            UserError: If the detections cannot be used.
        """
        self.removed_instances = self.pruned_frames = 0
        self._source, self._say = source, say
        self._rule = official_rule if variant.startswith("official") else paper_rule
        self._detections: Detections | None = None
        self._segmenter = None
        self._remove: Rule | None = None
        self._processed: set[int | str] = set()
        if isinstance(prune, (str, os.PathLike)):
            self._detections = read_detections(detections_file(prune, source.name))
            self.identity = self._detections.identity
        elif not hasattr(prune, "run"):
            raise UserError(f"Cannot prune instances with {prune!r:.40}. Give a JSON file, a folder of them or a"
                            " segmenter.")
        else:
            self._segmenter = prune
            self.identity = f"{prune.name} {prune.weights_digest}"
            if not source.rereadable:
                raise UserError(f"{prune.name} must process the whole video before pruning, but '{source.name}' can be"
                                " read only once. Record it first, or give a JSON file.")

    @property
    def unused_note(self) -> str | None:
        """A sentence about detections of frames that the run has not processed; None if there are none."""
        unused = [key for key, of_frame in self._detections.frames.items() if of_frame and key not in self._processed]
        if not unused:
            return None
        more = f" and {len(unused) - _MAX_LISTED} more" if len(unused) > _MAX_LISTED else ""
        return (f"{self._detections.where} has detections of {pluralize(len(unused), 'frame')} that were not"
                " processed:"
                f" {', '.join(map(str, unused[:_MAX_LISTED]))}{more}.")

    def prepare(self) -> None:
        """Runs the segmenter, if there is one, and checks that the detections belong to this video.

        Raises:
            UserError: If a video that can be read twice has none of the frames.
        """
        if self._segmenter is not None and self._detections is None:
            self._say(f"{self._segmenter.name} detects instances in the whole video before the first frame is pruned.")
            self._detections = detect_instances(self._segmenter, self._source)
        detected = {key for key, detections in self._detections.frames.items() if detections}
        if not detected or not self._source.rereadable:
            return
        names = []
        with contextlib.closing(iter(self._source)) as frames, contextlib.suppress(UserError):  # the run reports it
            for frame in frames:
                if frame_key(frame.name) in self._detections.frames:
                    return
                names.append(frame.name)
        if names:
            raise UserError(f"{self._detections.where} belongs to another video: none of its frames"
                            f" ({next(iter(detected))}, ..) is in '{self._source.name}' ({names[0]} to {names[-1]}).")

    def select(self, frames: Sequence[Frame]) -> list[list[int]]:
        """Returns the indices of the instances to remove, for each frame, and counts them.

        Raises:
            UserError: At the first call, if the frames differ in size from the detections, or a mask cannot be used.
        """
        if self._remove is None:
            self._prepare_instances(frames[0].image.shape[:2])
        selected = []
        for frame in frames:
            key = frame_key(frame.name)
            index = self._frame_indices.get(key)
            removed = [] if index is None else np.flatnonzero(self._remove(index)) + self._instances.starts[index]
            self._processed.add(key)
            self.removed_instances += len(removed)
            self.pruned_frames += len(removed) > 0
            selected.append([int(i) for i in removed])
        return selected

    def keep_mask(self, frames: Sequence[Frame], chunk: int) -> np.ndarray:
        """Returns bool ``[chunk, h, w]`` for consecutive frames, false on every instance to remove."""
        result = np.ones((chunk, *frames[0].image.shape[:2]), bool)
        for keep, indices in zip(result, self.select(frames), strict=False):
            for i in indices:
                if self._masks[i] is None:
                    x0, y0, x1, y1 = np.rint(self._instances.boxes[i]).astype(int)
                    keep[y0:y1, x0:x1] = False
                else:
                    from pycocotools import mask as mask_utils

                    keep &= mask_utils.decode(self._masks[i]) == 0
        return result

    def _prepare_instances(self, size):
        """Clips all boxes to frames of this size, decodes the masks' run lengths and applies the rule."""
        detections, (height, width) = self._detections, size
        if detections.size not in (None, size):
            raise UserError(f"{detections.where} is for frames of {detections.size[1]}x{detections.size[0]} (width x"
                            f" height), but those of '{self._source.name}' are {width}x{height}.")
        entries = [(index, detection) for index, of_frame in enumerate(detections.frames.values())
                   for detection in of_frame]
        boxes = np.array([detection.box for _, detection in entries], float).reshape(-1, 4)
        clipped = boxes.clip(0, [width, height, width, height])
        inside = (np.rint(clipped[:, 2:]) > np.rint(clipped[:, :2])).all(-1)
        entries = [entry for entry, is_inside in zip(entries, inside, strict=True) if is_inside]
        self._masks = [_run_lengths(detection, size) if detection.segmentation else None for _, detection in entries]
        self._frame_indices = {key: index for index, key in enumerate(detections.frames)}
        self._instances = VideoInstances(
            clipped[inside], np.array([detection.category for _, detection in entries], np.int64),
            np.searchsorted([index for index, _ in entries], np.arange(len(detections.frames) + 1)),
            max(1, len(detections.frames), detections.length, self._source.length or 0))
        self._remove = self._rule(self._instances)
        self._report(int(((clipped != boxes).any(-1) & inside).sum()), int((~inside).sum()))

    def _report(self, clipped, outside):
        where, count = self._detections.where, len(self._instances.boxes)
        if clipped:
            self._say(f"{where}: {_box_count(clipped)} extended beyond the frame and clipped.")
        if outside:
            self._say(f"{where}: {_box_count(outside)} outside the frame and ignored.")
        if not count:
            threshold = f" with a score of {MIN_SCORE} or more" if self._detections.dropped else ""
            self._say(f"{where} has no instance{threshold}; nothing is pruned.")
        elif self._rule is official_rule and count <= 3 * self._instances.length:
            self._say(f"{where} has {count / self._instances.length:.1f} boxes per frame; the published rules remove"
                              " none with 3 or fewer.")


def make_pruner(prune: PruneInput, source: Source, segmenter: Any, say: Callable[[str], None]) -> InstancePruner | None:
    """Returns the pruner of a run; None if ``prune`` is None.

    Raises:
        UserError: If ``prune`` cannot be used, or the model has more than one foreground object.
    """
    if prune is None or isinstance(prune, InstancePruner):
        return prune
    check_prunable(segmenter)
    if hasattr(prune, "run"):
        prune = prune.on(segmenter.device)
    return InstancePruner(prune, source, segmenter.model.variant, say)


def check_prunable(segmenter: Any) -> None:
    """Raises ``UserError`` for a model that segments several objects, where pruning has no meaning."""
    if segmenter.model.task != "foreground":
        raise UserError(f"Cannot prune with {segmenter.name}, which segments several objects. Leave out --prune, or use"
                        " a model with one foreground, such as adnet.")


def detect_instances(segmenter: Any, source: Source) -> Detections:
    """Returns the instances that a segmenter finds, as detections.

    Args:
        segmenter: A ``Segmenter``, or an object with its ``name``, ``weights_digest`` and ``run``; its labels are ids.
        source: A video that can be read twice.
    """
    frames, where = {}, f"The output of {segmenter.name}"
    with contextlib.closing(segmenter.run(source)) as results:
        for result in results:
            frames[frame_key(result.frame.name)] = [
                Detection((x, y, x + width, y + height), PERSON, entry["segmentation"], where)
                for entry in objects_of(result.labels) for x, y, width, height in [entry["bbox"]]]
    return Detections(where, "", frames)


def _support(boxes, instances):
    """Number of boxes of the video at the location of each of these (IoU above 0.6)."""
    return np.array([np.count_nonzero(iou(box, instances.boxes) > 0.6) for box in boxes], int)


def _run_lengths(detection, size):
    try:
        return to_rle(detection.segmentation, *size)
    except ValueError as error:
        raise UserError(f"{detection.where}: its mask {error}.") from error


def _box_count(count):
    return f"{count} box{'es' if count > 1 else ''}"
