"""Cameras, network streams and standard input."""

import contextlib
import functools
import http.server
import io
import os
import socket
import sys
import tempfile
import threading
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tests.helpers.pipes import Pipe, piped
from tests.helpers.videos import damage, grays, make_video, moving
from uvos_jax.errors import UserError
from uvos_jax.video import ClipOptions, open_source
from uvos_jax.video import streams as live

pytest.importorskip("av")

SECRET = "hunter2"


class FakeCamera:
    """Stand-in for ``cv2.VideoCapture``: ``count`` red frames of increasing brightness."""

    made = ()
    there, fps, count = True, 15.0, 3

    def __init__(self, index):
        self.index, self.taken, self.released = index, 0, False
        type(self).made = (*self.made, self)

    def isOpened(self):
        return self.there

    def get(self, what):
        assert what == cv2.CAP_PROP_FPS
        return self.fps

    def read(self):
        if self.taken == self.count:
            return False, None
        self.taken += 1
        return True, np.broadcast_to(np.uint8([0, 0, 10 * self.taken]), (6, 8, 3)).copy()

    def release(self):
        self.released = True


@pytest.fixture
def camera(tmp_path, monkeypatch):
    kind = type("Camera", (FakeCamera,), {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "VideoCapture", kind)
    return kind


def test_camera_source(camera):
    source = open_source("2")
    assert (source.name, source.kind, source.fps, source.length) == ("camera2", "camera", 15.0, None)
    assert (source.live, source.rereadable, source.paths) == (True, False, ())
    frames = list(source)
    assert camera.made[0].index == 2 and camera.made[0].released
    assert [frame.name for frame in frames] == ["00000", "00001", "00002"]
    assert [frame.image[0, 0].tolist() for frame in frames] == [[10, 0, 0], [20, 0, 0], [30, 0, 0]]
    assert frames[0].time == 0 and frames[1].time <= frames[2].time
    with pytest.raises(UserError, match="camera 'camera2' a second time"):
        iter(source)


def test_camera_is_read_only_up_to_the_end(camera):
    camera.count = 10**9
    source = open_source("0", ClipOptions(start=2, end=9, every=3))
    assert source.fps == 5
    frames = iter(source)
    assert (next(frames).name, camera.made[0].taken) == ("00002", 3)
    assert [frame.name for frame in frames] == ["00005", "00008"]
    assert camera.made[0].taken <= 10 and camera.made[0].released


def test_camera_is_released_when_the_iterator_is_closed(camera):
    camera.count = 10**9
    frames = iter(open_source("0"))
    next(frames)
    frames.close()
    assert camera.made[0].released


def test_unavailable_camera_is_rejected(camera):
    camera.there = False
    with pytest.raises(UserError, match=r"camera 0 cannot be opened"):
        open_source("0")
    assert camera.made[0].released
    camera.there, camera.count, camera.fps = True, 0, float("nan")
    source = open_source("0")
    assert source.fps == 24
    with pytest.raises(UserError, match="Camera 0 returns no frames"):
        list(source)


def test_existing_file_takes_precedence_over_camera(camera, tmp_path):
    for index, image in enumerate(grays((10, 20))):
        (tmp_path / "0").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "0" / f"{index}.png"), image)
    assert open_source("0").kind == "folder"
    assert camera.made == ()


@contextlib.contextmanager
def served_by_http(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def served_by_tcp(data):
    """Serves ``data`` to one client; None sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    if data is None:
                        ended.wait(20)
                    else:
                        connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            if thread.is_alive():  # no client has connected
                with contextlib.suppress(OSError), socket.create_connection(server.getsockname(), 1):
                    pass
            thread.join()


def assert_frames_of(source, path):
    """Checks that the source yields the frames of the file and can be read only once."""
    frames, expected = list(source), list(open_source(path))
    assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(len(expected))]
    for frame, same in zip(frames, expected, strict=True):
        assert frame.time == pytest.approx(same.time)
        np.testing.assert_array_equal(frame.image, same.image)
    with pytest.raises(UserError, match="a second time"):
        iter(source)


def test_stream_over_http(tmp_path):
    path = make_video(tmp_path / "street.mkv", images=moving(12))
    with served_by_http(tmp_path) as host:
        source = open_source(f"http://user:{SECRET}@{host}/street.mkv?token={SECRET}")
        assert (source.name, source.kind, source.fps) == ("street", "stream", 12)
        assert (source.live, source.rereadable, source.paths) == (True, False, ())
        assert SECRET not in repr(source)
        assert_frames_of(source, path)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_stream_over_tcp(tmp_path, name):
    path = make_video(tmp_path / name, images=moving(30), rate=25)
    with served_by_tcp(path.read_bytes()) as host:
        assert_frames_of(open_source(f"tcp://{host}"), path)


def test_damaged_stream_stops_or_is_skipped(tmp_path):
    path = make_video(tmp_path / "a.mkv", images=moving(20), options={"tune": "zerolatency"})
    damage(path, 7, "fill")
    with served_by_tcp(path.read_bytes()) as host:
        frames = []
        with pytest.raises(UserError, match=r"Cannot decode frame 00007 of the stream 'tcp://[\d.:]*'"):
            for frame in open_source(f"tcp://{host}"):
                frames.append(frame)
        assert len(frames) == 7
    with served_by_tcp(path.read_bytes()) as host:
        frames = list(open_source(f"tcp://{host}", ClipOptions(on_error="skip")))
    assert [frame.name for frame in frames if frame.broken] == ["00007"] and len(frames) == 20


@pytest.mark.parametrize("scheme", ["tcp", "http", "rtsp"])
def test_silent_server_times_out(monkeypatch, scheme):
    monkeypatch.setattr(live, "TIME_LIMIT", 0.3)
    with served_by_tcp(None) as host, pytest.raises(UserError, match="Check the address") as caught:
        open_source(f"{scheme}://user:{SECRET}@{host}/live")
    assert f"'{scheme}://{host}/live'" in str(caught.value) and "\n" not in str(caught.value)
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None


def test_stalled_stream_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TIME_LIMIT", 1.5)  # enough to connect on a busy machine
    path = make_video(tmp_path / "a.ts", images=moving(60), rate=25, options={"g": "10"})
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.sendall(path.read_bytes())
                ended.wait(20)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        frames = []
        with pytest.raises(UserError, match="no data within the time limit"):
            for frame in open_source(f"tcp://127.0.0.1:{server.getsockname()[1]}"):
                frames.append(frame)
        ended.set()
        thread.join()
    assert len(frames) >= 50


def test_refused_connection_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=rf"stream 'tcp://127.0.0.1:{port}' as a video: Connection ref"):
        open_source(f"tcp://{SECRET}@127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"rtsp://admin:{SECRET}@cam.local:554/live/ch1?key={SECRET}", "rtsp://cam.local:554/live/ch1"),
        (f"RTSP://admin:p{SECRET}/@x{SECRET}@cam.local/live", "RTSP://cam.local/live"),
        (f"http://{SECRET}@[::1]:80/a.mp4#x", "http://[::1]:80/a.mp4"),
        ("https://example.org/@user/clip.mp4", "https://example.org/@user/clip.mp4"),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
        ("folder/a@b.mp4", "folder/a@b.mp4"),
    ],
)
def test_public_url_hides_credentials(url, shown):
    assert live.public_url(url) == shown


STREAMED = [("a.mkv", {}), ("a.mp4", {"movflags": "+faststart"}), ("a.mp4", {"movflags": "frag_keyframe+empty_moov"})]


@pytest.mark.parametrize(("name", "container"), STREAMED)
def test_stdin_is_streamed_without_a_copy(tmp_path, monkeypatch, name, container):
    path = make_video(tmp_path / name, images=moving(20), container_options=container)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: pytest.fail("it is copied without need"))
    with piped(path.read_bytes()) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        source = open_source("-")
        assert (source.name, source.kind, source.live, source.rereadable) == ("stdin", "stdin", False, False)
        assert source.paths == ()
        assert_frames_of(source, path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_stdin_with_trailing_index_is_copied(tmp_path, monkeypatch, name):
    path = make_video(tmp_path / name, images=moving(20))
    data = path.read_bytes()
    assert data.index(b"moov") > data.index(b"mdat")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with piped(data) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert_frames_of(open_source("-"), path)
    with piped(data[: len(data) // 2]) as stdin:  # truncated before the index
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UserError, match="Cannot read stdin as a video: .*Check that it is a complete video"):
            open_source("-")
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this system")
def test_stdin_copy_on_a_full_disk_is_reported(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", images=moving(20))
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    with piped(path.read_bytes()) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UserError, match=r"copied .*: No space left on device. Give the file instead") as caught:
            open_source("-")
    assert "\n" not in str(caught.value)


def test_http_server_without_range_requests_is_reported(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 240, 320, 3), np.uint8)  # larger than any buffer
    make_video(tmp_path / "a.mp4", images=list(noise))
    with served_by_http(tmp_path) as host:  # Python's server does not support range requests
        for on_error in ("stop", "skip"):
            with pytest.raises(UserError, match="a.mp4': .*Download the file") as caught:
                list(open_source(f"http://{host}/a.mp4", ClipOptions(on_error=on_error)))
            assert "on-error" not in str(caught.value)


def test_stdin_redirected_from_a_file_is_seekable(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", images=moving(20))  # its index is at the end
    with open(path, "rb") as file:
        monkeypatch.setattr(sys, "stdin", Pipe(file))
        assert_frames_of(open_source("-"), path)


def test_stdin_without_video_data_is_rejected(monkeypatch):
    for data in (b"", b"no video at all" * 1000):
        monkeypatch.setattr(sys, "stdin", Pipe(io.BytesIO(data)))
        with pytest.raises(UserError, match="Cannot read stdin as a video"):
            open_source("-")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs terminals")
def test_terminal_as_stdin_is_rejected(monkeypatch):
    ends = os.openpty()
    try:
        with os.fdopen(ends[1], closefd=False) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            with pytest.raises(UserError, match="Standard input has no video"):
                open_source("-")
    finally:
        for end in ends:
            os.close(end)
    for stdin in (None, SimpleNamespace(closed=True)):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UserError, match="Standard input has no video"):
            open_source("-")


def test_unknown_url_scheme_is_rejected():
    with pytest.raises(UserError, match="Cannot read the address 'ftp://somewhere/clip.mp4'. Supported schemes: rtsp://"):
        open_source("ftp://somewhere/clip.mp4")
