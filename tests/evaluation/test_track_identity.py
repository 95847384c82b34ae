"""Identity switches and fragmentations against hand-made cases and brute-force matching."""

import itertools

import numpy as np
import pytest

from uvos_jax.evaluation.track_identity import identity_switches


def row(*numbers, width=4):
    """A frame of one row with ``width`` pixels for every number."""
    return np.repeat(np.array(numbers, np.uint8), width)[None]


def told(truth, prediction):
    """Scores of a video given as one string per object, with one digit (id) per frame."""
    frames = [np.stack([row(*map(int, frame)) for frame in zip(*strings, strict=True)])
              for strings in (truth, prediction)]
    return identity_switches(*frames)


@pytest.mark.parametrize(("truth", "prediction", "switches", "fragmentations", "matched"), [
    ("1111", "1111", 0, 0, 4),
    ("1111", "7777", 0, 0, 4),  # ids may differ from the ground truth
    ("1111", "2233", 1, 0, 4),
    ("1111", "2323", 3, 0, 4),
    ("1111", "2002", 0, 1, 2),
    ("1111", "2003", 1, 1, 2),
    ("1111", "0022", 0, 0, 2),  # found late
    ("1111", "2200", 0, 0, 2),  # never found again
    ("111111", "202020", 0, 2, 3),
    ("1001", "2002", 0, 0, 2),  # the object itself is absent
    ("1001", "2003", 1, 0, 2),
    ("1001", "2332", 0, 0, 2),
    ("11011", "20002", 0, 1, 2),
    ("0000", "1230", 0, 0, 0),
    ("1111", "0000", 0, 0, 0),
])
def test_switches_and_fragmentations_of_one_object(truth, prediction, switches, fragmentations, matched):
    assert told([truth], [prediction]) == {
        "switches": switches, "fragmentations": fragmentations, "objects": int("1" in truth),
        "visible": truth.count("1"), "matched": matched}


def test_swapped_ids_of_two_objects_are_two_switches():
    assert told(["1111", "2222"], ["5566", "6655"]) == {
        "switches": 2, "fragmentations": 0, "objects": 2, "visible": 8, "matched": 8}


def test_id_reused_by_another_object_is_not_a_switch():
    scores = told(["1100", "0022"], ["5500", "0055"])
    assert scores["switches"] == 0 and scores["matched"] == 4


@pytest.mark.parametrize(("pixels", "matched"), [(4, 0), (5, 1)])
def test_matches_need_iou_of_at_least_one_half(pixels, matched):
    truth, prediction = np.zeros((2, 1, 1, 20), np.uint8)
    truth[..., :10], prediction[..., :pixels] = 1, 3
    assert identity_switches(truth, prediction)["matched"] == matched


def test_tied_matches_keep_the_previous_id():
    truth = np.ones((3, 1, 10), np.uint8)
    whole, halves = row(3, width=10), row(2, 3, width=5)
    assert identity_switches(truth, np.stack([whole, halves, whole]))["switches"] == 0
    assert identity_switches(truth, np.stack([row(2, width=10), halves, whole]))["switches"] == 1


def test_void_pixels_are_ignored():
    truth = np.stack([row(1, 255, 255, 0)])
    assert identity_switches(truth, np.stack([row(4, 4, 4, 0)]))["matched"] == 1
    assert identity_switches(truth, np.stack([row(4, 4, 4, 4)]))["matched"] == 1  # 4 of 8 pixels
    assert identity_switches(np.where(truth == 255, 0, truth), np.stack([row(4, 4, 4, 0)]))["matched"] == 0
    assert identity_switches(truth, truth)["objects"] == 1


def test_different_shapes_are_errors():
    with pytest.raises(ValueError, match="differ in shape"):
        identity_switches(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 4), np.uint8))


def best_matches(truth, prediction):
    """Returns the matched id of each visible object, 0 without a match, by brute force over assignments."""
    objects = [n for n in np.unique(truth) if n not in (0, 255)]
    numbers = [n for n in np.unique(prediction[truth != 255]) if n]
    masks = {n: (prediction == n) & (truth != 255) for n in numbers}
    value = {(o, n): ((truth == o) & masks[n]).sum() / ((truth == o) | masks[n]).sum()
             for o in objects for n in numbers}
    best = max(itertools.permutations([*numbers, *[0] * len(objects)], len(objects)),
               key=lambda chosen: sum(value.get(pair, 0) * (value.get(pair, 0) >= 0.5)
                                      for pair in zip(objects, chosen, strict=True)))
    return {o: n if value.get((o, n), 0) >= 0.5 else 0 for o, n in zip(objects, best, strict=True)}


@pytest.mark.parametrize("seed", range(5))
def test_random_videos_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = np.zeros((2, 14, 9, 31), np.uint8)  # odd sizes make ties of IoU rare
    for frame in range(14):
        order = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
        for place in range(3):
            left, top = 10 * place + rng.integers(2), rng.integers(2)
            if rng.random() < 0.85:
                truth[frame, top : top + 7, left : left + 8] = place + 1
            if rng.random() < 0.85:
                prediction[frame, top + rng.integers(3) :, left + rng.integers(2) : left + 9] = order[place] + 1
    truth[rng.random(truth.shape) < 0.05] = 255
    histories = {number: [] for number in (1, 2, 3)}
    for true, predicted in zip(truth, prediction, strict=True):
        for number, match in best_matches(true, predicted).items():
            histories[number].append(int(match))
    switches = fragmentations = 0
    for history in histories.values():
        known = [match for match in history if match]
        switches += sum(a != b for a, b in itertools.pairwise(known))
        runs = [found for found, _ in itertools.groupby(history, bool)]
        fragmentations += max(runs.count(True) - 1, 0)
    scores = identity_switches(truth, prediction)
    assert scores == {"switches": switches, "fragmentations": fragmentations, "objects": 3,
                      "visible": sum(map(len, histories.values())),
                      "matched": sum(match > 0 for history in histories.values() for match in history)}
    assert switches and fragmentations
    renamed = np.array([0, 30, 10, 20], np.uint8)[prediction]
    assert identity_switches(truth, renamed) == scores
