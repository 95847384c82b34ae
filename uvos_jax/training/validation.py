"""Validation during training: held-back sequences through the inference and the measures that users get."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.evaluation.region_boundary import assign, nan_mean, score_all_pairs, score_labels
from uvos_jax.inference import Segmenter
from uvos_jax.training.distributed import sum_over_processes
from uvos_jax.video.rendering import draw_overlay

_VOID = 255
_PANEL_FRAMES = 4
_PANEL_HEIGHT = 160


def choose(store: Any, only: Sequence[str] | None) -> tuple[int, ...]:
    """Numbers of the videos to validate on: those named in ``only``, or all.

    Raises:
      UserError: for a name that the store does not have, or a video without a frame that counts.
    """
    names = [video.name for video in store.videos]
    for name in only or ():
        if name not in names:
            raise UserError(f"'{store.name}' has no sequence '{name}' to validate on.{nearest_hint(name, names)}")
    chosen = tuple(v for v, name in enumerate(names) if not only or name in only)
    for v in chosen:
        if not _counted(store.videos[v]):
            raise UserError(f"'{names[v]}' of '{store.name}' cannot be validated on: no frame between its first and its"
                            " last has labels.")
    return chosen


def validate(segmenter: Segmenter, store: Any, videos: Sequence[int], process_index: int = 0,
             process_count: int = 1) -> tuple[dict[str, Any], np.ndarray | None]:
    """Segments held-back videos and scores them by the rules of DAVIS-2016, or of DAVIS-2017 for many objects.

    J and F of the foreground on every labeled frame but the first and the last of each video, the mean over its
    frames, then the mean over the videos; void pixels count for nothing. A model that follows objects is given each of
    them in the first labeled frame that shows it, and judged on the frames after that: the mean over the frames of
    each object, then the mean over all objects of all videos. Of a model that finds many objects itself every labeled
    frame counts, and the objects are those of the first one, each judged by the proposal that suits it best.

    Args:
      segmenter: with the variables to be judged.
      store: with the shape of ``uvos_jax.data.storage.store``.
      videos: numbers of its videos.
      process_index: of this process; the videos are shared among the processes, which must all call this.
      process_count: of all.

    Returns:
      ``{"J", "F", "J&F", "sequences": {name: {"J", "F"}}}`` as fractions of one, the same in every process; and a
      picture of the first video of this process, uint8 RGB, or None if it has none.
    """
    # Of each video the sums of J and F over its objects, and how many objects these are.
    sums, panel = np.zeros((len(videos), 3)), None
    for place in range(process_index, len(videos), process_count):
        v = videos[place]
        if segmenter.model.task == "prompted":
            given = first_masks(store, v)
            labels = segmenter.segment(_frames(store, v), first_mask=given)
            scores = _score_objects(store, v, labels, given)
        elif segmenter.model.task == "tracks":
            labels = segmenter.segment(_frames(store, v))
            scores = score_found(store, v, labels)
        else:
            labels = segmenter.segment(_frames(store, v))
            scores = [_score(store, v, labels)]
        sums[place] = [*np.sum(scores, 0), len(scores)]
        if panel is None:
            panel = _panel(store, v, labels)
    sums = sum_over_processes(sums, process_count)  # each process has zeros where others have scores
    region, boundary = (float(mean) for mean in sums[:, :2].sum(0) / sums[:, 2].sum())
    sequences = {store.videos[v].name: {"J": float(j), "F": float(f)}
                 for v, (j, f) in zip(videos, sums[:, :2] / np.maximum(sums[:, 2:], 1), strict=True)}
    return {"J": region, "F": boundary, "J&F": (region + boundary) / 2, "sequences": sequences}, panel


def first_masks(store: Any, v: int) -> dict[int, np.ndarray]:
    """What a model that follows objects is given of a video: each object in the first labeled frame that shows it.

    Returns:
      Frame number to uint8 ``[h, w]``: the ids of the objects that are new there, 0 elsewhere. Objects that appear too
      late to be judged are left out.

    Raises:
      UserError: if there is no object.
    """
    video, known, given = store.videos[v], set(), {}
    last = max(_counted(video))
    for t in video.labeled:
        if t >= last:
            break
        labels = store.labels(v, t)
        new = [number for number in np.unique(labels).tolist() if 0 < number < _VOID and number not in known]
        if new:
            given[t] = np.where(np.isin(labels, new), labels, 0).astype(np.uint8)
            known.update(new)
    if not given:
        raise UserError(f"'{video.name}' of '{store.name}' shows no object that could be followed; leave it out.")
    return given


def _frames(store, v):
    return np.stack([store.image(v, t) for t in range(store.videos[v].length)])


def _counted(video):
    return [t for t in video.labeled if 0 < t < video.length - 1]


def _score(store, v, labels):
    values = []
    for t in _counted(store.videos[v]):
        truth = store.labels(v, t)
        void = truth == _VOID
        region, boundary = score_labels((labels[t] > 0).astype(np.uint8), ((truth > 0) & ~void).astype(np.uint8), 1,
                                        void if void.any() else None)
        values.append((region[0], boundary[0]))
    return [nan_mean([value[i] for value in values]) for i in range(2)]


def _score_objects(store, v, labels, given):
    """J and F of each object, the means over the frames after the one in which it is given."""
    begin = {number: t for t, mask in given.items() for number in np.unique(mask).tolist() if number}
    table = np.zeros(256, np.uint8)  # ids to 1, 2, ... as the measures want them
    table[list(begin)] = np.arange(1, len(begin) + 1)
    values = [[] for _ in begin]
    for t in _counted(store.videos[v]):
        truth = store.labels(v, t)
        void = truth == _VOID
        scores = zip(*score_labels(table[labels[t]], table[truth], len(begin), void if void.any() else None),
                     strict=True)
        for row, score, first in zip(values, scores, begin.values(), strict=True):
            if t > first:
                row.append(score)
    return [[nan_mean([value[i] for value in row]) for i in range(2)] for row in values]


def score_found(store, v, labels):
    """J and F of the objects of the first labeled frame by DAVIS-2017's unsupervised rule, means over the frames."""
    labeled = store.videos[v].labeled
    first = store.labels(v, labeled[0])
    ids = [number for number in np.unique(first).tolist() if 0 < number < _VOID]
    if not ids:
        raise UserError(f"'{store.videos[v].name}' of '{store.name}' shows no object in its first labeled frame; leave"
                        " it out.")
    table = np.zeros(256, np.uint8)
    table[ids] = np.arange(1, len(ids) + 1)
    proposals = max(int(labels.max()), len(ids))
    values = []
    for t in labeled:
        truth = store.labels(v, t)
        values.append(score_all_pairs(labels[t], proposals, table[truth], len(ids), truth == _VOID))
    mean = np.mean(values, axis=0)  # [2, proposals, objects]
    return [mean[:, proposal, number].tolist() for number, proposal in assign(mean.mean(0)).items()]


def _panel(store, v, labels):
    """A few frames in a row, with the masks above and the truth below."""
    length = store.videos[v].length
    columns = []
    for t in sorted(set(np.linspace(0, length - 1, _PANEL_FRAMES).round().astype(int).tolist())):
        image = store.image(v, t)
        width = max(1, round(image.shape[1] * _PANEL_HEIGHT / image.shape[0]))
        columns.append(np.concatenate([cv2.resize(draw_overlay(image, shown), (width, _PANEL_HEIGHT),
                                                  interpolation=cv2.INTER_AREA)
                                       for shown in (labels[t], store.labels(v, t))]))
    return np.concatenate(columns, 1)
