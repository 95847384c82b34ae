"""Stores: a table of videos with random access to their frames, labels and flow.

A store has ``name``, ``videos``, ``has_flow``, ``image(v, t, reduce=1)``, ``labels(v, t)`` and ``flow(v, t)`` as
defined by ``MemoryStore``; the three methods are thread-safe. A dataset of still images is a store whose videos have
one frame. Reading a converted dataset needs TFDS and array_record, but not TensorFlow.
"""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from uvos_jax.config_schema import REQUIRED, Option, check_options, integer, size
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.extras import require
from uvos_jax.labels import VOID

REDUCTIONS = (1, 2, 4, 8)  # JPEG decoders decode at 1/2, 1/4 or 1/8 of the size for less work

_PREFIX = "uvos_"  # TFDS itself has a dataset youtube_vis
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_MAX_SYNTHETIC_FRAMES = 1_000_000  # each frame is an entry of the table of videos
_RECORD_CACHE = 64
_SYNTHETIC_CACHE = 4  # clips; the frames of one example come from one clip
_COUNTS = size(None, most=20)  # two integers: minimum and maximum number of objects in a scene
# Options of ``SyntheticStore``; scenes need at least 32 pixels.
SYNTHETIC_OPTIONS = {
    "count": integer(REQUIRED, 1, 1_000_000), "length": integer(8, 1, 10_000), "size": size((240, 424), least=32),
    "seed": integer(0, 0, 2**32 - 1),
    "objects": Option((1, 3), "[min, max], integers from 1 to 20",
                      lambda value: _COUNTS.is_valid(value) and value[0] <= value[1]),
}


@dataclass(frozen=True)
class Video:
    """One video of a store.

    Attributes:
        name: Name of the sequence.
        length: Number of frames.
        size: Height and width, the same for all frames.
        objects: For each frame the object ids (1..254) in its labels, ascending; ``()`` for none.
        labeled: Indices of the frames with ground truth, ascending.
        start: Index of the first record in the converted split; 0 for other stores.
        categories: Pairs of object id and category, where the dataset has them.
    """

    name: str
    length: int
    size: tuple[int, int]
    objects: tuple[tuple[int, ...], ...]
    labeled: tuple[int, ...]
    start: int = 0
    categories: tuple[tuple[int, str], ...] = ()


class MemoryStore:
    """A store of clips held as arrays."""

    def __init__(self, name: str, clips: Sequence[tuple]):
        """Creates a store.

        Args:
            name: Name of the dataset.
            clips: One ``(name, frames, labels, flow)`` per clip: uint8 [t, h, w, 3] RGB, uint8 [t, h, w], and float32
                [t, h', w', 2] (see ``flow``) or None. A frame whose labels are all 255 has no ground truth.

        Raises:
            ValueError: The shapes of a clip do not match.
        """
        self.name = name
        self._clips = [(frames, labels, flow) for _, frames, labels, flow in clips]
        self.has_flow = bool(clips) and all(flow is not None for *_, flow in self._clips)
        self.videos = tuple(_video_of(clip_name, *arrays)
                            for (clip_name, *_), arrays in zip(clips, self._clips, strict=True))

    def image(self, v: int, t: int, reduce: int = 1) -> np.ndarray:
        """Returns frame ``t`` of video ``v`` at 1/reduce of its size, rounded up: uint8 [h', w', 3], RGB."""
        return shrink(self._clips[v][0][t], reduce)

    def labels(self, v: int, t: int) -> np.ndarray:
        """Returns labels, uint8 [h, w]: 0 background, object ids, 255 void; all void without ground truth."""
        return self._clips[v][1][t]

    def flow(self, v: int, t: int) -> np.ndarray | None:
        """Returns the displacement (dx, dy) to frame t+1 in pixels of the frame, or None.

        The array is float32 [h', w', 2]; its resolution may be lower than that of the frame.
        """
        flow = self._clips[v][2]
        return None if flow is None else flow[t]


class SyntheticStore:
    """A store of generated clips, each rendered on demand; clip ``i`` has seed ``seed + i``.

    The objects of a frame are known only after rendering, so every frame is listed as showing object 1. Reading frames
    of one clip together is cheap, random access is not: for long training runs, convert the dataset.
    """

    def __init__(self, count: int, length: int = 8, size: tuple[int, int] = (240, 424), seed: int = 0,
                 objects: tuple[int, int] = (1, 3)):
        """Creates a store.

        Args:
            count: Number of clips.
            length: Frames per clip.
            size: (height, width).
            seed: Seed of the first clip.
            objects: Minimum and maximum number of objects per clip; not all need be visible in the first frame.

        Raises:
            UserError: A value is out of range.
        """
        from uvos_jax.data.synthetic.clip import make_clip

        check_options({"count": count, "length": length, "size": size, "seed": seed, "objects": objects},
                      SYNTHETIC_OPTIONS, "synthetic")
        if count * length > _MAX_SYNTHETIC_FRAMES:
            raise UserError(f"{count} synthetic clips of {length} frames are more than {_MAX_SYNTHETIC_FRAMES} frames."
                            " Give a smaller count or length.")
        self._arguments = count, length, tuple(size), seed, tuple(objects)
        self.name, self.has_flow = "synthetic", True
        shown, labeled = ((1,),) * length, tuple(range(length))
        self.videos = tuple(Video(f"{seed + v:05d}", length, tuple(size), shown, labeled) for v in range(count))
        self._clip = lru_cache(_SYNTHETIC_CACHE)(
            lambda v: make_clip(seed + v, length, tuple(size), objects=tuple(objects)))

    def __reduce__(self):
        """Pickles the arguments instead of the cache of rendered clips."""
        return SyntheticStore, self._arguments

    def image(self, v: int, t: int, reduce: int = 1) -> np.ndarray:
        """See ``MemoryStore.image``."""
        return shrink(self._clip(v).frames[t], reduce)

    def labels(self, v: int, t: int) -> np.ndarray:
        """See ``MemoryStore.labels``."""
        return self._clip(v).labels[t]

    def flow(self, v: int, t: int) -> np.ndarray:
        """See ``MemoryStore.flow``."""
        return self._clip(v).flow[t]


class ConvertedStore:
    """A split written by ``uvos convert-data``: one record per frame, with random access."""

    def __init__(self, folder: Path, name: str, split: str):
        """Opens a split; use ``open_store``, which finds the folder and checks it.

        Args:
            folder: Version folder of the dataset, with ``metadata.json``.
            name: Name of the dataset, for messages.
            split: Name of the split.
        """
        metadata = json.loads((folder / "metadata.json").read_text())
        self.name, self.flow_origin = name, metadata["flow"]
        self.has_flow = bool(self.flow_origin)
        self.videos = tuple(map(_video_of_row, metadata["splits"][split]))
        self._folder, self._split = folder, split
        self._lock, self._read = threading.Lock(), None

    def __getstate__(self):
        """Leaves out the lock and the open files, which cannot be pickled."""
        return {"name": self.name, "has_flow": self.has_flow, "flow_origin": self.flow_origin, "videos": self.videos,
                "_folder": self._folder, "_split": self._split}

    def __setstate__(self, state):
        """Restores the store; the files are opened at the first read."""
        self.__dict__ |= state
        self._lock, self._read = threading.Lock(), None  # each process opens its own files

    def image(self, v: int, t: int, reduce: int = 1) -> np.ndarray:
        """See ``MemoryStore.image``; a JPEG is decoded at the reduced size."""
        return decode_image(self._record(v, t)["image"].bytes_list.value[0], reduce)

    def labels(self, v: int, t: int) -> np.ndarray:
        """See ``MemoryStore.labels``."""
        data = np.frombuffer(self._record(v, t)["labels"].bytes_list.value[0], np.uint8)
        labels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2:
            raise UserError(f"Cannot read the labels of frame {t} of {self.name} {self.videos[v].name} in "
                            f"'{self._folder}'. Convert the dataset again.")
        return labels

    def flow(self, v: int, t: int) -> np.ndarray | None:
        """See ``MemoryStore.flow``."""
        if not self.has_flow:
            return None
        record = self._record(v, t)
        flow = self._flow.decode_example_np({"value": record["flow/value"].bytes_list.value[0],
                                             "shape": np.array(record["flow/shape"].int64_list.value)})
        return flow.astype(np.float32, copy=False)

    def _record(self, v: int, t: int):
        """Returns the features of a frame's record, a mapping of protocol buffer messages."""
        if self._read is None:
            self._open()
        if not 0 <= t < self.videos[v].length:
            raise IndexError(f"frame {t} of a video of {self.videos[v].length}")
        return self._read(self.videos[v].start + t)

    def _open(self) -> None:
        with self._lock:
            if self._read is not None:
                return
            import tensorflow_datasets as tfds
            from tensorflow_datasets.proto import tf_example_pb2

            builder = tfds.builder_from_directory(self._folder)
            self._flow = builder.info.features["flow"] if self.has_flow else None
            records = builder.as_data_source(self._split).data_source  # raw bytes, not decoded

            @lru_cache(_RECORD_CACHE)  # labels, image and flow of a frame are read one after the other
            def read(number):
                return tf_example_pb2.Example.FromString(records[number]).features.feature

            self._read = read


def open_store(data_dir: str | Path, name: str, split: str) -> ConvertedStore:
    """Opens a dataset written by ``uvos convert-data``.

    Args:
        data_dir: Folder given to ``--data-dir``.
        name: Dataset, with its config if there are several, such as ``"davis2017/unsupervised"``.
        split: One of its splits.

    Returns:
        A store; only its metadata has been read.

    Raises:
        UserError: The dataset, config or split does not exist; its file format has no random access; or array_record is
            not installed.
    """
    folder = _find(Path(data_dir), name)
    require("train", f"Reading '{name}'", "tensorflow_datasets", "array_record")
    try:
        stored_as = str(json.loads((folder / "dataset_info.json").read_text()).get("fileFormat"))
        splits = json.loads((folder / "metadata.json").read_text())["splits"].keys()
        store = ConvertedStore(folder, name, split) if split in splits else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"'{folder}' was not written by 'uvos convert-data'. Convert {name} again.") from error
    if stored_as != "array_record":
        raise UserError(f"'{folder}' is stored as {stored_as:.40}, which has no random access. Convert {name} again.")
    if store is None:
        raise UserError(f"{name} in '{data_dir}' has no split '{split}'; valid splits: {', '.join(splits) or 'none'}."
                        f"{nearest_hint(split, splits)}")
    return store


def _find(data_dir: Path, name: str) -> Path:
    """Returns the folder of the newest version of a dataset."""
    dataset, _, config = name.partition("/")
    folder = data_dir / f"{_PREFIX}{dataset}"
    if not folder.is_dir():
        there = sorted(path.name.removeprefix(_PREFIX) for path in data_dir.glob(f"{_PREFIX}*") if path.is_dir())
        found = f"it contains {', '.join(there)}" if there else "it contains no converted dataset"
        raise UserError(f"'{data_dir}' has no dataset '{dataset}'; {found}. Convert it first: uvos convert-data "
                        f"{dataset} --source FOLDER --data-dir {data_dir}.{nearest_hint(dataset, there)}")
    configs = sorted(path.name for path in folder.iterdir() if path.is_dir() and _versions(path))
    if configs and not (config in configs or (len(configs) == 1 and not config)):
        asked = f"has no config '{config}'" if config else "has several configs"
        raise UserError(f"{dataset} {asked}. Give one of {', '.join(f'{dataset}/{each}' for each in configs)}."
                        f"{nearest_hint(config, configs)}")
    if config and not configs:
        raise UserError(f"{dataset} has no configs, so '{config}' is unknown. Give '{dataset}' alone.")
    versions = _versions(folder / (config or configs[0]) if configs else folder)
    if not versions:  # left by an interrupted conversion
        raise UserError(f"{dataset} in '{data_dir}' is incomplete. Convert it again.")
    return versions[-1]


def _versions(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir()
             if _VERSION.fullmatch(path.name) and (path / "dataset_info.json").is_file()]
    return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def decode_image(data: bytes, reduce: int = 1) -> np.ndarray:
    """Decodes an image file at 1/reduce of its size.

    Args:
        data: Bytes of a JPEG, PNG or another format that OpenCV reads.
        reduce: 1, 2, 4 or 8.

    Returns:
        uint8 [h', w', 3], RGB; sides are rounded up.

    Raises:
        UserError: The bytes are not an image.
    """
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
             8: cv2.IMREAD_REDUCED_COLOR_8}
    jpeg = data[:2] == b"\xff\xd8"
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags[reduce if jpeg else 1]) if data else None
    except cv2.error:  # the image exceeds OpenCV's size limit
        image = None
    if image is None:
        raise UserError("Cannot decode an image of the converted dataset. Convert the dataset again.")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image if jpeg else shrink(image, reduce)


def shrink(image: np.ndarray, reduce: int) -> np.ndarray:
    """Averages blocks of reduce x reduce pixels, replicating the border; sides are rounded up.

    Args:
        image: uint8 [h, w, 3].
        reduce: 1, 2, 4 or 8; 1 returns ``image`` itself.
    """
    if reduce == 1:
        return image
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, 0, -height % reduce, 0, -width % reduce, cv2.BORDER_REPLICATE)
    return cv2.resize(padded, (padded.shape[1] // reduce, padded.shape[0] // reduce), interpolation=cv2.INTER_AREA)


def _video_of_row(row: dict) -> Video:
    """Parses a row of ``metadata.json``; a malformed row raises KeyError, TypeError, ValueError etc."""
    objects = tuple(tuple(map(int, ids)) for ids in row["objects"])
    labeled = row["labeled"] if "labeled" in row else row["labelled"]  # the key of version 0.1
    video = Video(str(row["name"]), int(row["length"]), (int(row["height"]), int(row["width"])), objects,
                  tuple(map(int, labeled)), int(row["start"]),
                  tuple((int(number), str(name)) for number, name in row.get("categories", {}).items()))
    if len(objects) != video.length or not set(video.labeled) <= set(range(video.length)):
        raise ValueError(f"video {video.name}: the table of frames does not match its length")
    return video


def _video_of(name: str, frames: np.ndarray, labels: np.ndarray, flow: np.ndarray | None) -> Video:
    if frames.shape != (*labels.shape, 3) or (flow is not None and (
            flow.ndim != 4 or flow.shape[::3] != (len(labels), 2))):
        raise ValueError(f"clip '{name}': frames {list(frames.shape)}, labels {list(labels.shape)}"
                         f"{'' if flow is None else f', flow {list(flow.shape)}'} do not match")
    counts = [np.bincount(frame.ravel(), minlength=256) for frame in labels]
    objects = tuple(tuple((np.flatnonzero(count[1:VOID]) + 1).tolist()) for count in counts)
    labeled = tuple(t for t, count in enumerate(counts) if count[:VOID].any())
    return Video(name, len(frames), labels.shape[1:], objects, labeled)
