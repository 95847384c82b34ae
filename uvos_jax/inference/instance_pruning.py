"""Instance pruning: what a detector or a tracker finds beside the main object is taken out of every frame's score.

It looks at the boxes of the whole video before the first frame, since a box is judged by how often there is one in its
place, and how large the others are. The masks of a frame are made when it comes by.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from uvos_jax.errors import UserError
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

# Mean number of frames of DAVIS-2016's 30 training videos, which the published script counts support against.
TRAIN_LENGTH = 69.3
_NAMED = 6  # frames in a message

PruneInput = Any  # None, a path, a segmenter whose labels are ids of instances, or what make_pruner made of them
Rule = Callable[[int], np.ndarray]


class VideoInstances(NamedTuple):
    """All instances of a video.

    Attributes:
      boxes: float64 ``[n, 4]``, x0, y0, x1, y1 in pixels, x1 and y1 behind the last one.
      categories: int64 ``[n]``, COCO's category_id.
      starts: int64 ``[frames + 1]``, those of frame i are ``starts[i]`` to ``starts[i + 1]``.
      length: number of frames of the video, N; at least ``frames``.
    """

    boxes: np.ndarray
    categories: np.ndarray
    starts: np.ndarray
    length: int

    def of(self, frame: int) -> slice:
        """Where those of a frame are."""
        return slice(self.starts[frame], self.starts[frame + 1])

    def nth_largest(self) -> float:
        """Area of the N-th largest box: as there is about one main object a frame, smaller ones are something else."""
        return float(np.sort(areas(self.boxes))[-self.length]) if len(self.boxes) >= self.length else 0.0


def areas(boxes: np.ndarray) -> np.ndarray:
    """``[n, 4]`` to ``[n]``, square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box ``[4]`` with others ``[n, 4]``: ``[n]``.

    Sides count one pixel more, as if boxes were told by their last pixel: the published script's, in both variants.
    """
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.maximum(high - low + 1, 0).prod(-1)
    return shared / ((box[2:] - box[:2] + 1).prod() + (boxes[:, 2:] - boxes[:, :2] + 1).prod(-1) - shared)


def paper_rule(instances: VideoInstances) -> Rule:
    """Algorithm 1 of AD-Net's paper: what is small and static goes.

    Ours, since the paper leaves it open: static is an instance in whose place (IoU above 0.6, the published script's)
    there are more than N / 2 boxes in the whole video, itself included; small, one whose box is smaller than the N-th
    largest; and both must be true.

    Args:
      instances: of the video.

    Returns:
      A function from a frame's index to bool ``[k]``, true for those of its instances that go.
    """
    size_low = instances.nth_largest()

    def dropped(frame: int) -> np.ndarray:
        boxes = instances.boxes[instances.of(frame)]
        return (areas(boxes) < size_low) & (_support(boxes, instances) > 0.5 * instances.length)

    return dropped


def official_rule(instances: VideoInstances, train_length: float = TRAIN_LENGTH) -> Rule:
    """The rules of AD-Net's published script, with its numbers for frames of 480 x 854 pixels.

    With at most three boxes a frame nothing goes. Else those go that are static: smaller than the largest of the frame
    and than 47,000 pixels, and in whose place there are more than 0.4 ``train_length`` boxes in the whole video. And
    where the largest one stands out, a person or a car that is more than twice as large as the next, those of its
    category go that hardly touch it and are below a third of its size, or far from it and towards a side of the frame.
    If the first frame with one that stands out comes after the 21st, nothing goes from there on.

    Args:
      instances: of the video.
      train_length: the number of frames that support is measured by, that of another data set.

    Returns:
      As :func:`paper_rule`.
    """
    if len(instances.boxes) <= 3 * instances.length:
        return lambda frame: np.zeros(len(instances.boxes[instances.of(frame)]), bool)
    size_target = instances.nth_largest()

    def stands_out(frame: int) -> bool:
        where = instances.of(frame)
        boxes = instances.boxes[where]
        if len(boxes) < 2:
            return False
        order = np.argsort(areas(boxes))
        second, largest = areas(boxes)[order[-2:]]
        width, height = boxes[order[-1], 2:] - boxes[order[-1], :2]
        return (largest > max(10_000, 2 * second, size_target) and width < 3 * height
                and instances.categories[where][order[-1]] in (PERSON, CAR))

    first = next(filter(stands_out, range(len(instances.starts) - 1)), 0)
    end = first if first > 20 else len(instances.starts)

    def dropped(frame: int) -> np.ndarray:
        where = instances.of(frame)
        boxes, categories, size = instances.boxes[where], instances.categories[where], areas(instances.boxes[where])
        if frame >= end or not len(boxes):
            return np.zeros(len(boxes), bool)
        static = (size <= 47_000) & (size != size.max()) & (_support(boxes, instances) > 0.4 * train_length)
        if not stands_out(frame):
            return static
        main = np.argsort(size)[-1]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        aside = (np.abs(centers[:, 0] - 450) > 150) & (np.abs(centers - centers[main]).sum(-1) > 200)
        distracts = (size < size[main] // 3) | aside
        return static | (distracts & (iou(boxes[main], boxes) <= 0.1) & (categories == categories[main]))

    return dropped


def extra_stages(variant: str) -> tuple[str, ...]:
    """Names of the driver's stages that pruning brings along, before those of the model."""
    return ("main_part",) if variant.startswith("official") else ()


class InstancePruner:
    """The instances that are taken out of the frames of one video, in a run.

    Attributes:
      identity: of the detections, for runs that go on.
      instances: how many were removed so far.
      frames: from how many frames.
    """

    def __init__(self, prune: PruneInput, source: Source, variant: str, say: Callable[[str], None] = lambda sentence: None):
        """Reads the detections of a file.

        Args:
          prune: a file that ``video.detections.read_detections`` takes, or a folder with one called as the video; or a
            segmenter whose labels are ids of instances, which is run over the whole video.
          source: the video.
          variant: of the model; ``official`` ones have the published script's rules, others the paper's.
          say: called with a sentence about the detections.

        Raises:
          UserError: if they cannot be used.
        """
        self.removed_instances = self.pruned_frames = 0
        self._source, self._say = source, say
        self._rule = official_rule if variant.startswith("official") else paper_rule
        self._detections: Detections | None = None
        self._segmenter = None
        self._dropped: Rule | None = None
        self._processed: set[int | str] = set()
        if isinstance(prune, (str, os.PathLike)):
            self._detections = read_detections(detections_file(prune, source.name))
            self.identity = self._detections.identity
        elif not hasattr(prune, "run"):
            raise UserError(f"Instances to prune come from a file, a folder of them or a segmenter, not {prune!r:.40}.")
        else:
            self._segmenter = prune
            self.identity = f"{prune.name} {prune.weights_digest}"
            if not source.rereadable:
                raise UserError(f"{prune.name} looks at the whole video before the first frame is pruned, but"
                                f" '{source.name}' can be read only once; record it first, or give a JSON file.")

    @property
    def unused_note(self) -> str | None:
        """A sentence about detections of frames that never came by."""
        never = [key for key, detections in self._detections.frames.items() if detections and key not in self._processed]
        if not never:
            return None
        more = f" and {len(never) - _NAMED} more" if len(never) > _NAMED else ""
        return (f"{self._detections.where} has detections of {len(never)} frame{'s' * (len(never) > 1)} that never came by:"
                f" {', '.join(map(str, never[:_NAMED]))}{more}.")

    def prepare(self) -> None:
        """Has the segmenter find the instances; sees to it that detections are of this video.

        Raises:
          UserError: if none of the frames is in a video that can be read twice.
        """
        if self._segmenter is not None and self._detections is None:
            self._say(f"{self._segmenter.name} looks for instances in the whole video before the first frame is pruned.")
            self._detections = detect_instances(self._segmenter, self._source)
        spoken_of = {key for key, detections in self._detections.frames.items() if detections}
        if not spoken_of or not self._source.rereadable:
            return
        names = []
        with contextlib.closing(iter(self._source)) as frames, contextlib.suppress(UserError):  # the run will tell that
            for frame in frames:
                if frame_key(frame.name) in self._detections.frames:
                    return
                names.append(frame.name)
        if names:
            raise UserError(f"{self._detections.where} is of another video: none of its frames"
                            f" ({next(iter(spoken_of))}, ..) is in '{self._source.name}' ({names[0]} to {names[-1]}).")

    def select(self, frames: Sequence[Frame]) -> list[list[int]]:
        """Notes that frames came by, and tells the indices of the instances that go, of each.

        Raises:
          UserError: at the first call, if the frames have another size than the detections, or a mask cannot be used.
        """
        if self._dropped is None:
            self._judge(frames[0].image.shape[:2])
        found = []
        for frame in frames:
            key = frame_key(frame.name)
            place = self._places.get(key)
            where = [] if place is None else np.flatnonzero(self._dropped(place)) + self._boxes.starts[place]
            self._processed.add(key)
            self.removed_instances += len(where)
            self.pruned_frames += len(where) > 0
            found.append([int(i) for i in where])
        return found

    def keep_mask(self, frames: Sequence[Frame], chunk: int) -> np.ndarray:
        """What stays of frames that follow each other: bool ``[chunk, h, w]``, false on every instance that goes."""
        result = np.ones((chunk, *frames[0].image.shape[:2]), bool)
        for keep, indices in zip(result, self.select(frames), strict=False):
            for i in indices:
                if self._masks[i] is None:
                    x0, y0, x1, y1 = np.rint(self._boxes.boxes[i]).astype(int)
                    keep[y0:y1, x0:x1] = False
                else:
                    from pycocotools import mask as mask_utils

                    keep &= mask_utils.decode(self._masks[i]) == 0
        return result

    def _judge(self, size):
        """Boxes and masks of all frames, within frames of this size; what there is to say of them."""
        found, (height, width) = self._detections, size
        if found.size not in (None, size):
            raise UserError(f"{found.where} is of frames of {found.size[1]}x{found.size[0]} (width x height), but those"
                            f" of '{self._source.name}' are {width}x{height}.")
        told = [(place, detection) for place, of_frame in enumerate(found.frames.values()) for detection in of_frame]
        whole = np.array([detection.box for _, detection in told], float).reshape(-1, 4)
        boxes = whole.clip(0, [width, height, width, height])
        inside = (np.rint(boxes[:, 2:]) > np.rint(boxes[:, :2])).all(-1)
        told = [entry for entry, is_inside in zip(told, inside, strict=True) if is_inside]
        self._masks = [_run_lengths(detection, size) if detection.segmentation else None for _, detection in told]
        self._places = {key: place for place, key in enumerate(found.frames)}
        self._boxes = VideoInstances(boxes[inside], np.array([detection.category for _, detection in told], np.int64),
                                np.searchsorted([place for place, _ in told], np.arange(len(found.frames) + 1)),
                                max(1, len(found.frames), found.length, self._source.length or 0))
        self._dropped = self._rule(self._boxes)
        self._note(int(((boxes != whole).any(-1) & inside).sum()), int((~inside).sum()))

    def _note(self, cut, outside):
        where, count = self._detections.where, len(self._boxes.boxes)
        if cut:
            self._say(f"{where}: {_boxes(cut)} beyond the frame, cut at its edge.")
        if outside:
            self._say(f"{where}: {_boxes(outside)} without a pixel in the frame, left out.")
        if not count:
            unsure = f" of a score of {MIN_SCORE} or more" if self._detections.dropped else ""
            self._say(f"{where} holds no instance{unsure}, so that nothing is pruned.")
        elif self._rule is official_rule and count <= 3 * self._boxes.length:
            self._say(f"{where} has {count / self._boxes.length:.1f} boxes a frame; the published rules remove"
                              " none where there are not more than 3.")


def make_pruner(prune: PruneInput, source: Source, segmenter: Any, say: Callable[[str], None]) -> InstancePruner | None:
    """What is taken out of the frames of a run, see :class:`InstancePruner`; None if nothing is asked for.

    Raises:
      UserError: if it cannot be used, or the segmenter is none that finds one foreground.
    """
    if prune is None or isinstance(prune, InstancePruner):
        return prune
    check_prunable(segmenter)
    if hasattr(prune, "run"):
        prune = prune.on(segmenter.device)
    return InstancePruner(prune, source, segmenter.model.variant, say)


def check_prunable(segmenter: Any) -> None:
    """Raises ``UserError`` for a model that tells objects apart, where no instance is one too many."""
    if segmenter.model.task != "foreground":
        raise UserError(f"{segmenter.name} tells objects apart, and pruning is for models with one foreground, such as"
                        " adnet; leave out --prune.")


def detect_instances(finder: Any, source: Source) -> Detections:
    """The instances that a segmenter finds, in the form of a file's.

    Args:
      finder: a ``Segmenter``, or what has its ``name``, ``weights_digest`` and ``run``, whose labels are ids.
      source: a video that can be read twice.
    """
    frames, where = {}, f"What {finder.name} finds"
    with contextlib.closing(finder.run(source)) as answers:
        for answer in answers:
            frames[frame_key(answer.frame.name)] = [
                Detection((x, y, x + width, y + height), PERSON, thing["segmentation"], where)
                for thing in objects_of(answer.labels) for x, y, width, height in [thing["bbox"]]]
    return Detections(where, "", frames)


def _support(boxes, instances):
    """How many boxes of the video lie where each of these lies."""
    return np.array([np.count_nonzero(iou(box, instances.boxes) > 0.6) for box in boxes], int)


def _run_lengths(detection, size):
    try:
        return to_rle(detection.segmentation, *size)
    except ValueError as error:
        raise UserError(f"{detection.where}: its mask {error}.") from error


def _boxes(count):
    return f"{count} box{'es' if count > 1 else ''}"
