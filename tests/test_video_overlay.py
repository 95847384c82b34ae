"""The overlay picture and the video writer."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.video import PALETTE, VideoWriter, draw_overlay

av = pytest.importorskip("av")


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def square(height: int = 40, width: int = 50, label: int = 1) -> np.ndarray:
    labels = np.zeros((height, width), np.uint8)
    labels[10:30, 10:30] = label
    return labels


def test_overlay_tints_and_outlines_the_object_only():
    image = np.full((40, 50, 3), 100, np.uint8)
    overlay = draw_overlay(image, square(), alpha=0.5)
    np.testing.assert_array_equal(image, 100)
    np.testing.assert_array_equal(overlay[square() == 0], 100)
    outline, inner = overlay[10, 10].astype(int), overlay[20, 20].astype(int)
    assert outline[0] > 180 and outline[1:].max() < 60, "label 1 is a bright red"
    np.testing.assert_allclose(inner, (outline + 100) / 2, atol=1)
    np.testing.assert_array_equal(overlay[10, 10:30], np.tile(outline, (20, 1)))
    np.testing.assert_array_equal(overlay[11:29, 11:29], np.tile(inner, (18, 18, 1)))


def test_overlay_separates_objects_that_touch():
    labels = square()
    labels[10:30, 20:30] = 2
    overlay = draw_overlay(np.full((40, 50, 3), 100, np.uint8), labels, alpha=0)
    changed = (overlay != 100).any(-1)
    assert changed[20].nonzero()[0].tolist() == [10, 19, 20, 29]


def test_overlay_has_no_outline_along_the_border_of_the_image():
    overlay = draw_overlay(np.full((40, 50, 3), 100, np.uint8), np.ones((40, 50), bool), alpha=0)
    np.testing.assert_array_equal(overlay, 100)


def test_overlay_outline_is_wider_on_large_frames():
    labels = np.zeros((720, 60), np.uint8)
    labels[:, 20:40] = 1
    overlay = draw_overlay(np.zeros((720, 60, 3), np.uint8), labels, alpha=0)
    assert overlay[300].any(-1).nonzero()[0].tolist() == [20, 21, 38, 39]


@pytest.mark.parametrize("label", [0, 255])
def test_overlay_leaves_background_and_void(label):
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    overlay = draw_overlay(image, square(label=label).astype(np.int32))
    np.testing.assert_array_equal(overlay, image)
    assert not np.shares_memory(overlay, image)


def test_overlay_colours_are_visible_and_distinct():
    labels = np.repeat(np.arange(1, 251, dtype=np.uint8).reshape(10, 25), 3, axis=1)
    overlay = draw_overlay(np.zeros((10, 75, 3), np.uint8), labels, alpha=1)
    colours = overlay[:, 1::3].reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) == len(np.unique(PALETTE[1:251], axis=0)) == 250
    assert colours.max(1).min() >= 110


def test_overlay_of_another_size():
    with pytest.raises(ValueError, match="do not fit"):
        draw_overlay(np.zeros((40, 50, 3), np.uint8), square(50, 40))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63), (48, 63), (1, 1)])
def test_video_round_trip(tmp_path, height, width):
    levels = [30, 90, 150, 210]
    with VideoWriter(tmp_path / "x.mp4", fps=24) as writer:
        for level in levels:
            writer.write(np.full((height, width, 3), (level, 40, 100), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    frames = decode(tmp_path / "x.mp4")
    assert len(frames) == 4
    for frame, level in zip(frames, levels, strict=True):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        # The last row and column repeat their neighbours, so the whole frame has one colour.
        np.testing.assert_allclose(frame, np.full(frame.shape, (level, 40, 100)), atol=6)


def test_video_is_one_that_browsers_play(tmp_path):
    path = tmp_path / "x.mp4"
    with VideoWriter(path, fps=30000 / 1001) as writer:
        for _ in range(3):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(30000, 1001)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_video_is_dropped_after_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "x.mp4", fps=24) as writer:
        for _ in range(60):  # enough for the encoder to have begun the file
            writer.write(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
        assert [path.name for path in tmp_path.iterdir()] == [".x.partial.mp4"]
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_video_without_frames_is_not_written(tmp_path):
    with VideoWriter(tmp_path / "x.mp4", fps=24):
        pass
    assert not list(tmp_path.iterdir())


def test_video_arguments_that_are_defects(tmp_path):
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps"):
            VideoWriter(tmp_path / "x.mp4", fps)
    with VideoWriter(tmp_path / "x.mp4", fps=24) as writer:
        with pytest.raises(ValueError, match="uint8"):
            writer.write(np.zeros((8, 8, 3), np.float32))
        writer.write(np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(ValueError, match="in a video of"):
            writer.write(np.zeros((8, 10, 3), np.uint8))
    assert len(decode(tmp_path / "x.mp4")) == 1


def test_video_into_a_missing_folder(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write '.*x\.mp4': No such file or directory") as caught,
        VideoWriter(tmp_path / "missing" / "x.mp4", fps=24) as writer,
    ):
        writer.write(np.zeros((8, 8, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_video_over_a_folder(tmp_path):
    (tmp_path / "x.mp4").mkdir()
    with (
        pytest.raises(UserError, match="Is a directory"),
        VideoWriter(tmp_path / "x.mp4", fps=24) as writer,
    ):
        writer.write(np.zeros((8, 8, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
