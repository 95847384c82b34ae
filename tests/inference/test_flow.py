"""Optical flow of videos: frame pairs, estimators, the cache, and models with flow input."""

import dataclasses
import threading

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.flow_model import SIZE, difference, flow_segmenter, levels
from tests.helpers.interruption import interrupt_at
from tests.helpers.recurrent_model import contents, recurrent_segmenter, save_frames
from uvos_jax import UserError
from uvos_jax.inference.engine import shared
from uvos_jax.inference.flow.estimators import (
    FlowEstimator,
    cached_estimator,
    dis_estimator,
    estimate_flow,
    flow_size,
    raft_estimator,
)
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.inference.loading import load_flow
from uvos_jax.inference.profiling.benchmark import benchmark
from uvos_jax.video import Frame, OutputOptions, Source, open_source
from uvos_jax.video.flow_io import write_flow
from uvos_jax.weights.convert import expected_torch_shapes

# Every ordered pair has a different difference.
LEVELS = (10, 11, 13, 17, 25, 41, 73)
FORWARD = (1, 2, 4, 8, 16, 32, -32)  # to the next frame; the last frame's to the previous one
BACKWARD = (0, -1, -2, -4, -8, -16, -32)


def _frames(values=LEVELS, broken=()):
    """Yields frames; broken ones show the last good image, as sources do."""
    images = levels(values)
    for i in range(len(values)):
        shown = max((j for j in range(i + 1) if j not in broken), default=min(set(range(len(values))) - set(broken)))
        yield Frame(f"{i:05d}", images[shown], broken="damaged" if i in broken else None)


def _moves(pairs):
    return [None if flow is None else flow[0, 0, 0].item() for _, flow in pairs]


def _said(answers):
    """Returns dx as predicted by the toy model, frame by frame."""
    return [int(answer.probability[3, 5]) - 128 for answer in answers]


@pytest.mark.parametrize(("size", "expected"), [((480, 854), (480, 854)), ((24, 32), (24, 32)), ((4, 40), (16, 40)),
                                                ((1080, 1920), (480, 853)), ((960, 720), (640, 480))])
def test_flow_size_limits_shorter_side_to_480(size, expected):
    assert flow_size(size) == expected


def test_dis_recovers_translation_in_grid_pixels():
    coarse = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for factor, size in ((1, (120, 180)), (2, (960, 1440))):
        texture = cv2.resize(coarse, (size[1] + 40, size[0] + 40), interpolation=cv2.INTER_CUBIC)
        first, second = (texture[y:y + size[0], x:x + size[1]]
                         for y, x in ((20, 20), (20 - 2 * factor, 20 + 3 * factor)))
        flow = dis_estimator(first[None], second[None])
        assert flow.dtype == np.float32 and flow.shape == (1, *flow_size(size), 2)
        np.testing.assert_allclose(np.median(flow[0], (0, 1)), [-3, 2], atol=0.1)
    # Single pairs and a multithreaded batch give the same flow.
    images = np.stack([np.roll(texture[:64, :96], i, 1) for i in range(9)])
    together = dis_estimator(images[:-1], images[1:])
    for i in range(8):
        np.testing.assert_array_equal(together[i], dis_estimator(images[i][None], images[i + 1][None])[0])


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_flow_is_forward_and_backward_for_the_last_frame(batch):
    pairs = list(estimate_flow(_frames(), difference(batch), causal=False))
    assert [frame.name for frame, _ in pairs] == [f"{i:05d}" for i in range(7)]
    assert _moves(pairs) == list(FORWARD)


def test_causal_flow_is_backward_and_adds_no_latency():
    seen = []

    def live():
        for frame in _frames():
            seen.append(frame.name)
            yield frame

    for i, (frame, flow) in enumerate(estimate_flow(live(), difference(4), causal=True)):
        assert seen[-1] == frame.name and flow[0, 0, 0] == BACKWARD[i]


@pytest.mark.parametrize(("broken", "forward", "backward"), [
    ({3}, (1, 2, -2, 0, 16, 32, -32), (0, -1, -2, 0, -12, -16, -32)),
    ({2, 3}, (1, -1, 0, 0, 16, 32, -32), (0, -1, 0, 0, -14, -16, -32)),
    ({0}, (0, 2, 4, 8, 16, 32, -32), (0, 0, -2, -4, -8, -16, -32)),
    ({1}, (0, 0, 4, 8, 16, 32, -32), (0, 0, -3, -4, -8, -16, -32)),
    ({6}, (1, 2, 4, 8, 16, -16, 0), (0, -1, -2, -4, -8, -16, 0)),
])
def test_flow_skips_broken_frames(broken, forward, backward):
    for batch in (1, 4):
        assert _moves(estimate_flow(_frames(broken=broken), difference(batch), causal=False)) == list(forward)
        assert _moves(estimate_flow(_frames(broken=broken), difference(batch), causal=True)) == list(backward)


def test_single_frame_has_zero_flow():
    for causal in (False, True):
        (_, flow), = estimate_flow(_frames((50,)), dis_estimator, causal)
        assert flow.shape == (*SIZE, 2) and not flow.any()


def test_unused_flow_is_not_computed():
    asked = []

    def compute(first, second):
        asked.append(len(first))
        return difference()(first, second)

    for causal, expected in ((False, FORWARD), (True, BACKWARD)):
        asked.clear()
        pairs = estimate_flow(_frames(), FlowEstimator("counting", "", compute, 3), causal, {1, 6}.__contains__)
        assert _moves(pairs) == [expected[i] if i in (1, 6) else None for i in range(7)]
        assert sum(asked) == 2


def test_complete_pairs_are_yielded_before_a_read_error():
    def failing():
        yield from list(_frames())[:4]
        raise UserError("torn")

    pairs = []
    with pytest.raises(UserError, match="torn"):
        for pair in estimate_flow(failing(), difference(16), causal=False):
            pairs.append(pair)
    assert _moves(pairs) == list(FORWARD[:3])  # the flow of the fourth needs the fifth


def test_cache_computes_each_pair_once(tmp_path):
    asked = []

    def compute(first, second):
        asked.append(len(first))
        return difference()(first, second)

    images = levels(LEVELS)
    method = cached_estimator(FlowEstimator("counting", "one", compute), tmp_path / "cache")
    expected = method(images[:-1], images[1:])
    np.testing.assert_array_equal(expected[:, 0, 0, 0], FORWARD[:-1])
    again = cached_estimator(FlowEstimator("counting", "one", compute), tmp_path / "cache")
    np.testing.assert_array_equal(again(images[2:4], images[3:5]), expected[2:4])
    assert sum(asked) == 6
    method(images[1:2], images[:1])  # the reversed pair is a different pair
    other = FlowEstimator("counting", "two", compute)
    cached_estimator(other, tmp_path / "cache")(images[:1], images[1:2])  # another estimator does not use these files
    assert sum(asked) == 8
    for i, path in enumerate(sorted((tmp_path / "cache").iterdir())):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes([bytes(data), data[:100], b""][i % 3])
    np.testing.assert_array_equal(method(images[:-1], images[1:]), expected)
    assert sum(asked) == 14


def test_cache_is_thread_safe(tmp_path):
    images, failures = levels(range(0, 250, 10)), []
    method = cached_estimator(difference(), tmp_path)

    def fill():
        try:
            assert (method(images[:-1], images[1:])[:, 0, 0, 0] == 10).all()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(list(tmp_path.iterdir())) == 24


class Network(nn.Module):
    """Stand-in for RAFT whose flow is the difference of the first two channels of the images."""

    net: str = "small"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch, train, iterations):
        assert not train and iterations == 7 and not any(n % 8 for n in batch["first"].shape[1:3])
        flow = (batch["second"] - batch["first"])[..., :2] * self.param("gain", lambda key: jnp.ones(()))
        return {"flow": flow, "low": flow}, {}


@pytest.mark.parametrize("at_once", [1, 4])
def test_raft_pads_input_and_crops_flow(at_once, monkeypatch):
    monkeypatch.setattr("uvos_jax.inference.flow.estimators._batch_size_on", lambda device: at_once)
    images = np.random.default_rng(0).integers(0, 256, (7, 131, 150, 3), np.uint8)
    method = raft_estimator(Network(), {"params": {"gain": np.float32(1)}}, iterations=7)
    expected = (images[1:].astype(np.float32) - images[:-1])[..., :2]
    np.testing.assert_array_equal(method(images[:-1], images[1:]), expected)
    np.testing.assert_array_equal(method.on(jax.local_devices()[0])(images[:-1], images[1:]), expected)
    # Small frames are enlarged from 24 to 128 rows, and the vectors scaled back.
    small = method(levels([10, 30]), levels([12, 29]))
    assert small.shape == (2, *SIZE, 2)
    np.testing.assert_allclose(small[:, :, :, 1], np.broadcast_to(np.array([2, -1])[:, None, None] * 24 / 128,
                                                                  (2, *SIZE)), rtol=0.01)
    other = raft_estimator(Network(), {"params": {"gain": np.float32(2)}}, iterations=7)
    assert method.identity != other.identity


def test_raft_variant_is_detected_from_weights(tmp_path):
    for net in ("large", "small"):
        weights = {f"module.{key}": np.zeros(shape, np.float32)
                   for key, shape in expected_torch_shapes("raft", net=net).items()}
        np.savez(tmp_path / "weights.npz", **weights)
        method = load_flow("raft", tmp_path / "weights.npz")
        assert method.name == "raft" and f"RAFT {net}" in method.identity


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_each_frame_gets_its_own_flow_at_any_chunk_size(chunk):
    shared.cache_clear()
    segmenter = flow_segmenter(difference(2))
    assert _said(segmenter.run(open_source(levels(LEVELS)), chunk=chunk, soft=True)) == list(FORWARD)
    source = Source("made", "iterator", lambda: _frames(broken={3}), length=7)
    # A broken frame repeats the result of the last good frame.
    assert _said(segmenter.run(source, chunk=chunk, soft=True)) == [1, 2, -2, -2, 16, 32, -32]
    assert segmenter.engine(SIZE, True).step._cache_size() == 1
    assert segmenter.engine(SIZE, True).start._cache_size() == 1


def test_live_source_yields_results_without_latency():
    seen = []

    def live():
        for image in levels(LEVELS):
            seen.append(image)
            yield image

    said = []
    for answer in flow_segmenter(difference()).run(open_source(live(), live=True), soft=True):
        said += _said([answer])
        assert len(seen) == len(said)
    assert said == list(BACKWARD)


def test_generator_is_not_live_by_default():
    segmenter = flow_segmenter(difference())
    expected = segmenter.segment(levels(LEVELS))
    np.testing.assert_array_equal(segmenter.segment(iter(levels(LEVELS))), expected)
    assert _said(segmenter.results(image for image in levels(LEVELS))) == list(FORWARD)
    assert _said(segmenter.results(iter(levels(LEVELS)), live=True)) == list(BACKWARD)


def test_reference_frames_use_their_own_flow():
    for count, expected in ((3, round((1 + 8 - 32) / 3)), (2, round((1 - 32) / 2)), (1, 1)):
        segmenter = flow_segmenter(difference(), of_references=True, references=count)
        assert _said(segmenter.run(open_source(levels(LEVELS)), soft=True)) == pytest.approx([expected] * 7, abs=1)
    # A source that is read once has the first frame as its only reference.
    source = dataclasses.replace(open_source(levels(LEVELS)), rereadable=False)
    segmenter = flow_segmenter(difference(), of_references=True, references=3)
    assert _said(segmenter.run(source, chunk=3, soft=True)) == [1] * 7


def test_flipped_view_negates_horizontal_flow():
    for component, expected in ((0, np.full(SIZE, 128)), (1, np.broadcast_to(128 + np.linspace(0, 50, 32), SIZE))):
        segmenter = flow_segmenter(difference(), flip=True, component=component)
        for answer in segmenter.run(open_source(levels(LEVELS)), soft=True):
            np.testing.assert_allclose(answer.probability, expected, atol=1)


def test_resumed_run_skips_flow_of_finished_frames():
    asked = []

    def compute(first, second):
        asked.append(len(first))
        return difference()(first, second)

    segmenter = flow_segmenter(FlowEstimator("counting", "", compute))
    whole = list(segmenter.run(open_source(levels(LEVELS)), chunk=2, soft=True))
    asked.clear()
    rest = list(segmenter.run(open_source(levels(LEVELS)), chunk=2, soft=True, resume_from=(4, whole[3].state)))
    assert _said(rest[4:]) == list(FORWARD[4:]) and sum(asked) == 3


def test_default_flow_is_dis():
    assert flow_segmenter().flow is dis_estimator
    with pytest.raises(UserError, match="recurrent does not use optical flow"):
        type(flow_segmenter())("recurrent", recurrent_segmenter().model, {"params": {}}, flow=dis_estimator)


def test_resume_needs_the_same_flow_method(tmp_path):
    frames = save_frames(tmp_path / "clip", levels(LEVELS))

    def run(output, method, at=99, **changes):
        said = []
        options = {"chunk": 2, "resume": True, "save_every": 0,
                   "outputs": OutputOptions(soft=True, overlay=False)} | changes
        found = segment_to_folder(flow_segmenter(method), open_source(frames), tmp_path / output,
                                  on_frame=interrupt_at(at), say=said.append, **options)
        return found, said

    whole, _ = run("whole", difference())
    assert whole["flow"] == {"method": "difference", "identity": difference().identity,
                             "direction": "next_frame"}
    with pytest.raises(KeyboardInterrupt):
        run("out", difference(), at=5)
    again, _ = run("out", cached_estimator(difference(3), tmp_path / "cache"))
    assert again["resumed"] == 4 and again["flow_cache"] == str(tmp_path / "cache")
    ours, known = contents(tmp_path / "out"), contents(tmp_path / "whole")
    ours["run.json"].pop("flow_cache")
    assert ours == known
    with pytest.raises(KeyboardInterrupt):
        run("other", difference(), at=5)
    fresh, said = run("other", dataclasses.replace(difference(), identity="of other weights"))
    assert fresh["resumed"] == 0 and "flow (method, weights or files)" in said[0]


@pytest.mark.slow
def test_benchmark_times_flow_separately(monkeypatch):
    def once(function, at_least):
        function()
        return [0.5] * at_least

    monkeypatch.setattr("uvos_jax.inference.profiling.benchmark._time", once)
    parts = []
    result = benchmark(flow_segmenter(difference(4), references=3), SIZE, chunk=2, report=parts.append)
    assert result.flow.median == 0.5 / 4 and result.flow.repeats == 2 and result.network.median == 0.5 / 2
    assert "timing the flow" in parts
    assert benchmark(recurrent_segmenter(), SIZE, chunk=2).flow is None


def test_single_frame_run_reports_zero_flow(tmp_path):
    said = []
    run = segment_to_folder(flow_segmenter(), open_source(levels([50])), tmp_path / "out", say=said.append,
                            outputs=OutputOptions(soft=True))
    assert run["zero_flow"]
    assert said == ["'frames' has a single frame; its optical flow is set to zero."]
    assert (cv2.imread(str(tmp_path / "out/soft/00000.png"), cv2.IMREAD_UNCHANGED) == 128).all()
    assert "zero_flow" not in segment_to_folder(flow_segmenter(), open_source(levels([50, 60])), tmp_path / "two")


def _write_flows(folder, moves, size=SIZE, suffix=".flo"):
    folder.mkdir(exist_ok=True)
    for i, move in enumerate(moves):
        write_flow(folder / f"{i:05d}{suffix}", np.full((*size, 2), move, np.float32))
    return folder


@pytest.mark.parametrize(("suffix", "size", "moves"), [
    (".flo", SIZE, (5, -7, 9)), (".npy", SIZE, (5, -7, 9)), (".png", SIZE, (5, -7, 9)),
    (".flo", (48, 64), (10, -14, 18)),  # twice the frames' size: vectors twice as long
])
def test_flow_is_read_from_files_named_like_the_frames(tmp_path, suffix, size, moves):
    segmenter = flow_segmenter(_write_flows(tmp_path / "flow", moves, size, suffix))
    assert _said(segmenter.run(open_source(levels([1, 2, 3])), chunk=2, soft=True)) == [5, -7, 9]
    segmenter = flow_segmenter(tmp_path / "flow", of_references=True, references=2)
    assert _said(segmenter.run(open_source(levels([1, 2, 3])), soft=True)) == [7] * 3


def _write_nan(folder):
    np.save(folder / "00001.npy", np.full((*SIZE, 2), np.nan, np.float32))


@pytest.mark.parametrize(("change", "words"), [
    (lambda folder: (folder / "00001.flo").unlink(), "No flow in .* for frame 00001\\."),
    (lambda folder: [path.unlink() for path in sorted(folder.iterdir())[:2]],
     "No flow in .* for frame 00000, 00001\\."),
    (lambda folder: write_flow(folder / "00001.flo", np.zeros((24, 24, 2))), "00001.flo' is 24x24.*frames are 32x24"),
    (lambda folder: ((folder / "00001.flo").unlink(), _write_nan(folder)), "00001.npy' has flow that is not finite"),
    (_write_nan, "are flow of the same frame"),
])
def test_flow_folder_is_checked_before_any_output(tmp_path, change, words):
    flows = _write_flows(tmp_path / "flow", (1, 2, 3))
    segmenter = flow_segmenter(flows)
    change(flows)
    with pytest.raises(UserError, match=words):
        segment_to_folder(segmenter, open_source(levels([1, 2, 3])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_of_images_is_rejected_as_flow(tmp_path):
    save_frames(tmp_path / "pictures", levels([1, 2]))
    for path in (tmp_path / "pictures").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(UserError, match="holds images .'00000.jpg'."):
        load_flow(tmp_path / "pictures")
