"""Modules that a frame passes from decoder to writer; docs/architecture.md must name them."""

import re
import sys
import threading
from pathlib import Path

import numpy as np

import uvos_jax
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_adnet import small_segmenter
from uvos_jax.inference.jobs.segment import segment_to_folder
from uvos_jax.video import OutputOptions, open_source
from uvos_jax.video.frames import Frame
from uvos_jax.video.video_writer import VideoWriter

PACKAGE = Path(uvos_jax.__file__).parent
DECODER, WRITER = "video/video_reader.py", "video/result_writer.py"


def test_frames_pass_at_most_eight_modules_all_documented(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 72, 3), np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", 24.0) as writer:
        for frame in frames:
            writer.write(frame)
    seen: dict[str, set[str]] = {}

    def holds_frame(value):
        values = value if isinstance(value, (list, tuple)) else (value,)
        return any(isinstance(x, Frame) or isinstance(getattr(x, "frame", None), Frame) or (
            isinstance(x, (list, tuple)) and any(isinstance(y, Frame) for y in x)) for x in values)

    def trace(frame, event, value):
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        names = code.co_varnames[:code.co_argcount]
        values = [frame.f_locals.get(name) for name in names] if event == "call" else [value]
        if any(map(holds_frame, values)):
            module = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            seen.setdefault(module, set()).add(code.co_name)

    segmenter = small_segmenter()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        segment_to_folder(segmenter, open_source(tmp_path / "clip.mp4"), tmp_path / "out",
                          outputs=OutputOptions(overlay=True))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    between = seen.keys() - {DECODER, WRITER}
    assert len(between) <= 8, seen
    assert {"video/frames.py", "inference/prefetch.py",
            "inference/video_run.py", "inference/jobs/segment.py"} <= between
    document = (REPOSITORY / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([a-z_/0-9]+\.py)`", document.split("## One frame")[1].split("\n## ")[0]))
    assert between <= named, f"docs/architecture.md does not name {between - named}"


def test_modules_of_the_frame_path_are_short():
    for name in ("inference/video_run.py", "inference/segmenter.py", "inference/engine.py",
                 "inference/jobs/segment.py"):
        assert len((PACKAGE / name).read_text().splitlines()) <= 400, name
