"""Output of an evaluation: scores.json, CSV files in the formats of the published tools, and the text table."""

import csv
import json
import math

import cv2
import numpy as np
import pytest

from tests.helpers.synthetic_store import davis, rectangle, save_masks
from uvos_jax.errors import UserError
from uvos_jax.evaluation.protocols import evaluate
from uvos_jax.evaluation.report import (
    Result,
    flatten,
    format_csv,
    format_result,
    format_table,
    mean_scores,
    to_json,
    write,
)

TRUTH, HALF = rectangle(10, 30, 10, 50), rectangle(10, 30, 10, 30)
TWO, ONE = TRUTH + rectangle(32, 38, 10, 50, number=2), TRUTH


def result(**fields) -> Result:
    plainest = {"protocol": "made-up", "rule": "none", "split": "val", "scores": {"J": {"mean": 0.5}},
                "sequences": {"a": {"J": {"mean": 0.5}}}, "rows": [("a", {"J": {"mean": 0.5}})]}
    return Result(**plainest | fields)


def rows_of(path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


@pytest.fixture
def scored_2016(tmp_path):
    """Of bear's 3 scored frames, 2 are perfect and the last is half found; T is not defined for bmx-bumps."""
    davis(tmp_path / "data", {"bear": [TRUTH] * 5, "bmx-bumps": [TRUTH] * 5}, 2016)
    save_masks(tmp_path / "predictions" / "bear", [HALF, TRUTH, TRUTH, HALF, HALF])
    save_masks(tmp_path / "predictions" / "bmx-bumps", [TRUTH] * 5)
    return evaluate("davis2016", tmp_path / "predictions", tmp_path / "data")


def test_scores_json(scored_2016, tmp_path):
    path = write(scored_2016, tmp_path / "new" / "out")[0]
    text = path.read_text()
    assert path == tmp_path / "new" / "out" / "scores.json" and "NaN" not in text and text.endswith("\n")
    scores = json.loads(text)
    assert scores["protocol"] == "davis2016" and scores["split"] == "val" and scores["rule"] == scored_2016.rule
    assert set(scores["sequences"]) == {"bear", "bmx-bumps"}
    for entry in (scores, *scores["sequences"].values()):
        for measure in ("J", "F"):
            assert set(entry[measure]) == {"mean", "recall", "decay"}
    # J of bear is 1, 1, 1/2; recall counts values above 1/2. By rounding, the first quarter is the first two frames
    # and the last quarter the last one.
    assert scores["sequences"]["bear"]["J"] == {"mean": pytest.approx(2.5 / 3), "recall": pytest.approx(2 / 3),
                                                "decay": 0.5}
    assert scores["J"] == {"mean": pytest.approx((2.5 / 3 + 1) / 2), "recall": pytest.approx((2 / 3 + 1) / 2),
                           "decay": 0.25}
    assert scores["sequences"]["bmx-bumps"]["T"] is None  # T is not defined for this sequence
    assert isinstance(scores["T"], float) and scores["T"] == scores["sequences"]["bear"]["T"] > 0


def test_csv_files_of_davis_2016(scored_2016, tmp_path):
    write(scored_2016, tmp_path)
    header, row = rows_of(tmp_path / "global_results-val.csv")
    assert header == ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay", "T"]
    assert row[1] == "0.916667" and row[3] == "0.250000"
    header, *rows = rows_of(tmp_path / "per-sequence_results-val.csv")
    assert header[:2] == ["Sequence", "J-Mean"] and [row[0] for row in rows] == ["bear", "bmx-bumps"]
    assert rows[0][1] == "0.833333" and rows[1][-1] == "nan"
    header, *rows = rows_of(tmp_path / "per-frame_results-val.csv")
    assert header == ["Sequence", "Frame", "J", "F"]
    assert [row[:3] for row in rows[:3]] == [["bear", "00001", "1.000000"], ["bear", "00002", "1.000000"],
                                             ["bear", "00003", "0.500000"]]
    assert len(rows) == 6


@pytest.mark.parametrize(("name", "annotations"), [("davis2017-semi", "Annotations"),
                                                   ("davis2017-unsup", "Annotations_unsupervised")])
def test_csv_files_of_davis_2017_match_the_published_tool(tmp_path, name, annotations):
    davis(tmp_path / "data", {"pigs": [TWO] * 6, "india": [ONE] * 6}, annotations=annotations)
    save_masks(tmp_path / "predictions" / "pigs", [TWO] * 6)
    save_masks(tmp_path / "predictions" / "india", [HALF] * 6)
    scored = evaluate(name, tmp_path / "predictions", tmp_path / "data")
    write(scored, tmp_path / "out")
    lines = (tmp_path / "out" / "global_results-val.csv").read_text().splitlines()
    assert lines[0] == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay" and len(lines) == 2
    assert lines[1].split(",")[1:4] == ["0.833", "0.667", "0.000"]  # (1 + 1 + 1/2) / 3; 1/2 is not above 1/2
    rows = rows_of(tmp_path / "out" / "per-sequence_results-val.csv")
    assert rows[0] == ["Sequence", "J-Mean", "F-Mean"]
    assert [row[:2] for row in rows[1:]] == [["pigs_1", "1.000"], ["pigs_2", "1.000"], ["india_1", "0.500"]]
    assert all(len(value.split(".")[1]) == 3 for row in rows[1:] for value in row[1:])
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores["sequences"]["pigs"]["objects"]) == {"1", "2"} and scores["J"]["mean"] == pytest.approx(2.5 / 3)


def test_file_names_contain_the_split(tmp_path):
    names = {path.name for path in write(result(split="train"), tmp_path)}
    assert names == {"global_results-train.csv", "per-sequence_results-train.csv", "scores.json"}
    assert {path.name for path in tmp_path.iterdir()} == names  # no temporary files remain


def test_existing_files_are_replaced(tmp_path):
    for name in ("scores.json", "global_results-val.csv", "per-sequence_results-val.csv"):
        (tmp_path / name).write_text("J-Mean\n0.999\n" * 100)
    (tmp_path / "notes.txt").write_text("mine")
    write(result(), tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["J"] == {"mean": 0.5}
    assert (tmp_path / "global_results-val.csv").read_text() == "J-Mean\n0.500000\n"
    assert (tmp_path / "per-sequence_results-val.csv").read_text() == "Sequence,J-Mean\na,0.500000\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_changed_predictions_give_new_scores(tmp_path):
    save_masks(tmp_path / "Annotations" / "cars1", [TRUTH])
    for predicted, expected in ((TRUTH, 1.0), (HALF, 0.5)):
        save_masks(tmp_path / "predictions" / "cars1", [predicted])
        write(evaluate("fbms-j", tmp_path / "predictions", tmp_path), tmp_path / "out")
        assert json.loads((tmp_path / "out" / "scores.json").read_text())["J"]["mean"] == expected
        assert rows_of(tmp_path / "out" / "per-sequence_results-test.csv")[1] == ["cars1", f"{expected:.6f}", "1"]


def test_uncreatable_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write(result(), tmp_path / "file" / "out")


def test_to_json_converts_numpy_values():
    value = {"a": np.float64(0.5), "b": np.nan, "c": (np.int64(3), np.float32(np.inf)), 4: np.bool_(True), "d": None}
    made = to_json(value)
    assert made == {"a": 0.5, "b": None, "c": [3, None], "4": True, "d": None}
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_flatten_uses_published_column_names():
    assert flatten({"J&F": {"mean": 1}, "J": {"mean": 2, "recall": 3, "decay": 4}, "T": 5, "mae": 6}) == {
        "J&F-Mean": 1, "J-Mean": 2, "J-Recall": 3, "J-Decay": 4, "T": 5, "MAE": 6}


def test_mean_scores_ignores_nan():
    entries = [{"J": {"mean": 0.2}, "T": math.nan}, {"J": {"mean": 0.6}, "T": 3.0}]
    assert mean_scores(entries) == {"J": {"mean": pytest.approx(0.4)}, "T": 3.0}
    assert math.isnan(mean_scores([{"T": math.nan}])["T"]) and mean_scores([]) == {}


def test_csv_quotes_values_and_keeps_all_columns():
    text = format_csv([{"Sequence": "a,b", "J": 0.12345}, {"Sequence": "c", "J": math.nan, "n": 3}], 3)
    assert list(csv.reader(text.splitlines())) == [["Sequence", "J", "n"], ["a,b", "0.123", ""], ["c", "nan", "3"]]


def test_table_columns_are_aligned():
    rows = [{"Sequence": "a", "J-Mean": 0.5}, {"Sequence": "car-roundabout", "J-Mean": -0.123456, "n": 12}]
    table = format_table(rows)
    assert table.splitlines() == ["Sequence         J-Mean   n",
                                  "a                0.5000",
                                  "car-roundabout  -0.1235  12"]


def test_printed_result_ends_with_dataset_scores():
    text = format_result(result(scores={"J": {"mean": 0.5, "mean_over_frames": 0.25}}))
    assert text.splitlines() == ["Sequence  J-Mean", "a         0.5000", "all       0.5000", "",
                                 "all                  score", "J-mean_over_frames  0.2500"]


@pytest.mark.parametrize("threshold", [1.0, 0.0])
def test_pr_curve_plot_marks_maximal_f(tmp_path, threshold):
    # Recall grows from 0 at threshold 1 to 1 at threshold 0.
    scores = {"max_f": 0.8, "max_f_threshold": threshold, "mae": 0.1}
    curve = np.linspace(0, 1, 256).tolist(), [0.9] * 256
    assert tmp_path / "pr_curve.png" in write(result(scores=scores, curve=curve), tmp_path)
    picture = cv2.imread(str(tmp_path / "pr_curve.png"), cv2.IMREAD_GRAYSCALE)
    black = cv2.erode((picture < 50).astype(np.uint8), np.ones((7, 7), np.uint8))  # thicker than text and axes
    rows, columns = np.nonzero(black)
    columns = columns[rows < picture.shape[0] / 2]  # the legend is below
    left = columns.mean() < picture.shape[1] / 2
    assert left == (threshold == 1)


def test_result_without_curve_has_no_plot(tmp_path):
    assert "pr_curve.png" not in {path.name for path in write(result(), tmp_path)}


def test_subset_tables_do_not_replace_those_of_the_full_split(tmp_path):
    write(result(), tmp_path)
    before = (tmp_path / "global_results-val.csv").read_text()
    write(result(subset=("a",), scores={"J": {"mean": 0.1}}), tmp_path)
    assert (tmp_path / "global_results-val.csv").read_text() == before
    assert rows_of(tmp_path / "global_results-val-subset.csv")[1] == ["0.100000"]
    assert json.loads((tmp_path / "scores.json").read_text())["only"] == ["a"]
