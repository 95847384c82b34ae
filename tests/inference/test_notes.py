"""Per-frame notes of a model in results, files and the summary of a run."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.interruption import interrupt_at
from tests.helpers.recurrent_model import SIZE, RecurrentModel, contents, recurrent_segmenter, save_frames
from uvos_jax.inference import Segmenter
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.video import Frame, OutputOptions, Source, open_source

SENTENCE = "it was too dark to see"
LEVELS = [200, 10, 90, 20, 30, 220, 5, 60, 70, 15, 250]
DARK = [level < 40 for level in LEVELS]  # 5 of 11


class Noting(RecurrentModel):
    """Model with three notes: whether the frame is dark, its index, and the brightness of the left column."""

    @property
    def notes(self):
        return {"dark": SENTENCE}

    def predict(self, state, features):
        level = features["gray"].mean((1, 2, 3)).astype(jnp.float32)
        before = jnp.full(level.shape, state["frames"], jnp.float32)
        left = features["gray"][:, :, 0].mean((1, 2)).astype(jnp.float32)
        notes = {"dark": level < 40 / 255, "before": before, "center": jnp.stack([left, 0.25 * left], -1)}
        return super().predict(state, features)[0], {"notes": notes}


@functools.cache  # shares compiled programs between tests
def noting(**options) -> Segmenter:
    return Segmenter("noting", Noting(), {"params": {"gain": np.float32(8)}}, **options)


def gray(levels=LEVELS) -> np.ndarray:
    return np.stack([np.full((*SIZE, 3), level, np.uint8) for level in levels])


def said(segmenter, frames=None, broken=(), **options):
    frames = gray() if frames is None else frames
    video = [Frame(f"{i:05d}", image, broken="torn" if i in broken else None) for i, image in enumerate(frames)]
    source = Source("made", "folder", lambda: (frame for frame in video), length=len(video))
    return [answer.notes for answer in segmenter.run(source, **options)]


@pytest.mark.parametrize("options", [{}, {"chunk": 4}, {"chunk": 16}, {"chunk": 4, "soft": True}])
def test_each_frame_has_its_own_notes_at_any_chunk_size(options):
    notes = said(noting(), **options)
    assert [note["dark"] for note in notes] == DARK
    assert [note["before"] for note in notes] == list(range(len(LEVELS)))
    np.testing.assert_allclose([note["center"] for note in notes], [[v / 255, v / 1020] for v in LEVELS], rtol=1e-5)
    assert json.loads(json.dumps(notes)) == notes  # JSON types


def test_notes_come_from_the_first_view():
    ramp = np.broadcast_to(np.linspace(50, 250, SIZE[1]).astype(np.uint8)[:, None], (2, *SIZE, 3))
    notes = said(noting(flip=True), ramp)
    assert notes == said(noting(), ramp) and notes[0]["center"][0] == pytest.approx(50 / 255)
    mirrored = said(noting(flip=True), ramp[:, :, ::-1])
    assert mirrored[0]["center"][0] == pytest.approx(250 / 255)


def test_broken_frame_repeats_last_notes():
    notes = said(noting(), broken=(3, 4, 10), chunk=4)
    assert notes[3] == notes[4] == notes[2] and notes[10] == notes[9]
    assert notes[5]["before"] == 3  # broken frames do not change the state


def test_notes_before_first_good_frame_are_empty():
    assert said(noting(), broken=(0,))[0] == {"dark": False, "before": None, "center": None}


def test_models_without_notes_write_none(tmp_path):
    assert said(recurrent_segmenter()) == [{}] * len(LEVELS)
    frames = save_frames(tmp_path / "frames", gray())
    sentences = []
    run = segment_to_folder(recurrent_segmenter(), open_source(frames), tmp_path / "out",
                            outputs=OutputOptions(json=True), say=sentences.append)
    assert "notes" not in run and not sentences
    assert set(_entries(tmp_path / "out")[0]) == {"name", "time", "objects"}


def _entries(folder):
    return json.loads((folder / "objects.json").read_text())["frames"]


def test_flags_are_counted_reported_once_and_written_per_frame(tmp_path):
    frames = save_frames(tmp_path / "frames", gray())
    sentences = []
    run = segment_to_folder(noting(), open_source(frames), tmp_path / "out",
                            outputs=OutputOptions(json=True), say=sentences.append)
    assert run["notes"] == {"dark": 5} == json.loads((tmp_path / "out/run.json").read_text())["notes"]
    assert sentences == [f"In 5 of 11 frames {SENTENCE}."]
    entries = _entries(tmp_path / "out")
    assert [entry["dark"] for entry in entries] == DARK
    # Scaled by the width (32) and the height (24).
    assert entries[0]["center"] == [pytest.approx(32 * 200 / 255, abs=0.01), pytest.approx(24 * 50 / 255, abs=0.01)]


def test_no_report_if_no_flag_is_true(tmp_path):
    frames = save_frames(tmp_path / "frames", gray([100, 200]))
    sentences = []
    run = segment_to_folder(noting(), open_source(frames), tmp_path / "out", say=sentences.append)
    assert run["notes"] == {"dark": 0} and not sentences


@pytest.mark.parametrize("stops", [(3,), (5, 9)])
def test_resumed_run_has_the_same_files_and_counts(tmp_path, stops):
    frames = save_frames(tmp_path / "frames", gray())
    segmenter = noting()
    files = {"chunk": 2, "save_every": 0, "outputs": OutputOptions(json=True, soft=True, overlay=False)}
    segment_to_folder(segmenter, open_source(frames), tmp_path / "uninterrupted", **files)
    for at in stops:
        with pytest.raises(KeyboardInterrupt):
            segment_to_folder(segmenter, open_source(frames), tmp_path / "out", resume=True,
                              on_frame=interrupt_at(at), **files)
    run = segment_to_folder(segmenter, open_source(frames), tmp_path / "out", resume=True, **files)
    assert run["resumed"] == stops[-1] // 2 * 2 and run["notes"] == {"dark": 5}
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")
