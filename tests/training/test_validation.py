"""Validation during training equals inference and evaluation by the command line."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.small_adnet import clip, small_segmenter
from tests.helpers.synthetic_store import davis, rectangle, save_masks, shifted
from uvos_jax.data.storage.store import MemoryStore
from uvos_jax.errors import UserError
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.training.validation import choose, first_masks, validate
from uvos_jax.video import write_mask

SIZE = (48, 72)


def held_back(count=3):
    """Returns short videos of different lengths with ground truth that the random network partly matches."""
    videos = []
    for v in range(count):
        length = 4 + v
        labels = np.stack([rectangle(10, 40, 5 + 5 * t, 40 + 5 * t, SIZE, number=1 + v % 2) for t in range(length)])
        videos.append((f"video{v}", clip(length, SIZE, seed=v), labels, None))
    return MemoryStore("held-back", videos), videos


def test_validation_equals_uvos_segment_and_evaluate(tmp_path):
    import cv2

    segmenter = small_segmenter()
    store, videos = held_back()
    scores, panel = validate(segmenter, store, choose(store, None))
    # Reference: results on disk, scored by the davis2016 protocol.
    root = tmp_path / "DAVIS"
    listing = root / "ImageSets" / "2016" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(f"{name}\n" for name, *_ in videos))
    for name, frames, labels, _ in videos:
        for folder in (root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name,
                       tmp_path / "results" / name):
            folder.mkdir(parents=True)
        masks = segmenter.segment(frames)
        for t in range(len(frames)):
            cv2.imwrite(str(root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg"), frames[t])
            cv2.imwrite(str(root / "Annotations" / "480p" / name / f"{t:05d}.png"),
                        np.where(labels[t] > 0, 255, 0).astype(np.uint8))
            write_mask(tmp_path / "results" / name / f"{t:05d}.png", masks[t])
    result = evaluate("davis2016", tmp_path / "results", root, "val", workers=1)
    for measure in "JF":
        assert scores[measure] == pytest.approx(result.scores[measure]["mean"], abs=1e-12)
        assert 0 < scores[measure] < 1
        for name, *_ in videos:
            assert scores["sequences"][name][measure] == pytest.approx(result.sequences[name][measure]["mean"],
                                                                       abs=1e-12)
    assert scores["J&F"] == pytest.approx((scores["J"] + scores["F"]) / 2)
    json.dumps(scores)  # scores are written to the log
    assert panel.dtype == np.uint8 and panel.ndim == 3 and panel.shape[2] == 3


class Oracle:
    """Returns preset masks, and records the masks that it is given."""

    def __init__(self, answers, task="foreground"):
        self.answers, self.given, self.model = list(answers), [], SimpleNamespace(task=task)

    def segment(self, frames, first_mask=None):
        self.given.append(first_mask)
        return self.answers.pop(0)


def test_first_last_void_and_unlabeled_frames_are_ignored():
    _, videos = held_back(1)
    name, frames, labels, _ = videos[0]
    frames, labels = np.concatenate([frames] * 2), np.concatenate([labels] * 2)  # 8 frames
    answer = (labels > 0).astype(np.uint8)
    answer[0], answer[-1] = 0, 0  # ignored
    labels[3] = 255  # no ground truth
    answer[3] = 1
    labels[4, :5] = 255  # void above the object
    answer[4, :5] = 1
    store = MemoryStore("held-back", [(name, frames, labels, None)])
    scores, _ = validate(Oracle([answer]), store, choose(store, None))
    assert scores["J"] == 1.0 and scores["F"] == 1.0
    wrong = answer.copy()
    wrong[2] = 0
    scores, _ = validate(Oracle([wrong]), store, choose(store, None))
    assert scores["J"] == pytest.approx(4 / 5)  # frames 1, 2, 4, 5, 6


def test_videos_are_divided_among_processes(monkeypatch):
    store, videos = held_back(3)
    answers = [rectangle(12, 38, 8, 45, SIZE)[None].repeat(len(frames), 0) for _, frames, _, _ in videos]
    alone, _ = validate(Oracle(answers), store, choose(store, None))
    from jax.experimental import multihost_utils

    mine = []

    def gather(values):
        mine.append(np.asarray(values))
        return np.stack([values, np.zeros_like(values)])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    validate(Oracle([answers[0], answers[2]]), store, choose(store, None), 0, 2)
    validate(Oracle([answers[1]]), store, choose(store, None), 1, 2)
    assert all(values.dtype == np.uint32 for values in mine)  # JAX would round float64
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda values: np.stack(mine))
    together, _ = validate(Oracle([answers[1]]), store, choose(store, None), 1, 2)
    assert together == alone


def test_sequences_are_selected_by_name():
    store, _ = held_back()
    assert choose(store, ["video2", "video0"]) == (0, 2)
    assert choose(store, []) == choose(store, None) == (0, 1, 2)
    with pytest.raises(UserError, match="no sequence 'vidoe1'.* Did you mean 'video1'"):
        choose(store, ["vidoe1"])
    short = MemoryStore("short", [("pair", clip(2, SIZE), np.zeros((2, *SIZE), np.uint8), None)])
    with pytest.raises(UserError, match="'pair' of 'short' cannot be used for validation"):
        choose(short, None)


def followed(count=2):
    """Returns videos of two objects each, with gaps between their ids, and slightly shifted results."""
    videos = []
    for v in range(count):
        labels = np.stack([rectangle(4, 30, 4 + 3 * t, 24 + 3 * t, SIZE, number=3 + v)
                           + rectangle(32, 45, 50 - 4 * t, 70 - 4 * t, SIZE, number=9) for t in range(5 + v)])
        videos.append((f"video{v}", clip(len(labels), SIZE, seed=v), labels, None))
    answers = [np.stack([shifted(frame) for frame in labels]) for _, _, labels, _ in videos]
    return MemoryStore("followed", videos), videos, answers


def test_prompted_model_is_scored_as_in_davis2017(tmp_path):
    store, videos, answers = followed()
    oracle = Oracle(answers, task="prompted")
    scores, panel = validate(oracle, store, choose(store, None))
    for given, (_, _, labels, _) in zip(oracle.given, videos, strict=True):
        assert list(given) == [0]
        np.testing.assert_array_equal(given[0], labels[0])
    # Benchmark files have consecutive object ids.
    gapless = np.zeros(256, np.uint8)
    gapless[[3, 4, 9]] = 1, 1, 2
    davis(tmp_path / "DAVIS", {name: gapless[labels] for name, _, labels, _ in videos})
    for (name, *_), answer in zip(videos, answers, strict=True):
        save_masks(tmp_path / "results" / name, gapless[answer])
    result = evaluate("davis2017-semi", tmp_path / "results", tmp_path / "DAVIS", "val", workers=1)
    for measure in "JF":
        assert 0 < scores[measure] < 1
        assert scores[measure] == pytest.approx(result.scores[measure]["mean"], abs=1e-12)
    assert panel.ndim == 3


def test_objects_are_prompted_on_appearance_and_scored_afterwards():
    labels = np.stack([rectangle(4, 30, 4, 24, SIZE, number=7) for _ in range(7)])
    labels[2:, 32:45, 30:60] = 2  # appears in frame 2
    labels[5:, :3] = 5  # in frame 5, the last scored one
    labels[1, 40:, :10] = 255
    store = MemoryStore("late", [("one", clip(7, SIZE), labels, None)])
    given = first_masks(store, 0)
    assert list(given) == [0, 2] and set(np.unique(given[0])) == {0, 7} and set(np.unique(given[2])) == {0, 2}
    answer = labels.copy()
    answer[:3][labels[:3] == 2] = 0  # not scored up to and including the prompted frame
    answer[1, 40:, :10] = 7  # void
    answer[4][labels[4] == 2] = 0
    scores, _ = validate(Oracle([answer], task="prompted"), store, (0,))
    # Object 7 is right in frames 1 to 5; object 2 in frames 3 and 5, but not in 4.
    assert scores["J"] == pytest.approx((1 + 2 / 3) / 2) and scores["F"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["sequences"]["one"]["J"] == pytest.approx(scores["J"])


def test_scores_are_means_over_objects_not_videos():
    store, videos, _ = followed()
    one_object = np.where(videos[0][2] == 9, 0, videos[0][2])
    store = MemoryStore("followed", [(*videos[0][:2], one_object, None), videos[1]])
    answers = [one_object, np.where(videos[1][2] == 9, 0, videos[1][2])]
    scores, _ = validate(Oracle(answers, task="prompted"), store, (0, 1))
    assert scores["J"] == pytest.approx(2 / 3) and scores["sequences"]["video1"]["J"] == pytest.approx(1 / 2)


def test_video_without_objects_is_an_error():
    store = MemoryStore("empty", [("nothing", clip(4, SIZE), np.zeros((4, *SIZE), np.uint8), None)])
    with pytest.raises(UserError, match="'nothing' of 'empty' has no object"):
        validate(Oracle([], task="prompted"), store, choose(store, None))
