"""Center heatmaps and tracks against the published code, brute force and hand-made tracks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops import center_heatmaps as ops
from uvos_jax.ops.center_heatmaps import Track, gaussian_radius, new_track
from uvos_jax.ops.resize import resize_bilinear

# Compiled, as in the package.
gaussian_map = jax.jit(ops.gaussian_map, static_argnums=2)
gaussian_prior = jax.jit(ops.gaussian_prior, static_argnums=1)
foreground_box, center_map = jax.jit(ops.foreground_box), jax.jit(ops.center_map)
find_peaks = jax.jit(ops.find_peaks, static_argnums=(1, 2))
expected_center, extend_track = jax.jit(ops.expected_center), jax.jit(ops.extend_track)
choose_center = jax.jit(ops.choose_center, static_argnums=4)


def _mask(*boxes, size=(20, 24)):
    """One mask per box (left, top, right, bottom), right and bottom exclusive; None gives an empty mask."""
    masks = np.zeros((len(boxes), *size), bool)
    for mask, box in zip(masks, boxes, strict=True):
        if box is not None:
            mask[box[1]:box[3], box[0]:box[2]] = True
    return masks


def _known(*centers, n=4, lost=0):
    """Track of one object with the given last centers."""
    track = new_track(1, n)
    for center in centers:
        track = extend_track(track, jnp.array([center], jnp.float32), jnp.array([True]))
    return track.replace(lost=jnp.array([lost], jnp.int32))


# Radius and maps


def test_radius_equals_published_code(golden):
    with np.load(golden / "f2net_units.npz") as file:
        height, width = file["sizes_hw"].T
        np.testing.assert_allclose(gaussian_radius(height, width), file["radius"], rtol=1e-6)


@pytest.mark.parametrize("overlap", [0.3, 0.7, 0.95])
@pytest.mark.parametrize(("height", "width"), [(10, 20), (50, 50), (3, 400), (1, 1)])
def test_radius_equals_margin_found_by_bisection(height, width, overlap):
    # Bisection for the margin at which the box and the enlarged box have this IoU.
    low, high = 0.0, float(height + width)
    for _ in range(60):
        margin = (low + high) / 2
        grown = (height + 2 * margin) * (width + 2 * margin)
        low, high = (margin, high) if height * width / grown > overlap else (low, margin)
    np.testing.assert_allclose(gaussian_radius(height, width, overlap), 4 * overlap * low, rtol=1e-5)


def test_radius_of_empty_box_is_zero():
    assert gaussian_radius(np.zeros(2, np.int32), np.array([0, 3])).tolist() == [0, 0]


def test_maps_equal_published_code(golden):
    with np.load(golden / "f2net_units.npz") as file:
        maps = gaussian_map(jnp.array([[5.0, 60.0], [60.0, 40.0]]), jnp.array([19 / 6, 27 / 6]), (119, 119),
                            jnp.array([9, 13]))
        np.testing.assert_allclose(maps[0, ..., 0], file["hm_center_5_60_r9"], atol=1e-6)
        np.testing.assert_allclose(maps[1, ..., 0], file["hm_center_60_40"], atol=1e-6)
        # The same map from a mask: a 50 x 50 pixel box around that center, published radius 13.67.
        heat, center, present = center_map(_mask((35, 15, 85, 65), size=(119, 119)))
        np.testing.assert_allclose(heat[0, ..., 0], file["hm_center_60_40"], atol=1e-6)
        assert center.tolist() == [[60, 40]] and present.tolist() == [True]


def test_prior_equals_published_code(golden):
    with np.load(golden / "f2net_units.npz") as file:
        prior = resize_bilinear(gaussian_prior(jnp.array([[200.0, 310.0]]), (473, 473), 15.0), (60, 60),
                                align_corners=False)
        np.testing.assert_allclose(prior[0, ..., 0], file["center_gauss_60"][0, 0], atol=1e-5)


def test_map_is_gaussian_around_any_point():
    centers, sigmas = np.array([[2.5, 3.25], [-4.0, 30.0]], np.float32), np.array([2.0, 11.0], np.float32)
    y, x = np.mgrid[:9, :7].astype(np.float64)
    maps = np.asarray(gaussian_map(jnp.asarray(centers), jnp.asarray(sigmas), (9, 7)))
    assert maps.shape == (2, 9, 7, 1) and maps.dtype == np.float32
    for i, ((cx, cy), sigma) in enumerate(zip(centers, sigmas, strict=True)):
        expected = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
        np.testing.assert_allclose(maps[i, ..., 0], expected, atol=1e-6)


def test_radius_limits_gaussian_to_square():
    whole = np.asarray(gaussian_map(jnp.array([[6.0, 1.0]]), 3.0, (9, 8)))
    cut = np.asarray(gaussian_map(jnp.array([[6.0, 1.0]]), 3.0, (9, 8), radius=2))
    inside = np.zeros_like(whole, bool)
    inside[0, :4, 4:] = True
    np.testing.assert_array_equal(cut, np.where(inside, whole, 0))
    assert (cut[inside] > 0).all()


def test_foreground_box_is_tight():
    rng = np.random.default_rng(0)
    masks = rng.random((40, 6, 9)) > np.linspace(0.5, 1, 40)[:, None, None]
    boxes, present = (np.asarray(x) for x in foreground_box(jnp.asarray(masks)))
    for mask, box, is_there in zip(masks, boxes, present, strict=True):
        y, x = np.nonzero(mask)
        assert is_there == (len(x) > 0)
        assert box.tolist() == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])
    assert 0 < present.sum() < 40 and boxes.dtype == np.int32


def test_radius_matches_definition_for_all_box_sizes():
    """Compares half the side of the nonzero square, for boxes up to half the map and a few larger ones."""
    sizes = [(h, w) for h in range(1, 60, 3) for w in range(1, 60, 4)] + [(15, 70), (42, 65), (65, 42)]
    masks = _mask(*((75 - w // 2, 75 - h // 2, 75 - w // 2 + w, 75 - h // 2 + h) for h, w in sizes), size=(151, 151))
    heat, _, _ = center_map(masks)
    half = (np.asarray(heat[..., 0]) > 0).any(1).sum(1) // 2
    # r * r + 1.4 (h + w) r = 0.84 h w in integers: the largest r whose left side does not exceed the right.
    expected = [max(r for r in range(60) if 25 * r * r + 35 * (h + w) * r <= 21 * h * w) for h, w in sizes]
    assert half.tolist() == expected


def test_empty_mask_gives_empty_map():
    heat, _, present = center_map(_mask(None, (3, 4, 10, 9)))
    assert present.tolist() == [False, True]
    assert not np.asarray(heat[0]).any() and heat[1].max() == 1
    assert not np.asarray(center_map(_mask(None), jnp.array([[5.0, 5.0]]))[0]).any()


def test_map_is_translation_equivariant():
    here, there = (center_map(_mask(box, size=(40, 40)))[0] for box in ((8, 10, 19, 16), (13, 12, 24, 18)))
    assert here.max() == 1
    np.testing.assert_array_equal(np.roll(here, (2, 5), (1, 2)), there)


def test_examples_of_batch_are_independent():
    masks = _mask((0, 0, 5, 5), (3, 3, 20, 18), None, (7, 2, 9, 19))
    order = np.array([2, 0, 3, 1])
    for one, other in zip(center_map(masks), center_map(masks[order]), strict=True):
        np.testing.assert_array_equal(np.asarray(one)[order], other)


def test_given_center_shifts_gaussian_without_resizing():
    mask = _mask((8, 8, 17, 13))
    free, middle, _ = center_map(mask)
    moved, center, _ = center_map(mask, middle + jnp.array([[-3.4, 2.6]]))
    assert middle.tolist() == [[12, 10]] and center.tolist() == [[9, 13]]
    np.testing.assert_array_equal(np.roll(free, (3, -3), (1, 2)), moved)


# Peaks


def _peaks_by_hand(heat, count):
    """Local maxima of a 3x3 window, found by checking every pixel."""
    h, w = heat.shape
    found = [(-heat[y, x], y, x) for y in range(h) for x in range(w)
             if heat[y, x] > 0 and heat[y, x] == heat[max(y - 1, 0):y + 2, max(x - 1, 0):x + 2].max()]
    return sorted(found)[:count]


def test_peaks_equal_published_decoder(golden):
    with np.load(golden / "f2net_units.npz") as file:
        scores, centers = find_peaks(file["decode_heat"].transpose(0, 2, 3, 1), 5)
        np.testing.assert_allclose(scores, file["decode_score"][..., 0], rtol=1e-6)
        np.testing.assert_array_equal(centers[..., 0], file["decode_x"])
        np.testing.assert_array_equal(centers[..., 1], file["decode_y"])


@pytest.mark.parametrize("levels", [3, 40, 10**6])  # few levels give plateaus, also at borders
def test_peaks_equal_brute_force(levels):
    heat = np.random.default_rng(levels).integers(0, levels, (6, 7, 5)).astype(np.float32) / levels
    scores, centers = (np.asarray(x) for x in find_peaks(heat[..., None], 4))
    assert scores.shape == (6, 4) and centers.shape == (6, 4, 2)
    for i in range(6):
        expected = _peaks_by_hand(heat[i], 4)
        assert len(expected) > 1
        for k, (minus, y, x) in enumerate(expected):
            assert (scores[i, k], *centers[i, k]) == (-minus, x, y)
        assert not scores[i, len(expected):].any()


def test_missing_peaks_have_score_zero():
    scores, centers = find_peaks(gaussian_map(jnp.array([[4.0, 0.0]]), 3.0, (6, 9)), 5)
    assert scores[0].tolist() == [1, 0, 0, 0, 0] and centers[0, 0].tolist() == [4, 0]


def test_wider_window_suppresses_more_peaks():
    heat = np.zeros((1, 1, 9, 1), np.float32)
    heat[0, 0, [1, 3, 7], 0] = 0.9, 0.8, 0.7
    assert find_peaks(heat, 3)[1][0, :, 0].tolist() == [1, 3, 7]
    scores, centers = find_peaks(heat, 3, 5)
    assert centers[0, :2, 0].tolist() == [1, 7] and scores[0, 2] == 0


def test_peaks_survive_fusion_with_sigmoid():
    """A heatmap that the compiler fuses with a sigmoid must still equal its pooled maximum bit for bit."""
    logits = np.random.default_rng(0).standard_normal((2, 33, 31, 1)).astype(np.float32)
    _, centers = jax.jit(lambda x: find_peaks(jax.nn.sigmoid(x) * jax.nn.sigmoid(x + 0.3), 8))(logits)
    np.testing.assert_array_equal(centers, find_peaks(np.exp(logits) / 100, 8)[1])  # any monotonic function of logits


# Tracks


def test_single_center_predicts_no_motion():
    assert expected_center(_known((3, 4))).tolist() == [[3, 4]]


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_expected_center_extrapolates_with_damping_while_lost(lost):
    # Steps (2, 0), (4, 3), (0, -9) with mean (2, -2).
    track = _known((1, 10), (3, 10), (7, 13), (7, 4), n=6, lost=lost)
    np.testing.assert_allclose(expected_center(track), [[7 + 2 * 0.9**lost, 4 - 2 * 0.9**lost]], rtol=1e-6)


def test_track_keeps_last_n_centers():
    track = _known(*((i * i, 0) for i in range(9)), n=3)
    assert track.count.tolist() == [3] and track.centers[0, :, 0].tolist() == [36, 49, 64]
    assert expected_center(track).tolist() == [[64 + 14, 0]]


def test_lost_track_is_reset_after_n_frames():
    track, away = _known((5, 5), (6, 5), n=3), jnp.full((1, 2), 99.0)
    for lost in (1, 2):
        track = extend_track(track, away, jnp.array([False]))
        assert (track.count.tolist(), track.lost.tolist()) == ([2], [lost])
    np.testing.assert_allclose(expected_center(track), [[6.81, 5]], rtol=1e-6)
    again = extend_track(track, jnp.array([[9.0, 5.0]]), jnp.array([True]))
    assert (again.count.tolist(), again.lost.tolist()) == ([3], [0])
    assert expected_center(again).tolist() == [[11, 5]]  # steps of 1 and 3

    gone = extend_track(track, away, jnp.array([False]))
    assert (gone.count.tolist(), gone.lost.tolist()) == ([0], [3])
    back = extend_track(gone, jnp.array([[1.0, 2.0]]), jnp.array([True]))
    assert back.count.tolist() == [1] and expected_center(back).tolist() == [[1, 2]]  # no motion from before the reset


def test_first_frame_selects_highest_peak():
    scores, centers = jnp.array([[0.8, 0.7]]), jnp.array([[[20.0, 3.0], [0.0, 0.0]]])
    for rule in ("motion", "maximum"):
        center, score, found = choose_center(new_track(1, 4), scores, centers, 0.1, rule)
        assert (center.tolist(), found.tolist()) == ([[20, 3]], [True])
        np.testing.assert_allclose(score, [0.8])


def test_motion_rule_selects_nearest_peak_above_threshold():
    track = _known((0, 0), (2, 0))  # predicts (4, 0)
    scores, centers = jnp.array([[0.9, 0.5, 0.2, 0.05]]), jnp.array([[[30.0, 9.0], [7.0, 4.0], [4.0, 4.0], [4.0, 0.0]]])
    def chosen(threshold, rule):
        center, score, found = choose_center(track, scores, centers, threshold, rule)
        return center.tolist(), round(float(score[0]), 4), found.tolist()
    assert chosen(0.1, "motion") == ([[4, 4]], 0.2, [True])
    assert chosen(0.3, "motion") == ([[7, 4]], 0.5, [True])
    assert chosen(0.01, "motion") == ([[4, 0]], 0.05, [True])
    assert chosen(0.1, "maximum") == ([[30, 9]], 0.9, [True])


@pytest.mark.parametrize("rule", ["motion", "maximum"])
def test_no_peak_keeps_predicted_center(rule):
    scores, centers = jnp.array([[0.05, 0.01]]), jnp.array([[[20.0, 3.0], [5.0, 0.0]]])
    center, score, found = choose_center(_known((0, 0), (2, 0)), scores, centers, 0.1, rule)
    assert (center.tolist(), found.tolist()) == ([[4, 0]], [False])
    np.testing.assert_allclose(score, [0.05])
    center, _, found = choose_center(new_track(1, 4), scores, centers, 0.1, rule)
    assert (center.tolist(), found.tolist()) == ([[20, 3]], [False])  # empty track: the highest peak


def test_unknown_rule_raises():
    with pytest.raises(ValueError, match="Unknown rule 'best'.*maximum"):
        choose_center(new_track(1, 2), jnp.ones((1, 1)), jnp.ones((1, 1, 2)), 0.1, "best")


def _crossing(frames=24):
    """Two peaks that pass each other; the distractor is stronger than the object from frame 10 on."""
    t = np.arange(frames)
    ours = np.stack([3 + 2.0 * t, 10 + 0.0 * t], -1)
    other = np.stack([50 - 2.0 * t, 16 + 0.0 * t], -1)
    ours_seen, other_seen = (np.asarray(gaussian_map(x, 1.5, (24, 56))) for x in (ours, other))
    return ours, np.maximum(0.7 * ours_seen, np.where(t < 10, 0.5, 0.95)[:, None, None, None] * other_seen)


def _follow(heat, rule):
    """Centers selected in a video, as one jitted scan."""
    def step(track, heat):
        scores, centers = find_peaks(heat[None], 5)
        center, _, found = choose_center(track, scores, centers, 0.1, rule)
        return extend_track(track, center, found), (center[0], found[0])
    return jax.jit(lambda heat: jax.lax.scan(step, new_track(1, 10), heat))(heat.astype(np.float32))


def test_motion_rule_tracks_object_past_stronger_distractor():
    ours, heat = _crossing()
    _, (centers, found) = _follow(heat, "motion")
    np.testing.assert_array_equal(centers, ours)
    assert found.all()
    _, (centers, _) = _follow(heat, "maximum")
    error = np.linalg.norm(np.asarray(centers) - ours, axis=-1)
    assert not error[:10].any() and (error[10:] > 5).all()


def test_motion_rule_bridges_occlusion():
    ours, heat = _crossing()
    heat[4:7] *= 0.01
    track, (centers, found) = _follow(heat, "motion")
    assert np.flatnonzero(~np.asarray(found)).tolist() == [4, 5, 6]
    np.testing.assert_array_equal(np.asarray(centers)[7:], ours[7:])
    assert (track.count.tolist(), track.lost.tolist()) == ([10], [0])


def test_scan_and_batch_equal_single_object_loop():
    heat = np.random.default_rng(0).random((12, 3, 8, 9, 1)).astype(np.float32)
    heat[4:7, 1] *= 0.05  # the second of three is lost for longer than its track is kept

    @jax.jit
    def step(track, heat):
        scores, centers = find_peaks(heat, 3)
        center, score, found = choose_center(track, scores, centers, 0.1, "motion")
        return extend_track(track, center, found), (center, score, found)

    track, (centers, scores, found) = jax.jit(lambda x: jax.lax.scan(step, new_track(3, 3), x))(heat)
    one_by_one = jax.vmap(lambda x: jax.lax.scan(step, new_track(1, 3), x[:, None]), in_axes=1)(heat)
    for i in range(3):
        alone = new_track(1, 3)
        for t in range(12):
            alone, (center, score, was_found) = step(alone, heat[t, i:i + 1])
            np.testing.assert_allclose(center[0], centers[t, i], rtol=1e-6)
            assert (score[0], was_found[0]) == (scores[t, i], found[t, i])
        for leaf, whole in zip(jax.tree.leaves(alone), jax.tree.leaves(track), strict=True):
            np.testing.assert_array_equal(leaf[0], whole[i])
    assert np.asarray(found).all(0).tolist() == [True, False, True]
    np.testing.assert_allclose(one_by_one[1][0][:, :, 0].swapaxes(0, 1), centers, rtol=1e-6)


def test_extending_track_preserves_shapes_and_dtypes():
    track = new_track(2, 5)
    after = extend_track(track, jnp.ones((2, 2), jnp.bfloat16), jnp.array([True, False]))
    assert isinstance(after, Track)
    for before, now in zip(jax.tree.leaves(track), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype) == (now.shape, now.dtype)
