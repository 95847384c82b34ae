"""Engine of D-Net and T-Net, with a color classifier in place of the learned network."""

import dataclasses
import json

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from uvos_jax import UserError
from uvos_jax.data.storage.store import MemoryStore
from uvos_jax.inference import Segmenter
from uvos_jax.inference.engine import StepInputs
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.interrupts import Interrupted
from uvos_jax.models.dtnet.model import DTNet, Proposals, State
from uvos_jax.training.validation import choose, validate
from uvos_jax.video import OutputOptions, open_source, read_mask

SIZE = 64, 96
# The jitted functions of the engine.
COMPILED = ("propose", "segment_targets", "add_sample", "update_targets", "start_target")
# Colors of objects, RGB; other colors are background.
COLORS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20], [20, 250, 250]], np.uint8)


class Colors(DTNet):
    """Proposes every known color as an object; frames whose first pixel is black have no proposals."""

    max_tracks: int = 4
    max_proposals: int = 4
    memory: int = 6
    embedding: int = 3
    target_channels: int = 4
    short_side: int = 64

    @nn.nowrap
    def frame_size(self, native_size, scale=1.0):
        return 64, 96

    def setup(self):
        self.nothing = self.param("nothing", nn.initializers.zeros, (1,))

    def encode(self, inputs):
        return {"frame": inputs["frame"], "target": self.target_features(inputs["frame"])}

    def target_features(self, frames):
        b, h, w, _ = frames.shape
        near = -jnp.square(frames[..., None, :] - self._known()).sum(-1)
        return jnp.exp(near).reshape(b, h // 8, 8, w // 8, 8, -1).mean((2, 4))

    def propose(self, state, features):
        frame = features["frame"]
        masks = jnp.square(frame[..., None, :] - self._known()).sum(-1) < 0.1
        blind = (frame[:, 0, 0] < -1.5).all(-1)
        areas = jnp.where(blind[:, None], 0, masks.sum((1, 2)))
        order = jnp.argsort(-areas, axis=-1)
        ranks = jnp.argsort(order, axis=-1)
        labels = jnp.where(masks & (ranks < self.max_proposals)[:, None, None] & ~blind[:, None, None, None],
                           ranks[:, None, None] + 1, 0).max(-1)
        score = jnp.take_along_axis(jnp.where(areas > 0, 0.5 + areas / (2 * areas.sum(-1, keepdims=True) + 1), 0),
                                    order, -1)[:, :self.max_proposals]
        mistaken = (frame[:, 0, 1] < -1.5).all(-1)  # a black second pixel shifts every category by one
        kinds = (order[:, :self.max_proposals] + mistaken[:, None]) % len(COLORS)
        found = Proposals(labels.astype(jnp.uint8), score.astype(jnp.float32),
                      jnp.maximum((areas > 0).sum(-1) - self.max_proposals, 0).astype(jnp.int32),
                      (labels > 0).astype(jnp.float32), jax.nn.one_hot(kinds, len(COLORS)))
        return State(frame, found.saliency[..., None]), found

    def embed_proposals(self, frames, labels):
        inside = jax.nn.one_hot(labels, self.max_proposals + 1)[..., 1:]
        mean = jnp.einsum("bhwp,bhwc->bpc", inside, frames) / jnp.maximum(inside.sum((1, 2)), 1)[..., None]
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-6)

    def _known(self):
        rule = self.PREPROCESS
        return (COLORS.astype(np.float32) * rule.scale - np.float32(rule.mean)) / np.float32(rule.std)


def film(length, *boxes):
    """Returns frames and labels; a box is (color, {frame: (top, left)}, height, width), later ones are in front."""
    frames = np.full((length, *SIZE, 3), 120, np.uint8)
    labels = np.zeros((length, *SIZE), np.uint8)
    for number, (color, path, height, width) in enumerate(boxes, 1):
        for t in range(length):
            if t not in path:
                continue
            top, left = path[t]
            rows, columns = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
            frames[t, rows, columns], labels[t, rows, columns] = COLORS[color], number
    return frames, labels


def walk(begin, end, length, first=0):
    """Returns the positions {frame: (top, left)} of a box that moves linearly from ``begin`` to ``end``."""
    return {first + t: tuple(np.round(np.linspace(begin, end, length)[t]).astype(int)) for t in range(length)}


@pytest.fixture(scope="module")
def segmenter():
    model = Colors()
    return Segmenter("dtnet", model, {"params": {"nothing": np.zeros(1, np.float32)}})


def like(engine, **changes):
    """Returns the engine with changed fields that its compiled functions do not depend on."""
    other = dataclasses.replace(engine, **changes)
    vars(other).update({name: getattr(engine, name) for name in COMPILED})
    return other


def ids(labels, truth, number):
    """Returns the majority id of an object's pixels in each frame; None where the object is absent."""
    found = []
    for its, true in zip(labels, truth, strict=True):
        pixels = its[true == number]
        found.append(int(np.bincount(pixels).argmax()) if pixels.size else None)
    return found


def test_ids_survive_crossing_and_absence(segmenter):
    there = walk((20, 4), (20, 76), 12)
    back = walk((12, 72), (12, 6), 12)
    away = {t: place for t, place in walk((44, 30), (44, 40), 12).items() if not 4 <= t < 8}
    frames, truth = film(12, (0, there, 14, 14), (1, back, 26, 10), (2, away, 12, 18))
    labels = segmenter.segment(frames)
    for number in (1, 2, 3):
        seen = [i for i in ids(labels, truth, number) if i is not None]
        assert seen[0] > 0 and set(seen) == {seen[0]}
    assert len({ids(labels, truth, number)[0] for number in (1, 2, 3)}) == 3
    # D-Net's masks are exact here, and a proposal verifies every object in every frame.
    assert (labels > 0).tolist() == (truth > 0).tolist()


def test_t_net_segments_the_object_without_proposals(segmenter):
    frames, truth = film(6, (0, walk((8, 8), (28, 48), 6), 24, 32))
    frames[3:5, 0, 0] = 0
    labels = segmenter.segment(frames)
    for t in (3, 4):
        both = ((labels[t] == 1) & (truth[t] == 1)).sum()
        assert both / ((labels[t] == 1) | (truth[t] == 1)).sum() > 0.6  # a coarse map with cells of eight pixels
    assert set(np.unique(labels)) == {0, 1}


def test_compiles_once_for_any_number_of_objects(segmenter):
    one, _ = film(4, (0, walk((8, 8), (8, 40), 4), 20, 20))
    three, _ = film(4, (0, walk((4, 8), (4, 40), 4), 14, 20), (1, walk((24, 8), (24, 40), 4), 14, 20),
                    (2, {2: (46, 10), 3: (46, 14)}, 14, 20))
    segmenter.segment(one)
    engine = segmenter.engine(SIZE)
    compiled = {name: getattr(engine, name)._cache_size() for name in COMPILED}
    assert all(compiled.values())
    assert set(np.unique(segmenter.segment(three))) == {0, 1, 2, 3}
    assert {name: getattr(engine, name)._cache_size() for name in compiled} == compiled


def test_masks_do_not_depend_on_chunk_size_or_resuming(segmenter):
    frames, _ = film(6, (0, walk((8, 8), (28, 48), 6), 20, 20), (1, walk((40, 60), (4, 20), 6), 16, 16))
    whole = segmenter.segment(frames, chunk=6)
    np.testing.assert_array_equal(segmenter.segment(frames, chunk=1), whole)
    np.testing.assert_array_equal(segmenter.segment(frames, chunk=4), whole)
    engine = segmenter.engine(SIZE)
    state, first = engine.step(segmenter.variables, engine.start(segmenter.variables, frames[:1]),
                               StepInputs(frames[:3], np.ones(3, bool)))
    # A stored state consists of arrays with the shapes of the initial state.
    leaves = jax.tree.leaves(state)
    shapes = jax.eval_shape(engine.start, segmenter.variables, frames[:1])
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)] == [
        (np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves]
    state = jax.tree.unflatten(jax.tree.structure(shapes), [np.asarray(leaf).copy() for leaf in leaves])
    _, second = engine.step(segmenter.variables, state, StepInputs(frames[3:], np.ones(3, bool)))
    np.testing.assert_array_equal(np.concatenate([first.labels, second.labels]), whole)


def test_invalid_frames_do_not_change_the_state(segmenter):
    frames, _ = film(4, (0, walk((8, 8), (28, 48), 4), 20, 20))
    engine = segmenter.engine(SIZE)
    start = engine.start(segmenter.variables, frames[:1])
    noise = np.random.default_rng(0).integers(0, 256, frames[:1].shape, np.uint8)
    mixed = np.concatenate([frames[:2], noise, frames[2:]])
    state, output = engine.step(segmenter.variables, start,
                     StepInputs(mixed, np.array([True, True, False, True, True])))
    other, plain = engine.step(segmenter.variables, start,
                     StepInputs(frames, np.ones(4, bool)))
    np.testing.assert_array_equal(output.labels[[0, 1, 3, 4]], plain.labels)
    np.testing.assert_array_equal(output.labels[2], plain.labels[1])
    assert int(state.states[0].frame) == int(other.states[0].frame) == 4


def test_notes_report_no_objects_and_too_many(segmenter):
    empty, _ = film(2)
    engine = segmenter.engine(SIZE)
    _, output = engine.step(segmenter.variables, engine.start(segmenter.variables, empty[:1]),
                     StepInputs(empty, np.ones(2, bool)))
    assert output.notes["nothing"].all() and not output.labels.any() and not output.notes["scores"].any()
    many, _ = film(2, *[(color, walk((2 + 12 * color, 10), (2 + 12 * color, 12), 2), 10, 30 - 3 * color)
                        for color in range(5)])
    _, output = engine.step(segmenter.variables, engine.start(segmenter.variables, many[:1]),
                     StepInputs(many, np.ones(2, bool)))
    assert output.notes["crowded"].all() and set(np.unique(output.labels)) == {0, 1, 2, 3, 4}
    assert (output.notes["scores"] > 0.5).all()


def test_soft_output_and_native_size(segmenter):
    frames, truth = film(3, (0, walk((8, 8), (28, 48), 3), 24, 32))
    large = frames.repeat(2, 1).repeat(2, 2)
    engine = like(segmenter.engine(SIZE), native_size=large.shape[1:3], soft=True)
    _, output = engine.step(segmenter.variables, engine.start(segmenter.variables, large[:1]),
                     StepInputs(large, np.ones(3, bool)))
    assert (output.labels == truth.repeat(2, 1).repeat(2, 2)).mean() > 0.98
    assert output.probability.dtype == np.uint8
    assert output.probability[truth.repeat(2, 1).repeat(2, 2) == 1].mean() > 220
    assert (output.confidence > 0.9).all()


def test_association_settings_come_from_the_model(segmenter):
    frames, truth = film(5, (0, walk((8, 8), (28, 60), 5), 20, 20))
    engine = segmenter.engine(SIZE)
    start = engine.start(segmenter.variables, frames[:1])
    verified, plain, rigid = (
        like(engine, model=Colors(**rules)).step(segmenter.variables, start, StepInputs(frames, np.ones(5, bool)))
        for rules in ({}, {"verification": False}, {"memory_update": False}))
    assert (verified[1].labels == truth).all()
    assert not (plain[1].labels[1:] == truth[1:]).all()  # T-Net's own masks are coarse
    first = (verified[0].states[0].targets.weights[0] > 0).sum()
    assert first > 5 and (rigid[0].states[0].targets.weights[0] > 0).sum() == 5  # the initial samples


def test_link_by_iou_loses_fast_objects(segmenter):
    frames, truth = film(4, (0, {0: (8, 4), 1: (8, 8), 2: (8, 60), 3: (8, 64)}, 20, 20))
    engine = like(segmenter.engine(SIZE), link_only=True)
    start = engine.start(segmenter.variables, frames[:1])
    _, output = engine.step(segmenter.variables, start,
                     StepInputs(frames, np.ones(4, bool)))
    assert ids(output.labels, truth, 1) == [1, 1, 2, 2]


def _folder(frames, path):
    path.mkdir()
    for t, frame in enumerate(frames):
        cv2.imwrite(str(path / f"{t:03d}.png"), frame[..., ::-1])
    return path


def test_tracks_json_contains_every_object(segmenter, tmp_path):
    there = walk((20, 4), (20, 60), 6)
    away = {t: (44, 30 + t) for t in (0, 1, 4, 5)}
    frames, truth = film(6, (0, there, 14, 14), (2, away, 12, 18))
    run = segment_to_folder(segmenter, open_source(_folder(frames, tmp_path / "clip")), tmp_path / "out")
    assert "tracks.json" in run["results"] and run["notes"] == {"nothing": 0, "crowded": 0}
    large, small = json.loads((tmp_path / "out/tracks.json").read_text())  # the larger object gets id 1
    assert [large["id"], small["id"]] == [1, 2] and large["video_id"] == "clip"
    assert large["frames"] == ["000", "001", "004", "005"] and large["boxes"][2] == [34, 44, 18, 12]
    assert [entry is None for entry in large["segmentations"]] == [False, False, True, True, False, False]
    for t in range(6):
        mask = mask_utils.decode(small["segmentations"][t])
        np.testing.assert_array_equal(mask, truth[t] == 1)
    assert len(small["scores"]) == 6 and all(0.5 < score <= 1 for score in small["scores"])
    assert small["score"] == pytest.approx(np.mean(small["scores"]), abs=1e-4)


def test_video_without_objects_is_reported(segmenter, tmp_path):
    messages = []
    frames, _ = film(3)
    run = segment_to_folder(segmenter, open_source(_folder(frames, tmp_path / "clip")), tmp_path / "out",
                            say=messages.append)
    assert messages == ["In 3 of 3 frames no object was found."] and run["notes"]["nothing"] == 3
    assert json.loads((tmp_path / "out/tracks.json").read_text()) == []
    assert not any(read_mask(path).any() for path in (tmp_path / "out/masks").iterdir())


def test_resumed_run_keeps_its_targets(segmenter, tmp_path):
    frames, _ = film(8, (0, walk((20, 4), (20, 60), 8), 14, 14), (1, walk((40, 60), (4, 20), 8), 16, 16))
    frames[4:6, 0, 0] = 0  # no proposals, so the masks depend on T-Net's memories
    source = _folder(frames, tmp_path / "clip")
    segment_to_folder(segmenter, open_source(source), tmp_path / "whole", chunk=2)
    stopped = iter([None] * 4 + [15])
    with pytest.raises(Interrupted):
        segment_to_folder(segmenter, open_source(source), tmp_path / "out", chunk=2, stop=lambda: next(stopped, 15),
                          save_every=0)
    messages = []
    run = segment_to_folder(segmenter, open_source(source), tmp_path / "out", chunk=2, resume=True, say=messages.append)
    assert run["resumed"] == 4 and "resuming after 4 frames" in messages[0]
    for name in ("tracks.json", *(f"masks/{t:03d}.png" for t in range(8))):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("options", [{"scales": (0.5, 1.0)}, {"flip": True}])
def test_multiple_views_are_rejected(segmenter, options):
    with pytest.raises(UserError, match="dtnet does not support test-time augmentation. Leave out --scales and --flip"):
        Segmenter("dtnet", segmenter.model, segmenter.variables, **options)


def test_validation_scores_each_object_with_its_best_proposal(segmenter):
    frames, truth = film(5, (0, walk((20, 4), (20, 60), 5), 14, 14), (2, {0: (44, 30), 1: (44, 31)}, 12, 18))
    store = MemoryStore("held-back", [("clip", frames, truth, None)])
    scores, _ = validate(segmenter, store, choose(store, None))
    # An empty mask is correct where the object is absent.
    assert scores["J"] == scores["F"] == 1
    blind = frames.copy()
    blind[:, 0, 0] = 0
    assert validate(segmenter, MemoryStore("blind", [("clip", blind, truth, None)]), (0,))[0]["J"] == pytest.approx(0.3)


def test_category_of_a_track_is_the_majority_of_its_proposals(tmp_path):
    kinds = Segmenter("dtnet", Colors(categories=5), {"params": {"nothing": np.zeros(1, np.float32)}})
    frames, _ = film(5, (3, walk((8, 8), (12, 16), 5), 24, 24), (1, walk((40, 60), (36, 60), 5), 16, 24))
    frames[2, 0, 1] = 0  # wrong categories in one frame
    segment_to_folder(kinds, open_source(frames), tmp_path / "out", outputs=OutputOptions(overlay=False))
    tracks = json.loads((tmp_path / "out" / "tracks.json").read_text())
    assert [(track["id"], track["category_id"], len(track["frames"])) for track in tracks] == [(1, 4, 5), (2, 2, 5)]
    results = list(kinds.run(open_source(frames)))
    assert [result.notes["categories"][:2] for result in results] == [[4, 2], [4, 2], [5, 3], [4, 2], [4, 2]]
