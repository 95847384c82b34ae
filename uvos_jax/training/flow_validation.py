"""Validation of optical flow during training: endpoint errors on held-back pairs of frames."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.data.examples.sampling import choose_videos
from uvos_jax.errors import UserError
from uvos_jax.evaluation.flow import flow_scores
from uvos_jax.models.raft.padding import pad_to_eight, unpad
from uvos_jax.ops.optical_flow import flow_to_rgb
from uvos_jax.training.distributed import sum_over_processes

_PANEL_PAIRS = 3
_PANEL_HEIGHT = 160  # pixels

# uint8 RGB [h, w, 3] of a frame and of the next one -> flow, float32 [h, w, 2], (dx, dy) in pixels
Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray]


def choose(store: Any, only: Sequence[str] | None) -> tuple[int, ...]:
    """Returns the numbers of the videos to validate on: those named in ``only``, or all.

    Raises:
        UserError: The store has no flow or only computed flow, lacks a name, or has a video of one frame.
    """
    if not store.has_flow:
        raise UserError(f"'{store.name}' has no optical flow. Choose a dataset with ground-truth flow.")
    if getattr(store, "flow_origin", True) not in (True, "exact", "files"):  # True: from older conversions
        raise UserError(f"The flow of '{store.name}' was computed by {store.flow_origin} and is no ground truth;"
                        " convert it without --flow, into another folder.")
    videos = choose_videos(store.videos, f"'{store.name}'", only=only or ())
    for v in videos:
        if store.videos[v].length < 2:
            raise UserError(f"'{store.videos[v].name}' of '{store.name}' cannot be used for validation: flow"
                            " needs two frames.")
    return tuple(videos)


def estimator(model: nn.Module, variables: Any) -> Estimate:
    """Returns a function that estimates flow between two frames of any size, compiled once per size.

    Args:
        model: RAFT.
        variables: Its variables.
    """
    variables = jax.device_put(variables)
    return lambda first, second: np.asarray(_run(model, variables, first, second))


@partial(jax.jit, static_argnums=0)
def _run(model, variables, first, second):
    padded, padding = pad_to_eight(jnp.stack([first, second]).astype(jnp.float32))
    outputs, _ = model.apply(variables, {"first": padded[:1], "second": padded[1:]}, train=False)
    return unpad(outputs["flow"], padding)[0].astype(jnp.float32)


def validate(estimate: Estimate, store: Any, videos: Sequence[int], process_index: int = 0, process_count: int = 1
             ) -> tuple[dict[str, Any], np.ndarray | None]:
    """Estimates the flow of held-back videos and scores it.

    Every frame but the last of each video is scored against its ground-truth flow to the next one: mean over the frames
    of a video, then over the videos.

    Args:
        estimate: The estimator to score.
        store: See ``uvos_jax.data.storage.store``; it must have flow.
        videos: Numbers of its videos.
        process_index: Number of this process; the videos are divided among the processes, which must all call this.
        process_count: Number of processes.

    Returns:
        Means of the metrics of ``uvos_jax.evaluation.flow.flow_scores``, and ``"sequences"`` with those of each video,
        the same in every process; and an image of a few pairs, uint8 RGB ``[h, w, 3]``, or None if this process has no
        video.
    """
    names = tuple(flow_scores(np.zeros((1, 1, 2)), np.zeros((1, 1, 2))))
    table, panel = np.zeros((len(videos), len(names))), []
    for position in range(process_index, len(videos), process_count):
        v, scored = videos[position], []
        for t in range(store.videos[v].length - 1):
            first, ground_truth = store.image(v, t), _at_size(store.flow(v, t), store.videos[v].size)
            flow = estimate(first, store.image(v, t + 1))
            scores = flow_scores(flow, ground_truth)
            scored.append([scores[name] for name in names])
            if t == 0 and len(panel) < _PANEL_PAIRS:
                panel.append(_column(first, flow, ground_truth))
        table[position] = np.mean(scored, 0)
    table = sum_over_processes(table, process_count)
    sequences = {store.videos[v].name: dict(zip(names, map(float, row), strict=True))
                 for v, row in zip(videos, table, strict=True)}
    overall = dict(zip(names, map(float, table.mean(0)), strict=True))
    return overall | {"sequences": sequences}, np.concatenate(panel, 1) if panel else None


def _at_size(flow, size):
    """Resizes a stored field to its frame; the vectors of a smaller field are in pixels of the frame already."""
    return flow if flow.shape[:2] == tuple(size) else cv2.resize(flow, size[::-1], interpolation=cv2.INTER_LINEAR)


def _column(first, flow, ground_truth):
    """Stacks a frame, its estimated flow and the ground truth, both flows colored on one scale."""
    radius = float(np.linalg.norm(ground_truth, axis=-1).max()) + 1e-5
    images = [first, *(np.asarray(flow_to_rgb(field, radius)).astype(np.uint8) for field in (flow, ground_truth))]
    width = max(1, round(first.shape[1] * _PANEL_HEIGHT / first.shape[0]))
    return np.concatenate([cv2.resize(image, (width, _PANEL_HEIGHT), interpolation=cv2.INTER_AREA)
                           for image in images])

