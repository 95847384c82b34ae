"""Instance grouping against Panoptic-DeepLab, brute force in NumPy and synthetic frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops import instance_grouping as grouping

# Compiled, as in the package.
center_targets = jax.jit(grouping.center_targets, static_argnums=(1, 2))
detect_centers = jax.jit(grouping.detect_centers, static_argnums=(1, 2, 3))
assign_to_centers = jax.jit(grouping.assign_to_centers)
select_proposals = jax.jit(grouping.select_proposals, static_argnums=(3, 4))
group_instances = jax.jit(grouping.group_instances, static_argnums=3,
                          static_argnames=("threshold", "window", "max_instances", "min_area"))


@pytest.fixture
def published(golden):
    with np.load(golden / "panoptic_grouping.npz") as file:
        return {name: file[name] for name in file.files}


def _places(yx, found):
    """Positions of the detected centers in row-major order."""
    return sorted(map(tuple, np.asarray(yx[0])[np.asarray(found[0])].astype(int).tolist()))


# Targets


def test_targets_equal_published_code(published):
    heat, offsets, foreground = center_targets(published["panoptic"][None].astype(np.int32), 6, 10.0)
    np.testing.assert_allclose(heat, published["center_target_sigma10"], atol=1e-6)
    np.testing.assert_allclose(offsets[0], np.moveaxis(published["offset_target_yx"], 0, -1), atol=1e-5)
    np.testing.assert_array_equal(foreground[0], published["panoptic"] > 0)


def test_offsets_point_to_object_mean_and_void_has_no_target():
    labels = np.zeros((2, 9, 12), np.int32)
    labels[0, 1:3, 2:6] = 2
    labels[0, 6:, :] = -1
    labels[0, 2, 5] = 1
    heat, offsets, foreground = center_targets(labels, 3, 2.0)
    assert not np.asarray(heat)[1].any() and not np.asarray(offsets)[1].any() and not np.asarray(foreground)[1].any()
    for number in (1, 2):
        y, x = np.nonzero(labels[0] == number)
        ends = np.asarray(offsets)[0, y, x] + np.stack([y, x], -1)
        np.testing.assert_allclose(ends, np.broadcast_to([y.mean(), x.mean()], ends.shape), atol=1e-5)
        assert heat[0, int(y.mean()), int(x.mean())] == 1
    assert not np.asarray(offsets)[0][labels[0] <= 0].any()
    np.testing.assert_array_equal(foreground[0], labels[0] > 0)
    # Gaussian of the single-pixel object, 3 pixels right of the other center, truncated at 7 pixels.
    np.testing.assert_allclose(heat[0, 2, 6:], [*np.exp(-np.arange(1, 7) ** 2 / 8)], rtol=1e-5)


def test_targets_are_invariant_to_object_ids():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 5, (1, 4, 5)), np.ones((1, 6, 6), int)).astype(np.int32)
    renumbered = np.array([0, 3, 1, 4, 2])[labels].astype(np.int32)
    for one, other in zip(center_targets(labels, 4, 3.0), center_targets(renumbered, 4, 3.0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_centers_of_large_objects_are_exact():
    # A mask symmetric in both axes has its mean in the middle; float32 sums would be one pixel off.
    mask = np.random.default_rng(5).random((1, 801, 801)) < 0.5
    mask |= mask[:, ::-1]
    mask |= mask[:, :, ::-1]
    heat = np.asarray(center_targets(mask.astype(np.int32), 1, 2.0)[0])
    assert np.unravel_index(heat.argmax(), heat.shape) == (0, 400, 400)


# Centers


@pytest.mark.parametrize(("most", "name"), [(200, "centers_thr0p1_nms7"), (3, "centers_top3")])
def test_centers_equal_published_code(published, most, name):
    yx, score, found = detect_centers(published["heatmap"][0], 0.1, 7, most)
    assert _places(yx, found) == sorted(map(tuple, published[name].tolist()))
    count = found.sum()
    y, x = np.asarray(yx[0, :count], int).T
    np.testing.assert_array_equal(score[0, :count], published["heatmap"][0, 0][y, x])
    assert (np.diff(score[0]) <= 0).all() and not np.asarray(score[0, count:]).any()


@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("most", [4, 40])
def test_centers_equal_brute_force(window, most):
    # Few distinct values give plateaus and ties at the end of the list.
    heat = np.random.default_rng(window).integers(-3, 12, (3, 7, 9)).astype(np.float32) / 10
    yx, score, found = detect_centers(heat, 0.3, window, most)
    for i, frame in enumerate(heat):
        r, highest = window // 2, []
        for y, x in np.ndindex(frame.shape):
            around = frame[max(0, y - r):y + r + 1, max(0, x - r):x + r + 1]
            if frame[y, x] > np.float32(0.3) and frame[y, x] == around.max():
                highest.append((-frame[y, x], y, x))
        highest = sorted(highest)
        if len(highest) >= most:
            highest = [row for row in highest if row[0] < highest[most - 1][0]]
        wanted = [(y, x) for _, y, x in highest]
        assert [tuple(place) for place in np.asarray(yx[i])[np.asarray(found[i])]] == wanted
        np.testing.assert_array_equal(score[i], [-row[0] for row in highest] + [0] * (most - len(highest)))


def test_more_center_slots_than_pixels():
    yx, score, found = detect_centers(np.array([[[0.2, 0.9, 0.1]]], np.float32), 0.1, 7, 5)
    assert yx.shape == (1, 5, 2) and found.tolist() == [[True] + [False] * 4]
    assert yx[0, 0].tolist() == [0, 1] and score[0, 0] == np.float32(0.9)


# Pixels


def test_instances_equal_published_code(published):
    yx, _, found = detect_centers(published["heatmap"][0], 0.1, 7, 200)
    offsets, foreground = np.moveaxis(published["offsets"], 1, -1), published["panoptic"][None] > 0
    labels = np.asarray(assign_to_centers(offsets, yx, found, foreground))
    # The published code numbers centers from the top, ours by score.
    order = np.asarray(yx[0, :5, 0] * 80 + yx[0, :5, 1]).argsort()
    theirs = np.concatenate([[0], order.argsort() + 1])
    np.testing.assert_array_equal(theirs[labels], published["instance"])


def test_pixels_join_center_nearest_to_offset_and_ties_the_first():
    yx = np.array([[[0, 0], [0, 4], [3, 2], [9, 9]]], np.float32)
    found = np.array([[True, True, True, False]])
    offsets = np.zeros((1, 4, 5, 2), np.float32)
    offsets[0, 0, 0] = 3, 2  # from the first center to the third
    offsets[0, 3, 4] = 9, 9  # far away, at a center that was not found
    foreground = np.ones((1, 4, 5), bool)
    foreground[0, 1, 1] = False
    labels = np.asarray(assign_to_centers(offsets, yx, found, foreground))[0]
    assert labels[0].tolist() == [3, 1, 1, 2, 2]  # the middle pixel is equidistant from both
    assert labels[3].tolist() == [3, 3, 3, 3, 3] and labels[1, 1] == 0


def test_assignment_equals_brute_force_for_any_center_order():
    rng = np.random.default_rng(3)
    yx = rng.uniform(0, 12, (2, 7, 2)).astype(np.float32)
    found = rng.random((2, 7)) < 0.6
    found[1] = False
    found[1, 5] = True
    offsets = rng.normal(0, 4, (2, 11, 13, 2)).astype(np.float32)
    foreground = rng.random((2, 11, 13)) < 0.8
    labels = np.asarray(assign_to_centers(offsets, yx, found, foreground))
    ends = offsets + np.stack(np.mgrid[:11, :13], -1)
    distance = np.linalg.norm(ends[:, :, :, None] - yx[:, None, None], axis=-1)
    distance[~np.broadcast_to(found[:, None, None], distance.shape)] = np.inf
    np.testing.assert_array_equal(labels, np.where(foreground, distance.argmin(-1) + 1, 0))
    order = rng.permutation(7)
    mixed = np.asarray(assign_to_centers(offsets, yx[:, order], found[:, order], foreground))
    np.testing.assert_array_equal(np.concatenate([[0], order + 1])[mixed], labels)


def test_no_center_gives_no_object():
    labels, score, dropped = group_instances(np.full((1, 8, 8), 0.05, np.float32), np.zeros((1, 8, 8, 2), np.float32),
                                   np.ones((1, 8, 8), np.float32), 3)
    assert not np.asarray(labels).any() and not np.asarray(score).any() and dropped.tolist() == [0]
    assert labels.dtype == np.uint8 and score.shape == (1, 3) and dropped.dtype == np.int32


# Proposals


def test_proposals_are_highest_scoring_instances():
    labels = np.zeros((1, 4, 10), np.int32)
    for number, columns in ((1, [0]), (2, [2, 3]), (3, [5, 6]), (5, [8])):
        labels[0, :, columns] = number
    labels[0, 0, 9] = 4  # one pixel of 40
    saliency = np.where(labels == 2, 0.6, 0.9).astype(np.float32)
    saliency[0, 0, 5] = 0.1  # the mean of the third is 0.8
    score = np.array([[0.5, 1.0, 0.8, 2.0, 0.5, 3.0]], np.float32)  # the sixth has no pixel and is ignored
    numbers, scores, dropped = select_proposals(labels, score, saliency, 3, 0.05)
    np.testing.assert_allclose(scores, [[0.64, 0.6, 0.45]], rtol=1e-5)
    np.testing.assert_array_equal(numbers, np.array([0, 3, 2, 1, 0, 0])[labels])
    assert dropped.tolist() == [1]  # 1 and 5 score the same, and 1 comes first
    numbers, scores, dropped = select_proposals(labels, score, saliency, 8, 0.0)
    np.testing.assert_allclose(scores, [[1.8, 0.64, 0.6, 0.45, 0.45, 0, 0, 0]], rtol=1e-5)
    np.testing.assert_array_equal(numbers, np.array([0, 4, 3, 2, 1, 5])[labels])
    assert dropped.tolist() == [0]


def test_300_objects_in_20_slots():
    # 4x4 squares with one center each, all of different strength, spaced so that none suppresses another.
    heat, offsets = np.zeros((1, 120, 160), np.float32), np.zeros((1, 120, 160, 2), np.float32)
    saliency = np.zeros((1, 120, 160), np.float32)
    strength = np.random.default_rng(0).permutation(300).reshape(15, 20) / 300 * 0.8 + 0.15
    for i, j in np.ndindex(15, 20):
        square = 0, slice(8 * i, 8 * i + 4), slice(8 * j, 8 * j + 4)
        saliency[square] = 1
        heat[0, 8 * i + 1, 8 * j + 1] = strength[i, j]
        offsets[square] = 1 - np.stack(np.mgrid[:4, :4], -1)
    labels, score, dropped = group_instances(heat, offsets, saliency, 20, max_instances=301)
    best = np.sort(strength.ravel())[::-1]
    np.testing.assert_allclose(score[0], best[:20], rtol=1e-6)
    assert dropped.tolist() == [280] and labels.max() == 20
    for place in (1, 20):
        i, j = np.argwhere(strength == best[place - 1])[0]
        assert (np.asarray(labels[0]) == place).sum() == 16 and labels[0, 8 * i, 8 * j + 3] == place
    # With fewer center slots, pixels of omitted centers join others; the number of proposals is unchanged.
    labels, score, dropped = group_instances(heat, offsets, saliency, 20, max_instances=200)
    assert dropped.tolist() == [199 - 20] and labels.max() == 20
    np.testing.assert_array_equal(np.asarray(labels[0]) > 0, np.isin(labels[0], np.arange(1, 21)))


def test_grouping_recovers_objects_from_perfect_targets():
    # Network outputs equal to the targets must give back all objects, large and small.
    labels = np.zeros((1, 60, 80), np.int32)
    boxes = (2, 3, 20, 30), (30, 5, 28, 20), (25, 40, 10, 30), (45, 50, 9, 9)
    for number, (top, left, height, width) in enumerate(boxes, 1):
        labels[0, top:top + height, left:left + width] = number
    heat, offsets, foreground = center_targets(labels, 4, 3.0)
    found, score, _ = group_instances(heat, offsets, foreground.astype(jnp.float32), 6)
    assert (np.asarray(score[0]) == [1, 1, 1, 1, 0, 0]).all()
    pairs = {(int(a), int(b)) for a, b in zip(labels.ravel(), np.asarray(found).ravel(), strict=True)}
    assert len(pairs) == 5 and (0, 0) in pairs


@pytest.mark.slow
def test_batch_equals_single_frames():
    rng = np.random.default_rng(5)
    heat = rng.random((3, 20, 24)).astype(np.float32) * np.array([1, 0.05, 1], np.float32)[:, None, None]
    offsets, saliency = rng.normal(0, 2, (3, 20, 24, 2)).astype(np.float32), rng.random((3, 20, 24)).astype(np.float32)
    run = functools.partial(group_instances, min_area=0.01)
    together = run(heat, offsets, saliency, 4)
    for i in range(3):
        alone = run(heat[i:i + 1], offsets[i:i + 1], saliency[i:i + 1], 4)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], other[i], rtol=1e-6)
    assert not np.asarray(together[0])[1].any() and np.asarray(together[0])[[0, 2]].any((1, 2)).all()
