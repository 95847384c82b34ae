"""Measures a model's speed on this device: the network alone and end to end, relative to a large matrix product."""

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
from uvos_jax.inference.engine import StepInputs
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.inference.profiling.components import frame_flops, synthetic_mask
from uvos_jax.inference.profiling.flops import count_flops
from uvos_jax.inference.prompt_options import PromptOptions
from uvos_jax.inference.segmenter import Segmenter, default_chunk
from uvos_jax.video import open_source


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per frame.

    Attributes:
        median: Median over the repeats.
        p95: 95th percentile over the repeats.
        repeats: Number of repeats after the warm-up.
    """

    median: float
    p95: float
    repeats: int


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Results of ``uvos benchmark``.

    Attributes:
        network: Preprocessing, encoding, prediction and fusion, with the frames already on the device.
        flow: Optical flow between decoded frames; None for models without flow input.
        end_to_end: From JPEG files to masks and overlay on disk for a video of ``video_frames``, including reference
            frames and flow.
        video_frames: Length of that video.
        flops: Floating point operations per frame (convolutions and matrix products).
        peak: Measured rate of a large matrix product in the same precision, in FLOP/s.
        compile_seconds: Compile time of the two jitted functions, paid once per frame size.
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
        """FLOP/s of the network relative to those of the matrix product."""
        return self.flops / self.network.median / self.peak


def benchmark(segmenter: Segmenter, native_size: tuple[int, int], *, chunk: int | None = None, objects: int = 1,
              report: Callable[[str], None] = lambda _: None) -> Benchmark:
    """Measures one model at one frame size. All times exclude warm-up and include waiting for the device.

    Args:
        segmenter: The model with its weights.
        native_size: ``(height, width)`` of the video.
        chunk: Frames encoded together; None for the default of the driver.
        objects: Number of objects in the first mask, for models that need a prompt.
        report: Called with the name of each measurement when it begins.
    """
    chunk = chunk or default_chunk()
    prompted = segmenter.model.task == "prompted"
    mask = synthetic_mask(native_size, objects) if prompted else None
    engine = segmenter.engine(native_size, max_objects=max(segmenter.model.max_objects, objects) if prompted else None)
    estimator = segmenter.flow
    if isinstance(estimator, Path):
        raise UserError(f"The flow in '{estimator}' belongs to a video, but the benchmark uses synthetic frames. Choose"
                        " --flow dis or raft.")
    images, flow = _frames(native_size, 2 * chunk), None
    if estimator:
        report("timing the flow")
        pairs = images[:estimator.batch_size], images[::-1][:estimator.batch_size]
        flow = estimator(*pairs)  # compiles
        flow_seconds = _time(lambda: estimator(*pairs), at_least=2)
        flow = jnp.asarray(flow)[np.zeros(chunk, int)]
    frames, valid = jnp.asarray(images[:chunk]), jnp.ones(chunk, bool)
    # Only the number of reference frames matters here, not which they are.
    references = np.zeros(len(segmenter.model.reference_frames(2 * chunk)), int)
    report("compiling")
    started = time.perf_counter()
    prompt = [jnp.asarray(mask)[None]] if prompted else []
    reference_flow = flow[references] if estimator else None
    state = jax.block_until_ready(engine.start(segmenter.variables, frames[references], reference_flow, *prompt))
    step = segmenter.variables, state, StepInputs(frames, valid, flow)
    jax.block_until_ready(engine.step(*step))
    compile_seconds = time.perf_counter() - started
    report("timing the network")
    network = _time(lambda: engine.step(*step), at_least=3)
    # Reference frames are encoded once per video, so only the step counts per frame.
    by_component = segmenter.model.task in ("prompted", "tracks")
    flops = frame_flops(segmenter, native_size, objects) if by_component else count_flops(engine.step, *step) // chunk
    report("timing end to end")
    with tempfile.TemporaryDirectory() as folder:
        for i, frame in enumerate(images):
            cv2.imwrite(str(Path(folder, f"{i:05d}.jpg")), frame)
        end_to_end = _time(lambda: segment_to_folder(segmenter, open_source(folder), Path(folder, "out"), chunk=chunk,
                                                     overwrite=True, prompts=PromptOptions(first_mask=mask)),
                           at_least=2)
    report("timing a matrix product")
    peak = matmul_peak(segmenter.model.dtype)
    return Benchmark(_per_frame(network, chunk), _per_frame(flow_seconds, len(pairs[0])) if estimator else None,
                     _per_frame(end_to_end, 2 * chunk), 2 * chunk, flops, peak, compile_seconds)


def matmul_peak(dtype: jnp.dtype = jnp.float32) -> float:
    """Returns the FLOP/s of a large square matrix product; float32 runs at highest precision."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    product = jax.jit(lambda a: jnp.dot(a, a, precision=precision))
    jax.block_until_ready(product(a))
    return 2 * n**3 / min(_time(lambda: product(a), at_least=8))


def _time(function, at_least):
    """Seconds of each call: 20 calls or 10 seconds, but at least ``at_least`` calls, after the caller's warm-up."""
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
