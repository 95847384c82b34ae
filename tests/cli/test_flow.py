"""``uvos flow`` and ``uvos segment --flow``."""

import json
import os

import cv2
import numpy as np
import pytest

from tests.helpers.command_line import uvos
from tests.helpers.flow_model import ROW, SIZE, levels
from tests.helpers.recurrent_model import save_frames
from uvos_jax.models import SYSTEMS
from uvos_jax.video.flow_io import flow_picture, read_flow, write_flow

LENGTH = 5


@pytest.fixture(autouse=True)
def _chdir_to_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _registered_models(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "flow_model", ROW)


def _clip(folder, length=LENGTH, size=(96, 128)):
    """Writes a clip of a texture that moves three pixels to the right per frame."""
    texture = cv2.resize(np.random.default_rng(0).integers(0, 256, (24, 64, 3), np.uint8), (4 * size[1], size[0]),
                         interpolation=cv2.INTER_CUBIC)
    return save_frames(folder, np.stack([texture[:, 2 * size[1] - 3 * i:3 * size[1] - 3 * i] for i in range(length)]))


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _motion(folder):
    return [np.median(read_flow(folder / f"{i:05d}.flo")[..., 0]) for i in range(LENGTH)]


def test_flow_writes_one_file_per_frame_at_frame_size(tmp_path):
    code, out, err = uvos("flow", _clip(tmp_path / "clip"), "--output", "flow")
    assert code == 0, err
    assert _names(tmp_path / "flow") == [*(f"{i:05d}.flo" for i in range(LENGTH)), "flow.json"]
    assert read_flow(tmp_path / "flow/00000.flo").shape == (96, 128, 2)
    np.testing.assert_allclose(_motion(tmp_path / "flow"), [3, 3, 3, 3, -3], atol=0.2)
    about = json.loads((tmp_path / "flow/flow.json").read_text())
    assert about["finished"] and about["frames"] == LENGTH and "DIS" in about["method"]
    assert "flow: 5 files" in out and "The flow of the last frame points to the previous frame" in err

    code, _, err = uvos("flow", tmp_path / "clip", "--output", "back", "--backward", "--flow-cache", "cache")
    assert code == 0 and "The first frame has zero flow" in err
    np.testing.assert_allclose(_motion(tmp_path / "back"), [0, -3, -3, -3, -3], atol=0.2)
    assert len(_names(tmp_path / "cache")) == 4


@pytest.mark.slow
def test_large_frames_get_flow_at_native_size(tmp_path):
    assert uvos("flow", _clip(tmp_path / "clip", size=(720, 960)), "--output", "flow")[0] == 0
    assert read_flow(tmp_path / "flow/00000.flo").shape == (720, 960, 2)
    np.testing.assert_allclose(_motion(tmp_path / "flow"), [3, 3, 3, 3, -3], atol=0.2)


def test_all_formats_are_equivalent_and_replace_each_other(tmp_path):
    clip, flow = _clip(tmp_path / "clip"), tmp_path / "flow"
    # The cache makes all formats encode the same flow, since OpenCV's flow is not bit-reproducible.
    command = ("flow", clip, "--output", "flow", "--every", "2", "--flow-cache", tmp_path / "kept")
    assert uvos(*command, "--quiet") == (0, "", "")
    first = read_flow(flow / "00002.flo")
    assert uvos(*command, "--format", "png16", "--overwrite")[0] == 0
    assert _names(flow) == ["00000.png", "00002.png", "00004.png", "flow.json"]
    assert np.abs(read_flow(flow / "00002.png") - first).max() <= 1 / 128
    assert uvos(*command, "--format", "picture", "--overwrite")[0] == 0
    np.testing.assert_array_equal(cv2.imread(str(flow / "00002.png"))[..., ::-1], flow_picture(first))


def test_precomputed_flow_gives_the_same_masks(tmp_path):
    clip = _clip(tmp_path / "clip", size=SIZE)
    common = ["--model", "flow_model", "--weights", "random", "--set=component=1", "--soft", "--no-overlay"]
    assert uvos("flow", clip, "--output", "flow")[0] == 0
    for output, options in (("by dis", []), ("by files", ["--flow", "flow"])):
        code, _, err = uvos("segment", clip, "--output", output, *common, *options)
        assert code == 0, err
    masks = [{path.name: path.read_bytes() for path in (tmp_path / output / "soft").iterdir()}
             for output in ("by dis", "by files")]
    assert masks[0] == masks[1] and len(masks[0]) == LENGTH
    assert len(set(masks[0].values())) > 1  # the masks depend on the flow
    methods = [json.loads((tmp_path / output / "run.json").read_text())["flow"]["method"]
               for output in ("by dis", "by files")]
    assert methods == ["dis", "files"]


def test_single_frame_has_zero_flow_and_is_reported(tmp_path):
    clip = _clip(tmp_path / "clip", 1)
    code, _, err = uvos("flow", clip, "--output", "flow")
    assert code == 0 and "a single frame; its optical flow is set to zero" in err
    assert not read_flow(tmp_path / "flow/00000.flo").any()
    code, _, err = uvos("segment", clip, "--model", "flow_model", "--weights", "random")
    assert code == 0 and "a single frame; its optical flow is set to zero" in err


def _refused(arguments, words, output="out"):
    """Checks that a command prints one error line, exits with code 2 and writes nothing."""
    code, out, err = uvos(*arguments)
    assert code == 2 and out == "" and not os.path.exists(output), (code, out, err)
    lines = [line for line in err.splitlines() if not line.startswith(("dis on", "flow_model on", "Default network"))]
    assert len(lines) == 1 and lines[0].startswith("Error: ") and words in lines[0], err


@pytest.mark.slow
def test_invalid_options_print_one_line(tmp_path):
    _clip(tmp_path / "clip")
    flow, to = ["flow", "clip", "--output", "out"], ["--output", "out"]
    segment = ["segment", "clip", *to, "--weights", "random", "--model"]
    (tmp_path / "file").write_text("")
    (tmp_path / "weights.npz").write_text("")
    _clip(tmp_path / "other", 2)
    for arguments, words in (
        ([*flow, "--method", "rafd"], "'dis', 'raft'. Did you mean 'raft'?"),
        ([*flow, "--format", "flow"], "'flo', 'png16', 'picture'. Did you mean 'flo'?"),
        ([*flow, "--method", "raft"], "No weights of RAFT are packaged"),
        ([*flow, "--method", "raft", "--weights", "none.pth"], "no weights 'none.pth'"),
        ([*flow, "--method", "raft", "--weights", "weights.npz"], "weights.npz"),
        ([*flow, "--weights", "weights.npz"], "'dis' uses no weights"),
        (["flow", "none", *to], "'none' does not exist"),
        (["flow", "clip", "--output", "file/out"], "'file' is a file"),
        ([*segment, "adnet", "--flow", "dis"], "adnet does not use optical flow. Leave out --flow."),
        ([*segment, "raft"], "'uvos flow --method raft', or give --flow raft"),
        ([*segment, "flow_model", "--flow", "raft"], "No weights of RAFT are packaged"),
        ([*segment, "flow_model", "--flow", "disc"], "Unknown flow 'disc'"),
        ([*segment, "flow_model", "--flow", "clip"], "image of flow"),
        ([*segment, "flow_model", "--flow", "clip", "--flow-cache", "out"], "is read from files and needs no cache"),
        (["segment", "clip", "other", *to, "--weights", "random", "--model", "flow_model", "--flow", "clip"],
         "holds the flow of one video, but 2 videos are given"),
    ):
        _refused(arguments, words)


def test_existing_files_need_overwrite(tmp_path):
    clip = _clip(tmp_path / "clip")
    code, _, err = uvos("flow", clip, "--output", clip)
    assert code == 2 and "which 'uvos flow' did not write" in err and len(_names(clip)) == LENGTH
    assert uvos("flow", clip, "--output", "flow", "--quiet")[0] == 0
    before = _names(tmp_path / "flow")
    code, _, err = uvos("flow", clip, "--output", "flow", "--format", "picture")
    assert code == 2 and "already holds flow" in err and "--overwrite" in err
    # Flow pictures can be read as frames, but their folder cannot be the output.
    assert uvos("flow", clip, "--output", "flow", "--format", "picture", "--overwrite", "--quiet")[0] == 0
    code, _, err = uvos("flow", "flow", "--output", "flow", "--overwrite")
    assert code == 2 and "The input lies in 'flow'" in err
    assert _names(tmp_path / "flow") == [name.replace(".flo", ".png") for name in before[:-1]] + ["flow.json"]


def test_overwrite_keeps_foreign_files(tmp_path):
    clip = _clip(tmp_path / "clip")
    assert uvos("flow", clip, "--output", "flow")[0] == 0
    (tmp_path / "flow/photo.png").write_bytes(b"mine")
    assert uvos("flow", clip, "--output", "flow", "--overwrite", "--format", "picture", "--every", "3")[0] == 0
    assert _names(tmp_path / "flow") == ["00000.png", "00003.png", "flow.json", "photo.png"]
    assert (tmp_path / "flow/photo.png").read_bytes() == b"mine"


def test_frame_of_another_size_keeps_earlier_flow(tmp_path):
    clip = _clip(tmp_path / "clip")
    cv2.imwrite(str(clip / "00003.png"), np.zeros((40, 50, 3), np.uint8))
    code, _, err = uvos("flow", clip, "--output", "flow")
    assert code == 2 and "00003" in err
    # The flow of 00002 needs 00003.
    assert _names(tmp_path / "flow") == ["00000.flo", "00001.flo", "flow.json"]
    assert json.loads((tmp_path / "flow/flow.json").read_text())["finished"] is False


def test_damaged_frame_stops_or_is_skipped(tmp_path):
    clip = _clip(tmp_path / "clip")
    damaged = sorted(clip.iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:60])
    code, _, err = uvos("flow", clip, "--output", "flow")
    # The flow of the frame before the damaged one cannot be computed.
    assert code == 2 and "1 file is kept in 'flow'." in err and "--on-error skip" in err
    assert _names(tmp_path / "flow") == ["00000.flo", "flow.json"]

    code, _, err = uvos("flow", clip, "--output", "flow", "--overwrite", "--on-error", "skip")
    assert code == 0 and "Wrote zero flow for frames that cannot be decoded: 00002." in err
    np.testing.assert_allclose(_motion(tmp_path / "flow"), [3, -3, 0, 3, -3], atol=0.2)
    assert list(json.loads((tmp_path / "flow/flow.json").read_text())["broken"]) == ["00002"]
    assert uvos("flow", clip, "--output", "flow2", "--on-error", "pass")[0] == 2


def test_mismatched_flow_folder_is_rejected_before_any_output(tmp_path):
    clip = save_frames(tmp_path / "clip", levels([1, 2, 3]))
    segment = ["segment", clip, "--model", "flow_model", "--weights", "random", "--flow", "flow", "--output", "out"]
    (tmp_path / "flow").mkdir()
    _refused(segment, "holds no flow")
    write_flow(tmp_path / "flow/00001.flo", np.zeros((*SIZE, 2)))
    _refused(segment, "for frame 00000, 00002. Give one file per frame")
    for name in ("00000", "00002"):
        write_flow(tmp_path / f"flow/{name}.flo", np.zeros((SIZE[1], SIZE[0], 2)))
    _refused(segment, "00000.flo' is 24x32 (width x height), but the frames are 32x24")
