"""Table of protocols, and youtube-vis from JSON files to scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from tests.helpers.synthetic_store import eroded, rectangle, shifted
from uvos_jax.errors import UserError
from uvos_jax.evaluation import report
from uvos_jax.evaluation.protocols import PROTOCOLS, evaluate, get_protocol
from uvos_jax.video import read_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

LEFT, RIGHT = rectangle(10, 30, 0, 20), rectangle(10, 30, 40, 60)
HALF = rectangle(10, 30, 0, 10)  # of LEFT


def test_every_protocol_has_a_one_line_rule():
    assert set(PROTOCOLS) == {"davis2016", "davis2017-semi", "davis2017-unsup", "youtube-vos", "fbms-j", "fbms-f",
                              "youtube-objects", "saliency", "youtube-vis"}
    for name, row in PROTOCOLS.items():
        assert "\n" not in row.rule and not row.rule.endswith(".") and len(row.rule) > 80, name
        assert get_protocol(name) is row


@pytest.mark.parametrize(("wrong", "hint"), [("davis-2016", "davis2016"), ("davis2017", "davis2017-semi"),
                                             ("fbms", "fbms-j"), ("ytvos", None)])
def test_error_for_unknown_protocol_suggests_and_lists_valid_ones(wrong, hint, tmp_path):
    with pytest.raises(UserError) as caught:
        evaluate(wrong, tmp_path, tmp_path)
    text = str(caught.value)
    assert wrong in text and all(name in text for name in PROTOCOLS)
    assert hint is None or f"Did you mean '{hint}'" in text


def rle(mask) -> dict | None:
    if mask is None:
        return None
    coded = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def track(video: int, category: int, masks: list, **more) -> dict:
    return {"video_id": video, "category_id": category, "segmentations": [rle(mask) for mask in masks]} | more


def save_truth(path: Path, tracks: list, size=(40, 60), categories=("cat", "dog")) -> Path:
    videos = {entry["video_id"]: len(entry["segmentations"]) for entry in tracks}
    truth = {"videos": [{"id": number, "height": size[0], "width": size[1], "length": length}
                        for number, length in videos.items()],
             "categories": [{"id": number, "name": name} for number, name in enumerate(categories, 1)],
             "annotations": [{"id": number, "iscrowd": 0} | entry for number, entry in enumerate(tracks, 1)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(truth))
    return path


def save_results(path: Path, tracks: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tracks))
    return path


TRUTHS = [track(1, 1, [LEFT, LEFT]), track(1, 2, [RIGHT, None]), track(2, 1, [LEFT])]


def test_youtube_vis_class_aware_and_class_agnostic(tmp_path):
    truth = save_truth(tmp_path / "instances.json", TRUTHS)
    # All masks are perfect, but in video 1 cat and dog are swapped.
    results = [track(1, 2, [LEFT, LEFT], score=0.9), track(1, 1, [RIGHT, None], score=0.8),
               track(2, 1, [LEFT], score=0.7)]
    result = evaluate("youtube-vis", save_results(tmp_path / "results.json", results), truth)
    agnostic, aware = result.scores["class_agnostic"], result.scores["class_aware"]
    assert agnostic["AP"] == pytest.approx(1) and agnostic["AR10"] == pytest.approx(1)
    # AR1 allows one track per video: 2 of 3 objects.
    assert agnostic["AR1"] == pytest.approx(2 / 3)
    # Cats: the detection of higher score is wrong, so 1 of 2 is found at precision 1/2, at 51 of 101 recall levels.
    # Dogs: none is found.
    assert aware["AP"] == pytest.approx((0.5 * 51 / 101 + 0) / 2) and aware["AP_large"] == -1
    assert aware["AR100"] == pytest.approx((0.5 + 0) / 2)
    assert result.scores["frames_class_agnostic"]["AP"] == pytest.approx(1)
    assert result.sequences["2"]["AP"] == pytest.approx(1) and result.sequences["1"]["AP"] == 0
    header, rows = result.tables["per-category_results-valid.csv"]
    assert header[:3] == ["name", "AP", "AP50"]
    assert {row[0]: row[1] for row in rows} == {"cat": pytest.approx(0.5 * 51 / 101), "dog": 0}


def test_youtube_vis_without_categories_is_class_agnostic(tmp_path):
    truth = save_truth(tmp_path / "instances.json", TRUTHS)
    results = [{key: value for key, value in entry.items() if key != "category_id"} | {"score": 1} for entry in TRUTHS]
    result = evaluate("youtube-vis", save_results(tmp_path / "results.json", results), truth)
    assert set(result.scores) == {"class_agnostic", "frames_class_agnostic"} and not result.tables
    assert result.scores["class_agnostic"]["AP"] == pytest.approx(1)
    # A mix of tracks with and without a category is an error.
    results[0]["category_id"] = 1
    with pytest.raises(UserError, match="category_id"):
        evaluate("youtube-vis", save_results(tmp_path / "results.json", results), truth)
    # An empty list of tracks is valid.
    result = evaluate("youtube-vis", save_results(tmp_path / "results.json", []), truth)
    assert result.scores["class_aware"]["AP"] == result.scores["class_agnostic"]["AP"] == 0


def test_youtube_vis_with_partial_overlap(tmp_path):
    truth = save_truth(tmp_path / "instances.json", [track(1, 1, [LEFT, LEFT])])
    # Half of one frame is missing: the track has IoU 0.75, the frames have IoU 1/2 and 1.
    results = save_results(tmp_path / "results.json", [track(1, 1, [LEFT, HALF], score=0.5)])
    scores = evaluate("youtube-vis", results, truth).scores
    assert scores["class_aware"]["AP"] == scores["class_agnostic"]["AP"] == pytest.approx(0.6)
    # At threshold 0.5 both masks (of equal score) are true positives; above it only the first.
    assert scores["frames_class_agnostic"]["AP"] == pytest.approx((1 + 9 * 51 / 101) / 10)
    assert scores["frames_class_agnostic"]["AP50"] == pytest.approx(1)


@pytest.mark.parametrize("place", ["valid/instances.json", "annotations/instances_valid.json", "instances_valid.json",
                                   "valid.json", "instances.json"])
def test_youtube_vis_finds_ground_truth_and_results_in_folders(tmp_path, place):
    save_truth(tmp_path / "data" / place, TRUTHS)
    save_truth(tmp_path / "data" / "other" / "instances.json", [track(7, 1, [LEFT])])
    save_results(tmp_path / "run" / "results.json", [entry | {"score": 0.5} for entry in TRUTHS])
    result = evaluate("youtube-vis", tmp_path / "run", tmp_path / "data")
    assert result.scores["class_aware"]["AP"] == pytest.approx(1) and result.split == "valid"


def test_youtube_vis_selects_the_requested_split(tmp_path):
    save_truth(tmp_path / "valid" / "instances.json", TRUTHS)
    save_truth(tmp_path / "train" / "instances.json", TRUTHS[:1])
    results = save_results(tmp_path / "results.json", [TRUTHS[0] | {"score": 1}])
    assert evaluate("youtube-vis", results, tmp_path, "train").scores["class_agnostic"]["AP"] == pytest.approx(1)
    assert evaluate("youtube-vis", results, tmp_path).scores["class_agnostic"]["AP"] < 0.5
    with pytest.raises(UserError, match="no test/instances.json"):
        evaluate("youtube-vis", results, tmp_path, "test")


def test_youtube_vis_errors(tmp_path):
    truth = save_truth(tmp_path / "instances.json", TRUTHS)
    results = save_results(tmp_path / "results.json", [TRUTHS[0] | {"score": 1, "video_id": 9}])
    (tmp_path / "empty").mkdir()
    for predictions, dataset, more, message in [
        (results, truth, {}, "video_id 9 is not in the ground truth"),
        (tmp_path / "empty", truth, {}, "no results.json"),
        (results, tmp_path / "empty", {}, "no valid/instances.json"),
        (tmp_path / "none.json", truth, {}, "none.json.*No such file"),
        (results, truth, {"sequences": ("1",)}, "Remove --sequences"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate("youtube-vis", predictions, dataset, **more)


def test_youtube_vis_report_files(tmp_path):
    truth = save_truth(tmp_path / "instances.json", TRUTHS)
    results = save_results(tmp_path / "results.json", [TRUTHS[0] | {"score": 0.5}])
    written = {path.name for path in report.write(evaluate("youtube-vis", results, truth), tmp_path / "out")}
    assert written == {"global_results-valid.csv", "per-sequence_results-valid.csv", "per-category_results-valid.csv",
                       "scores.json"}
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["class_aware"]["AP_large"] == -1  # COCO's value for a range without objects
    assert scores["sequences"]["1"]["tracks"] == 2 and scores["sequences"]["1"]["results"] == 1
    categories = (tmp_path / "out" / "per-category_results-valid.csv").read_text().splitlines()
    assert categories[0].startswith("name,AP,AP50,AP75") and [row.split(",")[0] for row in categories[1:]] == \
        ["cat", "dog"]


def _average_precision(ious: list[float], objects: int, threshold: float) -> float:
    """AP at one threshold; detections are sorted by score, and each overlaps only its own object."""
    right = np.cumsum([iou >= threshold for iou in ious])
    precision, recall = right / np.arange(1, len(ious) + 1), right / objects
    return float(np.mean([max((p for p, r in zip(precision, recall, strict=True) if r >= wanted), default=0)
                          for wanted in np.arange(101) / 100]))


def test_real_masks(tmp_path, real_data):
    truths, results, ious = [], [], {1: [], 2: []}
    # Sorted by descending score, as _average_precision expects.
    for number, (name, category, change, score) in enumerate([("bear", 1, shifted, 0.9), ("bmx-bumps", 2, eroded, 0.8),
                                                              ("boat", 1, eroded, 0.7), ("hike", 1, shifted, 0.6)], 1):
        paths = sorted((real_data / "davis2016/Annotations/480p" / name).glob("*.png"))[::16]
        masks = [(read_mask(path) > 0).astype(np.uint8) for path in paths]
        predicted = [change(mask) for mask in masks]
        truths.append(track(number, category, [mask if mask.any() else None for mask in masks]))
        results.append(track(number, category, [mask if mask.any() else None for mask in predicted], score=score))
        p, t = np.stack(predicted) > 0, np.stack(masks) > 0
        ious[category].append((p & t).sum() / (p | t).sum())
    size = read_mask(paths[0]).shape
    truth = save_truth(tmp_path / "instances.json", truths, size)
    scores = evaluate("youtube-vis", save_results(tmp_path / "results.json", results), truth).scores
    every = [ious[1][0], ious[2][0], *ious[1][1:]]
    thresholds = np.arange(50, 100, 5) / 100
    aware = np.mean([[_average_precision(ious[category], len(ious[category]), threshold) for threshold in thresholds]
                     for category in (1, 2)])
    agnostic = np.mean([_average_precision(every, 4, threshold) for threshold in thresholds])
    assert every == pytest.approx([0.922899, 0.307204, 0.524213, 0.810945], abs=1e-6)
    assert scores["class_aware"]["AP"] == pytest.approx(aware, abs=1e-9)
    assert scores["class_agnostic"]["AP"] == pytest.approx(agnostic, abs=1e-9)
    assert scores["class_aware"]["AP"] == pytest.approx(0.25, abs=1e-6)
    assert scores["class_agnostic"]["AP"] == pytest.approx(0.343069, abs=1e-6)
