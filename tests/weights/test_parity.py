"""The parity check accepts tensors of the published code and rejects altered ones."""

import json
import shutil
import zlib

import numpy as np
import pytest

from tests.helpers.paths import GOLDEN
from uvos_jax.errors import UserError
from uvos_jax.models.adnet.model import ADNet
from uvos_jax.weights import parity

ADNET = "adnet_a.npz"


@pytest.fixture(scope="module")
def ran(request):
    """One run on the golden file: its results, the reported results and every tensor of our model."""
    folder = GOLDEN
    seen, reported = {}, []
    trace = ADNet.TRACES["adnet"]

    def run(*args):
        seen.update(trace.run(*args))
        return seen

    ADNet.TRACES["adnet"] = trace._replace(run=run)
    try:
        results = parity.check(folder / ADNET, report=reported.append)
    finally:
        ADNet.TRACES["adnet"] = trace
    return results, reported, seen


@pytest.fixture
def rerun(ran, monkeypatch, tmp_path, golden):
    """Function that checks a changed copy of the golden file against the tensors of ``ran``."""
    monkeypatch.setitem(ADNet.TRACES, "adnet", ADNet.TRACES["adnet"]._replace(run=lambda *_: ran[2]))
    monkeypatch.setattr(parity, "weights_of", lambda manifest: {})
    monkeypatch.setattr(parity, "from_torch", lambda name, weights, **options: {})
    with np.load(golden / ADNET) as file:
        tensors = dict(file)
    shutil.copy(golden / "adnet_manifest.json", tmp_path)

    def check(change, **options):
        change(tensors)
        np.savez(tmp_path / "changed.npz", **tensors)
        return {result.name: result for result in parity.check(tmp_path / "changed.npz", **options)}

    return check


def _refusal(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        parity.check(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_adnet_equals_published_code(ran, golden):
    results, reported, _ = ran
    assert results == reported
    assert len(results) == 14
    with np.load(golden / ADNET) as file:
        assert {result.name for result in results} == set(file) - {
            "ref",
            "cur",
            "system",
            "variant",
            "tolerance",
        }
    for result in results:
        assert result.ok and 0 <= result.error <= 2e-5 and not result.note, result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logit", "cur_layer4_c8", "P_intra_rows8", "logit_up"])
def test_one_wrong_value_fails_only_its_tensor(rerun, name):
    def tamper(tensors):
        place = np.unravel_index(tensors[name].size // 2, tensors[name].shape)
        tensors[name][place] += 1e-3 * np.abs(tensors[name]).max()

    results = rerun(tamper)
    assert [result.name for result in results.values() if not result.ok] == [name]
    assert 5e-4 < results[name].error < 2e-3


@pytest.mark.slow
def test_tolerance_is_read_from_file(rerun):
    def tighten(tensors):
        tensors["tolerance"] = np.float64(1e-12)

    assert not all(result.ok for result in rerun(tighten).values())

    def loosen(tensors):
        tensors["tolerance"] = np.float64(0.5)
        tensors["logit"] *= 1.2

    results = rerun(loosen)
    assert results["logit"].ok and results["logit"].error > 0.1 and results["logit"].tolerance == 0.5


@pytest.mark.slow
def test_unknown_misshapen_and_non_finite_tensors_fail(rerun):
    def change(tensors):
        tensors["cur_layer5_c8"] = np.zeros((1, 8, 2, 2), np.float32)
        tensors["cur_embed"] = tensors["cur_embed"][..., 1:]
        tensors["feat_intra"][0, 0, 0, 0] = np.nan

    results = rerun(change)
    assert {name for name, result in results.items() if not result.ok} == {
        "cur_layer5_c8",
        "cur_embed",
        "feat_intra",
    }
    assert "no tensor of that name" in results["cur_layer5_c8"].note
    assert "(1, 128, 13, 17)" in results["cur_embed"].note and "(1, 128, 13, 16)" in results["cur_embed"].note


@pytest.mark.slow
def test_name_suffixes_select_channels_pixels_and_rows(rerun, ran):
    made = np.asarray(ran[2]["cur_layer2"])
    rows = np.asarray(ran[2]["P_anchor"](221))

    def change(tensors):
        tensors["cur_layer2_s4"] = made[..., ::4, ::4]
        tensors["cur_layer2_c3"] = made[:, :3]
        tensors["cur_layer2"] = made
        tensors["cur_layer1_c3"] = made[:, 1:4]
        tensors["P_anchor_rows221"] = rows

    results = rerun(change)
    for name in ("cur_layer2_s4", "cur_layer2_c3", "cur_layer2", "P_anchor_rows221"):
        assert results[name].ok and results[name].error < 1e-6
    assert not results["cur_layer1_c3"].ok
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ref", "cur", "tolerance", "system", "variant"])
def test_file_without_required_entry_is_rejected(rerun, name):
    with pytest.raises(UserError, match=f"lacks.* {name}"):
        rerun(lambda tensors: tensors.pop(name))


def test_missing_or_foreign_files_are_rejected(tmp_path, golden):
    assert "no reference file" in _refusal(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no zip")
    assert "not a readable" in _refusal(tmp_path / "text.npz")
    shutil.copy(golden / ADNET, tmp_path)
    message = _refusal(tmp_path / ADNET)
    assert "adnet_manifest.json" in message and "--manifest" in message
    assert "system, variant, tolerance" in _refusal(golden / "adnet_abn_unit.npz")
    for text in ("", "[]", "{}", "{\"keys\": 3}"):
        (tmp_path / "adnet_manifest.json").write_text(text)
        assert "is not a manifest" in _refusal(tmp_path / ADNET)


def test_manifest_of_another_network_is_rejected(tmp_path, golden):
    manifest = {"keys": {"features.conv1.weight": [64, 3, 3, 3], "other.weight": [2]}}
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    message = _refusal(golden / ADNET, tmp_path / "m.json")
    assert "576 keys missing" in message and "1 key too many (other.weight)" in message


def test_unknown_variant_or_system_is_rejected(tmp_path, golden):
    (tmp_path / "m.json").write_text(json.dumps({"keys": {}}))
    assert "'offical'" in _refusal(golden / ADNET, tmp_path / "m.json", variant="offical")
    np.savez(tmp_path / "x.npz", system="nonet", variant="official", tolerance=1e-4, ref=np.zeros(1))
    assert "'nonet'" in _refusal(tmp_path / "x.npz", tmp_path / "m.json")


def _draws(key):
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def test_weights_follow_manifest_rule(golden):
    manifest = json.loads((golden / "adnet_manifest.json").read_text())
    names = ["features.conv1.weight", "features.bn1.weight", "features.bn1.bias", "features.bn1.running_mean",
             "features.bn1.running_var", "features.layer1.0.bn3.weight", "features.layer4.2.bn3.weight",
             "features.head.1.weight", "features.head.1.bias", "cls.3.weight"]
    weights = parity.weights_of(manifest | {"keys": {name: manifest["keys"][name] for name in names}})
    f32 = np.float32
    expected = {
        "features.conv1.weight": (_draws(names[0]).standard_normal((64, 3, 3, 3)) * np.sqrt(2 / 27)).astype(
            f32
        ),
        "features.bn1.weight": (1 + 0.05 * _draws(names[1]).standard_normal(64)).astype(f32),
        "features.bn1.bias": (0.05 * _draws(names[2]).standard_normal(64)).astype(f32),
        "features.bn1.running_mean": (0.05 * _draws(names[3]).standard_normal(64)).astype(f32),
        "features.bn1.running_var": (1 + 0.1 * _draws(names[4]).random(64)).astype(f32),
        "features.layer1.0.bn3.weight": (1 + 0.05 * _draws(names[5]).standard_normal(256)).astype(f32)
        * f32(0.2),
        "features.layer4.2.bn3.weight": (1 + 0.05 * _draws(names[6]).standard_normal(2048)).astype(f32)
        * f32(0.2),
        "features.head.1.weight": (
            _draws(names[7]).standard_normal((128, 512, 1, 1)) * np.sqrt(2 / 512)
        ).astype(f32)
        * f32(0.008),
        "features.head.1.bias": (0.05 * _draws(names[8]).standard_normal(128)).astype(f32),
        "cls.3.weight": (_draws(names[9]).standard_normal((1, 128, 1, 1)) * np.sqrt(2 / 128)).astype(f32),
    }
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert weights[name].dtype == f32
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def test_manifest_counters_aliases_and_scales():
    keys = {"a.num_batches_tracked": [], "a.gamma": [3], "a.weight": [2], "aa.weight": [2], "b.weight": [2],
            "l.weight": [4, 6]}
    weights = parity.weights_of(
        {"keys": keys, "scale": [["a\\.weight", 0.5], ["a.*", 3.0]], "alias": {"b.weight": "a.weight"}}
    )
    assert weights.keys() == keys.keys()
    assert weights["a.num_batches_tracked"] == 0 and weights["a.num_batches_tracked"].dtype == np.int64
    np.testing.assert_allclose(weights["a.gamma"], 0.3 * _draws("a.gamma").standard_normal(3), rtol=1e-6)
    np.testing.assert_allclose(
        weights["a.weight"], 1.5 * (1 + 0.05 * _draws("a.weight").standard_normal(2)), rtol=1e-6
    )
    # The expression must match the whole key, so only the second entry applies.
    np.testing.assert_allclose(
        weights["aa.weight"], 3 * (1 + 0.05 * _draws("aa.weight").standard_normal(2)), rtol=1e-6
    )
    np.testing.assert_array_equal(weights["b.weight"], weights["a.weight"])
    np.testing.assert_allclose(
        weights["l.weight"], _draws("l.weight").standard_normal((4, 6)) * np.sqrt(2 / 6), rtol=1e-6
    )


@pytest.mark.slow
def test_file_with_only_inputs_is_rejected(rerun):
    def change(tensors):
        for name in set(tensors) - {"ref", "cur", "system", "variant", "tolerance"}:
            del tensors[name]

    with pytest.raises(UserError, match="no tensor to compare"):
        rerun(change)


@pytest.mark.torch
@pytest.mark.slow
def test_check_of_torch_reference_at_another_size(torch, tmp_path, golden):
    from tests.helpers.torch_adnet import TorchADNet

    manifest = json.loads((golden / "adnet_manifest.json").read_text())
    network = TorchADNet().eval().load_published(parity.weights_of(manifest))
    with np.load(golden / ADNET) as file, torch.no_grad():
        logits, _ = network(torch.from_numpy(file["ref"]), torch.from_numpy(file["cur"]))
        published = file["logit"]
    assert (
        np.abs(logits.numpy() - published).max() <= 2e-5 * np.abs(published).max()
    )  # the PyTorch network is AD-Net

    rng = np.random.default_rng(0)
    ref, cur = ((40 * rng.standard_normal((2, 3, 81, 113))).astype(np.float32) for _ in range(2))
    with torch.no_grad():
        logits, seen = network(torch.from_numpy(ref), torch.from_numpy(cur))
        up = torch.nn.functional.interpolate(logits, (60, 99), mode="bilinear", align_corners=True)
    tensors = {
        "ref": ref,
        "cur": cur,
        "logit": logits,
        "logit_up": up,
        "P_anchor_rows8": seen["P_anchor"][:, :8],
        "P_intra_rows5": seen["P_intra"][:, :5],
        "ref_layer1_s4": seen["ref_layer1"][..., ::4, ::4],
        "ref_stem_c8": seen["ref_stem"][:, :8],
        "cur_aux": seen["cur_aux"],
    }
    tensors |= {
        name: seen[name]
        for name in ("cur_layer3", "cur_aspp", "ref_embed", "cur_embed", "feat_anchor", "feat_intra")
    }
    np.savez(tmp_path / "b.npz", system="adnet", variant="paper", tolerance=1e-4, **tensors)
    results = parity.check(tmp_path / "b.npz", golden / "adnet_manifest.json")
    assert len(results) == len(tensors) - 2
    for result in results:
        assert result.ok, result


@pytest.mark.slow
def test_full_attention_matrix_can_be_checked(rerun, ran):
    def change(tensors):
        tensors["P_intra"] = np.asarray(ran[2]["P_intra"](None))

    results = rerun(change)
    assert results["P_intra"].ok and results["P_intra"].error == 0


@pytest.mark.slow
def test_non_numeric_tolerance_is_rejected(rerun):
    with pytest.raises(UserError, match="not a number"):
        rerun(lambda tensors: tensors.update(tolerance=np.array("small")))


@pytest.mark.parametrize("change", [
    {"scale": [["(", 2.0]]}, {"scale": 3}, {"alias": {"a.weight": "b.weight"}, "keys": {"a.weight": [1]}},
    {"keys": {"a.weight": "abc"}}, {"keys": {"a.weight": [-1, 3]}},
])
def test_invalid_manifest_is_rejected(golden, tmp_path, change):
    (tmp_path / "m.json").write_text(json.dumps({"keys": {"a.bias": [2]}} | change))
    assert "has an invalid rule" in _refusal(golden / ADNET, tmp_path / "m.json")
