"""Truncated videos on standard input are refused as truncated files are."""

import contextlib
import sys

import pytest

from tests.helpers.pipes import piped, redirected
from tests.helpers.videos import make_video, moving
from uvos_jax.errors import UserError
from uvos_jax.video import open_source

pytest.importorskip("av")

TRUNCATED = [("a.mkv", "libx264", {}), ("a.avi", "mpeg4", {}), ("a.mp4", "libx264", {"movflags": "+faststart"})]


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize(("name", "codec", "container"), TRUNCATED)
def test_truncated_stdin_ends_with_the_error_of_the_file(tmp_path, monkeypatch, name, codec, container, seekable):
    path = make_video(tmp_path / name, codec, moving(60, 96, 128), container_options=container)
    data = path.read_bytes()

    def stdin(data):
        path.write_bytes(data)
        return redirected(path) if seekable else piped(data)

    with stdin(data) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert len(list(open_source("-"))) == 60
    with stdin(data[: len(data) // 2]) as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(UserError, match="Cannot decode frame 000.. of the video on stdin") as caught:
            list(open_source("-"))
        if name == "a.mkv":
            assert "the file is truncated. Get the complete file." in str(caught.value)
    with pytest.raises(UserError, match="Cannot decode frame 000"):
        list(open_source(path))


@pytest.mark.parametrize("live", [True, False])
def test_video_without_a_stated_length_ends_with_its_data(tmp_path, monkeypatch, live):
    """A recorder that writes into a pipe cannot state the length."""
    path = make_video(tmp_path / "a.mkv", images=moving(60, 96, 128), container_options={"live": str(int(live))})
    data = path.read_bytes()
    with piped(data[: len(data) // 2]) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with contextlib.nullcontext() if live else pytest.raises(UserError, match="truncated"):
            assert list(open_source("-"))
