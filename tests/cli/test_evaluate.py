"""Command line of `uvos evaluate` and `uvos compare`: output, files and errors."""

import json
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from tests.helpers.synthetic_store import davis, rectangle, save_masks
from uvos_jax import cli
from uvos_jax.evaluation.protocols import PROTOCOLS, evaluate

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

TRUTH, HALF = rectangle(10, 30, 10, 50), rectangle(10, 30, 10, 30)


@pytest.fixture
def uvos(tmp_path, monkeypatch, capsys):
    """Runs the command line in this process and a temporary folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["uvos", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def davis_data(root: Path, protocol: str) -> Path:
    year = 2017 if "2017" in protocol else 2016
    annotations = "Annotations_unsupervised" if protocol == "davis2017-unsup" else "Annotations"
    return davis(root, {"bear": [TRUTH] * 4, "boat": [TRUTH] * 4}, year, annotations=annotations)


def youtube_vos_data(root: Path) -> Path:
    frames = [f"{t:05d}" for t in range(4)]
    save_masks(root / "valid" / "Annotations" / "bear", [TRUTH] * 4)
    save_masks(root / "valid" / "Annotations" / "boat", [TRUTH] * 4)
    videos = {name: {"objects": {"1": {"category": name, "frames": frames}}} for name in ("bear", "boat")}
    (root / "valid" / "meta.json").write_text(json.dumps({"videos": videos}))
    return root


def save_youtube_vis(path: Path, masks: list, results: bool) -> None:
    coded = [mask_utils.encode(np.asfortranarray(mask)) for mask in masks]
    entry = {"video_id": 1, "category_id": 1,
             "segmentations": [{"size": [40, 60], "counts": each["counts"].decode()} for each in coded]}
    truth = {"videos": [{"id": 1, "height": 40, "width": 60, "length": len(masks)}],
             "categories": [{"id": 1, "name": "bear"}], "annotations": [entry]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([entry | {"score": 1}] if results else truth))


@pytest.fixture
def made(tmp_path):
    """Writes a dataset of a protocol and predictions that cover half of each object; returns both folders."""
    def make(protocol: str) -> tuple[Path, Path]:
        data, predictions = tmp_path / "data", tmp_path / "run.7"
        names = ("cat/0001", "dog/0001") if protocol == "youtube-objects" else ("bear", "boat")
        if protocol == "youtube-vis":
            save_youtube_vis(data / "valid" / "instances.json", [TRUTH] * 4, results=False)
            save_youtube_vis(predictions / "results.json", [HALF] * 4, results=True)
            return data, predictions
        for name in names:
            save_masks(predictions / name, [HALF] * 4)
            if protocol in ("fbms-j", "fbms-f", "youtube-objects"):
                save_masks(data / "Annotations" / name, [TRUTH] * 4)
        if protocol == "youtube-vos":
            youtube_vos_data(data)
        elif not data.exists():
            davis_data(data, protocol)
        return data, predictions

    return make


# One score per protocol for predictions that cover half of every object without false positives.
SCORES = {
    "davis2016": ("J-Mean", ("J", "mean"), 0.5),
    "davis2017-semi": ("J-Mean", ("J", "mean"), 0.5),
    "davis2017-unsup": ("J-Mean", ("J", "mean"), 0.5),
    "youtube-vos": ("J-Mean", ("J", "mean"), 0.5),
    "fbms-j": ("J-Mean", ("J", "mean"), 0.5),
    # Half of the object's 800 pixels are in the background cluster of 2000: P = (1600 / 2000 + 1) / 2.
    "fbms-f": ("P", ("P",), 0.9),
    "youtube-objects": ("J-Mean", ("J", "mean_over_classes"), 0.5),
    "saliency": ("MAE", ("mae",), 400 / 2400),
    # Correct at IoU 0.5 only, one of ten thresholds.
    "youtube-vis": ("AP", ("class_aware", "AP"), 0.1),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_prints_rule_and_table_and_writes_files(uvos, made, tmp_path, protocol):
    data, predictions = made(protocol)
    code, out, err = uvos("evaluate", protocol, "--predictions", predictions, "--dataset", data,
                          "--output", tmp_path / "scores", "--workers", "1")
    assert code == 0, err
    rule, header, *lines = out.splitlines()
    split = PROTOCOLS[protocol].split
    assert rule == f"{protocol}, {split}: {PROTOCOLS[protocol].rule}."
    column, path, value = SCORES[protocol]
    assert header.split()[0] == "Sequence" and column in header.split()
    assert any(line.startswith("all") for line in lines)
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["protocol"] == protocol and len(scores["sequences"]) == (1 if protocol == "youtube-vis" else 2)
    for key in path:
        scores = scores[key]
    assert scores == pytest.approx(value)
    assert f"{value:.4f}" in out
    # The last line lists all files written.
    folder, files = lines[-1].split(": ")
    assert folder == str(tmp_path / "scores")
    assert sorted(files.split(", ")) == sorted(path.name for path in (tmp_path / "scores").iterdir())
    assert {f"global_results-{split}.csv", f"per-sequence_results-{split}.csv", "scores.json"} <= set(files.split(", "))


def test_default_output_is_named_after_protocol_and_predictions(uvos, made, tmp_path):
    data, predictions = made("fbms-j")
    for other in ("run.7", "run.8"):  # separate folders
        predictions = predictions.rename(tmp_path / other)
        assert uvos("evaluate", "fbms-j", "--predictions", other, "--dataset", data, "--workers", "1")[0] == 0
    assert {path.name for path in (tmp_path / "uvos_output").iterdir()} == {"fbms-j-run.7", "fbms-j-run.8"}


def test_sequences_option_limits_evaluation(uvos, made, tmp_path):
    data, predictions = made("davis2016")
    for frame in (predictions / "boat").iterdir():
        frame.unlink()  # not evaluated
    code, _, err = uvos("evaluate", "davis2016", "--predictions", predictions, "--dataset", data, "--sequences",
                        "bear ,", "--output", tmp_path / "scores", "--workers", "1")
    assert code == 0, err
    assert list(json.loads((tmp_path / "scores" / "scores.json").read_text())["sequences"]) == ["bear"]


def refused(uvos, tmp_path, *arguments) -> tuple[str, str]:
    """Runs a command that must fail with a one-line error and write nothing; returns the error and stdout."""
    before = sorted(tmp_path.rglob("*"))
    code, out, err = uvos(*arguments)
    *progress, last = err.splitlines()
    assert code == 2 and last.startswith("Error: "), err
    assert all(re.match(r"[\w-]+: \d+(/\d+)? sequences? in", line) for line in progress) and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
    return last, out


def _void(predictions):
    save_masks(predictions / "bear", [TRUTH, TRUTH, HALF + rectangle(0, 5, 0, 5, number=255), TRUTH])


def _small(predictions):
    save_masks(predictions / "boat", [TRUTH[:20]] * 4)


def _gap(predictions):
    (predictions / "bear" / "00001.png").unlink()
    (predictions / "boat" / "00002.png").unlink()


@pytest.mark.parametrize("protocol", ["davis2016", "davis2017-semi", "fbms-j"])
@pytest.mark.parametrize(("spoil", "message"), [
    (_void, "bear 00002 contains 255"), (_small, "boat 0000.-0000. is 60x20 where the ground truth is 60x40"),
    (_gap, "frames are missing: bear 00001; boat 00002"),
])
def test_invalid_predictions_print_one_line_and_write_nothing(uvos, made, tmp_path, protocol, spoil, message):
    data, predictions = made(protocol)
    spoil(predictions)
    sentence, out = refused(uvos, tmp_path, "evaluate", protocol, "--predictions", predictions, "--dataset", data,
                            "--output", tmp_path / "scores", "--workers", "1")
    assert re.search(message, sentence)
    assert out == ""  # neither the rule nor a table


@pytest.mark.parametrize(("protocol", "changes", "message"), [
    ("davis2017", {}, "Unknown protocol 'davis2017'. Did you mean 'davis2017-semi'?.*youtube-vis"),
    ("davis2016", {"--sequences": "baer"}, "no sequence 'baer'. Did you mean 'bear'?"),
    ("davis2016", {"--split": "valid"}, "splits val.*Did you mean 'val'?"),
    ("davis2016", {"--predictions": "nowhere"}, "'nowhere' are not a folder"),
    ("davis2016", {"--dataset": "nowhere"}, "'nowhere' is not a folder"),
    ("davis2016", {"--workers": "0"}, "--workers"),
    ("youtube-vis", {"--sequences": "1"}, "Remove --sequences"),
    ("davis2016", {"--pack": "x.zip"}, "davis2016 has no evaluation server"),
    ("davis2017-semi", {"--pack": "x.tar"}, "name of a .zip file; got 'x.tar'"),
    ("davis2017-semi", {"--pack": "x.zip", "--sequences": "bear"}, "Leave out --sequences and --output"),
    ("davis2017-semi", {"--pack": "x.zip", "--output": "scores"}, "Leave out --sequences and --output"),
])
def test_invalid_options_print_one_line(uvos, made, tmp_path, protocol, changes, message):
    data, predictions = made(protocol if protocol in PROTOCOLS else "davis2016")
    options = {"--predictions": predictions, "--dataset": data, "--workers": "1"} | changes
    sentence, _ = refused(uvos, tmp_path, "evaluate", protocol, *(part for pair in options.items() for part in pair))
    assert re.search(message, sentence)


def test_predictions_and_dataset_are_required(uvos, tmp_path):
    assert "--predictions" in refused(uvos, tmp_path, "evaluate", "davis2016", "--dataset", tmp_path)[0]
    assert "--dataset" in refused(uvos, tmp_path, "evaluate", "davis2016", "--predictions", tmp_path)[0]


@pytest.mark.parametrize("output", ["taken", "taken/below"])
def test_output_that_is_a_file_is_rejected_before_scoring(uvos, made, tmp_path, monkeypatch, output):
    data, predictions = made("fbms-j")
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setattr("uvos_jax.evaluation.protocols.evaluate", lambda *_, **__: pytest.fail("it was scored"))
    sentence, _ = refused(uvos, tmp_path, "evaluate", "fbms-j", "--predictions", predictions, "--dataset", data,
                          "--output", output, "--workers", "1")
    assert "'taken' is a file" in sentence.replace(f"{tmp_path}/", "")
    assert (tmp_path / "taken").read_text() == "mine"


def test_unwritable_output_is_rejected_before_scoring(uvos, made, tmp_path, monkeypatch):
    data, predictions = made("fbms-j")
    # Root may write everywhere, so write access is denied by a patch.
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr("uvos_jax.evaluation.protocols.evaluate", lambda *_, **__: pytest.fail("it was scored"))
    sentence, _ = refused(uvos, tmp_path, "evaluate", "fbms-j", "--predictions", predictions, "--dataset", data,
                          "--output", "scores", "--workers", "1")
    assert "is not writable" in sentence


@pytest.mark.parametrize(("protocol", "above"), [("davis2017-semi", ""), ("davis2017-unsup", ""),
                                                 ("youtube-vos", "Annotations/")])
def test_pack_writes_submission_archive(uvos, made, tmp_path, protocol, above):
    data, predictions = made(protocol)
    code, out, err = uvos("evaluate", protocol, "--predictions", predictions, "--dataset", data, "--pack", "all.zip",
                          "--workers", "1")
    assert code == 0, err
    assert out == f"all.zip: 8 masks, {protocol} {PROTOCOLS[protocol].split}\n"
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        masks = [f"{above}{name}/{t:05d}.png" for name in ("bear", "boat") for t in range(4)]
        assert sorted(archive.namelist()) == masks
    assert not (tmp_path / "uvos_output").exists()


def test_rejected_pack_writes_nothing(uvos, made, tmp_path):
    data, predictions = made("davis2017-semi")
    save_masks(predictions / "boat", [TRUTH * 3] * 4)
    sentence, out = refused(uvos, tmp_path, "evaluate", "davis2017-semi", "--predictions", predictions, "--dataset",
                            data, "--pack", "all.zip", "--workers", "1")
    assert "boat 00000-00003 contains object id 3; the largest given id is 1" in sentence and out == ""


def test_two_workers_give_the_scores_of_one(uvos, made, tmp_path):
    data, predictions = made("youtube-objects")
    code, _, err = uvos("evaluate", "youtube-objects", "--predictions", predictions, "--dataset", data,
                        "--output", tmp_path / "scores", "--workers", "2")
    assert code == 0, err
    alone = evaluate("youtube-objects", predictions, data)
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["sequences"] == alone.sequences


def test_help_shows_an_example_and_every_protocol(uvos):
    code, out, _ = uvos("evaluate", "--help")
    text = " ".join(out.split())
    assert code == 0
    assert "Example: uvos evaluate davis2016 --predictions results --dataset DAVIS --output scores" in text
    for word in (*PROTOCOLS, "--split", "--sequences", "--pack", "--workers"):
        assert word in text, word


def test_os_errors_print_one_line(uvos, made, monkeypatch):
    data, predictions = made("davis2016")
    # Root may read everything, so the error is raised by a patch.
    listed = Path.iterdir

    def refuse(path):
        if path == predictions / "boat":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    code, _, err = uvos("evaluate", "davis2016", "--predictions", predictions, "--dataset", data, "--workers", "1")
    assert (code, err) == (2, f"Error: '{predictions / 'boat'}' cannot be used: Permission denied.\n")
    code, _, err = uvos("evaluate", "davis2016", "--predictions", predictions, "--dataset", data, "--output", "x" * 300)
    assert code == 2 and err.startswith("Error: ") and "too long" in err


def test_compare_prints_table_and_writes_figures(uvos, made, tmp_path):
    data, predictions = made("davis2016")
    save_masks(tmp_path / "better" / "bear", [TRUTH] * 4)
    save_masks(tmp_path / "better" / "boat", [HALF] * 4)
    code, out, _ = uvos("compare", predictions, tmp_path / "better", "--dataset", data, "--workers", "1")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["Sequence", "J&F", "run.7", "J&F", "better", "Difference"]
    assert [line[0] for line in lines[1:4]] == ["bear", "boat", "all"] and lines[2][-1] == "0.0000"
    names = {path.name for path in (tmp_path / "uvos_output" / "compare").iterdir()}
    assert names == {"comparison.csv", "comparison.json", "differences.png", "worst_frames.png"}
    code, _, err = uvos("compare", predictions, "--dataset", data)
    assert code == 2 and "two or more folders" in err
