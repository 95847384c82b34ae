"""Video files as sources."""

import os
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.videos import GREEN, RED, make_video, quarter_red, turn
from uvos_jax.errors import UserError
from uvos_jax.video import open_source

av = pytest.importorskip("av")

UNIT = 1 << 16
QUARTER_TURN_CLOCKWISE = (0, UNIT, 0, -UNIT, 0, 0, 0, 0, 1 << 30)
HALF_TURN = (-UNIT, 0, 0, 0, -UNIT, 0, 0, 0, 1 << 30)
QUARTER_TURN_BACK = (0, -UNIT, 0, UNIT, 0, 0, 0, 0, 1 << 30)


def assert_rejected(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("my.clip.mp4", "libx264", "yuv420p"),
        ("my.clip.webm", "libvpx-vp9", "yuv420p"),
        ("my.clip.mkv", "ffv1", "yuv444p"),
        ("my.clip.avi", "mjpeg", "yuvj420p"),
    ],
)
def test_common_containers(tmp_path, name, codec, pix_fmt):
    source = open_source(make_video(tmp_path / name, codec, pix_fmt=pix_fmt))
    assert (source.name, source.kind, source.fps, source.length) == ("my.clip", "file", 12.0, 9)
    assert (source.live, source.rereadable) == (False, True)
    for _ in range(2):
        frames = list(source)
        assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(9)]
    for frame in frames:
        assert frame.image.dtype == np.uint8 and frame.image.shape == (48, 64, 3)
        np.testing.assert_allclose(frame.image[12, 16], RED, atol=6)
        np.testing.assert_allclose(frame.image[36, 48], GREEN, atol=6)


@pytest.mark.parametrize(
    ("matrix", "turns"), [(QUARTER_TURN_CLOCKWISE, -1), (HALF_TURN, 2), (QUARTER_TURN_BACK, 1)]
)
def test_display_rotation_is_applied(tmp_path, matrix, turns):
    path = make_video(tmp_path / "phone.mp4")
    turn(path, matrix)
    upright = next(iter(open_source(path))).image
    expected = np.rot90(quarter_red(48, 64), turns)
    assert upright.flags.c_contiguous
    assert upright.shape == expected.shape
    # Compares the centers of the four quadrants; the codec blurs the edges between them.
    height, width = upright.shape[:2]
    centers = np.ix_([height // 4, 3 * height // 4], [width // 4, 3 * width // 4])
    np.testing.assert_allclose(upright[centers], expected[centers], atol=8)


def test_file_name_with_colon_is_not_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4").rename(tmp_path / "12:30.mp4")
    assert len(list(open_source("12:30.mp4"))) == 9


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_file_is_closed_when_the_consumer_stops_early(tmp_path):
    path = make_video(tmp_path / "a.mp4")
    frames = iter(open_source(path))
    next(frames)
    assert path in open_files()
    frames.close()
    assert path not in open_files()


def open_files() -> set[Path]:
    links = [Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd")]
    return {Path(os.readlink(link)) for link in links if link.is_symlink()}


def test_error_names_the_damaged_frame(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), np.uint8)
    path = make_video(tmp_path / "a.mkv", "ffv1", list(noise), pix_fmt="yuv444p")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[3]
        start = data.index(bytes(packet))
        data[start : start + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    frames = iter(open_source(path))
    with pytest.raises(UserError, match=r"Cannot decode frame 00003 of '.*a\.mkv': ") as caught:
        for _ in range(6):
            next(frames)
    assert "\n" not in str(caught.value)


def test_invalid_video_files_are_rejected(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(b"abcd" * 999)
    assert_rejected(tmp_path / "noise.mp4", r"Cannot read '.*noise\.mp4' as a video: Invalid data")
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert_rejected(tmp_path / "empty.mp4", r"Cannot read '.*empty\.mp4' as a video")
    (tmp_path / "notes.txt").write_text("FFmpeg would draw this as a terminal.\n" * 50)
    assert_rejected(tmp_path / "notes.txt", "it is a text file")


def _write_silence(path, codec, rate, samples, sample_format):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format=sample_format, layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_audio_file_is_rejected(tmp_path):
    path = tmp_path / "song.wav"
    _write_silence(path, "pcm_s16le", 8000, np.zeros((1, 800), np.int16), "s16")
    assert_rejected(path, "it has no video stream")


def test_cover_image_of_audio_file_is_not_a_video(tmp_path):
    path = tmp_path / "song.mp3"
    _write_silence(path, "libmp3lame", 16000, np.zeros((1, 576), np.float32), "fltp")
    # An ID3v2.3 tag whose only entry is a picture of type 3, the front cover.
    jpeg = cv2.imencode(".jpg", quarter_red(8, 8))[1].tobytes()
    picture = b"\0image/jpeg\0\x03\0" + jpeg
    entry = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes(len(entry) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\0\0" + size + entry + path.read_bytes())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert_rejected(path, "it has no video stream")


def test_metadata_with_invalid_utf8_is_ignored(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Gold?sch"
        stream = container.add_stream("ffv1", rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(quarter_red(48, 64), format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"Gold?sch", b"Gold\xffsch"))
    assert len(list(open_source(path))) == 1


def test_unknown_codec_is_rejected(tmp_path):
    path = make_video(tmp_path / "a.webm", "libvpx-vp9")
    path.write_bytes(path.read_bytes().replace(b"V_VP9", b"V_XX9"))
    assert_rejected(path, "no decoder for")


def test_folders_text_and_broken_links_named_mp4_are_rejected(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    assert_rejected(tmp_path / "folder.mp4", r"The folder '.*folder\.mp4' has no frames")
    (tmp_path / "notes.mp4").write_text("These are notes.\n" * 500)
    assert_rejected(tmp_path / "notes.mp4", r"Cannot read '.*notes\.mp4' as a video")
    (tmp_path / "a.mp4").symlink_to(tmp_path / "b.mp4")
    assert_rejected(tmp_path / "a.mp4", r"a\.mp4' is a link to '.*b\.mp4', which does not exist")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    assert_rejected(tmp_path / "a.mp4", r"Cannot read '.*a\.mp4': Too many levels of symbolic links")
    assert_rejected("nul\0.mp4", "Cannot read .*: embedded null")
    assert_rejected(tmp_path / ("x" * 300), "Cannot read '.*': File name too long")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_devices_and_pipes_are_rejected_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert_rejected(tmp_path / "pipe.mp4", "is a device, pipe or socket, .* give '-'")
    assert_rejected("/dev/zero", "neither a file nor a folder")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert_rejected(tmp_path / "zero.png", "neither a file nor a folder")
    (tmp_path / "frames").mkdir()
    os.mkfifo(tmp_path / "frames" / "0.png")
    assert_rejected(tmp_path / "frames", r"0\.png': it is not a regular file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_rejected(tmp_path):
    path = make_video(tmp_path / "a.mp4")
    path.chmod(0)
    assert_rejected(path, "Permission denied")
    path.chmod(0o600)
    tmp_path.chmod(0)
    try:
        assert_rejected(path, "Permission denied")
    finally:
        tmp_path.chmod(0o700)


def test_file_cannot_open_network_streams(tmp_path):
    path = tmp_path / "a.sdp"  # describes a network stream
    path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 50004 RTP/AVP 96\n"
                    "a=rtpmap:96 H264/90000\n")
    assert_rejected(path, r"Cannot read '.*a\.sdp' as a video")


def test_oversized_frames_are_rejected(tmp_path):
    path = tmp_path / "a.gif"
    picture = b"," + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00;"
    path.write_bytes(b"GIF89a" + struct.pack("<2H3B", 40000, 40000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + picture)
    assert_rejected(path, r"Cannot read '.*a\.gif': Image size \(1600000000 pixels\)")
    path.write_bytes(path.read_bytes().replace(struct.pack("<2H", 40000, 40000), struct.pack("<2H", 9000, 9000)))
    assert_rejected(path, r"a\.gif' has more than 64 megapixels")
    path = tmp_path / "a.y4m"
    path.write_bytes(b"YUV4MPEG2 W10000 H8000 F25:1 C420\nFRAME\n" + bytes(1000))
    assert_rejected(path, r"its frames are 10000x8000, more than 64 megapixels")


def test_deleted_file_is_reported(tmp_path):
    path = make_video(tmp_path / "a.mp4")
    source = open_source(path)
    path.unlink()
    with pytest.raises(UserError, match=r"Cannot read '.*a\.mp4' as a video: No such file"):
        list(source)


def test_without_pyav_only_videos_are_rejected(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert_rejected(path, r"a\.mp4' needs PyAV. Install")
    assert len(list(open_source([quarter_red(4, 4)]))) == 1
