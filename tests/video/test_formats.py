"""Video formats: containers, pixel formats, sizes, timestamps, rotation, and images with several frames."""

import struct
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.videos import GREEN, RED, grays, make_video, moving, quarter_red
from uvos_jax.errors import UserError
from uvos_jax.video import ClipOptions, open_source

av = pytest.importorskip("av")

LEVELS = (10, 60, 110, 160, 210)


def levels_of(frames) -> list[int]:
    """Returns the level of ``grays`` nearest to the mean of each frame."""
    means = [frame.image.mean() for frame in frames]
    return [min(LEVELS, key=lambda level: abs(level - mean)) for mean in means]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "size", "options"),
    [
        ("a.mp4", "libx264", "yuv420p", (48, 64), {}),
        ("ten_bits.mp4", "libx264", "yuv420p10le", (48, 64), {}),
        ("a.m4v", "mpeg4", "yuv420p", (48, 64), {}),
        ("hevc.mkv", "libx265", "yuv420p10le", (64, 64), {"preset": "ultrafast", "x265-params": "log-level=none"}),
        ("a.mov", "prores_ks", "yuv422p10le", (48, 64), {}),
        ("alpha.mov", "prores_ks", "yuva444p10le", (48, 64), {}),
        ("alpha.webm", "libvpx-vp9", "yuva420p", (48, 64), {"cpu-used": "8"}),
        ("vp8.webm", "libvpx", "yuv420p", (48, 64), {"cpu-used": "8"}),
        ("odd.webm", "libvpx-vp9", "yuv420p", (37, 53), {"cpu-used": "8"}),
        ("odd.avi", "mjpeg", "yuvj420p", (53, 37), {}),
        ("odd.mkv", "ffv1", "yuv420p", (37, 53), {}),
        ("portrait.mp4", "libx264", "yuv420p", (96, 32), {}),
        ("full.mp4", "libx264rgb", "rgb24", (48, 64), {}),
        ("a.mpg", "mpeg2video", "yuv420p", (48, 64), {}),
        ("a.apng", "apng", "rgb24", (48, 64), {}),
        ("a.nut", "rawvideo", "bgr24", (48, 64), {}),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_format_decodes_to_its_frames(tmp_path, name, codec, pix_fmt, size, options, count):
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this PyAV has no {codec}")
    images = [quarter_red(*size)] * count
    rate = 25 if name.endswith(".mpg") else 10
    frames = list(open_source(make_video(tmp_path / name, codec, images, rate, pix_fmt, options=options)))
    assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(count)]
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(count) / rate, atol=0.0011)
    for frame in frames:
        assert frame.image.dtype == np.uint8 and frame.image.shape == (*size, 3) and frame.broken is None
        np.testing.assert_allclose(frame.image[size[0] // 4, size[1] // 4], RED, atol=8)
        np.testing.assert_allclose(frame.image[3 * size[0] // 4, 3 * size[1] // 4], GREEN, atol=16)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "gray"), ("libx264", "gray"), ("ffv1", "gray16le")])
def test_gray_video(tmp_path, codec, pix_fmt):
    frames = list(open_source(make_video(tmp_path / "a.mkv", codec, grays(LEVELS), pix_fmt=pix_fmt)))
    assert levels_of(frames) == list(LEVELS)
    for frame in frames:
        assert frame.image.shape == (48, 64, 3) and (np.ptp(frame.image, axis=2) <= 2).all()


def test_4k_video(tmp_path):
    images = [quarter_red(2160, 3840)] * 2
    path = make_video(tmp_path / "a.mp4", images=images, options={"preset": "ultrafast"})
    shapes = [frame.image.shape for frame in open_source(path)]
    assert shapes == [(2160, 3840, 3)] * 2


def test_alpha_is_dropped_and_colors_are_kept(tmp_path):
    see_through = np.dstack([quarter_red(48, 64), np.full((48, 64), 128, np.uint8)])
    see_through[:, 32:, 3] = 0
    path = make_video(tmp_path / "a.mov", "qtrle", [see_through], pix_fmt="argb")
    (frame,) = open_source(path)
    np.testing.assert_array_equal(frame.image, quarter_red(48, 64))


def test_animated_gif_composes_frames_and_keeps_times(tmp_path):
    # Pillow writes only the changed region of a frame; the frames differ in duration.
    images = [Image.fromarray(image) for image in (quarter_red(16, 16), quarter_red(16, 16)[::-1].copy())]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[300, 70], loop=0)
    frames = list(open_source(tmp_path / "a.gif"))
    assert [frame.time for frame in frames] == [0, pytest.approx(0.3)]
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_allclose(frame.image, np.asarray(image), atol=2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_gif_of_any_length(tmp_path, count):
    images = [Image.fromarray(image) for image in grays(LEVELS[:count], 17, 23)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=40)
    source = open_source(tmp_path / "a.gif")
    assert (source.kind, source.length) == ("file", count)
    frames = list(source)
    assert levels_of(frames) == list(LEVELS[:count]) and frames[0].image.shape == (17, 23, 3)


def test_transparent_gif(tmp_path):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, *RED])
    image.paste(1, (0, 0, 8, 16))
    image.save(tmp_path / "a.gif", transparency=0)
    (frame,) = open_source(tmp_path / "a.gif")
    np.testing.assert_allclose(frame.image[:, :8], np.broadcast_to(RED, (16, 8, 3)), atol=1)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov"])
def test_variable_frame_rate_gives_each_frame_once_with_its_time(tmp_path, name):
    times = [0, 40, 50, 700, 2000]
    codec = "ffv1" if name.endswith("mkv") else "libx264"
    frames = list(open_source(make_video(tmp_path / name, codec, grays(LEVELS), pix_fmt="yuv420p", times=times)))
    assert levels_of(frames) == list(LEVELS)
    np.testing.assert_allclose([frame.time for frame in frames], np.divide(times, 1000), atol=1e-3)


@pytest.mark.parametrize("name", ["a.mkv", "a.nut"])
def test_time_is_relative_to_the_first_frame(tmp_path, name):
    path = make_video(tmp_path / name, "ffv1", grays(LEVELS[:3]), times=[5000, 5040, 5080])
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).time == pytest.approx(5)
    np.testing.assert_allclose([frame.time for frame in open_source(path)], [0, 0.04, 0.08], atol=1e-3)


def test_frames_removed_by_an_edit_list_are_skipped(tmp_path):
    path = make_video(tmp_path / "a.mp4", images=grays(LEVELS), options={"bf": "0"})
    data = bytearray(path.read_bytes())
    # Fields after the name: version and flags, entry count, duration, media time, rate.
    start = data.index(b"elst") + 16
    with av.open(str(path)) as container:
        step = int(1 / (12 * container.streams.video[0].time_base))
    data[start : start + 4] = struct.pack(">I", struct.unpack(">I", data[start : start + 4])[0] + 2 * step)
    path.write_bytes(data)
    frames = list(open_source(path))
    assert levels_of(frames) == list(LEVELS[2:])
    np.testing.assert_allclose([frame.time for frame in frames], [0, 1 / 12, 2 / 12], atol=1e-3)


def test_b_frames_are_in_presentation_order(tmp_path):
    images = grays(LEVELS * 3)
    path = make_video(tmp_path / "a.mp4", images=images, options={"bf": "3", "b_strategy": "0", "g": "15"})
    with av.open(str(path)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stamps != sorted(stamps)
    assert levels_of(open_source(path)) == list(LEVELS * 3)


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_rotation_in_frame_metadata_is_applied(tmp_path, degrees, turns):
    plain = make_video(tmp_path / "plain.h264", images=[quarter_red(48, 64)] * 3)
    with av.open(str(plain)) as container:
        note = f"h264_metadata=display_orientation=insert:rotate={degrees}"
        note = av.bitstream.BitStreamFilterContext(note, container.streams.video[0])
        parts = [bytes(part) for packet in container.demux() if packet.size for part in note.filter(packet)]
    path = tmp_path / "a.h264"
    path.write_bytes(b"".join(parts))
    expected = np.rot90(quarter_red(48, 64), turns)
    frames = list(open_source(path))
    assert len(frames) == 3
    for frame in frames:
        assert frame.image.shape == expected.shape
        height, width = expected.shape[:2]
        centers = np.ix_([height // 4, 3 * height // 4], [width // 4, 3 * width // 4])
        np.testing.assert_allclose(frame.image[centers], expected[centers], atol=8)


def two_sizes(folder):
    """Writes a stream whose frames change from 64x48 to 48x64 after the third."""
    parts = [make_video(folder / f"{size[0]}.h264", images=[quarter_red(*size)] * 3) for size in ((48, 64), (64, 48))]
    path = folder / "two.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_frames_after_a_size_change_are_broken(tmp_path):
    frames = iter(open_source(two_sizes(tmp_path)))
    assert [next(frames).image.shape for _ in range(3)] == [(48, 64, 3)] * 3
    with pytest.raises(UserError, match=r"'00003' is 48x64 but the first frame, '00000', is 64x48"):
        next(frames)
    skipped = list(open_source(two_sizes(tmp_path), ClipOptions(on_error="skip")))
    assert [frame.broken for frame in skipped] == [None] * 3 + ["its size is 48x64, not 64x48"] * 3
    for frame in skipped[3:]:
        np.testing.assert_array_equal(frame.image, skipped[2].image)


def test_stream_that_starts_between_key_frames_has_no_broken_frames(tmp_path):
    path = make_video(tmp_path / "a.ts", images=moving(40), rate=25, options={"g": "10", "bf": "2"})
    whole = list(open_source(path))
    assert len(whole) == 40
    data = path.read_bytes()
    start = len(data) // 188 // 3 * 188
    path.write_bytes(data[start:])
    frames = list(open_source(path))
    assert 10 <= len(frames) < 40 and not any(frame.broken for frame in frames)
    for frame, same in zip(frames[::-1], whole[::-1], strict=False):
        np.testing.assert_array_equal(frame.image, same.image)


@pytest.mark.parametrize("suffix", ["webp", "png", "tif"])
def test_multi_image_file_is_a_video(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    images = [Image.fromarray(image) for image in grays(LEVELS, 16, 24)]
    timing = {} if suffix == "tif" else {"duration": [100, 50, 200, 40, 40]}
    images[0].save(path, save_all=True, append_images=images[1:], **timing)
    source = open_source(path)
    assert (source.kind, source.name, source.length, source.paths) == ("file", "clip", 5, (path,))
    for _ in range(2):
        frames = list(source)
        assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(5)]
        assert levels_of(frames) == list(LEVELS)
    expected = [0, None, None, None, None] if suffix == "tif" else [0, 0.1, 0.15, 0.35, 0.39]
    assert [frame.time and round(frame.time, 6) for frame in frames] == expected
    assert [frame.name for frame in open_source(path, ClipOptions(start=1, every=2))] == ["00001", "00003"]


def test_animated_png_is_blended(tmp_path):
    first = np.dstack([quarter_red(16, 16), np.full((16, 16), 255, np.uint8)])
    second = np.zeros((16, 16, 4), np.uint8)
    second[4:8, 4:8] = 255
    Image.fromarray(first).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(second)], blend=1)
    frames = [frame.image for frame in open_source(tmp_path / "a.png")]
    np.testing.assert_array_equal(frames[0], first[..., :3])
    expected = quarter_red(16, 16)
    expected[4:8, 4:8] = 255
    np.testing.assert_array_equal(frames[1], expected)


def test_16_bit_pages_become_8_bit(tmp_path):
    pages = [np.full((8, 8), level * 257, np.uint16) for level in LEVELS]
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), pages)
    assert [frame.image[0, 0].tolist() for frame in open_source(tmp_path / "a.tif")] == [[v] * 3 for v in LEVELS]


def test_embedded_thumbnail_is_not_a_frame(tmp_path):
    page, thumbnail = Image.fromarray(quarter_red(32, 32)), Image.fromarray(quarter_red(8, 8))
    page.save(tmp_path / "photo.tif", save_all=True, append_images=[thumbnail])
    (frame,) = open_source(tmp_path / "photo.tif")
    assert (frame.name, frame.image.shape) == ("photo", (32, 32, 3))


def test_fps_is_the_average_rate(tmp_path):
    path = make_video(tmp_path / "a.mp4", images=grays(LEVELS), rate=Fraction(30000, 1001))
    assert open_source(path).fps == pytest.approx(30000 / 1001)
