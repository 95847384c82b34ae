"""Frame ranges (start, end, every) for all kinds of sources, and times."""

import cv2
import numpy as np
import pytest

from tests.helpers.videos import grays, make_video
from uvos_jax.errors import UserError
from uvos_jax.video import ClipOptions, open_source
from uvos_jax.video import sources as reader
from uvos_jax.video import video_reader as video_file
from uvos_jax.video.frames import FrameRange, LazyFrame, decode_range, parse_frame_range

av = pytest.importorskip("av")


@pytest.fixture(params=["video", "folder", "glob", "pages", "array", "list", "generator"])
def opener(request, tmp_path):
    """Returns a function that opens a source of 30 frames at 24 fps; frame i has level i."""
    images = grays(range(30))
    kind = request.param
    if kind == "video":
        path = make_video(tmp_path / "a.mkv", "ffv1", images, 24, "bgr0")
    elif kind == "pages":
        from PIL import Image

        path = tmp_path / "a.tif"
        Image.fromarray(images[0]).save(path, save_all=True, append_images=[Image.fromarray(i) for i in images[1:]])
    elif kind in ("folder", "glob"):
        (tmp_path / "f").mkdir()
        for index, image in enumerate(images):
            cv2.imwrite(str(tmp_path / "f" / f"{index:05d}.png"), image)
        path = tmp_path / "f" / "*.png" if kind == "glob" else tmp_path / "f"
    else:
        made = {"array": np.stack, "list": list, "generator": iter}[kind]
        return lambda **options: open_source(made(images), ClipOptions(**options))
    return lambda **options: open_source(path, ClipOptions(**options))


def indices(source) -> list[int]:
    """Returns the indices of the frames, and checks that names and images agree."""
    frames = list(source)
    numbers = [int(frame.name) for frame in frames]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == numbers
    assert all(frame.broken is None for frame in frames)
    return numbers


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, range(30)),
        ({"start": 0, "end": 30, "every": 1}, range(30)),
        ({"start": 10}, range(10, 30)),
        ({"end": 10}, range(10)),
        ({"start": 3, "end": 4}, [3]),
        ({"start": 29}, [29]),
        ({"end": 1000}, range(30)),
        ({"every": 5}, range(0, 30, 5)),
        ({"every": 1000}, [0]),
        ({"start": 10, "end": 27, "every": 5}, [10, 15, 20, 25]),
        ({"start": "0.5s"}, range(12, 30)),
        ({"start": "0:00:00.5", "end": "1"}, range(12, 24)),
        ({"end": "0:01"}, range(24)),
        ({"start": 20, "end": "1s", "every": 2}, [20, 22]),
    ],
)
def test_range_selects_expected_frames(opener, options, expected):
    source = opener(**options)
    assert indices(source) == list(expected)
    if source.length is not None:
        assert source.length == len(expected)
    assert source.fps == 24 / options.get("every", 1)
    if source.rereadable:
        assert indices(source) == list(expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": 30}, r"The start \(frame 30\) is after the end of the video, which has 30 frames"),
        ({"start": "2:00"}, r"The start \(120 s\) is after the end of the video, which has 30 frames, .* 1\.208 s"),
        ({"start": 20, "end": "0.5s"}, r"no frame between the start \(frame 20\) and the end \(0.5 s\)"),
    ],
)
def test_empty_range_error_names_the_frame_count(opener, options, match):
    with pytest.raises(UserError, match=match):
        list(opener(**options))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": -1}, "The start is -1. Give a frame index or a time"),
        ({"start": 1.5}, "The start is 1.5"),
        ({"start": True}, "The start is True"),
        ({"end": "soon"}, "The end is 'soon'. Give a time such as"),
        ({"end": "1:2:3:4"}, "The end is '1:2:3:4'"),
        ({"start": "1:99"}, "The start is '1:99', but numbers after a colon must be below 60. Give a time such as"),
        ({"end": "0:60"}, "The end is '0:60', but"),
        ({"end": "1:60:00"}, "The end is '1:60:00', but"),
        ({"end": "1:00:60"}, "The end is '1:00:60', but"),
        ({"end": "-5"}, "The end is '-5'"),
        ({"end": "nan"}, "The end is 'nan'"),
        ({"start": 5, "end": 5}, r"The end \(frame 5\) must be after the start \(frame 5\)"),
        ({"start": "1:00", "end": "59"}, r"The end \(59 s\) must be after the start \(60 s\)"),
        ({"end": 0}, r"The end \(frame 0\) must be after the start"),
        ({"end": "0"}, "so no frame is left"),
        ({"every": 0}, "'every' must be .*; got 0"),
        ({"every": 1.0}, "'every' must be .*; got 1.0"),
        ({"every": "2"}, "'every' must be .*; got '2'"),
    ],
)
def test_invalid_range_options_are_rejected_on_open(options, match):
    with pytest.raises(UserError, match=match):
        open_source(iter([]), ClipOptions(**options))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("12.5s", 12.5), (" 1:05 ", 65), ("1:02:03.5", 3723.5), (".5", 0.5), ("90:00", 5400), ("7.", 7)],
)
def test_time_strings_are_parsed(text, seconds):
    assert parse_frame_range(text) == FrameRange(start=float(seconds))


def test_count_equals_select_and_takes_constant_time():
    class Item:
        time = None

    for fps in (24, 30000 / 1001, 7.3):
        for frames in (FrameRange(0.5, 1.0, 2), FrameRange(3, 9), FrameRange(1 / 24, 7), FrameRange(0.1, None, 3),
                       FrameRange(5.0)):
            kept = [item for item, keep in frames.select([Item()] * 40, fps) if keep] if frames.count(40, fps) else []
            assert frames.count(40, fps) == len(kept)
    assert FrameRange(5, None, 2).count(2**60, 24) == 2**59 - 2
    assert parse_frame_range("9" * 400).count(2**60, 24) > 0


def test_range_uses_timestamps_at_variable_frame_rate(tmp_path):
    times = [0, 40, 50, 700, 2000, 2040]
    path = make_video(tmp_path / "a.mkv", "ffv1", grays(range(6)), 24, "bgr0", times=times)
    assert indices(open_source(path, ClipOptions(start="0.05", end="2"))) == [2, 3]
    assert [frame.time for frame in open_source(path, ClipOptions(start="0.6s"))] == pytest.approx([0.7, 2.0, 2.04])


def test_frames_without_timestamps_have_no_time(tmp_path):
    assert [frame.time for frame in open_source(grays((1, 2)))] == [None, None]
    for index, image in enumerate(grays((1, 2))):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    assert [frame.time for frame in open_source(tmp_path)] == [None, None]


def test_only_selected_frames_are_converted(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mkv", "ffv1", grays(range(30)), 24, "bgr0")
    source = open_source(path, ClipOptions(start=5, end=20, every=4))
    turned = []
    convert = video_file._upright_rgb
    monkeypatch.setattr(video_file, "_upright_rgb", lambda *given: turned.append(1) or convert(*given))
    assert indices(source) == [5, 9, 13, 17]
    assert len(turned) == 4


def test_images_outside_the_range_are_not_read(tmp_path, monkeypatch):
    for index, image in enumerate(grays(range(12))):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    read, read_image = [], reader.read_image
    monkeypatch.setattr(reader, "read_image", lambda path: read.append(path.stem) or read_image(path))
    source = open_source(tmp_path, ClipOptions(start=2, end=10, every=3))
    read.clear()
    assert indices(source) == [2, 5, 8]
    assert read == ["2", "5", "8"]


def test_iterator_is_not_read_past_the_end():
    taken = []
    frames = open_source((taken.append(level) or grays((level,))[0] for level in range(100)), ClipOptions(end=3))
    assert indices(frames) == [0, 1, 2]
    assert len(taken) <= 4


def test_clip_options_are_rejected_for_an_open_source():
    with pytest.raises(UserError, match="already open"):
        open_source(open_source(grays((1, 2))), ClipOptions(start=1))


def test_decode_range_is_lazy():
    taken = []

    def come():
        for index in range(9):
            taken.append(index)
            yield LazyFrame(str(index), lambda: grays((1,))[0])

    frames = decode_range(come(), FrameRange(every=3), 24, "stop")
    assert [(next(frames).name, len(taken)) for _ in range(3)] == [("0", 1), ("3", 4), ("6", 7)]
