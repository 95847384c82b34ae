"""Optical flow estimators, a cache for their results, and the pairing of a video's frames.

Flow is float32 ``[..., h, w, 2]``, (dx, dy) in pixels of its own grid. The grid's size is :func:`flow_size` of the
frames.
"""

import dataclasses
import functools
import hashlib
import io
import os
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.atomic_io import atomic_write, make_folder
from uvos_jax.models.raft.padding import pad_to_eight, unpad
from uvos_jax.video import Frame
from uvos_jax.video.flow_io import resize_flow
from uvos_jax.weights import checkpoints

_SHORT_SIDE = 480  # flow is smooth: a finer grid costs memory and time and hardly changes a segmentation
_MIN_SIDE = 16
_MIN_RAFT_SIDE = 128  # below, the coarsest of RAFT's four correlation levels would have a single row
_MAX_STORED_PIXELS = 1_280_000  # RAFT's stored correlation volume then takes 2 GB
_THREADS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class FlowEstimator:
    """A function ``(first, second) -> flow`` on batches of frame pairs.

    It takes two arrays uint8 ``[n, h, w, 3]`` RGB and returns float32 ``[n, h', w', 2]``, the flow from the first to
    the second frame of each pair, where ``(h', w')`` is :func:`flow_size`.

    Attributes:
        name: Short name.
        identity: Text that is equal for estimators that compute the same flow with the same library versions.
        compute: The function.
        batch_size: Number of pairs that are best computed together.
        rebuild: Makes the same estimator on another device; None if it uses no device.
        cache_folder: Where results are kept, see :func:`cached_estimator`.
    """

    name: str
    identity: str
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray] = dataclasses.field(repr=False)
    batch_size: int = 1
    rebuild: Callable[[jax.Device], "FlowEstimator"] | None = dataclasses.field(default=None, repr=False)
    cache_folder: Path | None = None

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Computes the flow from ``first`` to ``second``, see the class."""
        return self.compute(first, second)

    def on(self, device: jax.Device) -> "FlowEstimator":
        """Returns the same estimator on another device."""
        return self.rebuild(device) if self.rebuild else self


def flow_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size of the flow grid: ``(height, width)`` reduced to a shorter side of at most 480 pixels."""
    scale = min(1.0, _SHORT_SIDE / min(size))
    return tuple(max(_MIN_SIDE, round(side * scale)) for side in size)


def raft_estimator(model: nn.Module, variables: dict, iterations: int = 20, device: jax.Device | None = None
                   ) -> FlowEstimator:
    """Returns RAFT as an estimator, compiled once per frame size.

    Args:
        model: A ``models.raft.RAFT``.
        variables: Its weights.
        iterations: Number of updates; the published demo uses 20.
        device: Device to compute on; None for the default device.
    """
    placed = jax.device_put(variables, device)
    batch_size = _batch_size_on(next(iter(jax.tree.leaves(placed)[0].devices())))

    @jax.jit
    def flow_of(variables, first, second):
        images, padding = pad_to_eight(jnp.concatenate([first, second]).astype(jnp.float32))
        # The correlation volume of very long frames does not fit into memory.
        large = images.shape[1] * images.shape[2] > _MAX_STORED_PIXELS
        network = model.clone(correlation="on_demand") if large else model
        batch = {"first": images[:batch_size], "second": images[batch_size:]}
        outputs, _ = network.apply(variables, batch, train=False, iterations=iterations)
        return unpad(outputs["flow"], padding)

    def compute(first, second):
        size = flow_size(first.shape[1:3])
        scale = max(1.0, _MIN_RAFT_SIDE / min(size))
        input_size = tuple(round(side * scale) for side in size)
        first, second = (np.stack([_resize(image, input_size) for image in images]) for images in (first, second))
        flows = []
        for start in range(0, len(first), batch_size):
            pairs = [images[start:start + batch_size] for images in (first, second)]
            padding = batch_size - len(pairs[0])  # a smaller batch would be compiled again
            pairs = [np.concatenate([images, images[-1:].repeat(padding, 0)]) for images in pairs]
            flows += list(np.asarray(flow_of(placed, *pairs)))[:batch_size - padding]
        return np.stack([resize_flow(flow, size) for flow in flows])

    identity = (f"RAFT {model.net}, {iterations} iterations, {jnp.dtype(model.dtype).name}, weights"
                f" {checkpoints.digest(variables)}")
    return FlowEstimator("raft", identity, compute, batch_size,
                         lambda device: raft_estimator(model, variables, iterations, device))


def cached_estimator(estimator: FlowEstimator, folder: str | Path) -> FlowEstimator:
    """Returns an estimator that keeps its results in files; several processes may share the folder.

    Args:
        estimator: Computes what the folder lacks, or what is damaged in it.
        folder: Created if missing. It holds one file per pair, named after a digest of both frames and the estimator.

    Raises:
        UserError: If files cannot be written, now or when the estimator is called.
    """
    folder = Path(folder)
    make_folder(folder)

    def compute(first, second):
        size = flow_size(first.shape[1:3])
        paths = [folder / f"{_digest(estimator.identity, *pair)}.npz" for pair in zip(first, second, strict=True)]
        flows = [_read_cached(path, size) for path in paths]
        missing = [i for i, flow in enumerate(flows) if flow is None]
        if missing:
            for i, flow in zip(missing, estimator(first[missing], second[missing]), strict=True):
                flows[i] = flow
                _write_cached(paths[i], flow)
        return np.stack(flows)

    return dataclasses.replace(estimator, compute=compute, cache_folder=folder,
                               rebuild=lambda device: cached_estimator(estimator.on(device), folder))


def estimate_flow(frames: Iterator[Frame], estimator: FlowEstimator, causal: bool,
                  wanted: Callable[[int], bool] = lambda index: True) -> Generator[tuple[Frame, np.ndarray | None]]:
    """Yields every frame of a video with its flow.

    If ``frames`` raises, the exception follows the pairs that are complete; the last frame before it is lost, since its
    flow needs the next frame.

    Args:
        frames: Frames of one video, in order.
        estimator: Computes the flow.
        causal: If False, flow is forward (to the next frame). The last frame, and a frame whose next one is broken, get
            the flow to the previous frame instead. If True, flow is backward (to the previous frame) and available
            without delay, as live sources need it.
        wanted: Whether the flow of the frame with this index is needed; other frames get None at no cost.

    Yields:
        ``(frame, flow [h', w', 2])``. The flow is zero for a broken frame and where there is no other frame.
    """
    return (_backward_flow if causal else _forward_flow)(frames, estimator, wanted)


def flow_direction(causal: bool) -> str:
    """Returns the direction of the flow of :func:`estimate_flow`: the frame that most vectors point to."""
    return "previous_frame" if causal else "next_frame"


def zero_flow(frame: Frame) -> np.ndarray:
    """Returns zero flow for a frame."""
    return np.zeros((*flow_size(frame.image.shape[:2]), 2), np.float32)


def _batch_size_on(device):
    return 1 if device.platform == "cpu" else 4  # one keeps all cores of a CPU busy


def _backward_flow(frames, estimator, wanted):
    previous = None
    for index, frame in enumerate(frames):
        flow = zero_flow(frame) if wanted(index) else None
        if frame.broken is None:
            if flow is not None and previous is not None:
                flow = estimator(frame.image[None], previous[None])[0]
            previous = frame.image
        yield frame, flow


def _forward_flow(frames, estimator, wanted):
    pending, current, previous, failure, index = [], None, None, None, 0
    frames = iter(frames)
    while True:
        try:
            following = next(frames, None)
        except Exception as error:  # raised below, after the frames before it
            failure = error
            break
        if current is not None:
            is_wanted = wanted(index)
            pending.append((current, _target(current, previous, following) if is_wanted else None, is_wanted))
            previous = current.image if current.broken is None else previous
            index += 1
        if len(pending) == estimator.batch_size or following is None:
            yield from _compute_pending(pending, estimator)
            pending = []
        if following is None:
            return
        current = following
    yield from _compute_pending(pending, estimator)
    raise failure


def _target(frame, previous, following):
    """The image that a frame's flow leads to; None if there is none."""
    if frame.broken is not None:
        return None
    return following.image if following is not None and following.broken is None else previous


def _compute_pending(pending, estimator):
    """Turns ``(frame, target, is_wanted)`` into ``(frame, flow)`` with one call of the estimator."""
    pairs = [(frame.image, target) for frame, target, is_wanted in pending if is_wanted and target is not None]
    flows = iter(estimator(*(np.stack(images) for images in zip(*pairs, strict=True))) if pairs else ())
    for frame, target, is_wanted in pending:
        if not is_wanted:
            yield frame, None
        else:
            yield frame, zero_flow(frame) if target is None else next(flows)


@functools.cache
def _thread_pool():
    return ThreadPoolExecutor(_THREADS, "uvos-flow")


def _dis(first, second):
    return np.stack(list(_thread_pool().map(_dis_pair, first, second)))


_thread_local = threading.local()  # OpenCV's flow objects are not thread-safe


def _dis_pair(first, second):
    if not hasattr(_thread_local, "dis"):
        _thread_local.dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    size = flow_size(first.shape[:2])
    gray = [_resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size) for image in (first, second)]
    return _thread_local.dis.calc(*gray, None)


dis_estimator = FlowEstimator("dis", "DIS, preset medium", _dis, batch_size=_THREADS)


def _resize(image, size):
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _digest(identity, first, second):
    # Other library versions may change the last bits.
    digest = hashlib.sha256(f"{identity}\n{cv2.__version__} {jax.__version__}\n{first.shape}\n".encode())
    for image in (first, second):
        digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def _read_cached(path, size):
    try:
        # The archive has a checksum. NumPy and zipfile raise many kinds of exceptions for damaged files.
        with np.load(path, allow_pickle=False) as archive:
            flow = archive["flow"]
    except Exception:
        return None
    is_valid = flow.dtype == np.float32 and flow.shape == (*size, 2) and np.isfinite(flow).all()
    return flow if is_valid else None


def _write_cached(path, flow):
    buffer = io.BytesIO()
    np.savez(buffer, flow=flow)
    atomic_write(path, buffer.getvalue(), unique=True)  # another process may be writing the same pair
