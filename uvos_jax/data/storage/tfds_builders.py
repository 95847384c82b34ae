"""TFDS builders of the datasets. This module imports TensorFlow, so it is imported lazily.

A record is a frame. Records are ordered by split, video and time:

- ``image``: bytes of the published file if it is a JPEG or PNG, so that nothing is lost;
- ``labels``: PNG, uint8 [h, w, 1]: 0 background, 1..254 objects, 255 void; all 255 without ground truth;
- ``video``, ``frame`` (file name without suffix), ``index`` (from 0), ``length`` of the video, ``labeled``;
- ``flow``, only in datasets with flow: float16 [h', w', 2], (dx, dy) in pixels of the frame to the next frame;
  computed flow has half the frame's resolution. Readers also accept float32.

``metadata.json`` contains ``{"splits": {split: [video, ..]}, "flow": origin of the flow, or ""}``. A video is
``{"name", "start" (index of its first record in the split), "length", "height", "width", "objects": [[object ids of a
frame], ..], "labeled": [indices of frames], "categories": {id: name}}``; ``categories`` is present only if the dataset
has them. Readers therefore need no scan over the records.

The file format is array_record because it has random access: training pairs random frames and resumes exactly where
it stopped. A TFRecord can only be read from its start.
"""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from uvos_jax.data.datasets.dataset_indexes import DATASET_SPECS
from uvos_jax.data.datasets.index import DatasetIndex
from uvos_jax.data.storage.records import (
    FLOW_TYPE,
    PREFIX,
    VERSION,
    FlowMethod,
    Record,
    add_flow,
    add_still_flow,
    encode_png,
    read_records,
    synthetic_records,
)
from uvos_jax.errors import UserError, error_reason
from uvos_jax.labels import VOID

_UNPACK = "Download the archives from the homepage of the dataset and unpack them into this folder."


class _Video(NamedTuple):
    name: str
    length: int
    categories: dict[str, str]
    records: Iterator[Record]


class _Frames(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Common base of all builders: the features, and records and metadata from a dataset index."""

    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _UNPACK
    HOMEPAGE = ""
    CITATION = ""
    LICENSE = ""
    FLOW = ""  # origin of the flow that every dataset of this class has

    def __init__(self, *, dataset_index: DatasetIndex | None = None, flow: FlowMethod | None = None, on_frame=None,
                 file_format: str = "array_record", **kwargs):
        """Creates the builder.

        Args:
            dataset_index: Files to convert; None to index TFDS's ``manual_dir``.
            flow: Computes the flow of every frame.
            on_frame: Called after each written frame.
            file_format: File format of TFDS; ``store.open_store`` reads array_record only.
            **kwargs: Arguments of TFDS: data_dir, config, version.
        """
        self._index, self._on_frame = dataset_index, on_frame or (lambda: None)
        self._method = flow
        self._flow = flow.identity if flow else "files" if dataset_index and dataset_index.flow else self.FLOW
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "video": tfds.features.Text(),
            "frame": tfds.features.Text(),
            "index": np.int32,
            "length": np.int32,
            "labeled": np.bool_,
        }
        if self._flow:
            features["flow"] = tfds.features.Tensor(shape=(None, None, 2), dtype=FLOW_TYPE, encoding="zlib")
        return tfds.core.DatasetInfo(
            builder=self, description=self.__doc__, features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE, citation=self.CITATION, license=self.LICENSE, disable_shuffling=True,
            metadata=tfds.core.MetadataDict({"splits": {}, "flow": self._flow}))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, videos) for split, videos in self._videos(dl_manager).items()}

    def _videos(self, dl_manager) -> dict[str, list[_Video]]:
        dataset_index = self._index
        if dataset_index is None:
            config = self.builder_config.name if self.builder_config else None
            index_files = DATASET_SPECS[self.name.removeprefix(PREFIX)].index_files
            dataset_index = index_files(Path(dl_manager.manual_dir), config)
        return {split: [_Video(video.name, len(video.frames), video.categories, read_records(video))
                        for video in videos] for split, videos in dataset_index.splits.items()}

    def _generate_examples(self, split: str, videos: list[_Video]):
        table = self.info.metadata["splits"].setdefault(split, [])
        total = sum(video.length for video in videos)
        # TFDS sorts by key; for large datasets in buckets, by the leading bits of the 128-bit key. Evenly spread keys
        # use all buckets. Keys 0, 1, 2, .. would put all records into one bucket, which must fit into memory.
        step = 2**128 // max(total, 1)
        position = 0
        find_flow = add_still_flow if all(video.length == 1 for video in videos) else add_flow
        for video in videos:
            row = {"name": video.name, "start": position, "length": video.length, "height": 0, "width": 0,
                   "objects": [], "labeled": []} | ({"categories": video.categories} if video.categories else {})
            for index, record in enumerate(
                    find_flow(video.records, self._method) if self._method else video.records):
                row["height"], row["width"] = map(int, record.labels.shape)
                numbers = np.flatnonzero(np.bincount(record.labels.ravel(), minlength=256))
                row["objects"].append([int(number) for number in numbers if 0 < number < VOID])
                if record.labeled:
                    row["labeled"].append(index)
                yield position * step, self._example(video, index, record)
                position += 1
                self._on_frame()
            table.append(row)

    def _example(self, video: _Video, index: int, record: Record) -> dict:
        example = {"image": record.image, "labels": encode_png(record.labels), "video": video.name,
                   "frame": record.name, "index": index, "length": video.length, "labeled": record.labeled}
        return example | ({"flow": record.flow} if self._flow else {})


class UvosDavis2016(_Frames):
    """DAVIS-2016: 50 videos at 480p, one foreground in every frame. Splits: train (30), val (20)."""

    HOMEPAGE = "https://davischallenge.org/davis2016/code.html"
    CITATION = ("Perazzi, Pont-Tuset, McWilliams, Van Gool, Gross, Sorkine-Hornung: A benchmark dataset and evaluation"
                " methodology for video object segmentation, CVPR 2016")
    LICENSE = "CC BY-NC 4.0; a few videos come from video sites with their own terms"


class UvosDavis2017(_Frames):
    """DAVIS-2017: videos at 480p with several objects.

    Splits: train (60 videos), val (30), test-dev (30), test-challenge (30). The test splits have labels of first frames
    at most.
    """

    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS wants a list
        tfds.core.BuilderConfig(name="semi", description="Objects of the semi-supervised challenge, Annotations."),
        tfds.core.BuilderConfig(name="unsupervised", description="Objects of the unsupervised challenge,"
                                " Annotations_unsupervised; 255 is void."),
    ]
    HOMEPAGE = "https://davischallenge.org/davis2017/code.html"
    CITATION = ("Pont-Tuset, Perazzi, Caelles, Arbelaez, Sorkine-Hornung, Van Gool: The 2017 DAVIS challenge on video"
                " object segmentation, arXiv:1704.00675; Caelles et al.: The 2019 DAVIS challenge on VOS,"
                " arXiv:1905.00737")
    LICENSE = "CC BY-NC 4.0"


class UvosYoutubeVos(_Frames):
    """YouTube-VOS: videos with several objects, some of which appear late; labels at 6 frames per second.

    Splits: train, valid, test. In valid and test an object is labeled only in its first frame.
    """

    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="2019", description="Edition of 2019."),
        tfds.core.BuilderConfig(name="2018", description="Edition of 2018."),
    ]
    HOMEPAGE = "https://youtube-vos.org/dataset/vos/"
    CITATION = ("Xu, Yang, Fan, Yue, Liang, Yang, Huang: YouTube-VOS: a large-scale video object segmentation"
                " benchmark, arXiv:1809.03327")
    LICENSE = "Annotations CC BY 4.0; the videos are their owners', for research"


class UvosYoutubeVis(_Frames):
    """YouTube-VIS: videos with tracked objects of 40 categories.

    Splits: train, valid, test. Valid and test have no public labels.
    """

    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="2019", description="Edition of 2019."),
        tfds.core.BuilderConfig(name="2021", description="Edition of 2021."),
    ]
    HOMEPAGE = "https://youtube-vos.org/dataset/vis/"
    CITATION = "Yang, Fan, Xu: Video instance segmentation, ICCV 2019"
    LICENSE = "Annotations CC BY 4.0; the videos are their owners', for research"


class UvosDuts(_Frames):
    """DUTS: images with masks of salient objects. Splits: train (DUTS-TR), test (DUTS-TE)."""

    HOMEPAGE = "http://saliencydetection.net/duts/"
    CITATION = ("Wang, Lu, Wang, Feng, Wang, Yin, Ruan: Learning to detect salient objects with image-level"
                " supervision, CVPR 2017")
    LICENSE = "For research"


class UvosMsra10k(_Frames):
    """MSRA10K: 10,000 images with the mask of a salient object. Split: train."""

    HOMEPAGE = "https://mmcheng.net/msra10k/"
    CITATION = "Cheng, Mitra, Huang, Torr, Hu: Global contrast based salient region detection, TPAMI 2015"
    LICENSE = "See the homepage"


class UvosFbms59(_Frames):
    """FBMS-59: 59 videos, some frames with ground truth of the moving objects.

    The objects are merged to one foreground. Splits: train (29 videos), test (30).
    """

    HOMEPAGE = "https://lmb.informatik.uni-freiburg.de/resources/datasets/moseg.en.html"
    CITATION = "Ochs, Malik, Brox: Segmentation of moving objects by long term video analysis, TPAMI 2014"
    LICENSE = "See the homepage"


class UvosYoutubeObjects(_Frames):
    """YouTube-Objects: 126 videos of 10 classes with masks in about every tenth frame. Split: test."""

    HOMEPAGE = "https://calvin-vision.net/datasets/youtube-objects-dataset/"
    CITATION = ("Prest, Leistner, Civera, Schmid, Ferrari: Learning object class detectors from weakly annotated video,"
                " CVPR 2012; masks: Jain, Grauman: Supervoxel-consistent foreground propagation in video, ECCV 2014")
    LICENSE = "See the homepage"


class UvosVisal(_Frames):
    """ViSal: 17 videos with masks of salient objects in some frames. Split: test."""

    HOMEPAGE = "https://doi.org/10.1109/TIP.2015.2460013"
    CITATION = ("Wang, Shen, Shao: Consistent video saliency using local gradient flow optimization and global"
                " refinement, TIP 2015")
    LICENSE = "See the homepage"


class UvosSegtrackV2(_Frames):
    """SegTrack v2: 14 videos with one or more objects in every frame.

    Objects are numbered as in the archive; papers merge them into one foreground. Split: test.
    """

    HOMEPAGE = "https://web.engr.oregonstate.edu/~lif/SegTrack2/dataset.html"
    CITATION = "Li, Kim, Humayun, Tsai, Rehg: Video segmentation by tracking many figure-ground segments, ICCV 2013"
    LICENSE = "See the homepage"


class UvosFolder(_Frames):
    """Your own videos: JPEGImages/<sequence>/*, Annotations/<sequence>/*.png and optionally Flow.

    Splits: those of ImageSets/train.txt and val.txt, or train.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put JPEGImages and Annotations into this folder."


class UvosSynthetic(_Frames):
    """Generated videos of moving, textured objects with exact labels and flow. Splits: train, val."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = None
    LICENSE = "License of this package"
    FLOW = "exact"
    CLIPS = {"train": (0, 100), "val": (1_000_000, 10)}  # noqa: RUF012 - first seed and number of clips
    LENGTH = 8
    SIZE = (240, 424)

    def __init__(self, *, clips: int | None = None, **kwargs):
        """Creates the builder.

        Args:
            clips: Number of clips in train; None for 100.
            **kwargs: Arguments of the other builders.
        """
        self._spans = self.spans(clips)
        super().__init__(**kwargs)

    @classmethod
    def spans(cls, clips: int | None) -> dict[str, tuple[int, int]]:
        """Returns the first seed and the number of clips of each split."""
        return cls.CLIPS | ({"train": (cls.CLIPS["train"][0], clips)} if clips else {})

    def _videos(self, dl_manager) -> dict[str, list[_Video]]:
        return {split: [_Video(f"{seed:05d}", self.LENGTH, {}, synthetic_records(seed, self.LENGTH, self.SIZE))
                        for seed in range(first, first + count)] for split, (first, count) in self._spans.items()}


BUILDERS = {cls.name.removeprefix(PREFIX): cls for cls in (
    UvosDavis2016, UvosDavis2017, UvosYoutubeVos, UvosYoutubeVis, UvosDuts, UvosMsra10k, UvosFbms59, UvosYoutubeObjects,
    UvosVisal, UvosSegtrackV2, UvosFolder, UvosSynthetic)}


def write(dataset: str, config: str | None, dataset_index: DatasetIndex | None, data_dir: Path, progress,
          flow: FlowMethod | None = None, clips: int | None = None, title: str | None = None) -> dict[str, list[dict]]:
    """Writes a dataset that does not exist yet.

    Args:
        dataset: A key of ``BUILDERS``.
        config: Its config; any name for ``folder``.
        dataset_index: Checked files to write; None for ``synthetic``.
        data_dir: Folder to write to.
        progress: See ``convert.convert``.
        flow: Computes the flow of every frame.
        clips: Number of clips in the train split of ``synthetic``.
        title: Name of the dataset in messages; None for ``dataset/config``.

    Returns:
        The splits of ``metadata.json``.

    Raises:
        UserError: A source file is broken, or the dataset cannot be written, for example because the disk is full.
    """
    cls = BUILDERS[dataset]
    tfds.disable_progress_bar()
    splits = dataset_index.splits.values() if dataset_index else ()
    total = sum(len(video.frames) for videos in splits for video in videos) if dataset_index else \
        sum(count for _, count in cls.spans(clips).values()) * cls.LENGTH
    own = tfds.core.BuilderConfig(name=config, description="Your own videos.") if dataset == "folder" else config
    title = title or (f"{dataset}/{config}" if config else dataset)
    # TFDS creates a folder for downloads and prints about it, although nothing is downloaded.
    try:
        with progress(f"{title}, converting", total) as advance, TemporaryDirectory() as downloads, \
                redirect_stdout(io.StringIO()):
            builder = cls(dataset_index=dataset_index, flow=flow, on_frame=advance, data_dir=data_dir, config=own,
                          **({"clips": clips} if clips else {}))
            builder.download_and_prepare(download_dir=downloads,
                                         download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(f"Cannot write {title} to '{data_dir.parent}'; nothing was kept: "
                        f"{error_reason(error).partition('; writing ')[0]}.") from error
    return builder.info.metadata["splits"]
