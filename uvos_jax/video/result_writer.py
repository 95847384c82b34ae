"""Writing the results of a run in the background: files per frame (masks), and files per video (overlay)."""

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
from uvos_jax.video.frames import Frame
from uvos_jax.video.json_results import OBJECTS_FOOTER, OBJECTS_SEPARATOR, objects_header, objects_line
from uvos_jax.video.mask_io import PALETTE, write_mask
from uvos_jax.video.rendering import CUTOUTS, DEFAULT_STYLE, OverlayStyle, cut_out, draw_overlay
from uvos_jax.video.video_writer import VideoWriter

# All names that a ResultWriter may create in its folder.
RESULTS = ("masks", "overlay.mp4", "soft", "confidence.csv", "objects.json", "cutout", "cutout.mov", "cutout.webm")
# Limits of the queue, which evens out a slow disk.
_MAX_QUEUED_FRAMES = 16
_MAX_QUEUED_BYTES = 128 * 2**20
_FILE_THREADS = 2
# Higher zlib levels at least double the time for little smaller files.
_COMPRESS_LEVEL = 3
# Band around the objects of a cutout video that keeps its colors: wider than the blocks of lossy codecs. Pixels.
_CUTOUT_MARGIN = 8


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
    """Writes masks and the files of ``OutputOptions`` in the background; a context manager.

    - ``masks/<name>.png``: indexed PNG;
    - ``soft/<name>.png``: 8-bit gray, 255 for certain foreground, and ``confidence.csv`` with one line per frame;
    - ``cutout/<name>.png``: the objects on a transparent background, or ``cutout.mov`` (ProRes 4444) or ``cutout.webm``
      (VP9);
    - ``overlay.mp4``: the objects drawn onto the frames;
    - ``objects.json``: masks (RLE), boxes and areas.

    Each file is written atomically. Exiting waits for all files; after an exception in the body, files per video are
    finished with the frames added so far. If a file cannot be written, it is dropped and the others are kept. Existing
    results of the same name are replaced; other files are left, except unfinished ones of a killed run.

    At most 16 frames and 128 MiB of pixels wait to be written, or a single frame if that is larger.
    """

    def __init__(self, output_dir: str | os.PathLike, fps: float, outputs: OutputOptions = OutputOptions(),
                 palette: np.ndarray | None = None):
        """Prepares a writer; entering the context creates the folders.

        Args:
            output_dir: The folder for the results; it is created with its parents if missing.
            fps: Frame rate of the videos for frames without time stamps.
            outputs: The files to write beside the masks.
            palette: Colors of the labels in masks and overlay, uint8 [256, 3], RGB; None for the DAVIS palette.

        Raises:
            UserError: The cutout format is unknown, or PyAV or an encoder is not installed.
        """
        cutout = outputs.cutout
        if cutout not in (None, *CUTOUTS):
            raise UserError(f"Unknown cutout format '{cutout}'; valid formats: {', '.join(CUTOUTS)}."
                            f"{nearest_hint(str(cutout), CUTOUTS)}")
        self._folder = Path(output_dir)
        self._soft, self._cutout = outputs.soft, cutout
        self._palette = PALETTE if palette is None else palette
        folders = {"masks": True, "soft": outputs.soft, "cutout": cutout == "png"}
        self._folders = [name for name, wanted in folders.items() if wanted]
        self._video_files: list[_VideoFile] = []
        if outputs.overlay:
            self._add_overlay(fps, outputs.style)
        if outputs.soft:
            self._add_confidences()
        if outputs.json:
            self._add_objects(fps)
        if cutout in ("mov", "webm"):
            self._add_cutout(fps)
        self._pool = ThreadPoolExecutor(_FILE_THREADS)
        self._queue: deque[_QueuedFrame] = deque()
        self._entered = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the results that exist in the folder; files per video count once they are finished."""
        folders = self._folders if self._entered else ()
        written = [file.name for file in self._video_files if file.written]
        return tuple(name for name in RESULTS if name in folders or name in written)

    def __enter__(self) -> "ResultWriter":
        """Creates the folders, and removes unfinished files of a killed run.

        Raises:
            UserError: A file cannot be written.
        """
        for name in self._folders:
            make_folder(self._folder / name)
        for name in RESULTS:
            PartialFile(self._folder / name).discard()
        for name in self._folders:
            for path in (self._folder / name).glob(".*.partial"):
                with contextlib.suppress(OSError):
                    path.unlink()
        self._entered = True
        return self

    def add(self, frame: Frame, labels: np.ndarray, probability: np.ndarray | None = None,
            confidence: float | None = None, notes: dict[str, object] | None = None, on_disk: bool = False) -> None:
        """Queues a frame; waits while the queue is full. The arrays must not be changed afterwards.

        Args:
            frame: The frame; its name is unique in the run.
            labels: Integer or bool [h, w], 0..255; 0 is background and 255 void.
            probability: uint8 [h, w], 255 for certain foreground. Required with ``soft``, except for a frame on disk
                without a cutout video.
            confidence: Confidence of the model in the frame, 0 to 1; required with ``soft``.
            notes: Further values that the model gives for the frame, see ``json_results.objects_line``.
            on_disk: The files of this frame exist from an earlier run; only files per video receive it.

        Raises:
            UserError: This or an earlier frame could not be written.
            ValueError: A value required by ``soft`` is missing, or an earlier frame had arrays of another shape or
                dtype.
        """
        needs_probability = self._soft and not (on_disk and self._cutout in (None, "png"))
        if (needs_probability and probability is None) or (self._soft and confidence is None):
            raise ValueError("soft results need a probability and a confidence for each frame")
        for queued in self._queue:
            _raise_failure(job for job in queued.jobs if job.done())
        size = sum(array.nbytes for array in (frame.image, labels, probability) if array is not None)
        while self._queue and (self._queue[0].done or len(self._queue) >= _MAX_QUEUED_FRAMES
                               or sum(queued.size for queued in self._queue) + size > _MAX_QUEUED_BYTES):
            _raise_failure(self._queue.popleft().jobs)
        frame_jobs = [] if on_disk else self._submit_files(frame, labels, probability)
        video_jobs = [file.submit(frame, labels, probability, confidence, notes or {}) for file in self._video_files]
        self._queue.append(_QueuedFrame(size, frame_jobs, video_jobs))

    def flush(self) -> None:
        """Waits until the files per frame of all frames added so far are on disk.

        Raises:
            UserError: One of them could not be written.
        """
        for queued in self._queue:
            _raise_failure(queued.frame_jobs)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for all files and finishes the files per video.

        Raises:
            UserError: A file could not be written, and the body of the ``with`` raised nothing itself.
        """
        # Every step is taken even if an earlier one failed; an interrupt ends only the step that is waiting.
        first = None
        for step in (self._finish_queue, self._pool.shutdown, *(file.finish for file in self._video_files)):
            try:
                step()
            except BaseException as error:
                first = first or error
        if first is not None and kind is None:
            raise first

    def _finish_queue(self) -> None:
        while self._queue:
            _raise_failure(self._queue.popleft().jobs)

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
        self._video_files.append(_VideoFile(video, lambda frame, labels, *_: video.write(
            draw_overlay(frame.image, labels, style, self._palette), frame.time)))

    def _add_cutout(self, fps: float) -> None:
        video = VideoWriter(self._folder / f"cutout.{self._cutout}", fps)
        self._video_files.append(_VideoFile(video, lambda frame, labels, probability, *_: video.write(
            cut_out(frame.image, labels, probability, _CUTOUT_MARGIN), frame.time)))

    def _add_confidences(self) -> None:
        table = StreamedTextFile(self._folder / "confidence.csv")
        self._video_files.append(_VideoFile(table, lambda frame, labels, probability, confidence, _: table.write(
            _csv_line(frame.name, f"{confidence:.6f}"), header=_csv_line("name", "confidence"))))

    def _add_objects(self, fps: float) -> None:
        file = StreamedTextFile(self._folder / "objects.json", OBJECTS_SEPARATOR, OBJECTS_FOOTER)
        self._video_files.append(_VideoFile(file, lambda frame, labels, probability, confidence, notes: file.write(
            objects_line(frame, labels, notes), header=objects_header(labels.shape, fps))))


@dataclass(frozen=True)
class _QueuedFrame:
    """A queued frame: the bytes of its arrays, and the jobs that write it."""

    size: int
    frame_jobs: list[Future]
    video_jobs: list[Future]

    @property
    def jobs(self) -> list[Future]:
        return self.frame_jobs + self.video_jobs

    @property
    def done(self) -> bool:
        return all(job.done() for job in self.jobs)


class _VideoFile:
    """A file per video, written by one thread that keeps the frames in order; dropped after its first error."""

    def __init__(self, file: VideoWriter | StreamedTextFile, write: Callable[..., None]):
        self.name = file.path.name
        self.written = False
        self._file = file
        self._write = write
        self._failed = False
        self._pool = ThreadPoolExecutor(1)

    def submit(self, *frame: object) -> Future:
        return self._pool.submit(self._unless_failed, self._write, *frame)

    def finish(self) -> None:
        """Finishes the file after everything submitted."""
        try:
            self._pool.submit(self._unless_failed, self._finish).result()
        finally:
            self._pool.shutdown()

    def _finish(self) -> None:
        self.written = self._file.finish()

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
    """Writes ``obj`` as indented JSON, atomically.

    Args:
        path: The file to write, in an existing folder; an existing file is replaced.
        obj: A value that ``json.dumps`` accepts.

    Raises:
        TypeError: The object has a value without a JSON form.
        UserError: The file cannot be written.
    """
    atomic_write(path, (json_text.dumps(obj, indent=2) + "\n").encode())


def _raise_failure(jobs: Iterable[Future]) -> None:
    """Waits for jobs, and raises the error of the first that failed."""
    for job in jobs:
        job.result()


def _write_cutout(path: Path, frame: Frame, labels: np.ndarray, probability: np.ndarray | None) -> None:
    _write_png(path, cv2.cvtColor(cut_out(frame.image, labels, probability), cv2.COLOR_RGBA2BGRA))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 gray [h, w] or BGRA [h, w, 4], atomically."""
    atomic_write(path, cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESS_LEVEL])[1].tobytes())


def _csv_line(*values: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
