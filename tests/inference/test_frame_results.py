"""Results per frame: broken frames, probabilities, confidence, reference frames and resuming."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.helpers.recurrent_model import SIZE, noise, recurrent_segmenter
from uvos_jax.inference.engine import shared
from uvos_jax.inference.reference_frames import ReferenceFrames, select_reference_frames
from uvos_jax.video import Frame, Source, open_source


def _source(images, broken=(), **fields):
    """Returns a source whose broken frames show the last good image, or the first good one."""
    def frames():
        for i in range(len(images)):
            good = [j for j in range(len(images)) if j not in broken and j <= i]
            shown = good[-1] if good else min(j for j in range(len(images)) if j not in broken)
            yield Frame(f"{i:05d}", images[shown], broken="damaged" if i in broken else None)

    return Source("made", "iterator", frames, length=len(images), **fields)


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_broken_frame_repeats_last_mask_and_keeps_state(chunk):
    shared.cache_clear()
    segmenter, frames = recurrent_segmenter(), noise(12)

    def answers_to(source):
        return list(segmenter.run(source, chunk=chunk, soft=True))

    for broken in ({2}, {3, 4}, {5, 6, 7, 8, 9}, {1, 11}):
        good = [i for i in range(12) if i not in broken]
        expected = dict(zip(good, answers_to(open_source(frames[good])), strict=True))
        answers = answers_to(_source(frames, broken))
        assert [bool(answer.frame.broken) for answer in answers] == [i in broken for i in range(12)]
        for i, answer in enumerate(answers):
            last = max(j for j in good if j <= i)
            np.testing.assert_array_equal(answer.labels, expected[last].labels)
            np.testing.assert_array_equal(answer.probability, expected[last].probability)
            assert answer.confidence == expected[last].confidence
        # Control: the same frames not marked as broken do change the state.
        repeated = answers_to(open_source(np.stack([answer.frame.image for answer in answers])))
        assert good[-1] < max(broken) or (repeated[-1].probability != answers[-1].probability).any()
    assert segmenter.engine(SIZE, True).step._cache_size() == 1


def test_leading_broken_frames_are_background():
    segmenter, frames = recurrent_segmenter(), noise(6)
    answers = list(segmenter.run(_source(frames, {0, 1, 2}), chunk=2, soft=True))
    for answer in answers[:3]:
        assert not answer.labels.any() and not answer.probability.any() and answer.confidence == 0
    for answer, labels in zip(answers[3:], segmenter.segment(frames[3:]), strict=True):
        assert (answer.labels != labels).mean() < 0.004  # one or two pixels lie on the threshold


def test_soft_output_matches_the_model_and_keeps_labels():
    segmenter, frames = recurrent_segmenter(), noise(6)
    hard = segmenter.segment(frames, chunk=2)
    margins = _margins(frames, (0,))
    for answer, labels, margin in zip(segmenter.run(open_source(frames), chunk=2, soft=True), hard, margins,
                                      strict=True):
        assert (answer.labels != labels).mean() < 0.004
        expected = 1 / (1 + np.exp(-8 * margin))
        assert answer.probability.dtype == np.uint8
        assert (np.abs(answer.probability - 255 * expected) > 0.6).mean() < 0.01
        inside = answer.labels == 1
        sure = expected[inside].mean() if inside.any() else 1 - expected.mean()
        assert answer.confidence == pytest.approx(sure, abs=2e-3)
    assert inside.any()


def test_confidence_of_empty_mask_is_mean_background_probability():
    # The mean is brighter than the second frame, so nothing is foreground.
    segmenter = recurrent_segmenter()
    white, dark = np.full((1, *SIZE, 3), 255, np.uint8), np.full((1, *SIZE, 3), 100, np.uint8)
    answers = list(segmenter.run(open_source(np.concatenate([white, dark])), soft=True))
    assert not answers[1].labels.any()
    assert answers[1].confidence == pytest.approx(1 - answers[1].probability.mean() / 255, abs=0.003)
    assert answers[1].confidence > 0.9


def _margins(frames, indices):
    """Returns the recurrent model's margins in NumPy, brightness above the threshold, ``[t, h, w]``."""
    gray = frames.mean(-1) / 255
    mean, margins = gray[list(indices)].mean(0), []
    for frame in gray:
        margins.append(frame - mean - 0.01)
        mean = 0.8 * mean + 0.2 * frame + 0.02 * ((margins[-1] > 0) - 0.5)
    return np.stack(margins)


@pytest.mark.parametrize(("fields", "indices", "rule"), [
    ({"length": 9}, (0, 4, 8), "whole video"),
    ({"kind": "file", "length": 14}, (0, 4, 8), "whole video"),  # the length in a file header may be wrong
    ({"kind": "file", "length": None}, (0, 4, 8), "whole video"),
    ({"live": True, "length": None}, (0,), "causal"),
    ({"rereadable": False}, (0,), "causal"),
])
def test_references_are_spread_over_rereadable_sources(fields, indices, rule):
    segmenter, frames = recurrent_segmenter(references=3), noise(9)
    fields = {"kind": "iterator", "length": 9} | fields
    source = Source("made", start=lambda: (Frame(str(i), frame) for i, frame in enumerate(frames)), **fields)
    found = select_reference_frames(segmenter.model, dataclasses.replace(source))
    assert found == ReferenceFrames(indices, rule)
    labels = np.stack([answer.labels for answer in segmenter.run(source, chunk=2)])
    assert ((labels == 1) != (_margins(frames, indices) > 0)).mean() < 0.002
    other = (0, 4, 8) if rule == "causal" else (0,)
    assert ((labels == 1) != (_margins(frames, other) > 0)).mean() > 0.01


def test_first_frame_reference_needs_one_pass():
    passes = []

    def frames():
        passes.append(1)
        yield from (Frame(str(i), frame) for i, frame in enumerate(noise(3)))

    assert len(list(recurrent_segmenter().run(Source("made", "file", frames)))) == 3 and len(passes) == 1


def test_run_resumes_after_any_full_chunk():
    shared.cache_clear()
    segmenter, frames = recurrent_segmenter(), noise(11)
    whole = list(segmenter.run(open_source(frames), chunk=3))
    assert [answer.state is not None for answer in whole] == [i in (2, 5, 8) for i in range(11)]
    for at in (2, 5, 8):
        begin = (at + 1, jax.tree.map(np.asarray, whole[at].state))
        rest = list(segmenter.run(open_source(frames), chunk=3, resume_from=begin))
        assert [answer.frame.name for answer in rest] == [answer.frame.name for answer in whole]
        for i, (answer, before) in enumerate(zip(rest, whole, strict=True)):
            if i <= at:
                assert answer.labels is None
            else:
                np.testing.assert_array_equal(answer.labels, before.labels)
    assert segmenter.engine(SIZE).step._cache_size() == 1


def test_repr_of_result_shows_no_arrays():
    result = list(recurrent_segmenter().run(open_source(noise(2)), soft=True))[-1]
    assert "array" not in repr(result) and len(repr(result)) < 300
    assert "name='00001'" in repr(result) and "confidence=" in repr(result)
