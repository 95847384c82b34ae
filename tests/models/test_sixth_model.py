"""Adding a model takes one module, one registry row and one recipe; all other code is unchanged."""

import json

import jax
import numpy as np
import pytest

from tests.helpers.command_line import uvos
from tests.models.sixth_model import LumaNet
from uvos_jax.inference import Segmenter
from uvos_jax.inference.loading import random_variables
from uvos_jax.inference.profiling.benchmark import benchmark
from uvos_jax.models import SYSTEMS, System, build
from uvos_jax.training.config import load_config
from uvos_jax.training.loop import train
from uvos_jax.weights import from_torch
from uvos_jax.weights.parity import check, weights_of

CONFIG = __file__.replace("test_sixth_model", "sixth_model_config")
SIZE = (24, 32)
ROW = System(LumaNet, "LumaNet, an example", "unsupervised, one foreground", "frames")
MANIFEST = {"keys": {"stem.0.weight": [4, 3, 3, 3], "stem.1.weight": [4], "stem.1.bias": [4],
                     "stem.1.running_mean": [4], "stem.1.running_var": [4], "stem.1.num_batches_tracked": [],
                     "head.weight": [1, 4, 1, 1], "head.bias": [1]}}


@pytest.fixture(autouse=True)
def lumanet(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "lumanet", ROW)


def clip(length: int) -> np.ndarray:
    """Frames uint8 ``[t, h, w, 3]`` of a bright square moving over noise."""
    frames = np.random.default_rng(0).integers(0, 40, (length, *SIZE, 3), np.uint8)
    for t in range(length):
        frames[t, 8:16, 2 + 3 * t:10 + 3 * t] = 230
    return frames


def torch_forward(weights: dict, first: np.ndarray, frame: np.ndarray) -> dict[str, np.ndarray]:
    """Reference implementation of LumaNet in NumPy, NCHW."""
    def features(x):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        x = np.einsum("bchwij,ocij->bohw", windows, weights["stem.0.weight"])
        mean, var, scale, bias = (weights[f"stem.1.{name}"][None, :, None, None]
                                  for name in ("running_mean", "running_var", "weight", "bias"))
        return np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)

    difference = np.abs(features(frame) - features(first))
    logits = np.einsum("bchw,oc->bohw", difference, weights["head.weight"][:, :, 0, 0])
    return {"features": features(frame), "logits": logits + weights["head.bias"][None, :, None, None]}


def test_new_model_streams_like_contract_functions():
    model = build("lumanet")
    segmenter = Segmenter("lumanet", model, random_variables(model))
    labels = np.stack([labels for _, labels in segmenter.stream(iter(clip(4)))])
    assert labels.shape == (4, *SIZE) and set(np.unique(labels)) <= {0, 1}
    # Expected labels from the contract functions: encode, init_state, predict, to_native, threshold.
    features = [model.apply(segmenter.variables, {"frame": _network_input(model, frame)}, method="encode")
                for frame in clip(4)]
    state = model.init_state(features[0])
    expected = [model.to_native(model.apply(segmenter.variables, state, f, method="predict")[0], SIZE)
                for f in features]
    np.testing.assert_array_equal(labels, np.stack([np.asarray(score[0, ..., 0] > 0.5) for score in expected]))


def _network_input(model, frame):
    from uvos_jax.ops.preprocess import preprocess

    return preprocess(frame[None], model.frame_size(SIZE), model.preprocess)


def test_new_model_trains_and_its_checkpoint_segments(tmp_path):
    pytest.importorskip("tensorflow")
    train(load_config(CONFIG), tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
              if "loss" in json.loads(line)]
    assert len(losses) == 2 and np.isfinite(losses).all()
    code, out, _ = uvos("segment", _folder(tmp_path), "--weights", tmp_path / "run" / "last", "--output",
                        tmp_path / "out", "--no-overlay", "--quiet")
    assert code == 0 and len(list((tmp_path / "out" / "masks").glob("*.png"))) == 3, out


def _folder(tmp_path):
    import cv2

    folder = tmp_path / "clip"
    folder.mkdir()
    for t, frame in enumerate(clip(3)):
        cv2.imwrite(str(folder / f"{t:05d}.png"), frame)
    return folder


def test_new_model_converts_state_dict_and_passes_parity(tmp_path):
    weights = weights_of(MANIFEST)
    variables = from_torch("lumanet", weights)
    np.testing.assert_array_equal(variables["params"]["stem"]["conv"]["kernel"],
                                  weights["stem.0.weight"].transpose(2, 3, 1, 0))
    rng = np.random.default_rng(1)
    inputs = {name: rng.standard_normal((2, 3, 9, 11)).astype(np.float32) for name in ("first", "frame")}
    expected = torch_forward(weights, inputs["first"], inputs["frame"])
    np.savez(tmp_path / "lumanet.npz", **inputs, **expected, system="lumanet", variant="paper", tolerance=1e-5)
    (tmp_path / "lumanet_manifest.json").write_text(json.dumps(MANIFEST))
    results = check(tmp_path / "lumanet.npz")
    assert {result.name: result.ok for result in results} == {"features": True, "logits": True}
    np.savez(tmp_path / "lumanet.npz", **inputs, **expected | {"logits": expected["logits"] + 0.1}, system="lumanet",
             variant="paper", tolerance=1e-5)
    assert [result.name for result in check(tmp_path / "lumanet.npz") if not result.ok] == ["logits"]


@pytest.mark.slow
def test_new_model_is_benchmarked_and_listed():
    model = build("lumanet")
    result = benchmark(Segmenter("lumanet", model, random_variables(model)), SIZE, report=lambda what: None)
    h, w = model.frame_size(SIZE)
    assert result.flops >= 2 * h * w * 9 * 3 * 4 and result.network.median > 0
    code, out, _ = uvos("models")
    assert code == 0 and "LumaNet" in out and f"{sum(x.size for x in jax.tree.leaves(_params(model))):,}" in out


def _params(model):
    return random_variables(model)["params"]
