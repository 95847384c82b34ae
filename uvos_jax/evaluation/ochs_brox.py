"""The region measure of FBMS-59 and its definition files.

Ochs, Malik and Brox, "Segmentation of Moving Objects by Long Term Video Analysis", PAMI 2014, and version 2.0 of the
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
    """Scores of a sequence or dataset; ``objects`` and ``extracted`` are counts that exclude the background."""

    precision: float
    recall: float
    f: float
    density: float
    objects: int
    extracted: int


class LabeledFrame(NamedTuple):
    """A frame with ground truth: its frame number and its file name, as given in the definition file."""

    number: int
    file: str


class Definition(NamedTuple):
    """Contents of a definition file; region i has the color ``colors[i]`` = 65536 R + 256 G + B, or a gray level."""

    colors: tuple[int, ...]
    frames: int
    labeled: tuple[LabeledFrame, ...]


def score_sequence(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> RegionScores:
    """Scores the clusters of a sequence against its regions (Ochs, Malik and Brox, PAMI 2014).

    As in the published program:

    - Overlaps and sizes are summed over all annotated frames before any division, so an object must keep its label.
      Regions that never occur are excluded.
    - With o the overlap of a region and a cluster, P = o / size of the cluster and R = o / size of the region. The size
      of a region counts only pixels with a cluster: unlabeled pixels lower the density, not R.
    - Regions and clusters are matched one to one so that the sum of F = 2PR / (P + R), each truncated to 4 decimals, is
      maximal. Unmatched clusters are ignored. A region without a cluster, because there are fewer clusters, has P = 1
      and R = 0; a region matched without overlap has P = R = 0.
    - P and R are means over the regions including the background. An object is extracted if its F is at least 0.75.
      The background is subtracted as one from the number of regions and from the number of extracted regions; neither
      falls below 0.

    Differences from the program:

    - F is truncated in exact integers, there in single precision, so ties may be broken differently.
    - F >= 0.75 is the paper's rule; the program tests F > 0.75.
    - Clusters are the labels that occur on annotated pixels. The program uses the highest label plus one, so each gap
      in the numbering costs a region without a cluster its P = 1.
    - Density is the fraction of annotated pixels with a cluster. The program prints the mean of this fraction over the
      regions.
    - The program weights pixels by the probability maps stored with the color files. Here a pixel either counts or, at
      -1, does not.

    Args:
        pairs: For each annotated frame, the prediction, uint8 [h, w] of cluster labels 0..254 or 255 (unlabeled), and
            the ground truth, integer [h, w] of region indices from 0 (background), or -1 to ignore the pixel.

    Returns:
        Scores of the sequence; P, R, F and density are in [0, 1].

    Raises:
        ValueError: An array has a wrong shape, dtype or range, or no pixel is annotated.
    """
    overlap = np.zeros((0, 256), np.int64)
    for prediction, truth in pairs:
        counts = _overlaps(prediction, truth)
        fewer, more = sorted((overlap, counts), key=len)  # rows, one per region
        more[: len(fewer)] += fewer
        overlap = more
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


def average_scores(scores: Iterable[RegionScores]) -> RegionScores:
    """Averages P, R and density over the sequences, computes F of the mean P and R, and sums the counts.

    Args:
        scores: Scores of at least one sequence.

    Returns:
        Scores of the dataset. F is not the mean of the sequences' F.

    Raises:
        ValueError: There are no sequences.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("no sequences to average")
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
    """Reads the ``<sequence>Def.dat`` file of a sequence's ground truth.

    The file contains, in this order, the number of regions, their colors, a matrix of confusion penalties (checked but
    not used by the measure), the number of frames, the number of annotated frames, and for each annotated frame its
    number, its file and the file of its input image. Blank lines and captions may occur between any of them; a caption
    has several words or ends in a colon.

    Args:
        path: Path of the file.

    Returns:
        Contents of the file.

    Raises:
        UserError: The file cannot be read or is malformed.
    """
    try:
        text = Path(path).read_text(encoding="latin-1")
    except OSError as error:
        raise UserError(f"Cannot read the definition file {quoted(path)}: {error_reason(error)}.") from error
    lines = deque(line.strip() for line in text.splitlines() if line.strip())
    try:
        return _parse(lines)
    except ValueError as error:
        raise UserError(f"The definition file {quoted(path)} is malformed: {error}.") from error


def region_labels(image: np.ndarray, colors: tuple[int, ...]) -> np.ndarray:
    """Converts a ground-truth image of FBMS to region indices.

    Gray levels are looked up if the image is gray and no listed color exceeds 255, otherwise colors. As in the
    published program, colors that are not listed become region 0: some public files contain stray colors (cats04).

    Args:
        image: uint8 [h, w, 3], RGB.
        colors: ``Definition.colors``, n colors.

    Returns:
        int16 [h, w] in 0..n-1.

    Raises:
        ValueError: The image has a wrong shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [h, w, 3], not {image.dtype} {list(image.shape)}")
    codes = image.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    if max(colors) <= 255 and (image == image[..., :1]).all():
        codes = codes & 255
    numbers = np.zeros(codes.shape, np.int16)
    for number, color in enumerate(colors):
        numbers[codes == color] = number
    return numbers


def _overlaps(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts the pixels of each pair of region and label, int64 [regions, 256]."""
    if prediction.dtype != np.uint8 or truth.dtype.kind not in "iu":
        raise ValueError("prediction must be uint8 and ground truth must be integer, not"
                         f" {prediction.dtype} and {truth.dtype}")
    if prediction.shape != truth.shape or truth.ndim != 2 or not truth.size:
        raise ValueError("prediction and ground truth must have the same shape [h, w], not"
                         f" {prediction.shape} and {truth.shape}")
    if truth.min() < -1 or truth.max() > _LARGEST_REGION:
        raise ValueError(f"ground truth must be in -1..{_LARGEST_REGION}, not {truth.min()}..{truth.max()}")
    # Ignored pixels fall into an extra first row.
    pairs = (truth.astype(np.int64) + 1) * 256 + prediction
    return np.bincount(pairs.ravel(), minlength=256 * (int(truth.max()) + 2)).reshape(-1, 256)[1:]


def _match(overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches regions and clusters; returns P and R of each region, float64 [r], and whether F >= 0.75, bool [r]."""
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
    caption_seen = False
    while lines:
        line = lines.popleft()
        first, *more = line.split()
        if _INTEGER.fullmatch(first):
            value = int(first)
            if value < lowest or (highest is not None and value > highest):
                raise ValueError(f"{what} is {value}")
            return value
        caption = line.endswith(":")
        if caption and caption_seen:  # this is the caption of the next value
            raise ValueError(f"{what} is missing")
        if not (more or caption):
            raise ValueError(f"{what} is {line!r}")
        caption_seen |= caption
    raise ValueError(f"the file ends before {what}")


def _skip_penalties(lines: deque[str], regions: int) -> None:
    numbers = 0
    while numbers < regions**2:
        if not lines:
            raise ValueError("the file ends before the confusion penalties")
        row = lines.popleft()
        try:
            numbers += len([float(word) for word in row.split()])
        except ValueError:
            if numbers:  # a line without numbers before the matrix is a caption
                raise ValueError(f"the confusion penalties are not a {regions} by {regions} matrix") from None
    if numbers > regions**2:
        raise ValueError(f"the confusion penalties are not a {regions} by {regions} matrix")


def _labeled_frame(lines: deque[str], index: int) -> LabeledFrame:
    number = _integer(lines, f"the number of labeled frame {index}", 0)
    if lines and lines[0].endswith(":"):
        lines.popleft()
    if not lines or lines[0].endswith(":"):
        raise ValueError(f"labeled frame {index} has no file")
    file = lines.popleft()
    if lines and lines[0].lower().startswith("input"):
        lines.popleft()
        if lines and not lines[0].endswith(":"):  # name of the input image, which is not used
            lines.popleft()
    return LabeledFrame(number, file)
