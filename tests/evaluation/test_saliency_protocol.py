"""Saliency protocol: synthetic maps with hand-computed scores, dataset layouts, and real masks."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.synthetic_store import davis, rectangle, save_masks
from uvos_jax.errors import UserError
from uvos_jax.evaluation import report
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.video import read_mask

OBJECT = rectangle(10, 30, 15, 45) > 0  # 600 of 2400 pixels, a quarter
UPPER = rectangle(10, 20, 15, 45) > 0  # the upper half of OBJECT
BESIDE = rectangle(30, 40, 0, 60) > 0  # same area, disjoint from OBJECT
GARBAGE = np.random.default_rng(0).integers(0, 256, OBJECT.shape).astype(np.uint8)
F = {"perfect": 1.0, "half recall": 1.3 * 0.5 / (0.3 + 0.5), "half precision": 1.3 * 0.5 / (0.3 * 0.5 + 1),
     "all": 1.3 * 0.25 / (0.3 * 0.25 + 1)}


def save_maps(folder: Path, maps, names=None) -> None:
    """Writes gray maps [t, h, w] as ``<name>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, gray in zip(names or [f"{t:05d}" for t in range(len(maps))], maps, strict=True):
        Image.fromarray(np.asarray(gray, np.uint8)).save(folder / f"{name}.png")


def score(root: Path, **maps) -> report.Result:
    """Scores maps against OBJECT; the ignored first and last frames hold garbage."""
    truths = {name: [GARBAGE > 99, *[OBJECT] * len(counted), GARBAGE > 9] for name, counted in maps.items()}
    davis(root / "data", truths, 2016)
    for name, counted in maps.items():
        save_maps(root / "predictions" / name, [GARBAGE, *counted, 255 - GARBAGE])
    return evaluate("saliency", root / "predictions", root / "data")


def levels(*parts) -> np.ndarray:
    """A uint8 map with the given gray level on each region, from pairs (region, level)."""
    gray = np.zeros(OBJECT.shape, np.uint8)
    for region, level in parts:
        gray[region] = level
    return gray


def test_perfect_map(tmp_path):
    result = score(tmp_path, bear=[levels((OBJECT, 255))])
    expected = {"mae": 0.0, "max_f": 1.0, "max_f_threshold": 1.0, "adaptive_f": 1.0, "s_measure": pytest.approx(1),
                "adnet": {"mae": 0.0, "max_f": 1.0}}
    assert result.scores == expected


def test_inverted_map(tmp_path):
    result = score(tmp_path, bear=[levels((~OBJECT, 255))])
    # Only the threshold 0, which selects everything, has true positives: P = 1/4 and R = 1.
    assert result.scores == {"mae": 1.0, "max_f": pytest.approx(F["all"]), "max_f_threshold": 0.0, "adaptive_f": 0.0,
                             "s_measure": 0.0, "adnet": {"mae": 1.0, "max_f": pytest.approx(2 * 0.25 / 1.25)}}


def test_constant_map_is_not_normalized(tmp_path):
    scores = score(tmp_path, bear=[np.full(OBJECT.shape, 128)]).scores
    assert scores["mae"] == pytest.approx(0.25 * 127 / 255 + 0.75 * 128 / 255)
    assert scores["max_f"] == pytest.approx(F["all"]) and scores["max_f_threshold"] == pytest.approx(128 / 255)
    assert scores["adaptive_f"] == 0  # the threshold is 1, above every pixel


def test_adnet_scores_do_not_normalize_maps(tmp_path):
    # Normalized from 51..153 to 0..255, the map is perfect.
    scores = score(tmp_path, bear=[levels((OBJECT, 153), (~OBJECT, 51))]).scores
    assert (scores["mae"], scores["max_f"]) == (0, 1)
    assert scores["adnet"]["mae"] == pytest.approx(0.25 * 0.4 + 0.75 * 0.2) and scores["adnet"]["max_f"] == 1


def test_means_are_over_frames_then_sequences(tmp_path):
    # bear selects the object at threshold 1 and an equal false area at 102/255 = 0.4; boat selects half of the object
    # at 1 and the rest at 0.4. max_f is the maximum of the mean curve.
    bear, boat = levels((OBJECT, 255), (BESIDE, 102)), levels((OBJECT, 102), (UPPER, 255))
    result = score(tmp_path, bear=[bear], boat=[boat, boat, boat])
    assert result.sequences["bear"]["mae"] == pytest.approx(0.25 * 0.4)
    assert result.sequences["boat"]["mae"] == pytest.approx(0.125 * 0.6)
    assert result.sequences["bear"]["max_f"] == result.sequences["boat"]["max_f"] == pytest.approx(1)
    scores = result.scores
    assert scores["mae"] == pytest.approx((0.1 + 0.075) / 2)
    assert scores["max_f"] == pytest.approx((F["perfect"] + F["half recall"]) / 2)  # at 0.4: (0.565 + 1) / 2
    assert scores["max_f_threshold"] == 1
    # The mean of bear's map is 0.35, so its threshold is 0.7; boat's is 0.175, so 0.35: both are perfect there.
    assert scores["adaptive_f"] == pytest.approx(1)
    # Pooled, in units of 600 pixels: at 0.4, 4 of 5 selected are object pixels; at 1, 2.5 of 4 are found.
    assert scores["adnet"]["max_f"] == pytest.approx(2 * 0.8 / 1.8)
    assert scores["adnet"]["mae"] == pytest.approx((0.1 + 3 * 0.075) / 4)
    rows = {row[0]: row[1:] for row in result.tables["pr_curve.csv"][1]}
    # At 0.4 bear has P = 1/2, R = 1 and boat P = R = 1; at 0 both select everything.
    assert rows[102 / 255] == pytest.approx([0.75, 1, (F["half precision"] + 1) / 2])
    assert rows[1.0] == pytest.approx([1, 0.75, scores["max_f"]])
    assert rows[0.0] == pytest.approx([0.25, 1, F["all"]])


def test_soft_maps_take_precedence_over_masks(tmp_path):
    data = davis(tmp_path / "data", {"bear": [OBJECT] * 3, "boat": [OBJECT] * 3}, 2016)
    half = levels((OBJECT, 255), (UPPER, 102))
    for name in ("bear", "boat"):
        save_masks(tmp_path / "predictions" / name / "masks", [OBJECT] * 3)
    save_maps(tmp_path / "predictions" / "bear" / "soft", [half] * 3)
    result = evaluate("saliency", tmp_path / "predictions", data)
    assert result.sequences["bear"]["mae"] == pytest.approx(0.125 * 0.6)
    assert result.sequences["boat"]["mae"] == 0  # object id 1 is equivalent to 255


def test_maps_of_first_and_last_frame_are_not_required(tmp_path):
    save_maps(tmp_path / "predictions" / "bear", [levels((OBJECT, 255))] * 2, ["00001", "00002"])
    data = davis(tmp_path / "data", {"bear": [OBJECT] * 4}, 2016)
    assert evaluate("saliency", tmp_path / "predictions", data).scores["mae"] == 0


@pytest.mark.parametrize("flat", [False, True])
def test_flat_folder_of_ground_truth(tmp_path, flat):
    # Layout of ViSal: sparse BMP files, sequences given by the file names only; gray 128 is background.
    (tmp_path / "GT").mkdir()
    truth = levels((OBJECT, 129), (BESIDE, 128))
    for name, counted in {"boat": levels((OBJECT, 255)), "boat2": levels((UPPER, 255))}.items():
        frames = [f"{name}_{number:05d}" for number in (1, 6, 11, 16)]
        for frame in frames:
            Image.fromarray(truth).save(tmp_path / "GT" / f"{frame}.bmp")
        folder = tmp_path / "predictions" / ("." if flat else name)
        save_maps(folder, [GARBAGE, counted, counted, GARBAGE], frames)
    result = evaluate("saliency", tmp_path / "predictions", tmp_path)
    assert {name: entry["mae"] for name, entry in result.sequences.items()} == {"boat": 0, "boat2": 0.125}
    assert result.scores["mae"] == 0.0625


@pytest.mark.parametrize("place", ["", "Testset"])
def test_fbms_in_the_published_layout(tmp_path, place):
    # The folder of the split is accepted too; images next to the ground truth must not be read as ground truth.
    folder = tmp_path / "FBMS" / "Testset" / "cars1"
    (folder / "GroundTruth").mkdir(parents=True)
    for number in range(1, 5):
        cv2.imwrite(str(folder / f"cars1_{number:02d}.jpg"), np.full((40, 60, 3), 200, np.uint8))
        # 100 of 255 is foreground by the rule of FBMS, but background by that of saliency datasets.
        Image.fromarray(levels((OBJECT, 100))).save(folder / "GroundTruth" / f"cars1_{number:02d}.pgm")
    maps = [GARBAGE, levels((UPPER, 255)), levels((OBJECT, 255)), GARBAGE]
    save_maps(tmp_path / "predictions" / "cars1", maps, [f"cars1_{number:02d}" for number in range(1, 5)])
    result = evaluate("saliency", tmp_path / "predictions", tmp_path / "FBMS" / place, "test")
    assert result.scores["mae"] == pytest.approx(0.125 / 2)


def test_plain_dataset_in_folder_ground_truth_is_not_read_as_fbms(tmp_path):
    truth = levels((OBJECT, 255), (BESIDE, 60))  # 60 is background here, but foreground by FBMS rules
    save_maps(tmp_path / "GroundTruth", [truth] * 3, ["cat_1", "cat_2", "cat_3"])
    save_maps(tmp_path / "predictions" / "cat", [levels((OBJECT, 255))] * 3, ["cat_1", "cat_2", "cat_3"])
    assert evaluate("saliency", tmp_path / "predictions", tmp_path).scores["mae"] == 0


def test_error_names_sequences_of_fewer_than_three_frames(tmp_path):
    data = davis(tmp_path, {"bear": [OBJECT] * 3, "boat": [OBJECT] * 2, "bus": [OBJECT]}, 2016)
    with pytest.raises(UserError, match="No frames to score: .* Too short: boat, bus"):
        evaluate("saliency", tmp_path, data)


@pytest.mark.parametrize(("pixels", "message"), [
    (np.zeros((40, 60, 3), np.uint8), "mode RGB; a saliency map has one 8-bit gray channel"),
    (np.zeros((40, 60), np.uint16), "mode I;16"),
    (np.zeros((20, 30), np.uint8), "is 30x20 where the ground truth is 60x40"),
    (None, "cannot be read"),
])
def test_error_names_frames_of_invalid_maps(tmp_path, pixels, message):
    data = davis(tmp_path / "data", {"bear": [OBJECT] * 5}, 2016)
    folder = tmp_path / "predictions" / "bear"
    save_maps(folder, [levels((OBJECT, 255))] * 5)
    for number in (0, 2, 3):  # the first frame is ignored, so it is not read
        path = folder / f"{number:05d}.png"
        path.write_bytes(b"nothing") if pixels is None else Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=f"bear 00002-00003 .*{message}"):
        evaluate("saliency", tmp_path / "predictions", data)


def test_pr_curve_csv_and_plot(tmp_path):
    result = score(tmp_path, bear=[levels((OBJECT, 102), (UPPER, 255), (BESIDE, 51))])
    written = report.write(result, tmp_path / "out")
    assert {"pr_curve.csv", "pr_curve.png"} <= {path.name for path in written}
    header, *rows = csv.reader((tmp_path / "out" / "pr_curve.csv").read_text().splitlines())
    assert header == ["threshold", "precision", "recall", "F"] and len(rows) == 256
    values = np.array(rows, float)
    np.testing.assert_allclose(values[:, 0], np.arange(255, -1, -1) / 255, atol=1e-6)
    assert (np.diff(values[:, 2]) >= 0).all() and values[-1, 2] == 1  # recall grows as the threshold falls
    # The whole object is selected from 0.4 on, an equal false area from 0.2 on, everything at 0.
    expected = {255: (1, 0.5), 103: (1, 0.5), 102: (1, 1), 52: (1, 1), 51: (0.5, 1), 1: (0.5, 1), 0: (0.25, 1)}
    for level, point in expected.items():
        assert tuple(values[255 - level, 1:3]) == point, level
    assert values[:, 3].max() == pytest.approx(result.scores["max_f"], abs=1e-6)
    with Image.open(tmp_path / "out" / "pr_curve.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(2**24)) > 20  # the plot is not blank


def _s_measure(s, g):
    """S-measure term by term as in the paper; the object is neither empty nor the full frame."""
    def similarity(x, y):
        covariance = np.cov(x.ravel(), y.ravel())
        a = 4 * x.mean() * y.mean() * covariance[0, 1]
        b = (x.mean() ** 2 + y.mean() ** 2) * (covariance[0, 0] + covariance[1, 1])
        return a / b if a else float(b == 0)

    def inner(values):
        return 2 * values.mean() / (values.mean() ** 2 + 1 + values.std(ddof=1))

    rows, columns = np.nonzero(g)
    y, x = int(rows.mean() + 1.5), int(columns.mean() + 1.5)
    parts = [(slice(a, b), slice(c, d)) for a, b in ((0, y), (y, None)) for c, d in ((0, x), (x, None))]
    region = sum(g[part].size / g.size * similarity(s[part], g[part].astype(float)) for part in parts)
    return 0.5 * (g.mean() * inner(s[g]) + (1 - g.mean()) * inner(1 - s[~g])) + 0.5 * region


def test_real_masks(tmp_path, real_data):
    def shifted(mask):
        moved = np.zeros_like(mask)
        moved[:, 5:] = mask[:, :-5]
        return cv2.blur(moved, (9, 9))

    def eroded(mask):
        return cv2.GaussianBlur(cv2.erode(mask, np.ones((7, 7), np.uint8)), (0, 0), 4) // 2

    data, expected, pooled = {}, [], []
    for name, change in (("bear", shifted), ("bus", eroded)):
        paths = sorted((real_data / "davis2016/Annotations/480p" / name).glob("*.png"))[::20]
        data[name] = [read_mask(path) > 0 for path in paths]
        maps = [change(mask.astype(np.uint8) * 255) for mask in data[name]]
        save_maps(tmp_path / "predictions" / name, maps)
        frames = []
        for gray, truth in list(zip(maps, data[name], strict=True))[1:-1]:
            s = (gray - gray.min()) / (gray.max() - gray.min())
            curve = []
            for threshold in np.arange(255, -1, -1) / 255:
                hits = np.sum(truth & (s >= threshold - 1e-12))
                p, r = hits / np.sum(s >= threshold - 1e-12), hits / truth.sum()
                curve.append(1.3 * p * r / (0.3 * p + r) if hits else 0)
            adaptive = s >= min(2 * s.mean(), 1)
            p, r = np.sum(adaptive & truth) / adaptive.sum(), np.sum(adaptive & truth) / truth.sum()
            frames.append([abs(s - truth).mean(), 1.3 * p * r / (0.3 * p + r), _s_measure(s, truth), *curve])
            pooled.append((gray.ravel(), truth.ravel()))
        expected.append(np.mean(frames, axis=0))
    mae, adaptive_f, s_measure, *curve = np.mean(expected, axis=0)
    grays, truths = (np.concatenate(part) for part in zip(*pooled, strict=True))
    hits = [(np.sum((grays >= level) & truths), np.sum(grays >= level)) for level in range(1, 256)]
    pooled_f = max(2 * hit / (selected + truths.sum()) for hit, selected in hits)  # 2PR / (P + R)
    scores = evaluate("saliency", tmp_path / "predictions", davis(tmp_path / "data", data, 2016)).scores
    written = {"mae": 0.015285, "max_f": 0.968347, "adaptive_f": 0.961288, "s_measure": 0.963115}
    for name, value in {"mae": mae, "max_f": max(curve), "adaptive_f": adaptive_f, "s_measure": s_measure}.items():
        assert scores[name] == pytest.approx(value, abs=1e-9), name
        assert scores[name] == pytest.approx(written[name], abs=1e-6), name
    assert scores["adnet"]["max_f"] == pytest.approx(pooled_f, abs=1e-12)
    assert scores["adnet"]["mae"] == pytest.approx(abs(grays / 255 - truths).mean(), abs=1e-12)
    assert scores["adnet"] == {"mae": pytest.approx(0.047917, abs=1e-6),
                               "max_f": pytest.approx(0.964302, abs=1e-6)}


def test_ground_truth_with_levels_0_and_1_and_empty_ground_truth(tmp_path):
    save_maps(tmp_path / "d" / "GT" / "bear", [OBJECT] * 4)
    save_masks(tmp_path / "p" / "bear", [OBJECT] * 4)
    assert evaluate("saliency", tmp_path / "p", tmp_path / "d").scores["max_f"] == 1
    save_maps(tmp_path / "d" / "GT" / "bear", [np.zeros_like(OBJECT)] * 4)
    with pytest.raises(UserError, match="is empty in every scored frame"):
        evaluate("saliency", tmp_path / "p", tmp_path / "d")


def test_predictions_with_gray_levels_0_and_1_are_masks(tmp_path):
    save_masks(tmp_path / "d" / "GT" / "bear", [OBJECT] * 4)
    save_maps(tmp_path / "p" / "bear", [OBJECT] * 4)
    assert evaluate("saliency", tmp_path / "p", tmp_path / "d").scores["adnet"] == {"mae": 0, "max_f": 1}
