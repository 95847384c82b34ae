"""Batches: contents, and determinism across engines, workers and processes."""

import os
import pickle
import re
import subprocess
import sys
from itertools import islice

import cv2
import numpy as np
import pytest

from tests.helpers.clips import RECIPES, SIZE, assert_same, differ, made_clips, made_store
from uvos_jax.cli import app
from uvos_jax.data.examples.clip_dataset import draw_id_mapping, mixture_entry, remap_labels
from uvos_jax.data.examples.contact_sheet import contact_sheet
from uvos_jax.data.examples.pipeline import batches, from_config
from uvos_jax.data.examples.sampling import generator
from uvos_jax.data.storage.store import MemoryStore, SyntheticStore
from uvos_jax.data.synthetic.clip import make_clip
from uvos_jax.errors import UserError
from uvos_jax.video import read_mask
from uvos_jax.video.flow_io import flow_picture


@pytest.mark.parametrize("name", RECIPES)
def test_batch_is_a_function_of_its_step(name):
    clips = made_clips(name)
    expected = [clips.batch(step) for step in range(4)]
    again = made_clips(name)  # a new instance, in another order
    for step in (2, 0, 3, 1):
        assert_same(again.batch(step), expected[step])
    assert_same(again.example(3, 1), {key: value[1] for key, value in expected[3].items()})
    assert differ(expected[0], expected[1]) and differ(made_clips(name, seed=1).batch(0), expected[0])
    length = {"pair": 2, "previous": 3, "references": 4, "sequence": 4, "still": 3}[name]
    assert expected[2]["frames"].shape == (4, length, 33, 41, 3) and expected[2]["frames"].dtype == np.uint8
    assert expected[2]["labels"].shape == (4, length, 33, 41) and expected[2]["labels"].dtype == np.uint8
    assert expected[2]["example"].tolist() == [8, 9, 10, 11] and expected[2]["example"].dtype == np.int64
    assert expected[2]["still"].tolist() == [name == "still"] * 4 and expected[2]["still"].dtype == np.bool_
    assert ("flow" in expected[2]) == (name == "references")
    if name == "references":
        assert expected[2]["flow"].shape == (4, 4, 33, 41, 2) and expected[2]["flow"].dtype == np.float32


@pytest.mark.parametrize("engine", ["threads", "tensorflow"])
@pytest.mark.parametrize("name", ["references", "sequence"])
def test_engines_workers_and_processes_agree(engine, name):
    if engine == "tensorflow":
        pytest.importorskip("tensorflow")
    clips = made_clips(name)
    expected = [clips.batch(step) for step in range(2, 6)]
    for workers in (1, 3):
        for batch, whole in zip(batches(clips, 2, workers=workers, engine=engine), expected, strict=False):
            assert_same(batch, whole)
    shares = [islice(batches(clips, 2, index, 2, workers=2, engine=engine), 4) for index in range(2)]
    for whole, *pieces in zip(expected, *shares, strict=True):
        assert_same({key: np.concatenate([piece[key] for piece in pieces]) for key in whole}, whole)
    with pytest.raises(UserError, match="4 cannot be divided among 3"):
        batches(clips, process_count=3)


@pytest.mark.parametrize("engine", ["threads", "tensorflow"])
def test_error_names_broken_frame(engine):
    if engine == "tensorflow":
        pytest.importorskip("tensorflow")
    store = made_store()
    whole = store.image

    def broken(v, t, reduce=1):
        if (v, t) == (1, 3):
            raise UserError("an image cannot be decoded.")
        return whole(v, t, reduce)

    store.image = broken
    with pytest.raises(UserError, match=r"made up: video1, frames 0, 3: an image cannot be decoded"):
        list(islice(batches(made_clips(store=store), engine=engine), 5))


@pytest.mark.slow
def test_exception_is_raised_without_tensorflow_output():
    pytest.importorskip("tensorflow")
    code = """
import contextlib, sys
from uvos_jax.data.examples.pipeline import batches, from_config

clips = from_config({"mixture": [{"name": "synthetic", "count": 4, "length": 2, "size": [32, 40]}], "size": [32, 40],
                     "batch_size": 2, "seed": 0})
whole = clips.mixture[0].store.labels
def labels(v, t):
    return int('nought') if v == 2 else whole(v, t)
clips.mixture[0].store.labels = labels
for caught in (ValueError, ()):
    with contextlib.suppress(caught):
        for batch in batches(clips, engine="tensorflow", workers=4):
            print(len(batch["frames"]))
    print("It was caught.", file=sys.stderr, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"})  # all TensorFlow messages
    assert done.returncode == 1
    caught, raised = done.stderr.split("It was caught.\n")
    for text, count in ((caught, 0), (raised, 1)):
        assert text.count("ValueError: invalid literal") == text.count("Traceback") == count, text
    assert "This happened at step" in raised.splitlines()[-1]


def test_clip_dataset_can_be_pickled():
    synthetic = {"name": "synthetic", "count": 2, "length": 2, "size": (32, 40)}
    clips = from_config({"mixture": [synthetic], "size": (32, 40), "batch_size": 2, "seed": 0})
    batch = clips.batch(1)
    assert_same(pickle.loads(pickle.dumps(clips)).batch(1), batch)


def test_every_frame_is_target_once_per_epoch():
    clips = made_clips("pair", batch_size=5)
    targets = [clips.describe(step, index) for step in range(6) for index in range(5)]
    for epoch in (targets[:15], targets[15:]):
        assert sorted(epoch) == sorted(f"made up: video{v}, frames 0, {t}" for v in range(3) for t in range(5))


def test_mixture_keeps_its_shares():
    video, images = made_store(), made_store("images", videos=7, length=1)
    mixture = [mixture_entry(video, {"name": "references", "count": 1}, 1, only=["video1"]),
               mixture_entry(images, {"name": "still", "length": 2}, 2)]
    clips = made_clips(mixture=mixture, batch_size=3)
    for step in range(10):
        sources = sorted(clips.describe(step, index).split(",")[0] for index in range(3))
        assert sources[2] == "made up: video1" and all(source.startswith("images: ") for source in sources[:2])


def alternating(batch_size=4, images=None, **changes):
    """One step of stills, then two steps of videos."""
    images = images or made_store("images", videos=7, length=1)
    mixture = [mixture_entry(images, {"name": "still", "length": 3}),
               mixture_entry(made_store(), {"name": "previous"}, 2)]
    return made_clips(mixture=mixture, batch_size=batch_size, alternate=True, **changes)


def test_batches_alternate_between_mixture_entries():
    clips, seen = alternating(batch_size=5), {"images": [], "made up": []}
    for step in range(12):
        descriptions = [clips.describe(step, index).split(": ") for index in range(5)]
        assert {source for source, _ in descriptions} == {"images" if step % 3 == 0 else "made up"}
        assert (clips.batch(step)["still"] == (step % 3 == 0)).all()
        seen[descriptions[0][0]] += [frames for _, frames in descriptions]
    # Every epoch is complete: 8 batches cover the 15 frames, 4 batches the 7 images.
    assert sorted(seen["images"][:7]) == sorted(seen["images"][7:14]) and len(set(seen["images"][:7])) == 7
    assert sorted(seen["made up"][:15]) == sorted(seen["made up"][15:30]) and len(set(seen["made up"][:15])) == 15


@pytest.mark.parametrize("engine", ["threads", "tensorflow"])
def test_alternation_resumes_from_any_step_and_process_count(engine):
    if engine == "tensorflow":
        pytest.importorskip("tensorflow")
    clips = alternating(paste=0.5)
    expected = [clips.batch(step) for step in range(5)]
    for start in range(5):
        for batch, whole in zip(batches(clips, start, workers=2, engine=engine), expected[start:], strict=False):
            assert_same(batch, whole)
    shares = [islice(batches(clips, 1, index, 2, workers=2, engine=engine), 4) for index in range(2)]
    for whole, *pieces in zip(expected[1:], *shares, strict=True):
        assert_same({key: np.concatenate([piece[key] for piece in pieces]) for key in whole}, whole)


def test_identity_keeps_frames_labels_and_flow():
    store = made_store()
    clips = made_clips("sequence", size=SIZE, geometry={"kind": "resize"}, objects=None, flow=True, store=store)
    for index in range(4):
        example, description = clips.example(0, index), clips.describe(0, index)
        v, *frames = (int(number) for number in re.findall(r"\d+", description))
        np.testing.assert_array_equal(example["frames"], [store.image(v, t) for t in frames])
        np.testing.assert_array_equal(example["labels"], [store.labels(v, t) for t in frames])
        np.testing.assert_array_equal(example["flow"], [store.flow(v, t) for t in frames])


def test_frames_and_labels_stay_aligned():
    # The images show the labels, so both can be compared after any geometry.
    labels = made_store().labels(0, 0)
    frames = np.repeat((labels * 100)[None, ..., None], 3, -1)
    store = MemoryStore("labels", [("one", frames, labels[None], None)])
    for name, geometry in {"still": RECIPES["still"]["geometry"] | {"fill": (0, 0, 0), "fill_label": 0},
                           "pair": {"kind": "foreground_crop", "fill": (0, 0, 0), "fill_label": 0}}.items():
        clips = made_clips(name, store=store, geometry=geometry, color=None, objects=None, size=(64, 64))
        for index in range(4):
            example = clips.example(1, index)
            shown = np.round(example["frames"][..., 0] / 100)
            assert (shown == example["labels"]).mean() > 0.97  # except at edges
        if name == "still":
            assert differ({"labels": example["labels"][0]}, {"labels": example["labels"][1]})  # one map per frame


def _remapped(seed, labels, *how, **more):
    return remap_labels(labels, draw_id_mapping(generator(seed), labels, *how, **more))


def test_remap_labels():
    labels = np.zeros((2, 4, 6), np.uint8)
    labels[0, 0, :3], labels[1, 1, :3], labels[:, 2, :3], labels[:, 3, 5] = 4, 9, 30, 255
    np.testing.assert_array_equal(_remapped(0, labels, None), labels)
    np.testing.assert_array_equal(_remapped(0, labels, "foreground"), np.where(labels == 255, 255, labels > 0))
    orders = set()
    for seed in range(60):
        found = _remapped(seed, labels, 5)
        names = [found[0, 0, 0], found[1, 1, 0], found[0, 2, 0]]
        orders.add(tuple(names))
        assert sorted(names) == [1, 2, 3] and (found[:, 3, 5] == 255).all()
        np.testing.assert_array_equal(found > 0, labels > 0)
        # Two of three objects are kept and the third is void, consistently over frames.
        capped = _remapped(seed, labels, 2)
        assert sorted([capped[0, 0, 0], capped[1, 1, 0], capped[0, 2, 0]]) == [1, 2, 255]
        assert capped[0, 2, 0] == capped[1, 2, 0]
        # Object 9 is not in the first frame (the prompt), so it becomes background.
        prompted = _remapped(seed, labels, 5, prompted=True)
        assert prompted[1, 1, 0] == 0 and sorted([prompted[0, 0, 0], prompted[0, 2, 0]]) == [1, 2]
    assert len(orders) == 6


def test_configuration_errors():
    synthetic = {"name": "synthetic", "count": 2, "length": 2, "size": (48, 64)}
    good = {"mixture": [synthetic], "size": (32, 32), "batch_size": 2, "seed": 0}
    for change, message in [
        ({"batchsize": 2}, "Unknown key 'batchsize' in the data configuration.*Did you mean 'batch_size'"),
        ({"mixture": []}, "empty mixture"),
        ({"size": None}, "Missing key 'size'"),
        *(({"size": wrong}, r"size must be \[height, width\], integers")
          for wrong in ((0, 3), (97,), (3, 3, 3), 97, ("a", "b"), (33.0, 49))),
        ({"seed": 2**32}, "seed must be"),
        ({"batch_size": True}, "batch_size must be"),
        ({"flow": "yes"}, "flow must be True or False"),
        ({"alternate": 1}, "alternate must be True or False"),
        ({"alternate": True, "mixture": [synthetic, synthetic | {"recipe": {"name": "previous"}}]},
         "clips of equal length"),
        ({"recipe": {"name": "previous", "first": 0}}, "recipe previous configuration's first must be"),
        ({"seed": -1}, "seed must be"),
        ({"recipe": {"name": "pairs"}}, "Unknown recipe 'pairs'.*Did you mean 'pair'"),
        ({"recipe": {"name": "sequence", "gap": 2}}, "Unknown key 'gap' in the recipe sequence configuration"),
        *(({"recipe": {"name": name, key: wrong}}, f"recipe {name} configuration's {key} must be")
          for name, key, wrong in (("still", "length", 0), ("references", "count", "x"), ("references", "count", 2.5),
                                   ("references", "count", None), ("sequence", "reverse", "x"),
                                   ("sequence", "reverse", 7), ("sequence", "max_gap", 1.5), ("pair", "first", "no"))),
        ({"recipe": ["pair"]}, "recipe must be a dict"),
        ({"recipe": {"name": ["pair"]}}, "Unknown recipe"),
        ({"geometry": {"kind": "resise"}}, "Unknown geometry 'resise'.*Did you mean 'resize'"),
        ({"geometry": {"kind": "resize", "scale": 2}}, "Unknown key 'scale' in the geometry resize configuration"),
        ({"color": {"contrst": (1, 2)}}, "Unknown key 'contrst' in the color configuration.*Did you mean 'contrast'"),
        *(({"geometry": {"kind": kind, key: wrong}}, f"geometry {kind} configuration's {key} must be")
          for kind, key, several in (
              ("resize", "flip", (5, "x", -1)), ("resize", "fill", (3, "red", (300, -1, 0), (1, 2))),
              ("resize", "fill_label", (999, -1)), ("resize", "independent", ("yes",)),
              ("random_crop", "short_side", (0, -5)), ("random_crop", "balanced", (1,)),
              ("random_crop", "scale", (2, (2, 1), (0, 0), (-1, 1), (1,), "x")), ("margin_crop", "margin", (0, 1.5)),
              ("margin_crop", "degrees", (-3, 1.5)), ("foreground_crop", "upright", (None, 3))) for wrong in several),
        *(({"color": {"contrast": wrong}}, "contrast must be None or a range")
          for wrong in ((1.5, 0.5), 3, ("a", "b"), (1, 2, 3))),
        ({"color": 3}, "color must be None or a dict"),
        ({"objects": 0}, "objects must be"),
        *(({"mixture": [synthetic | {key: wrong}]}, f"mixture configuration's {key} must be")
          for key, several in (("share", (0.5, True, 10**11)), ("count", ("3", 2.0, 0)), ("length", (0,)),
                               ("size", (3, (31, 64))), ("seed", (-1, "x")), ("only", ("00000",)),
                               ("objects", (2, (3, 2), (0, 1), (1, 21), (1, 2.0))),
                               ("exclude", ("00000",)), ("name", (3,))) for wrong in several),
        ({"mixture": [synthetic | {"share": 6000}] * 2}, "shares of the mixture sum to 12000"),
        ({"mixture": ["davis2016"]}, "mixture must be a list of dicts"),
        ({"mixture": [synthetic | {"only": ["x"]}]}, "no sequence 'x'"),
        ({"mixture": [synthetic, synthetic | {"recipe": {"name": "still"}}]}, "clips of equal length"),
        ({"mixture": [{"name": "davis2016"}]}, "Give its folder with --data-dir"),
        ({"mixture": [synthetic | {"name": "davis2016"}]}, "'count' is valid only for the dataset 'synthetic'"),
    ]:
        with pytest.raises(UserError, match=message):
            from_config(good | change)
    with pytest.raises(UserError, match="synthetic configuration's size must be"):
        SyntheticStore(2, 3, (31, 64))
    assert make_clip(0, 1, (32, 32)).frames.shape == (1, 32, 32, 3)  # the minimum size of a store
    with pytest.raises(UserError, match="No optical flow in made up"):
        made_clips(store=made_store(flow=False), flow=True)
    with pytest.raises(UserError, match="No optical flow in images"):
        alternating(images=made_store("images", flow=False), flow=True)


def test_synthetic_clips_from_a_config_dict():
    ml_collections = pytest.importorskip("ml_collections")
    config = ml_collections.ConfigDict({
        "mixture": ({"name": "synthetic", "count": 3, "length": 3, "size": (48, 64)},), "size": (48, 64),
        "recipe": {"name": "references", "count": 2}, "flow": True, "batch_size": 2, "seed": 0})
    clips = from_config(config)
    batch = clips.batch(0)
    assert batch["frames"].shape == (2, 3, 48, 64, 3) and batch["flow"].shape == (2, 3, 48, 64, 2)
    assert_same(from_config(config).batch(0), batch)
    v, *frames = map(int, re.findall(r"\d+", clips.describe(0, 1)))
    np.testing.assert_array_equal(batch["frames"][1], make_clip(v, 3, (48, 64)).frames[frames])


def test_synthetic_clips_have_the_configured_number_of_objects():
    store = SyntheticStore(4, 2, (48, 64), seed=5, objects=[3, 4])
    for copy in (store, pickle.loads(pickle.dumps(store))):
        np.testing.assert_array_equal(copy.labels(2, 1), make_clip(7, 2, (48, 64), objects=(3, 4)).labels[1])
    counts = [len(np.unique(store.labels(v, 0))) - 1 for v in range(4)]
    assert max(counts) > 2 and max(counts) <= 4


def test_real_frames(real_data):
    clips = []
    for name in ("bear", "surf"):
        paths = sorted((real_data / "davis2016/JPEGImages/480p" / name).iterdir())[:4]
        clips.append((name, np.stack([cv2.imread(str(path))[..., ::-1] for path in paths]),
                      np.stack([read_mask(real_data / "davis2016/Annotations/480p" / name / f"{path.stem}.png")
                                for path in paths]), None))
    store = MemoryStore("davis2016", clips)
    for name in RECIPES:
        batch = made_clips(name, store=store, size=(161, 241), flow=False).batch(0)
        foreground = (batch["labels"] > 0) & (batch["labels"] < 255)
        assert foreground.any((1, 2, 3)).all()  # the object is visible in every frame of both
        assert batch["frames"].std((2, 3, 4)).min() > 10


def test_contact_sheet_and_flow_colors():
    batch = made_clips("references").batch(0)
    sheet = contact_sheet(batch, width=41)
    assert sheet.shape == (4 * 33 + 3 * 4, 8 * 41 + 7 * 4, 3) and sheet.dtype == np.uint8
    unlabeled = contact_sheet(batch | {"labels": np.zeros_like(batch["labels"])}, width=41)
    np.testing.assert_array_equal(unlabeled[:33, :41], batch["frames"][0, 0])
    assert (sheet != unlabeled).any()
    # Motion to the right is red, the opposite direction has the opposite color, and zero flow is white.
    right, left, up, still = flow_picture(np.array([[[5, 0], [-5, 0], [0, -5], [0, 0]]], np.float32))[0].astype(int)
    assert right[0] == 255 and right[1:].max() < 10
    assert left[0] < 10 and left[1:].min() > 190
    assert up.argmax() == 2 and still.tolist() == [255] * 3


def test_benchmark_command_names_a_missing_dataset(tmp_path):
    for arguments, message in ((["--data-dir", str(tmp_path)], "no dataset 'davis2016'"), ([], "--data-dir")):
        with pytest.raises(UserError, match=message):
            app(args=["benchmark", "--data", "davis2016", *arguments], standalone_mode=False)
