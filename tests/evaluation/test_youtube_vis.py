"""Scores of tracks and frames from JSON against known values and pycocotools, and broken files."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from uvos_jax.errors import UserError
from uvos_jax.evaluation.youtube_vis import evaluate_frames, evaluate_tracks, read_json

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

FRAME_NAMES = ["AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR1", "AR10", "AR100"]
TRACK_NAMES = [*FRAME_NAMES[:3], "AP_small", "AP_medium", "AP_large", *FRAME_NAMES[6:]]
HEIGHT, WIDTH = 10, 12


def box(left: int, right: int) -> np.ndarray:
    """A mask of whole columns, each with an area of 10 pixels."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, left:right] = True
    return mask


def rle(mask: np.ndarray | None, kind: str = "text") -> dict | None:
    if mask is None:
        return None
    if kind != "list":
        coded = mask_utils.encode(np.asfortranarray(mask, np.uint8))
        return coded if kind == "bytes" else coded | {"counts": coded["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *([0] if flat[0] else []), *edges, flat.size])
    return {"size": list(mask.shape), "counts": runs.tolist()}


def packed(mask: dict) -> dict:
    return mask_utils.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask


def video(number: int, length: int, height: int = HEIGHT, width: int = WIDTH) -> dict:
    return {"id": number, "height": height, "width": width, "length": length}


def track(masks: list, video_id: int = 1, category: int = 1, score: float | None = None, kind="text", **more) -> dict:
    entry = {"video_id": video_id, "category_id": category, "segmentations": [rle(mask, kind) for mask in masks]}
    return entry | ({} if score is None else {"score": score}) | more


def truth_of(*annotations: dict, videos: list | None = None, categories=(1, 2)) -> dict:
    lengths = {entry["video_id"]: len(entry["segmentations"]) for entry in annotations}
    return {
        "videos": videos or [video(number, length) for number, length in lengths.items()],
        "categories": [{"id": k, "name": f"kind {k}"} for k in categories],
        "annotations": [{"id": i, "iscrowd": 0} | entry for i, entry in enumerate(annotations, 1)],
    }


def test_perfect_tracks():
    masks = [[box(0, 4), box(1, 5)], [box(6, 9), None]]
    truth = truth_of(track(masks[0]), track(masks[1], category=2))
    results = [track(masks[0], score=0.9), track(masks[1], category=2, score=0.8)]
    found = evaluate_tracks(truth, results)
    for name in ("AP", "AP50", "AP75", "AP_small", "AR1", "AR10", "AR100"):
        assert found[name] == pytest.approx(1), name
    assert found["AP_medium"] == found["AP_large"] == -1
    rows = [(row["id"], row["name"], row["AP"]) for row in found["per_category"]]
    assert rows == [(1, "kind 1", pytest.approx(1)), (2, "kind 2", pytest.approx(1))]
    json.dumps(found)
    assert evaluate_tracks(truth, results[:1])["AP"] == pytest.approx(1 / 2)
    assert {evaluate_tracks(truth, [])[name] for name in TRACK_NAMES} == {0, -1}


def test_iou_of_tracks_by_hand():
    # Intersections 40 and 0, unions 50 and 40 (the second frame is missing in the result): 40 / 90 < 0.5.
    truth = truth_of(track([box(0, 4), box(0, 4)]))
    assert evaluate_tracks(truth, [track([box(0, 5), None], score=1)])["AP"] == 0
    # Intersections 40 and 10, unions 40 and 40: 50 / 80 = 0.625 passes 0.5, 0.55 and 0.6.
    assert evaluate_tracks(truth, [track([box(0, 4), box(0, 1)], score=1)])["AP"] == pytest.approx(3 / 10)
    # One frame more than in the ground truth: 40 / (40 + 20) = 0.667 passes 0.65 too.
    truth = truth_of(track([box(0, 4), None]))
    assert evaluate_tracks(truth, [track([box(0, 4), box(3, 5)], score=1)])["AP"] == pytest.approx(4 / 10)
    # Frames without masks in both are ignored, and empty masks are equivalent to null.
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    truth = truth_of(track([box(0, 4), None, nothing]))
    assert evaluate_tracks(truth, [track([box(0, 4), nothing, None], score=1)])["AP"] == pytest.approx(1)
    # No union: IoU 0.
    truth = truth_of(track([None, nothing]))
    assert evaluate_tracks(truth, [track([nothing, None], score=1)])["AP"] == 0


def test_wrong_class_is_ignored_only_if_class_agnostic():
    truth = truth_of(track([box(0, 4)], category=1))
    results = [track([box(0, 4)], category=2, score=0.9)]
    assert evaluate_tracks(truth, results)["AP"] == evaluate_frames(truth, results, class_agnostic=False)["AP"] == 0
    agnostic = evaluate_tracks(truth, results, class_agnostic=True)
    assert (agnostic["AP"], agnostic["per_category"]) == (pytest.approx(1), [])
    assert evaluate_frames(truth, results)["AP"] == pytest.approx(1)
    del results[0]["category_id"], truth["categories"]
    assert evaluate_tracks(truth, results, class_agnostic=True)["AP"] == pytest.approx(1)


def test_scores_per_video():
    truth = truth_of(track([box(0, 4)], 7), track([box(0, 4)], 3), track([box(5, 9)], 3, iscrowd=1))
    truth["videos"].append(video(5, 1))
    found = evaluate_tracks(truth, [track([box(0, 4)], 7, score=0.5), track([box(9, 10)], 7, score=0.9)])["per_video"]
    rows = [(row["id"], row["AP"], row["AR100"], row["tracks"], row["results"]) for row in found]
    assert rows == [(3, 0, 0, 1, 0), (5, -1, -1, 0, 0), (7, pytest.approx(1 / 2), pytest.approx(1), 1, 2)]


def test_areas_of_tracks():
    # Half of the frames have a mask of 128 x 256 pixels: medium; the mean over all frames would be on the limit.
    mask = np.zeros((128, 512), bool)
    mask[:, :256] = True
    truth = truth_of(track([mask, None]), videos=[video(1, 2, *mask.shape)])
    # ``areas`` of the ground truth take precedence over the mask area.
    for areas, expected in ((None, [-1, 1, -1]), ([90_000, None], [-1, -1, 1])):
        truth["annotations"][0]["areas"] = areas
        found = evaluate_tracks(truth, [track([mask, None], score=1)])
        assert [found[f"AP_{name}"] for name in ("small", "medium", "large")] == pytest.approx(expected)


def test_crowd_tracks_are_ignored_by_plain_iou():
    truth = truth_of(track([box(0, 2)]), track([box(4, 12)], iscrowd=1), categories=[1])
    right = track([box(0, 2)], score=0.5)
    inside = track([box(5, 11)], score=0.9)  # 6 of 8 columns of the crowd: ignored up to a threshold of 0.75
    found = evaluate_tracks(truth, [inside, right])
    assert (found["AP50"], found["AP75"]) == (pytest.approx(1), pytest.approx(1))
    assert found["AP"] == pytest.approx((6 + 4 / 2) / 10)
    # COCO's crowd IoU, relative to the detection's area, is 1.
    assert evaluate_frames(truth, [inside, right])["AP"] == pytest.approx(1)


def test_scores_per_frame():
    truth = truth_of(track([box(0, 4), box(0, 4)]))
    good = track([box(0, 4), box(0, 4)], score=0.5)
    bad = track([None, box(8, 9)], scores=[None, 0.9])
    assert evaluate_frames(truth, [good, bad])["AP"] == pytest.approx(2 / 3)
    bad["scores"] = [0.9, 0.4]
    assert evaluate_frames(truth, [good, bad])["AP"] == pytest.approx(1)
    with pytest.raises(UserError, match=r"results\[1\]: score is 'missing'"):
        evaluate_tracks(truth, [good, bad])
    for scores, expected in (([0.5], "must be 2 finite numbers"), ([0.5, None], "null for a frame with a mask")):
        with pytest.raises(UserError, match=expected):
            evaluate_frames(truth, [bad | {"scores": scores}])


def random_data(seed: int, sizes: tuple[int, int] = (110, 130), ties: bool = True) -> tuple[dict, list]:
    """Boxes of all sizes in 3 videos, one without ground truth; most results are shifted true tracks."""
    rng = np.random.default_rng(seed)
    videos = [video(9, 3, *sizes), video(2, 4, sizes[1], sizes[0]), video(4, 2, *sizes)]
    annotations, results = [], []
    for entry in videos:
        shape = entry["height"], entry["width"]
        for i in range(8 if entry["id"] != 4 else 2):
            masks, category = [], int(rng.integers(1, 3))
            side, corner = 10 ** rng.uniform(0.7, 2.7, 2), rng.random(2) * shape * 0.5
            for t in range(entry["length"]):
                mask = np.zeros(shape, bool)
                y, x = (corner + t).astype(int)
                mask[y : y + int(side[0]), x : x + int(side[1])] = True
                masks.append(None if rng.random() < 0.15 else mask)
            if entry["id"] != 4 and i > 0:
                kind, crowd = rng.choice(["text", "bytes", "list"]), int(rng.random() < 0.25)
                annotations.append(track(masks, entry["id"], category, iscrowd=crowd, kind=kind))
            for _ in range(rng.integers(1, 3)):
                moved = [None if x is None else np.roll(x, rng.integers(-1, 2, 2), (0, 1)) for x in masks]
                if rng.random() < 0.4:
                    moved[0] = None if rng.random() < 0.5 else np.zeros(shape, bool)
                score = rng.integers(1, 9) / 8 if ties else rng.random()
                results.append(track(moved, entry["id"], category if rng.random() < 0.8 else 3 - category, score))
    order = rng.permutation(len(results))
    return truth_of(*annotations, videos=videos, categories=(1, 2, 3)), [results[i] for i in order]


def coco_scores(images, categories, annotations, results, ranges=None, ious=None) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "categories": categories, "annotations": copy.deepcopy(annotations)}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "segm")
        evaluation.params.areaRng = ranges or evaluation.params.areaRng
        if ious:
            evaluation.computeIoU = lambda image, category: ious(evaluation, image, category)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:9].tolist()


def coco_of_frames(truth: dict, results: list, one_category: bool) -> list[float]:
    """Scores of pycocotools with every frame as an image, ordered by video id and frame."""
    frames = [(v, t) for v in sorted(truth["videos"], key=lambda v: v["id"]) for t in range(v["length"])]
    images = [{"id": i, "height": v["height"], "width": v["width"]} for i, (v, _) in enumerate(frames)]
    place = {(v["id"], t): i for i, (v, t) in enumerate(frames)}

    def of_frames(entries):
        for entry in entries:
            for t, mask in enumerate(entry["segmentations"]):
                if mask is not None:
                    category = 1 if one_category else entry["category_id"]
                    area = entry["areas"][t] if "areas" in entry else float(mask_utils.area(packed(mask)))
                    score = entry["scores"][t] if "scores" in entry else entry.get("score")
                    image = {"image_id": place[entry["video_id"], t], "segmentation": mask, "category_id": category}
                    yield image | {"iscrowd": entry.get("iscrowd", 0), "area": area, "score": score}

    annotations = [{"id": i} | entry for i, entry in enumerate(of_frames(truth["annotations"]), 1)]
    return coco_scores(images, truth["categories"], annotations, list(of_frames(results)))


@pytest.mark.parametrize("seed", range(6))
def test_frames_equal_pycocotools(seed):
    truth, results = random_data(seed)
    for entry in results[::2]:
        entry["scores"] = [round(entry["score"] + t / 4, 6) for t in range(len(entry["segmentations"]))]
    for entry in truth["annotations"][::2]:
        entry["areas"] = [500.0 * t for t in range(len(entry["segmentations"]))]
    for agnostic in (False, True):
        found = evaluate_frames(truth, results, class_agnostic=agnostic)
        expected = coco_of_frames(truth, results, agnostic)
        assert 0.1 < expected[0] < 0.9
        np.testing.assert_allclose([found[name] for name in FRAME_NAMES], expected, rtol=0, atol=1e-12)
    for row in evaluate_frames(truth, results, class_agnostic=False)["per_category"][:2]:
        true, found = ([x for x in xs if x["category_id"] == row["id"]] for xs in (truth["annotations"], results))
        expected = coco_of_frames(truth | {"categories": [{"id": row["id"]}], "annotations": true}, found, False)
        np.testing.assert_allclose([row[name] for name in FRAME_NAMES], expected, rtol=0, atol=1e-12)


def test_more_than_100_detections_equal_pycocotools():
    rng = np.random.default_rng(5)
    truth = truth_of(track([box(0, 4), box(2, 9)]), track([box(6, 9), None]), categories=[1])
    results = [track([box(x, x + 4), box(x, x + 7)], score=rng.integers(20) / 20) for x in rng.integers(0, 10, 120)]
    found = [evaluate_frames(truth, results)[name] for name in FRAME_NAMES]
    np.testing.assert_allclose(found, coco_of_frames(truth, results, True), rtol=0, atol=1e-12)
    late = [track([box(9, 10), None], score=1) for _ in range(100)] + [track([box(6, 9), None], score=0.5)]
    assert evaluate_tracks(truth, late)["AR100"] == 0
    assert evaluate_tracks(truth, late[1:])["AR100"] == pytest.approx(1 / 2)


def coco_of_tracks(truth: dict, results: list) -> list[float]:
    """Scores of pycocotools with its IoU replaced by the IoU of tracks, as in the published code."""
    entries = [dict(entry) for entry in [*truth["annotations"], *results]]
    sizes = {entry["id"]: [entry["length"], entry["height"], entry["width"]] for entry in truth["videos"]}
    arrays = []
    for entry in entries:
        array = np.zeros(sizes[entry["video_id"]], bool)
        for t, mask in enumerate(entry.pop("segmentations")):
            if mask is not None:
                array[t] = mask_utils.decode([packed(mask)])[..., 0]
        area = array.sum() / max(array.any((1, 2)).sum(), 1)
        entry.update(image_id=entry["video_id"], area=area, array=len(arrays), segmentation=rle(np.ones((1, 1))))
        arrays.append(array)
    true, detected = entries[: len(truth["annotations"])], entries[len(truth["annotations"]) :]
    for entry in detected:
        entry["bbox"] = [0, 0, entry["area"], 1]  # pycocotools computes a detection's area from its box

    def ious(evaluation, image, category):
        dets, gts = evaluation._dts[image, category], evaluation._gts[image, category]
        dets = sorted(dets, key=lambda det: -det["score"])
        table = np.zeros((len(dets), len(gts)))
        for i, j in np.ndindex(table.shape):
            a, b = arrays[dets[i]["array"]], arrays[gts[j]["array"]]
            table[i, j] = (a & b).sum() / max((a | b).sum(), 1)
        return table

    images = [{"id": entry["id"], "height": 1, "width": 1} for entry in truth["videos"]]
    ranges = [[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]]
    return coco_scores(images, truth["categories"], true, detected, ranges, ious)


@pytest.mark.parametrize("seed", range(4))
def test_tracks_equal_pycocotools_with_iou_of_pixels(seed):
    truth, results = random_data(seed, sizes=(600, 500))
    found = [evaluate_tracks(truth, results)[name] for name in TRACK_NAMES]
    assert 0.1 < found[0] < 0.9
    np.testing.assert_allclose(found, coco_of_tracks(truth, results), rtol=0, atol=1e-12)


def test_order_of_tracks_does_not_matter():
    truth, results = random_data(3, ties=False)
    reversed_truth = truth | {key: truth[key][::-1] for key in ("annotations", "videos")}
    assert evaluate_tracks(reversed_truth, results[::-1]) == evaluate_tracks(truth, results)


def test_mask_encodings_are_equivalent():
    masks = [box(0, 3), box(12, 12), box(2, 12), box(0, 12), np.eye(HEIGHT, WIDTH, dtype=bool)]
    truth = truth_of(track(masks))
    for kind in ("text", "bytes", "list"):
        assert evaluate_tracks(truth, [track(masks, score=1, kind=kind)])["AP"] == pytest.approx(1)
    truth["annotations"][0]["segmentations"][:3] = [[[0, 0, 3, 0, 3, 10, 0, 10]], [], [[2, 0, 12, 0, 12, 10, 2, 10]]]
    assert evaluate_tracks(truth, [track(masks, score=1)])["AP"] == pytest.approx(1)


def test_empty_runs_in_rle():
    # If two masks have an empty run at the same pixel, pycocotools drops all later runs. This is box(0, 4).
    odd = {"size": [HEIGHT, WIDTH], "counts": [0, 20, 0, 20, 80]}
    truth = truth_of(track([box(0, 4)]) | {"segmentations": [odd]})
    whole = track([box(0, 4)], score=1)
    assert evaluate_tracks(truth, [whole])["AP"] == pytest.approx(1)
    assert evaluate_tracks(truth, [whole | {"segmentations": [odd]}])["AP"] == pytest.approx(1)
    assert evaluate_tracks(truth, [track([box(0, 2)], score=1)])["AP"] == pytest.approx(1 / 10)


def refused(truth, results) -> str:
    messages = set()
    for evaluate in (evaluate_tracks, evaluate_frames):
        with pytest.raises(UserError) as caught:
            evaluate(truth, results, class_agnostic=False)
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message
    return message


GOOD = track([box(0, 4), None], score=0.5)
NO_RLE = "segmentations[0] has counts that are not a compressed RLE"
NOT_FULL = "segmentations[0] has runs that do not sum to the 120 pixels of the frame"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        *(({"score": x}, f"score is {x!r}, not a finite number") for x in (float("nan"), 1e999, "0.5", None, True)),
        *(({"video_id": x}, f"video_id {x!r} is not in the ground truth") for x in (8, [1], "1", True)),
        ({"category_id": 3}, "category_id 3 is not in the ground truth"),
        ({"segmentations": None}, "no list of segmentations, but video 1 has 2 frames"),
        ({"segmentations": [None] * 3}, "3 segmentations, but video 1 has 2 frames"),
        ({"segmentations": [rle(np.ones((12, 10))), None]}, "has size [12, 10], but its video has [10, 12]"),
        *(({"segmentations": [x, None]}, "is not an RLE with")
          for x in ([[0, 0, 4, 0, 4, 9]], {"size": [10, 12]}, "x", 1)),
    ],
)
def test_broken_results_are_errors(change, expected):
    message = refused(truth_of(GOOD), [GOOD, GOOD | change])
    assert message.startswith("The results cannot be used: results[1]: ") and expected in message


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Characters outside the alphabet, a missing continuation, more bits than pycocotools supports.
        *((counts, NO_RLE) for counts in ("", b"\x00", "0é", "0\ud800", "0p", "0P", "PPPPPP0")),
        (rle(box(0, 3))["counts"][:-1] + "P", NO_RLE),
        *((counts, NOT_FULL) for counts in (rle(box(0, 3))["counts"] + "1", r"\4\O", [0, 40, 81], [])),
        *((counts, "a list of integers from 0 to 120") for counts in ([120, 20, -20], [0, 40.0, 80], [10**30], None)),
    ],
)
def test_broken_counts_are_errors(counts, expected):
    broken = [{"size": [HEIGHT, WIDTH], "counts": counts}, None]
    assert expected in refused(truth_of(GOOD), [GOOD | {"segmentations": broken}])
    assert expected in refused(truth_of(GOOD | {"segmentations": broken}), [GOOD])


def test_error_counts_all_problems():
    results = [GOOD | {"score": None}, 3, {"score": 1}, *[GOOD | {"video_id": 5, "category_id": 6}] * 10]
    message = refused(truth_of(GOOD), results)
    assert "results[0]: score is None" in message and "results[1] is 3, not an object" in message
    assert "results[2]: video_id and segmentations and category_id missing" in message
    assert "results[3]: category_id 6 is not in the ground truth; results[3]: video_id 5" in message
    assert message.endswith("; and 15 more.")
    assert "must be a JSON list with one object per track, not an object" in refused(truth_of(GOOD), {})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        *(({"annotations": x}, "has no annotations") for x in (None, [])),
        ({"videos": [], "categories": {}}, "videos must be a non-empty list; categories must be a non-empty list"),
        ({"videos": [video(1, 2)] * 2}, "videos[1]: duplicate id 1"),
        ({"videos": [video(1, 0)]}, "videos[0]: id, height, width and length must be integers, with sizes in 1.."),
        ({"videos": [{"id": 1, "length": 2}]}, "videos[0]: height and width missing"),
        ({"categories": [{"id": "1"}]}, "categories[0]: id '1' is not an integer or is a duplicate"),
        ({"annotations": [GOOD | {"iscrowd": 2}]}, "annotations[0]: iscrowd must be 0 or 1"),
        *(({"annotations": [GOOD | {"areas": x}]}, "must be 2 non-negative numbers") for x in ([1], [-1, None], 3)),
        *(
            ({"annotations": [GOOD | {"segmentations": [[x], None]}]}, "segmentations[0] has a polygon that is not")
            for x in ([0, 0, 5, 5], [0, 0, 5, 5, 9, 9, 1], [0, 0, 5, 5, 1e9, 0], [0, 0, 5, 5, "9", 0], 7)
        ),
    ],
)
def test_broken_ground_truth_is_an_error(change, expected):
    assert expected in refused(truth_of(GOOD) | change, [GOOD])
    assert "must be a JSON object with videos and annotations, not a list" in refused([], [])


def test_read_json(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD]))
    assert read_json(path) == [GOOD]
    for content in (b"[1, ", b"\xff\xfe\x00", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match="results.json' is not JSON"):
            read_json(path)
    with pytest.raises(UserError, match="Cannot read '.*none.json': No such file"):
        read_json(tmp_path / "none.json")
