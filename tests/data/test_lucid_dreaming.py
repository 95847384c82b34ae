"""Pasted objects, and batches of several sizes."""

from itertools import islice

import cv2
import numpy as np
import pytest

from tests.helpers.clips import SIZE, assert_same, made_clips, made_store
from uvos_jax.data.examples.clip_dataset import paste_objects
from uvos_jax.data.examples.pipeline import batches
from uvos_jax.data.storage.store import MemoryStore
from uvos_jax.errors import UserError


def test_pasted_objects_are_in_front_with_new_ids():
    labels, other_labels = np.zeros((2, 12, 14), np.uint8), np.zeros((2, 12, 14), np.uint8)
    labels[:, 2:6, 2:9], labels[0, 10, 10] = 3, 255
    other_labels[0, 4:9, 5:10], other_labels[0, 0, 0] = 2, 255  # no object in the second frame
    frames, others = np.full((2, 12, 14, 3), 10, np.uint8), np.full((2, 12, 14, 3), 210, np.uint8)
    still, moving = np.zeros((2, 12, 14, 2), np.float32), np.full((2, 12, 14, 2), (3, -1), np.float32)
    result = paste_objects({"frames": frames, "labels": labels, "flow": still},
                   {"frames": others, "labels": other_labels, "flow": moving})
    pasted, ids = result["frames"], result["labels"]
    expected = labels.copy()
    expected[0, 4:9, 5:10] = 5
    np.testing.assert_array_equal(ids, expected)  # void is that of the background clip
    assert (pasted[0][5:8, 6:9] == 210).all(), "the inside is the other clip's"
    outside = cv2.dilate((expected[0] == 5).astype(np.uint8), np.ones((3, 3))) == 0
    assert (pasted[0][outside] == 10).all() and 10 < pasted[0][3, 7, 0] < 110 < pasted[0][4, 7, 0] < 210
    np.testing.assert_array_equal(pasted[1], frames[1])
    np.testing.assert_array_equal(result["flow"], np.where(expected[..., None] == 5, moving, still))


def test_objects_that_would_hide_the_clip_are_not_pasted():
    frames, labels = np.zeros((1, 4, 6, 3), np.uint8), np.ones((1, 4, 6), np.uint8)
    clip = {"frames": frames, "labels": labels * 2}
    assert_same(paste_objects(clip, {"frames": frames + 9, "labels": labels}), clip)


def test_fraction_of_examples_with_pasted_objects():
    # Object 1 is on the left in the first video and on the right in the second.
    def half(columns):
        labels = np.zeros((3, 40, 60), np.uint8)
        labels[:, 10:30, columns] = 1
        return labels

    store = MemoryStore("halves", [("left", np.full((3, 40, 60, 3), 50, np.uint8), half(slice(0, 20)), None),
                                   ("right", np.full((3, 40, 60, 3), 200, np.uint8), half(slice(40, 60)), None)])

    def doubled(share):
        clips = made_clips(store=store, paste=share, geometry={"kind": "resize"}, size=SIZE, batch_size=60)
        batch = clips.batch(0)
        assert_same(batch, clips.batch(0))
        assert set(np.unique(batch["labels"])) == {0, 1}, "still one foreground"
        return np.mean([label[:, :20].any() and label[:, 40:].any() for label in batch["labels"][:, 1]])

    assert doubled(0.0) == 0
    assert 0.3 < doubled(1.0) < 0.7  # half of the pasted objects come from the same video
    assert 0.1 < doubled(0.5) < 0.4


def test_pasted_objects_keep_their_flow():
    # A still video with object 1 on the left, a moving one with object 1 on the right; half are pasted into the other.
    def video(columns, motion):
        labels = np.zeros((2, 40, 60), np.uint8)
        labels[:, 10:30, columns] = 1
        return np.zeros((2, 40, 60, 3), np.uint8), labels, np.full((2, 20, 30, 2), motion, np.float32)

    store = MemoryStore("two", [("still", *video(slice(0, 20), (0, 0))), ("moving", *video(slice(40, 60), (4, 2)))])
    clips = made_clips("pair", store=store, paste=1.0, flow=True, geometry={"kind": "resize"}, size=(20, 30),
                       batch_size=20, objects=None)
    batch = clips.batch(0)
    both = [set(np.unique(labels)) == {0, 1, 2} for labels in batch["labels"]]
    assert any(both)
    for place in np.flatnonzero(both):
        behind = "moving" if "moving" in clips.describe(0, place) else "still"
        moves = np.zeros((20, 30), bool)
        moves[:] = behind == "moving"
        moves[5:15, 20:] = True  # the moving object, pasted or part of the background clip
        if behind == "moving":
            moves[5:15, :10] = False
        expected = np.where(moves[..., None], np.float32([2, 1]), 0)  # in output pixels, at half the resolution
        np.testing.assert_allclose(batch["flow"][place], np.stack([expected] * 2), atol=1e-6)


SIZES = [[33, 41], [24, 30], [48, 64]]


@pytest.mark.parametrize("engine", ["threads", "tensorflow"])
def test_each_step_uses_one_of_several_sizes(engine):
    if engine == "tensorflow":
        pytest.importorskip("tensorflow")
    clips = made_clips("references", size=SIZES)
    expected = [clips.batch(step) for step in range(12)]
    sizes = [batch["frames"].shape[2:4] for batch in expected]
    assert set(sizes) == {tuple(size) for size in SIZES}
    for batch, size in zip(expected, sizes, strict=True):
        assert batch["labels"].shape == (4, 4, *size) and batch["flow"].shape == (4, 4, *size, 2)
    for start in (0, 5):  # a resumed run has the same sizes
        for batch, whole in zip(batches(clips, start, workers=2, engine=engine), expected[start:], strict=False):
            assert_same(batch, whole)
    shares = [islice(batches(clips, 0, index, 2, workers=1, engine=engine), 12) for index in range(2)]
    for whole, *pieces in zip(expected, *shares, strict=True):
        assert_same({key: np.concatenate([piece[key] for piece in pieces]) for key in whole}, whole)


def test_size_from_a_list_equals_that_size_alone():
    clips = made_clips("references", size=SIZES)
    for step in range(3):
        assert_same(clips.batch(step), made_clips("references", size=clips.size_of(step)).batch(step))


@pytest.mark.parametrize("engine", ["threads", "tensorflow"])
def test_error_names_broken_frame_with_several_sizes(engine):
    if engine == "tensorflow":
        pytest.importorskip("tensorflow")
    store = made_store()
    whole = store.flow

    def broken(v, t):
        if (v, t) == (1, 3):
            raise UserError("flow cannot be decoded.")
        return whole(v, t)

    store.flow = broken
    with pytest.raises(UserError, match=r"made up: video1, frames .*3.*: flow cannot be decoded"):
        list(islice(batches(made_clips("references", store=store, size=SIZES), engine=engine), 5))
