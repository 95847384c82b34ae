"""Indexes of the datasets: the files of each archive, unpacked as published.

Each function indexes one dataset. It takes the folder, and the config if the dataset has several, and returns a
``DatasetIndex``. It raises a ``UserError`` only if the folder is not that dataset; other faults are collected in the
index.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uvos_jax.data.datasets import ground_truth, layouts
from uvos_jax.data.datasets.index import (
    DatasetIndex,
    FrameFiles,
    VideoFiles,
    folders_in,
    images_in,
    join_names,
    make_index,
    make_video,
    masks_in,
    match_masks,
    stack_masks,
)
from uvos_jax.data.datasets.mask_conventions import detect_convention, read_mask_by_convention
from uvos_jax.data.datasets.youtube_vis import index_youtube_vis
from uvos_jax.errors import UserError, nearest_hint, quoted
from uvos_jax.labels import VOID
from uvos_jax.video.flow_io import FLOW_SUFFIXES


class DatasetSpec(NamedTuple):
    """A row of ``DATASET_SPECS``.

    Attributes:
        index_files: Function that indexes the dataset.
        configs: Configs of the dataset, the default first.
    """

    index_files: Callable[[Path, str | None], DatasetIndex]
    configs: tuple[str, ...] = ()


def index_davis2016(root: Path, config: str | None = None) -> DatasetIndex:
    """DAVIS-2016, one object: any channel above 0.

    The archive of DAVIS-2017 also works; it contains both lists.
    """
    return _davis(root, {"train": 2016, "val": 2016}, "Annotations", _read_foreground)


def index_davis2017(root: Path, config: str | None = None) -> DatasetIndex:
    """DAVIS-2017: ``Annotations`` (config ``semi``) or ``Annotations_unsupervised`` (``unsupervised``).

    The unsupervised config keeps void; ``semi`` maps it to background, as in the semi-supervised challenge. The test
    lists of the unsupervised challenge date from 2019. Test videos have masks of the first frame at most.
    """
    years = {"train": 2017, "val": 2017}
    if config == "unsupervised":
        return _davis(root, years | {"test-dev": 2019, "test-challenge": 2019}, "Annotations_unsupervised",
                      ground_truth.read_objects)
    return _davis(root, years | {"test-dev": 2017, "test-challenge": 2017}, "Annotations",
                  ground_truth.read_objects_without_void)


def davis2017_configs(root: Path) -> tuple[str, ...]:
    """Returns the configs of DAVIS-2017 whose annotations exist."""
    root = layouts.inside(root, "DAVIS", "ImageSets")
    folders = {"semi": "Annotations", "unsupervised": "Annotations_unsupervised"}
    found = tuple(config for config, folder in folders.items() if (root / folder).is_dir())
    if not found:
        raise UserError(f"'{root}' has neither Annotations nor Annotations_unsupervised. Give the folder of DAVIS-2017"
                        " with --source.")
    return found


def index_youtube_vos(root: Path, config: str | None = None) -> DatasetIndex:
    """YouTube-VOS: ``<split>/{meta.json,JPEGImages,Annotations}`` of train, valid and test.

    All images of a video are used. If ``<split>/JPEGImages`` does not exist, ``<split>_all_frames`` is read, with 30
    frames per second and labels in every fifth frame. Objects may appear late. In valid and test each object has only
    the mask in its first frame, which does not show the earlier objects.
    """
    splits, faults = {}, []
    for split in ("train", "valid", "test"):
        if not (root / split / "meta.json").is_file():
            continue
        sequences, objects = layouts.youtube_vos(root, split)
        pictures = next((root / name / "JPEGImages" for name in (split, f"{split}_all_frames") if
                         (root / name / "JPEGImages").is_dir()), root / split / "JPEGImages")
        videos = []
        for item in sequences:
            first = sorted({entry.frames[0] for entry in objects[item.name]})
            video = make_video(item.name, images_in(pictures / item.name, faults),
                               masks_in(root / split / "Annotations" / item.name, faults),
                               partial(_read_listed, frozenset(entry.number for entry in objects[item.name])),
                               faults, pictures / item.name,
                               needed=item.frames if split == "train" else first,
                               categories={str(entry.number): entry.category for entry in objects[item.name]})
            videos.append(video)
        splits[split] = videos
    if not splits:
        raise UserError(f"'{root}' has no <split>/meta.json of train, valid or test. Give the folder of YouTube-VOS"
                        " with --source.")
    return make_index(splits, faults)


def index_duts(root: Path, config: str | None = None) -> DatasetIndex:
    """DUTS: images and masks of salient objects; gray levels of 128 and above are foreground."""
    splits, faults = {}, []
    for split, part in (("train", "DUTS-TR"), ("test", "DUTS-TE")):
        folder = root / part if (root / part).is_dir() else root
        images, masks = folder / f"{part}-Image", folder / f"{part}-Mask"
        if images.is_dir() or masks.is_dir():
            splits[split] = _stills(part, images_in(images, faults), masks_in(masks, faults), faults, images)
    if not splits:
        raise UserError(f"'{root}' has neither DUTS-TR-Image nor DUTS-TE-Image. Give the folder of DUTS with --source.")
    return make_index(splits, faults)


def index_msra10k(root: Path, config: str | None = None) -> DatasetIndex:
    """MSRA10K: ``Imgs/<name>.jpg`` and ``.png``, the mask of a salient object."""
    folder = next((path for path in (root / "MSRA10K_Imgs_GT" / "Imgs", root / "Imgs", root) if path.is_dir()), root)
    faults: list[str] = []
    images, masks = images_in(folder, faults, (".jpg", ".jpeg")), images_in(folder, faults, (".png",))
    if not images or not masks:
        raise UserError(f"'{root}' has no Imgs/*.jpg with masks Imgs/*.png. Give the folder of MSRA10K with --source.")
    return make_index({"train": _stills("MSRA10K", images, masks, faults, folder)}, faults)


def index_fbms59(root: Path, config: str | None = None) -> DatasetIndex:
    """FBMS-59 with one foreground, sparse labels; see ``ground_truth.read_fbms_foreground``."""
    splits, faults = {}, []
    for split in ("train", "test"):
        folder = layouts.fbms_folder(root, split)
        if folder == root:
            continue
        videos, raw = [], layouts.fbms_raw_folders(folder)
        without = [path.name for path in folders_in(folder)
                   if raw and path not in raw and images_in(path, [])]
        if without:
            faults.append(f"sequences in '{folder}' have no folder GroundTruth: {join_names(without)}")
        for path in raw:
            try:
                item = layouts.fbms_sequence(path)
            except UserError as error:
                faults.append(str(error).rstrip("."))
                continue
            images = images_in(path, faults, (".jpg", ".jpeg", ".png"))
            videos.append(make_video(item.name, images, dict(zip(item.frames, item.truths, strict=True)),
                                     partial(_read_fbms, item.name), faults, path, needed=()))
        splits[split] = videos or _plain(folder, layouts.folders(folder), _read_foreground, faults)
    if not splits:
        raise UserError(f"'{root}' has neither Trainingset nor Testset. Give the folder of FBMS-59 with --source.")
    return make_index(splits, faults)


def index_youtube_objects(root: Path, config: str | None = None) -> DatasetIndex:
    """YouTube-Objects: ``JPEGImages/<class>/<video>`` and sparse masks in ``Annotations``; all in test.

    Only some of its videos are annotated. Videos without masks are left out, with a note.
    """
    faults: list[str] = []
    videos, without = _plain(root, layouts.youtube_objects(root), _read_foreground, faults,
                             layouts.youtube_objects_class)
    return make_index({"test": videos}, faults, [f"left out, no masks: {join_names(without)}"]
                        if without else [])


def index_visal(root: Path, config: str | None = None) -> DatasetIndex:
    """ViSal: sparse masks in one folder ``GT``, named after their sequence; split test only."""
    faults: list[str] = []
    videos, without = _plain(root, layouts.folders(root), _read_salient, faults)
    if without:
        faults.append(f"sequences in '{layouts.image_folder(root)}' have no masks: {join_names(without)}")
    return make_index({"test": videos}, faults)


def index_segtrack_v2(root: Path, config: str | None = None) -> DatasetIndex:
    """SegTrack v2: ``JPEGImages/<sequence>`` and ``GroundTruth/<sequence>[/<object>]``.

    Object ids are kept; where objects overlap, the smaller one is on top. Papers on single-object segmentation merge
    them into one foreground. Split test only.
    """
    truths, images = root / "GroundTruth", layouts.image_folder(root)
    names = [path.name for path in folders_in(truths)]
    if not names:
        raise UserError(f"'{root}' has no GroundTruth/<sequence>. Give the folder of SegTrack v2 with --source.")
    faults = [f"{path.name} has no folder in '{truths}'" for path in folders_in(images)
              if path.name not in names and path != truths and images_in(path, [])]
    videos = []
    for name in names:
        pictures = images_in(images / name, faults)
        numbers = {int(path.name): path for path in folders_in(truths / name) if path.name.isdecimal()}
        if not all(0 < number < VOID for number in numbers):
            faults.append(f"{name} has object ids outside 1 to {VOID - 1}: {join_names(sorted(numbers))}")
            continue
        masks: dict[str, tuple] = {}
        for number, folder in sorted(numbers.items()) or [(1, truths / name)]:
            found = match_masks(pictures, masks_in(folder, faults))
            missing = [stem for stem in pictures if stem not in found]
            if numbers and missing:
                faults.append(f"{name} has no mask of object {number} for {join_names(missing)}")
            for stem, path in found.items():
                masks[stem] = (*masks.get(stem, ()), (number, path))
        videos.append(make_video(name, pictures, masks, _read_stack, faults, images / name,
                                 needed=() if numbers else None))
    return make_index({"test": videos}, faults)


def index_folder(root: Path, config: str | None = None) -> DatasetIndex:
    """Your own videos: ``JPEGImages/<sequence>/*`` and ``Annotations/<sequence>/*.png``.

    ``mask_conventions.detect_convention`` interprets the mask levels. Frames without a mask have unknown ground truth.
    ``ImageSets/train.txt`` and ``val.txt`` define the splits; without them all sequences are in train.
    ``Flow/<sequence>/*.flo`` or ``.npy`` is the flow to the next frame; if the last frame has none, it gets the flow of
    the frame before it.
    """
    images, annotations, flows = root / "JPEGImages", root / "Annotations", root / "Flow"
    if not images.is_dir() or not annotations.is_dir():
        raise UserError(f"'{root}' has no JPEGImages/<sequence>/* with masks Annotations/<sequence>/*.png. Give a"
                        " folder that has both.")
    images, annotations, faults, notes = layouts.resolution(images), layouts.resolution(annotations), [], []
    there = [path.name for path in folders_in(images)]
    if not there:
        raise UserError(f"'{images}' has no sequence folders. Put the images of each sequence into one folder.")
    listed = {path.stem: layouts.names_in_list(path) for path in
              (root / "ImageSets" / "train.txt", root / "ImageSets" / "val.txt") if path.exists()}
    names = listed or {"train": there}
    every = [name for split in names.values() for name in split]
    _report_repeats(every, "the lists in ImageSets", faults)
    for name in dict.fromkeys(every):
        if name not in there:
            faults.append(f"{name} is in the lists in ImageSets, but has no folder in '{images}'"
                          f"{nearest_hint(name, there)}")
    faults += [f"{path.name} has masks, but no images in '{images}'" for path in folders_in(annotations)
               if path.name not in there]
    left = [name for name in there if name not in every]
    if left:
        notes.append(f"left out, not in any list: {join_names(left)}")
    splits: dict[str, list] = {}
    binary = []
    for split, chosen in names.items():
        splits[split] = []
        for name in dict.fromkeys(chosen):
            if name not in there:
                continue
            masks = masks_in(annotations / name, faults)
            if not masks:
                faults.append(f"{name} has no masks in '{annotations / name}'")
            convention = detect_convention(name, masks, faults)
            if convention.indexed_is_binary:
                binary.append(name)
            video = make_video(name, images_in(images / name, faults), masks,
                               partial(read_mask_by_convention, convention), faults, images / name, needed=())
            splits[split].append(_with_flow(video, flows / name, faults) if video and flows.is_dir() else video)
    if binary:
        notes.append(f"255 was read as object 1, the only label of the indexed masks: {join_names(binary)}")
    return make_index(splits, faults, notes)


DATASET_SPECS = {
    "davis2016": DatasetSpec(index_davis2016),
    "davis2017": DatasetSpec(index_davis2017, ("semi", "unsupervised")),
    "youtube_vos": DatasetSpec(index_youtube_vos, ("2019", "2018")),
    "youtube_vis": DatasetSpec(index_youtube_vis, ("2019", "2021")),
    "duts": DatasetSpec(index_duts),
    "msra10k": DatasetSpec(index_msra10k),
    "fbms59": DatasetSpec(index_fbms59),
    "youtube_objects": DatasetSpec(index_youtube_objects),
    "visal": DatasetSpec(index_visal),
    "segtrack_v2": DatasetSpec(index_segtrack_v2),
    "folder": DatasetSpec(index_folder),
}


def _davis(root, years, annotations, read):
    root = layouts.inside(root, "DAVIS", "ImageSets")
    images, masks = layouts.resolution(root / "JPEGImages"), layouts.resolution(root / annotations)
    lists = {split: root / "ImageSets" / str(year) / f"{split}.txt" for split, year in years.items()}
    lists = {split: path for split, path in lists.items() if path.is_file()}
    if not lists:
        wanted = ", ".join(f"ImageSets/{year}/{split}.txt" for split, year in years.items())
        raise UserError(f"'{root}' has none of {wanted}. Give the folder of DAVIS with --source.")
    splits, faults, notes = {}, [], []
    for split, path in lists.items():
        names = layouts.davis_names(root, years[split], split)
        there = [name for name in names if (images / name).is_dir() or (masks / name).is_dir()]
        if not there:
            notes.append(f"{split} left out, no sequence of '{path}' has a folder")
            continue
        _report_repeats(names, f"'{path}'", faults)
        lines = layouts.repeated_lines(path)
        if lines:
            faults.append(f"'{path}' has duplicate lines: {join_names(lines)}")
        absent = [name for name in names if name not in there]
        if absent:
            faults.append(f"'{path}' lists sequences without a folder in '{images}': {join_names(absent)}")
        needed = () if split.startswith("test") else None
        splits[split] = [make_video(name, images_in(images / name, faults), masks_in(masks / name, faults), read,
                                    faults, images / name, needed) for name in dict.fromkeys(there)]
    if not splits:
        raise UserError(f"'{root}' has no folder for any listed sequence. Put the sequences into '{images}'.")
    return make_index(splits, faults, notes)


def _report_repeats(names, where, faults):
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        verb = "list" if where.startswith("the") else "lists"
        faults.append(f"{where} {verb} sequences twice: {join_names(repeated)}")


def _stills(name, images, masks, faults, where):
    """Returns every image as a video of one frame."""
    together = make_video(name, images, masks, _read_salient, faults, where)
    return [VideoFiles(frame.name, (frame,), _read_salient) for frame in together.frames] if together else []


def _plain(root, sequences, read, faults, category=None):
    """Returns the sequences of ``layouts.folders`` with all images, and names of those without masks."""
    folder = layouts.image_folder(root)
    flat: dict[str, dict[str, Path]] = {}
    for stem, path in images_in(folder, faults).items():
        flat.setdefault(layouts.sequence_of_stem(stem) or root.name, {})[stem] = path
    videos = []
    for item in sequences:
        images = images_in(folder / item.name, faults) or flat.get(item.name, {})
        masks = match_masks(images, {path.stem: path for path in item.truths})
        categories = {"1": category(item.name)} if category else {}
        videos.append(make_video(item.name, images, masks, read, faults, folder / item.name, (), categories))
    pictured = [path.relative_to(folder).as_posix() for path in folders_in(folder, deep=True) if images_in(path, [])]
    names = {item.name for item in sequences}
    without = [name for name in (*(pictured if folder != root else ()), *flat)
               if name not in names and (not category or category(name))]
    return videos, without


def _with_flow(video, folder, faults):
    files = images_in(folder, faults, FLOW_SUFFIXES)
    missing = [frame.name for frame in video.frames[:-1] if frame.name not in files]
    if missing or not files:
        faults.append(f"{video.name} has no flow in '{folder}' for {join_names(missing or [video.frames[0].name])}")
        return video
    frames = []
    for frame in video.frames:
        flow = files.get(frame.name, frames[-1].flow if frames else None)
        frames.append(FrameFiles(frame.name, frame.image, frame.labels, flow))
    return VideoFiles(video.name, tuple(frames), video.read, video.categories)


def _read_listed(numbers: frozenset[int], path: Path) -> np.ndarray:
    labels = ground_truth.read_objects(path)
    others = sorted(set(np.flatnonzero(np.bincount(labels.ravel())).tolist()) - numbers - {0, VOID})
    if others:
        raise UserError(f"{quoted(path)} contains object ids that are not in meta.json: {join_names(others)}.")
    return labels


def _read_foreground(path: Path) -> np.ndarray:
    return ground_truth.read_foreground(path).astype(np.uint8)


def _read_salient(path: Path) -> np.ndarray:
    return ground_truth.read_salient(path, lowest=128).astype(np.uint8)


def _read_fbms(sequence: str, path: Path) -> np.ndarray:
    return ground_truth.read_fbms_foreground(path, sequence).astype(np.uint8)


def _read_stack(parts: tuple[tuple[int, Path], ...]) -> np.ndarray:
    masks: list[tuple[int, Any]] = [(number, ground_truth.read_foreground(path)) for number, path in parts]
    sizes = {mask.shape for _, mask in masks}
    if len(sizes) > 1:
        raise UserError(f"'{parts[0][1]}' and the masks of the other objects differ in size.")
    return stack_masks(masks, masks[0][1].shape)
