"""How fast a model runs here: the network alone and end to end, against this device's own matrix product rate."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.inference.profiling.components import frame_flops, synthetic_mask
from uvos_jax.inference.profiling.flops import count_flops
from uvos_jax.inference.segmenter import Segmenter, default_chunk
from uvos_jax.video import open_source


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a frame.

    Attributes:
      median: over the repeats.
      p95: 95th percentile over the repeats.
      repeats: how many there were, warm-up apart.
    """

    median: float
    p95: float
    repeats: int


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What ``uvos benchmark`` measures.

    Attributes:
      network: resizing, encoding, prediction and fusing, frames on the device already.
      flow: optical flow between decoded frames, on this device or beside it; None for models that want none.
      end_to_end: a video of ``video_frames`` from JPEG files to masks and overlay on disk, references encoded and flow
        computed anew.
      video_frames: length of that video.
      flops: floating point operations a frame (convolutions and matrix products).
      peak: this device's measured rate of a large matrix product in the same precision, in FLOP/s.
      compile_seconds: of the two compiled functions, once per video size.
    """

    network: Timing
    flow: Timing | None
    end_to_end: Timing
    video_frames: int
    flops: int
    peak: float
    compile_seconds: float

    @property
    def share_of_peak(self) -> float:
        """The network's rate over the matrix product's."""
        return self.flops / self.network.median / self.peak


def benchmark(segmenter: Segmenter, native_size: tuple[int, int], *, chunk: int | None = None, objects: int = 1,
              report: Callable[[str], None] = lambda _: None) -> Benchmark:
    """Measures one model at one video size; every time is taken after warm-up and with the device idle at its end.

    Args:
      segmenter: the model with its weights.
      native_size: ``(height, width)`` of the video.
      chunk: frames encoded together; None takes the driver's default.
      objects: how many a model that follows objects is given in the first frame.
      report: called with what is being done.
    """
    chunk = chunk or default_chunk()
    prompted = segmenter.model.task == "prompted"
    mask = synthetic_mask(native_size, objects) if prompted else None
    engine = segmenter.engine(native_size, max_objects=max(segmenter.model.max_objects, objects) if prompted else None)
    method = segmenter.flow
    if isinstance(method, Path):
        raise UserError(f"The flow in '{method}' belongs to a video, and the benchmark makes up one; choose a method.")
    images, flow = _frames(native_size, 2 * chunk), None
    if method:
        report("timing the flow")
        pairs = images[:method.batch], images[::-1][:method.batch]
        flow = method(*pairs)  # compiles
        flow_seconds = _time(lambda: method(*pairs), at_least=2)
        flow = jnp.asarray(flow)[np.zeros(chunk, int)]
    frames, valid = jnp.asarray(images[:chunk]), jnp.ones(chunk, bool)
    # Which frames they are does not matter here, only how many.
    first = np.zeros(len(segmenter.model.reference_frames(2 * chunk)), int)
    report("compiling")
    started = time.perf_counter()
    given = [jnp.asarray(mask)[None]] if prompted else []
    carry = jax.block_until_ready(engine.start(segmenter.variables, frames[first], flow[first] if method else None,
                                               *given))
    step = segmenter.variables, carry, frames, valid, flow
    jax.block_until_ready(engine.step(*step))
    compile_seconds = time.perf_counter() - started
    report("timing the network")
    network = _time(lambda: engine.step(*step), at_least=3)
    # The references' encoding is paid once per video; the step is what a frame costs.
    by_parts = segmenter.model.task in ("prompted", "tracks")
    flops = frame_flops(segmenter, native_size, objects) if by_parts else count_flops(engine.step, *step) // chunk
    report("timing disk to disk")
    with tempfile.TemporaryDirectory() as folder:
        for i, frame in enumerate(images):
            cv2.imwrite(str(Path(folder, f"{i:05d}.jpg")), frame)
        end_to_end = _time(lambda: segment_to_folder(segmenter, open_source(folder), Path(folder, "out"), chunk=chunk,
                                                     overwrite=True, first_mask=mask), at_least=2)
    report("timing a matrix product")
    peak = matmul_peak(segmenter.model.dtype)
    return Benchmark(_per_frame(network, chunk), _per_frame(flow_seconds, len(pairs[0])) if method else None,
                     _per_frame(end_to_end, 2 * chunk), 2 * chunk, flops,
                     peak, compile_seconds)


def matmul_peak(dtype: jnp.dtype = jnp.float32) -> float:
    """FLOP/s of a square matrix product, large enough to reach this device's best; float32 in highest precision."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    product = jax.jit(lambda a: jnp.dot(a, a, precision=precision))
    jax.block_until_ready(product(a))
    return 2 * n**3 / min(_time(lambda: product(a), at_least=8))


def _time(function, at_least):
    """Seconds of each call: twenty calls or ten seconds, but never fewer than asked; the warm-up is the caller's."""
    seconds = []
    while len(seconds) < at_least or (len(seconds) < 20 and sum(seconds) < 10):
        started = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - started)
    return seconds


def _per_frame(seconds, frames):
    seconds = np.asarray(seconds) / frames
    return Timing(float(np.median(seconds)), float(np.percentile(seconds, 95)), len(seconds))


def _frames(native_size, count):
    return np.random.default_rng(0).integers(0, 256, (count, *native_size, 3), np.uint8)
