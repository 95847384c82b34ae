"""Where the datasets keep their sequences, frames and ground truth."""

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
        name: As results name it; it may hold slashes.
        frames: Names of the frames that count, in order; predictions are called so.
        truths: Ground-truth file of each frame; empty where the ground truth is not public.
        images: Image file of each frame; empty where only masks are there.
        given: Every mask file that is there, by frame; in test splits that of an object's first frame.
    """

    name: str
    frames: tuple[str, ...]
    truths: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    given: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class YouTubeVosObject:
    """An object of a YouTube-VOS video: its number, category, and the names of the frames that show it."""

    number: int
    category: str
    frames: tuple[str, ...]


def davis(root: Path, year: int, split: str, annotations: str = "Annotations") -> list[Sequence]:
    """Lists the sequences of a DAVIS split.

    ``root`` holds ``ImageSets/<year>/<split>.txt`` and ``<annotations>/480p/<sequence>/*.png``. The list has a name a
    line, or the paths of an image and a mask, as that of DAVIS-2016 does.

    Raises:
        UserError: The folder is laid out otherwise, or sequences of the list have no folder.
    """
    root = inside(root, "DAVIS", "ImageSets")
    names = list(dict.fromkeys(davis_names(root, year, split)))
    masks, images = resolution(root / annotations), resolution(root / "JPEGImages")
    hidden = split.startswith("test")  # the truth of these is not public
    if not masks.is_dir() and not hidden:
        raise UserError(f"'{root}' has no {annotations}/480p, where the ground truth should be.")
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
        raise UserError(f"'{root / 'ImageSets' / str(year) / split}.txt' names sequences that have neither masks in"
                        f" '{masks}' nor frames in '{images}': {', '.join(absent)}.")
    single = [item.name for item in sequences if len(item.frames) == 1]
    if hidden and single:
        raise UserError(f"The frames of the {split} split are those in '{images}', but there is one alone of"
                        f" {', '.join(single)}.")
    return sequences


def davis_names(root: Path, year: int, split: str) -> list[str]:
    """Reads the list of a DAVIS split, ``ImageSets/<year>/<split>.txt``.

    A line is a name, or the paths of an image and a mask, as in DAVIS-2016; there a sequence has a line a frame.

    Returns:
        Names in the order of the list; a name that stands alone on two lines is there twice.

    Raises:
        UserError: There is no such list, or it is empty.
    """
    folder = root / "ImageSets" / str(year)
    listing = folder / f"{split}.txt"
    if not listing.is_file():
        known = sorted(path.stem for path in folder.glob("*.txt"))
        there = f"; it has the splits {', '.join(known)}" if known else ""
        raise UserError(f"'{root}' has no ImageSets/{year}/{split}.txt{there}: give the folder of DAVIS"
                        f" with --dataset, and one of its splits with --split.{nearest_hint(split, known)}")
    names = names_in_list(listing)
    if not names:
        raise UserError(f"'{listing}' names no sequence.")
    return names


def names_in_list(listing: Path) -> list[str]:
    """Reads a list of sequences, see ``davis_names``; it may be empty.

    Raises:
        UserError: It cannot be read.
    """
    lines = _lines(listing)
    paths = dict.fromkeys(_sequence_of_line(line) for line in lines if "/" in line)
    return [*paths, *(_sequence_of_line(line) for line in lines if "/" not in line)]


def repeated_lines(listing: Path) -> list[str]:
    """Lines of a list that hold the paths of a frame and are there more than once; see ``davis_names``."""
    counts = Counter(line for line in _lines(listing) if "/" in line)
    return [line for line, count in counts.items() if count > 1]


def check_truth(sequences: list[Sequence], split: str, fewest: int = 1) -> None:
    """Checks that every frame has ground truth, and that there are as many as a protocol needs.

    Args:
        sequences: Those to be scored.
        split: Their split.
        fewest: Frames; 3 where the first and the last do not count.

    Raises:
        UserError: The split's ground truth is not public, some of it is missing, or sequences are too short.
    """
    gaps = [f"{item.name} {', '.join(frame for frame in item.frames if frame not in item.given)}"
            for item in sequences if not item.truths and len(item.given) > 1]
    if gaps:
        raise UserError(f"The dataset is not complete, frames have no ground truth: {'; '.join(gaps)}.")
    without = [item.name for item in sequences if not item.truths]
    if without:
        raise UserError(f"The {split} split has no public ground truth ({', '.join(without)}): pack the results for the"
                        " server with --pack FILE.zip, and leave the scores to it.")
    short = [item.name for item in sequences if len(item.frames) < fewest]
    if short:
        raise UserError("The first and the last frame with ground truth do not count, which leaves none in"
                        f" {', '.join(short)}.")


def davis_unsupervised(root: Path, split: str) -> list[Sequence]:
    """Lists the sequences of a split of the unsupervised DAVIS challenge, whose test lists came in 2019.

    Raises:
        UserError: See ``davis``.
    """
    return davis(root, 2019 if split.startswith("test") else 2017, split, "Annotations_unsupervised")


def fbms(root: Path, split: str) -> list[Sequence]:
    """Lists the labeled frames of FBMS-59, as published or as the field's plain ``Annotations/<sequence>/*.png``.

    As published, a sequence has ``GroundTruth/`` with files whose names hold a frame number, in one of two fashions;
    the frame is the image that carries the same number, or if they are counted otherwise, stands in the same place.

    Raises:
        UserError: The folder is laid out otherwise, or a labeled frame has no image.
    """
    folder = fbms_folder(root, split)
    raw = fbms_raw_folders(folder)
    if raw:
        return [fbms_sequence(path) for path in raw]
    return folders(folder)


def fbms_folder(root: Path, split: str) -> Path:
    """Returns the folder of a split of FBMS-59, ``root`` itself if it has none.

    Raises:
        UserError: There is no such split.
    """
    names = {"test": ("Testset", "TestSet", "Test", "test"), "train": ("Trainingset", "TrainingSet", "Train", "train")}
    if split not in names:
        raise UserError(f"FBMS-59 has the splits test and train, not '{split}'.")
    return next((root / name for name in names[split] if (root / name).is_dir()), root)


def fbms_raw_folders(folder: Path) -> list[Path]:
    """Lists the sequences of a split of FBMS-59 that are as published, each with a folder ``GroundTruth``."""
    return [path for path in sorted(folder.iterdir()) if (path / "GroundTruth").is_dir()] if folder.is_dir() else []


def youtube_objects(root: Path) -> list[Sequence]:
    """Lists YouTube-Objects: every folder of masks below one that is called after a class.

    A sequence is named by its path, such as ``cat/0003``; folders side by side such as ``cat_0003`` will do too.

    Raises:
        UserError: No such folder is there.
    """
    sequences = [sequence for sequence in folders(root, nested=True) if youtube_objects_class(sequence.name)]
    if not sequences:
        raise UserError(f"'{root}' has no masks in folders of the classes {', '.join(YOUTUBE_OBJECTS)}.")
    return sequences


def youtube_objects_class(name: str) -> str | None:
    """Returns the class that a sequence's name starts with, or None."""
    first = re.match(r"[a-z]*", name.lower()).group()
    return first if first in YOUTUBE_OBJECTS else None


def youtube_vos(root: Path, split: str) -> tuple[list[Sequence], dict[str, tuple[YouTubeVosObject, ...]]]:
    """Lists a split of YouTube-VOS and the objects of its videos, from ``<split>/meta.json``.

    A video's frames are all that any of its objects names. They have ground truth if every one has a mask in
    ``<split>/Annotations/<video>``; where only the objects' first frames do, as in ``valid``, ``truths`` is empty.

    Raises:
        UserError: There is no such split, or its ``meta.json`` is not as published.
    """
    folder = root / split if (root / split).is_dir() else root
    meta = folder / "meta.json"
    if not meta.is_file():
        splits = sorted(path.parent.name for path in root.glob("*/meta.json"))
        there = f"; it has the splits {', '.join(splits)}" if splits else ""
        raise UserError(f"'{folder}' has no meta.json: give the folder of YouTube-VOS with --dataset, and one of its"
                        f" splits with --split{there}.")
    try:
        videos = {str(name): tuple(sorted((YouTubeVosObject(int(number), str(entry["category"]),
                                                             tuple(sorted(map(str, entry["frames"]))))
                                            for number, entry in video["objects"].items()),
                                           key=lambda item: item.number))
                  for name, video in json.loads(meta.read_text())["videos"].items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"'{meta}' is not the meta.json of YouTube-VOS: {error!r:.100}.") from error
    if not videos:
        raise UserError(f"'{meta}' names no video.")
    broken = [name for name, objects in videos.items()
              if not objects or not all(item.frames and item.number > 0 for item in objects)]
    if broken:
        raise UserError(f"'{meta}' names no object, object 0, or an object without frames in {', '.join(broken)}.")
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
    """Lists a folder of masks laid out plainly.

    The masks lie in ``Annotations/``, ``GT/`` or ``GroundTruth/`` of ``root``, or in ``root`` itself: a folder a
    sequence, or all in one folder as ``<sequence>_<number>.png``. Below ``Annotations`` a folder ``480p`` may stand.

    Args:
        root: The dataset.
        nested: Sequences may lie several folders deep; they are named by their path.

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
                        " (JPEG changes labels, so a .jpg is not taken for a mask).")
    return sequences


def image_folder(root: Path) -> Path:
    """Returns the folder of the images beside those of ``folders``, ``root`` itself if there is no other."""
    return resolution(next((root / name for name in ("JPEGImages", "RGB", "Imgs") if (root / name).is_dir()), root))


def sequence_of_stem(stem: str) -> str:
    """The sequence in a file name such as ``boat2_0001`` or ``boat2_0001_gt``, in layouts of one folder for all."""
    return re.sub(r"(_gt)?[_-]?\d*(_gt)?$", "", stem)


def is_fbms(root: Path) -> bool:
    """Whether a folder looks like FBMS-59 as published, or like the folder of one of its splits."""
    return any(root.glob("*/GroundTruth")) or any(root.glob("[Tt]*/*/GroundTruth"))


def is_fbms_sequence(sequence: Sequence) -> bool:
    """Whether a sequence is one of FBMS-59 as published, whose masks are read by rules of their own."""
    folder = sequence.truths[0].parent
    return folder.name == "GroundTruth" and folder.parent.name == sequence.name


def _with_images(name, masks, images):
    by_name = {path.stem: path for path in _image_files(images)}
    return Sequence(name, tuple(path.stem for path in masks), masks,
                    tuple(by_name[path.stem] for path in masks if path.stem in by_name))


def fbms_sequence(folder: Path) -> Sequence:
    """Lists the labeled frames of a sequence of FBMS-59 as published, see ``fbms``.

    Raises:
        UserError: It has no ground truth, or a labeled frame has no image.
    """
    images = {_last_number(path.stem): path for path in _image_files(folder)
              if path.suffix.lower() in (".jpg", ".jpeg", ".png") and _last_number(path.stem) is not None}
    truths = {_label_number(path): path for path in mask_files(folder / "GroundTruth")
              if "PROB" not in path.stem.upper() and _label_number(path) is not None}
    if not truths:
        raise UserError(f"'{folder / 'GroundTruth'}' has no ground-truth masks, .pgm or .ppm.")
    first = min(truths)
    if first not in images:
        # Counted otherwise than the images: the first label then belongs to the first image.
        images = {first + position: images[number] for position, number in enumerate(sorted(images))}
    absent = [truths[number].name for number in sorted(truths.keys() - images.keys())]
    if absent:
        raise UserError(f"'{folder}' has no image for the ground truth {', '.join(absent)}.")
    pictures = tuple(images[number] for number in sorted(truths))
    return Sequence(folder.name, tuple(path.stem for path in pictures),
                    tuple(truths[number] for number in sorted(truths)), pictures)


def _label_number(path):
    """The frame number of a ground-truth file: the second field of a .ppm's name, the last of another's or its first
    digits, as the field's conversion scripts read it.
    """
    fields = path.stem.split("_")
    if path.suffix.lower() == ".ppm" and len(fields) > 1 and fields[1].isdigit():
        return int(fields[1])
    digits = re.search(r"\d+", path.stem)
    return int(fields[-1]) if fields[-1].isdigit() else int(digits.group()) if digits else None


def _last_number(stem):
    """The frame number in a file name of FBMS: the last group of digits, ``_gt`` and the like aside."""
    numbers = re.findall(r"\d+", stem)
    return int(numbers[-1]) if numbers else None


def _lines(listing):
    try:
        text = listing.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"The list '{listing}' cannot be read: {error_reason(error)}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _sequence_of_line(line):
    return Path(line.split()[0]).parent.name if "/" in line else line.strip()


def inside(root: Path, name: str, marker: str) -> Path:
    """Returns ``root``, or the folder ``name`` within, whichever holds ``marker``.

    Raises:
        UserError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"The dataset '{root}' is not a folder.")
    return root / name if not (root / marker).exists() and (root / name / marker).exists() else root


def resolution(folder: Path) -> Path:
    """Returns the folder ``480p`` within, where there is one."""
    return folder / "480p" if (folder / "480p").is_dir() else folder


def _image_files(folder):
    return tuple(natural_sort(images_by_stem(folder).values()))


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Lists the image files of a folder by name without suffix; of two of a name the PNG is taken, as masks are."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a name that no folder can have
        return {}
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    return {path.stem: path for path in sorted(files, key=lambda path: path.suffix.lower() == ".png")}


def mask_files(folder: Path) -> tuple[Path, ...]:
    """Lists the image files of a folder that can be masks, in natural order; a JPEG cannot."""
    return tuple(path for path in _image_files(folder) if path.suffix.lower() not in (".jpg", ".jpeg"))
