"""Fuzz: invalid JSON files, configuration files and overrides give one-line errors."""

import copy
import json
from functools import cache

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from tests.helpers import archives
from tests.helpers.fuzz import command, damaged, json_bytes, left_behind, not_a_sentence, restructured, survey
from tests.helpers.synthetic_store import rectangle, save_masks
from uvos_jax.errors import UserError

SIZE = (20, 30)
FRAMES = 3


def _rle(mask, compressed=True):
    """One mask as RLE in the format of results files."""
    if not compressed:
        changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0))
        return {"size": list(mask.shape), "counts": np.diff([0, *changes.tolist(), mask.size]).tolist()}
    made = mask_utils.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": made["counts"].decode()}


@cache
def _tracks():
    """Ground truth and results of YouTube-VIS: two videos, three tracks, all three mask encodings."""
    first, second = rectangle(2, 12, 3, 13, SIZE), rectangle(5, 18, 10, 28, SIZE)
    videos = [{"id": k, "height": SIZE[0], "width": SIZE[1], "length": FRAMES,
               "file_names": [f"v{k}/{t:05d}.jpg" for t in range(FRAMES)]} for k in (1, 2)]
    polygon = [[3.0, 2.0, 13.0, 2.0, 13.0, 12.0, 3.0, 12.0]]
    annotations = [
        {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "areas": [100, None, 120],
         "segmentations": [_rle(first), None, _rle(first, False)]},
        {"id": 2, "video_id": 1, "category_id": 2, "iscrowd": 1, "segmentations": [polygon, polygon, None]},
        {"id": 3, "video_id": 2, "category_id": 2, "segmentations": [_rle(second, False), _rle(second), polygon]}]
    results = [{"video_id": 1, "category_id": 1, "score": 0.9, "segmentations": [_rle(first), _rle(second), None]},
               {"video_id": 2, "category_id": 2, "score": 0.5, "scores": [0.5, 0.25, 1],
                "segmentations": [None, _rle(second, False), _rle(first)]}]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "ape"}]
    return {"videos": videos, "categories": categories, "annotations": annotations}, results


def _tracks_case(seed, folder):
    from uvos_jax.evaluation.youtube_vis import evaluate_frames, evaluate_tracks, read_json

    rng = np.random.default_rng([1, seed])
    written = [json.dumps(part).encode() for part in _tracks()]
    for part in {0: (0,), 1: (1,), 2: (0, 1)}[seed % 3]:
        written[part] = json_bytes(restructured(_tracks()[part], rng), rng)
    truth, results = folder / "instances.json", folder / "results.json"
    truth.write_bytes(written[0])
    results.write_bytes(written[1])
    if seed % 4:
        evaluate = evaluate_tracks if seed % 2 else evaluate_frames
        scores = evaluate(read_json(truth), read_json(results), class_agnostic=bool(rng.integers(2)))
        assert -1 <= scores["AP"] <= 1
        return
    try:
        command("evaluate", "youtube-vis", "--predictions", results, "--dataset", truth, "--output", folder / "scores")
    except UserError:
        assert left_behind(folder, truth.name, results.name) == []
        raise
    assert left_behind(folder, truth.name, results.name, "scores") == []
    assert json.loads((folder / "scores" / "scores.json").read_text())


def _listing_case(seed, folder):
    """Indexing and mask reading of ``uvos convert-data youtube_vis``."""
    from uvos_jax.data.datasets.youtube_vis import index_youtube_vis

    rng = np.random.default_rng([2, seed])
    archives.youtube_vis(folder)
    path = folder / "train.json"
    path.write_bytes(json_bytes(restructured(json.loads(path.read_text()), rng), rng))
    listing = index_youtube_vis(folder)
    for video in listing.splits.get("train", ()):
        for frame in video.frames:
            if frame.labels is not None:
                assert video.read(frame.labels).dtype == np.uint8


def _meta_case(seed, folder):
    """``meta.json`` of YouTube-VOS, of the split or of the training split (seen categories)."""
    from uvos_jax.evaluation.protocols import evaluate

    rng = np.random.default_rng([3, seed])
    names = [f"{5 * t:05d}" for t in range(FRAMES)]
    masks = [rectangle(2, 12, 3, 13, SIZE, 1) + rectangle(13, 19, 15, 28, SIZE, 2) for _ in names]
    save_masks(folder / "data/valid/Annotations/v", masks, names)
    save_masks(folder / "results/v", masks, names)
    meta = {"videos": {"v": {"objects": {str(k): {"category": f"kind{k}", "frames": names} for k in (1, 2)}}}}
    (folder / "data/train").mkdir()
    for part in ("valid", "train"):
        (folder / f"data/{part}/meta.json").write_text(json.dumps(meta))
    path = folder / f"data/{'train' if seed % 4 == 0 else 'valid'}/meta.json"
    path.write_bytes(json_bytes(restructured(meta, rng), rng))
    if seed % 5:
        assert 0 <= evaluate("youtube-vos", folder / "results", folder / "data").scores["G"] <= 1
    else:
        command("evaluate", "youtube-vos", "--predictions", folder / "results", "--dataset", folder / "data",
                "--workers", 1, "--output", folder / "scores")
        assert left_behind(folder, "data", "results", "scores") == []


@cache
def _converted():
    """Contents of the two JSON files of a converted dataset, which are read before its records."""
    row = {"name": "v", "length": 2, "height": 24, "width": 32, "objects": [[1], [1, 2]], "labeled": [0, 1],
           "start": 0}
    return ({"fileFormat": "array_record", "name": "uvos_x", "version": "1.0.0"},
            {"flow": False, "splits": {"train": [row, row | {"name": "w", "start": 2}]}})


def _store_case(seed, folder):
    from uvos_jax.data.examples.pipeline import from_config

    rng = np.random.default_rng([4, seed])
    version = folder / "uvos_x" / "1.0.0"
    version.mkdir(parents=True)
    for part, (name, content) in enumerate(zip(("dataset_info.json", "metadata.json"), _converted(), strict=True)):
        changed = seed % 3 == part or seed % 3 == 2
        (version / name).write_bytes(json_bytes(restructured(content, rng), rng) if changed
                                     else json.dumps(content).encode())
    from_config({"mixture": [{"name": "x"}], "size": [16, 16], "batch_size": 2, "seed": 0}, folder)


MANIFEST = {"keys": {"features.conv1.weight": [8, 3, 3, 3], "features.bn1.weight": [8], "features.bn1.bias": [8],
                     "features.bn1.running_var": [8], "features.bn1.num_batches_tracked": []},
            "scale": [["features\\.bn1\\..*", 0.5], [".*conv.*", 2]], "alias": {"features.bn1.bias": "features.x"}}


def _parity_case(seed, folder):
    rng = np.random.default_rng([5, seed])
    reference, manifest = folder / "adnet_x.npz", folder / "adnet_manifest.json"
    np.savez(reference, system="adnet", variant="official", tolerance=1e-4, ref=np.zeros((1, 3, 9, 9), np.float32),
             cur=np.zeros((1, 3, 9, 9), np.float32), logit=np.zeros((1, 1, 2, 2), np.float32))
    manifest.write_text(json.dumps(MANIFEST))
    if seed % 3:
        manifest.write_bytes(json_bytes(restructured(MANIFEST, rng), rng))
    else:
        reference.write_bytes(damaged(reference.read_bytes(), rng, b"PK\x03\x04"))
    command("parity", reference, *(("--manifest", manifest) if seed % 2 else ()))


CONFIG = {
    "model": {"name": "adnet", "short_side": 65, "depths": [1, 1, 1, 1], "deep_stem": True, "dropout": 0.2},
    "batch_size": 2, "seed": 3, "ema_decay": 0.9, "accumulate": 1, "launcher": "jit", "batch_norm": "sync",
    "data": {"mixture": [{"name": "synthetic", "count": 2, "length": 3, "size": [32, 40], "share": 2},
                         {"name": "synthetic", "count": 1, "seed": 5, "recipe": {"name": "pair", "first": False}}],
             "recipe": {"name": "pair"}, "size": [33, 49], "objects": "foreground", "flow": False, "paste": 0.5,
             "geometry": {"kind": "random_crop", "scale": [1.0, 1.5], "flip": 0.5, "fill": [1, 2, 3]},
             "color": {"brightness": [0.5, 1.5], "independent": True}},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4,
                  "groups": [{"match": "backbone/.*", "lr": 0.1}]},
    "schedule": {"name": "poly", "lr": 0.005, "power": 0.9, "steps": 100},
    "phases": [{"name": "a", "steps": 5}, {"name": "b", "steps": 2, "transfer": [{"from": "a(.)", "to": "b\\1"}]}],
    "init": {"backbone": None}, "validate": {"every": 2, "size": 65, "synthetic": {"count": 1, "length": 3}},
}
# Values as typed by users, mangled by shells, or random.
VALUES = ("", "None", "True", "1", "-1", "0x" + "f" * 5000, "9" * 5000, "1e400", "nan", "1e-400", "1j", "'a",
          "(", "[" * 300, "-" * 9000 + "1",
          "{[]: 1}", "{1, 2}", "{1: {2: [3]}}", "b'x'", "...", "f'{x}'", "lambda: 1", "__import__('os')", "'\\d'",
          "1 if 2 else 3", "1_0", "[1, 2", "{'a': nan}", "\0", "é", "\ud800", " 1", "1\n2", "x" * 5000, "'x' * 9",
          "[" + "1, " * 2000 + "]", "10**10", "2147483648", "0.1", "[0.1, 'a', None]", "{'name': 'adnet'}")


def _config_case(seed, folder):
    from uvos_jax.data.examples.pipeline import from_config
    from uvos_jax.models import build, hyper_parameters
    from uvos_jax.training.config import load_config
    from uvos_jax.training.optimizers import make_optimizer, make_schedule
    from uvos_jax.training.phases import phases

    rng = np.random.default_rng([6, seed])
    values, overrides = copy.deepcopy(CONFIG), []
    if seed % 2:
        values = restructured(values, rng)
    elif seed % 8:
        overrides = [_override(rng) for _ in range(int(rng.integers(1, 3)))]
    source = f"from math import inf, nan\n\n\ndef get_config():\n    return {values!r}\n".encode("utf-8", "replace")
    if seed % 8 == 0:
        source = damaged(source, rng, b"def get_config(x): return get_config")
    path = folder / "mine.py"
    path.write_bytes(source)
    config = load_config(str(path), overrides)
    for phase in phases(config):
        model = build(**phase.model)
        rate = make_schedule(phase.schedule, phase.stop - phase.start)
        make_optimizer(phase.optimizer, rate, {"backbone": {"conv": {"kernel": np.zeros((1, 2))}}})
        assert hyper_parameters(model)["short_side"] > 0
        from_config({"batch_size": config["batch_size"], "seed": config["seed"]} | phase.data)


def _override(rng):
    inside, keys = CONFIG, []
    while isinstance(inside, dict | list) and inside and (not keys or rng.random() < 0.75):
        places = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        keys.append(places[int(rng.integers(len(places)))])
        inside = inside[keys[-1]]
    name = ".".join(map(str, keys))
    if rng.random() < 0.15:
        name = damaged(name.encode(), rng, b"..0.=").decode("utf-8", "replace")
    return f"{name}={VALUES[int(rng.integers(len(VALUES)))]}"


@pytest.mark.slow
@pytest.mark.parametrize(("check", "count", "some_taken"), [
    (_tracks_case, 120, True), (_listing_case, 60, True), (_meta_case, 60, True), (_store_case, 40, True),
    (_parity_case, 60, False), (_config_case, 200, True)], ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_text_files_load_or_give_one_line_errors(check, count, some_taken):
    result = survey(check, count)
    assert result.defects == []
    # The damage is strong enough to cause errors, but not in every case.
    assert result.refused > count // 4 and (result.taken > 0) == some_taken, result[:2]


# Regression tests. Each case was once a traceback, a hang or out of memory, found by the surveys above or in review.

DEEP = "[" * 100_000


def _refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert not_a_sentence(caught.value) == ""
    return str(caught.value)


@pytest.mark.parametrize("text", [DEEP, '{"videos": ' + DEEP, "\udcff", '{"videos": {"v": {"objects": {"1": 3}}}}'])
def test_malformed_meta_json_is_an_error(tmp_path, text):
    from uvos_jax.data.datasets.layouts import youtube_vos
    from uvos_jax.evaluation.youtube_vis import read_json

    path = tmp_path / "valid" / "meta.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    message = _refusal(youtube_vos, tmp_path, "valid")
    assert "is not a meta.json of YouTube-VOS" in message and len(message) < 300 + len(str(path))
    if "objects" not in text:
        assert "is not JSON" in _refusal(read_json, path)


@pytest.mark.parametrize("results", ["3", "0.5", "true", "null", '"text"', "{}"])
def test_results_must_be_a_list(tmp_path, results):
    from uvos_jax.evaluation.protocols import evaluate

    truth, path = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(_tracks()[0]))
    path.write_text(results)
    assert "must be a JSON list" in _refusal(evaluate, "youtube-vis", path, truth)


def test_huge_video_length_is_an_error():
    from uvos_jax.evaluation.youtube_vis import evaluate_frames, evaluate_tracks

    truth, results = copy.deepcopy(_tracks())
    truth["videos"][0]["length"] = 10**15
    for evaluate in (evaluate_tracks, evaluate_frames):
        assert f"3 segmentations, but video 1 has {10**15} frames" in _refusal(evaluate, truth, results)


@pytest.mark.parametrize("side", [16_385, 2**28, 10**12])
def test_huge_video_size_is_an_error(tmp_path, side):
    """Polygons are rasterized at the declared size, whether or not such a frame exists."""
    from uvos_jax.data.datasets.youtube_vis import index_youtube_vis
    from uvos_jax.evaluation.youtube_vis import evaluate_tracks

    truth, results = copy.deepcopy(_tracks())
    truth["videos"][0] |= {"height": 1, "width": side}
    truth["annotations"][0]["segmentations"][0] = [[0, 0, side, 0, side, 1]]
    assert "sizes in 1..16384" in _refusal(evaluate_tracks, truth, results)
    (tmp_path / "train.json").write_text(json.dumps(truth))
    assert str(side) in _refusal(index_youtube_vis, tmp_path)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "1" * 5000, [], None])
def test_invalid_video_size_is_an_error(tmp_path, value):
    from uvos_jax.data.datasets.youtube_vis import index_youtube_vis

    truth = copy.deepcopy(_tracks()[0])
    truth["videos"][0]["height"] = value
    (tmp_path / "train.json").write_text(json.dumps(truth))
    assert "is not the annotation file" in _refusal(index_youtube_vis, tmp_path)


@pytest.mark.parametrize("segmentation", [
    [[0, 0, 1e9, 0, 1e9, 1e9]], [[0, 0, float("nan"), 0, 9, 9]], [["a"] * 6], [5], "text", 7,
    {"size": [20, 30], "counts": "PPPPPPPPPPPPPPPPPPPPPPPPPPP"}, {"size": [20, 30], "counts": "~~~~~~~~~"},
    {"size": [20, 30], "counts": [2**32 + 600]}, {"size": [20, 30], "counts": [-5, 605]}, {"size": 3, "counts": []}])
def test_invalid_masks_are_errors_before_pycocotools(segmentation):
    from uvos_jax.data.datasets.youtube_vis import Segments, read_segments

    assert "here, object 1: its mask" in _refusal(read_segments, Segments("here", SIZE, ((1, segmentation),)))


@pytest.mark.parametrize(("where", "name"), [("train.json", "1" * 5000), ("train.json", "a\0b")])
def test_impossible_file_names_count_as_missing_images(tmp_path, where, name):
    from uvos_jax.data.datasets.layouts import images_by_stem
    from uvos_jax.data.datasets.youtube_vis import index_youtube_vis

    archives.youtube_vis(tmp_path)
    content = json.loads((tmp_path / where).read_text())
    content["videos"][0]["file_names"][1] = f"0065b171f9/{name}.jpg"
    (tmp_path / where).write_text(json.dumps(content))
    assert any("has no image" in fault for fault in index_youtube_vis(tmp_path).faults)
    assert images_by_stem(tmp_path / name) == {}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"def get_config():\n    return {CONFIG!r}\n")
    return str(path)


@pytest.mark.parametrize("value", ["{[]: 1}", "0x" + "f" * 5000, "-" * 50_000 + "1", "[" * 50_000, "1" + "0" * 400])
@pytest.mark.parametrize("key", ["batch_size", "schedule.lr", "data.size", "model", "ema_decay"])
def test_invalid_override_values_are_errors(config_file, key, value):
    from uvos_jax.training.config import load_config

    assert key.rpartition(".")[2] in _refusal(load_config, config_file, [f"{key}={value}"])


@pytest.mark.filterwarnings("error")
def test_backslashes_in_regular_expressions_do_not_warn(config_file):
    r"""Python warns about ``\d`` in plain strings; an override with it must not."""
    from uvos_jax.training.config import load_config

    config = load_config(config_file, [r"phases.1.transfer=[{'from': 'a\d', 'to': 'b'}]"])
    assert config["phases"][1]["transfer"][0]["from"] == r"a\d"


def test_configuration_file_must_be_python(tmp_path):
    from uvos_jax.training.config import load_config

    (tmp_path / "mine.yaml").write_text("batch_size: 3\n")
    assert "ends in .py" in _refusal(load_config, str(tmp_path / "mine.yaml"))


def test_recursive_configuration_is_an_error(tmp_path):
    from uvos_jax.training.config import load_config

    (tmp_path / "mine.py").write_text("def get_config():\n    a = {}\n    a['model'] = a\n    return a\n")
    assert "RecursionError" in _refusal(load_config, str(tmp_path / "mine.py"))


def test_too_many_synthetic_frames_are_an_error():
    from uvos_jax.data.examples.pipeline import from_config

    synthetic = {"name": "synthetic", "count": 1_000_000, "length": 10_000}
    data = {"mixture": [synthetic], "size": [32, 32], "batch_size": 1, "seed": 0}
    assert "1000000 frames" in _refusal(from_config, data)


@pytest.mark.parametrize("keys", [{"a.weight": [10**6, 10**7]}, {"a.weight": [10**400]},
                                  {"a.bias": [2], "b": [-(10**12)]}])
def test_parity_manifest_larger_than_memory_is_an_error(keys):
    from uvos_jax.weights.parity import weights_of

    with pytest.raises((ValueError, OverflowError), match="weights in total|too large"):
        weights_of({"keys": keys})


def test_invalid_command_line_values_are_errors():
    from uvos_jax.cli.options import parse_hyper_parameters, parse_size
    from uvos_jax.models import build

    for size in ("9" * 5000 + "x48", "48x10000000"):
        assert "--size must be" in _refusal(parse_size, size)
    assert parse_size("99999x16") == (99999, 16)
    assert "depths" in _refusal(lambda: build("adnet", **parse_hyper_parameters(["depths=" + "[" * 100_000])))
