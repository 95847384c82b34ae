"""Finding predicted masks, and refusing those that a protocol does not allow. Everything wrong is named at once."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from uvos_jax.data.datasets.ground_truth import pixels
from uvos_jax.data.datasets.layouts import Sequence, images_by_stem
from uvos_jax.errors import UserError
from uvos_jax.video import read_mask

_LARGEST_NUMBER = 20  # of a proposal or object, by the rule of DAVIS
_VOID = 255

Files = dict[str, dict[str, Path]]


def find(root: Path, wanted: Mapping[str, Iterable[str]], subfolders: tuple[str, ...] = ("masks",)) -> Files:
    """Finds the prediction of every wanted frame.

    A sequence's masks lie in ``<root>/<sequence>``, or in ``<root>/<sequence>/masks`` where ``uvos segment`` has
    written them; ``root`` may hold ``Annotations`` in between, and if a single sequence is wanted it may be
    the folder of masks itself. If no two sequences share a frame name, ``root`` may hold all masks side by side.
    Masks are called as the frames are.

    Args:
        root: The predictions.
        wanted: Frame names of every sequence.
        subfolders: Where below a sequence's folder to look first.

    Returns:
        The file of every frame, by sequence and frame.

    Raises:
        UserError: Sequences or frames are missing; all of them are named.
    """
    if not root.is_dir():
        raise UserError(f"The predictions '{root}' are not a folder.")
    base = root / "Annotations" if (root / "Annotations").is_dir() else root
    wanted = {name: list(frames) for name, frames in wanted.items()}
    flat = _flat(base, wanted)
    files: Files = {}
    absent, gaps = [], []
    for name, frames in wanted.items():
        folder = _folder(base, name, subfolders, alone=len(wanted) == 1)
        if folder is None:
            if frames and not any(frame in flat for frame in frames):
                absent.append(name)
                continue
            folder = base
        there = images_by_stem(folder)
        files[name] = {frame: there[frame] for frame in frames if frame in there}
        missing = [frame for frame in frames if frame not in there]
        if missing and len(missing) == len(frames) and there:
            gaps.append(f"{name} (its masks are named otherwise: '{min(there)}' where the ground truth has"
                        f" '{frames[0]}')")
        elif missing:
            gaps.append(f"{name} {ranges(missing, frames)}")
    complaints = []
    if absent:
        complaints.append(f"{len(absent)} of {len(wanted)} sequences are missing: {', '.join(absent)}")
    if gaps:
        complaints.append(f"frames are missing: {'; '.join(gaps)}")
    if complaints:
        raise UserError(f"'{root}' is not complete: {'; '.join(complaints)}. Masks are looked for as"
                        " <sequence>/<frame>.png, named like the ground truth.")
    return files


def read_foreground(path: Path) -> np.ndarray:
    """Reads a predicted mask as one foreground; objects are merged.

    Returns:
        bool [h, w].

    Raises:
        UserError: It is no mask, or holds void (255 in an indexed mask).
    """
    labels = read_mask(path)
    if labels.max() == _VOID:
        raise UserError("holds 255, which stands for void, but a prediction has none; write 1 for the foreground")
    return labels > 0


def read_objects(path: Path) -> np.ndarray:
    """Reads predicted object numbers, 0..20.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: It is no label mask, or holds a number above 20.
    """
    labels = read_mask(path, numbered=True)
    largest = int(labels.max())
    if largest == _VOID:
        raise UserError("holds 255, which stands for void, but a prediction has none; write object numbers, or 0")
    if largest > _LARGEST_NUMBER:
        raise UserError(f"holds object number {largest}; numbers go up to {_LARGEST_NUMBER}, relabel them from 1")
    return labels


def read_map(path: Path) -> np.ndarray:
    """Reads a predicted saliency map, or a mask as a map of 0 and 255.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: It is neither.
    """
    gray, mode = pixels(path)
    if mode in ("P", "1"):
        return (gray > 0) * np.uint8(255)
    if mode == "LA":
        gray = gray[..., 0]
    elif mode != "L":
        raise UserError(f"is a picture of mode {mode}; a saliency map is one gray channel of 8 bits")
    return gray


class Complaints:
    """Collects what is wrong with the frames of a sequence, so that all of it can be told at once."""

    def __init__(self, sequence: str, frames: Iterable[str]):
        """Starts with nothing wrong.

        Args:
            sequence: Its name.
            frames: Names of all its frames, in order.
        """
        self._sequence, self._frames = sequence, list(frames)
        self._found: dict[str, list[str]] = defaultdict(list)

    def read(self, frame: str, path: Path, reader: Callable[[Path], np.ndarray],
             shape: tuple[int, int] | None = None) -> np.ndarray | None:
        """Reads a prediction, or notes why it cannot be used and returns None.

        Args:
            frame: Its name.
            path: Its file.
            reader: Returns an array [h, w], or raises UserError.
            shape: (height, width) of the ground truth, or None if any will do.
        """
        try:
            labels = reader(path)
        except UserError as error:
            # The reader names the file; here the frames that share the complaint are named instead.
            text = str(error).replace(f"Cannot read the mask {str(path)!r}:", "cannot be read:")
            text = text.removeprefix("The mask ").replace(repr(str(path)), "")
            self.note(frame, text.strip().rstrip("."))
            return None
        return labels if shape is None or self.fits(frame, labels, shape) else None

    def fits(self, frame: str, labels: np.ndarray | None, shape: tuple[int, ...]) -> bool:
        """Whether there is a prediction, of the size of the ground truth; another size is noted."""
        if labels is not None and labels.shape != shape:
            self.note(frame, f"is {labels.shape[1]}x{labels.shape[0]} where the ground truth is {shape[1]}x{shape[0]}")
            return False
        return labels is not None

    def note(self, frame: str, complaint: str) -> None:
        """Notes something wrong with a frame."""
        self._found[complaint].append(frame)

    def found(self) -> list[tuple[str, str]]:
        """Returns, for every kind of complaint, the sequence and frames it is about, and the complaint."""
        return [(f"{self._sequence} {ranges(frames, self._frames)}", complaint)
                for complaint, frames in self._found.items()]


def ranges(names: Iterable[str], order: list[str]) -> str:
    """Returns names briefly, ``00003-00007, 00011``, where a range runs over neighbors in ``order``."""
    index = {name: position for position, name in enumerate(order)}
    runs: list[list[str]] = []
    for name in sorted(names, key=index.__getitem__):
        if runs and index[name] == index[runs[-1][-1]] + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def pairs(sequence: Sequence, frames: Iterable[str], files: Mapping[str, Path],
          read_truth: Callable[[Path], np.ndarray], read_prediction: Callable[[Path], np.ndarray],
          complaints: Complaints) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (frame name, prediction, truth) of the frames that can be used; the others are complained about."""
    truths = dict(zip(sequence.frames, sequence.truths, strict=True))
    for frame in frames:
        truth = read_truth(truths[frame])
        prediction = complaints.read(frame, files[frame], read_prediction, truth.shape[:2])
        if prediction is not None:
            yield frame, prediction, truth


def _folder(base, name, subfolders, alone):
    candidates = [*(base / name / sub for sub in subfolders), base / name]
    if alone:
        candidates += [*(base / sub for sub in subfolders), base]
    return next((path for path in candidates if images_by_stem(path)), None)


def _flat(base, wanted):
    """The masks of all sequences in one folder, where their names tell the sequences apart."""
    names = [frame for frames in wanted.values() for frame in frames]
    return images_by_stem(base) if len(set(names)) == len(names) else {}
