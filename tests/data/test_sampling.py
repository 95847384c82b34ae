"""Recipes and mixtures, which select the frames of an example."""

from collections import Counter

import numpy as np
import pytest

from uvos_jax.data.examples.sampling import (
    RECIPES,
    alternating_entry,
    choose_videos,
    entry_of_example,
    epoch_item,
    generator,
    references,
    sequence,
    starts,
)
from uvos_jax.data.storage.store import Video
from uvos_jax.errors import UserError


def _video(length, labeled=None, visible=None, name="v"):
    labeled = tuple(range(length)) if labeled is None else tuple(labeled)
    visible = labeled if visible is None else visible
    return Video(name, length, (4, 4), tuple((1,) if t in visible else () for t in range(length)), labeled)


def _rngs(count):
    return [generator(0, 9, i) for i in range(count)]


def test_random_numbers_depend_on_every_argument():
    draws = [generator(*arguments).random() for arguments in ((0, 2, 1, 3), (0, 2, 3, 1), (1, 2, 1, 3), (0, 2, 1))]
    assert len(set(draws)) == 4 and generator(0, 2, 1, 3).random() == draws[0]


def test_mixture_has_exact_shares_in_every_cycle():
    shares = (1, 3, 2)
    parts = [entry_of_example(5, number, shares) for number in range(60)]
    for cycle in range(10):
        assert Counter(p for p, _ in parts[cycle * 6:cycle * 6 + 6]) == {0: 1, 1: 3, 2: 2}
    for p in range(3):  # examples of an entry are numbered without gaps
        visits = [visit for entry, visit in parts if entry == p]
        assert visits == list(range(10 * shares[p]))
    orders = {tuple(p for p, _ in parts[c * 6:c * 6 + 6]) for c in range(10)}
    assert len(orders) > 5
    assert [entry_of_example(5, n, shares) for n in (41, 7, 59)] == [parts[41], parts[7], parts[59]]


def test_mixture_entries_alternate_in_order():
    shares = (1, 3, 2)
    parts = [[alternating_entry(step, place, 4, shares) for place in range(4)] for step in range(18)]
    assert [{entry for entry, _ in batch} for batch in parts] == 3 * [{0}, {1}, {1}, {1}, {2}, {2}]
    for p in range(3):  # examples of an entry are numbered without gaps
        assert [visit for batch in parts for entry, visit in batch if entry == p] == list(range(3 * shares[p] * 4))
    assert alternating_entry(10**6, 2, 4, (1, 2)) == (1, 2 + 4 * 2 * 333_333)  # turn 1 of its cycle


def test_every_epoch_is_a_new_permutation():
    epochs = [[epoch_item(3, 1, visit, 17) for visit in range(e * 17, e * 17 + 17)] for e in range(3)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert len({*map(tuple, epochs), tuple(range(17))}) == 4
    assert [epoch_item(3, 0, visit, 17) for visit in range(17)] != epochs[0]  # another entry has another order


def test_pair_samples_a_frame_and_its_anchor():
    frames = RECIPES["pair"].frames
    video = _video(6)
    assert RECIPES["pair"].items(video, {"first": True}) == video.labeled
    assert all(frames(rng, video, 4) == [0, 4] for rng in _rngs(5))
    seen = Counter(frames(rng, video, 4, first=False)[0] for rng in _rngs(500))
    assert set(seen) == {0, 1, 2, 3, 5} and min(seen.values()) > 60
    assert frames(_rngs(1)[0], _video(1), 0, first=False) == [0, 0]


def test_previous_samples_anchor_and_previous_frame():
    recipe, video = RECIPES["previous"], _video(6, labeled=[0, 1, 4])
    assert recipe.items(video, {"first": True}) == (0, 1, 4) and recipe.length({"first": True}) == 3
    assert [recipe.frames(_rngs(1)[0], video, item) for item in (0, 1, 4)] == [[0, 0, 0], [0, 0, 1], [0, 3, 4]]
    drawn = [recipe.frames(rng, video, 4, first=False) for rng in _rngs(200)]
    assert {anchor for anchor, *_ in drawn} == {0, 1, 2, 3, 5} and all(rest == [3, 4] for _, *rest in drawn)


def test_neighbor_is_a_nearby_labeled_frame():
    recipe, video = RECIPES["neighbor"], _video(12, labeled=[0, 2, 5, 7, 11])
    assert recipe.items(video, {}) == video.labeled and recipe.length({}) == 2
    seen = Counter(tuple(recipe.frames(rng, video, 5, max_gap=2, reverse=0.25)) for rng in _rngs(400))
    assert set(seen) == {(0, 5), (2, 5), (7, 5), (11, 5)}
    assert 60 < seen[7, 5] + seen[11, 5] < 140 and min(seen.values()) > 20
    # At the ends of a video: the farthest available frame, which may be the frame itself.
    assert {tuple(recipe.frames(rng, video, 0, max_gap=1)) for rng in _rngs(50)} == {(0, 0), (2, 0)}
    assert {tuple(recipe.frames(rng, video, 7, max_gap=9, reverse=1)) for rng in _rngs(9)} == {(11, 7)}


def test_next_pairs_consecutive_frames():
    recipe = RECIPES["next"]
    video = _video(4, labeled=[0, 3])  # flow needs no labels
    items = list(recipe.items(video, {}))
    assert items == [0, 1, 2] and recipe.length({}) == 2
    assert [recipe.frames(_rngs(1)[0], video, item) for item in items] == [[0, 1], [1, 2], [2, 3]]
    assert not list(recipe.items(_video(1), {}))


def test_references_differ_from_the_query_and_each_other():
    video = _video(6)
    for rng in _rngs(200):
        query, *others = references(rng, video, 2, count=4)
        assert query == 2 and len(set(others)) == 4 and set(others) <= {0, 1, 3, 4, 5}
    short = references(_rngs(1)[0], _video(3), 1, count=5)
    assert short[0] == 1 and len(short) == 6 and set(short[1:]) <= {0, 2}
    assert references(_rngs(1)[0], _video(1), 0) == [0] * 5


def test_sequence_samples_labeled_frames_at_equal_gaps():
    labeled = range(0, 60, 5)
    video = _video(58, labeled, visible=(20, 35))
    gaps, references_seen, reversed_runs = Counter(), Counter(), 0
    for rng in _rngs(600):
        reference, *run = sequence(rng, video, 3, length=3, max_gap=3)
        steps = np.diff(run)
        assert len(run) == 3 and steps[0] == steps[1]
        assert min(run) == 15 and set(run) <= set(labeled)
        gaps[abs(int(steps[0]))] += 1
        references_seen[reference] += 1
        reversed_runs += steps[0] < 0
    assert set(gaps) == {5, 10, 15} and min(gaps.values()) > 150
    assert set(references_seen) == {20, 35} and min(references_seen.values()) > 240
    assert 240 < reversed_runs < 360


def test_sequence_starts_and_short_videos():
    assert list(starts(_video(10), 3)) == list(range(8))
    assert list(starts(_video(2), 3)) == [0]
    assert list(starts(_video(10, visible=()), 3)) == []
    for length in (1, 2, 3, 4):
        for rng in _rngs(30):
            for item in starts(_video(length), 3):
                reference, *run = sequence(rng, _video(length), item)
                assert 0 <= reference < length and all(0 <= t < length for t in run)
                if length >= 3:
                    assert len(set(run)) == 3
    # Near the end of a video, only gaps that fit are drawn.
    assert {abs(np.diff(sequence(rng, _video(10), 6)[1:])[0]) for rng in _rngs(50)} == {1}


def test_videos_are_selected_by_name():
    videos = [_video(1, name=name) for name in ("bear", "boat", "bus")]
    assert choose_videos(videos, "davis") == [0, 1, 2]
    assert choose_videos(videos, "davis", exclude=["boat"]) == [0, 2]
    assert choose_videos(videos, "davis", only=["boat", "bus"]) == [1, 2]
    with pytest.raises(UserError, match="davis has no sequence 'baot' \\(in 'exclude'\\). Did you mean 'boat'"):
        choose_videos(videos, "davis", exclude=["baot"])
    with pytest.raises(UserError, match="No sequence of davis is left"):
        choose_videos(videos, "davis", only=["bus"], exclude=["bus"])
