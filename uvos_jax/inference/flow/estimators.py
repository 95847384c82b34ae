"""Optical flow between the frames of a video: how it is computed and kept, and which pairs of frames are meant.

Everywhere flow is float32 ``[..., h, w, 2]``, (dx, dy) in pixels of its own grid, which is :func:`flow_size` of the
frames.
"""

import dataclasses
import functools
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator
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

_SHORT_SIDE = 480  # flow is smooth: more pixels cost memory and time, and tell a segmentation little
_LEAST_SIDE = 16
_LEAST_RAFT_SIDE = 128  # below, the coarsest of RAFT's four correlation maps would have a single row
_MOST_STORED = 1_280_000  # pixels; RAFT's correlation volume then takes 2 GB
_THREADS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class FlowEstimator:
    """A way to compute flow, called as a function ``(first, second) -> flow`` of ``n`` pairs of frames.

    It takes two arrays uint8 ``[n, h, w, 3]`` RGB and returns float32 ``[n, h', w', 2]``, the flow from the first to
    the second frame of each pair, ``(h', w')`` being :func:`flow_size`.

    Attributes:
      name: in a word.
      identity: a text; methods that share it give the same flow, up to the versions of what computes.
      compute: the function.
      batch: pairs that are best computed together.
      place: makes the same method on a device; None where none is used.
      folder: where flow is kept, see :func:`cached_estimator`.
    """

    name: str
    identity: str
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray] = dataclasses.field(repr=False)
    batch: int = 1
    place: Callable[[jax.Device], "FlowEstimator"] | None = dataclasses.field(default=None, repr=False)
    folder: Path | None = None

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self.compute(first, second)

    def on(self, device: jax.Device) -> "FlowEstimator":
        """The same method, computing on a device."""
        return self.place(device) if self.place else self


def flow_size(size: tuple[int, int]) -> tuple[int, int]:
    """The grid of a video's flow: the frames' own ``(height, width)``, shrunk to a shorter side of 480 pixels."""
    scale = min(1.0, _SHORT_SIDE / min(size))
    return tuple(max(_LEAST_SIDE, round(side * scale)) for side in size)


def raft_estimator(model: nn.Module, variables: dict, iterations: int = 20, device: jax.Device | None = None) -> FlowEstimator:
    """RAFT as a method; compiled once per size of video.

    Args:
      model: a ``models.raft.RAFT``.
      variables: its weights.
      iterations: of the update; the published demo takes 20.
      device: where it computes; None takes the default one.
    """
    placed = jax.device_put(variables, device)
    batch = _pairs_at_once(next(iter(jax.tree.leaves(placed)[0].devices())))

    @jax.jit
    def flow_of(variables, first, second):
        images, padding = pad_to_eight(jnp.concatenate([first, second]).astype(jnp.float32))
        # A very long strip, whose products with itself would not fit into memory.
        large = images.shape[1] * images.shape[2] > _MOST_STORED
        network = model.clone(correlation="on_demand") if large else model
        outputs, _ = network.apply(variables, {"first": images[:batch], "second": images[batch:]}, train=False,
                                 iterations=iterations)
        return unpad(outputs["flow"], padding)

    def compute(first, second):
        size = flow_size(first.shape[1:3])
        scale = max(1.0, _LEAST_RAFT_SIDE / min(size))
        seen = tuple(round(side * scale) for side in size)
        first, second = (np.stack([_resized(image, seen) for image in images]) for images in (first, second))
        found = []
        for at in range(0, len(first), batch):
            pairs = [images[at:at + batch] for images in (first, second)]
            fill = batch - len(pairs[0])  # a shape of its own would be compiled for the rest
            pairs = [np.concatenate([images, images[-1:].repeat(fill, 0)]) for images in pairs]
            found += list(np.asarray(flow_of(placed, *pairs)))[:batch - fill]
        return np.stack([resize_flow(flow, size) for flow in found])

    identity = (f"RAFT {model.net}, {iterations} iterations, {jnp.dtype(model.dtype).name}, weights"
                f" {checkpoints.digest(variables)}")
    return FlowEstimator("raft", identity, compute, batch, lambda device: raft_estimator(model, variables, iterations, device))


def cached_estimator(method: FlowEstimator, folder: str | Path) -> FlowEstimator:
    """The same method, which keeps what it has computed in files; many processes may share the folder.

    Args:
      method: computes what is not there yet, or is damaged.
      folder: made if missing; a file a pair, named after the content of both frames and the method.

    Raises:
      UserError: from here or from the method, if files cannot be written.
    """
    folder = Path(folder)
    make_folder(folder)

    def compute(first, second):
        size = flow_size(first.shape[1:3])
        paths = [folder / f"{_digest(method.identity, *pair)}.npz" for pair in zip(first, second, strict=True)]
        flows = [_read_cached(path, size) for path in paths]
        missing = [i for i, flow in enumerate(flows) if flow is None]
        if missing:
            for i, flow in zip(missing, method(first[missing], second[missing]), strict=True):
                flows[i] = flow
                _write_cached(paths[i], flow)
        return np.stack(flows)

    return dataclasses.replace(method, compute=compute, place=lambda device: cached_estimator(method.on(device), folder),
                               folder=folder)


def estimate_flow(frames: Iterator[Frame], method: FlowEstimator, causal: bool,
            wanted: Callable[[int], bool] = lambda index: True) -> Iterator[tuple[Frame, np.ndarray | None]]:
    """Pairs every frame of a video with its flow.

    Where ``frames`` fails, the failure follows the pairs that are complete: without its next one, the flow of the last
    frame is not known.

    Args:
      frames: of one video, in order.
      method: computes the flow.
      causal: False leads to the next frame; the last frame, and one whose next one is broken, have the flow to the
        frame before instead. True leads to the frame before, at once, as a live source needs it.
      wanted: tells by its index whether the flow of a frame matters; of others it is None and costs nothing.

    Yields:
      ``(frame, flow [h', w', 2])``; zero for a frame that is broken, and where there is no other frame to lead to.
    """
    return (_to_frame_before if causal else _to_next_frame)(frames, method, wanted)


def flow_direction(causal: bool) -> str:
    """What :func:`estimate_flow` does, in words for ``run.json``."""
    if causal:
        return "to the frame before; the first frame's is zero"
    return "to the next frame; the last frame's to the one before"


def zero_flow(frame: Frame) -> np.ndarray:
    """The flow of a frame in which nothing is known to move."""
    return np.zeros((*flow_size(frame.image.shape[:2]), 2), np.float32)


def _pairs_at_once(device):
    return 1 if device.platform == "cpu" else 4  # one keeps all cores of a CPU busy


def _to_frame_before(frames, method, wanted):
    before = None
    for index, frame in enumerate(frames):
        flow = zero_flow(frame) if wanted(index) else None
        if frame.broken is None:
            if flow is not None and before is not None:
                flow = method(frame.image[None], before[None])[0]
            before = frame.image
        yield frame, flow


def _to_next_frame(frames, method, wanted):
    waiting, held, before, failure, index = [], None, None, None, 0
    frames = iter(frames)
    while True:
        try:
            frame = next(frames, None)
        except Exception as error:  # raised below, after what came before it
            failure = error
            break
        if held is not None:
            matters = wanted(index)
            waiting.append((held, _target(held, before, frame) if matters else None, matters))
            before = held.image if held.broken is None else before
            index += 1
        if len(waiting) == method.batch or frame is None:
            yield from _computed(waiting, method)
            waiting = []
        if frame is None:
            return
        held = frame
    yield from _computed(waiting, method)
    raise failure


def _target(frame, before, following):
    """The picture that a frame's flow leads to; None if there is none."""
    if frame.broken is not None:
        return None
    return following.image if following is not None and following.broken is None else before


def _computed(waiting, method):
    """``(frame, flow)`` of ``(frame, target, wanted)``, computed together."""
    pairs = [(frame.image, target) for frame, target, is_wanted in waiting if is_wanted and target is not None]
    flows = iter(method(*(np.stack(images) for images in zip(*pairs, strict=True))) if pairs else ())
    for frame, target, is_wanted in waiting:
        if not is_wanted:
            yield frame, None
        else:
            yield frame, zero_flow(frame) if target is None else next(flows)


@functools.cache
def _threads():
    return ThreadPoolExecutor(_THREADS, "uvos-flow")


def _dis(first, second):
    return np.stack(list(_threads().map(_dis_pair, first, second)))


_of_thread = threading.local()  # one of OpenCV's objects serves one thread only


def _dis_pair(first, second):
    if not hasattr(_of_thread, "dis"):
        _of_thread.dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    size = flow_size(first.shape[:2])
    gray = [_resized(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size) for image in (first, second)]
    return _of_thread.dis.calc(*gray, None)


dis_estimator = FlowEstimator("dis", "DIS, preset medium", _dis, batch=_THREADS)


def _resized(image, size):
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _digest(identity, first, second):
    # Another version of what computes may change the last bits.
    text = hashlib.sha256(f"{identity}\n{cv2.__version__} {jax.__version__}\n{first.shape}\n".encode())
    for image in (first, second):
        text.update(np.ascontiguousarray(image))
    return text.hexdigest()


def _read_cached(path, size):
    try:
        # The archive has a checksum; what NumPy and the zip module raise for damaged files is more than a few kinds.
        with np.load(path, allow_pickle=False) as archive:
            flow = archive["flow"]
    except Exception:
        return None
    whole = flow.dtype == np.float32 and flow.shape == (*size, 2) and np.isfinite(flow).all()
    return flow if whole else None


def _write_cached(path, flow):
    buffer = io.BytesIO()
    np.savez(buffer, flow=flow)
    atomic_write(path, buffer.getvalue(), unique=True)  # another process may be writing the same pair
