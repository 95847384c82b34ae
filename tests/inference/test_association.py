"""Association of proposals with targets: hand-made scenes, and invariants of random scenes checked mask by mask."""

import itertools
from collections import Counter

import numpy as np
import pytest

from uvos_jax.inference.tracking.association import (
    AssociationSettings,
    associate,
    empty_tracks,
    ious,
    joint_areas,
    link_by_iou,
    merge_labels,
    update_tracks,
)

SIZE = (40, 50)  # 2000 pixels: the minimum area of a new target is 2
RED, GREEN, BLUE = np.eye(3)


def scene(*boxes, size=SIZE):
    """Returns a map of labels 1, 2, ... of boxes (top, left, height, width); later boxes win, None skips a label."""
    labels = np.zeros(size, np.uint8)
    for number, box in enumerate(boxes, 1):
        if box is not None:
            top, left, height, width = box
            labels[top : top + height, left : left + width] = number
    return labels


def step(tracks, frame, proposals, looks, targets, settings=AssociationSettings(), scores=None, rule=associate):  # noqa: B008
    """Associates one frame; by default scores decrease with the proposal index."""
    looks = np.reshape(looks, (-1, 3))
    scores = 1 - np.arange(len(looks)) / 100 if scores is None else np.array(scores)
    decision = rule(tracks, frame, proposals, scores, looks, targets, settings)
    return decision, update_tracks(tracks, decision, frame, scores, looks), merge_labels(decision, proposals, targets)


def known(*looks, slots=4, boxes=((0, 0, 20, 20), (0, 30, 20, 20), (30, 0, 10, 10))):
    """Returns the tracks and labels after frame 0, in which objects with these embeddings appear at the boxes."""
    labels = scene(*boxes[: len(looks)])
    _, tracks, decided = step(empty_tracks(slots, 3), 0, labels, looks, np.zeros_like(labels))
    np.testing.assert_array_equal(decided, labels)
    return tracks, decided


def test_first_frame_turns_proposals_into_targets_by_score():
    labels = scene((0, 0, 5, 5), (10, 0, 5, 5), (20, 0, 5, 5))
    decision, tracks, decided = step(empty_tracks(5, 3), 0, labels, [RED, 7 * GREEN, BLUE], np.zeros_like(labels),
                                     scores=[0.2, 0.9, 0.5])
    assert decision.new.tolist() == [1, 2, 0] and decision.slots.tolist() == [0, 1, 2]
    assert tracks.ids.tolist() == [1, 2, 3, 0, 0]
    np.testing.assert_array_equal(tracks.first[:3], [GREEN, BLUE, RED])
    np.testing.assert_array_equal(decided, np.array([0, 3, 1, 2])[labels])
    assert not decision.update.any() and (decision.replace == -1).all()


def test_joint_areas_and_ious_equal_pairwise_mask_comparison():
    rng = np.random.default_rng(0)
    for rows, columns in [(3, 4), (0, 2), (300, 5)]:
        a, b = rng.integers(0, rows + 1, SIZE), rng.integers(0, columns + 1, SIZE).astype(np.uint8)
        b[b == 1] = 0  # label 1 is unused
        joint = joint_areas(a, rows, b, columns)
        assert joint.shape == (rows + 1, columns + 1)
        for i, j in itertools.product(range(rows + 1), range(columns + 1)):
            assert joint[i, j] == ((a == i) & (b == j)).sum()
        expected = [[((a == i) & (b == j)).sum() / max(((a == i) | (b == j)).sum(), 1) for j in range(1, columns + 1)]
                    for i in range(1, rows + 1)]
        np.testing.assert_array_equal(ious(joint), np.reshape(expected, (rows, columns)))


def test_joint_areas_rejects_labels_above_maximum():
    with pytest.raises(ValueError, match="labels up to 3"):
        joint_areas(np.full(SIZE, 3), 2, np.zeros(SIZE, np.uint8), 4)


def test_verified_target_takes_mask_and_embedding_of_proposal():
    tracks, _ = known(RED, GREEN)
    proposals, targets = scene((2, 2, 20, 20)), scene((0, 0, 20, 20), (0, 30, 20, 20))
    decision, after, decided = step(tracks, 3, proposals, [RED + 0.5 * BLUE], targets, scores=[0.5])
    assert decision.replace.tolist() == [0, -1, -1, -1] and not decision.new.size
    assert decision.similarity[0] == pytest.approx(2 / np.sqrt(1.25))
    assert decision.update.tolist() == decision.doubled.tolist() == [True, False, False, False]
    np.testing.assert_array_equal(decided, scene((2, 2, 20, 20), (0, 30, 20, 20)))
    np.testing.assert_allclose(after.latest[0], (RED + 0.5 * BLUE) / np.sqrt(1.25), rtol=1e-6)
    np.testing.assert_array_equal(after.first, tracks.first)
    assert after.verified[:2].tolist() == after.updated[:2].tolist() == [3, 0]
    assert after.frames[:2].tolist() == [2, 1] and after.score_sum[:2] == pytest.approx([1.5, 0.99])
    assert tracks.frames[0] == 1  # the old state is unchanged


def test_eq_10_sums_cosines_with_first_and_latest_embedding():
    tracks, decided = known(RED)
    _, tracks, decided = step(tracks, 1, scene((0, 0, 20, 20)), [RED + GREEN], decided)
    # Third frame: cosine 0.8 with the first embedding, 0.8 / sqrt(2) + 0.6 / sqrt(2) with the second.
    decision, _, _ = step(tracks, 2, scene((0, 0, 20, 20)), [0.8 * RED + 0.6 * GREEN], decided)
    assert decision.similarity[0] == pytest.approx(0.8 + 1.4 / np.sqrt(2))
    # Negative cosines count as 0.
    decision, _, _ = step(tracks._replace(latest=-tracks.first), 2, scene((0, 0, 20, 20)), [RED], decided)
    assert decision.similarity[0] == 1


@pytest.mark.parametrize(("look", "accepted"), [((3, 4, 0), False), ((3.001, 4, 0), True), ((-3, 4, 0), False)])
def test_similarity_must_exceed_0_6(look, accepted):
    tracks, targets = known(RED)
    tracks.latest[0] = BLUE
    decision, after, decided = step(tracks, 1, scene((1, 0, 20, 20)), [look], targets)
    assert (decision.replace[0] == 0) == accepted == decision.update[0] == (after.verified[0] == 1)
    np.testing.assert_array_equal(decided, scene((1, 0, 20, 20)) if accepted else targets)
    assert not decision.new.size


@pytest.mark.parametrize(("width", "accepted"), [(10, False), (11, True)])
def test_verification_iou_must_exceed_0_5(width, accepted):
    tracks, targets = known(RED)
    decision, _, _ = step(tracks, 1, scene((0, 0, 20, width)), [RED], targets)
    assert (decision.replace[0] == 0) == accepted and not decision.new.size


@pytest.mark.parametrize(("size", "new"), [((4, 10), False), ((3, 13), True)])
def test_new_target_needs_iou_below_0_1(size, new):
    tracks, targets = known(RED)
    decision, after, decided = step(tracks, 1, scene((0, 0, *size)), [GREEN], targets)  # 40 or 39 of 400 pixels
    assert decision.new.tolist() == ([0] if new else []) and after.ids.tolist() == [1, 2 * new, 0, 0]
    assert (decided == 2).sum() == (39 if new else 0)


@pytest.mark.parametrize("rule", [associate, link_by_iou])
@pytest.mark.parametrize(("width", "new"), [(1, False), (2, True)])
def test_new_target_has_minimum_area(rule, width, new):
    tracks, targets = known(RED)
    decision, _, _ = step(tracks, 1, scene((30, 30, 1, width)), [GREEN], targets, rule=rule)
    assert decision.new.size == new


def test_unverified_memories_are_updated_every_eight_frames():
    tracks, targets = known(RED, GREEN)
    updates = {0: [], 1: []}
    for frame in range(1, 26):
        seen = frame in (3, 14)  # a proposal verifies target 1 only
        proposals = scene((0, 0, 20, 20)) if seen else np.zeros(SIZE, np.uint8)
        decision, tracks, _ = step(tracks, frame, proposals, [RED], targets)
        assert decision.doubled.tolist() == [seen, False, False, False]
        for target in updates:
            updates[target] += [frame] * int(decision.update[target])
    assert updates == {0: [3, 11, 14, 22], 1: [8, 16, 24]}
    off, _, _ = step(tracks, 99, scene((0, 0, 20, 20)), [RED], targets, AssociationSettings(memory_update=False))
    assert off.replace[0] == 0 and not off.update.any() and not off.doubled.any()


@pytest.mark.parametrize(("box", "updated"), [(None, False), ((0, 0, 1, 9), False), ((0, 0, 1, 10), True)])
def test_memory_update_needs_ten_pixels(box, updated):
    tracks, _ = known(RED)
    decision, _, _ = step(tracks, 8, np.zeros(SIZE, np.uint8), [], scene(box))
    assert decision.update[0] == updated


def test_crossing_objects_keep_their_ids():
    """T-Net tracks both objects; D-Net proposes a single object while they touch."""
    tracks, _ = known(RED, GREEN, boxes=((10, 0, 20, 14), (15, 40, 8, 8)))
    for frame, (red, green) in enumerate(zip(range(4, 36, 4), range(36, 4, -4), strict=True), 1):
        apart = abs(red - green) > 14
        boxes = [(10, red, 20, 14), (15, green, 8, 8)]
        # While they touch, D-Net proposes one object with the embedding of the larger one.
        merged = np.minimum(scene(*boxes), 1)
        proposals = scene(*boxes[::-1]) if apart else merged
        looks = [GREEN, RED] if apart else [RED + 0.1 * GREEN, BLUE]
        decision, tracks, decided = step(tracks, frame, proposals, looks, scene(*boxes))
        np.testing.assert_array_equal(decided, scene(*boxes))
        assert decision.doubled.tolist()[:2] == [True, apart] and not decision.new.size


def test_long_unverified_mask_yields_to_proposal():
    tracks, _ = known(RED, GREEN, boxes=((0, 0, 20, 20), (30, 30, 5, 5)))
    strayed = scene((0, 0, 20, 20), (5, 5, 5, 5))  # T-Net's mask of target 2 lies on target 1
    for frame, alone in ((8, False), (9, True)):
        decision, _, decided = step(tracks, frame, scene((0, 0, 20, 20)), [RED], strayed)
        assert decision.replace[0] == 0
        np.testing.assert_array_equal(decided, scene((0, 0, 20, 20)) if alone else strayed)
        assert decision.update[1] == (not alone)  # a lost target's memory is not updated
        # A lost target can be recovered in the same frame.
        decision, _, decided = step(tracks, frame, scene((0, 0, 20, 20), (30, 30, 6, 6)), [RED, GREEN], strayed)
        assert decision.replace[1] == (1 if alone else -1) and decision.new.tolist() == ([] if alone else [1])
        assert decided[30, 30] == (2 if alone else 3)


def test_new_target_overwrites_larger_mask():
    tracks, targets = known(RED)
    decision, after, decided = step(tracks, 1, scene((8, 8, 6, 6)), [GREEN], targets)
    assert decision.new.tolist() == [0]
    assert after.updated.tolist() == after.verified.tolist() == [0, 1, 0, 0]
    np.testing.assert_array_equal(decided, scene((0, 0, 20, 20), (8, 8, 6, 6)))


def test_swapped_embeddings_neither_verify_nor_create_targets():
    tracks, targets = known(RED, GREEN)
    decision, after, decided = step(tracks, 1, targets, [GREEN, RED], targets)
    assert (decision.replace == -1).all() and not decision.new.size and not decision.update.any()
    np.testing.assert_array_equal(decided, targets)
    np.testing.assert_array_equal(after.ids, tracks.ids)


@pytest.mark.parametrize(("share", "replaced"), [(10, False), (14, True)])
def test_fragments_of_split_object_are_not_new_targets(share, replaced):
    tracks, targets = known(RED)
    proposals = scene((0, 0, 20, share), (0, share, 20, 20 - share))
    decision, _, decided = step(tracks, 1, proposals, [RED, BLUE], targets)
    assert (decision.replace[0] == 0) == replaced and not decision.new.size
    np.testing.assert_array_equal(decided, scene((0, 0, 20, share)) if replaced else targets)


@pytest.mark.parametrize(("settings", "look", "box", "back"), [
    (AssociationSettings(), GREEN, None, True),
    (AssociationSettings(), 0.9 * GREEN + np.sqrt(0.19) * BLUE, None, True),
    (AssociationSettings(), 3 * BLUE + 4 * GREEN, None, False),  # a mean cosine of exactly 0.8
    (AssociationSettings(return_above=0.7), 3 * BLUE + 4 * GREEN, None, True),
    (AssociationSettings(return_above=None), GREEN, None, False),
    (AssociationSettings(verification=False), GREEN, None, False),
    (AssociationSettings(), GREEN, (20, 49, 1, 1), True),  # one pixel is left, below the minimum area
    (AssociationSettings(), GREEN, (20, 40, 10, 10), True),  # less than half of its area is left
    (AssociationSettings(shrunk=0.2), GREEN, (20, 40, 10, 10), False),  # not lost: T-Net segments it elsewhere
    (AssociationSettings(), GREEN, (20, 34, 15, 15), False),
])
def test_lost_target_is_recovered_by_embedding(settings, look, box, back):
    tracks, _ = known(RED, GREEN)
    gone = scene((0, 0, 20, 20), box)
    for frame in range(1, 5):
        decision, tracks, decided = step(tracks, frame, scene((0, 0, 20, 20)), [RED], gone, settings)
        np.testing.assert_array_equal(decided, gone)
        assert not decision.new.size and not decision.update[1]
    decision, tracks, decided = step(tracks, 5, scene((0, 0, 20, 20), (20, 10, 8, 8)), [RED, look], gone, settings)
    assert decision.replace[1] == (1 if back else -1) and decision.doubled[1] == back
    assert decision.new.tolist() == ([] if back else [1]) and tracks.ids.tolist() == [1, 2, 0 if back else 3, 0]
    assert decided[20, 10] == (2 if back else 3)
    assert (decided[20, 48] == 2) == (box is not None and not back)


def test_two_lost_targets_recover_their_own_proposals():
    tracks, _ = known(RED, GREEN)
    looks = [0.97 * RED + 0.25 * GREEN, RED, GREEN]
    proposals = scene((0, 0, 9, 9), (20, 0, 9, 9), (20, 20, 9, 9))
    decision, _, decided = step(tracks, 5, proposals, looks, np.zeros(SIZE, np.uint8))
    assert decision.replace.tolist() == [1, 2, -1, -1] and decision.new.tolist() == [0]
    np.testing.assert_array_equal(decided, np.array([0, 3, 1, 2])[proposals])


def test_without_verification_target_masks_are_kept():
    tracks, targets = known(RED, GREEN)
    proposals = scene((2, 2, 20, 20), (2, 30, 20, 20), (30, 30, 5, 5))
    settings = AssociationSettings(verification=False)
    decision, after, decided = step(tracks, 1, proposals, [RED, GREEN, BLUE], targets, settings)
    assert (decision.replace == -1).all() and not decision.update.any() and decision.new.tolist() == [2]
    np.testing.assert_array_equal(decided, targets + 3 * scene((30, 30, 5, 5)))
    np.testing.assert_array_equal(after.latest[:2], tracks.latest[:2])


def test_most_similar_proposal_wins_with_overlap_below_0_5():
    tracks, targets = known(RED, boxes=((0, 0, 20, 20),))
    proposals = scene((0, 0, 20, 9), (0, 9, 20, 11))
    decision, _, _ = step(tracks, 1, proposals, [RED, RED + GREEN], targets, AssociationSettings(overlap=0.3))
    assert decision.replace[0] == 0
    decision, _, _ = step(tracks, 1, proposals, [RED + GREEN, RED], targets, AssociationSettings(overlap=0.3))
    assert decision.replace[0] == 1
    settings = AssociationSettings(overlap=0.3)
    decision, _, _ = step(tracks, 1, proposals, [RED, RED], targets, settings, scores=[0.4, 0.8])
    assert decision.replace[0] == 1  # same similarity, higher score


@pytest.mark.parametrize(("slots", "most", "expected"), [(3, 20, 3), (8, 2, 2), (8, 20, 6)])
def test_targets_are_limited_by_slots_and_max_ids(slots, most, expected):
    proposals = scene(*((0, 8 * column, 5, 5) for column in range(6)))
    strengths = np.array([0.3, 0.9, 0.1, 0.7, 0.5, 0.2])
    looks = np.eye(6)[:, :3] + 0.1
    decision, tracks, decided = step(empty_tracks(slots, 3), 0, proposals, looks, np.zeros(SIZE, np.uint8),
                                     AssociationSettings(max_ids=most), scores=strengths)
    assert decision.new.tolist() == [1, 3, 4, 0, 5, 2][:expected]
    assert np.unique(decided).tolist() == list(range(expected + 1))
    more = scene((30, 0, 5, 5), (30, 10, 5, 5), (30, 20, 5, 5))
    settings = AssociationSettings(max_ids=most, return_above=None)
    decision, tracks, _ = step(tracks, 1, more, [RED, GREEN, BLUE], decided, settings)
    assert len(decision.new) == min(3, min(slots, most) - expected) and tracks.ids.max() <= min(slots, most)


@pytest.mark.parametrize("rule", [associate, link_by_iou])
def test_frame_without_proposals_changes_no_track(rule):
    tracks, targets = known(RED, GREEN)
    for proposals, looks, scores in ((np.zeros(SIZE, np.uint8), [], []),
                                     (scene((0, 0, 20, 20), (30, 30, 9, 9)), [np.full(3, np.nan), BLUE], [0.0, 0.0])):
        decision, after, decided = step(tracks, 1, proposals, looks, targets, scores=scores, rule=rule)
        assert (decision.replace == -1).all() and not decision.new.size and not decision.update.any()
        np.testing.assert_array_equal(decided, targets if rule is associate else 0)
        for before, now in zip(tracks, after, strict=True):
            np.testing.assert_array_equal(before, now)


def test_equal_scores_are_ordered_by_area_then_index():
    proposals = scene((0, 0, 5, 5), (10, 0, 5, 5), (20, 0, 6, 6))
    decision, _, _ = step(empty_tracks(3, 3), 0, proposals, [RED] * 3, np.zeros_like(proposals), scores=[0.5] * 3)
    assert decision.new.tolist() == [2, 0, 1]


def random_scene(seed, proposals=20, slots=12, size=(60, 70), dimension=4):
    """Returns random proposals and targets; some targets match a proposal in position, embedding or both."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(3, dimension))
    looks = kinds[rng.integers(3, size=proposals)] + 0.3 * rng.normal(size=(proposals, dimension))
    tracks = empty_tracks(slots, dimension)
    ids = np.where(rng.random(slots) < 0.8, rng.permutation(slots) + 1, 0).astype(np.int32)
    remembered = []
    for _ in range(2):
        own = np.where(rng.random((slots, 1)) < 0.7, looks[:slots], kinds[rng.integers(3, size=slots)])
        own = own + 0.2 * rng.normal(size=own.shape)
        remembered.append((own / np.linalg.norm(own, axis=1, keepdims=True)).astype(np.float32))
    tracks = tracks._replace(ids=ids, first=remembered[0], latest=remembered[1],
                             verified=rng.integers(0, 20, slots).astype(np.int32),
                             updated=rng.integers(5, 20, slots).astype(np.int32))
    found, targets = np.zeros(size, np.int32), np.zeros(size, np.uint8)
    for number in range(1, proposals + 1):
        y, x, h, w = rng.integers((0, 0, 3, 3), (50, 60, 14, 14))
        found[y : y + h, x : x + w] = number
        if number <= slots and ids[number - 1] and rng.random() < 0.7:
            dy, dx = rng.integers(-1, 3, 2)
            targets[max(y + dy, 0) : y + h, max(x + dx, 0) : x + w] = number
    scores = rng.permutation(np.linspace(0.1, 1, proposals)) * (rng.random(proposals) < 0.9)
    tracks = tracks._replace(area=rng.integers(0, 200, slots).astype(np.int32))
    return tracks, found, scores, looks, targets


@pytest.mark.parametrize("seed", range(6))
def test_proposal_order_does_not_matter(seed):
    tracks, found, scores, looks, targets = random_scene(seed)
    order = np.random.default_rng(seed).permutation(len(scores))  # new index -> old index
    renumbered = np.append(0, np.argsort(order) + 1)[found]
    results = []
    for labels, strengths, its_looks in ((found, scores, looks), (renumbered, scores[order], looks[order])):
        decision = associate(tracks, 20, labels, strengths, its_looks, targets, AssociationSettings())
        results.append((*update_tracks(tracks, decision, 20, strengths, its_looks),
                        merge_labels(decision, labels, targets),
                        decision.similarity, decision.update, decision.doubled))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def plain_iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


@pytest.mark.parametrize("return_above", [None, 0.5])
def test_random_scenes_satisfy_association_rules(return_above):
    happened = Counter()
    for seed in range(10):
        tracks, found, scores, looks, targets = random_scene(seed)
        smallest = 9
        settings = AssociationSettings(smallest=smallest / found.size, return_above=return_above)
        decision = associate(tracks, 20, found, scores, looks, targets, settings)
        decided = merge_labels(decision, found, targets)
        masks = [found == p + 1 for p in range(len(scores))]
        unit = looks / np.linalg.norm(looks, axis=1, keepdims=True)
        used = decision.new.tolist()
        for slot in np.flatnonzero(tracks.ids):
            mask, chosen = targets == slot + 1, decision.replace[slot]
            alike = np.clip(unit @ tracks.first[slot], 0, 1) + np.clip(unit @ tracks.latest[slot], 0, 1)
            fits = [p for p in range(len(scores))
                    if scores[p] and alike[p] > 0.6 and plain_iou(masks[p], mask) > 0.5]
            if fits:
                assert [chosen] == fits
            elif chosen >= 0:  # recovered
                assert return_above and alike[chosen] > 1 and masks[chosen].sum() >= smallest
                assert mask.sum() < max(smallest, tracks.area[slot] / 2)
                assert all(plain_iou(masks[chosen], targets == other) < 0.1 for other in range(1, 13)
                           if other != slot + 1)
            due = 20 - tracks.updated[slot] >= 8
            if chosen >= 0:
                used.append(chosen)
                assert decision.similarity[slot] == pytest.approx(alike[chosen], abs=1e-6)
                assert not (decided[~masks[chosen]] == slot + 1).any()
                due = True
            enough = (decided == slot + 1).sum() >= 10
            assert decision.update[slot] == (due and enough)
            assert decision.doubled[slot] == (chosen >= 0 and enough)
            happened.update(verified=bool(fits), back=chosen >= 0 and not fits)
            happened.update(due=due and chosen < 0, small=not enough)
        assert len(set(used)) == len(used) and not tracks.ids[decision.slots].any()
        assert (decision.replace[tracks.ids == 0] == -1).all() and not decision.update[tracks.ids == 0].any()
        for new in decision.new:
            assert scores[new] and masks[new].sum() >= smallest
            assert all(plain_iou(masks[new], targets == other) < 0.1 for other in range(1, 13))
        full = len(decision.new) == (tracks.ids == 0).sum()
        for p in set(np.flatnonzero(scores).tolist()) - set(used):  # every unused proposal has a reason
            near = max(plain_iou(masks[p], labels == other) for labels in (targets, decided) for other in range(1, 13))
            assert full or near >= 0.1 or masks[p].sum() < smallest
        happened.update(new=len(decision.new), full=full)
    assert all(happened[event] for event in ("verified", "due", "small", "new", "full"))
    assert bool(happened["back"]) == bool(return_above)


def test_300_proposals_fill_each_slot_once():
    rng = np.random.default_rng(1)
    proposals = (np.arange(60 * 70) // 14).reshape(60, 70) + 1
    scores, looks = rng.permutation(300) + 1.0, rng.normal(size=(300, 3))
    decision, tracks, decided = step(empty_tracks(20, 3), 0, proposals, looks, np.zeros((60, 70), np.uint8),
                                     scores=scores)
    assert scores[decision.new].tolist() == list(range(300, 280, -1)) and tracks.ids.tolist() == list(range(1, 21))
    assert np.bincount(decided.ravel())[1:].tolist() == [14] * 20
    again, after, same = step(tracks, 1, proposals, looks, decided, scores=scores)
    np.testing.assert_array_equal(again.replace, decision.new)
    assert not again.new.size and (after.ids == tracks.ids).all()
    np.testing.assert_array_equal(same, decided)


def test_link_by_iou_maximizes_total_iou_and_drops_missing_objects():
    tracks, before = known(RED, GREEN, boxes=((0, 0, 20, 10), (0, 10, 20, 10)))
    # Proposal 1 overlaps both targets, proposal 2 only target 1: greedy matching by IoU would leave one unmatched.
    proposals = scene((0, 2, 20, 14), (0, 0, 20, 2))
    decision, tracks, decided = step(tracks, 1, proposals, [BLUE, BLUE], before, rule=link_by_iou)
    assert decision.replace[:2].tolist() == [1, 0] and not decision.new.size and not decision.update.any()
    np.testing.assert_array_equal(decided, scene((0, 0, 20, 2), (0, 2, 20, 14)))
    assert decision.similarity[:2] == pytest.approx([0.2, 120 / 360])
    # Target 2 is missing for a frame; at the same position it becomes a new object.
    _, tracks, decided = step(tracks, 2, scene((0, 0, 20, 2)), [BLUE], decided, rule=link_by_iou)
    np.testing.assert_array_equal(decided, scene((0, 0, 20, 2)))
    decision, tracks, _ = step(tracks, 3, proposals, [BLUE, GREEN], decided, rule=link_by_iou)
    assert decision.new.tolist() == [0] and tracks.ids.tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize(("width", "linked"), [(1, True), (2, False)])
def test_link_by_iou_needs_iou_of_0_1(width, linked):
    tracks, before = known(RED, boxes=((0, 0, 1, 10),))
    proposals = scene((0, 9, 1, width))  # 1 of 10 pixels, or of 11
    decision, _, _ = step(tracks, 1, proposals, [RED], before, rule=link_by_iou)
    assert (decision.replace[0] == 0) == linked and decision.new.size == (not linked)
