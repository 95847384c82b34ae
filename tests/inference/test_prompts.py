"""First masks: accepted and rejected input, the choice of masks, and resuming."""

from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.interruption import interrupt_at
from tests.helpers.prompted_model import COLORS, SIZE, brightness_segmenter, color_tracker, squares
from tests.helpers.recurrent_model import contents, save_frames
from tests.helpers.small_cfbi import SMALL
from uvos_jax import UserError
from uvos_jax.inference import load
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.inference.object_registry import ObjectRegistry
from uvos_jax.inference.prompt_options import PromptOptions
from uvos_jax.models import build
from uvos_jax.video import PALETTE, OutputOptions, open_source, read_mask, write_mask
from uvos_jax.weights import checkpoints
from uvos_jax.weights.convert import expected_variables


@pytest.fixture(scope="module")
def clip():
    return squares(10)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    return save_frames(tmp_path_factory.mktemp("source") / "clip", clip[0])


@pytest.fixture(scope="module")
def segmenter():
    return color_tracker()


def _save(path, labels, palette=PALETTE):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, labels, palette)
    return path


def _gray(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), levels)
    return path


def _many(count):
    return np.resize(np.arange(count + 1), SIZE).astype(np.uint8)


def _zero(value=0):
    return np.full(SIZE, value, np.uint8)


@pytest.mark.parametrize(("make", "words"), [
    (lambda at: at / "none.png", "does not exist"),
    (lambda at: _gray(at / "rgb.png", np.full((*SIZE, 3), 9, np.uint8)), "an RGB image, not a label image"),
    (lambda at: _save(at / "empty.png", _zero()), r"empty.png.*no object in it, only background\."),
    (lambda at: _save(at / "void.png", np.eye(*SIZE, dtype=np.uint8) * 255), "no object.*background and void"),
    (lambda at: _save(at / "many.png", _many(81)), "many.png.*81 objects in it, more than the 80"),
    (lambda at: _save(at / "d/00000.png", _zero()).parent, "no object in it"),
    (lambda at: _save(at / "d/00010.png", _many(2)).parent, "match no frame of 'clip': 00010.png.*such as 00000.png"),
    (lambda at: _save(at / "other/00000.png", _many(2)).parent.parent, "or in a subfolder 'clip'"),
    (lambda at: np.zeros(SIZE), "float64 .32, 48.*integer array"),
    (lambda at: np.full(SIZE, 300), "values from 300 to 300. Use object ids from 1 to 254"),
    (lambda at: {0: _many(1), "00012": _many(1)}, "Unknown frame '00012' of 'clip'. Its frames are 00000 to 0"),
    (lambda at: {0: None}, "The mask of frame 0 is of type NoneType. Give an integer array"),
    (lambda at: "", "path of the first mask is empty"),
    (lambda at: {10: _many(1)},
     "Key 10 of a mask is not a frame; the video has 10 frames. Use the name of a frame or its index"),
    (lambda at: {True: _many(1)}, "Key True of a mask"),
])
def test_invalid_first_masks_are_rejected(folder, tmp_path, make, words):
    with pytest.raises(UserError, match=words) as caught:
        ObjectRegistry(make(tmp_path), open_source(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [0, 9])
def test_mask_of_wrong_size_is_rejected_before_any_output(segmenter, folder, tmp_path, index):
    masks = {0: _many(2), index: np.ones((33, 48), np.uint8)}
    with pytest.raises(UserError, match=rf"frame {index} is 48x33 .width x height., but the frames are 48x32"):
        segment_to_folder(segmenter, open_source(folder), tmp_path / "out", prompts=PromptOptions(masks))
    assert not (tmp_path / "out").exists()


def test_eighty_objects_get_slots(folder):
    objects = ObjectRegistry(_many(80), open_source(folder))
    slots = objects.register(0, list(open_source(folder))[:1], 1)
    assert slots.max() == 80
    assert objects.grow_slots(10) == (80, "80 objects from frame 00000 on: using 80 object slots.")
    assert objects.grow_slots(10) == (80, None)
    other = ObjectRegistry(_many(80), open_source(folder))
    other.register(0, list(open_source(folder))[:1], 1)
    assert other.grow_slots(50)[0] == 80  # capped at 80, not doubled to 100
    np.testing.assert_array_equal(objects.slot_to_id[slots[0]], _many(80))


def test_slots_follow_ids_and_later_objects_are_appended(folder):
    masks = {0: np.where(_many(2) == 1, 9, _many(2)), 4: np.where(_many(2) == 1, 5, _many(2))}
    frames, objects = list(open_source(folder)), None
    objects = ObjectRegistry(masks, open_source(folder))
    assert objects.register(2, frames[2:4], 4) is None
    first, later = objects.register(0, frames[:2], 4), objects.register(4, frames[4:8], 4)
    assert first.shape == (4, *SIZE) and (first[0] == np.array([0, 2, 1])[_many(2)]).all() and not first[1:].any()
    np.testing.assert_array_equal(later[0], 3 * (_many(2) == 1))  # pixels of the known object 2 are ignored
    assert [entry.id for entry in objects.entries] == [2, 9, 5] and list(objects.slot_to_id[:5]) == [0, 2, 9, 5, 0]
    assert [entry.frame for entry in objects.entries_before(4)] == ["00000", "00000"] and not objects.unused_ids


def test_two_masks_of_one_frame_are_rejected(folder):
    objects = ObjectRegistry({0: _many(2), 3: _many(3), "00003": _many(4)}, open_source(folder))
    frames = list(open_source(folder))
    objects.register(0, frames[:3], 3)
    with pytest.raises(UserError, match="Frame 00003 has two masks, one by its name and one by its index 3"):
        objects.register(3, frames[3:], 7)


def test_python_api_reports_mask_notes_as_warnings(segmenter, folder):
    frames = np.stack([frame.image for frame in open_source(folder)])
    mask = _many(2)
    mask[0, :2] = 255
    with pytest.warns(UserWarning, match="255 is void, not an object"):
        segmenter.segment(frames, first_mask=mask)
    with pytest.warns(UserWarning, match="Objects 1, 2 were not segmented: the run did not reach"):
        segmenter.segment(iter(frames), first_mask={50: _many(2)})


@pytest.mark.slow
def test_max_objects_of_training_does_not_limit_inference(tmp_path):
    model = build("cfbi", **SMALL | {"max_objects": 2})
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), expected_variables(model))
    checkpoints.save(tmp_path / "weights", "cfbi", model, variables, "a test")
    assert load(weights=tmp_path / "weights").model.max_objects == 10
    assert load(weights=tmp_path / "weights", max_objects=3).model.max_objects == 3
    with pytest.raises(UserError, match="cfbi segments at most 80 objects in one run; got max_objects=81"):
        load(weights=tmp_path / "weights", max_objects=81)


def test_void_is_reported_and_is_not_an_object(folder):
    mask = _many(2)
    mask[:5] = 255
    objects = ObjectRegistry({0: mask, 3: np.where(mask == 1, 7, mask)}, open_source(folder))
    assert len(objects.notes) == 1 and "255 is void" in objects.notes[0] and "frame 0, of frame 3" in objects.notes[0]
    frames = list(open_source(folder))
    first, later = objects.register(0, frames[:1], 1)[0], objects.register(3, frames[3:4], 1)[0]
    assert (first[:5] == 255).all() and set(np.unique(first[5:])) == {0, 1, 2} and set(np.unique(later)) == {0, 3}


def test_mask_folder_may_have_a_subfolder_per_video(folder, tmp_path):
    _save(tmp_path / "clip/00000.png", _many(3))
    source = open_source(folder)
    assert ObjectRegistry(tmp_path, source).identity == ObjectRegistry(tmp_path / "clip", source).identity


def test_masks_of_unnamed_frames_match_by_number(clip, tmp_path):
    _save(tmp_path / "masks/3.png", _many(2))
    _gray(tmp_path / "masks/00007.png", np.uint8(3) * (_many(2) > 1))
    objects = ObjectRegistry(tmp_path / "masks", open_source(clip[0]))
    frames = list(open_source(clip[0]))
    assert objects.register(3, frames[3:4], 1).max() == 2 and objects.unused_ids == [3]
    assert objects.register(7, frames[7:8], 1).max() == 3  # ids above 1 in the other mask: gray levels are ids
    with pytest.raises(UserError, match="masks of the same frame"):
        _save(tmp_path / "masks/03.png", _many(2))
        ObjectRegistry(tmp_path / "masks", open_source(clip[0]))


def test_mask_identity_depends_on_content(folder, tmp_path):
    def digest(first_mask):
        return ObjectRegistry(first_mask, open_source(folder)).identity

    same = digest(_many(3))
    assert same == digest(_save(tmp_path / "a.png", _many(3))) == digest({0: _many(3)})
    assert len({same, digest(_many(2)), digest({1: _many(3)}), digest({0: _many(3), 1: _many(3)})}) == 4


def test_palette_and_ids_are_preserved(segmenter, clip, folder, tmp_path):
    palette = np.random.default_rng(0).integers(1, 256, (256, 3)).astype(np.uint8)
    palette[0] = 0
    first = np.array([0, 200, 3, 30], np.uint8)[clip[1][0]]
    path = _save(tmp_path / "first.png", first, palette)
    run = segment_to_folder(segmenter, open_source(folder), tmp_path / "out", prompts=PromptOptions(path),
                            outputs=OutputOptions(json=True))
    for t in (0, 9):
        with Image.open(tmp_path / f"out/masks/{t:05d}.png") as image:
            assert image.mode == "P" and (np.reshape(image.getpalette(), (-1, 3)) == palette).all()
    np.testing.assert_array_equal(read_mask(tmp_path / "out/masks/00000.png"), first)
    assert set(np.unique(read_mask(tmp_path / "out/masks/00009.png"))) == {0, 3, 30, 200}
    assert run["objects"] == [{"id": i, "frame": "00000"} for i in (3, 30, 200)] and len(run["first_mask"]) == 64
    assert [line.count('"id"') for line in (tmp_path / "out/objects.json").read_text().splitlines()[1:-1]] == [3] * 10
    gray = _gray(tmp_path / "gray.png", clip[1][0])
    segment_to_folder(segmenter, open_source(folder), tmp_path / "davis", prompts=PromptOptions(gray),
                      outputs=OutputOptions(overlay=False))
    with Image.open(tmp_path / "davis/masks/00000.png") as image:
        assert (np.reshape(image.getpalette(), (-1, 3)) == PALETTE).all()


def _interrupted(segmenter, folder, output, at, **options):
    with pytest.raises(KeyboardInterrupt):
        segment_to_folder(segmenter, open_source(folder), output, on_frame=interrupt_at(at), **options)


@pytest.mark.slow
def test_resumed_run_keeps_its_objects(clip, folder, tmp_path):
    truth = clip[1]
    masks = {0: np.uint8(7) * (truth[0] == 3), 4: truth[4] * (truth[4] < 3)}
    segmenter = color_tracker(max_objects=2)
    options = {"prompts": PromptOptions(masks), "chunk": 2, "save_every": 0,
               "outputs": OutputOptions(soft=True, overlay=False)}
    segment_to_folder(segmenter, open_source(folder), tmp_path / "whole", **options)
    for at in (3, 5, 9):  # before, in and after the chunk of the second mask
        output = tmp_path / f"out{at}"
        _interrupted(segmenter, folder, output, at, **options)
        run = segment_to_folder(segmenter, open_source(folder), output, resume=True, **options)
        assert run["resumed"] == at // 2 * 2
        assert run["objects"] == [{"id": 7, "frame": "00000"}, {"id": 1, "frame": "00004"}, {"id": 2, "frame": "00004"}]
        assert contents(output) == contents(tmp_path / "whole")


def test_resume_rejects_another_first_mask(segmenter, clip, folder, tmp_path):
    options = {"chunk": 2, "save_every": 0, "outputs": OutputOptions(overlay=False)}
    first = clip[1][0]
    _interrupted(segmenter, folder, tmp_path / "out", 5, prompts=PromptOptions(first), **options)
    said = []
    run = segment_to_folder(segmenter, open_source(folder), tmp_path / "out", resume=True, say=said.append,
                            prompts=PromptOptions(np.where(first == 3, 0, first)), **options)
    assert run["resumed"] == 0 and "starting over, because it differs in first mask" in said[0]
    with pytest.raises(UserError, match="finished run that differs in first mask"):
        segment_to_folder(segmenter, open_source(folder), tmp_path / "out", resume=True,
                          prompts=PromptOptions(first), **options)


def test_resume_keeps_automatic_first_mask(segmenter, clip, tmp_path):
    frames = np.concatenate([np.broadcast_to(COLORS[0], (4, *SIZE, 3)).astype(np.uint8), clip[0]])
    folder = save_frames(tmp_path / "late", frames)
    options = {"prompts": PromptOptions(brightness_segmenter()), "chunk": 2, "save_every": 0,
               "outputs": OutputOptions(overlay=False)}
    said = []
    segment_to_folder(segmenter, open_source(folder), tmp_path / "whole", say=said.append, **options)
    assert said == ["brightness found an object in frame 00004; it is tracked from there."]
    for at in (3, 9):  # before and after the frame with the object
        _interrupted(segmenter, folder, tmp_path / f"out{at}", at, **options)
        run = segment_to_folder(segmenter, open_source(folder), tmp_path / f"out{at}", resume=True, **options)
        assert run["objects"] == [{"id": 1, "frame": "00004"}] and run["first_mask"].startswith("auto: brightness ")
        assert contents(tmp_path / f"out{at}") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("inputs", "seen"), [(("frame",), [[0], [1], [2]]),
                                              (("frame", "flow"), [[0], [0, 1], [1, 2]])])
def test_flow_model_searches_stream_in_frame_pairs(inputs, seen):
    # A flow model needs two frames; a single frame has no motion.
    looks = []

    def segment(frames):
        looks.append([int(frame[0, 0, 0]) for frame in frames])
        shows = len(looks) == 3
        return np.full((len(frames), *SIZE), int(shows), np.uint8)

    starter = SimpleNamespace(name="looker", weights_digest="", model=SimpleNamespace(inputs=inputs, task="foreground"),
                              segment=segment)
    source = open_source(np.full((*SIZE, 3), value, np.uint8) for value in range(5))
    objects = ObjectRegistry(None, source, starter)
    given = [objects.register(t, [frame], 1) for t, frame in enumerate(source)]
    assert looks == seen and [found is not None for found in given] == [False, False, True, False, False]
