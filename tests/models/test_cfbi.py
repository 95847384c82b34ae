"""CFBI: model contract, recurrent steps, reference memory and preprocessing."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.small_cfbi import SIZE, SMALL, boxes, small
from uvos_jax.models import build
from uvos_jax.models.cfbi.modules import combine_objects
from uvos_jax.ops.matching import local_distance_at_half_size
from uvos_jax.ops.preprocess import preprocess

# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

ABSENT = -1e4
THREE = boxes(SIZE, (1, 0.1, 0.1, 0.4, 0.4), (2, 0.3, 0.6, 0.5, 0.3), (3, 0.7, 0.1, 0.2, 0.4))
EMPTY = np.zeros(SIZE, np.uint8)


def _features(seed, h=17, w=21):
    rng = np.random.default_rng(seed)
    embed = np.maximum(rng.normal(0, 0.3, (1, h, w, SMALL["embedding"])), 0)
    low = rng.standard_normal((1, h, w, 4 * SMALL["width"]))
    return {"embed": jnp.asarray(embed, jnp.float32), "low": jnp.asarray(low, jnp.float32)}


def _step(model, variables, state, now):
    """Runs one frame like the driver: predict, argmax, commit. ``now``: features and given labels."""
    features, given = now
    raw, aux = model.apply(variables, state, features, method="predict")
    labels = jnp.where(given > 0, given, model.to_native(raw, SIZE).argmax(-1)).astype(jnp.int32)
    return model.commit(state, features, labels, aux, given), (raw, labels)


@functools.cache
def _loop():
    """Returns ``run(first labels, labels given for later frames) -> (state, [raw], [labels])``, a loop over frames."""
    model, variables = small()
    step = quick_jit(functools.partial(_step, model))

    def run(first, *given):
        state, made = model.init_state(_features(0), jnp.asarray(first, jnp.int32)[None]), []
        for i, labels in enumerate(given, 1):
            state, seen = step(variables, state, (_features(i), jnp.asarray(labels, jnp.int32)[None]))
            made.append(jax.tree.map(np.asarray, seen))
        assert step._cache_size() == 1  # one program for any number of objects
        return state, *zip(*made, strict=True)

    return run


@pytest.mark.slow
def test_scan_with_more_slots_equals_loop():
    state, raw, labels = _loop()(THREE, EMPTY, np.where(THREE == 3, 3, 0), EMPTY)
    model, variables = small(max_objects=5)  # the same parameters
    given = jnp.asarray(np.stack([EMPTY, np.where(THREE == 3, 3, 0), EMPTY])[:, None], jnp.int32)
    frames = jax.tree.map(lambda *x: jnp.stack(x), *(_features(i) for i in (1, 2, 3)))
    begin = model.init_state(_features(0), jnp.asarray(THREE, jnp.int32)[None])
    scan = quick_jit(lambda variables, state, xs: jax.lax.scan(functools.partial(_step, model, variables), state, xs))
    end, (scores, decided) = scan(variables, begin, (frames, given))
    np.testing.assert_allclose(scores[..., :4], raw, atol=1e-4)
    assert (np.asarray(scores[..., 4:]) == ABSENT).all()
    np.testing.assert_array_equal(decided, labels)
    assert len(np.unique(labels)) > 2  # more than one object was predicted
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), end) == jax.tree.map(lambda x: (x.shape, x.dtype), begin)


def test_result_is_equivariant_to_object_order():
    slots = np.array([0, 3, 1, 2], np.uint8)
    _, raw, labels = _loop()(THREE, EMPTY, EMPTY)
    _, permuted, decided = _loop()(slots[THREE], EMPTY, EMPTY)
    for ours, theirs in zip(raw, permuted, strict=True):
        np.testing.assert_allclose(theirs[..., slots], ours, atol=1e-4)
    np.testing.assert_array_equal(decided, slots[np.array(labels)])


def test_absent_objects_are_not_predicted_and_can_be_added_later():
    state, raw, labels = _loop()(EMPTY, EMPTY, np.where(THREE == 1, 1, 0), EMPTY)
    assert not labels[0].any() and (raw[0][..., 1:] == ABSENT).all()
    assert (labels[1] == 1).all(where=THREE == 1)
    assert (raw[2][..., 1] > ABSENT / 2).all() and (raw[2][..., 2:] == ABSENT).all()
    assert state.count == state.references == 1
    later, raw, labels = _loop()(np.where(THREE == 1, 1, 0), EMPTY, np.where(THREE == 2, 2, 0), EMPTY)
    assert later.count == later.references == 2
    assert set(np.unique(later.reference_labels[0, 0])) == {0, 1}
    assert (later.reference_labels[0, 1] == 2).any() and (raw[2][..., 1:3] > ABSENT / 2).all()
    assert (labels[1] == 2).all(where=THREE == 2)  # given labels are kept


@pytest.mark.slow
def test_vanished_object_is_kept_in_references():
    model, _ = small()
    first, later = _features(0), _features(1)
    state = model.init_state(first, jnp.asarray(THREE, jnp.int32)[None])
    gone = model.commit(state, later, jnp.asarray(np.where(THREE == 2, 0, THREE), jnp.int32)[None], {},
                        jnp.zeros((1, *SIZE), jnp.int32))
    assert gone.count == 3 and gone.references == 1 and not (gone.previous_labels == 2).any()
    one = jax.tree.map(lambda x: x[0], gone)
    where = np.asarray(one.reference_labels[0])
    nearest = np.asarray(model.global_distances(one, first["embed"][0]))
    for slot in range(4):  # each object of the first frame matches itself
        assert nearest[where == slot, slot].max() < 1e-4
    assert (nearest[where == 2][:, [0, 1, 3]] > 1e-4).mean() > 0.9
    local = np.asarray(local_distance_at_half_size(first["embed"][0], one.previous, one.previous_labels,
                                                   model.max_objects + 1, model.windows))
    assert (local[:, :, 2] == 5e4).all() and (local[:, :, 1] < 5e4).any()


@pytest.mark.parametrize(("room", "kept"), [(1, [[5]]), (2, [[0, 1], [0, 5]]),
                                            (3, [[0, 1, 2], [0, 3, 2], [0, 3, 4], [0, 5, 4]])])
def test_reference_memory_keeps_first_and_replaces_oldest(room, kept):
    model = build("cfbi", **SMALL | {"references": room})
    tagged = [{"embed": jnp.full((2, 3, 4, 1), float(i))} for i in range(6)]
    labels = jnp.ones((2, 3, 4), jnp.int32)
    only_one = labels.at[1].set(0)  # the second video has only its first mask
    state, seen = model.init_state(tagged[0], labels), []
    for i in range(1, 6):
        state = model.commit(state, tagged[i], 7 * labels, {}, 0 * labels)
        state = model.commit(state, tagged[i], i * labels, {}, i * only_one)
        seen.append(np.asarray(state.reference[0, :, 0, 0, 0]).astype(int).tolist())
    assert seen[-1] == kept[-1] and all(x in seen for x in kept)
    assert state.references.tolist() == [6, 1] and state.count.tolist() == [5, 1]
    assert np.asarray(state.reference_labels[0, :, 0, 0]).tolist() == [max(1, i) for i in kept[-1]]
    assert np.asarray(state.reference_labels[1, :, 0, 0]).tolist() == [1, -1, -1][:room]


def test_void_in_given_mask_is_no_object():
    model, _ = small()
    labels = np.where(THREE == 2, -1, THREE.astype(np.int32))
    state = model.init_state(_features(0), jnp.asarray(labels)[None])
    assert set(np.unique(state.reference_labels[0, 0])) == {-1, 0, 1, 3} and state.count == 3


def test_combined_logits_equal_hand_computed_values():
    logits = np.zeros((1, 4, 1, 2, 2), np.float32)
    logits[0, :, 0, 0] = [[1, 9], [2, -3], [4, 5], [7, -99]]  # foreground and background logit
    logits[0, :, 0, 1] = [[0, 0], [1, 6], [2, 0.5], [7, -99]]
    made = np.asarray(combine_objects(logits, jnp.array([2])))
    np.testing.assert_array_equal(made, [[[[1 - 3, 2, 4, ABSENT], [0.5, 1, 2, ABSENT]]]])
    np.testing.assert_array_equal(combine_objects(logits, jnp.array([0]))[0, 0, :, 0], [1, 0])


def test_native_scores_are_probabilities():
    model, _ = small()
    raw = np.full((1, 2, 2, 4), ABSENT, np.float32)
    raw[..., :3] = np.log([[[1, 3, 4], [2, 1, 1]], [[4, 2, 2], [6, 1, 1]]])
    score = np.asarray(model.to_native(raw, (3, 3)))
    np.testing.assert_allclose(score.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(score[0, ::2, ::2], [[[1 / 8, 3 / 8, 4 / 8, 0], [1 / 2, 1 / 4, 1 / 4, 0]],
                                                    [[1 / 2, 1 / 4, 1 / 4, 0], [3 / 4, 1 / 8, 1 / 8, 0]]], atol=1e-6)
    np.testing.assert_allclose(model.to_probability(score)[0, 0, 0], 7 / 8, rtol=1e-6)


@pytest.mark.parametrize(("native", "scale", "official", "paper"), [
    ((480, 854), 1.0, (481, 849), (481, 849)),
    ((480, 854), 1.5, (721, 1281), (721, 1281)),
    ((1080, 1920), 1.0, (577, 1041), (481, 849)),  # 585 pixels are 36.5 steps of 16, rounded to even 36
    ((441, 457), 1.0, (449, 449), (481, 497)),  # 27.5 and 28.5 steps, both rounded to even 28
    ((90, 120), 1.0, (97, 113), (481, 641)),
])
def test_frame_sizes(native, scale, official, paper):
    assert build("cfbi", variant="official").frame_size(native, scale) == official
    assert build("cfbi").frame_size(native, scale) == paper


def test_short_side_sets_frame_size():
    for variant in ("paper", "official"):
        assert build("cfbi", variant=variant, short_side=113).frame_size((480, 854)) == (113, 209)


@pytest.mark.parametrize("size", [(49, 81), (97, 65), (33, 33)])
def test_official_preprocessing_equals_opencv(size):
    frame = np.random.default_rng(0).integers(0, 256, (48, 85, 3), dtype=np.uint8)
    ours = preprocess(frame[None], size, build("cfbi", variant="official").preprocess)[0]
    theirs = cv2.resize(frame[..., ::-1].astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    theirs = (theirs / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_paper_preprocessing_is_rgb():
    frame = np.zeros((1, 17, 17, 3), np.uint8)
    frame[..., 0] = 255
    seen = preprocess(frame, (17, 17), build("cfbi").preprocess)[0, 5, 5]
    np.testing.assert_allclose(seen, [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-5)


def test_task_inputs_and_reference_frames():
    model = build("cfbi")
    assert model.task == "prompted" and model.inputs == ("frame",) and model.reference_frames(None) == (0,)
