"""Locate and read predicted masks, and collect every violation of a protocol's rules into one error."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from uvos_jax.data.datasets.ground_truth import read_pixels
from uvos_jax.data.datasets.layouts import Sequence, images_by_stem
from uvos_jax.errors import UserError
from uvos_jax.labels import VOID
from uvos_jax.video import read_mask

_MAX_OBJECT_ID = 20  # largest proposal or object id that the DAVIS rules allow

PredictionPaths = dict[str, dict[str, Path]]


def find_predictions(root: Path, wanted: Mapping[str, Iterable[str]],
                     subfolders: tuple[str, ...] = ("masks",)) -> PredictionPaths:
    """Finds the prediction file of every wanted frame.

    The masks of a sequence are read from ``<root>/<sequence>/masks`` (the layout of ``uvos segment``) or
    ``<root>/<sequence>``. ``<root>/Annotations`` replaces ``root`` if it exists. With a single wanted sequence,
    ``root`` may be the mask folder itself. If no two sequences share a frame name, ``root`` may hold the masks of all
    sequences. File stems are frame names.

    Args:
        root: Folder of the predictions.
        wanted: Frame names of each sequence.
        subfolders: Subfolders of a sequence's folder to search first.

    Returns:
        The path of each frame, by sequence name and frame name.

    Raises:
        UserError: Sequences or frames are missing; the message lists all of them.
    """
    if not root.is_dir():
        raise UserError(f"The predictions '{root}' are not a folder.")
    base = root / "Annotations" if (root / "Annotations").is_dir() else root
    wanted = {name: list(frames) for name, frames in wanted.items()}
    shared = _shared_folder(base, wanted)
    paths: PredictionPaths = {}
    missing_sequences, missing_frames = [], []
    for name, frames in wanted.items():
        folder = _sequence_folder(base, name, subfolders, is_only_sequence=len(wanted) == 1)
        if folder is None:
            if frames and not any(frame in shared for frame in frames):
                missing_sequences.append(name)
                continue
            folder = base
        available = images_by_stem(folder)
        paths[name] = {frame: available[frame] for frame in frames if frame in available}
        missing = [frame for frame in frames if frame not in available]
        if missing and len(missing) == len(frames) and available:
            missing_frames.append(f"{name} (file names differ: '{min(available)}' where the ground truth has"
                                  f" '{frames[0]}')")
        elif missing:
            missing_frames.append(f"{name} {format_ranges(missing, frames)}")
    problems = []
    if missing_sequences:
        problems.append(f"{len(missing_sequences)} of {len(wanted)} sequences are missing:"
                        f" {', '.join(missing_sequences)}")
    if missing_frames:
        problems.append(f"frames are missing: {'; '.join(missing_frames)}")
    if problems:
        raise UserError(f"'{root}' is incomplete: {'; '.join(problems)}. Masks are expected at <sequence>/<frame>.png,"
                        " with the frame names of the ground truth.")
    return paths


def read_foreground(path: Path) -> np.ndarray:
    """Reads a predicted mask as one foreground; objects are merged.

    Returns:
        bool [h, w].

    Raises:
        UserError: The file is not a mask, or contains void (255 in an indexed mask).
    """
    labels = read_mask(path)
    if labels.max() == VOID:
        raise UserError("contains 255 (void), which predictions must not contain; write 1 for the foreground")
    return labels > 0


def read_objects(path: Path) -> np.ndarray:
    """Reads the object ids of a predicted mask.

    Returns:
        uint8 [h, w] in 0..20; 0 is background.

    Raises:
        UserError: The file is not a label mask, or contains void or an id above 20.
    """
    labels = read_mask(path, numbered=True)
    largest = int(labels.max())
    if largest == VOID:
        raise UserError("contains 255 (void), which predictions must not contain; write object ids, or 0")
    if largest > _MAX_OBJECT_ID:
        raise UserError(f"contains object id {largest}; the largest valid id is {_MAX_OBJECT_ID}, relabel from 1")
    return labels


def read_saliency_map(path: Path) -> np.ndarray:
    """Reads a predicted saliency map, or a mask as a map of 0 and 255.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: The file is neither.
    """
    gray, mode = read_pixels(path)
    if mode in ("P", "1"):
        return (gray > 0) * np.uint8(255)
    if mode == "LA":
        gray = gray[..., 0]
    elif mode != "L":
        raise UserError(f"is an image of mode {mode}; a saliency map has one 8-bit gray channel")
    return gray


class FrameProblems:
    """Problems found in the frames of one sequence, collected so that one error can report all of them."""

    def __init__(self, sequence: str, frames: Iterable[str]):
        """Starts with an empty collection.

        Args:
            sequence: Name of the sequence.
            frames: Names of all its frames, in order.
        """
        self._sequence, self._frames = sequence, list(frames)
        self._frames_by_problem: dict[str, list[str]] = defaultdict(list)

    def read(self, frame: str, path: Path, reader: Callable[[Path], np.ndarray],
             shape: tuple[int, int] | None = None) -> np.ndarray | None:
        """Reads a prediction; on failure records the problem and returns None.

        Args:
            frame: Name of the frame.
            path: File of the prediction.
            reader: Returns an array [h, w] or raises ``UserError``.
            shape: Required (height, width), or None to accept any size.
        """
        try:
            labels = reader(path)
        except UserError as error:
            # The reader names the file; the report names the frames that share the problem instead.
            text = str(error).replace(f"Cannot read the mask {str(path)!r}:", "cannot be read:")
            text = text.removeprefix("The mask ").replace(repr(str(path)), "")
            self.add(frame, text.strip().rstrip("."))
            return None
        return labels if shape is None or self.check_size(frame, labels, shape) else None

    def check_size(self, frame: str, labels: np.ndarray | None, shape: tuple[int, ...]) -> bool:
        """Returns whether ``labels`` exists and has the ground truth's shape; records a different size."""
        if labels is not None and labels.shape != shape:
            self.add(frame, f"is {labels.shape[1]}x{labels.shape[0]} where the ground truth is {shape[1]}x{shape[0]}")
            return False
        return labels is not None

    def add(self, frame: str, problem: str) -> None:
        """Records a problem of a frame."""
        self._frames_by_problem[problem].append(frame)

    def report(self) -> list[tuple[str, str]]:
        """Returns (sequence and frame ranges, problem) for each distinct problem."""
        return [(f"{self._sequence} {format_ranges(frames, self._frames)}", problem)
                for problem, frames in self._frames_by_problem.items()]


def format_ranges(names: Iterable[str], order: list[str]) -> str:
    """Formats names as ranges such as ``00003-00007, 00011``; a range covers consecutive entries of ``order``."""
    index = {name: position for position, name in enumerate(order)}
    ranges: list[list[str]] = []
    for name in sorted(names, key=index.__getitem__):
        if ranges and index[name] == index[ranges[-1][-1]] + 1:
            ranges[-1].append(name)
        else:
            ranges.append([name])
    return ", ".join(span[0] if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in ranges)


def load_pairs(sequence: Sequence, frames: Iterable[str], paths: Mapping[str, Path],
               read_truth: Callable[[Path], np.ndarray], read_prediction: Callable[[Path], np.ndarray],
               problems: FrameProblems) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (frame name, prediction, ground truth) of each valid frame; records the problems of the others."""
    truths = dict(zip(sequence.frames, sequence.truths, strict=True))
    for frame in frames:
        truth = read_truth(truths[frame])
        prediction = problems.read(frame, paths[frame], read_prediction, truth.shape[:2])
        if prediction is not None:
            yield frame, prediction, truth


def _sequence_folder(base, name, subfolders, is_only_sequence):
    candidates = [*(base / name / sub for sub in subfolders), base / name]
    if is_only_sequence:
        candidates += [*(base / sub for sub in subfolders), base]
    return next((path for path in candidates if images_by_stem(path)), None)


def _shared_folder(base, wanted):
    """Returns the images of ``base`` by stem if frame names are unique over all sequences, otherwise an empty dict."""
    names = [frame for frames in wanted.values() for frame in frames]
    return images_by_stem(base) if len(set(names)) == len(names) else {}
