"""YouTube-VOS protocol: scored frames of an object, seen and unseen categories, and errors."""

import json

import numpy as np
import pytest

from tests.helpers.synthetic_store import rectangle, save_masks
from uvos_jax.errors import UserError
from uvos_jax.evaluation.protocols import evaluate

# Frames are 40x60, where contours match within 1 pixel.
SQUARE = rectangle(10, 30, 10, 30)
INSET = rectangle(13, 27, 13, 27)  # J = 14^2 / 20^2 = 0.49; contours 3 pixels apart, so F = 0
BAR = rectangle(5, 35, 40, 50)  # disjoint from SQUARE, so J = F = 0
EMPTY = np.zeros_like(SQUARE)
NAMES = ["00000", "00005", "00010", "00015", "00020"]


def video(root, name, labels, objects, split="valid", names=NAMES):
    """Adds a video with label maps and objects {id: (category, frames)}."""
    folder = root / split
    save_masks(folder / "Annotations" / name, labels, names[: len(labels)])
    meta = folder / "meta.json"
    content = json.loads(meta.read_text()) if meta.exists() else {"videos": {}}
    content["videos"][name] = {"objects": {str(number): {"category": category, "frames": frames}
                                           for number, (category, frames) in objects.items()}}
    meta.write_text(json.dumps(content))


def seen_categories(root, *names):
    (root / "train").mkdir(parents=True)
    objects = {str(number): {"category": name, "frames": NAMES} for number, name in enumerate(names, 1)}
    (root / "train/meta.json").write_text(json.dumps({"videos": {"x": {"objects": objects}}}))


@pytest.fixture
def two_videos(tmp_path):
    """Two dogs, and a yak that appears in the third frame; returns the dataset and prediction folders."""
    data, masks = tmp_path / "d", tmp_path / "p"
    video(data, "b", [SQUARE, SQUARE, *[SQUARE + 2 * BAR] * 3], {1: ("dog", NAMES), 2: ("yak", NAMES[2:])})
    video(data, "a", [SQUARE] * 3, {1: ("dog", NAMES[:3])})
    # The yak is predicted before it appears, not when it appears, then once: only the last two frames are scored.
    save_masks(masks / "b", [SQUARE + 2 * BAR, SQUARE, INSET + 2 * BAR, EMPTY], NAMES[1:])
    save_masks(masks / "a", [SQUARE, INSET], NAMES[1:3])
    return data, masks


def test_objects_are_scored_after_their_first_mask(two_videos):
    data, masks = two_videos
    result = evaluate("youtube-vos", masks, data)
    objects = result.sequences["b"]["objects"]
    assert objects["1"]["J"]["mean"] == pytest.approx((1 + 1 + 0.49 + 0) / 4, abs=1e-12)
    assert objects["1"]["F"]["mean"] == pytest.approx((1 + 1 + 0 + 0) / 4, abs=1e-12)
    assert objects["2"]["J"]["mean"] == objects["2"]["F"]["mean"] == 0.5
    assert result.sequences["a"]["objects"]["1"]["J"]["mean"] == pytest.approx(1.49 / 2, abs=1e-12)
    assert result.sequences["b"]["J"]["mean"] == pytest.approx((2.49 / 4 + 0.5) / 2, abs=1e-12)
    assert [name for name, _ in result.rows] == ["a_1", "b_1", "b_2"]
    # A frame's value is the mean over the objects scored in it.
    assert list(result.frames["b"]) == NAMES[1:]
    assert [entry["J"] for entry in result.frames["b"].values()] == pytest.approx([1, 1, 1.49 / 2, 0], abs=1e-12)
    assert [entry["F"] for entry in result.frames["b"].values()] == [1, 1, 0.5, 0]


def test_g_is_the_mean_over_seen_and_unseen_categories(two_videos):
    data, masks = two_videos
    seen_categories(data, "cat", "dog")
    scores = evaluate("youtube-vos", masks, data).scores
    seen_j, seen_f = (2.49 / 4 + 1.49 / 2) / 2, (2 / 4 + 1 / 2) / 2
    assert scores["J"] == pytest.approx({"mean": (2 * seen_j + 0.5) / 3, "seen": seen_j, "unseen": 0.5}, abs=1e-12)
    assert scores["F"] == pytest.approx({"mean": (2 * seen_f + 0.5) / 3, "seen": seen_f, "unseen": 0.5}, abs=1e-12)
    assert scores["G"] == pytest.approx((seen_j + 0.5 + seen_f + 0.5) / 4, abs=1e-12)


def test_seen_and_unseen_scores_need_the_training_split(two_videos):
    data, masks = two_videos
    scores = evaluate("youtube-vos", masks, data).scores
    assert list(scores["J"]) == list(scores["F"]) == ["mean"]
    j, f = (2.49 / 4 + 1.49 / 2 + 0.5) / 3, (0.5 + 0.5 + 0.5) / 3
    assert scores["G"] == pytest.approx((j + f) / 2, abs=1e-12)


def test_g_without_seen_categories_is_the_unseen_mean(two_videos):
    data, masks = two_videos
    seen_categories(data, "cat")
    scores = evaluate("youtube-vos", masks, data).scores
    assert list(scores["J"]) == ["mean", "unseen"]
    assert scores["J"]["unseen"] == scores["J"]["mean"]
    assert scores["G"] == pytest.approx((scores["J"]["mean"] + scores["F"]["mean"]) / 2, abs=1e-12)


def test_objects_are_scored_to_the_end_after_they_disappear(tmp_path):
    # Object 1 is listed in two of five frames; in the last three, empty against empty scores 1.
    video(tmp_path / "d", "a", [SQUARE + 2 * BAR] * 2 + [2 * BAR] * 3, {1: ("dog", NAMES[:2]), 2: ("yak", NAMES)})
    save_masks(tmp_path / "p/a", [2 * BAR] * 3 + [SQUARE + 2 * BAR], NAMES[1:])
    objects = evaluate("youtube-vos", tmp_path / "p", tmp_path / "d").sequences["a"]["objects"]
    assert objects["1"]["J"]["mean"] == objects["1"]["F"]["mean"] == 0.5
    assert objects["2"]["J"]["mean"] == objects["2"]["F"]["mean"] == 1


def test_255_in_ground_truth_is_not_an_object(tmp_path):
    void = rectangle(10, 30, 30, 50, number=255)
    video(tmp_path / "d", "a", [SQUARE + void] * 3, {1: ("dog", NAMES[:3])})
    save_masks(tmp_path / "p/a", [SQUARE, SQUARE + void // 255], NAMES[1:3])
    assert evaluate("youtube-vos", tmp_path / "p", tmp_path / "d").scores["J"]["mean"] == (1 + 0.5) / 2


def test_video_without_frames_after_first_mask_is_not_scored(tmp_path, two_videos):
    data, masks = two_videos
    before = evaluate("youtube-vos", masks, data).scores
    video(data, "c", [SQUARE], {1: ("dog", NAMES[:1])})
    result = evaluate("youtube-vos", masks, data)
    assert np.isnan(result.sequences["c"]["J"]["mean"])
    assert result.scores == before


def test_predictions_may_be_in_the_submission_layout(two_videos):
    data, masks = two_videos
    inside = masks / "Annotations"
    inside.mkdir()
    for name in "ab":
        (masks / name).rename(inside / name)
    assert evaluate("youtube-vos", masks, data).sequences["b"]["objects"]["2"]["J"]["mean"] == 0.5


def test_only_selected_videos_are_read(two_videos):
    data, masks = two_videos
    (masks / "b/00010.png").unlink()
    result = evaluate("youtube-vos", masks, data, sequences=("a",))
    assert list(result.sequences) == ["a"]
    with pytest.raises(UserError, match="The valid split has no sequence 'c'"):
        evaluate("youtube-vos", masks, data, sequences=("a", "c"))


def test_object_ids_missing_in_meta_json_are_errors(tmp_path):
    video(tmp_path / "d", "a", [SQUARE + 3 * BAR] * 4, {1: ("dog", NAMES[:4]), 3: ("yak", NAMES[:4])})
    save_masks(tmp_path / "p/a", [SQUARE + 3 * BAR, SQUARE + 2 * BAR, SQUARE * 4], NAMES[1:4])
    message = r"a 00010 contains object id 2, .*; a 00015 contains object id 4, which is not in meta\.json"
    with pytest.raises(UserError, match=message):
        evaluate("youtube-vos", tmp_path / "p", tmp_path / "d")


def test_error_names_missing_frames_except_the_first(two_videos):
    data, masks = two_videos
    for name in NAMES[2:4]:
        (masks / "b" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=r"frames are missing: b 00010-00015\."):
        evaluate("youtube-vos", masks, data)


def test_error_for_split_with_first_masks_only_suggests_packing(two_videos):
    data, masks = two_videos
    for name in NAMES[1:]:
        (data / "valid/Annotations/b" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=r"valid split has masks of first frames only .*as b\).*--pack"):
        evaluate("youtube-vos", masks, data)


def test_folder_of_the_split_is_accepted(two_videos):
    data, masks = two_videos
    assert evaluate("youtube-vos", masks, data / "valid").scores == evaluate("youtube-vos", masks, data).scores


def test_error_for_unknown_split_lists_available_splits(two_videos):
    data, masks = two_videos
    with pytest.raises(UserError, match=r"no meta\.json.*it has the splits valid"):
        evaluate("youtube-vos", masks, data, "test")


@pytest.mark.parametrize(("text", "match"), [
    ("{", "is not a meta.json of YouTube-VOS"),
    ('{"videos": {}}', "valid/meta.json' lists no videos"),
    ('{"videos": []}', "is not a meta.json of YouTube-VOS"),
    ('{"videos": {"a": {"objects": {"1": {"category": "dog"}}}}}', "is not a meta.json of YouTube-VOS: .*frames"),
    ('{"videos": {"a": {"objects": {}}}}', "has no objects, an object 0, or an object without frames in a"),
    ('{"videos": {"a": {"objects": {"1": {"category": "dog", "frames": []}}}}}', "an object without frames in a"),
])
@pytest.mark.filterwarnings("error")
def test_broken_meta_json_is_an_error(two_videos, text, match):
    data, masks = two_videos
    (data / "valid/meta.json").write_text(text)
    with pytest.raises(UserError, match=match) as caught:
        evaluate("youtube-vos", masks, data)
    assert "\n" not in str(caught.value)


def test_broken_meta_json_of_training_split_is_an_error(two_videos):
    data, masks = two_videos
    (data / "train").mkdir()
    (data / "train/meta.json").write_text("[]")
    with pytest.raises(UserError, match=r"train/meta\.json' is not a meta\.json"):
        evaluate("youtube-vos", masks, data)
