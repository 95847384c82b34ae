"""DPA: model contract, frame sizes, reference memory and training."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.models import build
from uvos_jax.models.dpa import memory
from uvos_jax.training.phases import transfer
from uvos_jax.weights import backbone_from_torch
from uvos_jax.weights.convert import expected_variables

TINY = {"width": 2, "embedding": 4, "decoder": 2}
# Table 1 of the paper: attention modules, prototypes and number of references.
TABLE_1 = {
    "I": {"ima": False, "ifa": False}, "II": {"ifa": False}, "III": {"ima": False}, "IV": {},
    "V": {"references": 1}, "VI": {"references": 2}, "VII": {"references": 3}, "VIII": {"references": 5},
    "IX": {"ima_prototypes": False}, "X": {"ifa_prototypes": False},
    "XI": {"ima_prototypes": False, "ifa_prototypes": False},
}
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _variables(model, seed=0):
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return (rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
        low, high = (0.5, 1.5) if name in ("scale", "var") else (-0.3, 0.3)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, expected_variables(model))


def _clip(size=(64, 96), b=2, t=2, seed=0):
    rng = np.random.default_rng(seed)
    return {"frames": rng.integers(0, 256, (b, t, *size, 3), dtype=np.uint8),
            "labels": rng.integers(0, 3, (b, t, *size), dtype=np.uint8),
            "flow": rng.standard_normal((b, t, *size, 2)).astype(np.float32)}


def _shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "millions"), [("I", 39.5), ("II", 41.5), ("III", 40.5), ("IV", 43.5)])
def test_parameter_counts_match_table_2(row, millions):
    params = expected_variables(build("dpa", **TABLE_1[row]))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == pytest.approx(1e6 * millions, rel=0.02)


def check_training_trace(row):
    """Traces the loss gradient of a row and checks that it has the structure of the parameters."""
    model = build("dpa", **TINY, **TABLE_1[row])
    variables, clip = expected_variables(model), _shapes(_clip())

    def loss(params, batch_stats, clip):
        batch = model.training_batch(clip)
        (outputs, _), updated = model.apply({"params": params, "batch_stats": batch_stats}, batch, True,
                                            mutable=["batch_stats"])
        return model.loss(outputs, batch, 0)[0].mean(), updated["batch_stats"]

    gradient, updated = jax.eval_shape(jax.grad(loss, has_aux=True), variables["params"], variables["batch_stats"],
                                       clip)
    assert jax.tree.structure(gradient) == jax.tree.structure(variables["params"])
    assert jax.tree.structure(updated) == jax.tree.structure(variables["batch_stats"])


@pytest.mark.parametrize("row", ["I", "X"])  # other rows: tests/release
def test_rows_of_table_1_can_be_traced_for_training(row):
    check_training_trace(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["IV", "V", "VI", "VII", "VIII"])
def test_rows_of_table_1_have_their_number_of_references(row, video):
    model, features = build("dpa", **TINY, **TABLE_1[row]), _shapes(video[1][0])
    variables = expected_variables(video[0])  # no parameter depends on the number of references
    chosen = model.reference_frames(6)
    assert len(chosen) == model.references and max(chosen) <= 5
    references = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(chosen), *x.shape[1:]), x.dtype), features)
    now = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), features)
    state = jax.eval_shape(model.init_state, references)
    assert state.memory["motion"][0].shape == (1, model.references, 4, 4)
    answer, _ = jax.eval_shape(functools.partial(model.apply, method="predict"), variables, state, now)
    assert answer.shape == (1, 70, 100, 1)


@pytest.mark.slow
def test_gradient_step_lowers_loss_and_reaches_every_parameter():
    model = build("dpa", **TINY, camera=True, remat=True)
    variables, clip = _variables(model), _clip()
    clip["labels"][0, 0, :20] = 255

    @quick_jit
    def step(params, clip):
        def loss(params):
            batch = model.training_batch(clip)
            (outputs, _), _ = model.apply({"params": params, "batch_stats": variables["batch_stats"]}, batch, True,
                                          mutable=["batch_stats"])
            return model.loss(outputs, batch, 0)[0].mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    before, gradient, params = step(variables["params"], clip)
    after, _, _ = step(params, clip)
    assert after < before
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert np.asarray(leaf).any() or name.endswith("conv']['bias']"), name  # the norm cancels this bias


def test_void_pixels_do_not_affect_loss():
    model, rng = build("dpa", **TINY), np.random.default_rng(0)
    logits = [rng.standard_normal((2, *size, 1)).astype(np.float32) for size in ((8, 12), (16, 24), (32, 48), (64, 96))]
    clip = _clip(t=1)
    clip["labels"][:, 0, :30] = 255

    @quick_jit
    def loss_of(logits):
        return model.loss({"logits": logits}, model.training_batch(clip), 0)[0]

    def loss():
        return np.asarray(loss_of(logits))

    before = loss()
    assert before.shape == (2,)
    logits[3][:, :30] += 5
    np.testing.assert_array_equal(loss(), before)
    logits[3][1, 40:] += 5
    changed = loss()
    assert changed[0] == before[0] and changed[1] > before[1]


@pytest.fixture(scope="module")
def video():
    return _watched()


@pytest.fixture(scope="module")
def video_without_prototypes():  # row XI
    return _watched(ima_prototypes=False, ifa_prototypes=False)


def _watched(**fields):
    """Runs a small model on a video: features, and predictions from states and from encoded references."""
    model = build("dpa", **TINY, **fields)
    variables, rng = _variables(model), np.random.default_rng(1)
    # Any frame size is supported; 70 x 100 is no multiple of the strides.
    frames, flows = (rng.standard_normal((6, 70, 100, 3)).astype(np.float32) for _ in range(2))

    @quick_jit
    def run(variables, frames, flows):
        features = model.apply(variables, {"frame": frames, "flow": flows}, method="encode")
        chosen = jnp.array([4, 0, 3, 1])
        states = [model.init_state(jax.tree.map(lambda x, order=order: x[order], features))
                  for order in (chosen, chosen[::-1], jnp.array([4, 0, 3, 2]))]
        now = jax.tree.map(lambda x: x[5:], features)
        answers = [model.apply(variables, state, now, method="predict")[0] for state in states]
        whole, inner = model.apply(variables, {
            "frame": frames[5:], "flow": flows[5:], "reference_frame": frames[chosen][None],
            "reference_flow": flows[chosen][None]})
        return features, states, answers, whole, inner

    return model, run(variables, frames, flows)


@pytest.mark.slow
def test_references_in_state_equal_reencoded_references(video, video_without_prototypes):
    for _, (_, _, answers, whole, _) in (video, video_without_prototypes):
        assert [x.shape for x in whole["logits"]] == [(1, 8, 12, 1), (1, 17, 25, 1), (1, 35, 50, 1), (1, 70, 100, 1)]
        scale = np.abs(np.asarray(whole["logits"][-1])).max()
        np.testing.assert_allclose(answers[0], whole["logits"][-1], atol=1e-5 * scale)


def test_result_depends_on_references_but_not_on_their_order(video, video_without_prototypes):
    for _, (_, _, answers, _, _) in (video, video_without_prototypes):
        scale = np.abs(np.asarray(answers[0])).max()
        np.testing.assert_allclose(answers[0], answers[1], atol=1e-5 * scale)
        assert np.abs(np.asarray(answers[0] - answers[2])).max() > 1e-5 * scale


def test_intermediates_have_features_before_and_after_attention(video):
    _, (_, _, _, _, inner) = video
    for stream in ("appearance", "motion"):
        for before, after in (("block4", ("ima4",)), ("block5", ("ima5", "ifa"))):
            for name in after:
                assert inner[f"{stream}_{name}"].shape == inner[f"{stream}_{before}"].shape


@pytest.mark.slow
def test_references_of_whole_video_are_not_replaced(video):
    model, (features, states, _, _, _) = video
    state = states[0]
    for i in range(6):
        state = model.commit(state, jax.tree.map(lambda x, i=i: x[i:i + 1], features), None, {})
    jax.tree.map(np.testing.assert_array_equal, state.memory, states[0].memory)


def _kept(count, length):
    """Reference implementation: yields the frame number in each slot after every frame of a stream."""
    slots, interval = [0] * count, 1
    for frame in range(length):
        if frame and frame % interval == 0:
            if frame // interval == count:
                slots, interval = slots[::2] + slots[1::2], 2 * interval
            if frame % interval == 0:
                slots[frame // interval] = frame
        yield list(slots)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_references_of_stream_are_spread_over_past_frames(count):
    first = {"appearance": (jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)))}
    state, update_memory, length = memory.initial_state(first, count), jax.jit(memory.update_memory), 70
    for frame, expected in enumerate(_kept(count, length)):
        state = update_memory(state, jax.tree.map(lambda x, frame=frame: jnp.full_like(x, frame), first))
        for tokens in state.memory["appearance"]:
            assert tokens.shape == (1, count, 2, 3)
            np.testing.assert_array_equal(tokens[0, :, 0, 0], expected)
        if frame >= count:
            assert len(set(expected)) == count
    # The newest reference is from the last half of the past, and the first frame is kept.
    assert max(expected) >= length // 2 and 0 in expected


def test_single_reference_is_always_first_frame():
    first = {"motion": (jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)))}
    state = memory.initial_state(first, 1)
    for frame in range(5):
        state = memory.update_memory(state, jax.tree.map(lambda x, frame=frame: x + frame + 1, first))
    assert (np.asarray(state.memory["motion"][0]) == 1).all()


def test_unexpected_number_of_references_raises():
    with pytest.raises(ValueError, match="must be 1 or 4, not"):
        memory.initial_state({"motion": (jnp.ones((3, 2, 3)), jnp.ones((3, 2, 3)))}, 4)


def test_reference_frames_follow_equation_8():
    def chosen(length, **fields):
        return build("dpa", **fields).reference_frames(length)

    assert chosen(100) == (0, 33, 66, 99)
    assert chosen(8, references=3) == (0, 3, 7)
    assert chosen(1) == (0, 0, 0, 0)
    assert chosen(2, references=5) == (0, 0, 0, 0, 1)
    assert chosen(100, references=1) == chosen(None) == chosen(100, ifa=False) == (0,)
    assert chosen(103, variant="official") == (0, 25, 50, 75)


def test_frame_sizes():
    assert build("dpa").frame_size((480, 854)) == (384, 672)
    assert build("dpa").frame_size((854, 480), 0.5) == (352, 192)
    assert build("dpa", short_side=96).frame_size((10, 10)) == (96, 96)
    assert build("dpa", variant="official").frame_size((480, 854)) == (512, 512)
    assert build("dpa", variant="official", short_side=352).frame_size((480, 854)) == (352, 352)


def test_streams_select_model_inputs():
    assert build("dpa", streams="appearance").inputs == ("frame",)
    assert build("dpa").inputs == build("dpa", streams="motion").inputs == ("frame", "flow")
    clip = _clip()
    del clip["flow"]
    assert build("dpa", streams="appearance").training_batch(clip).keys() == {"frame", "reference_frame", "mask",
                                                                              "valid"}
    with pytest.raises(UserError, match="no optical flow"):
        build("dpa").training_batch(clip)


def test_flow_input_is_color_wheel_without_camera_motion():
    flow = np.zeros((2, 48, 64, 2), np.float32)
    flow[0, :, 32:] = [3, 0]  # motion to the right is red, no motion is white
    drawn = {camera: quick_jit(build("dpa", camera=camera).flow_input, static_argnums=1) for camera in (False, True)}
    picture = np.asarray(drawn[False](flow, (96, 128)))
    assert picture.shape == (2, 96, 128, 3) and picture.min() >= 0 and picture.max() <= 1
    np.testing.assert_allclose(picture[0, 10, 100], [1, 0, 0], atol=0.02)
    np.testing.assert_array_equal(picture[0, 10, 10], 1)
    np.testing.assert_array_equal(picture[1], 1)
    # Subtracting the camera motion leaves only the object.
    flow[:] = [2, -1]
    flow[:, 10:20, 30:40] = [-4, -1]
    still = np.ones((96, 128), bool)
    still[16:44, 56:84] = False
    with_camera, without = (np.asarray(drawn[camera](flow, (96, 128))) for camera in (False, True))
    assert with_camera[:, still].min() < 0.8 and without[:, still].min() > 0.95
    np.testing.assert_allclose(without[:, 30, 70], [[0, 9 / 11, 1]] * 2, atol=0.02)  # to the left: cyan to blue
    # An outlier does not change the color of the object.
    flow[:, 40, 4:6] = 300
    np.testing.assert_allclose(drawn[True](flow, (96, 128))[:, 30, 70], without[:, 30, 70], atol=0.02)


def test_refine_adds_postprocessing_stages():
    assert build("dpa").postprocess == ()
    assert build("dpa", refine=True).postprocess == ("smooth_over_time", "refine_by_color", "refine_edges")
    assert build("dpa", refine=True, streams="appearance").postprocess == ("refine_by_color", "refine_edges")


def test_official_variant_normalizes_each_map_to_unit_range():
    logits = np.array([[-1.0, 0.0], [0.5, 1.0]], np.float32).reshape(1, 2, 2, 1)
    logits = np.concatenate([logits, logits - 8])
    paper = build("dpa").to_native(logits, (2, 2))
    np.testing.assert_allclose(paper, jax.nn.sigmoid(logits), rtol=1e-6)
    official = np.asarray(build("dpa", variant="official").to_native(logits, (2, 2)))
    for example, probability in zip(official, np.asarray(paper), strict=True):
        expected = (probability - probability.min()) / np.ptp(probability)
        np.testing.assert_allclose(example, expected, atol=1e-4)


def test_appearance_stream_initializes_motion_stream():
    alone = build("dpa", **TINY, streams="appearance")
    stills, both = _variables(alone), expected_variables(build("dpa", **TINY))
    fresh = jax.tree.map(lambda x: np.full(x.shape, -7, x.dtype), both)
    after = transfer(stills, both, lambda: fresh, [{"from": "appearance_", "to": "motion_"}], "2")
    params = after["params"]
    for name in ("encoder", "stream"):
        ours = {jax.tree_util.keystr(path): leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(stills["params"][f"appearance_{name}"])}
        theirs = {jax.tree_util.keystr(path): leaf
                  for path, leaf in jax.tree_util.tree_leaves_with_path(params[f"motion_{name}"])}
        assert ours.keys() <= theirs.keys()
        for path, leaf in theirs.items():
            if path in ours:
                np.testing.assert_array_equal(leaf, ours[path])
            else:  # only the cross-stream modules are new
                assert re.search("ima|fuse5|query4", path) and (leaf == -7).all()
    jax.tree.map(np.testing.assert_array_equal, params["head"], stills["params"]["head"])


def test_vgg_classifier_initializes_both_encoders():
    shapes, c_in = {}, 3
    for index, c in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (2, 2, 4, 4, *[8] * 3, *[16] * 6),
                        strict=True):
        shapes |= {f"features.{index}.weight": (c, c_in, 3, 3), f"features.{index}.bias": (c,)}
        c_in = c
    rng = np.random.default_rng(0)
    theirs = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    model = build("dpa", **TINY)
    before = _variables(model)
    after = backbone_from_torch(before, theirs, *model.backbones)
    for stream in ("appearance", "motion"):
        np.testing.assert_array_equal(after["params"][f"{stream}_encoder"]["conv3_2"]["kernel"],
                                      theirs["features.12.weight"].transpose(2, 3, 1, 0))
        jax.tree.map(np.testing.assert_array_equal, after["params"][f"{stream}_stream"],
                     before["params"][f"{stream}_stream"])
