"""The region measure of FBMS-59, and its definition files.

Ochs, Malik and Brox, "Segmentation of Moving Objects by Long Term Video Analysis", PAMI 2014, and version 2.0 of its
published evaluation program.
"""

import os
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from uvos_jax.errors import UserError, error_reason, quoted

UNLABELED = 255
_LARGEST_COLOR = 0xFFFFFF
_LARGEST_REGION = np.iinfo(np.int16).max
_INTEGER = re.compile(r"[+-]?\d+")


class RegionScores(NamedTuple):
    """Scores of a sequence or of a dataset; ``objects`` and ``extracted`` are counts without the background."""

    precision: float
    recall: float
    f: float
    density: float
    objects: int
    extracted: int


class LabeledFrame(NamedTuple):
    """A frame with ground truth: its number as the definition file counts, and the file as it is named there."""

    number: int
    file: str


class Definition(NamedTuple):
    """Content of a definition file; region i has the color ``colors[i]`` = 65536 R + 256 G + B, or gray level."""

    colors: tuple[int, ...]
    frames: int
    labeled: tuple[LabeledFrame, ...]


def sequence_regions(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> RegionScores:
    """Scores the clusters of a sequence against its regions.

    As in the published program:

    - overlaps and sizes are summed over all labeled frames before anything is divided, so that an object must keep
      its label; regions that never occur are left out;
    - with o the overlap of a region and a cluster, P = o / size of the cluster and R = o / size of the region, where
      the region's size counts only its pixels that have a cluster: missing labels lower the density alone;
    - regions and clusters are matched one to one so that the sum of the F = 2PR / (P + R), each cut to 4 decimals, is
      maximal. Clusters left over are ignored. A region left over, because there are fewer clusters, gets P = 1 and R =
      0; one that is matched without any overlap gets 0 and 0;
    - P and R are the means over the regions, background included; an object is extracted if its F is at least 0.75,
      and the background is subtracted as one from the number of regions and from the number of those extracted, none
      less than 0.

    Where it differs: F is cut in exact integers, there in single precision, so ties may be broken otherwise. F >= 0.75
    is the paper's rule; the program tests F > 0.75. Clusters are the labels that occur on labeled pixels; the program
    takes the highest label plus one, so that each gap in the numbering costs a region without cluster its P = 1.
    Density is the share of the labeled pixels that have a cluster; the program prints the mean of this share over the
    regions. The program weighs pixels by the probability maps beside the color files; here a pixel counts or, at -1,
    does not.

    Args:
        pairs: Per labeled frame, the prediction, uint8 [h, w] of cluster labels 0..254, or 255 for none; and the
            truth, integers [h, w] of region numbers from 0 (the background), or -1 to leave the pixel out.

    Returns:
        The scores of the sequence; P, R, F and density in [0, 1].

    Raises:
        ValueError: The arrays are of another shape, dtype or range, or no pixel is labeled.
    """
    overlap = np.zeros((0, 256), np.int64)
    for prediction, truth in pairs:
        counts = _overlaps(prediction, truth)
        short, long = sorted((overlap, counts), key=len)
        long[: len(short)] += short
        overlap = long
    overlap = overlap[overlap.any(axis=1)]
    if not len(overlap):
        raise ValueError("the sequence has no labeled pixels")
    pixels = overlap.sum()
    overlap = overlap[:, :UNLABELED]
    density = overlap.sum() / pixels
    precision, recall, large = _match(overlap[:, overlap.any(axis=0)])
    mean_precision, mean_recall = float(precision.mean()), float(recall.mean())
    return RegionScores(
        precision=mean_precision,
        recall=mean_recall,
        f=_f_measure(mean_precision, mean_recall),
        density=float(density),
        objects=len(overlap) - 1,
        extracted=max(0, int(large.sum()) - 1),
    )


def overall(scores: Iterable[RegionScores]) -> RegionScores:
    """Scores a dataset: means over sequences, F of the mean P and mean R, sums of the counts.

    Args:
        scores: At least one sequence.

    Returns:
        The scores of the dataset. Its F is not the mean of the sequences' F.

    Raises:
        ValueError: There are no sequences.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("there are no sequences to average")
    precision, recall, density = (
        float(np.mean([getattr(score, name) for score in scores])) for name in ("precision", "recall", "density")
    )
    return RegionScores(
        precision=precision,
        recall=recall,
        f=_f_measure(precision, recall),
        density=density,
        objects=sum(score.objects for score in scores),
        extracted=sum(score.extracted for score in scores),
    )


def read_definition(path: str | os.PathLike) -> Definition:
    """Reads the ``<sequence>Def.dat`` of a sequence's ground truth.

    The file holds, in this order, the number of regions, their colors, a matrix of penalties (checked, and dropped:
    the measure does not use it), the number of frames and that of labeled frames, and for each of these its number,
    its file and that of its input image. Blank lines and captions may stand anywhere between them; a caption has
    several words or ends in a colon.

    Args:
        path: The file.

    Returns:
        What it says.

    Raises:
        UserError: There is no such file, or it is broken.
    """
    try:
        text = Path(path).read_text(encoding="latin-1")
    except OSError as error:
        raise UserError(f"the definition file {quoted(path)} cannot be read: {error_reason(error)}.") from error
    lines = deque(line.strip() for line in text.splitlines() if line.strip())
    try:
        return _parse(lines)
    except ValueError as error:
        raise UserError(f"the definition file {quoted(path)} is broken: {error}.") from error


def region_numbers(image: np.ndarray, colors: tuple[int, ...]) -> np.ndarray:
    """Turns a ground-truth picture of FBMS into region numbers.

    Color files hold colors and gray files hold gray levels, so the gray level is looked up if the picture is gray
    all over and no color exceeds 255. A color that is not listed becomes region 0, as in the published program: some
    public files have stray ones (cats04).

    Args:
        image: uint8 [h, w, 3], RGB.
        colors: ``Definition.colors``.

    Returns:
        int16 [h, w], each 0..n-1.

    Raises:
        ValueError: The picture is of another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the picture must be uint8 [h, w, 3], not {image.dtype} {list(image.shape)}")
    codes = image.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    if max(colors) <= 255 and (image == image[..., :1]).all():
        codes = codes & 255
    numbers = np.zeros(codes.shape, np.int16)
    for number, color in enumerate(colors):
        numbers[codes == color] = number
    return numbers


def _overlaps(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns int64 [regions, 256], the pixels of each pair of region and label."""
    if prediction.dtype != np.uint8 or truth.dtype.kind not in "iu":
        raise ValueError(f"prediction and truth must be uint8 and integers, not {prediction.dtype} and {truth.dtype}")
    if prediction.shape != truth.shape or truth.ndim != 2 or not truth.size:
        raise ValueError(f"prediction and truth must be [h, w] alike, not {prediction.shape} and {truth.shape}")
    if truth.min() < -1 or truth.max() > _LARGEST_REGION:
        raise ValueError(f"the truth must be -1..{_LARGEST_REGION}, not {truth.min()}..{truth.max()}")
    # Pixels to leave out fall into an extra first row.
    pairs = (truth.astype(np.int64) + 1) * 256 + prediction
    return np.bincount(pairs.ravel(), minlength=256 * (int(truth.max()) + 2)).reshape(-1, 256)[1:]


def _match(overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns P and R of each region, float64 [r], and whether its F is at least 0.75, bool [r]."""
    regions, clusters = overlap.shape
    region_size, cluster_size = overlap.sum(axis=1), overlap.sum(axis=0)
    sizes = region_size[:, None] + cluster_size
    table = np.zeros((max(overlap.shape), max(overlap.shape)), np.int64)
    table[:regions, :clusters] = 20000 * overlap // sizes  # 2PR / (P + R) = 2 o / (region + cluster)
    partner = linear_sum_assignment(table, maximize=True)[1][:regions]
    matched = np.flatnonzero(partner < clusters)
    partner = partner[matched]
    common = overlap[matched, partner]
    precision, recall, large = np.ones(regions), np.zeros(regions), np.zeros(regions, bool)
    precision[matched] = common / cluster_size[partner]
    recall[matched] = common / np.maximum(region_size[matched], 1)
    large[matched] = 8 * common >= 3 * sizes[matched, partner]
    return precision, recall, large


def _f_measure(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _parse(lines: deque[str]) -> Definition:
    regions = _integer(lines, "the number of regions", 1, _LARGEST_REGION + 1)
    colors = tuple(_integer(lines, f"the color of region {i}", 0, _LARGEST_COLOR) for i in range(regions))
    if len(set(colors)) < regions:
        raise ValueError("two regions have the same color")
    _skip_penalties(lines, regions)
    frames = _integer(lines, "the number of frames", 1)
    count = _integer(lines, "the number of labeled frames", 1, frames)
    return Definition(colors, frames, tuple(_labeled_frame(lines, index) for index in range(1, count + 1)))


def _integer(lines: deque[str], what: str, lowest: int, highest: int | None = None) -> int:
    asked = False
    while lines:
        line = lines.popleft()
        first, *more = line.split()
        if _INTEGER.fullmatch(first):
            value = int(first)
            if value < lowest or (highest is not None and value > highest):
                raise ValueError(f"{what} is {value}")
            return value
        caption = line.endswith(":")
        if caption and asked:  # the caption of the next value
            raise ValueError(f"{what} is missing")
        if not (more or caption):
            raise ValueError(f"{what} is {line!r}")
        asked |= caption
    raise ValueError(f"it ends before {what}")


def _skip_penalties(lines: deque[str], regions: int) -> None:
    numbers = 0
    while numbers < regions**2:
        if not lines:
            raise ValueError("it ends before the penalties of confusion do")
        row = lines.popleft()
        try:
            numbers += len([float(word) for word in row.split()])
        except ValueError:
            if numbers:  # else it is a caption
                raise ValueError(f"its penalties of confusion are not {regions} by {regions} numbers") from None
    if numbers > regions**2:
        raise ValueError(f"its penalties of confusion are not {regions} by {regions} numbers")


def _labeled_frame(lines: deque[str], index: int) -> LabeledFrame:
    number = _integer(lines, f"the number of labeled frame {index}", 0)
    if lines and lines[0].endswith(":"):
        lines.popleft()
    if not lines or lines[0].endswith(":"):
        raise ValueError(f"labeled frame {index} has no file")
    file = lines.popleft()
    if lines and lines[0].lower().startswith("input"):
        lines.popleft()
        if lines and not lines[0].endswith(":"):  # the name of the input image, which nobody needs
            lines.popleft()
    return LabeledFrame(number, file)
