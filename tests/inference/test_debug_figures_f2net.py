"""Debug figures of F2Net (``--debug``) show the centers used by the run; notes are written to the result files."""

import json

import cv2
import jax
import numpy as np
import pytest

from tests.helpers.interruption import interrupt_at
from tests.helpers.recurrent_model import contents
from tests.helpers.small_adnet import clip
from tests.helpers.small_f2net import small
from uvos_jax import UserError
from uvos_jax.inference import Segmenter
from uvos_jax.inference.debug_figures import check_figures, write_figures
from uvos_jax.inference.debug_figures import f2net as figures_f2net
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.ops.preprocess import preprocess
from uvos_jax.video import Frame, OutputOptions, Source

SIZE, LENGTH, BROKEN = (64, 96), 9, 5
LOST = (3, 4)


@pytest.fixture(scope="module")
def segmenter():
    """A random network whose heat map is scaled to fall below the threshold in the bright frames only."""
    model, variables = small(seed=7, min_peak_score=0.5)
    images = np.stack([frame.image for frame in source()])
    x = preprocess(images, model.frame_size(SIZE), model.preprocess)
    fresh = np.asarray(jax.jit(lambda v, x: model.apply(v, {"frame": x}, method="encode"))(variables, x)["frame_heat"])
    bright = np.isin(np.arange(LENGTH), LOST)
    best = {sign: (sign * fresh).max((1, 2, 3)) for sign in (1, -1)}
    sign = max(best, key=lambda sign: best[sign][~bright].min() - best[sign][bright].max())
    low, high = best[sign][bright].max(), best[sign][~bright].min()
    assert low < high
    center = variables["params"]["center"]
    center["frame_heat"]["kernel"] *= np.float32(4 * sign / (high - low))
    center["frame_heat"]["bias"] = np.float32([-3 + 4 * (sign * center["frame_heat"]["bias"][0] - low) / (high - low)])
    for name in ("scale", "shift"):
        center[name]["kernel"] *= np.float32(1e-4)
    return Segmenter("f2net", model, variables)


def source() -> Source:
    images = clip(LENGTH, SIZE)
    images[[i for i in range(LENGTH) if i not in LOST]] //= 16
    frames = [Frame(f"{i:05d}", image, broken="torn" if i == BROKEN else None) for i, image in enumerate(images)]
    return Source("made", "folder", lambda: (frame for frame in frames), length=LENGTH)


@pytest.mark.slow
def test_notes_report_lost_frames_at_any_chunk_size(segmenter):
    notes = [answer.notes for answer in segmenter.run(source())]
    chunks = [answer.notes for answer in segmenter.run(source(), chunk=4)]
    assert [note["lost"] for note in notes] == [note["lost"] for note in chunks]
    assert [i for i, note in enumerate(notes) if note["lost"]] == [*LOST, BROKEN]  # a broken frame repeats notes
    for name in ("center", "center_score"):
        np.testing.assert_allclose([note[name] for note in notes], [note[name] for note in chunks], atol=1e-5)


@pytest.mark.slow
def test_run_reports_lost_frames_and_figures_match_its_centers(segmenter, tmp_path, monkeypatch):
    drawn, sentences = {}, []

    def spy(draw):
        def remember(*args):
            drawn[draw.__name__] = args
            draw(*args)

        monkeypatch.setattr(figures_f2net, draw.__name__, remember)

    spy(figures_f2net._draw_maps)
    spy(figures_f2net._draw_track)
    run = segment_to_folder(segmenter, source(), tmp_path / "out",
                            outputs=OutputOptions(json=True, overlay=False), say=sentences.append)
    assert run["notes"] == {"lost": 3}
    assert sentences == [f"In 3 of 9 frames {segmenter.model.notes['lost']}."]
    paths = write_figures(segmenter, source(), tmp_path / "out", LENGTH)
    assert [path.name for path in paths] == ["centers.png", "track.png"]

    # The second pass finds the same centers as the run, frame by frame; x and y in pixels.
    entries = json.loads((tmp_path / "out/objects.json").read_text())["frames"]
    entries = [entry for i, entry in enumerate(entries) if i != BROKEN]
    _, indices, seen, scale, *_ = drawn["_draw_track"]
    assert indices == [i for i in range(LENGTH) if i != BROKEN]
    centers, scores, found = zip(*seen, strict=True)
    np.testing.assert_allclose(scores, [entry["center_score"] for entry in entries], atol=1e-5)
    assert [not bool(f) for f in found] == [entry["lost"] for entry in entries]
    np.testing.assert_allclose(figures_f2net.to_pixels(np.array(centers), 4, scale),
                               [entry["center"] for entry in entries], atol=3)  # less than a map cell, 4 pixels
    # No center precedes the first frame, and the broken frame adds none.
    rows = drawn["_draw_maps"][1]
    assert [row[0].split()[1] for row in rows] == ["0", "3", "5", "8"]
    assert [len(row[-1]) for row in rows] == [0, 3, 3, 5]
    # Rows: four frames, titles cropped. Columns: heat, prior, mask.
    picture = cv2.imread(str(paths[0]))[40:, 25:]
    assert all(cell.std() > 3 for row in np.array_split(picture, 4) for cell in np.array_split(row, 3, axis=1))
    assert cv2.imread(str(paths[1])).std() > 3


def test_resumed_run_keeps_track_and_lost_count(segmenter, tmp_path):
    files = {"chunk": 1, "save_every": 0, "outputs": OutputOptions(json=True, overlay=False)}
    segment_to_folder(segmenter, source(), tmp_path / "uninterrupted", **files)
    with pytest.raises(KeyboardInterrupt):
        segment_to_folder(segmenter, source(), tmp_path / "out", on_frame=interrupt_at(5), **files)
    run = segment_to_folder(segmenter, source(), tmp_path / "out", resume=True, **files)
    assert run["resumed"] == 5 and run["notes"] == {"lost": 3}
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")


def test_map_cells_convert_to_frame_pixels():
    cells = np.array([[0.0, 0.0], [3.0, 2.0]])
    np.testing.assert_allclose(figures_f2net.to_pixels(cells, 4, np.ones(2)), [[0, 0], [12, 8]])
    # A frame twice as wide: the center of the network's first pixel lies between two frame pixels.
    np.testing.assert_allclose(figures_f2net.to_pixels(cells, 4, np.array([2.0, 1.0])), [[0.5, 0], [24.5, 8]])


@pytest.mark.parametrize("net", ["baseline", "ad"])
def test_debug_is_rejected_without_center_prediction(net):
    with pytest.raises(UserError, match=f"'{net}' predicts none"):
        check_figures(Segmenter("f2net", *small(net=net)), source())
