"""Instance pruning: the two rules, detection files, the post-processing stage of the published rule, and the driver."""

import itertools
import json

import cv2
import jax
import numpy as np
import pytest

from tests.helpers.interruption import interrupt_at
from tests.helpers.paths import GOLDEN
from tests.helpers.prompted_model import SIZE, BrightnessModel, brightness_segmenter, color_tracker
from tests.helpers.recurrent_model import contents, noise, recurrent_segmenter, save_frames
from uvos_jax import UserError
from uvos_jax.inference import Segmenter
from uvos_jax.inference.instance_pruning import InstancePruner, VideoInstances, iou, official_rule, paper_rule
from uvos_jax.inference.jobs import resume
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.inference.prompt_options import PromptOptions
from uvos_jax.video import ClipOptions, OutputOptions, open_source
from uvos_jax.video.json_results import tracks_of

GOLDEN = np.load(GOLDEN / "adnet_prune.npz")
BOXES = GOLDEN["boxes"]  # [12, 4, 5]: x0, y0, x1, y1, class from 0
FRAME = (480, 854)


def instances(frames, length=None):
    """Returns the instances of ``frames``, each a list of ``(x0, y0, x1, y1, category)``."""
    told = np.array(list(itertools.chain(*frames)), float).reshape(-1, 5)
    starts = np.cumsum([0, *map(len, frames)])
    return VideoInstances(told[:, :4], told[:, 4].astype(int), starts, length or len(frames))


def golden_frames():
    """Returns the golden boxes with COCO category ids, from 1."""
    return np.concatenate([BOXES[..., :4], BOXES[..., 4:] + 1], -1).tolist()


def coco(frames):
    """Returns the boxes of ``frames`` as a COCO list of detections."""
    return [{"image_id": t, "bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": category}
            for t, boxes in enumerate(frames) for x0, y0, x1, y1, category in boxes]


def save(path, content):
    path.write_text(json.dumps(content))
    return path


def video(length, size=FRAME):
    return open_source(np.zeros((length, *size, 3), np.uint8))


def pruned(prune, source, variant="paper"):
    """Returns the keep masks of all frames, the messages and the pruner."""
    said = []
    pruning = InstancePruner(prune, source, variant, said.append)
    pruning.prepare()
    return pruning.keep_mask(list(source), source.length), said, pruning


def test_official_rule_reproduces_masks_of_published_script():
    dropped = official_rule(instances(golden_frames()), float(GOLDEN["n_train_frames_mean"][0]))
    for t, boxes in enumerate(BOXES):
        keep = np.ones(FRAME, np.uint8)
        for x0, y0, x1, y1, _ in boxes[dropped(t)]:
            keep[y0:y1, x0:x1] = 0
        assert keep.sum() == GOLDEN["kept_area"][t]
        np.testing.assert_array_equal(keep[::4, ::4], GOLDEN["prune_mask_s4"][t])


def test_box_iou_equals_iou_of_drawn_masks():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, (30, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 12, (30, 2))], 1)
    drawn = np.zeros((30, 40, 40), bool)
    for mask, (x0, y0, x1, y1) in zip(drawn, boxes, strict=True):
        mask[y0:y1 + 1, x0:x1 + 1] = True
    expected = (drawn[3] & drawn).sum((1, 2)) / (drawn[3] | drawn).sum((1, 2))
    np.testing.assert_allclose(iou(boxes[3].astype(float), boxes.astype(float)), expected, rtol=1e-12)
    assert 0 < (expected > 0).sum() < 30


# A large moving instance, a small static one and a small moving one.
def crowd(length):
    return [[(9 * t, 10, 9 * t + 90, 110, 1), (300, 10, 330, 40, 1), (13 * t, 200, 13 * t + 30, 230, 1)]
            for t in range(length)]


def test_paper_rule_drops_small_static_instances():
    frames = crowd(12)
    assert [paper_rule(instances(frames))(t).tolist() for t in (0, 5, 11)] == [[False, True, False]] * 3
    # A static instance must be in more than half of the frames: 6 of 12 are not enough, 7 are.
    for shown, gone in ((6, False), (7, True)):
        some = [boxes if t < shown else boxes[:1] for t, boxes in enumerate(frames)]
        assert paper_rule(instances(some))(2).tolist() == [False, gone, False]
    # A static main object is kept because it is the largest.
    still = [[(10, 10, 110, 110, 1), boxes[1]] for boxes in frames]
    assert paper_rule(instances(still))(4).tolist() == [False, True]
    # A single object, found in all frames or in some, is kept.
    assert not any(paper_rule(instances([boxes[1:2] for boxes in frames]))(t).any() for t in range(12))
    assert not any(paper_rule(instances([boxes[1:2] for boxes in frames], 13))(t).any() for t in range(12))


def standing_out(length, first, others):
    """Returns frames whose main object is larger than most from frame ``first``, with ``others`` in every frame."""
    return [[(300, 100, 460, 200 + 60 * (t >= first), 1), *others] for t in range(length)]


BESIDE = [(20, 20, 60, 60, 1), (600, 20, 640, 60, 1), (300, 300, 320, 330, 3)]
STILL = [(300, 100, 600, 300, 1), (620, 20, 840, 233, 3), (20, 260, 241, 473, 1), (20, 20, 60, 60, 7)]


@pytest.mark.parametrize(("frames", "expected"), [
    (standing_out(10, 5, BESIDE), {2: [0, 0, 0, 0], 7: [0, 1, 1, 0]}),  # drops small persons in frame 7
    (standing_out(10, 5, BESIDE[:2]), {7: [0, 0, 0]}),  # three boxes per frame are too few
    ([[(*box[:4], 18) for box in boxes] for boxes in standing_out(10, 5, BESIDE)], {7: [0, 0, 0, 0]}),  # dogs
    (standing_out(24, 20, BESIDE), {23: [0, 1, 1, 0]}),
    (standing_out(24, 21, BESIDE), {23: [0, 0, 0, 0]}),  # the main object becomes large too late
    ([[(0, 100, 400, 201 + (t % 2), 1), *BESIDE] for t in range(10)], {1: [0, 0, 0, 0]}),  # four times as wide as high
    # Static: at its location in 28 frames, more than 0.4 * 69.3. Boxes above 47,000 pixels and the largest are kept.
    ([STILL] * 28, {3: [0, 1, 0, 1]}),
    ([STILL] * 27, {3: [0, 0, 0, 0]}),
    # Large ones are dropped only if they are far from the main object, near a side, and hardly overlap it.
    ([[(400, 150, 600, 350 + t % 2, 1), (250, 20, 380, 140, 1), (100, 250, 230, 370, 1), (420, 360, 550, 470, 1)]
      for t in range(10)], {1: [0, 0, 1, 0]}),
])
def test_official_rule_cases(frames, expected):
    dropped = official_rule(instances(frames))
    assert {t: dropped(t).astype(int).tolist() for t in expected} == expected


@pytest.mark.parametrize("rule", [paper_rule, official_rule])
def test_detection_order_does_not_matter(rule):
    rng = np.random.default_rng(1)
    frames = [[(x, y, x + w, y + h, rng.choice([1, 3])) for x, y, w, h in
               zip(*rng.integers([[0], [0], [20], [20]], [[500], [300], [250], [150]], (4, 6)), strict=True)]
              for _ in range(30)]
    frames = [[*boxes, (700, 20, 740, 60, 1), (700, 120, 750, 190, 3)] for boxes in frames]
    orders = [rng.permutation(8) for _ in frames]
    one = rule(instances(frames))
    other = rule(instances([[boxes[i] for i in order] for boxes, order in zip(frames, orders, strict=True)]))
    for t, order in enumerate(orders):
        np.testing.assert_array_equal(one(t)[order], other(t))
    assert any(one(t).any() for t in range(30))


def test_detections_file_gives_keep_masks(tmp_path):
    keep, said, pruning = pruned(save(tmp_path / "a.json", coco(golden_frames())), video(12), "official")
    # Nothing is static: the video has 12 frames, and static means more than 0.4 * 69.3. From frame 1 the large person
    # is the main object and both small persons are dropped; the car is kept.
    assert [(~mask).sum() for mask in keep] == [0] + [60 * 80 + 60 * 60] * 11
    assert not keep[1, 200:280, 600:660].any() and keep[1, 60:120, 40:101].all() and said == []
    assert (pruning.removed_instances, pruning.pruned_frames, pruning.unused_note) == (22, 11, None)
    keep, _, _ = pruned(save(tmp_path / "a.json", coco(golden_frames())), video(12), "paper")
    assert [(~mask).sum() for mask in keep] == [60 * 80 + (60 + t) * 60 for t in range(12)]


def _segmentations(mask):
    from pycocotools import mask as mask_utils

    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.ravel("F"), 2])))
    runs = runs.tolist() if not mask[0, 0] else [0, *runs.tolist()]
    return [{"size": list(mask.shape), "counts": rle["counts"].decode()}, {"size": list(mask.shape), "counts": runs}]


def test_all_file_formats_give_the_same_keep_masks(tmp_path):
    size, length = (40, 60), 8
    mask = np.zeros(size, bool)
    mask[5:12, 30:38] = True
    mask[5, 30] = False  # differs from the box
    small = {"bbox": [30, 5, 8, 7]}
    frames = [[{"bbox": [3 * t, 20, 15, 15]}, small | {"segmentation": s}] for t in range(length)
              for s in _segmentations(mask)[t % 2:][:1]]
    by_index = [{"image_id": t, **entry} for t, entries in enumerate(frames) for entry in entries]
    images = [{"id": 70 + 3 * t, "file_name": f"clip/{t:05d}.jpg", "height": 40, "width": 60} for t in range(length)]
    tracks = [{"name": f"{t:05d}", "time": None, "objects": [{"id": i + 1, "score": 0.2, **entry}
                                                             for i, entry in enumerate(entries)]}
              for t, entries in enumerate(frames)]
    forms = [
        by_index,
        [{"file_name": f"{e['image_id']:05d}.png", **{k: e[k] for k in e if k != "image_id"}} for e in by_index],
        [{"frame": e["image_id"], **{k: e[k] for k in e if k != "image_id"}} for e in reversed(by_index)],
        [*by_index, {"image_id": 3, "bbox": [0, 0, 60, 40], "score": 0.49}],  # below the minimum score
        {"images": images[::-1], "annotations": [e | {"image_id": 70 + 3 * e["image_id"]} for e in by_index]},
        {"size": [40, 60], "fps": 24.0, "frames": tracks},
    ]
    for form in forms:
        keep, said, pruning = pruned(save(tmp_path / "clip.json", form), video(length, size))
        np.testing.assert_array_equal(keep, np.repeat(~mask[None], length, 0))
        assert said == [] and pruning.removed_instances == length
    boxes = [e | {"segmentation": []} for e in by_index]  # as written by box detectors
    keep, _, _ = pruned(save(tmp_path / "clip.json", boxes), video(length, size))
    assert (~keep).sum() == length * 8 * 7
    truth = np.zeros((length, *size), np.uint8)
    truth[:, mask] = 2
    for t in range(length):
        truth[t, 20:35, 3 * t:3 * t + 15] = 1
    truth[5][mask] = 0  # a track may have gaps
    tracks = tracks_of("clip", [(f"{t:05d}", labels) for t, labels in enumerate(truth)], [[0.1, 0.2]] * length)
    keep, said, pruning = pruned(save(tmp_path / "clip.json", tracks), video(length, size))
    np.testing.assert_array_equal(keep, truth != 2)
    polygon = [e | {"segmentation": [[30, 5, 38, 5, 38, 12, 30, 12]]} if e["bbox"][0] == 30 else e for e in by_index]
    keep, _, _ = pruned(save(tmp_path / "clip.json", polygon), video(length, size))
    assert not keep[0, 6:11, 31:37].any() and (~keep[0]).sum() <= 8 * 9


def test_detections_match_frames_by_file_name(tmp_path):
    frames = [np.zeros((40, 60, 3), np.uint8)] * 12
    for t, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"im{t}.jpg"), frame)
    entries = [{"file_name": f"im{t}.jpg", "bbox": box} for t in range(12)
               for box in ([3 * t, 20, 15, 15], [40, 2, 9, 9])]
    keep, said, _ = pruned(save(tmp_path / "a.json", entries), open_source(tmp_path, ClipOptions(start=4, end=9)))
    assert (~keep).sum((1, 2)).tolist() == [81] * 5 and said == []


def test_irregular_detections_are_reported_once(tmp_path):
    entries = [{"image_id": t, "bbox": box} for t in range(9) for box in ([-5, -5, 15, 15], [50.2, 30.1, 14, 20])]
    entries += [{"image_id": 2, "bbox": [70, 5, 9, 9]}, {"image_id": 3, "bbox": [8, 8, 0, 4]}]
    _, said, pruning = pruned(save(tmp_path / "odd.json", entries), video(6, (40, 60)))
    assert len(said) == 2 and "18 boxes extended beyond the frame" in said[0] and "2 boxes outside the frame" in said[1]
    assert pruning.unused_note.endswith("has detections of 3 frames that were not processed: 6, 7, 8.")
    for content in ([], [{"image_id": 0, "bbox": [1, 1, 9, 9], "score": 0.3}], {"size": [40, 60], "frames": []}):
        keep, said, pruning = pruned(save(tmp_path / "odd.json", content), video(6, (40, 60)), "official")
        assert keep.all() and len(said) == 1 and "nothing is pruned" in said[0] and pruning.unused_note is None
    _, said, _ = pruned(save(tmp_path / "few.json", entries), video(6, (40, 60)), "official")
    assert "has 2.0 boxes per frame" in said[-1]


NAN = float("nan")


@pytest.mark.parametrize(("content", "words"), [
    ("{", "are not JSON"),
    (7, "has no detections. Give COCO"),
    ({"boxes": []}, "has no detections"),
    ([3], "detection 0: bbox must be .* not None"),
    ([{"image_id": 0}], "detection 0: bbox must be .* not None"),
    ([{"image_id": 0, "bbox": [1, 2, 3]}], "four numbers"),
    ([{"image_id": 0, "bbox": [1, 2, 3, NAN]}], "four numbers"),
    ([{"image_id": 0, "bbox": [1, 2, "3", 4]}], "four numbers"),
    ([{"image_id": 0, "bbox": [1, 2, 3, -4]}], "negative side"),
    ([{"image_id": 0, "bbox": [1, 2, 3, 4], "score": NAN}], "score must be a number, not nan"),
    ([{"image_id": 0, "bbox": [1, 2, 3, 4], "category_id": "cat"}], "category_id must be an integer from 0, not 'cat'"),
    ([{"bbox": [1, 2, 3, 4]}], "no frame is given"),
    ([{"image_id": -1, "bbox": [1, 2, 3, 4]}], "image_id must be a frame number from 0 or a name, not -1"),
    ([{"image_id": True, "bbox": [1, 2, 3, 4]}], "image_id must be a frame number from 0 or a name, not True"),
    ({"images": [{"id": 4, "file_name": "0.jpg"}], "annotations": [{"image_id": 0, "bbox": [1, 2, 3, 4]}]},
     "no image has the image_id 0"),
    ({"images": [{"id": 4, "file_name": "0.jpg"}] * 2, "annotations": []}, "two images have id 4"),
    ({"images": [{"id": 4}], "annotations": []}, "image 0: no integer id or no file_name"),
    ({"images": [{"id": i, "file_name": f"{i}/0.jpg"} for i in range(2)], "annotations": []}, "covers 2 videos"),
    ({"images": [{"id": 0, "file_name": "0.jpg", "width": 30, "height": 40}],
      "annotations": [{"image_id": 0, "bbox": [1, 2, 3, 4]}]}, "is for frames of 30x40 .* but those of .* 60x40"),
    ({"images": [{"id": 0, "file_name": "0.jpg", "width": 0, "height": 40}], "annotations": []}, "invalid frame size"),
    ([{"image_id": 0, "bbox": [1, 2, 3, 4], "segmentation": {"size": [9, 9], "counts": "PPY1"}}],
     "detection 0: its mask has size"),
    ([{"image_id": 0, "bbox": [1, 2, 3, 4], "segmentation": "here"}], "its mask is not an RLE"),
    ([{"image_id": 50, "bbox": [1, 2, 3, 4]}], "belongs to another video: none of its frames .50, ... is in 'frames'"),
    ([{"file_name": "bear.jpg", "bbox": [1, 2, 3, 4]}], "belongs to another video: none of its frames .bear"),
    ([{"boxes": []}], "track 0: no lists"),
    ([{"frames": ["0"], "boxes": [], "segmentations": [None]}], "track 0: the numbers of"),
    ([{"frames": ["0"], "boxes": [[1, 2, 3]], "segmentations": [{}]}], "track 0, frame '0': bbox"),
    ({"frames": []}, "size must be .* not None"),
    ({"size": [40, 60], "frames": [{"objects": []}]}, "frame 0: no name"),
    ({"size": [40, 60], "frames": [{"name": "00000"}]}, "frame '00000': no list of objects"),
    ({"size": [40, 60], "frames": [{"name": "00000", "objects": [{"id": 1}]}]}, "frame '00000', object 0: bbox"),
])
def test_invalid_detections_are_rejected(tmp_path, content, words):
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words) as error:
        pruned(path, video(3, (40, 60)))
    assert "bad.json" in str(error.value) and "\n" not in str(error.value)


def test_folder_is_searched_for_the_file_of_the_video(tmp_path):
    save(tmp_path / "frames.json", [])
    assert pruned(tmp_path, video(2, (40, 60)))[1]
    (tmp_path / "frames.json").rename(tmp_path / "frame.json")
    with pytest.raises(UserError, match="has no 'frames.json' for the video 'frames'. Did you mean 'frame'"):
        pruned(tmp_path, video(2, (40, 60)))
    with pytest.raises(UserError, match="Cannot read the detections .*: No such file"):
        pruned(tmp_path / "other.json", video(2, (40, 60)))


def two_squares(length, still=(20, 30)):
    """Returns frames with a large moving and a small static bright square on black, and the detections of both."""
    frames = np.zeros((length, *SIZE, 3), np.uint8)
    y, x = still
    entries = []
    for t in range(length):
        frames[t, 2:16, 3 * t:3 * t + 14] = 255
        frames[t, y:y + 5, x:x + 8] = 255
        entries += [{"image_id": t, "bbox": [3 * t, 2, 14, 14]}, {"image_id": t, "bbox": [x, y, 8, 5]}]
    return frames, entries


@pytest.mark.parametrize(("scales", "flip", "chunk"), [((1.0,), False, 1), ((1.0, 2.0), True, 3)])
def test_pruned_instances_become_background(tmp_path, scales, flip, chunk):
    class Scaled(BrightnessModel):
        def frame_size(self, native_size, scale=1.0):
            return tuple(round(n * scale) for n in native_size)

        def commit(self, state, features, labels, aux, new_labels=None):
            return state

        def to_native(self, raw, size):
            return jax.nn.sigmoid(jax.image.resize(raw, (raw.shape[0], *size, 1), "nearest"))

    frames, entries = two_squares(8)
    path = save(tmp_path / "frames.json", entries)
    segmenter = Segmenter("scaled", Scaled(), {"params": {"gain": np.float32(1)}}, scales=scales, flip=flip)
    whole = segmenter.segment(frames, chunk=chunk)
    pruned = segmenter.segment(frames, chunk=chunk, prune=path)
    assert whole[:, 20:25, 30:38].all()
    expected = whole.copy()
    expected[:, 20:25, 30:38] = 0
    np.testing.assert_array_equal(pruned, expected)
    np.testing.assert_array_equal(segmenter.segment(frames, chunk=chunk), whole)  # pruning does not persist


def test_official_variant_adds_main_component_stage():
    assert brightness_segmenter().engine(SIZE, pruned=True).stages == ()
    official = Segmenter("brightness", BrightnessModel(variant="official"), {"params": {"gain": np.float32(1)}})
    assert official.engine(SIZE, pruned=True).stages == ("main_component",) and official.engine(SIZE).stages == ()


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_pruned_run_resumes_only_with_the_same_detections(tmp_path, variant):
    frames = save_frames(tmp_path / "clip", noise(10))
    entries = [{"image_id": t, "bbox": box} for t in range(10)
               for box in ([t, 2, 16, 12], [2, 12, 6, 8], [20, 14, 5, 6], [9, 18, 5, 5])]
    path = save(tmp_path / "clip.json", entries)
    segmenter = recurrent_segmenter(variant=variant)

    def segment(output, **changes):
        return segment_to_folder(segmenter, open_source(frames), tmp_path / output, **{
            "chunk": 4, "save_every": 0, "resume": True, "outputs": OutputOptions(soft=True, overlay=False),
            "prompts": PromptOptions(prune=path)} | changes)

    whole = segment("whole")
    assert variant != "paper" or whole["pruned"]["instances"] > 10
    assert whole["postprocess"] == (["prune", "main_component"] if variant == "official" else ["prune"])
    with pytest.raises(KeyboardInterrupt):
        segment("out", on_frame=interrupt_at(6))
    again = segment("out")
    assert again["resumed"] == 4 and again["pruned"] == whole["pruned"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # Other detections, or none, do not match the run.
    said = []
    path.write_text(json.dumps(entries[:-1]))
    for changes in ({}, {"prompts": PromptOptions()}):
        with pytest.raises(UserError, match="differs in instances to prune"):
            segment("out", **changes)
    (tmp_path / "out/run.json").write_text('{"finished": false}')
    (tmp_path / "out" / resume.STATE).write_bytes(b"")
    segment("out", say=said.append)
    assert "starting over" in said[0]


def test_segmenter_can_provide_instances(tmp_path):
    frames, entries = two_squares(8)

    class Finder:
        """Labels the two squares as separate instances."""

        name, weights_digest = "finder", "0"

        def on(self, device):
            return self

        def run(self, source):
            for answer in brightness_segmenter().run(source):
                parts = cv2.connectedComponents(answer.labels)[1]
                yield type(answer)(answer.frame, parts.astype(np.uint8))

    segmenter = brightness_segmenter()
    from_file = segmenter.segment(frames, prune=save(tmp_path / "a.json", entries))
    np.testing.assert_array_equal(segmenter.segment(frames, prune=Finder()), from_file)
    assert not from_file[:, 20:25, 30:38].any()
    with pytest.raises(UserError, match="finder must process the whole video"):
        segmenter.segment(iter(frames), prune=Finder())
    with pytest.raises(UserError, match="Cannot prune instances with"):
        segmenter.segment(frames, prune=3)


def test_multi_object_models_cannot_be_pruned():
    with pytest.raises(UserError, match="Cannot prune with color_tracker"):
        color_tracker().segment(np.zeros((2, *SIZE, 3), np.uint8), first_mask=np.ones(SIZE, np.uint8), prune="a.json")
