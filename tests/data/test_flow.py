"""Optical flow that is computed and stored during conversion."""

import cv2
import numpy as np
import pytest

from tests.helpers import archives
from tests.helpers.command_line import uvos

pytest.importorskip("tensorflow")

from uvos_jax.data.examples.lucid_dreaming import moved_copy
from uvos_jax.data.storage import records
from uvos_jax.data.storage import tfds_builders as builders
from uvos_jax.data.storage.convert import convert
from uvos_jax.data.storage.records import Record, add_flow, encode_png, shrink_flow
from uvos_jax.data.storage.store import open_store
from uvos_jax.data.synthetic.clip import make_clip
from uvos_jax.errors import UserError
from uvos_jax.inference.flow.estimators import FlowEstimator, dis_estimator


def levels(first, second):
    """A fake flow method that returns the gray levels of both frames."""
    flow = np.stack([first.mean((1, 2, 3)), second.mean((1, 2, 3))], -1)
    return np.broadcast_to(flow[:, None, None], (*first.shape[:3], 2)).astype(np.float32)


LEVELS = FlowEstimator("levels", "levels of gray", levels)


def gray_frames(length):
    return [Record(f"{t}", encode_png(np.full((6, 8, 3), 5 + t, np.uint8)), np.zeros((6, 8), np.uint8), True)
            for t in range(length)]


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 17, 18, 25])
def test_flow_points_to_the_next_frame_and_from_the_last_frame_back(length):
    found = list(add_flow(iter(gray_frames(length)), LEVELS))
    assert [record.name for record in found] == [f"{t}" for t in range(length)]
    expected = [(5 + t, 5 + t + 1) for t in range(length - 1)] + [(5 + length - 1, 5 + length - 2)]
    for record, pair in zip(found, expected, strict=True):
        assert record.flow.shape == (3, 4, 2)
        np.testing.assert_array_equal(record.flow, np.broadcast_to(np.float16(pair), (3, 4, 2)))


def test_single_frame_has_zero_flow():
    (found,) = add_flow(iter(gray_frames(1)), LEVELS)
    assert found.flow.shape == (3, 4, 2) and not found.flow.any()


@pytest.mark.parametrize(("frame", "grid", "expected"), [
    ((24, 32), (24, 32), (12, 16)),
    ((25, 33), (25, 33), (13, 17)),
    ((96, 128), (24, 32), (24, 32)),  # computed at a quarter of the size and stored as it is
    ((48, 64), (36, 48), (24, 32)),
])
def test_stored_flow_has_half_resolution_in_pixels_of_the_frame(frame, grid, expected):
    # A zoom about the corner: the motion is a tenth of the position at any resolution.
    row, column = np.mgrid[:grid[0], :grid[1]] + 0.5
    stored = shrink_flow(np.stack([column, row], -1).astype(np.float32) / 10, frame)
    assert stored.shape == (*expected, 2) and stored.dtype == np.float16
    row, column = np.mgrid[:expected[0], :expected[1]] + 0.5
    at = np.stack([column * frame[1] / expected[1], row * frame[0] / expected[0]], -1)
    assert np.abs(stored - at / 10).max() < 1 / 32  # rounding, including that of float16


def test_large_motion_stays_finite():
    assert np.isfinite(shrink_flow(np.full((4, 4, 2), 1e9, np.float32), (4, 4))).all()


def test_every_frame_of_a_dataset_gets_flow(tmp_path):
    archives.youtube_vos(tmp_path / "source")  # labels every fifth frame only
    convert("youtube_vos/2018", tmp_path / "source", tmp_path / "data", flow=LEVELS)
    store = open_store(tmp_path / "data", "youtube_vos/2018", "train")
    means = [store.image(0, t).mean() for t in range(11)]
    for t in range(11):
        expected = means[t], means[t + 1 if t < 10 else 9]
        np.testing.assert_allclose(store.flow(0, t)[5, 5], expected, rtol=2e-3)
    assert store.has_flow and store.flow(0, 0).dtype == np.float32
    table = (tmp_path / "data/uvos_youtube_vos/2018/1.0.0/metadata.json").read_text()
    assert '"flow": "levels of gray"' in table


def textured(size, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def test_still_foreground_moves_independently():
    image, labels = textured((120, 160), 0), np.zeros((120, 160), np.uint8)
    labels[40:90, 50:110], labels[0, 0] = 2, 255
    apart = []
    for seed in range(8):
        moved = moved_copy(image, labels, np.random.default_rng(seed))
        assert moved.dtype == np.uint8 and moved.shape == image.shape
        np.testing.assert_array_equal(moved, moved_copy(image, labels, np.random.default_rng(seed)))
        flow = dis_estimator(image[None], moved[None])[0]
        inside, outside = flow[50:80, 60:100].reshape(-1, 2), flow[:25].reshape(-1, 2)
        apart.append(np.linalg.norm(np.median(inside, 0) - np.median(outside, 0)))
    assert np.mean(apart) > 2 and np.ptp(apart) > 1
    empty = moved_copy(image, np.zeros_like(labels), np.random.default_rng(3))
    flow = dis_estimator(image[None], empty[None])[0]
    assert np.linalg.norm(np.median(flow, (0, 1))) > 0.3
    assert np.abs(np.median(flow[46, 60:100] - flow[34, 60:100], 0)).max() < 1, "one motion"


def test_uncovered_background_is_inpainted():
    image, labels = np.full((60, 80, 3), 40, np.uint8), np.zeros((60, 80), np.uint8)
    labels[20:40, 30:50], image[20:40, 30:50] = 1, 220
    for seed in range(5):
        moved = moved_copy(image, labels, np.random.default_rng(seed))
        assert abs(int((moved[..., 0] > 130).sum()) - 400) < 120, "there is one object, about as large"
        assert moved.min() >= 39 and moved.max() <= 221


def test_stills_get_flow_to_a_moved_copy(tmp_path):
    archives.duts(tmp_path / "source")
    convert("duts", tmp_path / "source", tmp_path / "data", flow=LEVELS)
    store = open_store(tmp_path / "data", "duts", "train")
    assert store.has_flow and len(store.videos) > 1
    for v, video in enumerate(store.videos):
        image = store.image(v, 0)
        flow = store.flow(v, 0)
        assert flow.shape == (*(-(-side // 2) for side in video.size), 2)
        first, second = flow.mean((0, 1))
        assert abs(first - image.mean()) < 0.1 and first != second and abs(first - second) < 40


def test_clips_option_is_an_error_for_videos(tmp_path):
    archives.duts(tmp_path / "source")
    with pytest.raises(UserError, match="--clips is valid only for 'synthetic'"):
        convert("duts", tmp_path / "source", tmp_path / "data", clips=3)
    assert not (tmp_path / "data").exists()


def test_float32_flow_records_can_be_read(tmp_path, monkeypatch):
    for module in (builders, records):  # the format of early versions
        monkeypatch.setattr(module, "FLOW_TYPE", np.float32)
    monkeypatch.setattr(builders.UvosSynthetic, "CLIPS", {"train": (5, 1)})
    monkeypatch.setattr(builders.UvosSynthetic, "LENGTH", 2)
    monkeypatch.setattr(builders.UvosSynthetic, "SIZE", (48, 64))
    convert("synthetic", None, tmp_path)
    store = open_store(tmp_path, "synthetic", "train")
    np.testing.assert_array_equal(store.flow(0, 1), make_clip(5, 2, (48, 64)).flow[1])


def test_synthetic_clip_count_and_computed_flow(tmp_path, monkeypatch):
    monkeypatch.setattr(builders.UvosSynthetic, "CLIPS", {"train": (5, 1), "val": (9, 1)})
    monkeypatch.setattr(builders.UvosSynthetic, "LENGTH", 3)
    monkeypatch.setattr(builders.UvosSynthetic, "SIZE", (96, 128))
    (row,) = convert("synthetic", None, tmp_path, flow=dis_estimator, clips=3)
    assert row.splits == {"train": (3, 9, 9), "val": (1, 3, 3)}
    store = open_store(tmp_path, "synthetic", "train")
    worse = []
    for v in range(3):
        exact = make_clip(5 + v, 3, (96, 128)).flow[1].reshape(48, 2, 64, 2, 2).mean((1, 3))
        found = store.flow(v, 1)
        assert found.shape == (48, 64, 2)
        worse.append(np.linalg.norm(found - exact, axis=-1).mean() / np.linalg.norm(exact, axis=-1).mean())
    assert np.mean(worse) < 0.6  # an estimate of the same motion; zero flow would give 1


def test_convert_data_command_with_flow(tmp_path):
    archives.folder(tmp_path / "source")
    common = ["convert-data", "folder", "--source", tmp_path / "source", "--data-dir", tmp_path / "data"]
    for options, message in ((["--flow", "dsi"], "'dsi' is not one of 'dis', 'raft'. Did you mean 'dis'?"),
                             (["--flow-weights", "x.pth"], "--flow-weights needs --flow raft"),
                             (["--flow", "raft"], "--flow-weights")):
        code, _, error = uvos(*common, *options)
        assert code == 2 and message in error and not (tmp_path / "data").exists()
    code, printed, _ = uvos(*common, "--flow", "dis", "--workers", 1)
    assert code == 0 and "folder/default train: 2 videos" in printed
    store = open_store(tmp_path / "data", "folder", "train")
    expected = dis_estimator(*(np.stack([store.image(0, t)]) for t in (0, 1)))[0]
    np.testing.assert_array_equal(store.flow(0, 0), shrink_flow(expected, archives.SIZE))
