"""Folders, globs, single images and arrays as sources, and rejected input."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from uvos_jax.errors import UserError
from uvos_jax.video import Frame, open_source


def picture(value: int, height: int = 6, width: int = 8) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[...] = value, value // 2, 0
    return image


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def assert_rejected(source, match: str) -> str:
    with pytest.raises(UserError, match=match) as caught:
        open_source(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folder_is_read_in_natural_order_and_is_rereadable(tmp_path):
    folder = tmp_path / "my.clip"
    for number in (10, 2, 1, 33):
        save(folder / f"frame{number}.png", picture(number))
    source = open_source(folder)
    assert (source.name, source.kind, source.fps, source.length) == ("my.clip", "folder", 24.0, 4)
    assert (source.live, source.rereadable) == (False, True)
    for _ in range(2):
        frames = list(source)
        assert [frame.name for frame in frames] == ["frame1", "frame2", "frame10", "frame33"]
        assert [frame.image[0, 0].tolist() for frame in frames] == [[n, n // 2, 0] for n in (1, 2, 10, 33)]
    assert all(isinstance(frame, Frame) and frame.image.dtype == np.uint8 for frame in frames)


def test_folder_skips_hidden_nested_and_other_files(tmp_path):
    for name in ("a.JPG", "b.WebP", ".hidden.png", "sub/c.png"):
        save(tmp_path / name, picture(9))
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "odd.png").mkdir()
    assert [frame.name for frame in open_source(str(tmp_path))] == ["a", "b"]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff"])
def test_all_image_formats_are_read(tmp_path, suffix):
    save(tmp_path / f"x.{suffix}", picture(200))
    (frame,) = open_source(tmp_path)
    np.testing.assert_allclose(frame.image, picture(200), atol=4)  # some formats are lossy


def test_gray_alpha_and_16_bit_frames_become_rgb(tmp_path):
    gray = np.arange(48, dtype=np.uint8).reshape(6, 8)
    save(tmp_path / "0.png", gray)
    alpha = np.dstack([picture(100), np.zeros((6, 8), np.uint8)])
    save(tmp_path / "1.png", alpha)
    cv2.imwrite(str(tmp_path / "2.png"), np.full((6, 8, 3), 200 * 257, np.uint16))
    images = [frame.image for frame in open_source(tmp_path)]
    np.testing.assert_array_equal(images[0], np.dstack([gray] * 3))
    np.testing.assert_array_equal(images[1], picture(100))
    np.testing.assert_array_equal(images[2], np.full((6, 8, 3), 200))


def test_exif_orientation_is_applied(tmp_path):
    image = picture(0, 16, 32)
    image[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise for display
    Image.fromarray(image).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    (frame,) = open_source(tmp_path)
    assert frame.image.shape == (32, 16, 3)
    assert frame.image[4, 8].min() > 200 and frame.image[28, 8].max() < 50


def test_single_image_source(tmp_path):
    source = open_source(save(tmp_path / "still.png", picture(5)))
    assert (source.name, source.kind, source.length) == ("still", "file", 1)
    assert [frame.name for frame in source] == ["still"]


def test_glob_source(tmp_path):
    for name in ("a10.png", "a9.png", "b1.png"):
        save(tmp_path / "shots" / name, picture(1))
    source = open_source(str(tmp_path / "shots" / "a*.png"))
    assert (source.name, source.kind, source.length) == ("shots", "glob", 2)
    assert [frame.name for frame in source] == ["a9", "a10"]
    assert open_source(tmp_path / "s*" / "*").name == tmp_path.name


def test_folder_name_with_wildcards_is_literal(tmp_path):
    save(tmp_path / "clip [1]" / "0.png", picture(1))
    assert open_source(tmp_path / "clip [1]").kind == "folder"


def test_array_source():
    video = np.stack([picture(value) for value in range(3)])
    source = open_source(video)
    assert (source.kind, source.length, source.live, source.rereadable) == ("iterator", 3, False, True)
    for _ in range(2):
        frames = list(source)
        assert [frame.name for frame in frames] == ["00000", "00001", "00002"]
        np.testing.assert_array_equal([frame.image for frame in frames], video)


def test_list_has_a_length_and_is_rereadable():
    source = open_source([picture(1), picture(2)])
    assert (source.length, source.live, source.rereadable) == (2, False, True)
    assert [len(list(source)), len(list(source))] == [2, 2]


def test_generator_is_read_once_and_never_ahead():
    taken = []
    camera = (taken.append(value) or picture(value) for value in itertools.count())
    source = open_source(camera, live=True)
    assert (source.length, source.live, source.rereadable) == (None, True, False)
    assert not open_source(iter([])).live  # iterators are not live by default
    assert taken == []
    frames = iter(source)
    assert (next(frames).name, next(frames).name, taken) == ("00000", "00001", [0, 1])
    frames.close()
    with pytest.raises(UserError, match="a second time"):
        iter(source)


def test_opened_source_is_returned_unchanged():
    source = open_source([picture(1)])
    assert open_source(source) is source


def test_missing_path_suggests_the_nearest_name(tmp_path):
    save(tmp_path / "videos" / "goldfish" / "0.png", picture(1))
    assert_rejected(tmp_path / "videos" / "goldfsh", r"goldfsh' does not exist\. Did you mean 'goldfish'\?")
    assert_rejected(tmp_path / "vidoes" / "goldfish", r"there is no 'vidoes' in .* Did you mean 'videos'\?")
    assert_rejected(tmp_path / "videos" / "goldfish" / "0.png" / "x", "does not exist")
    assert_rejected("", "empty path")
    assert_rejected(tmp_path / "line\nbreak", r"line\\nbreak' does not exist")


def test_folder_without_frames_is_rejected(tmp_path):
    assert_rejected(tmp_path, "has no frames .*png")
    save(tmp_path / "bear" / "0.png", picture(1))
    (tmp_path / "aaa").mkdir()
    assert_rejected(tmp_path, "subfolders with frames: 'bear'. Give")
    save(tmp_path / "boat" / "0.png", picture(1))
    assert_rejected(tmp_path, r"subfolders with frames: 'bear' and 1 more. Give")


def test_glob_without_images_is_rejected(tmp_path):
    assert_rejected(tmp_path / "*.png", "matches nothing")
    (tmp_path / "a.txt").write_text("")
    assert_rejected(tmp_path / "*.txt", "matches no image")


def test_frames_with_equal_stems_are_rejected(tmp_path):
    for name in ("0.png", "0.jpg"):
        save(tmp_path / name, picture(1))
    assert_rejected(tmp_path, r"0\.jpg' and '.*0\.png' would overwrite")


@pytest.mark.parametrize("content", [b"", b"not a picture at all"])
def test_undecodable_first_frame_is_rejected_on_open(tmp_path, content):
    (tmp_path / "0.png").write_bytes(content)
    assert_rejected(tmp_path, r"Cannot decode the frame '.*0\.png'")
    assert_rejected(tmp_path / "0.png", r"Cannot decode the frame '.*0\.png'")


@pytest.mark.parametrize("side", [9000, 60000])
def test_oversized_image_is_rejected_by_its_header(tmp_path, side):
    path = save(tmp_path / "0.jpg", picture(1, 16, 16))
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xc0") + 5  # height and width follow the marker, its length and the depth
    data[start : start + 4] = side.to_bytes(2, "big") * 2
    path.write_bytes(data)
    assert_rejected(tmp_path, r"Cannot use the frame '.*0\.jpg': it has more than 64 megapixels. Reduce its size")


def test_truncated_png_is_rejected_and_trailing_bytes_are_ignored(tmp_path):
    path = save(tmp_path / "0.png", picture(1, 16, 16))
    data = bytearray(path.read_bytes())
    data += b"what follows the end does not matter"
    path.write_bytes(data)
    np.testing.assert_array_equal(next(iter(open_source(tmp_path))).image, picture(1, 16, 16))
    start = data.index(b"IDAT") - 4
    data[start : start + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(data)
    assert_rejected(tmp_path, r"Cannot decode the frame '.*0\.png': it is truncated")


def test_broken_link_is_an_error(tmp_path):
    (tmp_path / "0.png").symlink_to(tmp_path / "gone.png")
    assert_rejected(tmp_path, "Cannot read the frame .*No such file or directory. Check that it exists")


def test_undecodable_later_frame_is_an_error(tmp_path):
    save(tmp_path / "0.png", picture(1))
    whole = save(tmp_path / "1.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    whole.write_bytes(whole.read_bytes()[:400])
    frames = iter(open_source(tmp_path))
    assert next(frames).name == "0"
    with pytest.raises(UserError, match=r"Cannot decode the frame '.*1\.png'") as caught:
        next(frames)
    assert "\n" not in str(caught.value)


def test_frames_of_different_sizes_are_rejected(tmp_path):
    save(tmp_path / "a.png", picture(1, 6, 8))
    save(tmp_path / "b.png", picture(1, 8, 6))
    with pytest.raises(UserError, match=r"'b' is 6x8 but the first frame, 'a', is 8x6"):
        list(open_source(tmp_path))
    with pytest.raises(UserError, match=r"'00001' is 6x8 but the first frame, '00000', is 8x6"):
        list(open_source(iter([picture(1, 6, 8), picture(1, 8, 6)])))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((2, 6, 8, 3), np.float32), r"float32 array of shape \(2, 6, 8, 3\)"),
        (np.zeros((2, 6, 8, 3), np.int64), r"an int64 array"),
        (np.zeros((6, 8, 3), np.uint8), r"shape \(6, 8, 3\)"),
        (np.zeros((2, 3, 6, 8), np.uint8), r"shape \(2, 3, 6, 8\)"),
        (np.zeros((0, 6, 8, 3), np.uint8), "non-empty"),
    ],
)
def test_invalid_arrays_are_rejected(array, match):
    assert_rejected(array, match)


@pytest.mark.parametrize("source", [None, 7, b"frames", {"a": 1}, {1, 2}, open_source])
def test_unsupported_types_are_rejected(source):
    assert_rejected(source, f"object of type '{type(source).__name__}'")


def test_lists_of_other_objects_are_rejected():
    assert_rejected([], "list .* has no frames")
    assert_rejected(["a.png", "b.png"], "'00000' is an object of type 'str'")
    assert_rejected([np.zeros((6, 8), np.uint8)], r"'00000' is a uint8 array of shape \(6, 8\)")


def test_iterator_fails_at_the_first_invalid_frame():
    frames = iter(open_source(iter([picture(1), picture(1) / 255])))
    next(frames)
    with pytest.raises(UserError, match="'00001' is a float64 array"):
        next(frames)
    with pytest.raises(UserError, match="has no frames"):
        list(open_source(iter([])))


def test_exception_of_the_iterator_is_propagated():
    def camera():
        yield picture(1)
        raise ConnectionError("unplugged")

    with pytest.raises(ConnectionError):
        list(open_source(camera()))


def test_davis_folder(real_data):
    source = open_source(real_data / "davis2016/JPEGImages/480p/bear")
    assert (source.name, source.length) == ("bear", 82)
    frames = list(source)
    assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(82)]
    assert {frame.image.shape for frame in frames} == {(480, 854, 3)}
