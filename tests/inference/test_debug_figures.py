"""Debug figures of DPA (``--debug``) show the features that the network computes."""

import cv2
import jax
import numpy as np
import pytest

from tests.helpers.small_adnet import clip
from uvos_jax import UserError
from uvos_jax.inference import Segmenter
from uvos_jax.inference.debug_figures import check_figures, write_figures
from uvos_jax.inference.debug_figures.dpa import _features
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.inference.loading import random_variables
from uvos_jax.models import build
from uvos_jax.video import open_source

SMALL = {"width": 2, "embedding": 8, "decoder": 4, "references": 2, "short_side": 64}


def _segmenter(**fields):
    model = build("dpa", **SMALL | fields)
    return Segmenter("dpa", model, random_variables(model))


@pytest.mark.slow
def test_features_figure_shows_four_frames_of_both_streams(tmp_path):
    segmenter = _segmenter()
    source = open_source(clip(6, (64, 96)))
    segment_to_folder(segmenter, source, tmp_path / "out")
    (path,) = write_figures(segmenter, source, tmp_path / "out", 6)
    assert path == tmp_path / "out" / "debug" / "features.png"
    # Rows: four frames, two streams each. Columns: the input and five feature maps.
    cells = [cell for row in np.array_split(cv2.imread(str(path)), 8) for cell in np.array_split(row, 6, axis=1)]
    assert all(cell.std() > 5 for cell in cells)


@pytest.mark.slow
def test_appearance_stream_alone_is_drawn_without_flow(tmp_path):
    segmenter = _segmenter(streams="appearance")
    source = open_source(clip(1, (64, 96)))
    segment_to_folder(segmenter, source, tmp_path / "out")
    (path,) = write_figures(segmenter, source, tmp_path / "out", 1)
    assert cv2.imread(str(path)).std() > 5


def test_features_depend_on_references_and_other_stream():
    segmenter = _segmenter()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 64, 96, 3), np.uint8)
    flows = rng.normal(size=(3, 64, 96, 2)).astype(np.float32)
    shown, maps = _features(segmenter.model, segmenter.variables, images, flows)
    assert shown.shape == (64, 96, 3)
    names = ("block4", "ima4", "block5", "ima5", "ifa")
    assert set(maps) == {f"{stream}_{name}" for stream in ("appearance", "motion") for name in names}
    assert maps["motion_ima4"].shape == (8, 12) and maps["motion_ifa"].shape == (4, 6)

    def changed(images, flows):
        other = _features(segmenter.model, segmenter.variables, images, flows)[1]
        return {name for name in maps if not np.allclose(maps[name], other[name], atol=1e-6)}

    # References affect a frame through IFA only; IMA passes appearance references on to the motion stream.
    by_references = changed(np.concatenate([images[:1], images[:0:-1] // 2]), flows)
    assert "appearance_ifa" in by_references and by_references <= {"appearance_ifa", "motion_ifa"}
    # Flow affects the appearance stream through IMA only, so its block 4 is unchanged.
    moved = changed(images, np.concatenate([-flows[:1], flows[1:]]))
    assert "appearance_block4" not in moved
    assert {"motion_block4", "motion_ima4", "appearance_ima4", "appearance_ima5"} <= moved
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), maps))


def test_debug_is_rejected_without_ima_and_ifa_or_second_pass():
    with pytest.raises(UserError, match="this model lacks"):
        check_figures(_segmenter(streams="appearance", ifa=False), open_source(clip(1)))
    with pytest.raises(UserError, match="reads the video twice"):
        check_figures(_segmenter(), open_source(iter(clip(1))))
