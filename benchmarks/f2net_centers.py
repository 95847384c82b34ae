"""Measure the distance of F2Net's center from the object: highest peak against the motion rule (Table 2 of the paper).

    python benchmarks/f2net_centers.py [--clips 100]
    python benchmarks/f2net_centers.py --weights RUN [--clips 20]

Without weights the heat maps are synthetic, and only peak detection, selection and track are those of the library: one
Gaussian for the object and one per distractor, on seeded paths that oscillate about the center of the map and therefore
cross. The height of each Gaussian fluctuates around the same mean, but the object's is 0.1 higher; noise is added. In
the rows with gaps, 2 % of the frames start a gap of four frames in which the object's Gaussian falls below the
threshold, as if it were occluded. Distractors appear after ten frames, because peaks alone do not identify the object
if two are visible from the start; frames after that are scored. Frames are "wrong" if the center is nearer to a
distractor than to the object and more than five pixels from the object.

With weights the network's heat maps are used, on generated clips of one object that is visible throughout and, in half
of the runs, a second object, drawn by the same rules, that is outside the frame for at least the first five frames and
then enters. The ground truth is the center of the bounding box of the first object's visible pixels; scored are the
frames in which both objects are visible (the same frames in the runs without the second object). A network trained to
predict the center of *all* foreground is at a disadvantage here, equally with both rules.

Prints mean distance, fraction of wrong frames and, with weights, of lost frames.
"""

import argparse
import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.data.synthetic.clip import render
from uvos_jax.data.synthetic.scene import draw_scene
from uvos_jax.inference import load
from uvos_jax.ops.center_heatmaps import (
    SELECTION_RULES,
    choose_center,
    extend_track,
    find_peaks,
    foreground_box,
    gaussian_map,
    new_track,
)
from uvos_jax.video import open_source

_MAP = (119, 119)  # of an input of 473x473
_FRAMES, _ALONE = 80, 10
_THRESHOLD, _NEAR = 0.1, 5.0
# (n, K): the values of the paper first.
_SETTINGS = ((10, 5), (2, 5), (5, 5), (20, 5), (10, 2), (10, 10))
_SIZE, _COARSE = (240, 424), (60, 106)
_LENGTH, _FIRST = 40, 5
_SMALLEST = 0.005  # minimum area of a visible object, as a fraction of the frame
_BOTH = 10  # minimum number of frames of a clip with both objects


def paths(rng, clips, things):
    """``[things, frames, clips, 2]``: slow sinusoidal paths about the center of the map, in pixels."""
    shape = (things, 1, clips, 2)
    rate, phase = rng.uniform(0.03, 0.12, shape), rng.uniform(0, 2 * np.pi, shape)
    reach = rng.uniform(0.1, 0.42, shape) * np.array(_MAP[::-1])
    time = np.arange(_FRAMES)[None, :, None, None]
    return (np.array(_MAP[::-1]) - 1) / 2 + reach * np.sin(rate * time + phase)


def heights(rng, clips, things, gaps):
    """``[things, frames, clips]``: heights of the Gaussians; index 0 is the object, which may have gaps."""
    noise, flicker = rng.normal(0, 0.15, (_FRAMES, things, clips)), np.zeros((_FRAMES, things, clips))
    for t in range(1, _FRAMES):
        flicker[t] = 0.8 * flicker[t - 1] + 0.6 * noise[t]
    height = np.clip(0.55 + flicker, 0.15, 0.95).swapaxes(0, 1)
    height[0] = np.clip(height[0] + 0.1, 0.15, 0.95)
    begins = rng.random((_FRAMES, clips)) < 0.02 * gaps
    for late in range(4):  # a gap lasts four frames
        height[0, _ALONE + late:][begins[_ALONE:_FRAMES - late]] = 0.05
    height[1:, :_ALONE] = 0
    return height


@partial(jax.jit, static_argnums=3)
def find(places, height, key, count):
    """Finds the peaks of synthetic heat maps by a scan; returns scores ``[t, b, K]`` and centers ``[t, b, K, 2]``."""
    def frame(_, xs):
        place, high, key = xs
        bells = [gaussian_map(p, 2.5, _MAP, 8.0) * h[:, None, None, None] for p, h in zip(place, high, strict=True)]
        heat = jnp.maximum(jnp.stack(bells).max(0), 0.03) + 0.01 * jax.random.uniform(key, (len(high[0]), *_MAP, 1))
        return None, find_peaks(heat, count)

    keys = jax.random.split(key, places.shape[1])
    return jax.lax.scan(frame, None, (places.swapaxes(0, 1), height.swapaxes(0, 1), keys))[1]


@partial(jax.jit, static_argnums=(2, 3))
def follow(scores, centers, rule, history):
    """Returns the selected centers ``[t, b, 2]``."""
    def frame(track, xs):
        center, _, found = choose_center(track, *xs, _THRESHOLD, rule)
        return extend_track(track, center, found), center

    return jax.lax.scan(frame, new_track(scores.shape[1], history), (scores, centers))[1]


def errors(chosen, places):
    """Returns the distance to the object ``[t, b]`` and whether the center is nearer to a distractor ``[t, b]``."""
    away = np.linalg.norm(np.asarray(chosen)[None] - places, axis=-1)
    wrong = (away[1:] < away[0]).any(0) & (away[0] > _NEAR) if len(away) > 1 else np.zeros(away.shape[1:], bool)
    return away[0], wrong


def simulated(clips: int) -> None:
    """Prints the table for synthetic heat maps."""
    print(f"{clips} clips of {_FRAMES} synthetic heat maps of {_MAP[0]}x{_MAP[1]}; mean distance from the object in"
          " pixels of the map, and frames on a distractor")
    print(f"{'':<24}{'maximum':>16}", *(f"{f'n={n} K={k}':>16}" for n, k in _SETTINGS))
    most = max(k for _, k in _SETTINGS)
    for gaps, distractors in itertools.product((False, True), range(4)):
        rng = np.random.default_rng(distractors)
        places, height = paths(rng, clips, 1 + distractors), heights(rng, clips, 1 + distractors, gaps)
        scores, centers = find(jnp.asarray(places, jnp.float32), jnp.asarray(height, jnp.float32),
                               jax.random.key(distractors), most)
        cells = []
        for rule, (history, count) in [("maximum", _SETTINGS[0])] + [("motion", each) for each in _SETTINGS]:
            away, wrong = errors(follow(scores[..., :count], centers[..., :count, :], rule, history), places)
            cells.append(f"{away[_ALONE:].mean():6.1f} px {wrong[_ALONE:].mean():6.1%}")
        print(f"{f'distractors: {distractors}' + ', gaps' * gaps:<24}", *(f"{cell:>16}" for cell in cells), flush=True)


def box_middles(labels):
    """Returns, for each object, its box center ``[t, 2]`` in fractions of (width, height) and visibility ``[t]``."""
    shares = []
    for number in (1, 2):
        box, _ = foreground_box(jnp.asarray(labels == number))
        middle = np.asarray(box[:, :2] + box[:, 2:]) / 2 / np.array(labels.shape[:0:-1])
        shares.append((middle, (labels == number).mean((1, 2)) >= _SMALLEST))
    return shares


def clips_of(count):
    """Yields clips ``(frames, labels)`` in pairs: with both objects, then with the first object only."""
    found = 0
    for seed in itertools.count():
        scene = draw_scene(seed, _COARSE, (2, 2), False)
        if any((_filmed(scene, time, _COARSE)[1] == 2).any() for time in range(_FIRST)):
            continue
        (_, first), (_, second) = box_middles(np.stack([_filmed(scene, time, _COARSE)[1] for time in range(_LENGTH)]))
        if not first[:_FIRST].all() or (first & second).sum() < _BOTH:
            continue
        scene = draw_scene(seed, _SIZE, (2, 2), False)
        # A layer without a label is the shadow of the object whose layers come next.
        following = zip(scene.layers, (*scene.layers[1:], scene.layers[-1]), strict=True)
        layers = tuple(x for x, after in following if 2 not in (x.label, after.label if x.label is None else None))
        for made in (scene, dataclasses.replace(scene, layers=layers)):
            yield tuple(map(np.stack, zip(*(_filmed(made, time, _SIZE) for time in range(_LENGTH)), strict=True)))
        found += 1
        if found == count:
            return


def _filmed(scene, time, size):
    return render(scene, time, size, clean=size == _COARSE)[:2]


def measured(segmenter, frames, truth):
    """Returns, per scored frame, distance from the object in percent of the shorter side, wrong and lost."""
    (first, first_seen), (second, second_seen) = truth
    notes = [answer.notes for answer in segmenter.run(open_source(frames))]
    centers = np.array([note["center"] for note in notes])
    longer = np.array(_SIZE[::-1]) / min(_SIZE)
    away, other = (100 * np.linalg.norm((centers - place) * longer, axis=1) for place in (first, second))
    counted = first_seen & second_seen
    return np.stack([away, other < away, [note["lost"] for note in notes]], 1)[counted]


def with_weights(weights, clips: int) -> None:
    """Prints the table for the network's heat maps."""
    segmenters = {rule: load("f2net", weights, selection=rule) for rule in SELECTION_RULES}
    rows = {(alone, rule): [] for alone in (True, False) for rule in SELECTION_RULES}
    for i, (frames, labels) in enumerate(clips_of(clips)):
        alone = i % 2 == 1
        if not alone:
            truth = box_middles(labels)
        for rule, segmenter in segmenters.items():
            rows[alone, rule].append(measured(segmenter, frames, truth))
    counted = sum(map(len, rows[True, SELECTION_RULES[0]]))
    print(f"{clips} generated clips of {_LENGTH} frames, {_SIZE[0]}x{_SIZE[1]}; the {counted} frames with both objects")
    print(f"{'':<24}{'distance, % of the side':>26}{'median':>10}{'nearer the other':>18}{'lost':>8}")
    for (alone, rule), parts in rows.items():
        away, wrong, lost = np.concatenate(parts).T
        shown = "-" if alone else f"{wrong.mean():.1%}"
        name = f"{'one object' if alone else 'two objects'}, {rule}"
        print(f"{name:<24}{away.mean():>26.1f}{np.median(away):>10.1f}{shown:>18}"
              f"{lost.mean():>8.1%}")


def main() -> None:
    """Prints one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="weights of F2Net in any form that 'uvos segment' accepts")
    parser.add_argument("--clips", type=int, help="default: 100 with synthetic heat maps, 20 with weights")
    args = parser.parse_args()
    if args.weights is None:
        simulated(args.clips or 100)
    else:
        with_weights(args.weights, args.clips or 20)


if __name__ == "__main__":
    main()
