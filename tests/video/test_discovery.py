"""Discovery of videos in folders and patterns, and rejected input."""

import os
from pathlib import Path

import cv2
import pytest

from tests.helpers.videos import grays, make_video
from uvos_jax.errors import UserError
from uvos_jax.video import list_sources, open_source


def touch(folder: Path, *names: str) -> Path:
    """Creates empty files; listing depends on names only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def listed(folder: Path, *inputs: str) -> list[str]:
    """Lists the sources of inputs in a folder; paths are relative to it."""
    return [os.path.relpath(source, folder) for source in list_sources([str(folder / given) for given in inputs])]


def assert_rejected(inputs, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        list_sources([str(given) for given in inputs])
    assert "\n" not in str(caught.value)


def test_single_video_is_listed_as_given(tmp_path):
    touch(tmp_path, "clip.mp4", "still.png", "song.xyz", "frames/0.jpg", "frames/1.jpg", "frames/notes.txt")
    for given in ("clip.mp4", "still.png", "song.xyz", "frames", "frames/*.jpg"):
        assert listed(tmp_path, given) == [given]
    # Missing files and non-paths are passed on; open_source reports errors.
    for given in ("gone.mp4", "0", "-", "rtsp://cam.local/live"):
        assert list_sources([given]) == [given]


def test_folder_of_videos(tmp_path):
    touch(tmp_path, "clip10.mp4", "clip9.MOV", "a.gif", ".hidden.mp4", "notes.txt", "more/x.mp4", "x.mp4/y.txt")
    assert listed(tmp_path, ".") == ["a.gif", "clip9.MOV", "clip10.mp4"]


def test_folder_of_frame_folders(tmp_path):
    touch(tmp_path, "bear10/0.png", "bear9/0.jpg", ".git/0.png", "notes/a.txt", "readme.txt", "x/a.mp4", "x/a.png")
    assert listed(tmp_path, ".") == ["bear9", "bear10"]


def test_glob_patterns(tmp_path):
    touch(tmp_path, "a1.mp4", "a10.mp4", "a2.mkv", "b.mp4", "a.txt", "bear/0.png", "boat/0.png", "empty/x.txt")
    touch(tmp_path, "deep/one/a.mp4", "deep/two/a.mp4")
    assert listed(tmp_path, "a*") == ["a1.mp4", "a2.mkv", "a10.mp4"]
    assert listed(tmp_path, "b*") == ["b.mp4", "bear", "boat"]
    assert listed(tmp_path, "*/*/*.mp4") == ["deep/one/a.mp4", "deep/two/a.mp4"]
    assert listed(tmp_path, "**/a.mp4") == ["deep/one/a.mp4", "deep/two/a.mp4"]
    assert listed(tmp_path, "bear/*") == ["bear/*"]


def test_inputs_keep_their_order_without_duplicates(tmp_path):
    touch(tmp_path, "b/2.mp4", "b/1.mp4", "a.mp4", "frames/0.png")
    assert listed(tmp_path, "b", "a.mp4", "frames", "b/1.mp4", "*.mp4") == ["b/1.mp4", "b/2.mp4", "a.mp4", "frames"]


def test_existing_name_with_wildcards_is_literal(tmp_path):
    touch(tmp_path, "clip [1].mp4", "clip 1.mp4")
    assert listed(tmp_path, "clip [1].mp4") == ["clip [1].mp4"]


def test_mix_of_images_and_videos_is_rejected(tmp_path):
    touch(tmp_path, "a.mp4", "b.png", "notes.txt")
    question = r"images \('b.png'\) and videos \('a.mp4'\). Give one kind.*\*\.png' or '.*\*\.mp4'"
    for expand in (lambda: list_sources([str(tmp_path)]), lambda: open_source(tmp_path)):
        with pytest.raises(UserError, match=question):
            expand()
    assert_rejected([tmp_path / "*"], "matches " + question)
    assert listed(tmp_path, "*.mp4") == ["a.mp4"]
    assert listed(tmp_path, "*.png") == ["*.png"]


def test_inputs_without_videos_are_rejected(tmp_path):
    assert_rejected([], "No input given")
    assert_rejected([tmp_path], "has neither videos, nor frames")
    assert_rejected([tmp_path / "*.mp4"], "matches nothing")
    touch(tmp_path, "season/one/a.mp4", "notes.txt")
    assert_rejected([tmp_path], "has neither videos, nor frames")
    assert_rejected([tmp_path / "season"], r"Its subfolder 'one' has videos. Give '.*season/one' or '.*season/\*/\*'")
    assert_rejected([tmp_path / "*.txt"], "matches no video and no image")
    with pytest.raises(UserError, match="Its subfolder 'one' has videos"):
        open_source(tmp_path / "season")
    with pytest.raises(UserError, match=r"has videos instead of frames: 'a.mp4'"):
        open_source(tmp_path / "season" / "one")
    with pytest.raises(UserError, match=r"matches videos. Give one of them"):
        open_source(tmp_path / "season" / "one" / "*")


def test_shell_expanded_pattern_of_images_is_rejected(tmp_path):
    touch(tmp_path, "f/0.png", "f/1.png")
    assert_rejected(sorted((tmp_path / "f").iterdir()), r"2 single images given.*their folder, '.*f'")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_skipped_or_rejected(tmp_path):
    touch(tmp_path, "a/0.png", "b/0.png")
    (tmp_path / "a").chmod(0)
    try:
        assert listed(tmp_path, ".") == ["b"]
        assert_rejected([tmp_path / "a"], "cannot list the folder")
    finally:
        (tmp_path / "a").chmod(0o700)


def test_listed_sources_can_be_opened(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mkv"):
        make_video(tmp_path / "videos" / name)
    (tmp_path / "frames" / "x").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "frames" / "x" / "0.png"), grays((5,))[0])
    sources = list_sources([str(tmp_path / "videos"), str(tmp_path / "frames")])
    assert [open_source(source).name for source in sources] == ["a", "b", "x"]
