"""Label masks: accepted encodings, rejected files, and the round trip."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uvos_jax.errors import UserError
from uvos_jax.video import PALETTE, read_mask, write_mask
from uvos_jax.video.mask_io import read_palette


def tiled(*values: int) -> np.ndarray:
    """Returns an image of 12 rows in which each value fills five columns."""
    return np.tile(np.repeat(np.array(values, np.uint8), 5), (12, 1))


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(PALETTE.tobytes())
    elif mode:
        image = image.convert(mode)
    image.save(path, **options)
    return path


def assert_rejected(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read_mask(path)
    assert "\n" not in str(caught.value)


def test_palette_equals_voc():
    assert PALETTE.dtype == np.uint8 and PALETTE.shape == (256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    for label, color in known.items():
        assert tuple(PALETTE[label]) == color


@pytest.mark.parametrize("values", [(0, 1, 2, 255), (0, 255), (7,), (0, 100, 200)])
def test_indexed_png_gives_its_indices(tmp_path, values):
    labels = read_mask(save(tmp_path / "x.png", tiled(*values), "P"))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, tiled(*values))


def test_one_bit_png_gives_0_and_1(tmp_path):
    labels = read_mask(save(tmp_path / "x.png", tiled(0, 255), "1"))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, tiled(0, 1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 255), (0, 1)),
        ((0, 1), (0, 1)),
        ((0, 3), (0, 1)),
        ((0, 0), (0, 0)),
        ((255, 255), (1, 1)),
        ((1, 2), (1, 2)),
        ((0, 1, 20), (0, 1, 20)),
        ((0, 1, 2, 255), (0, 1, 2, 255)),
        ((0, 1, 255), (0, 1, 255)),
    ],
)
def test_gray_levels_map_to_labels(tmp_path, values, expected):
    labels = read_mask(save(tmp_path / "x.png", tiled(*values)))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, tiled(*expected))


@pytest.mark.parametrize("values", [(1, 255), (0, 1, 21), (0, 128, 255), (128, 255)])
def test_ambiguous_gray_levels_are_listed(tmp_path, values):
    path = save(tmp_path / "x.png", tiled(*values))
    assert_rejected(path, f"has the gray levels {', '.join(map(str, values))}, which are neither")


def test_antialiased_mask_is_rejected(tmp_path):
    blurred = np.asarray(Image.fromarray(tiled(0, 255, 0)).resize((100, 36), Image.Resampling.BICUBIC))
    assert len(np.unique(blurred)) > 8
    path = save(tmp_path / "x.png", blurred)
    assert_rejected(path, r"x\.png' has too many gray levels, so it was antialiased .* Threshold it at 128")


def test_jpeg_is_accepted_only_without_artifacts(tmp_path):
    np.testing.assert_array_equal(read_mask(save(tmp_path / "flat.jpg", tiled(0, 0))), tiled(0, 0))
    assert_rejected(save(tmp_path / "a.jpg", tiled(0, 255)), r"has too many gray levels, so .* saved as JPEG")
    # Compression artifacts of small ids are small values too, and must not be read as ids.
    path = save(tmp_path / "b.jpg", tiled(0, 9, 2, 5), quality=50)
    assert np.asarray(Image.open(path)).max() <= 20
    assert_rejected(path, "saved as JPEG")


def test_gray_with_alpha_must_be_opaque_and_binary(tmp_path):
    gray = tiled(0, 255)
    opaque = np.dstack([gray, np.full_like(gray, 255)])
    np.testing.assert_array_equal(read_mask(save(tmp_path / "x.png", opaque)), tiled(0, 1))
    opaque[..., 0] = tiled(1, 2)
    assert_rejected(save(tmp_path / "y.png", opaque), "gray levels 1, 2 and an alpha channel")
    assert_rejected(save(tmp_path / "z.png", np.dstack([gray, gray])), "partly transparent")


@pytest.mark.parametrize(
    ("mode", "match"),
    [("RGB", "an RGB image, not a label image"), ("RGBA", "an RGBA image"), ("I;16", "16 bits or more")],
)
def test_color_and_16_bit_images_are_rejected(tmp_path, mode, match):
    assert_rejected(save(tmp_path / "x.png", tiled(0, 255), mode), match)


def test_missing_and_invalid_files_are_rejected(tmp_path):
    whole = save(tmp_path / "00000.png", tiled(0, 255)).read_bytes()
    assert_rejected(tmp_path / "0000.png", r"0000\.png' does not exist\. Did you mean '00000\.png'\?")
    assert_rejected(tmp_path / "no_folder" / "0.png", "does not exist")
    (tmp_path / "text.png").write_text("text")
    assert_rejected(tmp_path / "text.png", "is not an image file")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert_rejected(tmp_path / "cut.png", r"Cannot read the mask '.*cut\.png'")
    assert_rejected(tmp_path, "Cannot read the mask .*: Is a directory")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.int64])
def test_round_trip(tmp_path, dtype):
    labels = np.random.default_rng(0).integers(0, 2 if dtype is bool else 256, (47, 63)).astype(dtype)
    write_mask(tmp_path / "x.png", labels.T[::-1])  # a non-contiguous view
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png"), labels.T[::-1])
    with Image.open(tmp_path / "x.png") as image:
        assert (image.mode, image.size) == ("P", (47, 63))
        np.testing.assert_array_equal(np.reshape(image.getpalette(), (256, 3)), PALETTE)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((4, 5), np.float32),
        np.zeros((4, 5, 1), np.uint8),
        np.zeros((0, 5), np.uint8),
        np.full((4, 5), 256),
        np.full((4, 5), -1, np.int8),
    ],
)
def test_invalid_labels_are_rejected(tmp_path, labels):
    with pytest.raises(ValueError, match="labels must be"):
        write_mask(tmp_path / "x.png", labels)
    assert not list(tmp_path.iterdir())


def test_write_error_leaves_no_file(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UserError, match=r"Cannot write '.*x\.png': Is a directory"):
        write_mask(tmp_path / "x.png", tiled(0, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    with pytest.raises(UserError, match="No such file or directory"):
        write_mask(tmp_path / "missing" / "x.png", tiled(0, 1))


def test_davis_mask_with_alpha(real_data):
    path = real_data / "davis2016/Annotations/480p/bear/00077.png"
    assert Image.open(path).mode == "LA"
    labels = read_mask(path)
    assert labels.shape == (480, 854)
    assert np.unique(labels).tolist() == [0, 1]


def test_indexed_mask_of_five_objects(real_data):
    labels = read_mask(real_data / "gold-fish/Annotations/00000.png")
    assert np.unique(labels).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("palette", [
    [192, 0, 0, 0, 0, 0, 0, 128, 0],  # as written by color quantization
    [255, 255, 255, 0, 0, 0, 128, 0, 0],
    bytes(reversed(range(256))) * 3,
])
def test_palette_without_dark_background_is_rejected(tmp_path, palette):
    image = Image.fromarray(tiled(0, 1, 2))
    image.putpalette(palette)
    image.save(tmp_path / "x.png")
    assert_rejected(tmp_path / "x.png", r"x\.png' has a palette whose entry 0 is not the dark background")


def test_other_palettes_with_dark_background_are_accepted(tmp_path):
    image = Image.fromarray(tiled(0, 1, 2))
    image.putpalette([0, 0, 0, 200, 50, 50, 10, 10, 90])
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png"), tiled(0, 1, 2))


def test_numbered_gray_levels_are_labels(tmp_path):
    for values in ((0, 2), (0, 255), (3, 3), (0, 1, 20, 255)):
        path = save(tmp_path / "x.png", tiled(*values))
        np.testing.assert_array_equal(read_mask(path, numbered=True), tiled(*values))
    with pytest.raises(UserError, match="neither 0/255 nor object ids"):
        read_mask(save(tmp_path / "y.png", tiled(0, 100)), numbered=True)


def test_palette_round_trip(tmp_path):
    palette = np.random.default_rng(0).integers(1, 256, (256, 3)).astype(np.uint8)
    palette[0] = 0
    write_mask(tmp_path / "own.png", tiled(0, 1, 200), palette)
    np.testing.assert_array_equal(read_palette(tmp_path / "own.png"), palette)
    np.testing.assert_array_equal(read_mask(tmp_path / "own.png"), tiled(0, 1, 200))
    short = Image.fromarray(tiled(0, 1))
    short.putpalette([60, 60, 60, 250, 0, 0])
    short.save(tmp_path / "short.png")
    assert read_palette(tmp_path / "short.png") is None  # the color of object 8 is darker than this background
    short.putpalette([0, 0, 0, 250, 0, 0])
    short.save(tmp_path / "short.png")
    found = read_palette(tmp_path / "short.png")
    np.testing.assert_array_equal(found[:2], [(0, 0, 0), (250, 0, 0)])
    np.testing.assert_array_equal(found[-1], PALETTE[-1])
    assert read_palette(save(tmp_path / "gray.png", tiled(0, 255), "L")) is None
