"""Synthetic clips: labels and flow against independent geometry and the frames."""

import dataclasses

import cv2
import numpy as np
import pytest
from scipy.optimize import fsolve

from uvos_jax.data.synthetic.clip import make_clip, render
from uvos_jax.data.synthetic.compositor import Layer, Oscillation, Ripples
from uvos_jax.data.synthetic.scene import Scene, draw_scene
from uvos_jax.data.synthetic.shapes import BodyPart, ellipse, signed_distance
from uvos_jax.data.synthetic.textures import noise
from uvos_jax.errors import UserError

SIZE = (96, 168)


def _scene(seed: int, **options) -> Scene:
    return draw_scene(seed, SIZE, options.get("objects", (1, 3)), options.get("still_camera", False))


def _layer_numbers(scene: Scene, time: int) -> np.ndarray:
    """Index of the visible layer at each pixel, counted from the farthest, uint8 [h, w]."""
    layers = [layer for layer in scene.layers if layer.label is not None]
    numbered = [dataclasses.replace(layer, label=number) for number, layer in enumerate(layers)]
    return render(dataclasses.replace(scene, layers=tuple(numbered)), time, SIZE, clean=True)[1]


def _landing(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column and row (float32) to which the flow maps each pixel, and whether they are inside the frame."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    return x, y, (x >= 1) & (x <= flow.shape[1] - 2) & (y >= 1) & (y <= flow.shape[0] - 2)


def _square(label: int, color: int, place, half: float = 10.0, **fields) -> Layer:
    """A square of one gray level, centered at place(time)."""
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    distance, origin = signed_distance(BodyPart((corners,)), 1.0, 3.0)

    def pose(time):
        x, y = place(time)
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])

    return Layer(label, np.full((*distance.shape, 3), color, np.uint8), distance, origin, pose, **fields)


def _plain_scene(*layers: Layer, shutter: float = 0.0) -> Scene:
    """The layers on a black background in constant light."""
    background = Layer(0, np.zeros((8, 8, 3), np.uint8), None, (0, 0), lambda time: np.eye(3))
    light = Oscillation(np.array([1.0, 0, 0]), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 3)))
    return Scene((background, *layers), shutter, 0.0, 0.0, None, light, 0)


def _same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _arrays(clip):
    return clip.frames, clip.labels, clip.flow


def test_clip_is_a_function_of_its_arguments():
    clip = make_clip(3, 4, SIZE)
    assert clip.frames.shape == (4, *SIZE, 3) and clip.frames.dtype == np.uint8
    assert clip.labels.shape == (4, *SIZE) and clip.labels.dtype == np.uint8
    assert clip.flow.shape == (4, *SIZE, 2) and clip.flow.dtype == np.float32
    assert _same(_arrays(clip), _arrays(make_clip(3, 4, SIZE)))
    assert not np.array_equal(clip.frames, make_clip(4, 4, SIZE).frames)


@pytest.mark.parametrize("seed", range(4))
def test_longer_clip_starts_with_the_shorter_one(seed):
    long = make_clip(seed, 6, SIZE)
    assert _same(_arrays(make_clip(seed, 2, SIZE)), [part[:2] for part in _arrays(long)])


def test_ground_truth_does_not_depend_on_camera_effects():
    filmed, clean = make_clip(5, 3, SIZE), make_clip(5, 3, SIZE, clean=True)
    assert np.array_equal(filmed.labels, clean.labels) and np.array_equal(filmed.flow, clean.flow)
    assert not np.array_equal(filmed.frames, clean.frames)


@pytest.mark.parametrize("seed", range(12))
def test_next_frame_warped_by_the_flow_equals_this_frame(seed):
    scene = _scene(seed)
    (frame, _, flow), (after, _, _) = render(scene, 2, SIZE, True), render(scene, 3, SIZE, True)
    number, number_after = _layer_numbers(scene, 2), _layer_numbers(scene, 3)
    x, y, inside = _landing(flow)
    # Pixels visible in both frames, away from edges: the neighborhoods of both positions belong to the same layer.
    square = np.ones((3, 3), np.uint8)
    for extreme in (cv2.erode, cv2.dilate):
        inside &= extreme(number, square) == number
        inside &= cv2.remap(extreme(number_after, square), x, y, cv2.INTER_NEAREST) == number
    warped = cv2.remap(after, x, y, cv2.INTER_CUBIC)
    error = np.abs(warped.astype(float) - frame)[inside]
    assert inside.mean() > 0.5
    assert error.mean() < 2.5 and np.percentile(error, 99) < 16
    if np.abs(flow[inside]).mean() > 1:
        assert error.mean() < 0.5 * np.abs(after.astype(float) - frame)[inside].mean()


@pytest.mark.parametrize("seed", [0, 1, 2, 7, 20, 26])
def test_flow_equals_double_precision_point_tracking(seed):
    scene = _scene(seed)
    layers = [layer for layer in scene.layers if layer.label is not None]
    number = _layer_numbers(scene, 4)
    flow = render(scene, 4, SIZE, True)[2]

    def seen_at(layer, point, time):
        x, y = point
        moved = np.array([x, y])
        if layer.ripples is not None:
            r = layer.ripples
            for k in range(len(r.rate)):
                wave = np.sin(r.wave[k, 0] * x + r.wave[k, 1] * y + r.rate[k] * time + r.phase[k])
                moved = moved + r.amplitude[k] * wave
        return (layer.pose(time) @ [*moved, 1])[:2]

    rng = np.random.default_rng(seed)
    for n in np.unique(number):
        rows, columns = np.nonzero(number == n)
        for pick in rng.integers(len(rows), size=6):
            pixel = np.array([columns[pick], rows[pick]], float)
            start = np.linalg.solve(layers[n].pose(4), [*pixel, 1])[:2]
            point = fsolve(lambda p, n=n, pixel=pixel: seen_at(layers[n], p, 4) - pixel, start, xtol=1e-12)
            expected = seen_at(layers[n], point, 5) - pixel
            np.testing.assert_allclose(flow[rows[pick], columns[pick]], expected, atol=3e-3)


@pytest.mark.parametrize("seed", range(12))
def test_flow_maps_pixels_to_their_layer_or_an_occluding_one(seed):
    scene = _scene(seed, objects=(2, 3))
    flow = render(scene, 1, SIZE, True)[2]
    x, y, inside = _landing(flow)
    # Rounding the target position may cross an edge, so its neighborhood is considered.
    frontmost = cv2.dilate(_layer_numbers(scene, 2), np.ones((3, 3), np.uint8))
    landed = frontmost[np.round(y[inside]).astype(int), np.round(x[inside]).astype(int)]
    assert (landed >= _layer_numbers(scene, 1)[inside]).all()


def test_flow_of_static_background_is_zero_with_still_camera():
    checked = 0
    for seed in range(12):
        scene = _scene(seed, still_camera=True)
        number, flow = _layer_numbers(scene, 3), render(scene, 3, SIZE, True)[2]
        layers = [layer for layer in scene.layers if layer.label is not None]
        still = [n for n, layer in enumerate(layers) if layer.label == 0 and layer.ripples is None]
        checked += np.isin(number, still).sum()
        assert np.abs(flow[np.isin(number, still)]).max(initial=0) < 1e-4
    assert checked > 0.3 * 12 * SIZE[0] * SIZE[1]


@pytest.mark.slow
def test_moving_camera_and_water_move_the_background():
    moved = {"camera": 0, "water": 0}
    for seed in range(16):
        for name, still in (("camera", False), ("water", True)):
            clip = make_clip(seed, 1, SIZE, still_camera=still, clean=True)
            moved[name] += np.abs(clip.flow[clip.labels == 0]).mean() > 0.1
    assert moved["camera"] >= 8 and 1 <= moved["water"] < moved["camera"]


def test_occlusion_labels_and_flow_of_two_squares():
    behind = _square(1, 100, lambda time: (30 + 4 * time, 40))
    before = _square(2, 200, lambda time: (40, 40 - 3 * time))
    frame, labels, flow = render(_plain_scene(behind, before), 1, (80, 90), True)
    expected = np.zeros((80, 90), np.uint8)
    expected[31:50, 25:44] = 1  # centered at (34, 40); the outline passes through pixels 24 and 44
    expected[28:47, 31:50] = 2  # centered at (40, 37)
    away = cv2.dilate(expected, np.ones((3, 3), np.uint8)) == cv2.erode(expected, np.ones((3, 3), np.uint8))
    np.testing.assert_array_equal(labels[away], expected[away])
    np.testing.assert_array_equal(frame[away][:, 0], np.array([0, 100, 200])[expected[away]])
    np.testing.assert_allclose(flow[away], np.array([[0, 0], [4, 0], [0, -3.0]])[expected[away]], atol=1e-4)
    # The area of the square, up to its border pixels.
    assert abs((labels == 2).sum() - 400) <= 42


def test_motion_blur_is_centered_on_the_labels():
    square = _square(1, 200, lambda time: (40 + 9 * time, 40))
    sharp, blurred = (render(_plain_scene(square, shutter=s), 1, (80, 100), False) for s in (0.0, 0.9))
    columns = np.arange(100)
    for (frame, labels, _), width in ((sharp, 20), (blurred, 28)):
        profile = frame[40, :, 0].astype(float)
        assert (profile * columns).sum() / profile.sum() == pytest.approx(49, abs=0.2)
        assert np.count_nonzero(profile) == pytest.approx(width, abs=2)
        assert columns[labels[40] == 1].mean() == pytest.approx(49, abs=0.6)


@pytest.mark.slow
def test_object_count_and_visibility_in_first_frame():
    most = set()
    for seed in range(30):
        clip = make_clip(seed, 1, (48, 80), objects=(1, 3), clean=True)
        most.add(int(clip.labels.max()))
        alone = make_clip(seed, 1, (48, 80), objects=(1, 1), clean=True)
        assert set(np.unique(alone.labels)) == {0, 1}
    assert most == {1, 2, 3}
    assert make_clip(0, 2, SIZE, objects=(0, 0)).labels.max() == 0
    for seed in range(5):
        assert {layer.label for layer in _scene(seed, objects=(4, 4)).layers} - {None, 0} == {1, 2, 3, 4}


@pytest.mark.parametrize("size", [(65, 97), (32, 32), (97, 33)])
def test_odd_and_small_sizes(size):
    for seed in range(6):
        clip = make_clip(seed, 2, size)
        assert clip.frames.shape == (2, *size, 3)
        assert np.isfinite(clip.flow).all() and np.abs(clip.flow).max() < max(size) / 2
        assert clip.frames.std() > 3


@pytest.mark.parametrize("seed", range(6))
def test_scene_does_not_depend_on_size(seed):
    small, large = (make_clip(seed, 2, (k * 80, k * 140), clean=True) for k in (1, 2))
    shrunk = cv2.resize(large.labels[1], (140, 80), interpolation=cv2.INTER_NEAREST)
    assert (shrunk == small.labels[1]).mean() > 0.97
    picture = cv2.resize(large.frames[1], (140, 80), interpolation=cv2.INTER_AREA)
    pair = [cv2.GaussianBlur(image, (0, 0), 4).ravel() for image in (picture, small.frames[1])]
    assert np.corrcoef(pair)[0, 1] > 0.9
    still = small.labels[1] == shrunk
    flow = cv2.resize(large.flow[1], (140, 80), interpolation=cv2.INTER_NEAREST) / 2
    assert np.median(np.abs(flow - small.flow[1])[still]) < 0.05


def test_inverted_ripples_recover_positions():
    ripples = Ripples(
        np.array([[0.2, 0.0], [0.05, 0.1]]), np.array([[1.5, 1.0], [-1.0, 2.0]]), np.array([0.3, -0.2]), np.zeros(2)
    )
    x, y = np.random.default_rng(0).uniform(-50, 50, (2, 500)).astype(np.float32)
    dx, dy = ripples(x, y, 7.0)
    back = ripples.invert(x + dx, y + dy, 7.0, 3e-4)
    assert max(np.abs(dx).max(), np.abs(dy).max()) > 1
    np.testing.assert_allclose(back, [x, y], atol=1e-3)


def test_signed_distance_of_a_ring():
    ring = BodyPart((ellipse((0, 0), 1, 1),), (ellipse((0, 0), 0.5, 0.5),))
    distance, (x, y) = signed_distance(ring, 40.0, 5.0)
    rows, columns = np.mgrid[: distance.shape[0], : distance.shape[1]]
    radius = np.hypot(columns - x, rows - y)
    exact = np.abs(radius - 30) - 10
    # Rendering uses only values near edges; farther away, OpenCV's distance is 2 % too small.
    near = np.abs(exact) < 4
    np.testing.assert_allclose(distance[near], exact[near], atol=0.3)
    assert ((distance < 0) == (exact < 0))[~near].all()


def test_noise_roughness():
    fields = [noise(np.random.default_rng(0), (60, 90), 3, roughness) for roughness in (0.3, 0.8)]
    steps = [np.abs(np.diff(field)).mean() for field in fields]
    assert 2 * steps[0] < steps[1]
    for field in fields:
        assert field.mean() == pytest.approx(0, abs=1e-4) and field.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 0, "length": 0}, "at least one frame"),
        ({"seed": 0, "size": (20, 100)}, "at least 32 pixels"),
        ({"seed": 0, "objects": (3, 2)}, "not 3 to 2"),
        ({"seed": 0, "objects": (0, 21)}, "0 to 20"),
    ],
)
def test_invalid_arguments_are_an_error(arguments, words):
    with pytest.raises(UserError, match=words):
        make_clip(**arguments)
