"""Optical flow files and their visualization."""

import struct

import cv2
import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.video.flow_io import flow_picture, read_flow, resize_flow, write_flow

FLOW = np.random.default_rng(0).normal(0, 30, (6, 8, 2)).astype(np.float32)


def test_flow_picture_equals_published_color_wheel(golden):
    with np.load(golden / "flow_to_rgb.npz") as known:
        for name in "123":
            np.testing.assert_array_equal(flow_picture(known[f"flow{name}"]), known[f"rgb{name}"])


def test_zero_flow_is_white():
    assert (flow_picture(np.zeros((2, 3, 2), np.float32)) == 255).all()


def test_flo_file_has_middlebury_layout(tmp_path):
    by_hand = struct.pack("<4s2i12f", b"PIEH", 3, 2, *range(12))
    (tmp_path / "hand.flo").write_bytes(by_hand)
    flow = read_flow(tmp_path / "hand.flo")
    assert flow.dtype == np.float32 and flow.shape == (2, 3, 2)
    assert flow[1, 0].tolist() == [6, 7]  # row-major, dx before dy
    write_flow(tmp_path / "ours.flo", flow)
    assert (tmp_path / "ours.flo").read_bytes() == by_hand


def test_png_file_has_kitti_layout(tmp_path):
    write_flow(tmp_path / "ours.png", np.array([[[1.5, -2], [0, 511.98]]], np.float32))
    blue, green, red = np.moveaxis(cv2.imread(str(tmp_path / "ours.png"), cv2.IMREAD_UNCHANGED), -1, 0)
    assert red.tolist() == [[2**15 + 96, 2**15]] and green.tolist() == [[2**15 - 128, 65535]]
    assert blue.tolist() == [[1, 1]]
    cv2.imwrite(str(tmp_path / "hand.png"), np.array([[[1, 2**15 + 64, 2**15 - 32]]], np.uint16))
    assert read_flow(tmp_path / "hand.png").tolist() == [[[-0.5, 1]]]


@pytest.mark.parametrize(("suffix", "step"), [(".flo", 0), (".npy", 0), (".png", 1 / 64)])
def test_flow_round_trip(tmp_path, suffix, step):
    path = tmp_path / f"a{suffix}"
    write_flow(path, FLOW)
    assert np.abs(read_flow(path) - FLOW).max() <= step / 2
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_flow_beyond_png_range_is_rejected_without_output(tmp_path):
    with pytest.raises(UserError, match=r"513 pixels.*holds at most 512.*\.flo"):
        write_flow(tmp_path / "a.png", np.full((2, 2, 2), -513, np.float32))
    assert not list(tmp_path.iterdir())


def _npy(array):
    return lambda path: np.save(path, array)


def _png(pixels):
    return lambda path: cv2.imwrite(str(path), pixels)


def _claim(path, side):
    data = path.read_bytes()
    path.write_bytes(data[:16] + 2 * side.to_bytes(4, "big") + data[24:])


FULL = np.full((2, 2, 3), 2**15, np.uint16)
HOLE = np.full((2, 2, 3), 2**15, np.uint16)
HOLE[0, 1] = 0


@pytest.mark.parametrize(("name", "make", "words"), [
    ("cut.flo", lambda path: path.write_bytes(struct.pack("<4s2i", b"PIEH", 3, 2) + bytes(40)),
     "Cannot read .* as flow"),
    ("other.flo", lambda path: path.write_bytes(bytes(100)), "it has no .flo header"),
    ("empty.flo", lambda path: path.touch(), "Cannot read .* as flow"),
    ("nan.npy", _npy(np.full((2, 2, 2), np.nan)), "not finite"),
    ("long.npy", _npy(np.full((2, 2, 2), 1e300)), "exceeds a million pixels"),
    ("flat.npy", _npy(np.zeros((2, 2))), r"is not flow \[h, w, 2\] but float64 \[2, 2\]"),
    ("words.npy", _npy(np.full((2, 2, 2), "a")), "is not flow"),
    ("objects.npy", _npy(np.full((2, 2, 2), None, object)), "Cannot read .* as flow"),
    ("picture.png", _png(np.zeros((2, 2, 3), np.uint8)), "image of flow on the color wheel, which cannot be read back"),
    ("gray.png", _png(np.zeros((2, 2), np.uint16)), "image of flow"),
    ("sparse.png", _png(HOLE), "pixels without flow"),
    ("text.png", lambda path: path.write_text("hello"), "not a complete PNG file"),
    ("large.png", lambda path: (_png(FULL)(path), _claim(path, 100_000)), "more than 64 megapixels"),
    ("missing.flo", lambda path: None, "No such file"),
])
def test_invalid_flow_files_are_rejected(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(UserError, match=words) as error:
        read_flow(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_writing_into_missing_folder_is_rejected(tmp_path):
    with pytest.raises(UserError, match="Cannot write"):
        write_flow(tmp_path / "none" / "a.flo", FLOW)


def test_resize_flow_scales_vectors():
    flow = np.broadcast_to(np.array([3, -4], np.float32), (10, 20, 2))
    for size in ((10, 20), (5, 60), (7, 13), (40, 80)):
        resized = resize_flow(flow, size)
        assert resized.shape == (*size, 2) and resized.dtype == np.float32
        np.testing.assert_allclose(resized, np.broadcast_to([3 * size[1] / 20, -4 * size[0] / 10], (*size, 2)),
                                   rtol=1e-5)
    # A zoom of 10% moves each pixel by a tenth of its distance from the border, at any size.
    y, x = np.mgrid[:32, :48] + 0.5
    half = resize_flow(np.dstack([0.1 * x, 0.1 * y]).astype(np.float32), (16, 24))
    y, x = np.mgrid[:16, :24] + 0.5
    np.testing.assert_allclose(half, np.dstack([0.1 * x, 0.1 * y]), rtol=1e-4)
