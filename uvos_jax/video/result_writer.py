"""Writing what a run produces, behind the back of the caller: a file a frame, and files over the whole video."""

import contextlib
import csv
import io
import json as json_text
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.atomic_io import PartialFile, StreamedTextFile, atomic_write, make_folder
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.video import json_results as objects_json
from uvos_jax.video.frames import Frame
from uvos_jax.video.mask_io import PALETTE, write_mask
from uvos_jax.video.rendering import CUTOUTS, DEFAULT_STYLE, OverlayStyle, cut_out, draw_overlay
from uvos_jax.video.video_writer import VideoWriter

# All names that a ResultWriter may put into its folder.
RESULTS = ("masks", "overlay.mp4", "soft", "confidence.csv", "objects.json", "cutout", "cutout.mov", "cutout.webm")
# Enough to even out a slow disk.
_MOST_WAITING = 16
_MOST_BYTES = 128 * 2**20
_FILE_THREADS = 2
# Above this zlib level the time doubles or worse, and the files shrink little.
_COMPRESS_LEVEL = 3
# Wider than the blocks that lossy compression works on near a rim, in pixels.
_SEAM = 8


@dataclass(frozen=True)
class OutputOptions:
    """The files that a run writes beside the masks.

    Attributes:
        overlay: Write ``overlay.mp4``.
        style: Tint, outline and background of the overlay.
        soft: Write probabilities to ``soft/`` and a confidence for each frame to ``confidence.csv``.
        json: Write ``objects.json``.
        cutout: Write the objects on a transparent background: "png" to ``cutout/``, "mov" to ``cutout.mov`` or "webm"
            to ``cutout.webm``. None writes no cutout.
    """

    overlay: bool = True
    style: OverlayStyle = DEFAULT_STYLE
    soft: bool = False
    json: bool = False
    cutout: str | None = None


class ResultWriter:
    """Writes masks and whatever else is asked for in the background; used as a context manager.

    - ``masks/<name>.png``: indexed PNG;
    - ``soft/<name>.png``: 8-bit gray, 255 for sure foreground, and ``confidence.csv`` with a line a frame;
    - ``cutout/<name>.png``: the objects on transparent ground, or ``cutout.mov`` (ProRes 4444), ``cutout.webm`` (VP9);
    - ``overlay.mp4``: the objects drawn onto the frames;
    - ``objects.json``: masks as run lengths, boxes and areas.

    Each file appears whole. Leaving it waits for all, after an exception in its body too: what spans the video is then
    finished with the frames added so far. A file that cannot be written is dropped, and the others are kept. Files of
    earlier runs in the same folder are replaced where the names agree and otherwise left; unfinished ones that a
    killed run left behind are removed.

    No more than 16 frames and 128 MiB of pixels wait to be written, or a single frame if that is larger.
    """

    def __init__(self, output_dir: str | os.PathLike, fps: float, outputs: OutputOptions = OutputOptions(),
                 palette: np.ndarray | None = None):
        """Prepares a writer; nothing is created before it is entered.

        Args:
            output_dir: The folder for the results; it is made with its parents where missing.
            fps: Frames per second of the videos, where frames have no time stamps.
            outputs: The files to write beside the masks.
            palette: Colors of the labels in the masks and the overlay, uint8 [256, 3], RGB; those of DAVIS if None.

        Raises:
            UserError: There is no such form of cut-outs, or PyAV or an encoder is not installed.
        """
        cutout = outputs.cutout
        if cutout not in (None, *CUTOUTS):
            raise UserError(f"There are no cut-outs as '{cutout}'.{nearest_hint(str(cutout), CUTOUTS)} Known: "
                            f"{', '.join(CUTOUTS)}.")
        self._folder = Path(output_dir)
        self._soft, self._cutout = outputs.soft, cutout
        self._palette = PALETTE if palette is None else palette
        kinds = {"masks": True, "soft": outputs.soft, "cutout": cutout == "png"}
        self._folders = [name for name, wanted in kinds.items() if wanted]
        self._spanning: list[_Spanning] = []
        if outputs.overlay:
            self._add_overlay(fps, outputs.style)
        if outputs.soft:
            self._add_confidences()
        if outputs.json:
            self._add_objects(fps)
        if cutout in ("mov", "webm"):
            self._add_cutout(fps)
        self._pool = ThreadPoolExecutor(_FILE_THREADS)
        self._waiting: deque[_Waiting] = deque()
        self._entered = False

    @property
    def names(self) -> tuple[str, ...]:
        """What is there: names in the folder of results, of folders from the start, of single files once finished."""
        made = {*(self._folders if self._entered else ()), *(file.name for file in self._spanning if file.made)}
        return tuple(name for name in RESULTS if name in made)

    def __enter__(self) -> "ResultWriter":
        """Makes the folders.

        Raises:
            UserError: The operating system refused.
        """
        for name in self._folders:
            make_folder(self._folder / name)
        for name in RESULTS:
            PartialFile(self._folder / name).discard()
        for path in (path for name in self._folders for path in (self._folder / name).glob(".*.partial")):
            with contextlib.suppress(OSError):
                path.unlink()
        self._entered = True
        return self

    def add(self, frame: Frame, labels: np.ndarray, probability: np.ndarray | None = None,
            confidence: float | None = None, notes: dict[str, object] | None = None, on_disk: bool = False) -> None:
        """Queues a frame, and waits while too much is queued. No array may be altered afterwards.

        Args:
            frame: The frame; its name is unique in the run.
            labels: Integer or bool [h, w], 0..255; 0 is background and 255 void.
            probability: uint8 [h, w], 255 for sure foreground. With ``soft`` it is needed, but for a frame on disk
                without a cut-out video.
            confidence: How sure the model is of the frame, 0 to 1; with ``soft`` it is needed.
            notes: What else the model said of the frame, see ``objects_json.line``.
            on_disk: The files of this frame are there from an earlier run: only those that span the video get it.

        Raises:
            UserError: This or an earlier frame could not be written.
            ValueError: ``soft`` lacks what it needs, or an earlier frame had an array of another shape or dtype.
        """
        needs_probability = self._soft and not (on_disk and self._cutout in (None, "png"))
        if (needs_probability and probability is None) or (self._soft and confidence is None):
            raise ValueError("soft results need a probability and a confidence for each frame")
        for waiting in self._waiting:
            _raise_failure(job for job in (*waiting.files, *waiting.spanning) if job.done())
        size = sum(array.nbytes for array in (frame.image, labels, probability) if array is not None)
        while self._waiting and (self._waiting[0].done or len(self._waiting) >= _MOST_WAITING
                                 or sum(waiting.size for waiting in self._waiting) + size > _MOST_BYTES):
            waiting = self._waiting.popleft()
            _raise_failure((*waiting.files, *waiting.spanning))
        files = [] if on_disk else self._submit_files(frame, labels, probability)
        spanning = [file.submit(frame, labels, probability, confidence, notes or {}) for file in self._spanning]
        self._waiting.append(_Waiting(size, files, spanning))

    def flush(self) -> None:
        """Waits until the files of all frames added so far are on disk; files that span the video are not waited for.

        Raises:
            UserError: One of them could not be written.
        """
        for waiting in self._waiting:
            _raise_failure(waiting.files)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for all files and finishes those that span the video.

        Raises:
            UserError: A file could not be written, and the body of the ``with`` raised nothing itself.
        """
        # All steps are taken, whatever came of those before; even an interrupt only ends the waiting in one of them.
        first = None
        for step in (self._finish_waiting, self._pool.shutdown, *(file.finish for file in self._spanning)):
            try:
                step()
            except BaseException as error:
                first = first or error
        if first is not None and kind is None:
            raise first

    def _finish_waiting(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            _raise_failure((*waiting.files, *waiting.spanning))

    def _submit_files(self, frame: Frame, labels: np.ndarray, probability: np.ndarray | None) -> list[Future]:
        png = f"{frame.name}.png"
        jobs = [self._pool.submit(write_mask, self._folder / "masks" / png, labels, self._palette)]
        if self._soft:
            jobs.append(self._pool.submit(_write_png, self._folder / "soft" / png, probability))
        if self._cutout == "png":
            jobs.append(self._pool.submit(_write_cutout, self._folder / "cutout" / png, frame, labels, probability))
        return jobs

    def _add_overlay(self, fps: float, style: OverlayStyle) -> None:
        video = VideoWriter(self._folder / "overlay.mp4", fps)
        self._spanning.append(_Spanning(video, lambda frame, labels, *_: video.write(
            draw_overlay(frame.image, labels, style, self._palette), frame.time)))

    def _add_cutout(self, fps: float) -> None:
        video = VideoWriter(self._folder / f"cutout.{self._cutout}", fps)
        self._spanning.append(_Spanning(video, lambda frame, labels, probability, *_: video.write(
            cut_out(frame.image, labels, probability, _SEAM), frame.time)))

    def _add_confidences(self) -> None:
        table = StreamedTextFile(self._folder / "confidence.csv")
        self._spanning.append(_Spanning(table, lambda frame, labels, probability, confidence, _: table.write(
            _csv_line(frame.name, f"{confidence:.6f}"), header=_csv_line("name", "confidence"))))

    def _add_objects(self, fps: float) -> None:
        file = StreamedTextFile(self._folder / "objects.json", separator=",\n", footer=objects_json.TAIL)
        self._spanning.append(_Spanning(file, lambda frame, labels, probability, confidence, notes: file.write(
            objects_json.line(frame, labels, notes), header=objects_json.head(labels.shape, fps))))


@dataclass(frozen=True)
class _Waiting:
    """A queued frame: the bytes of its arrays, and the jobs that write it."""

    size: int
    files: list[Future]
    spanning: list[Future]

    @property
    def done(self) -> bool:
        return all(job.done() for job in (*self.files, *self.spanning))


class _Spanning:
    """A file over the whole video, written by one thread, which keeps the frames in order; dropped once it fails."""

    def __init__(self, file: VideoWriter | StreamedTextFile, write: Callable[..., None]):
        self.name = file.path.name
        self.made = False
        self._file = file
        self._write = write
        self._failed = False
        self._pool = ThreadPoolExecutor(1)

    def submit(self, *frame: object) -> Future:
        return self._pool.submit(self._unless_failed, self._write, *frame)

    def finish(self) -> None:
        """Finishes the file after all that was submitted."""
        try:
            self._pool.submit(self._unless_failed, self._finish).result()
        finally:
            self._pool.shutdown()

    def _finish(self) -> None:
        self.made = self._file.finish()

    def _unless_failed(self, work: Callable[..., None], *args: object) -> None:
        if self._failed:
            return
        try:
            work(*args)
        except BaseException:
            self._failed = True
            self._file.discard()
            raise


def write_json(path: str | os.PathLike, obj: object) -> None:
    """Writes ``obj`` as indented JSON, in one step.

    Args:
        path: The file to write, in an existing folder; an existing file is replaced.
        obj: What ``json.dumps`` takes.

    Raises:
        TypeError: The object holds something JSON has no form for.
        UserError: The operating system refused to write the file.
    """
    atomic_write(path, (json_text.dumps(obj, indent=2) + "\n").encode())


def _raise_failure(jobs: Iterable[Future]) -> None:
    """Waits for jobs, and raises the error of the first that failed."""
    for job in jobs:
        job.result()


def _write_cutout(path: Path, frame: Frame, labels: np.ndarray, probability: np.ndarray | None) -> None:
    _write_png(path, cv2.cvtColor(cut_out(frame.image, labels, probability), cv2.COLOR_RGBA2BGRA))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes gray [h, w] or blue, green, red and opacity [h, w, 4], uint8, in one step."""
    atomic_write(path, cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESS_LEVEL])[1].tobytes())


def _csv_line(*values: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
