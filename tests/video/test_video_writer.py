"""Written videos: round trip, timestamps, and write errors."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.video import VideoWriter

av = pytest.importorskip("av")


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63), (48, 63), (1, 1), (1, 90), (2160, 3840)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
def test_video_round_trip(tmp_path, height, width, suffix):
    levels = [30, 90, 150, 210] if height < 1000 else [120]
    plain = (40, 100) if suffix == ".mp4" else (40, 100, 255)
    with VideoWriter(tmp_path / f"x{suffix}", fps=24) as writer:
        for level in levels:
            writer.write(np.full((height, width, 1 + len(plain)), (level, *plain), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]
    frames = decode(tmp_path / f"x{suffix}")
    assert len(frames) == len(levels)
    size = (height + height % 2, width + width % 2) if suffix == ".mp4" else (height, width)
    for frame, level in zip(frames, levels, strict=True):
        assert frame.shape == (*size, 3)
        # The last row and column repeat their neighbors, so the whole frame has one color.
        assert np.abs(frame.astype(int) - (level, 40, 100)).max() <= 6


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
def test_equal_frames_give_equal_bytes(tmp_path, suffix):
    # 854 is no multiple of a SIMD register: swscale's threads left other blocks at the edges of each run.
    frames = np.random.default_rng(0).integers(0, 256, (6, 480, 854, 3 if suffix == ".mp4" else 4), np.uint8)
    for name in ("a", "b"):
        with VideoWriter(tmp_path / f"{name}{suffix}", fps=24) as writer:
            for frame in frames:
                writer.write(frame)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_mp4_is_playable_in_browsers(tmp_path):
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


def test_video_is_discarded_after_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "x.mp4", fps=24) as writer:
        for _ in range(60):  # enough frames for the encoder to start the file
            writer.write(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
        assert [path.name for path in tmp_path.iterdir()] == [".x.mp4.partial"]
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_video_without_frames_is_not_written(tmp_path):
    with VideoWriter(tmp_path / "x.mp4", fps=24):
        pass
    assert not list(tmp_path.iterdir())


def test_invalid_arguments_are_rejected(tmp_path):
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps"):
            VideoWriter(tmp_path / "x.mp4", fps)
    with pytest.raises(ValueError, match="suffix of a video must be .mp4"):
        VideoWriter(tmp_path / "x.avi", 25)
    with VideoWriter(tmp_path / "x.mp4", fps=24) as writer:
        with pytest.raises(ValueError, match="uint8"):
            writer.write(np.zeros((8, 8, 3), np.float32))
        writer.write(np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(ValueError, match="in a video of"):
            writer.write(np.zeros((8, 10, 3), np.uint8))
    assert len(decode(tmp_path / "x.mp4")) == 1


def test_missing_folder_is_reported(tmp_path):
    with (
        pytest.raises(UserError, match=r"Cannot write '.*x\.mp4': No such file or directory") as caught,
        VideoWriter(tmp_path / "missing" / "x.mp4", fps=24) as writer,
    ):
        writer.write(np.zeros((8, 8, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_folder_at_the_output_path_is_reported(tmp_path):
    (tmp_path / "x.mp4").mkdir()
    with (
        pytest.raises(UserError, match="Is a directory"),
        VideoWriter(tmp_path / "x.mp4", fps=24) as writer,
    ):
        writer.write(np.zeros((8, 8, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def noise(count: int, height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def written_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [float(packet.pts * stream.time_base) for packet in sorted(
            (packet for packet in container.demux(stream) if packet.size), key=lambda packet: packet.pts)]


def write_at(path: Path, times: list, fps: float = 25) -> list[float]:
    channels = 3 if path.suffix == ".mp4" else 4
    with VideoWriter(path, fps) as writer:
        for image, time in zip(noise(len(times), channels=channels), times, strict=True):
            writer.write(image, time)
    return written_times(path)


@pytest.mark.parametrize(("suffix", "tick"), [(".mp4", 1e-5), (".mov", 1e-5), (".webm", 1e-3)])
def test_timestamps_are_kept_relative_to_the_first_frame(tmp_path, suffix, tick):
    times = 62.3 + np.cumsum([0, 0.04, 0.01, 0.5, 0.001, 3, 0.0333, 0.0333, 700])
    np.testing.assert_allclose(write_at(tmp_path / f"x{suffix}", list(times)), times - 62.3, atol=tick)


@pytest.mark.parametrize("rate", ["25/2", "30000/1001", "24000/1001", "60", "7"])
def test_regular_timestamps_give_their_frame_rate(tmp_path, rate):
    rate = Fraction(rate)
    write_at(tmp_path / "x.mp4", [float(5 + i / rate) for i in range(20)], float(rate))
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert container.streams.video[0].average_rate == rate


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_repeated_or_decreasing_timestamps_become_increasing(tmp_path, suffix):
    times = [0, 0.04, 0.04, 0.04, 0.03, 0.08, 0.12]
    written = write_at(tmp_path / f"x{suffix}", times)
    assert (np.diff(written) > 0).all()
    np.testing.assert_allclose(written, times, atol=0.02)


@pytest.mark.parametrize("jump", [1e6, -500])
def test_timestamp_jumps_continue_at_the_frame_rate(tmp_path, jump):
    times = [0, 0.04, 0.08, 0.12 + jump, 0.16 + jump, 0.26 + jump]
    np.testing.assert_allclose(write_at(tmp_path / "x.mp4", times), [0, 0.04, 0.08, 0.12, 0.16, 0.26], atol=1e-4)


def test_frames_without_timestamps_follow_at_the_frame_rate(tmp_path):
    times = [None, 7, 7.5, None, 7.6]
    np.testing.assert_allclose(write_at(tmp_path / "x.mp4", times), [0, 0.04, 0.54, 0.58, 0.64], atol=1e-4)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
def test_encoding_is_deterministic(tmp_path, suffix):
    # Wide enough for multithreaded tile columns, with a static region for motion search.
    frames = noise(8, 96, 544, 3 if suffix == ".mp4" else 4)
    frames[:, :, 200:] = frames[0, :, 200:] // 4
    for name in "ab":
        with VideoWriter(tmp_path / f"{name}{suffix}", 25) as writer:
            for frame in frames:
                writer.write(frame)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_size_unsupported_by_the_encoder_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"Cannot write '.*x\.mp4': the encoder libx264 .* 16400x2 ") as caught, \
            VideoWriter(tmp_path / "x.mp4", 25) as writer:
        writer.write(np.zeros((2, 16400, 3), np.uint8))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_missing_encoder_is_reported_before_any_output(tmp_path, monkeypatch):
    def no_such_codec(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av.codec, "Codec", no_such_codec)
    for name in ("x.mp4", "x.mov", "x.webm"):
        with pytest.raises(UserError, match="no encoder (libx264|prores_ks|libvpx-vp9)"):
            VideoWriter(tmp_path / name, 25)
    assert not list(tmp_path.iterdir())
