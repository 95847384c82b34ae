"""Validation during training: held-back sequences, segmented and scored as ``uvos segment`` and ``evaluate`` do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.evaluation.region_boundary import assign_proposals, nan_mean, score_all_pairs, score_labels
from uvos_jax.inference import Segmenter
from uvos_jax.inference.flow.estimators import cached_estimator, dis_estimator
from uvos_jax.labels import VOID
from uvos_jax.training import flow_validation
from uvos_jax.training.distributed import sum_over_processes
from uvos_jax.training.phases import Phase
from uvos_jax.video.rendering import draw_overlay

_PANEL_FRAMES = 4
_PANEL_HEIGHT = 160  # pixels


class Validator:
    """Scores the networks of a run on its held-back sequences, by masks or by optical flow.

    Attributes:
        store: The sequences, see ``uvos_jax.data.storage.store``.
        videos: Numbers of the videos that are scored.
    """

    def __init__(self, store: Any, config: Mapping[str, Any], model: nn.Module, flow_folder: Path):
        """Selects the videos.

        Args:
            store: The sequences.
            config: The configuration's ``validate``.
            model: Model of the last phase.
            flow_folder: Cache of computed optical flow, for models that need it. Flow depends on the videos alone, so
                later validations reuse it.

        Raises:
            UserError: See ``choose``.
        """
        chooser = flow_validation.choose if model.task == "flow" else choose
        self.store, self.videos = store, chooser(store, config.get("only"))
        self._size, self._flow_folder = config.get("size"), flow_folder
        self._segmenter: tuple[int, Segmenter] | None = None  # phase and segmenter, kept because it compiles once

    def score(self, phase: Phase, model: nn.Module, variables: Any) -> tuple[dict[str, Any], np.ndarray | None]:
        """Scores a network; every process must call this.

        Args:
            phase: The current phase.
            model: Its model.
            variables: Its variables.

        Returns:
            See ``validate``, or ``flow_validation.validate`` for a model that estimates flow.
        """
        processes = jax.process_index(), jax.process_count()
        if model.task == "flow":
            return flow_validation.validate(flow_validation.estimator(model, variables), self.store, self.videos,
                                            *processes)
        if self._segmenter is None or self._segmenter[0] != phase.index:
            model = model.clone(**({"short_side": self._size} if self._size else {}))
            flow = cached_estimator(dis_estimator, self._flow_folder) if "flow" in model.inputs else None
            self._segmenter = phase.index, Segmenter(phase.model["name"], model, variables, flow=flow)
        segmenter = self._segmenter[1]
        segmenter.variables = jax.device_put(variables)
        return validate(segmenter, self.store, self.videos, *processes)


def choose(store: Any, only: Sequence[str] | None) -> tuple[int, ...]:
    """Returns the numbers of the videos to validate on: those named in ``only``, or all.

    Raises:
        UserError: The store lacks a name, or a video has no scored frame.
    """
    names = [video.name for video in store.videos]
    for name in only or ():
        if name not in names:
            raise UserError(f"'{store.name}' has no sequence '{name}'.{nearest_hint(name, names)}")
    chosen = tuple(v for v, name in enumerate(names) if not only or name in only)
    for v in chosen:
        if not _scored_frames(store.videos[v]):
            raise UserError(f"'{names[v]}' of '{store.name}' cannot be used for validation: no frame between the first"
                            " and the last has labels.")
    return chosen


def validate(segmenter: Segmenter, store: Any, videos: Sequence[int], process_index: int = 0,
             process_count: int = 1) -> tuple[dict[str, Any], np.ndarray | None]:
    """Segments held-back videos and scores them by the rules of DAVIS-2016, or of DAVIS-2017 for several objects.

    - One foreground: J and F on every labeled frame except the first and the last of a video, averaged over its
      frames, then over the videos. Void pixels are ignored.
    - Objects of given masks: each object is given in the first labeled frame that shows it and scored on the frames
      after that: mean over the frames of each object, then over all objects of all videos.
    - Objects that the model discovers: every labeled frame is scored. The objects are those of the first labeled frame,
      each matched with the proposal that scores best.

    Args:
        segmenter: With the variables to score.
        store: See ``uvos_jax.data.storage.store``.
        videos: Numbers of its videos.
        process_index: Number of this process; the videos are divided among the processes, which must all call this.
        process_count: Number of processes.

    Returns:
        ``{"J", "F", "J&F", "sequences": {name: {"J", "F"}}}`` as fractions of one, the same in every process; and an
        image of the first video of this process, uint8 RGB ``[h, w, 3]``, or None if it has none.
    """
    # Per video: the sums of J and F over its objects, and the number of objects.
    sums, panel = np.zeros((len(videos), 3)), None
    for position in range(process_index, len(videos), process_count):
        v = videos[position]
        if segmenter.model.task == "prompted":
            given = first_masks(store, v)
            labels = segmenter.segment(_frames(store, v), first_mask=given)
            scores = _score_objects(store, v, labels, given)
        elif segmenter.model.task == "tracks":
            labels = segmenter.segment(_frames(store, v))
            scores = score_proposals(store, v, labels)
        else:
            labels = segmenter.segment(_frames(store, v))
            scores = [_score(store, v, labels)]
        sums[position] = [*np.sum(scores, 0), len(scores)]
        if panel is None:
            panel = _panel(store, v, labels)
    sums = sum_over_processes(sums, process_count)  # each process has zeros where others have scores
    region, boundary = (float(mean) for mean in sums[:, :2].sum(0) / sums[:, 2].sum())
    sequences = {store.videos[v].name: {"J": float(j), "F": float(f)}
                 for v, (j, f) in zip(videos, sums[:, :2] / np.maximum(sums[:, 2:], 1), strict=True)}
    return {"J": region, "F": boundary, "J&F": (region + boundary) / 2, "sequences": sequences}, panel


def first_masks(store: Any, v: int) -> dict[int, np.ndarray]:
    """Returns the masks that a prompted model gets: each object in the first labeled frame that shows it.

    Args:
        store: See ``uvos_jax.data.storage.store``.
        v: Number of the video.

    Returns:
        Frame number to uint8 ``[h, w]``: the ids of the objects that are new there, 0 elsewhere. Objects that appear
        after the last scored frame are omitted.

    Raises:
        UserError: There is no object.
    """
    video, known, given = store.videos[v], set(), {}
    last = max(_scored_frames(video))
    for t in video.labeled:
        if t >= last:
            break
        labels = store.labels(v, t)
        new = [number for number in np.unique(labels).tolist() if 0 < number < VOID and number not in known]
        if new:
            given[t] = np.where(np.isin(labels, new), labels, 0).astype(np.uint8)
            known.update(new)
    if not given:
        raise UserError(f"'{video.name}' of '{store.name}' has no object to track. Leave it out.")
    return given


def _frames(store, v):
    return np.stack([store.image(v, t) for t in range(store.videos[v].length)])


def _scored_frames(video):
    return [t for t in video.labeled if 0 < t < video.length - 1]


def _score(store, v, labels):
    """Returns J and F of the foreground, means over the frames."""
    values = []
    for t in _scored_frames(store.videos[v]):
        ground_truth = store.labels(v, t)
        void = ground_truth == VOID
        foreground = (ground_truth > 0) & ~void
        region, boundary = score_labels((labels[t] > 0).astype(np.uint8), foreground.astype(np.uint8), 1,
                                        void if void.any() else None)
        values.append((region[0], boundary[0]))
    return [nan_mean([value[i] for value in values]) for i in range(2)]


def _score_objects(store, v, labels, given):
    """Returns J and F of each object: means over the frames after the one in which it is given."""
    begin = {number: t for t, mask in given.items() for number in np.unique(mask).tolist() if number}
    table = np.zeros(256, np.uint8)  # ids to 1, 2, ... as the metrics require
    table[list(begin)] = np.arange(1, len(begin) + 1)
    values = [[] for _ in begin]
    for t in _scored_frames(store.videos[v]):
        ground_truth = store.labels(v, t)
        void = ground_truth == VOID
        scores = zip(*score_labels(table[labels[t]], table[ground_truth], len(begin), void if void.any() else None),
                     strict=True)
        for row, score, first in zip(values, scores, begin.values(), strict=True):
            if t > first:
                row.append(score)
    return [[nan_mean([value[i] for value in row]) for i in range(2)] for row in values]


def score_proposals(store, v, labels):
    """Returns J and F of the objects of the first labeled frame, by the unsupervised rule of DAVIS-2017.

    Args:
        store: See ``uvos_jax.data.storage.store``.
        v: Number of the video.
        labels: Proposals, integer ``[t, h, w]``, 0 for background.

    Returns:
        ``[J, F]`` per object, means over the labeled frames.

    Raises:
        UserError: The first labeled frame shows no object.
    """
    labeled = store.videos[v].labeled
    first = store.labels(v, labeled[0])
    ids = [number for number in np.unique(first).tolist() if 0 < number < VOID]
    if not ids:
        raise UserError(f"'{store.videos[v].name}' of '{store.name}' has no object in its first labeled frame. Leave it"
                        " out.")
    table = np.zeros(256, np.uint8)
    table[ids] = np.arange(1, len(ids) + 1)
    proposals = max(int(labels.max()), len(ids))
    values = []
    for t in labeled:
        ground_truth = store.labels(v, t)
        values.append(score_all_pairs(labels[t], proposals, table[ground_truth], len(ids), ground_truth == VOID))
    mean = np.mean(values, axis=0)  # [2, proposals, objects]
    return [mean[:, proposal, number].tolist() for number, proposal in assign_proposals(mean.mean(0)).items()]


def _panel(store, v, labels):
    """Draws a few frames side by side: predicted masks above, ground truth below."""
    length = store.videos[v].length
    columns = []
    for t in sorted(set(np.linspace(0, length - 1, _PANEL_FRAMES).round().astype(int).tolist())):
        image = store.image(v, t)
        width = max(1, round(image.shape[1] * _PANEL_HEIGHT / image.shape[0]))
        columns.append(np.concatenate([cv2.resize(draw_overlay(image, shown), (width, _PANEL_HEIGHT),
                                                  interpolation=cv2.INTER_AREA)
                                       for shown in (labels[t], store.labels(v, t))]))
    return np.concatenate(columns, 1)
