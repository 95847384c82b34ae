"""Affine maps and the interpolation of images, labels and flow."""

import itertools
from collections import Counter

import cv2
import numpy as np
import pytest
from scipy.stats import chisquare

from uvos_jax.data.examples.geometry import (
    compose,
    foreground_crop,
    margin_crop,
    random_crop,
    reduction,
    resize,
    warp_flow,
    warp_image,
    warp_labels,
)
from uvos_jax.data.examples.sampling import generator

FILL = (9, 8, 7)
IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])


def _image(height=30, width=40):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _labels(height=30, width=40):
    labels = np.zeros((height, width), np.uint8)
    labels[8:15, 10:22], labels[20:22, 30:31], labels[0:3, 5:9] = 3, 200, 255
    return labels


def _mirror(width):
    return np.array([[-1.0, 0, width], [0, 1, 0]])


def _turn(degrees, size):
    angle = np.deg2rad(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.array([size[1] / 2, size[0] / 2])
    return np.column_stack([linear, center - linear @ center])


def _sampled(image, matrix, size, y, x):
    """Bilinear reference in float with replicated border; None outside."""
    height, width = image.shape[:2]
    sx, sy = matrix @ [x + 0.5, y + 0.5, 1]
    if not (0 <= sx <= width and 0 <= sy <= height):
        return None
    sx, sy = np.clip([sx - 0.5, sy - 0.5], 0, [width - 1, height - 1])
    x0, y0 = int(min(sx, width - 2)), int(min(sy, height - 2))
    fx, fy = sx - x0, sy - y0
    block = image[y0:y0 + 2, x0:x0 + 2].astype(float)
    return (block[0, 0] * (1 - fx) + block[0, 1] * fx) * (1 - fy) + (block[1, 0] * (1 - fx) + block[1, 1] * fx) * fy


def test_identity_and_mirror_keep_every_byte():
    image, labels, size = _image(), _labels(), (30, 40)
    np.testing.assert_array_equal(warp_image(image, IDENTITY, size, FILL), image)
    np.testing.assert_array_equal(warp_labels(labels, IDENTITY, size, 255), labels)
    np.testing.assert_array_equal(warp_image(image, _mirror(40), size, FILL), image[:, ::-1])
    np.testing.assert_array_equal(warp_labels(labels, _mirror(40), size, 255), labels[:, ::-1])
    np.testing.assert_allclose(compose(_mirror(40), _mirror(40)), IDENTITY)


@pytest.mark.parametrize("matrix", [
    np.array([[1.3, 0.0, 2.2], [0.0, 0.9, -3.4]]),
    compose(_turn(33, (30, 40)), np.array([[0.7, 0, 4], [0, 0.7, 3]])),
    np.array([[0.5, 0, 0], [0, 0.5, 0]]),
])
def test_interpolation_is_bilinear_for_images_and_nearest_for_labels(matrix):
    image, labels, size = _image(), _labels(), (25, 37)
    warped, shown = warp_image(image, matrix, size, FILL), warp_labels(labels, matrix, size, 77)
    for y in range(size[0]):
        for x in range(size[1]):
            position = matrix @ [x + 0.5, y + 0.5, 1]
            if min(position.min(), 40 - position[0], 30 - position[1]) > -0.05 and \
                    min(position.min(), 40 - position[0], 30 - position[1]) < 0.05:
                continue  # on the border, where rounding decides
            expected = _sampled(image, matrix, size, y, x)
            if expected is None:
                assert tuple(warped[y, x]) == FILL and shown[y, x] == 77
                continue
            assert np.abs(warped[y, x] - expected).max() < 3  # OpenCV quantizes positions to 1/32 pixel
            fraction = np.abs(position - np.round(position))
            if fraction.min() > 0.05:
                assert shown[y, x] == labels[int(position[1]), int(position[0])]


def test_warp_creates_no_new_labels():
    labels = _labels()
    for seed in range(20):
        matrix = foreground_crop(generator(seed), labels[None], (41, 63), flip=0.5, upright=0)
        assert set(np.unique(warp_labels(labels, matrix, (41, 63), 255))) <= {0, 3, 200, 255}


def test_reduction_is_limited_by_the_axis_that_shrinks_less():
    def stretched(x, y):
        return np.array([[x, 0, 5], [0, y, 3.0]])

    assert [reduction(stretched(s, s)) for s in (0.3, 1.9, 2, 3.9, 4, 8, 40)] == [1, 1, 2, 2, 4, 8, 8]
    assert reduction(stretched(9, 2.5)) == 2
    assert reduction(compose(_turn(30, (30, 40)), stretched(4.1, 4.1))) == 4
    # An image decoded at half size is aligned with the full image.
    image = np.repeat(np.repeat(_image(), 2, 0), 2, 1)
    matrix = np.array([[2.3, 0, 3], [0, 2.4, 5]])
    half = warp_image(_image(), matrix, (20, 30), FILL, reduce=2)
    whole = warp_image(cv2.blur(image, (2, 2), anchor=(0, 0)), matrix - [[0, 0, 0.5]] * 2, (20, 30), FILL)
    assert np.abs(half.astype(int) - whole).mean() < 2


def test_flow_vectors_are_transformed_with_the_image():
    # A linear motion x -> M x + m. Under a map T, the motion of the output is exactly x -> T^-1 (M T x + m).
    motion = np.array([[1.02, -0.05, 1.5], [0.03, 0.97, -2.0]])
    height, width, size = 60, 80, (33, 47)
    y, x = np.mgrid[:height, :width] + 0.5
    points = np.stack([x, y, np.ones_like(x)], -1)
    flow = (points @ motion.T - points[..., :2]).astype(np.float32)
    # Block means are the same motion at lower resolution; vectors stay in pixels of the full frame.
    coarse = flow.reshape(height // 4, 4, width // 2, 2, 2).mean((1, 3))
    matrices = (np.array([[1.1, 0, 8], [0, 1.4, 6]]), compose(np.array([[1.2, 0, 10], [0, 1.2, 5]]), _mirror(47)),
                compose(_turn(40, (60, 80)), np.array([[0.8, 0, 20], [0, 0.8, 15]])))
    for given, matrix in itertools.product((flow, coarse), matrices):
        out = warp_flow(given, matrix, size, (height, width))
        row, column = np.mgrid[:size[0], :size[1]] + 0.5
        here = np.stack([column, row, np.ones_like(row)], -1)
        source = here @ matrix.T
        moved = np.concatenate([source, np.ones_like(source[..., :1])], -1) @ motion.T
        expected = (moved - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T - here[..., :2]
        inside = ((source > 2) & (source < [width - 2, height - 2])).all(-1)
        assert inside.mean() > 0.4
        assert np.abs(out - expected)[inside].max() < 0.01
        outside = ((source < -0.1) | (source > [width + 0.1, height + 0.1])).any(-1)
        assert (out[outside] == 0).all()


def test_resize_covers_the_whole_frame():
    matrix = resize(generator(0), _labels()[None], (60, 60))
    np.testing.assert_allclose(matrix @ [[0, 60], [0, 60], [1, 1]], [[0, 40], [0, 30]], atol=1e-12)
    flipped = sum(resize(generator(seed), _labels()[None], (60, 60), flip=0.5)[0, 0] < 0 for seed in range(300))
    assert 110 < flipped < 190


def test_foreground_stays_in_an_upright_crop():
    rng = np.random.default_rng(0)
    scales = []
    for seed in range(300):
        labels = np.zeros((2, 90, 160), np.uint8)
        for frame in labels:
            y, x = rng.integers(0, 80), rng.integers(0, 140)
            frame[y:y + rng.integers(1, 30), x:x + rng.integers(1, 50)] = 1
        size = ((90, 160), (64, 64), (160, 90))[seed % 3]
        matrix = foreground_crop(generator(seed), labels, size, upright=1)
        np.testing.assert_allclose(matrix[:, :2], matrix[0, 0] * np.eye(2), rtol=1e-9)  # not distorted
        low, high = matrix @ [0, 0, 1], matrix @ [size[1], size[0], 1]
        rows, columns = np.nonzero(labels.any(0))
        assert (low <= [columns.min() + 1e-6, rows.min() + 1e-6]).all()
        assert (high >= [columns.max() + 1 - 1e-6, rows.max() + 1 - 1e-6]).all()
        if size == (90, 160):  # same shape as the frame: the crop stays inside
            assert (low >= -1e-6).all() and (high <= [160 + 1e-6, 90 + 1e-6]).all()
            scales.append(matrix[0, 0])
    assert min(scales) < 0.5 and max(scales) > 0.95
    assert np.isfinite(foreground_crop(generator(0), np.zeros((1, 9, 16), np.uint8), (9, 16))).all()


def test_rotation_frequencies_match_the_paper():
    labels = np.zeros((1, 60, 60), np.uint8)
    labels[0, 25:35, 25:35] = 1
    turns = Counter()
    for seed in range(4000):
        linear = foreground_crop(generator(7, seed), labels, (40, 40))[:, :2]
        angle = np.rad2deg(np.arctan2(linear[1, 0], linear[0, 0]))
        assert abs(angle / 45 - round(angle / 45)) < 1e-9
        turns[round(angle / 45) % 8] += 1
    expected = [0.51] + [0.07] * 7
    assert chisquare([turns[k] for k in range(8)], 4000 * np.array(expected)).pvalue > 1e-3


def test_quarter_turn_of_a_square_is_exact():
    # The whole square frame is foreground, so the crop is the frame.
    image, labels = _image(40, 40), np.ones((1, 40, 40), np.uint8)
    seen = set()
    for seed in range(60):
        matrix = foreground_crop(generator(seed), labels, (40, 40), upright=0)
        warped = warp_image(image, matrix, (40, 40), FILL)
        matches = [k for k in range(4) if np.array_equal(warped, np.rot90(image, k))]
        if np.abs(matrix[:, :2] % 1).max() == 0:  # a multiple of 90 degrees
            assert len(matches) == 1
            seen.add(matches[0])
    assert seen == {1, 2, 3}


def test_random_crop_covers_the_frame_and_its_scales():
    labels = np.zeros((1, 60, 100), np.uint8)
    scales, lefts, mirrored = [], [], 0
    for seed in range(400):
        matrix = random_crop(generator(seed), labels, (40, 40), short_side=80, scale=(0.5, 1.5))
        scale = 60 / 80 / abs(matrix[0, 0])
        scales.append(scale)
        mirrored += matrix[0, 0] < 0
        corners = matrix @ [[0, 40], [0, 40], [1, 1]]
        if scale * 80 >= 40:  # the crop fits
            assert corners.min() > -1e-6 and corners[0].max() < 100.001 and corners[1].max() < 60.001
        lefts.append(corners[0].min())
    assert 0.5 <= min(scales) < 0.52 and 1.48 < max(scales) <= 1.5
    assert 160 < mirrored < 240 and min(lefts) < 2 and max(lefts) > 60
    # At scale 1 it is a plain crop without interpolation.
    image = _image()
    matrix = random_crop(generator(1), _labels()[None], (10, 12), scale=(1, 1), flip=0)
    left, top = matrix[:, 2].astype(int)
    np.testing.assert_array_equal(warp_image(image, matrix, (10, 12), FILL), image[top:top + 10, left:left + 12])
    # A frame smaller than the crop is completely inside.
    matrix = random_crop(generator(2), _labels()[None], (50, 70), scale=(1, 1), flip=0)
    warped = warp_labels(np.ones((30, 40), np.uint8), matrix, (50, 70), 255)
    assert (warped == 1).sum() == 30 * 40 and (warped == 255).sum() == 50 * 70 - 1200


def test_balanced_crop_contains_foreground():
    labels = np.zeros((1, 100, 200), np.uint8)
    labels[0, 30:90, 10:60] = 1
    labels[0, :, 150:] = 255  # void is not foreground

    def holding(balanced):
        hits = 0
        for seed in range(200):
            matrix = random_crop(generator(seed), labels, (60, 60), scale=(1, 1.3), balanced=balanced)
            hits += (warp_labels(labels[0], matrix, (60, 60), 255) == 1).any()
        return hits / 200

    plain, balanced = holding(False), holding(True)
    assert plain < 0.6
    assert balanced > 0.9 * (1 - (1 - plain) ** 5)  # the rate if one of five independent draws suffices


def test_margin_crop_stays_near_the_frame():
    labels = np.zeros((1, 200, 300), np.uint8)
    turned, angles, widths = 0, set(), []
    for seed in range(500):
        matrix = margin_crop(generator(seed), labels, (100, 100), flip=0)
        corners = matrix @ [[0, 100, 0], [0, 0, 100], [1, 1, 1]]
        right, down = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        widths += [300 - np.hypot(*right), 200 - np.hypot(*down)]
        assert abs(right @ down) < 1e-6  # a rectangle: rotated in the source, then resized
        angle = np.rad2deg(np.arctan2(right[1], right[0]))
        turned += abs(angle) > 1e-9
        angles.add(round(angle))
        assert abs(angle - round(angle)) < 1e-6
        assert np.abs(matrix @ [50, 50, 1] - [150, 100]).max() <= 0.5 + 1e-9  # rotates about the center
    assert 70 < turned < 130 and min(angles) >= -15 and max(angles) <= 15 and len(angles) > 20
    assert min(widths) >= -1e-9 and max(widths) <= 29 + 1e-9 and max(widths) > 25
    np.testing.assert_allclose(np.array(widths), np.round(widths), atol=1e-6)
