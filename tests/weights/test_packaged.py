"""The weights shipped with the package and the packing of such files."""

import json
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

import uvos_jax
from tests.helpers.small_adnet import SMALL
from uvos_jax import UserError
from uvos_jax.inference.loading import random_variables
from uvos_jax.models import build
from uvos_jax.weights import checkpoints, packaged

ASSETS = Path(uvos_jax.__file__).parent / "assets"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoint of a small network with variances beyond the range of float16."""
    model = build("adnet", variant="official", **SMALL)
    variables = random_variables(model)
    variables["batch_stats"]["backbone"]["bn1"]["var"] += np.float32(123_457)
    directory = tmp_path_factory.mktemp("checkpoint") / "small"
    checkpoints.save(directory, "adnet", model, variables, "random")
    return directory, model, variables


@pytest.fixture
def small_file(checkpoint, tmp_path, monkeypatch):
    """Packed file of the small network, installed in place of the packaged weights."""
    file = tmp_path / "default.safetensors"
    packaged.pack(checkpoint[0], file, origin="drawn at random", license="none", scores={"nothing": {"J": 0.25}})
    monkeypatch.setattr(packaged, "ASSETS", tmp_path)
    return file


@pytest.mark.parametrize(("weights", "learned", "license"), [
    ("default", "DAVIS-2016", "CC BY-NC 4.0"), ("synthetic", "generated clips", "Apache-2.0")])
def test_packaged_file_is_below_10_mb_and_describes_itself(weights, learned, license):
    assert (ASSETS / f"{weights}.safetensors").stat().st_size < 10_000_000
    name, model, variables = packaged.load_packaged(weights)
    about = packaged.about(weights)
    assert (name, model.variant) == (about["model"], about["variant"])
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    assert about["origin"].startswith(learned) and "uvos train" in about["origin"]
    assert about["license"].startswith(license)
    assert all(0 < value < 1 for scores in about["scores"].values() for value in scores.values())


def test_license_names_every_packaged_file():
    text = (ASSETS / "LICENSE").read_text()
    assert "CC BY-NC 4.0" in text and "Apache License 2.0" in text and "DAVIS-2016" in text
    files = {file.name for file in ASSETS.iterdir()} - {"LICENSE"}
    assert files == {f"{name}.safetensors" for name in packaged.packaged_names()}
    assert all(name in text for name in files)


def test_weights_are_recognized_by_digest(small_file):
    digest = packaged.about()["sha256"]
    assert packaged.recognized(digest) == "default" and packaged.recognized("0" * 64) is None
    small_file.write_bytes(small_file.read_bytes()[:100])  # a damaged package must not fail users with own weights
    assert packaged.recognized(digest) is None


def test_header_is_readable_without_this_library():
    # Format: 8 bytes of length, JSON, then the arrays.
    data = (ASSETS / "default.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    about = json.loads(json.loads(data[8:8 + length])["__metadata__"]["uvos"])
    about["license"] = about.pop("licence")  # its key in version 0.1, which packed these weights
    assert about == packaged.about() and "CC BY-NC 4.0" in about["license"]


def test_packing_rounds_only_kernels(checkpoint, small_file):
    _, model, variables = checkpoint
    name, loaded, read = packaged.load_packaged()
    assert name == "adnet" and loaded == model
    assert packaged.about()["scores"] == {"nothing": {"J": 0.25}}
    pairs = zip(jax.tree_util.tree_leaves_with_path(variables), jax.tree.leaves(read), strict=True)
    for (path, before), after in pairs:
        # float16 has 11 significant bits; below 2^-14 its spacing is 2^-24.
        error = 2.0**-11 * np.abs(before) + 2.0**-25 if before.ndim > 1 else 0
        assert after.dtype == np.float32 and (np.abs(after - before) <= error).all(), path
    # Packing is deterministic and leaves no other file.
    content = small_file.read_bytes()
    packaged.pack(checkpoint[0], small_file, origin="drawn at random", license="none", scores={"nothing": {"J": 0.25}})
    assert small_file.read_bytes() == content and [p.name for p in small_file.parent.iterdir()] == [small_file.name]


def test_only_non_structural_fields_can_be_overridden(small_file):
    _, model, variables = packaged.load_packaged(variant="paper", short_side=49)
    assert model.variant == "paper" and model.frame_size((48, 72)) == (49, 73)
    assert jax.tree.structure(variables) == jax.tree.structure(packaged.load_packaged()[2])
    with pytest.raises(UserError, match="The packaged weights were made with width=8, not 16"):
        packaged.load_packaged(width=16)
    with pytest.raises(UserError, match="Unknown key 'widht'"):
        packaged.load_packaged(widht=8)


def test_weights_of_other_shapes_are_rejected(small_file):
    data = small_file.read_bytes()
    assert data.count(b'\\"hidden\\": 16') == 1
    small_file.write_bytes(data.replace(b'\\"hidden\\": 16', b'\\"hidden\\": 24'))
    with pytest.raises(UserError, match="damaged. Reinstall"):
        packaged.load_packaged()


def test_weights_beyond_float16_range_are_not_packed(checkpoint, tmp_path):
    _, model, variables = checkpoint
    large = jax.tree.map(np.copy, variables)
    large["params"]["embed"]["kernel"][0] = 1e5
    checkpoints.save(tmp_path / "large", "adnet", model, large, "random")
    with pytest.raises(ValueError, match="beyond float16"), np.errstate(over="ignore"):
        packaged.pack(tmp_path / "large", tmp_path / "x.safetensors", origin="", license="", scores={})
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1000],
    lambda data: data[:4],
    lambda data: b"",
    lambda data: data[:-20_001] + bytes([data[-20_001] ^ 1]) + data[-20_000:],  # one bit of a weight
    lambda data: data.replace(b'"uvos"', b'"sovu"', 1),
    lambda data: data.replace(b'\\"origin\\"', b'\\"nigiro\\"', 1),  # a header without one of its keys
    lambda data: None,
])
def test_damaged_file_raises_one_line_error(small_file, damage):
    data = damage(small_file.read_bytes())
    small_file.unlink()
    if data is not None:
        small_file.write_bytes(data)
    with pytest.raises(UserError, match=r"^The packaged weights are missing or damaged.*\.$"):
        packaged.load_packaged()
