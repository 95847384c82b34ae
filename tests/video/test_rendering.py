"""Rendering of overlays and parsing of overlay styles."""

import cv2
import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.video import PALETTE, OverlayStyle, draw_overlay, parse_overlay_style


def square(height: int = 40, width: int = 50, label: int = 1) -> np.ndarray:
    labels = np.zeros((height, width), np.uint8)
    labels[10:30, 10:30] = label
    return labels


def test_overlay_tints_and_outlines_the_object_only():
    image = np.full((40, 50, 3), 100, np.uint8)
    overlay = draw_overlay(image, square())
    np.testing.assert_array_equal(image, 100)
    np.testing.assert_array_equal(overlay[square() == 0], 100)
    outline, inner = overlay[10, 10].astype(int), overlay[20, 20].astype(int)
    assert outline[0] > 180 and outline[1:].max() < 60, "label 1 is a bright red"
    np.testing.assert_allclose(inner, (outline + 100) / 2, atol=1)
    np.testing.assert_array_equal(overlay[10, 10:30], np.tile(outline, (20, 1)))
    np.testing.assert_array_equal(overlay[11:29, 11:29], np.tile(inner, (18, 18, 1)))


def test_overlay_outlines_touching_objects():
    labels = square()
    labels[10:30, 20:30] = 2
    overlay = draw_overlay(np.full((40, 50, 3), 100, np.uint8), labels, style=OverlayStyle(alpha=0))
    changed = (overlay != 100).any(-1)
    assert changed[20].nonzero()[0].tolist() == [10, 19, 20, 29]


def test_overlay_has_no_outline_at_the_image_border():
    overlay = draw_overlay(np.full((40, 50, 3), 100, np.uint8), np.ones((40, 50), bool), style=OverlayStyle(alpha=0))
    np.testing.assert_array_equal(overlay, 100)


def test_overlay_outline_is_wider_on_large_frames():
    labels = np.zeros((720, 60), np.uint8)
    labels[:, 20:40] = 1
    overlay = draw_overlay(np.zeros((720, 60, 3), np.uint8), labels, style=OverlayStyle(alpha=0))
    assert overlay[300].any(-1).nonzero()[0].tolist() == [20, 21, 38, 39]


@pytest.mark.parametrize("label", [0, 255])
def test_overlay_keeps_background_and_void(label):
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    overlay = draw_overlay(image, square(label=label).astype(np.int32))
    np.testing.assert_array_equal(overlay, image)
    assert not np.shares_memory(overlay, image)


def test_overlay_colors_are_visible_and_distinct():
    labels = np.repeat(np.arange(1, 251, dtype=np.uint8).reshape(10, 25), 3, axis=1)
    overlay = draw_overlay(np.zeros((10, 75, 3), np.uint8), labels, style=OverlayStyle(alpha=1))
    colors = overlay[:, 1::3].reshape(-1, 3)
    assert len(np.unique(colors, axis=0)) == len(np.unique(PALETTE[1:251], axis=0)) == 250
    assert colors.max(1).min() >= 110


def test_overlay_uses_the_given_palette():
    palette = PALETTE.copy()
    palette[1] = (0, 0, 255)
    overlay = draw_overlay(np.zeros((40, 50, 3), np.uint8), square(), OverlayStyle(alpha=1), palette)
    np.testing.assert_array_equal(overlay[20, 20], (0, 0, 255))
    assert (draw_overlay(np.zeros((40, 50, 3), np.uint8), square(), OverlayStyle(alpha=1))[20, 20, 1:] == 0).all()
    black = np.zeros_like(PALETTE)
    assert not draw_overlay(np.zeros((40, 50, 3), np.uint8), square(), OverlayStyle(alpha=1), black).any()


def test_overlay_rejects_labels_of_another_size():
    with pytest.raises(ValueError, match="do not fit"):
        draw_overlay(np.zeros((40, 50, 3), np.uint8), square(50, 40))


@pytest.mark.parametrize("width", [0, 1, 5])
def test_contour_has_the_given_width(width):
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 20:40] = 1
    overlay = draw_overlay(np.zeros((40, 60, 3), np.uint8), labels, OverlayStyle(alpha=0, contour=width))
    assert overlay[20].any(-1).nonzero()[0].tolist() == [*range(20, 20 + width), *range(40 - width, 40)]


def picture_and_labels():
    """Returns a noise image and labels with two touching objects and void."""
    labels = square(label=3)
    labels[15:35, 30:45], labels[:5] = 7, 255
    return np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8), labels


def test_background_color_replaces_all_but_objects():
    image, labels = picture_and_labels()
    cut = draw_overlay(image, labels, OverlayStyle(alpha=0, contour=0, background=(0, 255, 7)))
    np.testing.assert_array_equal(cut, np.where(((labels == 3) | (labels == 7))[..., None], image, (0, 255, 7)))


@pytest.mark.parametrize("background", ["gray", "blur"])
def test_effects_change_only_the_background(background):
    image, labels = picture_and_labels()
    objects = (labels == 3) | (labels == 7)
    seen = draw_overlay(image, labels, OverlayStyle(alpha=0, contour=0, background=background))
    np.testing.assert_array_equal(seen[objects], image[objects])
    outside = seen[~objects].astype(int)
    if background == "gray":
        np.testing.assert_array_equal(outside, outside[:, :1].repeat(3, axis=1))
        # Luma weights of BT.601.
        np.testing.assert_allclose(outside[:, 0], image[~objects] @ [0.299, 0.587, 0.114], atol=1)
    else:
        assert outside.std(0).max() < image[~objects].std(0).min() / 2
        np.testing.assert_allclose(outside.mean(0), image[~objects].mean(0), atol=8)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 2), (90, 1)])
@pytest.mark.parametrize("background", [None, "gray", "blur", (0, 255, 0)])
def test_overlay_of_tiny_frames(size, background):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for labels in (np.zeros(size, np.uint8), np.ones(size, bool)):
        seen = draw_overlay(image, labels, OverlayStyle(alpha=0, contour=0, background=background))
        assert seen.shape == image.shape and seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, image)


def test_blur_keeps_uniform_frames_of_any_size():
    for height, width in [(1, 1), (1, 30), (3, 2), (300, 5)]:
        plain = np.full((height, width, 3), (9, 90, 200), np.uint8)
        seen = draw_overlay(plain, np.zeros((height, width), np.uint8), OverlayStyle(background="blur"))
        np.testing.assert_array_equal(seen, plain)


@pytest.mark.parametrize("size", [(40, 60), (700, 1100)])
def test_objects_do_not_bleed_into_blurred_background(size):
    labels = np.zeros(size, np.uint8)
    labels[10:30, 5:50] = 1
    labels[15:17, 20:22] = 0  # a hole
    image = np.where(labels[..., None] > 0, 255, (10, 60, 110)).astype(np.uint8)
    seen = draw_overlay(image, labels, OverlayStyle(alpha=0, contour=0, background="blur"))
    np.testing.assert_allclose(seen[labels == 0], np.tile((10, 60, 110), ((labels == 0).sum(), 1)), atol=1)


def test_blur_radius_grows_with_frame_size():
    stripes = np.tile(np.arange(1920) // 20 % 2 * 255, (1080, 1)).astype(np.uint8)
    seen = draw_overlay(cv2.merge([stripes] * 3), np.zeros((1080, 1920), np.uint8), OverlayStyle(background="blur"))
    assert seen[500, 400:1500].std() < 20 < stripes.std()


@pytest.mark.parametrize(("text", "background"), [
    (None, None), ("", None), ("blur", "blur"), (" Gray", "gray"), ("gray", "gray"), ("green", (0, 128, 0)),
    ("#00ff00", (0, 255, 0)), ("#0F0", (0, 255, 0)), ("0,255, 7", (0, 255, 7)), ("rgb(1,2,3)", (1, 2, 3)),
    ("hsl(0,100%,50%)", (255, 0, 0)),
])
def test_overlay_style_is_parsed(text, background):
    assert parse_overlay_style(0.25, 3, text) == OverlayStyle(alpha=0.25, contour=3, background=background)


@pytest.mark.parametrize(("values", "message"), [
    ((1.5, None, None), "alpha .* got 1.5"), ((-0.1, 1, None), "alpha"), ((float("nan"), 1, None), "alpha"),
    ((0.5, -1, None), "contour .* got -1"), ((0.5, 101, None), "contour"),
    ((0.5, 1, "gren"), "Unknown background 'gren'.*Did you mean 'green'"), ((0.5, 1, "blurr"), "Did you mean 'blur'"),
    ((0.5, 1, "#12"), "Unknown background"), ((0.5, 1, "1,2"), "Unknown background"),
    ((0.5, 1, "a,b,c"), "Unknown background"),
    ((0.5, 1, "0,300,0"), "not a color of three values"), ((0.5, 1, "#00ff0080"), "--cutout"),
    ((0.5, 1, "1,2,3,4"), "Unknown background"), ((0.5, 1, "new\nline"), "Unknown background"),
])
def test_invalid_overlay_styles_are_rejected(values, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_overlay_style(*values)
    assert "\n" not in str(caught.value)
