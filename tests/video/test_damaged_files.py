"""Broken frames and truncated files, by default and with on_error="skip"."""

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.videos import damage, grays, make_video, moving, packets
from uvos_jax.errors import UserError
from uvos_jax.video import ClipOptions, open_source

pytest.importorskip("av")

FORMATS = [
    ("a.mp4", "libx264", "yuv420p", {"bf": "2", "g": "8"}),
    ("low_delay.mp4", "libx264", "yuv420p", {"tune": "zerolatency", "g": "8"}),
    ("a.mkv", "libx264", "yuv420p10le", {}),
    ("hevc.mkv", "libx265", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none:keyint=8"}),
    ("a.avi", "mpeg4", "yuv420p", {"g": "8"}),
    ("a.mov", "prores_ks", "yuv422p10le", {}),
    ("jpegs.avi", "mjpeg", "yuvj420p", {}),
    ("a.webm", "libvpx-vp9", "yuv420p", {"cpu-used": "8"}),
    ("lossless.mkv", "ffv1", "yuv420p", {}),
]


def read_until_error(source) -> tuple[list, str]:
    """Returns the frames before an error, and its message."""
    frames = []
    with pytest.raises(UserError) as caught:
        for frame in source:
            frames.append(frame)
    assert "\n" not in str(caught.value)
    return frames, str(caught.value)


def decoded_before(path, packet) -> set[int]:
    """Returns the indices of the frames that precede a packet in decoding order."""
    return {number for _, _, number in packets(path)[:packet]}


def assert_same(frames, expected) -> None:
    for frame, same in zip(frames, expected, strict=True):
        assert (frame.name, frame.time, frame.broken) == (same.name, same.time, None)
        np.testing.assert_array_equal(frame.image, same.image)


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "options"), FORMATS)
@pytest.mark.parametrize("packet", [7, 8, 19])
def test_frame_with_lost_data_is_broken(tmp_path, name, codec, pix_fmt, options, packet):
    path = make_video(tmp_path / name, codec, moving(20), pix_fmt=pix_fmt, options=options)
    whole = list(open_source(path))
    untouched = decoded_before(path, packet)
    number = damage(path, packet, "fill")
    frames = list(open_source(path, ClipOptions(on_error="skip")))
    assert [frame.name for frame in frames] == [frame.name for frame in whole]
    assert frames[number].broken and frames[number].time == pytest.approx(whole[number].time)
    for frame, last in zip(frames[1:], frames, strict=False):
        if frame.broken:
            np.testing.assert_array_equal(frame.image, last.image)
    # If a key frame preceded by B-frames is lost, the decoder withholds one of these frames.
    good = [index for index in sorted(untouched) if not frames[index].broken]
    assert len(good) >= len(untouched) - ("bf" in options)
    assert_same([frames[index] for index in good], [whole[index] for index in good])

    before, error = read_until_error(open_source(path))
    assert frames[len(before)].broken and not any(frame.broken for frame in frames[: len(before)])
    assert f"Cannot decode frame {len(before):05d} of " in error and f"{name}': " in error
    assert "--on-error skip" in error
    assert number - len(before) <= ("bf" in options)
    assert [frame.name for frame in before] == [frame.name for frame in whole[: len(before)]]


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "options"), [*FORMATS[:3], FORMATS[4]])
def test_flipped_bits_are_detected_despite_error_concealment(tmp_path, name, codec, pix_fmt, options):
    path = make_video(tmp_path / name, codec, moving(20), pix_fmt=pix_fmt, options=options)
    whole = list(open_source(path))
    untouched = sorted(decoded_before(path, 4))
    number = damage(path, 4, "flip")
    frames = list(open_source(path, ClipOptions(on_error="skip")))
    assert len(frames) == 20
    assert [frame.name for frame in frames if frame.broken] == [f"{number:05d}"]
    assert_same([frames[index] for index in untouched], [whole[index] for index in untouched])
    assert len(read_until_error(open_source(path))[0]) == number


def test_leading_broken_frames_show_the_first_good_one(tmp_path):
    path = make_video(tmp_path / "a.mp4", images=moving(20), options={"g": "6", "bf": "0", "sc_threshold": "0"})
    whole = list(open_source(path))
    damage(path, 0, "fill")
    with pytest.raises(UserError, match=r"Cannot decode frame 00000 of '.*a\.mp4'"):
        open_source(path)
    frames = list(open_source(path, ClipOptions(on_error="skip")))
    assert [frame.name for frame in frames] == [frame.name for frame in whole]
    assert [bool(frame.broken) for frame in frames] == [True] * 6 + [False] * 14
    assert frames[1].broken == "a frame it depends on is broken"
    for frame in frames[:6]:
        np.testing.assert_array_equal(frame.image, whole[6].image)
    assert_same(frames[6:], whole[6:])


def test_video_without_decodable_frames_is_rejected(tmp_path):
    path = make_video(tmp_path / "a.avi", "mjpeg", moving(3), pix_fmt="yuvj420p")
    for packet in range(3):
        damage(path, packet, "fill")
    for on_error in ("stop", "skip"):
        with pytest.raises(UserError, match="Cannot decode frame 00000 of '.*a.avi'"):
            open_source(path, ClipOptions(on_error=on_error))


def test_damage_outside_the_range_is_ignored(tmp_path):
    path = make_video(tmp_path / "a.avi", "mjpeg", moving(10), pix_fmt="yuvj420p")
    damage(path, 5, "fill")
    assert len(list(open_source(path, ClipOptions(end=5)))) == 5
    assert [frame.name for frame in open_source(path, ClipOptions(start=6))] == ["00006", "00007", "00008", "00009"]
    # Later frames may depend on the damaged one, so it is an error although ``every`` drops it.
    with pytest.raises(UserError, match="00005"):
        list(open_source(path, ClipOptions(every=2)))
    frames = list(open_source(path, ClipOptions(every=2, on_error="skip")))
    assert [(frame.name, frame.broken) for frame in frames] == [(f"{i:05d}", None) for i in range(0, 10, 2)]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "container"),
    [
        ("a.mp4", "libx264", "yuv420p", {"movflags": "+faststart"}),
        ("a.mov", "prores_ks", "yuv422p10le", {"movflags": "+faststart"}),
        ("a.mkv", "libx264", "yuv420p", {}),
        ("a.webm", "libvpx-vp9", "yuv420p", {}),
        ("a.avi", "mpeg4", "yuv420p", {}),
        ("jpegs.avi", "mjpeg", "yuvj420p", {}),
    ],
)
def test_truncated_file_keeps_frames_before_the_cut(tmp_path, name, codec, pix_fmt, container):
    rng = np.random.default_rng(1)
    images = list(rng.integers(0, 255, (20, 48, 64, 3), np.uint8))
    path = make_video(tmp_path / name, codec, images, pix_fmt=pix_fmt, container_options=container)
    whole = list(open_source(path))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    before, error = read_until_error(open_source(path))
    assert "Cannot decode frame " in error and f"{name}': " in error
    assert 3 <= len(before) < 15
    assert_same(before, whole[: len(before)])
    frames = list(open_source(path, ClipOptions(on_error="skip")))
    good = [frame for frame in frames if not frame.broken]
    assert_same(good, whole[: len(before)])
    assert frames[: len(good)] == good and len(frames) > len(good)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_file_without_index_is_complete(tmp_path, name):
    path = make_video(tmp_path / name, "mpeg4", moving(20))
    whole = list(open_source(path))
    path.write_bytes(path.read_bytes()[:-30])
    assert_same(list(open_source(path)), whole)


def test_mp4_without_index_is_rejected(tmp_path):
    path = make_video(tmp_path / "a.mp4", images=moving(5))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="Cannot read '.*a.mp4' as a video"):
        open_source(path)


def save_grays(folder, levels, broken=(), small=()) -> None:
    for index, image in enumerate(grays(levels, 8, 12)):
        cv2.imwrite(str(folder / f"{index}.png"), image[:4] if index in small else image)
        if index in broken:
            (folder / f"{index}.png").write_bytes(b"not a picture")


def test_broken_frames_of_a_folder_are_skipped(tmp_path):
    save_grays(tmp_path, range(0, 60, 10), broken=(0, 1, 3), small=(4,))
    with pytest.raises(UserError, match=r"Cannot decode the frame '.*0\.png'.*--on-error skip"):
        open_source(tmp_path)
    assert [frame.name for frame in open_source(tmp_path, ClipOptions(start=2, end=3))] == ["2"]
    (tmp_path / "5.png").unlink()
    (tmp_path / "5.png").symlink_to(tmp_path / "gone.png")
    frames = list(open_source(tmp_path, ClipOptions(on_error="skip")))
    undecodable = "it cannot be decoded"
    assert [(frame.name, frame.broken) for frame in frames] == [
        ("0", undecodable), ("1", undecodable), ("2", None), ("3", undecodable), ("4", "its size is 12x4, not 12x8"),
        ("5", "No such file or directory"),
    ]
    assert {frame.image[0, 0, 0] for frame in frames} == {20}


def test_folder_without_decodable_frames_is_rejected(tmp_path):
    save_grays(tmp_path, (1, 2), broken=(0, 1))
    with pytest.raises(UserError, match=r"No frame can be decoded. Cannot decode the frame '.*0\.png'"):
        open_source(tmp_path, ClipOptions(on_error="skip"))


def test_broken_tiff_page_is_skipped(tmp_path):
    from PIL import Image

    path = tmp_path / "a.tif"
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(4)]
    images[0].save(path, save_all=True, append_images=images[1:], compression="tiff_lzw")
    with Image.open(path) as image:
        image.seek(2)
        offset = image.tag_v2[273][0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 2000] = bytes(2000)
    path.write_bytes(data)
    assert read_until_error(open_source(path))[0][-1].name == "00001"
    frames = list(open_source(path, ClipOptions(on_error="skip")))
    assert [bool(frame.broken) for frame in frames] == [False, False, True, False]
    np.testing.assert_array_equal(frames[3].image, np.asarray(images[3]))


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])  # the format is detected from the content
def test_damaged_gif_keeps_frames_before_the_damage(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64), np.uint8)
    images = [Image.fromarray(image) for image in noise]
    path, times = tmp_path / name, [40, 200, 80] * 4
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=times)
    whole = path.read_bytes()
    expected = list(open_source(path))
    assert [round(1000 * frame.time) for frame in expected] == [sum(times[:index]) for index in range(12)]
    middle = len(whole) // 2
    for broken in (whole[:middle] + b"\x55" * 1000 + whole[middle + 1000:], whole[:middle]):
        path.write_bytes(broken)
        frames = []
        with pytest.raises(UserError, match=rf"Cannot decode frame 0000[56] of '.*{name}': .*--on-error skip"):
            for frame in open_source(path):
                frames.append(frame)
        assert 5 <= len(frames) <= 6
        skipped = list(open_source(path, ClipOptions(on_error="skip")))
        assert [frame.broken is None for frame in skipped] == [index < len(frames) for index in range(len(skipped))]
        assert len(skipped) == (12 if len(broken) == len(whole) else len(frames) + 1)
        for frame, same in zip(skipped, expected[: len(frames)], strict=False):
            np.testing.assert_array_equal(frame.image, same.image)
        assert (skipped[-1].image == frames[-1].image).all()


def test_arrays_of_another_size_are_skipped():
    images = [*grays((10, 20), 8, 8), *grays((30,), 4, 4), *grays((40,), 8, 8)]
    frames = list(open_source(images, ClipOptions(on_error="skip")))
    assert [frame.broken for frame in frames] == [None, None, "its size is 4x4, not 8x8", None]
    assert [frame.image[0, 0, 0] for frame in frames] == [10, 20, 20, 40]


def test_unknown_on_error_is_rejected():
    with pytest.raises(UserError, match="must be 'stop' or 'skip'"):
        open_source(grays((1,)), ClipOptions(on_error="ignore"))
