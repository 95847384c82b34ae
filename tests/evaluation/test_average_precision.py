"""COCO matching and average precision against values computed by hand and a brute-force reference."""

import numpy as np
import pytest

from uvos_jax.evaluation.average_precision import THRESHOLDS, DetectionGroup, precision_recall, summarize

ALL = {"all": (0, 1e10)}
SIZES = {"all": (0, 1e10), "S": (0, 100), "L": (100, 1e10)}


def group(scores, ious, areas=None, truth_areas=None, crowd=None) -> DetectionGroup:
    ious = np.array(ious, float).reshape(len(scores), -1) if len(scores) else np.zeros((0, len(truth_areas)))
    return DetectionGroup(
        np.array(scores, float),
        np.full(ious.shape[0], 50.0) if areas is None else np.array(areas, float),
        ious,
        np.full(ious.shape[1], 50.0) if truth_areas is None else np.array(truth_areas, float),
        np.zeros(ious.shape[1], bool) if crowd is None else np.array(crowd, bool),
    )


def scores_of(*groups: DetectionGroup, ranges=ALL) -> dict:
    return summarize([precision_recall(groups, ranges)], ranges)


def test_thresholds_are_those_of_coco():
    np.testing.assert_allclose(THRESHOLDS, [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95], atol=1e-15)


def test_perfect_detections():
    perfect = group([0.9, 0.8], [[1, 0], [0, 1]])
    assert scores_of(perfect, perfect) == {
        **dict.fromkeys(["AP", "AP50", "AP75", "AR10", "AR100"], pytest.approx(1)),
        "AR1": 0.5,
    }


@pytest.mark.parametrize(
    ("scores", "ious", "expected"),
    [
        ([0.9, 0.8], [[0.96], [0.1]], 1),  # the false positive comes after full recall
        ([0.8, 0.9], [[0.96], [0.1]], 1 / 2),
        ([0.9], [[0.96, 0]], 51 / 101),  # precision 1 at the recalls 0, 0.01, .. 0.5
        ([0.9, 0.8], [[0.96], [0.96]], 1),
        ([0.9, 0.8, 0.7], [[0.96, 0], [0.96, 0], [0, 0.96]], (51 + 50 * 2 / 3) / 101),  # a duplicate is false
        ([0.9, 0.8, 0.7], [[0, 0], [0.96, 0], [0, 0.96]], 2 / 3),  # 1/2 at recall 0.5, raised to the later 2/3
        ([0.9], [[0.72]], 5 / 10),  # a true positive at 5 of the 10 thresholds
        ([0.9], [[0.4]], 0),
    ],
)
def test_ap_equals_hand_computed_values(scores, ious, expected):
    assert scores_of(group(scores, ious))["AP"] == pytest.approx(expected, abs=1e-12)


def test_ap_at_one_threshold_and_recall():
    found = scores_of(group([0.9, 0.8], [[0.72, 0], [0, 0.8]]))
    assert found["AP50"] == pytest.approx(1)
    assert found["AP75"] == pytest.approx(1 / 2 * 51 / 101)  # a false positive, then a true one
    # Recall of the best detection: 1/2 at 5 thresholds; of both: 1 at 5 thresholds, 1/2 at 2 (0.75 and 0.8).
    assert (found["AR1"], found["AR10"]) == (pytest.approx(0.25), pytest.approx(0.6))


def test_matching_is_greedy_by_score_then_by_iou():
    # The best detection takes object 1, so the second one stays unmatched, although object 0 was possible.
    curve = precision_recall([group([0.9, 0.8], [[0.6, 0.7], [0.4, 0.9]])], ALL, thresholds=np.array([0.5]))
    assert curve.recall[0, 0, -1] == 0.5
    # On equal IoU the last object is taken, so the first remains for the second detection.
    for second, recall in (([0.9, 0], 1), ([0, 0.9], 0.5)):
        curve = precision_recall([group([0.9, 0.8], [[0.6, 0.6], second])], ALL, thresholds=np.array([0.5]))
        assert curve.recall[0, 0, -1] == recall


def test_threshold_of_one_tolerates_rounding():
    for iou, recall in ((1.0, 1), (1 - 1e-11, 1), (1 - 1e-9, 0)):
        assert precision_recall([group([0.9], [[iou]])], ALL, thresholds=np.array([1.0])).recall[0, 0, -1] == recall


def test_crowds_are_ignored_and_match_several_detections():
    crowd = [False, True]
    # Both detections on the crowd are not counted: without the crowd, they would halve the precision.
    found = scores_of(group([0.9, 0.8, 0.7], [[0, 0.96], [0, 0.96], [0.96, 0]], crowd=crowd))
    assert (found["AP"], found["AR100"]) == (pytest.approx(1), pytest.approx(1))
    # A real object is preferred to a crowd of larger IoU.
    assert scores_of(group([0.9], [[0.96, 1]], crowd=crowd))["AP"] == pytest.approx(1)
    # Once the object is matched, further detections match the crowd.
    found = scores_of(group([0.9, 0.8], [[0.96, 0.96], [0.96, 0.96]], crowd=crowd), group([0.7], [[0.96]]))
    assert found["AP"] == pytest.approx(1)
    assert scores_of(group([0.9], [[0.96]], crowd=[True])) == dict.fromkeys(
        ["AP", "AP50", "AP75", "AR1", "AR10", "AR100"], -1
    )


def test_area_ranges_ignore_objects_and_detections_outside():
    # A small and a large object; both found, and a false detection before them that is large.
    ious = [[0, 0], [0.96, 0], [0, 0.96]]
    found = scores_of(group([0.9, 0.8, 0.7], ious, [500, 50, 500], [50, 500]), ranges=SIZES)
    assert found["AP_S"] == pytest.approx(1)
    assert found["AP_L"] == pytest.approx(1 / 2)
    assert found["AP"] == pytest.approx(2 / 3)
    # A detection that matches an object outside the range is ignored, even if its own area is inside.
    found = scores_of(group([0.9, 0.8], [[0.96, 0], [0, 0.96]], [500, 500], [50, 500]), ranges=SIZES)
    assert (found["AP_S"], found["AP_L"]) == (pytest.approx(1), pytest.approx(1))
    # Ranges include both ends.
    found = scores_of(group([0.9], [[0.96]], [100], [100]), ranges=SIZES)
    assert (found["AP_S"], found["AP_L"]) == (pytest.approx(1), pytest.approx(1))


def test_detections_beyond_the_maximum_are_not_counted():
    ious = np.zeros((101, 1))
    ious[0] = 1  # the detection of lowest score is the true positive
    assert scores_of(group(np.arange(101), ious))["AR100"] == 0
    assert scores_of(group(np.arange(1, 101), ious[:100]))["AR100"] == pytest.approx(1)
    assert scores_of(group(np.arange(1, 101), ious[:100]))["AR10"] == 0


def test_groups_without_detections_or_objects():
    assert set(scores_of().values()) == {-1}
    assert set(scores_of(group([0.9], np.zeros((1, 0)))).values()) == {-1}
    assert set(scores_of(group([], [], truth_areas=[5])).values()) == {0}
    one = group([0.5], [[0.96]])
    assert scores_of(one, group([], [], truth_areas=[5]))["AP"] == pytest.approx(51 / 101)
    assert scores_of(group([0.9], np.zeros((1, 0))), one)["AP"] == pytest.approx(1 / 2)


def test_equal_scores_keep_group_order():
    right, wrong = group([0.5], [[1]]), group([0.5], np.zeros((1, 0)))
    assert scores_of(right, wrong)["AP"] == pytest.approx(1)
    assert scores_of(wrong, right)["AP"] == pytest.approx(1 / 2)


def test_mean_skips_categories_without_objects():
    curves = [precision_recall(groups, ALL) for groups in ([group([0.9], [[1]])], [], [group([0.9], [[0.1]])])]
    assert summarize(curves, ALL)["AP"] == pytest.approx(1 / 2)


def slow_curve(groups, low, high, most, threshold):
    """Returns precision at 101 recalls and the final recall by brute force, or None without objects."""
    verdicts, to_find = [], 0
    for at, (scores, areas, ious, truth_areas, crowd) in enumerate(groups):
        ignored = [bool(c) or not low <= a <= high for c, a in zip(crowd, truth_areas, strict=True)]
        to_find += ignored.count(False)
        free = set(range(len(ignored)))
        for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:most]:
            close = [j for j in free if ious[i, j] >= threshold]
            if close:
                j = max(close, key=lambda j: (not ignored[j], ious[i, j], j))
                if not crowd[j]:
                    free.remove(j)
                if not ignored[j]:
                    verdicts.append((-scores[i], at, i, True))
            elif low <= areas[i] <= high:
                verdicts.append((-scores[i], at, i, False))
    if not to_find:
        return None
    right = [verdict[-1] for verdict in sorted(verdicts)]
    points = [(sum(right[:n]) / to_find, sum(right[:n]) / n) for n in range(1, len(right) + 1)]
    # As in pycocotools, levels are k * 0.01, not k / 100: a recall of 7/10 misses some of them by rounding.
    precision = [max((p for r, p in points if r >= k * 0.01), default=0) for k in range(101)]
    return precision, points[-1][0] if points else 0


@pytest.mark.parametrize("seed", range(12))
def test_precision_and_recall_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(6):
        d, g = rng.integers(0, 9), rng.integers(0, 6)
        ious = rng.integers(4, 11, (d, g)) / 10 * (rng.random((d, g)) < 0.6)  # coarse, so that there are ties
        scores = rng.integers(0, 5, d) / 4
        areas, truth_areas = rng.integers(80, 120, d), rng.integers(80, 120, g)
        groups.append(DetectionGroup(scores, areas, ious, truth_areas, rng.random(g) < 0.2))
    thresholds = np.array([0.45, 0.65, 0.95])
    curve = precision_recall(groups, SIZES, max_detections=(1, 3, 7), thresholds=thresholds)
    assert curve.precision.shape == (3, 101, 3, 3) and curve.recall.shape == (3, 3, 3)
    for t, a, m in np.ndindex(3, 3, 3):
        slow = slow_curve(groups, *list(SIZES.values())[a], (1, 3, 7)[m], thresholds[t])
        precision, recall = (-1, -1) if slow is None else slow
        np.testing.assert_allclose(curve.precision[t, :, a, m], precision, atol=1e-12)
        assert curve.recall[t, a, m] == pytest.approx(recall)
