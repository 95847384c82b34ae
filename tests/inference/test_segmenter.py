import gc
import itertools
import threading

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.small_adnet import against_the_first, clip, small_segmenter
from uvos_jax import UserError
from uvos_jax.inference.engine import StepInputs, shared
from uvos_jax.inference.postprocess import STAGES
from uvos_jax.inference.segmenter import load
from uvos_jax.video import open_source
from uvos_jax.weights.checkpoints import digest
from uvos_jax.weights.packaged import load_packaged, packaged_names


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


@pytest.fixture(scope="module")
def masks(segmenter):
    result = segmenter.segment(clip(21), chunk=1)
    share = (result == 1).mean(axis=(1, 2))
    assert share.min() > 0.02 and share.max() < 0.98  # comparisons below need masks that are neither empty nor full
    return result


def _differing(a, b):
    return (a != b).mean()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_masks_do_not_depend_on_chunk_size(variant):
    segmenter = small_segmenter(variant)
    frames = clip(21)
    one, four, sixteen = (segmenter.segment(frames, chunk=c) for c in (1, 4, 16))
    assert one.shape == (21, 48, 72) and one.dtype == np.uint8
    assert _differing(one, four) <= 1e-5 and _differing(one, sixteen) <= 1e-5


def test_one_compilation_per_video_size(segmenter):
    shared.cache_clear()
    segmenter = small_segmenter()
    for length in (9, 1, 4):
        segmenter.segment(clip(length), chunk=4)
    assert segmenter.engine((48, 72)).step._cache_size() == 1
    assert segmenter.engine((48, 72)).start._cache_size() == 1


def test_equal_segmenters_share_compiled_programs():
    shared.cache_clear()
    first, second = small_segmenter(), small_segmenter()
    first.segment(clip(2), chunk=2)
    compiled = first.engine((48, 72)).step._cache_size()
    second.segment(clip(2), chunk=2)
    assert second.engine((48, 72)) is first.engine((48, 72))
    assert second.engine((48, 72)).step._cache_size() == compiled == 1
    assert small_segmenter("official").engine((48, 72)) is not first.engine((48, 72))


def test_repr_names_model_and_options(segmenter):
    assert repr(segmenter).startswith("Segmenter(adnet, variant=paper, ") and "parameters" in repr(segmenter)
    assert repr(small_segmenter(scales=(0.75, 1), flip=True)).count("scales=(0.75, 1.0), flip=True") == 1


@pytest.mark.slow
def test_scan_equals_per_frame_prediction(segmenter, masks):
    model, seen = segmenter.model, (0, 7, 20)
    logits = against_the_first(model, segmenter.variables, clip(21)[np.array(seen)])
    for t, probability in zip(seen, np.asarray(model.to_native(logits, (48, 72)))[..., 0], strict=True):
        assert _differing(probability > 0.5, masks[t] == 1) <= 1e-3  # a few pixels within rounding of 0.5


@pytest.mark.slow
def test_scales_and_flips_average_separate_states():
    segmenter = small_segmenter(scales=(0.75, 1.5), flip=True)
    model, variables = segmenter.model, segmenter.variables
    frames = clip(5)
    scores = []
    for scale, mirrored in itertools.product((0.75, 1.5), (False, True)):
        seen = frames[:, :, ::-1] if mirrored else frames
        logits = against_the_first(model, variables, seen, scale)
        score = np.asarray(model.to_native(logits, (48, 72)))[..., 0]
        scores.append(score[:, :, ::-1] if mirrored else score)
    mean = np.mean(scores, 0)
    result = segmenter.segment(frames, chunk=2) == 1
    clear = np.abs(mean - 0.5) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result[clear], (mean > 0.5)[clear])


def test_flip_is_equivariant_to_mirroring():
    segmenter = small_segmenter(flip=True)
    frames = clip(4)
    straight, mirrored = segmenter.segment(frames), segmenter.segment(frames[:, :, ::-1])
    assert _differing(straight, mirrored[:, :, ::-1]) <= 1e-3
    assert _differing(straight, mirrored) > 0.01  # the clip itself is not symmetric


def test_stages_get_the_fused_score_and_keep_state(monkeypatch):
    def from_the_third_frame(count, score, threshold, sight):
        assert sight.frame.shape == (*score.shape[1:3], 3) and sight.flow is None
        return count + 1, jnp.where(count >= 2, threshold + 1, score)

    monkeypatch.setitem(STAGES, "temporal_gate", (lambda size: jnp.zeros((), int), from_the_third_frame))
    # Without the engine cache, so that this stage is compiled.
    monkeypatch.setattr("uvos_jax.inference.segmenter.shared", lambda engine: engine)
    result = small_segmenter("official").segment(clip(6), chunk=4)
    assert (result[2:] == 1).all() and (result[:2] == 0).any()


@pytest.mark.slow
def test_padding_frames_do_not_change_the_state():
    segmenter = small_segmenter("official")
    frames = clip(4, (120, 160))
    engine = segmenter.engine((120, 160))
    carry = engine.start(segmenter.variables, frames[:1])
    filled = np.concatenate([frames[:2], frames[3:], frames[3:]])
    after_two, _ = engine.step(segmenter.variables, carry, StepInputs(filled, np.array([True, True, False, False])))
    after_both, _ = engine.step(segmenter.variables, carry, StepInputs(frames[:2], np.array([True, True])))
    for a, b in zip(jax.tree.leaves(after_two), jax.tree.leaves(after_both), strict=True):
        np.testing.assert_array_equal(a, b)
    after_four, _ = engine.step(segmenter.variables, carry, StepInputs(filled, np.ones(4, bool)))
    assert any((np.asarray(a) != np.asarray(b)).any()
               for a, b in zip(jax.tree.leaves(after_four), jax.tree.leaves(after_two), strict=True))


@pytest.mark.slow
def test_abandoned_stream_ends_its_reader_thread(segmenter):
    def readers():
        return [thread for thread in threading.enumerate() if thread.name == "uvos-reader"]

    stream = segmenter.stream(clip(40))
    next(stream)
    assert readers()
    del stream
    gc.collect()
    assert not readers()
    for _ in segmenter.stream(clip(40)):
        break
    gc.collect()
    assert not readers()


def test_out_of_memory_is_a_user_error(segmenter, monkeypatch):
    def step(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    small = small_segmenter()
    monkeypatch.setitem(small.engine((48, 72)).__dict__, "step", step)
    with pytest.raises(UserError, match="memory.*--size"):
        small.segment(clip(1))


def test_load_without_arguments_uses_packaged_weights():
    segmenter = load(short_side=65)
    name, model, variables = load_packaged(short_side=65)
    assert (segmenter.name, segmenter.model) == (name, model) and model.short_side == 65
    assert segmenter.weights_digest == digest(variables)


def test_packaged_weights_are_loaded_by_name():
    assert packaged_names()[0] == "default"
    assert load(weights="default").weights_digest == load().weights_digest
    name = load().name
    assert load(name, weights="default").name == name
    with pytest.raises(UserError, match=f"packaged weights 'default' belong to {name}, not to cfbi"):
        load("cfbi", weights="default")


def test_live_source_is_processed_frame_by_frame(segmenter, masks):
    asked = []

    def camera():
        for i, frame in enumerate(clip(21)[:5]):
            asked.append(i)
            yield frame

    for t, (frame, labels) in enumerate(segmenter.stream(camera(), live=True)):
        assert asked == list(range(t + 1))  # no frame is read ahead
        np.testing.assert_array_equal(frame, clip(21)[t])
        assert _differing(labels, masks[t]) <= 1e-3


@pytest.mark.slow
def test_read_ahead_is_bounded(segmenter):
    decoded = []

    class Frames(list):
        def __iter__(self):
            for i, frame in enumerate(super().__iter__()):
                decoded.append(i)
                yield frame

    stream = segmenter.stream(Frames(clip(60)), chunk=2)
    for t, _ in enumerate(itertools.islice(stream, 20)):
        # t + 1 frames are yielded; at most 5 chunks of 2 are in flight, queued or being read.
        assert len(decoded) <= t + 1 + 5 * 2
    stream.close()
    assert len(decoded) < 60


def test_read_error_is_raised_after_preceding_frames(segmenter, tmp_path):
    frames = [*clip(4), np.zeros((20, 20, 3), np.uint8)]
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{i:05d}.png"), frame)
    done = []
    with pytest.raises(UserError, match="00004.*20x20.*72x48"):
        for answer in segmenter.run(open_source(tmp_path), chunk=1):
            done.append(answer.frame.name)
    assert done == ["00000", "00001", "00002", "00003"]


@pytest.mark.slow
def test_frames_before_a_failure_are_yielded_at_any_chunk_size(segmenter, masks):
    def frames():
        yield from clip(21)[:5]
        raise OSError("unplugged")

    for chunk in (1, 2, 4, 16):
        done = []
        with pytest.raises(OSError, match="unplugged"):
            for _, labels in segmenter.stream(frames(), chunk=chunk):
                done.append(labels)
        assert len(done) == 5 and _differing(np.stack(done), masks[:5]) <= 1e-3


def test_source_may_reuse_its_buffer(segmenter, masks):
    def frames():
        buffer = np.zeros((48, 72, 3), np.uint8)
        for frame in clip(21)[:6]:
            buffer[:] = frame
            yield buffer

    assert _differing(segmenter.segment(frames(), chunk=4), masks[:6]) <= 1e-3


def test_extreme_aspect_ratio_is_rejected(segmenter):
    with pytest.raises(UserError, match="largest side allowed is 8192"):
        segmenter.segment(np.zeros((1, 4000, 3, 3), np.uint8))


def test_streamed_masks_are_writable(segmenter):
    [(_, labels)] = segmenter.stream(clip(1))
    labels[:] = 7
    assert (labels == 7).all()


def test_single_frame_and_empty_videos(segmenter):
    assert segmenter.segment(clip(1)).shape == (1, 48, 72)
    with pytest.raises(UserError, match="has no frames|no frame"):
        segmenter.segment(iter([]))


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(segmenter, masks):
    half = small_segmenter(dtype=jnp.bfloat16)
    half.variables = segmenter.variables
    assert _differing(half.segment(clip(21), chunk=4), masks) < 0.05


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "adnett", "weights": "random"}, "Unknown model 'adnett'.*Did you mean 'adnet'"),
    ({"name": "adnet"}, "No weights of adnet are packaged"),
    ({"weights": "random"}, "need a model. Give --model"),
    ({"name": "adnet", "weights": "nowhere.pth"}, "no weights .nowhere.pth."),
    ({"name": "adnet", "weights": "nowhere"}, "no weights 'nowhere'"),
    ({"name": "adnet", "weights": "random", "precision": "bfloat17"}, "Did you mean 'bfloat16'"),
    ({"name": "adnet", "weights": "random", "variant": "offical"}, "Did you mean 'official'"),
    ({"name": "adnet", "weights": "random", "widht": 8}, "Did you mean 'width'"),
    ({"name": "adnet", "weights": "random", "scales": (1, 1), "depths": (1, 1, 1, 1), "width": 8}, "must be distinct"),
    ({"name": "adnet", "weights": "random", "scales": "1", "depths": (1, 1, 1, 1), "width": 8}, "Scales"),
    ({"name": "adnet", "weights": "random", "scales": (0.0,), "depths": (1, 1, 1, 1), "width": 8}, "Scales"),
])
def test_load_rejects_invalid_arguments(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        load(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["base", "concat", "intra", "anchor"])
def test_ablation_nets_run(net):
    result = small_segmenter(net=net).segment(clip(3), chunk=2)
    assert result.shape == (3, 48, 72) and set(np.unique(result)) <= {0, 1}


@pytest.mark.slow
def test_stream_equals_segment_on_real_frames(real_data):
    segmenter = small_segmenter()
    folder = str(real_data / "davis2016/JPEGImages/480p/bear/0000?.jpg")
    streamed = [labels for _, labels in segmenter.stream(folder, chunk=1)]
    assert len(streamed) == 10 and streamed[0].shape == (480, 854)
    assert _differing(np.stack(streamed), segmenter.segment(folder, chunk=4)) <= 1e-5
