import errno
import json
import os
import re

import av
import cv2
import numpy as np
import pytest

from tests.helpers.small_adnet import clip, small_segmenter
from uvos_jax import UserError
from uvos_jax.atomic_io import exclusive_lock
from uvos_jax.errors import write_error
from uvos_jax.inference.debug_figures import check_figures, write_figures
from uvos_jax.inference.debug_figures.adnet import match, spread_points
from uvos_jax.inference.jobs.segment import check_output, segment_to_folder
from uvos_jax.interrupts import Interrupted
from uvos_jax.video import ClipOptions, OutputOptions, VideoWriter, list_sources, open_source, read_mask
from uvos_jax.video import result_writer as writing


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


def _folder(path, frames):
    path.mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(path / f"frame{i}.png"), frame[:, :, ::-1])
    return path


@pytest.mark.slow
def test_folder_gives_masks_overlay_and_run_json(segmenter, tmp_path):
    frames = clip(5)
    source = _folder(tmp_path / "clip", frames)
    seen = []
    run = segment_to_folder(segmenter, open_source(source), tmp_path / "out", chunk=2, options={"input": "clip"},
                            on_frame=lambda: seen.append(1))
    assert len(seen) == 5
    masks = {path.stem: read_mask(path) for path in (tmp_path / "out/masks").iterdir()}
    assert sorted(masks) == [f"frame{i}" for i in range(5)]
    for (_, labels), i in zip(segmenter.stream(source), range(5), strict=True):
        np.testing.assert_array_equal(masks[f"frame{i}"], labels)
    with av.open(str(tmp_path / "out/overlay.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert sum(1 for _ in video.decode(stream)) == 5
    assert json.loads((tmp_path / "out/run.json").read_text()) == run
    assert run["finished"] is True
    assert run["model"] == "adnet" and run["source"]["frames"] == 5 and run["source"]["size"] == [48, 72]
    assert run["network_sizes"] == [[65, 97]] and run["options"] == {"input": "clip"} and run["chunk"] == 2
    assert run["hyper_parameters"]["width"] == 8 and "jax" in run["versions"]


def test_video_file_gives_five_digit_names_and_frame_rate(segmenter, tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 12.5) as writer:
        for frame in clip(4):
            writer.write(frame)
    run = segment_to_folder(segmenter, open_source(tmp_path / "clip.mp4"), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out/masks").iterdir()) == [f"{i:05d}.png" for i in range(4)]
    known = {"name": "clip", "kind": "file", "fps": 12.5, "frames": 4, "size": [48, 72], "first_frame": "00000"}
    assert run["source"].items() >= known.items()
    assert run["source"]["bytes"] == [(tmp_path / "clip.mp4").stat().st_size]
    with av.open(str(tmp_path / "out/overlay.mp4")) as video:
        assert float(video.streams.video[0].average_rate) == 12.5


def test_overwrite_replaces_results_only_after_a_readable_frame(segmenter, tmp_path):
    out = tmp_path / "out"
    segment_to_folder(segmenter, open_source(clip(3)), out)
    with pytest.raises(UserError, match="already holds results.*--overwrite"):
        segment_to_folder(segmenter, open_source(clip(2)), out)
    unreadable = iter([np.zeros((4, 4), np.uint8)])
    with pytest.raises(UserError):
        segment_to_folder(segmenter, open_source(unreadable), out, overwrite=True)
    assert len(list((out / "masks").iterdir())) == 3 and (out / "run.json").exists()
    segment_to_folder(segmenter, open_source(clip(2)), out, overwrite=True)
    assert sorted(p.name for p in (out / "masks").iterdir()) == ["00000.png", "00001.png"]


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_failed_run_keeps_masks_and_is_marked_unfinished(segmenter, tmp_path, chunk):
    source = _folder(tmp_path / "clip", [*clip(4), np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(UserError, match="frame4"):
        segment_to_folder(segmenter, open_source(source), tmp_path / "out", chunk=chunk)
    assert {p.name for p in (tmp_path / "out/masks").iterdir()} == {f"frame{i}.png" for i in range(4)}
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["finished"] is False and run["frames"] == 4 and "frame4" in run["stopped"]
    assert _length(tmp_path / "out/overlay.mp4") == 4


def _length(video):
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_full_disk_error_names_kept_masks(segmenter, tmp_path, monkeypatch):
    def full_at_the_fourth(path, *labels):
        if path.name == "frame3.png":
            raise write_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write_mask(path, *labels)

    write_mask = writing.write_mask
    monkeypatch.setattr(writing, "write_mask", full_at_the_fourth)
    source = _folder(tmp_path / "clip", clip(30))
    with pytest.raises(UserError) as caught:
        segment_to_folder(segmenter, open_source(source), tmp_path / "out")
    run = json.loads((tmp_path / "out/run.json").read_text())
    kept = len(list((tmp_path / "out/masks").iterdir()))
    assert re.search(rf"frame3.png.*No space left.* {kept} masks are kept .*--resume", str(caught.value))
    assert "\n" not in str(caught.value) and run["frames"] == kept >= 3


def test_deleted_input_error_names_kept_masks(segmenter, tmp_path):
    source = _folder(tmp_path / "clip", clip(30))
    with pytest.raises(UserError, match="frame.*No such file.* kept in .*--resume"):
        segment_to_folder(segmenter, open_source(source), tmp_path / "out",
                          on_frame=lambda: [path.unlink() for path in source.iterdir()])
    assert _length(tmp_path / "out/overlay.mp4") == len(list((tmp_path / "out/masks").iterdir())) > 0


def _after(frames, number):
    """Returns a ``stop`` callback that gives the signal number from the call ``frames`` on."""
    asked = []

    def stop():
        asked.append(1)
        return number if len(asked) >= frames else None

    return stop


@pytest.mark.parametrize(("number", "code", "name"), [(2, 130, "SIGINT"), (15, 143, "SIGTERM")])
def test_signal_stops_run_after_current_frame(segmenter, tmp_path, number, code, name):
    with pytest.raises(Interrupted, match="3 masks are kept in .*--resume to continue") as caught:
        segment_to_folder(segmenter, open_source(clip(9)), tmp_path / "out", stop=_after(3, number))
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert caught.value.code == code and run == {"finished": False, "stopped": f"stopped by {name}", "frames": 3}
    assert _length(tmp_path / "out/overlay.mp4") == 3


def test_signal_finishes_live_source(segmenter, tmp_path):
    def camera():
        while True:
            yield clip(1)[0]

    run = segment_to_folder(segmenter, open_source(camera(), live=True), tmp_path / "out", stop=_after(3, 2))
    assert run["finished"] is True and run["source"]["frames"] == _length(tmp_path / "out/overlay.mp4") == 3


def test_signal_takes_precedence_over_source_error(segmenter, tmp_path):
    """Ctrl-C signals every process of a pipeline."""
    def frames():
        yield from clip(3)
        raise OSError("pipe broke")

    with pytest.raises(Interrupted, match="kept in"):
        segment_to_folder(segmenter, open_source(frames()), tmp_path / "out", stop=_after(4, 2))


@pytest.mark.slow
def test_skipped_frames_are_listed_in_run_json(segmenter, tmp_path):
    source = _folder(tmp_path / "clip", clip(5))
    (source / "frame2.png").write_bytes(b"")
    run = segment_to_folder(segmenter, open_source(source, ClipOptions(on_error="skip")), tmp_path / "out",
                            outputs=OutputOptions(soft=True))
    assert list(run["skipped"]) == ["frame2"] and run["skipped"]["frame2"] and run["source"]["frames"] == 5
    masks = [(tmp_path / f"out/masks/frame{i}.png").read_bytes() for i in range(5)]
    assert masks[2] == masks[1] != masks[3]
    rows = (tmp_path / "out/confidence.csv").read_text().splitlines()
    assert rows[3].split(",")[1] == rows[2].split(",")[1] and len(rows) == 6


def test_requested_outputs_are_written_and_listed(segmenter, tmp_path):
    run = segment_to_folder(segmenter, open_source(clip(3)), tmp_path / "out",
                            outputs=OutputOptions(overlay=False, soft=True, json=True, cutout="png"))
    assert set(run["results"]) == {p.name for p in (tmp_path / "out").iterdir()}
    assert set(run["results"]) == {"masks", "soft", "confidence.csv", "objects.json", "cutout", "run.json"}
    assert run["outputs"]["overlay"] is False and run["resumed"] == 0 and run["skipped"] == {}
    assert run["references"] == "first frame" and run["peak_memory_mib"] > 50


def test_output_path_that_is_a_file_is_rejected(tmp_path):
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="is a file"):
            check_output(output, True, open_source(clip(1)))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("folder", ["../there/new", "../there"])
def test_unwritable_folder_is_named_as_given(tmp_path, monkeypatch, folder):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    # Root may write everywhere, so write access is denied by a patch.
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(UserError, match=r"'\.\./there' is not writable \((permission denied|the file system is )"):
        check_output(folder, True)


def test_results_in_frame_folder_are_not_read_as_frames(segmenter, tmp_path):
    frames = _folder(tmp_path / "clip", clip(2))
    for how in ({}, {"resume": True}, {"overwrite": True}):
        run = segment_to_folder(segmenter, open_source(frames), frames,
                                outputs=OutputOptions(json=True, soft=True, cutout="webm"), **how)
        assert run["source"]["frames"] == 2 and (frames / "overlay.mp4").exists() and (frames / "cutout.webm").exists()
        assert list_sources([str(frames)]) == [str(frames)]
    # A result folder contains no input videos; without run.json it is an ordinary folder.
    segment_to_folder(segmenter, open_source(frames), tmp_path / "out")
    with pytest.raises(UserError, match="has neither videos, nor frames"):
        list_sources([str(tmp_path / "out")])
    (tmp_path / "out/run.json").unlink()
    assert list_sources([str(tmp_path / "out")]) == [str(tmp_path / "out/overlay.mp4")]


def test_overwrite_never_deletes_input_or_foreign_files(segmenter, tmp_path):
    (tmp_path / "set").mkdir()
    frames = _folder(tmp_path / "set/masks", clip(3))
    with pytest.raises(UserError, match="was not written by uvos"):
        segment_to_folder(segmenter, open_source(frames), tmp_path / "set", overwrite=True)
    (tmp_path / "set/run.json").write_text("{}")
    with pytest.raises(UserError, match="The input lies in"):
        segment_to_folder(segmenter, open_source(frames), tmp_path / "set", overwrite=True)
    assert len(list(frames.iterdir())) == 3 and (tmp_path / "set/run.json").read_text() == "{}"


def test_concurrent_run_into_same_folder_is_rejected(segmenter, tmp_path):
    def frames():
        yield clip(1)[0]
        with pytest.raises(UserError, match="already holds results"):
            segment_to_folder(segmenter, open_source(clip(2)), tmp_path / "out")
        yield clip(1)[0]

    assert segment_to_folder(segmenter, open_source(frames(), live=True), tmp_path / "out")["source"]["frames"] == 2


def test_locked_folder_without_results_is_not_changed(segmenter, tmp_path):
    (tmp_path / "out").mkdir()
    with (exclusive_lock(tmp_path / "out/.uvos.lock", "not expected"),
          pytest.raises(UserError, match="Another run is writing into .*out")):
        segment_to_folder(segmenter, open_source(clip(2)), tmp_path / "out", overwrite=True)
    assert not list((tmp_path / "out").iterdir())
    assert segment_to_folder(segmenter, open_source(clip(2)), tmp_path / "out")["finished"] is True
    assert not (tmp_path / "out/.uvos.lock").exists()


def test_unfinished_run_needs_resume_or_overwrite(segmenter, tmp_path):
    with pytest.raises(Interrupted):
        segment_to_folder(segmenter, open_source(clip(9)), tmp_path / "out", stop=_after(3, 2))
    with pytest.raises(UserError, match="unfinished run.*--resume.*--overwrite"):
        segment_to_folder(segmenter, open_source(clip(9)), tmp_path / "out")
    assert len(list((tmp_path / "out/masks").iterdir())) == 3


def test_run_without_first_frame_writes_nothing(segmenter, tmp_path):
    with pytest.raises(UserError):
        segment_to_folder(segmenter, open_source(iter([np.zeros((4, 4), np.uint8)])), tmp_path / "new/out")
    assert not (tmp_path / "new/out").exists()


def test_match_finds_the_pixel_with_the_same_embedding():
    rng = np.random.default_rng(0)
    anchor = rng.standard_normal((4, 5, 8)).astype(np.float32)
    anchor *= 8 / np.linalg.norm(anchor, axis=-1, keepdims=True)  # equal norms, so each pixel is its own best match
    shuffle = rng.permutation(20)
    frame = anchor.reshape(20, 8)[shuffle].reshape(4, 5, 8)
    points = np.array([[0, 0], [3, 4], [1, 2]])
    found, weights = match(points, anchor, frame)
    np.testing.assert_array_equal(shuffle[found[:, 0] * 5 + found[:, 1]], points[:, 0] * 5 + points[:, 1])
    assert ((weights > 0) & (weights <= 1)).all()


def test_spread_points_are_inside_the_mask_and_apart():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 5:25] = True
    points = spread_points(mask, 5)
    assert points.shape == (5, 2) and mask[points[:, 0], points[:, 1]].all()
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(5, 1)]
    assert gaps.min() >= 5
    assert len(spread_points(np.zeros((3, 3), bool), 4)) == 4
    assert len(spread_points(np.eye(2, dtype=bool), 4)) == 2


@pytest.mark.slow
def test_debug_figures_are_written(segmenter, tmp_path):
    source = open_source(clip(5))
    segment_to_folder(segmenter, source, tmp_path / "out")
    paths = write_figures(segmenter, source, tmp_path / "out", 5)
    assert [p.name for p in paths] == ["matches.png", "drift.png"]
    for path in paths:
        assert np.ptp(cv2.imread(str(path))) > 100


def test_debug_is_rejected_for_iterators_and_base_net(segmenter):
    with pytest.raises(UserError, match="reads the video twice"):
        check_figures(segmenter, open_source(iter(clip(1))))
    with pytest.raises(UserError, match="this model lacks"):
        check_figures(small_segmenter(net="base"), open_source(clip(1)))
