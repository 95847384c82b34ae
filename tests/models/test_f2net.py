"""F2Net: model contract, the nets of Table 1, and recurrent steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.small_f2net import SMALL, clip, small
from uvos_jax.models import build
from uvos_jax.models.f2net import model as f2net
from uvos_jax.ops.center_heatmaps import Track
from uvos_jax.weights.convert import expected_variables

# Rows of Table 1: modules of a net besides backbone, ASPP and classifier.
NETS = {"baseline": set(), "ad": set(), "cgad": {"center"}, "sa": {"center", "spatial"},
        "ca": {"center", "squeeze", "expand"},
        "sca": {"center", "spatial", "squeeze", "expand"},
        "csa": {"center", "spatial", "squeeze", "expand"}}
ALWAYS = {"backbone", "aspp", "embed", "embed_prelu", "static", "classifier_hidden", "classifier"}
SIZE = 65, 81

# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _stepper(**overrides):
    """Returns a model, its variables and a jitted step from features."""
    model, variables = small(**overrides)

    @quick_jit
    def step(state, features, labels):
        logits, aux = model.apply(variables, state, features, method="predict")
        return model.commit(state, features, labels, aux), logits, aux

    return model, variables, step


def _features(b=1, h=9, w=11, seed=0, peak=(12, 8), strength=6.0):
    """Features of one frame of ``b`` videos; heat logits have one peak at (x, y) and about -9 elsewhere."""
    rng = np.random.default_rng(seed)
    frame_heat = rng.normal(-9, 0.1, (b, 2 * h - 1, 2 * w - 1, 1)).astype(np.float32)
    frame_heat[:, peak[1], peak[0]] = strength
    return {"embed": rng.standard_normal((b, h, w, SMALL["embedding"])).astype(np.float32),
            "center_features": np.zeros((b, 2 * h - 1, 2 * w - 1, SMALL["center_embedding"]), np.float32),
            "frame_heat": frame_heat}


def _box(b=1, size=SIZE, top=20, left=24, height=20, width=30):
    labels = np.zeros((b, *size), np.uint8)
    labels[:, top:top + height, left:left + width] = 1
    return labels


@pytest.mark.parametrize("net", NETS)
def test_rows_of_table_1_have_expected_parameters(net):
    params = dict(expected_variables(build("f2net", net=net, **SMALL))["params"])
    fusion = params.pop("fusion", {})
    assert params.keys() | fusion.keys() == ALWAYS | NETS[net]


# Other rows differ only in the fusion, whose gradient is compared with PyTorch.
@pytest.mark.parametrize("net", ["baseline", "ad", "cgad"])
def test_rows_of_table_1_can_be_traced_for_training(net):
    model = build("f2net", net=net, **SMALL)
    variables = expected_variables(model)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), clip())

    def loss(params, batch_stats, clip):
        batch = model.training_batch(clip)
        (outputs, _), updated = model.apply({"params": params, "batch_stats": batch_stats}, batch, True,
                                            mutable=["batch_stats"])
        value, parts = model.loss(outputs, batch, 0)
        assert value.shape == (2,) and value.dtype == jnp.float32
        assert parts.keys() == {"mask", "static"} | ({"heat"} if "center" in NETS[net] else set())
        return value.mean(), updated["batch_stats"]

    gradient, updated = jax.eval_shape(jax.grad(loss, has_aux=True), variables["params"], variables["batch_stats"],
                                       shapes)
    assert jax.tree.structure(gradient) == jax.tree.structure(variables["params"])
    assert jax.tree.structure(updated) == jax.tree.structure(variables["batch_stats"])


def test_initial_state_has_no_center():
    model, _, _ = _stepper(net="cgad")
    state = model.init_state(_features())
    assert state.previous.shape == (1, 17, 21, 1) and not np.asarray(state.previous).any()
    assert state.track.centers.shape == (1, 10, 2) and state.track.count == 0
    bare = build("f2net", net="ad", **SMALL).init_state({"embed": _features()["embed"]})
    assert bare.previous is None and bare.track is None
    assert tuple(model.reference_frames(None)) == tuple(model.reference_frames(50)) == (0,)


def test_prior_is_gaussian_around_peak_with_minimum_sigma():
    model, _, step = _stepper(net="cgad")
    features = _features(peak=(12, 8))
    _, _, aux = step(model.init_state(features), features, _box())
    np.testing.assert_array_equal(aux["center"], [[12, 8]])
    prior = np.asarray(aux["prior"])[0, ..., 0]
    assert prior.shape == (9, 11) and prior[4, 6] == 1
    # 15 pixels at input height 473 would be a sigma of 0.26 at stride 8 and input height 65.
    for (y, x), squared in {(4, 7): 1, (5, 6): 1, (3, 5): 2}.items():
        assert prior[y, x] == pytest.approx(np.exp(-squared / 2), rel=1e-4)
    np.testing.assert_allclose(aux["heat"][0, 8, 12], 1, atol=0.01)
    np.testing.assert_allclose(aux["notes"]["center"], [[48.5 / 81, 32.5 / 65]], rtol=1e-6)
    np.testing.assert_array_equal(aux["notes"]["center_score"], aux["heat"][0, 8, 12])


def test_next_map_has_center_of_peak_and_size_of_mask():
    model, _, step = _stepper(net="cgad")
    features = _features(peak=(12, 8))
    begin = model.init_state(features)
    maps = {name: np.asarray(step(begin, features, labels)[0].previous)[0, ..., 0]
            for name, labels in (("small", _box(height=8, width=8)), ("large", _box(top=0, height=65)),
                                 ("none", np.zeros((1, *SIZE), np.uint8)))}
    assert not maps.pop("none").any()
    for drawn in maps.values():
        assert drawn[8, 12] == 1 and (drawn == 1).sum() == 1
    assert 0 < (maps["small"] > 0).sum() < (maps["large"] > 0).sum()
    state, _, _ = step(begin, features, np.zeros((1, *SIZE), np.uint8))
    assert state.track.count == 1  # the peak is found without a mask


def test_lost_object_has_uniform_prior_and_note():
    model, variables, step = _stepper(net="cgad", min_peak_score=0.1)
    seen, dark = _features(), _features(seed=1, strength=-9.0)
    begin = model.init_state(seen)
    state, _, aux = step(begin, seen, _box())
    assert not aux["notes"]["lost"] and aux["prior"].min() < 1
    # The map of the first frame could keep the object from being lost, so it is cleared.
    faded = state.replace(previous=jnp.zeros_like(state.previous))
    after, logits, aux = step(faded, dark, _box())
    assert aux["notes"]["lost"] and not aux["found"] and aux["score"] < 0.1
    np.testing.assert_array_equal(aux["prior"], np.ones((1, 9, 11, 1)))
    assert not np.asarray(after.previous).any()
    assert after.track.lost == 1 and after.track.count == 1
    # A uniform prior equals the net without a prior.
    plain = build("f2net", net="ad", **SMALL)
    wanted = expected_variables(plain)
    bare = {kind: {name: variables[kind][name] for name in wanted[kind]} for kind in wanted}
    expected, _ = plain.apply(bare, f2net.State(state.anchor), {"embed": dark["embed"]}, method="predict")
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(np.asarray(expected)).max())
    assert set(model.notes) == {"lost"} and "0.1" in model.notes["lost"] and plain.notes == {}


def test_noted_center_of_lost_object_is_inside_frame():
    model, _, step = _stepper(net="cgad", min_peak_score=0.1)
    dark = _features(strength=-9.0)
    centers = np.zeros((1, 10, 2), np.float32)
    centers[0, -3:] = [[6, 9], [12, 5], [18, 1]]  # moves out of the frame at the top right
    state = model.init_state(dark).replace(track=Track(centers, jnp.array([3]), jnp.array([0])))
    state, _, aux = step(state, dark, _box())
    assert aux["notes"]["lost"]
    assert (np.asarray(aux["notes"]["center"]) >= 0).all() and (np.asarray(aux["notes"]["center"]) <= 1).all()
    for _ in range(9):
        state, _, _ = step(state, dark, _box())
    assert state.track.count == 0  # the track is reset


@pytest.mark.parametrize(("fields", "chosen"), [
    ({"net": "cgad"}, (4, 4)), ({"net": "cgad", "selection": "maximum"}, (16, 12)),
    ({"variant": "official"}, (16, 12)), ({"net": "cgad", "candidates": 1}, (16, 12)),
])
def test_selection_chooses_nearest_or_highest_peak(fields, chosen):
    model, _, step = _stepper(min_peak_score=0.1, **fields)
    features = _features(peak=(16, 12))
    features["frame_heat"][0, 4, 4] = 2
    centers = np.zeros((1, 10, 2), np.float32)
    centers[0, -1] = 3, 5
    state = model.init_state(features).replace(track=Track(centers, jnp.array([1]), jnp.array([0])))
    _, _, aux = step(state, features, _box())
    np.testing.assert_array_equal(aux["center"], [chosen])


@pytest.mark.slow
def test_scan_and_batch_equal_single_video_loop():
    model, variables, step = _stepper(min_peak_score=0.1)
    frames = [_features(2, seed=t, peak=(5 + t, 4 + t), strength=-9.0 if t == 3 else 6.0) for t in range(5)]
    for features in frames:  # makes the two videos differ
        features["frame_heat"][1] = np.roll(features["frame_heat"][1], 3, axis=1)
    labels = [_box(2, top=10 + 4 * t, width=10 + 4 * t) for t in range(5)]

    def run(which):
        features = [jax.tree.map(lambda x: x[which], f) for f in frames]
        state, made = model.init_state(features[0]), []
        for now, mask in zip(features, labels, strict=True):
            state, logits, aux = step(state, now, mask[which])
            made.append((logits, aux))
        return state, made

    both, made = run(slice(0, 2))
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in (model.init_state(frames[0]), both)]
    assert shapes[0] == shapes[1]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for i in range(2):
        alone, one = run(slice(i, i + 1))
        jax.tree.map(lambda a, b, i=i: close(a, b[i:i + 1]), alone, both)
        for a, b in zip(one, made, strict=True):
            jax.tree.map(lambda x, y, i=i: close(x, y[i:i + 1]), a, b)

    @quick_jit
    def scanned(features, labels):
        def body(state, xs):
            logits, aux = model.apply(variables, state, xs[0], method="predict")
            return model.commit(state, xs[0], xs[1], aux), (logits, aux)

        return jax.lax.scan(body, model.init_state(jax.tree.map(lambda x: x[0], features)), (features, labels))

    last, answers = scanned(jax.tree.map(lambda *x: np.stack(x), *frames), np.stack(labels))
    jax.tree.map(close, last, both)
    jax.tree.map(lambda x, *y: close(x, np.stack(y)), answers, *made)


@pytest.fixture(scope="module")
def encoded():
    """A model with mirror-symmetric kernels, two frames, and features of the frames and mirrored frames."""
    model, variables, _ = _stepper()
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: (x + x[:, ::-1]) / 2 if path[-1].key == "kernel" else x, variables)
    frames = np.random.default_rng(0).standard_normal((2, *SIZE, 3)).astype(np.float32)
    encode = quick_jit(lambda v, x: model.apply(v, {"frame": x}, method="encode"))
    return model, variables, frames, encode(variables, frames), encode(variables, frames[:, :, ::-1])


def test_mirrored_video_gives_mirrored_predictions(encoded):
    """Sides of 8 k + 1 make strided sampling symmetric, so symmetric kernels suffice."""
    model, variables, _, features, mirrored = encoded
    for name, x in features.items():
        np.testing.assert_allclose(mirrored[name][:, :, ::-1], x, atol=1e-4 * np.abs(np.asarray(x)).max())

    @quick_jit
    def steps(features):
        state, made = model.init_state(jax.tree.map(lambda x: x[:1], features)), []
        for t in range(2):
            now = jax.tree.map(lambda x, t=t: x[t:t + 1], features)
            logits, aux = model.apply(variables, state, now, method="predict")
            state = model.commit(state, now, jnp.ones((1, *SIZE), jnp.uint8), aux)
            made.append((logits, aux["heat"], aux["prior"], state.previous, aux["center"]))
        return made

    for ours, theirs in zip(steps(features), steps(mirrored), strict=True):
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(b[:, :, ::-1], a, atol=1e-4 * max(1, np.abs(np.asarray(a)).max()))
        x, y = np.asarray(ours[4])[0]
        np.testing.assert_array_equal(theirs[4], [[20 - x, y]])


def test_recurrent_step_equals_training_forward(encoded):
    model, variables, frames, features, _ = encoded

    @quick_jit
    def run(frames):
        state = model.init_state(jax.tree.map(lambda x: x[:1], features))
        now = model.apply(variables, {"frame": frames[1:]}, method="encode")
        answer, aux = model.apply(variables, state, now, method="predict")
        outputs, _ = model.apply(variables, {"anchor": frames[:1], "frame": frames[1:], "previous": state.previous,
                                             "center": aux["center"]})
        return now, answer, aux["heat"], outputs

    now, answer, heat, outputs = run(frames)
    for name, x in now.items():
        np.testing.assert_allclose(x[0], features[name][1], atol=1e-4 * np.abs(np.asarray(x)).max())
    np.testing.assert_allclose(answer, outputs["logits"], atol=1e-4 * np.abs(np.asarray(answer)).max())
    np.testing.assert_allclose(heat, jax.nn.sigmoid(outputs["heat_logits"]), atol=1e-4)
