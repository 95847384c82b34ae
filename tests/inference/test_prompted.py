"""Prompted models in the driver: compilation, object ids and slots, masks in later frames."""

import functools

import jax
import numpy as np
import pytest

from tests.helpers.prompted_model import SIZE, brightness_segmenter, color_tracker, squares
from uvos_jax import UserError
from uvos_jax.inference import Segmenter
from uvos_jax.inference.engine import shared
from uvos_jax.inference.loading import random_variables
from uvos_jax.models import build
from uvos_jax.ops.preprocess import preprocess
from uvos_jax.video import Frame, open_source


@pytest.fixture(scope="module")
def clip():
    return squares(9)


@pytest.fixture(scope="module")
def segmenter():
    return color_tracker()


def plain_loop(segmenter, frames, masks):
    """Returns labels computed by a loop over frames and views; ``masks`` maps frame indices to slot labels."""
    model, variables, size = segmenter.model, segmenter.variables, frames.shape[1:3]

    @functools.partial(jax.jit, static_argnums=0)
    def apply(method, *args):
        return model.apply(variables, *args, method=method)

    def features(frame, scale, step):
        x = preprocess(frame[None, :, ::step], model.frame_size(size, scale), model.preprocess)
        return apply("encode", {"frame": x})

    views = [(scale, step) for scale in segmenter.scales for step in ((1, -1) if segmenter.flip else (1,))]
    first = masks[0].astype(int)
    states = [apply("init_state", features(frames[0], *view), np.where(first == 255, -1, first)[None, :, ::view[1]])
              for view in views]
    answers = [np.where(first == 255, 0, first)]
    for t in range(1, len(frames)):
        seen = [features(frames[t], *view) for view in views]
        raws = [apply("predict", state, x)[0] for state, x in zip(states, seen, strict=True)]
        score = np.mean([np.asarray(model.to_native(raw, size))[0, :, ::step]
                         for raw, (_, step) in zip(raws, views, strict=True)], 0)
        given = masks.get(t, np.zeros(size, np.uint8)).astype(int)
        labels = np.where(given > 0, given, score.argmax(-1))
        new = given if given.any() else None
        states = [apply("commit", state, x, labels[None, :, ::step], {}, None if new is None else new[None, :, ::step])
                  for state, x, (_, step) in zip(states, seen, views, strict=True)]
        answers.append(labels)
    return np.stack(answers)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "chunks"), [({}, (1, 4)), ({"scales": (0.75,), "flip": True}, (4,))],
                         ids=["one view", "mirrored views"])
def test_driver_equals_reference_loop(clip, options, chunks):
    frames, truth = clip
    masks = {0: np.where(truth[0] < 3, truth[0], 0), 5: np.where(truth[5] == 3, truth[5], 0)}
    masks[0][:3, :3] = 255
    segmenter = color_tracker(**options)
    expected = plain_loop(segmenter, frames, masks)
    assert set(np.unique(expected[6:])) == {0, 1, 2, 3} and (expected[0][:3, :3] == 0).all()
    for chunk in chunks:
        np.testing.assert_array_equal(segmenter.segment(frames, first_mask=masks, chunk=chunk), expected)


def test_compiles_once_for_any_number_of_objects_and_masks(clip):
    frames, truth = clip
    shared.cache_clear()
    segmenter = color_tracker()
    for masks in (truth[0] == 1, truth[0], {0: truth[0] == 1, 6: truth[6]}, {2: truth[2]}):
        segmenter.segment(frames, first_mask=masks, chunk=2)
    engine = segmenter.engine(SIZE)
    assert engine.step._cache_size() == 1 and engine.start._cache_size() == 1


def test_object_ids_do_not_affect_masks(segmenter, clip):
    frames, truth = clip
    plain = segmenter.segment(frames, first_mask=truth[0])
    assert set(np.unique(plain)) == {0, 1, 2, 3}
    names = np.array([0, 254, 7, 30], np.uint8)  # reordered ids with gaps
    np.testing.assert_array_equal(segmenter.segment(frames, first_mask=names[truth[0]]), names[plain])
    live = segmenter.segment(iter(frames), first_mask={"00000": names[truth[0]]})
    np.testing.assert_array_equal(live, names[plain])


def test_object_keeps_its_id_after_absence(segmenter, clip):
    frames, truth = (x.copy() for x in clip)
    for t in (3, 4, 5):
        frames[t][truth[t] == 2] = 40
    names = np.array([0, 4, 9, 5], np.uint8)
    labels = segmenter.segment(frames, first_mask=names[truth[0]])
    assert all(9 not in labels[t] for t in (3, 4, 5)) and all((labels[t] == 9).sum() > 40 for t in (2, 6, 7, 8))


def test_only_the_first_mask_of_an_object_is_used(segmenter, clip):
    """Masks of later frames are ignored, so a folder with all ground truth does not leak into the results."""
    frames, truth = clip
    wrong = {t: np.roll(truth[t], 9, axis=0) for t in range(9)}
    once = segmenter.segment(frames, first_mask=truth[0])
    np.testing.assert_array_equal(segmenter.segment(frames, first_mask=wrong | {0: truth[0]}), once)


def test_frames_before_first_mask_are_background(segmenter, clip):
    frames, truth = clip
    labels = segmenter.segment(frames, first_mask={"00004": np.uint8(6) * (truth[4] == 1)}, chunk=4)
    assert not labels[:4].any() and (labels[4] == 6 * (truth[4] == 1)).all() and 6 in labels[5]


def test_growing_slots_does_not_change_labels():
    frames, truth = squares(9, objects=7)
    masks = {0: np.where(truth[0] < 3, truth[0], 0), 5: truth[5]}
    shared.cache_clear()
    roomy, said = color_tracker(max_objects=8), []
    few = color_tracker(max_objects=2)
    grown = [answer.labels for answer in few.run(open_source(frames), first_mask=masks, chunk=2, say=said.append)]
    np.testing.assert_array_equal(grown, roomy.segment(frames, first_mask=masks, chunk=2))
    assert set(np.unique(grown[6])) == set(range(8))
    assert said == ["7 objects from frame 00005 on: using 8 object slots and compiling again."]
    assert [few.engine(SIZE, max_objects=max_objects).step._cache_size() for max_objects in (2, 8)] == [1, 1]


def test_soft_output_is_probability_of_any_object(clip):
    (frames, truth), segmenter = clip, color_tracker(inertia=0.0)
    answers = list(segmenter.run(open_source(frames), first_mask=truth[0], soft=True, chunk=4))
    assert set(np.unique(answers[0].probability)) == {0, 255} and answers[0].confidence == 1
    for answer in answers[1:]:
        inside = answer.labels > 0
        assert answer.probability[inside].min() > 100 and answer.probability[~inside].max() < 155
        assert 0.5 < answer.confidence <= 1
    # Two objects of one color: each id is uncertain, but the foreground is certain.
    twins = frames.copy()
    twins[(truth == 2) | (truth == 3)] = (30, 230, 30)
    first = truth[0] * (truth[0] > 1)
    answer = list(segmenter.run(open_source(twins[:2]), first_mask=first, soft=True, chunk=4))[1]
    assert answer.confidence < 0.6 and answer.probability[answer.labels > 0].mean() > 250


def test_void_pixels_of_the_first_mask_are_not_background():
    frames = np.full((2, *SIZE, 3), 40, np.uint8)
    first = np.zeros(SIZE, np.uint8)
    first[:16, :16], first[16:] = 1, 255
    frames[0][first > 0] = 230  # as background, the void half would shift the mean color of background to 135 or more
    frames[1, :, 24:] = 140  # nearer to the object's 230 than to the background's 40
    labels = color_tracker(inertia=0.0).segment(frames, first_mask=first)
    np.testing.assert_array_equal(labels[1], np.tile(np.arange(SIZE[1]) >= 24, (SIZE[0], 1)))


def test_mask_of_broken_frame_is_replaced_by_next_mask(segmenter, clip):
    frames, truth = clip

    def source(broken):
        opened = open_source(list(frames))
        opened.start = lambda: (Frame(f"{t:05d}", frames[t - (t in broken)], broken="torn" if t in broken else None)
                                for t in range(9))
        return opened

    masks = {t: truth[t] if t >= 3 else truth[t] == 1 for t in range(9)}
    answers = [answer.labels for answer in segmenter.run(source({3}), first_mask=masks, chunk=2)]
    np.testing.assert_array_equal(answers[3], answers[2])
    assert set(np.unique(answers[3])) == {0, 1} and set(np.unique(answers[4])) == {0, 1, 2, 3}
    with pytest.raises(UserError, match="Cannot decode the first frame, 00000 .torn."):
        next(segmenter.run(source({0}), first_mask=truth[0]))


@pytest.mark.parametrize("live", [False, True])
def test_first_mask_from_another_model(segmenter, clip, live):
    frames = np.concatenate([np.full((3, *SIZE, 3), 40, np.uint8), clip[0]])
    labels = segmenter.segment(iter(frames) if live else frames, first_mask=brightness_segmenter())
    found = brightness_segmenter().segment(frames)
    assert not labels[:3].any() and found[3].any()
    np.testing.assert_array_equal(labels[3], found[3])
    by_mask = segmenter.segment(frames, first_mask={3: found[3]})
    np.testing.assert_array_equal(labels, by_mask)
    dark = np.full((120, *SIZE, 3), 40, np.uint8)
    with pytest.raises(UserError, match="brightness found no object in the first 100 frames.*--first-mask PNG"):
        segmenter.segment(iter(dark) if live else dark, first_mask=brightness_segmenter())


def test_first_mask_is_required_only_by_prompted_models(segmenter, clip):
    frames, truth = clip
    with pytest.raises(UserError, match="needs a mask of the objects.*--first-mask"):
        segmenter.segment(frames)
    with pytest.raises(UserError, match="brightness takes no first mask. Leave out --first-mask.*cfbi"):
        brightness_segmenter().segment(frames, first_mask=truth[0])
    with pytest.raises(UserError, match="color_tracker is semi-supervised and cannot find the first mask.*adnet"):
        segmenter.segment(frames, first_mask=segmenter)


@pytest.mark.slow
def test_cfbi_compiles_once_and_its_state_is_independent_of_slots():
    frames, truth = squares(4, objects=4)
    model = build("cfbi", max_objects=4, depths=(1, 1, 1, 1), width=4, features=16, embedding=8, short_side=33,
                  references=2, ensembler=False, instance_attention=False)
    segmenter = Segmenter("cfbi", model, random_variables(model))
    masks = {0: np.where(truth[0] < 3, truth[0], 0), 2: truth[2]}
    labels = segmenter.segment(frames, first_mask=masks, chunk=2)
    np.testing.assert_array_equal(labels[0], masks[0])
    assert (labels[2][truth[2] > 2] == truth[2][truth[2] > 2]).all() and labels[:2].max() <= 2
    renamed = segmenter.segment(frames, chunk=2,
                                first_mask={t: np.uint8(30) * (mask > 0) + mask for t, mask in masks.items()})
    np.testing.assert_array_equal(renamed, np.uint8(30) * (labels > 0) + labels)
    carries = [jax.eval_shape(segmenter.engine(SIZE, max_objects=max_objects).start, segmenter.variables, frames[:1],
                              None, truth[:1]) for max_objects in (4, 8)]
    assert segmenter.engine(SIZE).step._cache_size() == 1 and carries[0] == carries[1]
