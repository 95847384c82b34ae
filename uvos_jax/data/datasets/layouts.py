"""Folder layouts of the datasets: sequences, frames and ground truth."""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from uvos_jax.errors import UserError, error_reason, nearest_hint
from uvos_jax.video.image_io import natural_sort

IMAGES = (".png", ".bmp", ".jpg", ".jpeg", ".pgm", ".ppm", ".tif", ".tiff", ".gif", ".webp")
YOUTUBE_OBJECTS = ("aeroplane", "bird", "boat", "car", "cat", "cow", "dog", "horse", "motorbike", "train")


@dataclass(frozen=True)
class Sequence:
    """A sequence of a dataset.

    Attributes:
        name: Name used in results; it may contain slashes.
        frames: Names of the evaluated frames, in order; predictions use the same names.
        truths: Ground-truth file of each frame; empty if the ground truth is not public.
        images: Image file of each frame; empty if only masks exist.
        given: All existing mask files by frame; in test splits those of the objects' first frames.
    """

    name: str
    frames: tuple[str, ...]
    truths: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    given: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class YouTubeVosObject:
    """An object of a YouTube-VOS video: id, category, and names of the frames that show it."""

    number: int
    category: str
    frames: tuple[str, ...]


def davis(root: Path, year: int, split: str, annotations: str = "Annotations") -> list[Sequence]:
    """Lists the sequences of a DAVIS split.

    ``root`` contains ``ImageSets/<year>/<split>.txt`` and ``<annotations>/480p/<sequence>/*.png``. Each line of the
    list is a name or, as in DAVIS-2016, the paths of an image and a mask.

    Raises:
        UserError: The layout differs, or a listed sequence has no folder.
    """
    root = inside(root, "DAVIS", "ImageSets")
    names = list(dict.fromkeys(davis_names(root, year, split)))
    masks, images = resolution(root / annotations), resolution(root / "JPEGImages")
    hidden = split.startswith("test")  # their ground truth is not public
    if not masks.is_dir() and not hidden:
        raise UserError(f"'{root}' has no ground truth {annotations}/480p. Give the folder of DAVIS with --dataset.")
    sequences, absent = [], []
    for name in names:
        truths, pictures = mask_files(masks / name), _image_files(images / name)
        frames = truths if len(truths) >= len(pictures) else pictures
        if not frames:
            absent.append(name)
        by_name = {path.stem: path for path in pictures}
        sequences.append(Sequence(name, tuple(path.stem for path in frames), truths if frames is truths else (),
                                  tuple(by_name[path.stem] for path in frames if path.stem in by_name),
                                  {path.stem: path for path in truths}))
    if absent:
        raise UserError(f"'{root / 'ImageSets' / str(year) / split}.txt' lists sequences that have neither masks in"
                        f" '{masks}' nor frames in '{images}': {', '.join(absent)}.")
    single = [item.name for item in sequences if len(item.frames) == 1]
    if hidden and single:
        raise UserError(f"The {split} split needs all frames in '{images}', but there is only one of"
                        f" {', '.join(single)}.")
    return sequences


def davis_names(root: Path, year: int, split: str) -> list[str]:
    """Reads the list of a DAVIS split, ``ImageSets/<year>/<split>.txt``.

    A line is a name or, as in DAVIS-2016, the paths of an image and a mask, one line per frame.

    Returns:
        Names in the order of the list. A name listed on two lines appears twice.

    Raises:
        UserError: The list does not exist or is empty.
    """
    folder = root / "ImageSets" / str(year)
    listing = folder / f"{split}.txt"
    if not listing.is_file():
        known = sorted(path.stem for path in folder.glob("*.txt"))
        there = f"; it has the splits {', '.join(known)}" if known else ""
        raise UserError(f"'{root}' has no ImageSets/{year}/{split}.txt{there}. Give the folder of DAVIS"
                        f" with --dataset, and one of its splits with --split.{nearest_hint(split, known)}")
    names = names_in_list(listing)
    if not names:
        raise UserError(f"'{listing}' lists no sequences.")
    return names


def names_in_list(listing: Path) -> list[str]:
    """Reads a list of sequences, see ``davis_names``; it may be empty.

    Raises:
        UserError: The list cannot be read.
    """
    lines = _lines(listing)
    paths = dict.fromkeys(_sequence_of_line(line) for line in lines if "/" in line)
    return [*paths, *(_sequence_of_line(line) for line in lines if "/" not in line)]


def repeated_lines(listing: Path) -> list[str]:
    """Returns the lines of a list that contain the paths of a frame more than once; see ``davis_names``."""
    counts = Counter(line for line in _lines(listing) if "/" in line)
    return [line for line, count in counts.items() if count > 1]


def check_truth(sequences: list[Sequence], split: str, fewest: int = 1) -> None:
    """Checks that every frame has ground truth and that sequences are long enough for a protocol.

    Args:
        sequences: Sequences to score.
        split: Their split.
        fewest: Minimum number of frames; 3 if the first and last frame are not scored.

    Raises:
        UserError: The split has no public ground truth, some of it is missing, or sequences are too short.
    """
    gaps = [f"{item.name} {', '.join(frame for frame in item.frames if frame not in item.given)}"
            for item in sequences if not item.truths and len(item.given) > 1]
    if gaps:
        raise UserError(f"The dataset is incomplete, frames have no ground truth: {'; '.join(gaps)}.")
    without = [item.name for item in sequences if not item.truths]
    if without:
        raise UserError(f"The {split} split has no public ground truth ({', '.join(without)}). Pack the results for the"
                        " benchmark server with --pack FILE.zip.")
    short = [item.name for item in sequences if len(item.frames) < fewest]
    if short:
        raise UserError("No frames to score: the first and last frame with ground truth are not scored. Too short:"
                        f" {', '.join(short)}.")


def davis_unsupervised(root: Path, split: str) -> list[Sequence]:
    """Lists the sequences of a split of the unsupervised DAVIS challenge, whose test lists date from 2019.

    Raises:
        UserError: See ``davis``.
    """
    return davis(root, 2019 if split.startswith("test") else 2017, split, "Annotations_unsupervised")


def fbms(root: Path, split: str) -> list[Sequence]:
    """Lists the labeled frames of FBMS-59, as published or as plain ``Annotations/<sequence>/*.png``.

    As published, a sequence has a folder ``GroundTruth`` whose file names contain a frame number, in one of two
    formats. The number selects the image; if images are numbered differently, the position does.

    Raises:
        UserError: The layout differs, or a labeled frame has no image.
    """
    folder = fbms_folder(root, split)
    raw = fbms_raw_folders(folder)
    if raw:
        return [fbms_sequence(path) for path in raw]
    return folders(folder)


def fbms_folder(root: Path, split: str) -> Path:
    """Returns the folder of a split of FBMS-59, or ``root`` if there is none.

    Raises:
        UserError: The split is unknown.
    """
    names = {"test": ("Testset", "TestSet", "Test", "test"), "train": ("Trainingset", "TrainingSet", "Train", "train")}
    if split not in names:
        raise UserError(f"Unknown split '{split}' of FBMS-59; valid splits: test, train.")
    return next((root / name for name in names[split] if (root / name).is_dir()), root)


def fbms_raw_folders(folder: Path) -> list[Path]:
    """Lists the sequences of an FBMS-59 split in the published layout, with a folder ``GroundTruth``."""
    return [path for path in sorted(folder.iterdir()) if (path / "GroundTruth").is_dir()] if folder.is_dir() else []


def youtube_objects(root: Path) -> list[Sequence]:
    """Lists YouTube-Objects: every folder of masks below a folder named after a class.

    A sequence is named by its path, such as ``cat/0003``; sibling folders such as ``cat_0003`` also work.

    Raises:
        UserError: There is no such folder.
    """
    sequences = [sequence for sequence in folders(root, nested=True) if youtube_objects_class(sequence.name)]
    if not sequences:
        raise UserError(f"'{root}' has no masks in folders of the classes {', '.join(YOUTUBE_OBJECTS)}.")
    return sequences


def youtube_objects_class(name: str) -> str | None:
    """Returns the class at the start of a sequence name, or None."""
    first = re.match(r"[a-z]*", name.lower()).group()
    return first if first in YOUTUBE_OBJECTS else None


def youtube_vos(root: Path, split: str) -> tuple[list[Sequence], dict[str, tuple[YouTubeVosObject, ...]]]:
    """Lists a split of YouTube-VOS and the objects of its videos, from ``<split>/meta.json``.

    The frames of a video are all frames listed for any of its objects. They have ground truth if every frame has a mask
    in ``<split>/Annotations/<video>``; if only the objects' first frames do, as in ``valid``, ``truths`` is empty.

    Raises:
        UserError: The split does not exist, or its ``meta.json`` is malformed.
    """
    folder = root / split if (root / split).is_dir() else root
    meta = folder / "meta.json"
    if not meta.is_file():
        splits = sorted(path.parent.name for path in root.glob("*/meta.json"))
        there = f"; it has the splits {', '.join(splits)}" if splits else ""
        raise UserError(f"'{folder}' has no meta.json. Give the folder of YouTube-VOS with --dataset, and one of its"
                        f" splits with --split{there}.")
    try:
        videos = {str(name): tuple(sorted((YouTubeVosObject(int(number), str(entry["category"]),
                                                             tuple(sorted(map(str, entry["frames"]))))
                                            for number, entry in video["objects"].items()),
                                           key=lambda item: item.number))
                  for name, video in json.loads(meta.read_text())["videos"].items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"'{meta}' is not a meta.json of YouTube-VOS: {error!r:.100}.") from error
    if not videos:
        raise UserError(f"'{meta}' lists no videos.")
    broken = [name for name, objects in videos.items()
              if not objects or not all(item.frames and item.number > 0 for item in objects)]
    if broken:
        raise UserError(f"'{meta}' has no objects, an object 0, or an object without frames in {', '.join(broken)}.")
    sequences = []
    for name, objects in sorted(videos.items()):
        frames = tuple(sorted({frame for item in objects for frame in item.frames}))
        masks = {path.stem: path for path in mask_files(folder / "Annotations" / name)}
        images = {path.stem: path for path in _image_files(folder / "JPEGImages" / name)}
        complete = all(frame in masks for frame in frames)
        sequences.append(Sequence(name, frames, tuple(masks[frame] for frame in frames) if complete else (),
                                  tuple(images[frame] for frame in frames if frame in images), masks))
    return sequences, videos


def folders(root: Path, nested: bool = False) -> list[Sequence]:
    """Lists the sequences of a plain folder of masks.

    The masks are in ``Annotations/``, ``GT/`` or ``GroundTruth/`` of ``root``, or in ``root`` itself: one folder per
    sequence, or all in one folder as ``<sequence>_<number>.png``. ``Annotations`` may contain a folder ``480p``.

    Args:
        root: Folder of the dataset.
        nested: Search recursively; sequences are named by their path.

    Raises:
        UserError: There are no masks.
    """
    base = next((root / name for name in ("Annotations", "GT", "GroundTruth", "ground-truth") if
                 (root / name).is_dir()), root)
    base = resolution(base)
    if not base.is_dir():
        raise UserError(f"The dataset '{root}' is not a folder.")
    images = image_folder(root)
    found = sorted(path for path in (base.rglob("*") if nested else base.glob("*")) if path.is_dir())
    sequences = []
    for folder in found:
        masks = mask_files(folder)
        if masks and not (base == root and folder == images):
            name = folder.relative_to(base).as_posix()
            sequences.append(_with_images(name, masks, images / name))
    if not sequences:
        groups: dict[str, list[Path]] = {}
        for path in mask_files(base):
            groups.setdefault(sequence_of_stem(path.stem) or root.name, []).append(path)
        sequences = [_with_images(name, tuple(masks), images) for name, masks in sorted(groups.items())]
    if not sequences:
        raise UserError(f"'{root}' has no ground-truth masks: neither Annotations/<sequence>/*.png nor GT/*.png"
                        " (JPEG files are not read as masks, since JPEG changes labels).")
    return sequences


def image_folder(root: Path) -> Path:
    """Returns the image folder that belongs to ``folders``; ``root`` itself if there is none."""
    return resolution(next((root / name for name in ("JPEGImages", "RGB", "Imgs") if (root / name).is_dir()), root))


def sequence_of_stem(stem: str) -> str:
    """Returns the sequence in a file name such as ``boat2_0001`` or ``boat2_0001_gt``, for flat layouts."""
    return re.sub(r"(_gt)?[_-]?\d*(_gt)?$", "", stem)


def is_fbms(root: Path) -> bool:
    """Returns whether a folder has the published layout of FBMS-59 or of one of its splits."""
    return any(root.glob("*/GroundTruth")) or any(root.glob("[Tt]*/*/GroundTruth"))


def is_fbms_sequence(sequence: Sequence) -> bool:
    """Returns whether a sequence is from FBMS-59 as published, whose masks have special rules."""
    folder = sequence.truths[0].parent
    return folder.name == "GroundTruth" and folder.parent.name == sequence.name


def _with_images(name, masks, images):
    by_name = {path.stem: path for path in _image_files(images)}
    return Sequence(name, tuple(path.stem for path in masks), masks,
                    tuple(by_name[path.stem] for path in masks if path.stem in by_name))


def fbms_sequence(folder: Path) -> Sequence:
    """Lists the labeled frames of a sequence of FBMS-59 as published, see ``fbms``.

    Raises:
        UserError: The sequence has no ground truth, or a labeled frame has no image.
    """
    images = {_last_number(path.stem): path for path in _image_files(folder)
              if path.suffix.lower() in (".jpg", ".jpeg", ".png") and _last_number(path.stem) is not None}
    truths = {_label_number(path): path for path in mask_files(folder / "GroundTruth")
              if "PROB" not in path.stem.upper() and _label_number(path) is not None}
    if not truths:
        raise UserError(f"'{folder / 'GroundTruth'}' has no ground-truth masks, .pgm or .ppm.")
    first = min(truths)
    if first not in images:
        # The images are numbered differently: the first label then belongs to the first image.
        images = {first + position: images[number] for position, number in enumerate(sorted(images))}
    absent = [truths[number].name for number in sorted(truths.keys() - images.keys())]
    if absent:
        raise UserError(f"'{folder}' has no image for the ground truth {', '.join(absent)}.")
    pictures = tuple(images[number] for number in sorted(truths))
    return Sequence(folder.name, tuple(path.stem for path in pictures),
                    tuple(truths[number] for number in sorted(truths)), pictures)


def _label_number(path):
    """Returns the frame number of a ground-truth file, as in the published conversion scripts.

    It is the second field in the name of a .ppm file, and the last field or the first digits in other names.
    """
    fields = path.stem.split("_")
    if path.suffix.lower() == ".ppm" and len(fields) > 1 and fields[1].isdigit():
        return int(fields[1])
    digits = re.search(r"\d+", path.stem)
    return int(fields[-1]) if fields[-1].isdigit() else int(digits.group()) if digits else None


def _last_number(stem):
    """Returns the frame number in an FBMS file name: the last group of digits."""
    numbers = re.findall(r"\d+", stem)
    return int(numbers[-1]) if numbers else None


def _lines(listing):
    try:
        text = listing.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"Cannot read the list '{listing}': {error_reason(error)}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _sequence_of_line(line):
    return Path(line.split()[0]).parent.name if "/" in line else line.strip()


def inside(root: Path, name: str, marker: str) -> Path:
    """Returns ``root``, or its subfolder ``name`` if only that one contains ``marker``.

    Raises:
        UserError: ``root`` is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"The dataset '{root}' is not a folder.")
    return root / name if not (root / marker).exists() and (root / name / marker).exists() else root


def resolution(folder: Path) -> Path:
    """Returns the subfolder ``480p`` if it exists, otherwise the folder."""
    return folder / "480p" if (folder / "480p").is_dir() else folder


def _image_files(folder):
    return tuple(natural_sort(images_by_stem(folder).values()))


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Lists the image files of a folder by name without suffix; of two with the same name, the PNG."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, returns False for invalid names
        return {}
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    return {path.stem: path for path in sorted(files, key=lambda path: path.suffix.lower() == ".png")}


def mask_files(folder: Path) -> tuple[Path, ...]:
    """Lists the image files of a folder that can be masks (no JPEG), in natural order."""
    return tuple(path for path in _image_files(folder) if path.suffix.lower() not in (".jpg", ".jpeg"))
