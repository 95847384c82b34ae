"""Validation during training: held-back sequences through the inference and the measures that users get."""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.evaluation.measures import nan_mean, score_labels
from uvos_jax.inference import Segmenter
from uvos_jax.training.distributed import sum_over_processes
from uvos_jax.video.overlay import draw_overlay

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
    """Segments held-back videos and scores them by the rules of DAVIS-2016.

    J and F of the foreground on every labelled frame but the first and the last of each video, the mean over its
    frames, then the mean over the videos; void pixels count for nothing.

    Args:
      segmenter: with the variables to be judged.
      store: with the shape of ``uvos_jax.data.store``.
      videos: numbers of its videos.
      process_index: of this process; the videos are shared among the processes, which must all call this.
      process_count: of all.

    Returns:
      ``{"J", "F", "J&F", "sequences": {name: {"J", "F"}}}`` as fractions of one, the same in every process; and a
      picture of the first video of this process, uint8 RGB, or None if it has none.
    """
    scores, panel = np.zeros((len(videos), 2)), None
    for place in range(process_index, len(videos), process_count):
        v = videos[place]
        labels = segmenter.segment(_frames(store, v))
        scores[place] = _score(store, v, labels)
        if panel is None:
            panel = _panel(store, v, labels)
    scores = sum_over_processes(scores, process_count)  # each process has zeros where others have scores
    region, boundary = (float(mean) for mean in scores.mean(0))
    sequences = {store.videos[v].name: {"J": float(j), "F": float(f)}
                 for v, (j, f) in zip(videos, scores, strict=True)}
    return {"J": region, "F": boundary, "J&F": (region + boundary) / 2, "sequences": sequences}, panel


def _frames(store, v) -> Iterator[np.ndarray]:
    return np.stack([store.image(v, t) for t in range(store.videos[v].length)])


def _counted(video):
    return [t for t in video.labelled if 0 < t < video.length - 1]


def _score(store, v, labels):
    values = []
    for t in _counted(store.videos[v]):
        truth = store.labels(v, t)
        void = truth == _VOID
        region, boundary = score_labels((labels[t] > 0).astype(np.uint8), ((truth > 0) & ~void).astype(np.uint8), 1,
                                        void if void.any() else None)
        values.append((region[0], boundary[0]))
    return [nan_mean([value[i] for value in values]) for i in range(2)]


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
