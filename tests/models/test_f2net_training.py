"""F2Net: training batches, losses, gradient steps, frame sizes and output dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.small_f2net import SMALL, clip, small
from uvos_jax.errors import UserError
from uvos_jax.models import build
from uvos_jax.models.f2net.modules import center_prior
from uvos_jax.ops.center_heatmaps import center_map

# Compiling with optimizations would take longer than running the tests.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_training_batch_has_previous_map_only_for_videos():
    batch = build("f2net", **SMALL).training_batch(clip())  # one video and one still image
    assert {name: x.shape[1:] for name, x in batch.items()} == {
        "anchor": (65, 81, 3), "frame": (65, 81, 3), "previous": (17, 21, 1), "heat": (17, 21, 1), "center": (2,),
        "present": (), "mask": (65, 81, 1), "valid": (65, 81, 1), "still": (), "previous_frame": (65, 81, 3),
        "previous_mask": (17, 21)}
    assert np.asarray(batch["previous_mask"]).any((1, 2)).tolist() == [True, False]
    assert "previous_frame" not in build("f2net", **SMALL, prior_from="truth").training_batch(clip())
    previous, heat = np.asarray(batch["previous"])[..., 0], np.asarray(batch["heat"])[..., 0]
    assert not previous[1].any() and np.asarray(batch["still"]).tolist() == [False, True]
    # Box centers (x, y) in pixels: (33, 25) in the previous frame, (39, 28) and (31, 28) in the current one.
    for drawn, middle in ((previous[0], (33, 25)), (heat[0], (39, 28)), (heat[1], (31, 28))):
        y, x = np.unravel_index(drawn.argmax(), drawn.shape)
        assert drawn[y, x] == 1 and np.abs(np.array([4 * x, 4 * y]) - middle).max() <= 4
    np.testing.assert_allclose(4 * batch["center"], [[39, 28], [31, 28]], atol=4)
    assert np.asarray(batch["present"]).all()


def test_previous_map_is_at_predicted_center():
    model, variables = small(min_peak_score=0.0)
    center = variables["params"]["center"]
    center["scale"]["kernel"] *= 0  # gate of 1/2
    center["frame_heat"]["kernel"] *= np.float32(0.02)  # many probabilities would otherwise be 1
    batch = jax.tree.map(jnp.asarray, model.training_batch(clip()))
    heat = quick_jit(lambda batch: model.apply(variables, batch)[0]["heat_logits"])
    # Expected: peak of the previous frame without an earlier map, with the size of its mask.
    alone = {"anchor": batch["anchor"], "frame": batch["previous_frame"], "previous": jnp.zeros_like(batch["previous"]),
             "center": batch["center"]}
    truth = model.clone(prior_from="truth")
    heat_of_given = quick_jit(lambda batch: truth.apply(variables, batch)[0]["heat_logits"])
    found = np.asarray(heat_of_given(alone))[0, ..., 0]
    y, x = np.unravel_index(found.argmax(), found.shape)
    drawn = center_map(batch["previous_mask"], jnp.array([[x, y], [0, 0]], jnp.float32))[0]
    assert drawn[0].max() == 1 and not np.asarray(drawn[1]).any()  # a still image has no previous frame
    made = heat(batch)
    now = {name: batch[name] for name in ("anchor", "frame", "center")}
    wanted, copied = (heat_of_given(now | {"previous": x}) for x in (drawn, batch["previous"]))
    np.testing.assert_allclose(made, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(np.asarray(made - copied)).max() > 0.1  # the ground truth map gives another result


@pytest.mark.parametrize("center", [(8, 8), (9, 8), (9, 9)])
@pytest.mark.parametrize("side", [17, 21, 119])
def test_prior_of_subpixel_center_keeps_its_peak(side, center):
    size = (side + 1) // 2, (side + 3) // 2
    drawn = np.asarray(center_prior(jnp.array([center], jnp.float32), (side, side + 2), size))
    assert drawn.shape == (1, (side + 1) // 2, (side + 3) // 2, 1) and drawn.max() > 0.75
    y, x = np.unravel_index(drawn[0, ..., 0].argmax(), drawn.shape[1:3])
    assert abs(2 * x - center[0]) <= 1 and abs(2 * y - center[1]) <= 1
    # At the size of the paper, 15 input pixels are 1.875 pixels of the map.
    if side == 119 and center == (8, 8):
        np.testing.assert_allclose(drawn[0, 4, 4:8, 0], np.exp(-np.arange(4) ** 2 / (2 * (15 / 8) ** 2)), rtol=1e-5)


def test_objects_form_one_foreground_without_void():
    given = clip()
    given["labels"][0, 2] = 0
    given["labels"][0, 2, :30, 40:] = 255
    given["labels"][1, 2, 60:, 70:] = 2
    del given["still"]
    batch = build("f2net", **SMALL).training_batch(given)
    assert not np.asarray(batch["mask"])[0].any() and (~np.asarray(batch["valid"]))[0].sum() == 30 * 41
    assert not np.asarray(batch["heat"])[0].any() and np.asarray(batch["present"]).tolist() == [False, True]
    assert not np.asarray(batch["still"]).any()
    # One box around both objects, from 16 to the end of each side.
    np.testing.assert_allclose(4 * batch["center"][1], [48, 40], atol=4)


def _batch(still, present=True):
    mask = np.zeros((1, 17, 17, 1), bool)
    mask[:, :, :4] = True
    heat = np.zeros((1, 5, 5, 1), np.float32)
    if present:
        heat[0, 2, 2] = 1
    return {"mask": mask, "valid": np.ones_like(mask), "still": np.array([still]), "heat": heat}


OUTPUTS = {"logits": np.full((1, 3, 3, 1), 2.0), "static_logits": np.full((1, 3, 3, 1), -1.0),
           "heat_logits": np.zeros((1, 5, 5, 1))}
CROSS = {"logits": 4 / 17 * np.log1p(np.exp(-2)) + 13 / 17 * (2 + np.log1p(np.exp(-2))),
         "static_logits": 4 / 17 * (1 + np.log1p(np.exp(-1))) + 13 / 17 * np.log1p(np.exp(-1))}


@pytest.mark.parametrize("still", [False, True])
def test_losses_equal_hand_computed_values(still):
    total, parts = build("f2net", **SMALL).loss(OUTPUTS, _batch(still), 0)
    # All 25 pixels have p = 1/2 and cost log(2) / 4; one of them is the only center.
    heat = 25 / 4 * np.log(2)
    mask = 0.1 * CROSS["static_logits"] if still else CROSS["logits"]
    np.testing.assert_allclose(parts["heat"], [heat], rtol=1e-5)
    np.testing.assert_allclose(total, [mask + heat], rtol=1e-5)
    assert parts["mask" if still else "static"] == 0


def test_official_mask_loss_is_weighted_bce_plus_l1():
    _, parts = build("f2net", variant="official", **SMALL).loss(OUTPUTS, _batch(False), 0)
    high = 1 / (1 + np.exp(-2))
    expected = CROSS["logits"] * 17 / 4 + 0.8 * (4 / 17 * (1 - high) + 13 / 17 * high)
    np.testing.assert_allclose(parts["mask"], [expected], rtol=1e-5)


def test_void_pixels_do_not_affect_mask_loss():
    model, rng = build("f2net", **SMALL), np.random.default_rng(0)
    batch = _batch(False)
    batch["valid"][:, :8] = False
    logits = rng.standard_normal((1, 17, 17, 1)).astype(np.float32)
    before = model.loss(OUTPUTS | {"logits": logits}, batch, 0)[0]
    logits[:, :8] += 3
    np.testing.assert_array_equal(model.loss(OUTPUTS | {"logits": logits}, batch, 0)[0], before)
    logits[:, 8] += 3
    assert model.loss(OUTPUTS | {"logits": logits}, batch, 0)[0] != before


@pytest.mark.slow
def test_gradient_steps_lower_loss_and_reach_expected_modules():
    model, variables = small()
    given = clip(3)

    @quick_jit
    def step(params, still, weights):
        def loss(params):
            batch = model.training_batch(given | {"still": still})
            (outputs, _), _ = model.apply(variables | {"params": params}, batch, True, mutable=["batch_stats"])
            parts = model.loss(outputs, batch, 0)[1]
            return sum(weights[name] * parts[name].mean() for name in parts)

        value, gradient = jax.value_and_grad(loss)(params)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
        return value, gradient, jax.tree.map(lambda p, g: p - 0.03 / norm * g, params, gradient)

    every = {"mask": 1.0, "static": 1.0, "heat": 1.0}
    for still in (np.ones(3, bool), np.zeros(3, bool)):
        before, gradient, params = step(variables["params"], still, every)
        after, _, _ = step(params, still, every)
        assert after < before
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))

    def reached(still, part):
        weights = {name: float(name == part) for name in every}
        gradient = step(variables["params"], np.full(3, still), weights)[1]
        return {name for name, tree in gradient.items() if any(np.asarray(x).any() for x in jax.tree.leaves(tree))}

    embedding = {"backbone", "aspp", "embed", "embed_prelu"}
    # The prior around a predicted center has no gradient, so the center branch is not reached.
    assert reached(False, "mask") == embedding | {"fusion", "classifier_hidden", "classifier"}
    assert reached(True, "mask") == reached(False, "static") == set()
    assert reached(True, "static") == embedding | {"static"}
    assert reached(False, "heat") == {"backbone", "center"}


@pytest.mark.slow
def test_prior_from_truth_uses_ground_truth_center():
    inputs = build("f2net", **SMALL).training_batch(clip())
    logits = {}
    for source in ("predicted", "truth"):
        model, variables = small(net="cgad", prior_from=source)
        forward = quick_jit(lambda v, x, model=model: model.apply(v, x)[0]["logits"])
        for moved in (False, True):
            shift = jnp.array([4.0, 2.0]) if moved else 0.0
            logits[source, moved] = forward(variables, inputs | {"center": inputs["center"] + shift})
    np.testing.assert_array_equal(logits["predicted", False], logits["predicted", True])
    assert np.abs(np.asarray(logits["truth", False] - logits["truth", True])).max() > 0


@pytest.mark.parametrize(("native", "scale", "paper", "official"), [
    ((480, 854), 1.0, (473, 841), (473, 473)),
    ((854, 480), 1.0, (841, 473), (473, 473)),
    ((101, 101), 0.5, (233, 233), (233, 233)),
    ((3, 5), 1.0, (473, 785), (473, 473)),
])
def test_frame_sizes(native, scale, paper, official):
    assert build("f2net").frame_size(native, scale) == paper
    assert build("f2net", variant="official").frame_size(native, scale) == official


@pytest.mark.parametrize("size", [(9, 9), (9, 33), (97, 41), (50, 70), (5, 5)])
def test_any_size_can_be_traced(size):
    """Covers sizes that ``frame_size`` returns and others."""
    model = build("f2net", **SMALL)
    variables = jax.eval_shape(lambda: small()[1])
    low, high = (tuple((n - 1) // stride + 1 for n in size) for stride in (8, 4))

    def run(variables, frame):
        features = model.apply(variables, {"frame": frame}, method="encode")
        state = model.init_state(features)
        logits, aux = model.apply(variables, state, features, method="predict")
        after = model.commit(state, features, jnp.ones((1, 7, 5), jnp.uint8), aux)
        return state, after, logits, aux, model.to_native(logits, (7, 5))

    frame = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    state, after, logits, aux, native = jax.eval_shape(run, variables, frame)
    assert state == after
    assert logits.shape == aux["prior"].shape == (1, *low, 1) and aux["heat"].shape == (1, *high, 1)
    assert native.shape == (1, 7, 5, 1) and native.dtype == jnp.float32


def test_native_probabilities_equal_bilinear_interpolation():
    logits = jnp.array([-3.0, 0.2, 0.6, 4.0]).reshape(1, 2, 2, 1)
    paper = np.asarray(build("f2net").to_native(logits, (5, 7)))[0, ..., 0]
    np.testing.assert_allclose(paper[[0, 0, -1, -1], [0, -1, 0, -1]], 1 / (1 + np.exp([3, -0.2, -0.6, -4])), rtol=1e-5)
    np.testing.assert_allclose(paper[0], 1 / (1 + np.exp(-np.linspace(-3, 0.2, 7))), rtol=1e-5)
    # The published code interpolates to 473 pixels first; the corners keep their nearest logit.
    official = np.asarray(build("f2net", variant="official").to_native(logits, (9, 9)))[0, ..., 0]
    np.testing.assert_allclose(official[[0, 0, -1, -1], [0, -1, 0, -1]], paper[[0, 0, -1, -1], [0, -1, 0, -1]],
                               rtol=1e-5)
    np.testing.assert_allclose(official[0, 4], 1 / (1 + np.exp(1.4)), rtol=1e-5)
    assert paper.dtype == np.float32 and build("f2net").threshold == 0.5


@pytest.mark.slow
def test_bfloat16_is_close_to_float32_and_keeps_float32_heat():
    batch = build("f2net", **SMALL).training_batch(clip())
    made = {}
    for dtype in ("float32", "bfloat16"):
        model, variables = small(dtype=dtype, prior_from="truth")
        made[dtype] = quick_jit(model.apply)(variables, batch)[0]
    assert made["bfloat16"]["logits"].dtype == jnp.bfloat16 and made["bfloat16"]["heat_logits"].dtype == jnp.float32
    for name, exact in made["float32"].items():
        error = np.abs(np.asarray(made["bfloat16"][name], np.float32) - exact)
        assert error.mean() < 0.05 * np.abs(np.asarray(exact)).max(), name


def test_build_error_names_invalid_choice():
    for field, wrong in (("net", "cgda"), ("selection", "motoin"), ("prior_from", "true")):
        with pytest.raises(UserError, match=wrong):
            build("f2net", **{field: wrong})
