"""Temporal (in)stability T of DAVIS-2016: how much the outline of a mask changes its shape between two frames.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016: both
outlines are described by shape contexts (Belongie et al., PAMI 2002) and matched by dynamic programming.

Two published programs exist and do not agree: the one in Python measures angles from the column axis, the one in Matlab
from the row axis, and points that lie exactly beside each other then fall into different sectors (0.02 for two
squares). The rule here is Python's; ``matlab=True`` gives the other, in which values for the ground truth of the
training set are published. To reproduce either, some accidents of the originals have to be kept, here and in
``outlines``.

Of the official values 70 % are met to 1e-6 and 92 % to 1e-3. Where no corners of pixels touch, what is left is rounding
in the angles (below 1e-4); where they do, how the original splits the outline depends on the order of a hash map.
"""

from collections.abc import Iterable

import numpy as np

from uvos_jax.evaluation.polygon_contours import outline

_ANGLES = 12
_RADII = (0.125, 0.25, 0.5, 1.0, 2.0)  # in units of the mean distance
_BINS = _ANGLES * len(_RADII)
_EPSILON = 2.2204e-16


def temporal_instability(mask: np.ndarray, next_mask: np.ndarray, matlab: bool = False) -> float:
    """Computes T of two consecutive masks, before the factor 5 of the benchmark.

    Args:
        mask: bool [h, w].
        next_mask: bool [h, w].
        matlab: Measure angles as the Matlab program does.

    Returns:
        The mean cost of the matched outline points, 0 to 1; NaN where a mask has no outline.

    Raises:
        ValueError: A mask is not bool [h, w].
    """
    return _compare(_describe(mask, matlab), _describe(next_mask, matlab))


def sequence_instability(masks: Iterable[np.ndarray], matlab: bool = False) -> np.ndarray:
    """Computes T of every two consecutive masks, keeping no more than two descriptions in memory.

    The benchmark's number for a sequence is 5 * nanmean. In Matlab the masks are the first ground truth and then the
    result of every frame but the first and last; in Python the first ground truth is left out.

    Args:
        masks: t masks, bool [h, w].
        matlab: Measure angles as the Matlab program does.

    Returns:
        float64 [max(t - 1, 0)], as ``temporal_instability``.

    Raises:
        ValueError: A mask is not bool [h, w].
    """
    values = []
    previous = None
    for index, mask in enumerate(masks):
        current = _describe(mask, matlab)
        if index:
            values.append(_compare(previous, current))
        previous = current
    return np.array(values, np.float64)


def _describe(mask: np.ndarray, matlab: bool) -> np.ndarray | None:
    points = outline(mask)
    return None if points is None else shape_context(points, matlab)


def _compare(first: np.ndarray | None, second: np.ndarray | None) -> float:
    if first is None or second is None:
        return float("nan")
    return matching_cost(histogram_distance(first, second))


def shape_context(points: np.ndarray, matlab: bool = False) -> np.ndarray:
    """Describes each point by where the others lie (Belongie et al. 2002): 12 angles and 5 distances.

    Angles are measured from the x axis towards the y axis, which points down, and not relative to a tangent. Distances
    are relative to the mean over all pairs, with each point paired with itself too; points beyond 2 are ignored.

    Args:
        points: float64 [n, 2], (x, y).
        matlab: Measure angles from the y axis towards the x axis, as the Matlab program does.

    Returns:
        float64 [n, 60], each row summing to 1.
    """
    n = len(points)
    x, y = (column[None] - column[:, None] for column in points.T)
    distance = np.sqrt(x * x + y * y)
    distance /= distance.mean()
    ring = np.searchsorted(_RADII, distance, side="right")
    turn = 2 * np.pi
    if matlab:
        angle = np.arctan2(x, y) + turn
        # A remainder within rounding of a full turn is zero, as that of Matlab.
        angle = np.where(np.abs(angle / turn - 1) <= np.finfo(np.float64).eps, 0.0, np.fmod(angle, turn))
    else:
        angle = np.mod(np.arctan2(y, x), turn)
    # The remainder of a tiny negative angle is rounded to a full turn.
    sector = np.floor(angle / (turn / _ANGLES)).astype(np.int64) % _ANGLES
    bins = np.arange(n)[:, None] * _BINS + ring * _ANGLES + sector
    counts = np.bincount(bins[ring < len(_RADII)], minlength=n * _BINS).reshape(n, _BINS)
    return counts / (counts.sum(1, keepdims=True) + _EPSILON)


def histogram_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Computes half the chi-square distance between all pairs of histograms.

    Args:
        first: float64 [n1, bins].
        second: float64 [n2, bins].

    Returns:
        float64 [n1, n2], 0 to 1.
    """
    # Most bins are empty in one of the two, and those terms are two matrix products.
    alone_first, alone_second = (bins * bins / (bins + _EPSILON) for bins in (first, second))
    cost = (first == 0).astype(np.float64) @ alone_second.T + alone_first @ (second == 0).astype(np.float64).T
    for a, b in zip(first.T, second.T, strict=True):
        rows, columns = np.flatnonzero(a), np.flatnonzero(b)
        a, b = a[rows, None], b[columns]
        cost[np.ix_(rows, columns)] += (a - b) ** 2 / (a + b + _EPSILON)
    return 0.5 * cost


def cheapest_path(cost: np.ndarray) -> np.ndarray:
    """Finds the cheapest monotone path through a matrix, from its first to its last cell.

    The moves are one row, one column or both; each costs the cell it enters, and the first cell is free. Of equally
    cheap ways to a cell the diagonal one is taken.

    Args:
        cost: float64 [n1, n2], not negative.

    Returns:
        int [length, 2], the cells from last to first.
    """
    n1, n2 = cost.shape
    # Row d of these holds the cells with i + j = d, at place i.
    skewed = np.full((n1, n1 + n2), np.inf)
    skewed[:, :n2] = cost
    skewed = np.ascontiguousarray(skewed.ravel()[: n1 * (n1 + n2 - 1)].reshape(n1, n1 + n2 - 1).T)
    total = np.full((n1 + n2 - 1, n1), np.inf)
    total[0, 0] = 0.0
    for d in range(1, n1 + n2 - 1):
        best = total[d]
        np.minimum(total[d - 1, 1:], total[d - 1, :-1], out=best[1:])
        best[0] = total[d - 1, 0]
        if d > 1:
            np.minimum(best[1:], total[d - 2, :-1], out=best[1:])
        best += skewed[d]
    i, j = n1 - 1, n2 - 1
    path = [(i, j)]
    while i or j:
        if not i:
            j -= 1
        elif not j:
            i -= 1
        else:
            diagonal, left, above = total[i + j - 2, i - 1], total[i + j - 1, i], total[i + j - 1, i - 1]
            if diagonal <= left and diagonal <= above:
                i, j = i - 1, j - 1
            elif left <= above:
                j -= 1
            else:
                i -= 1
        path.append((i, j))
    return np.array(path)


def matching_cost(cost: np.ndarray) -> float:
    """Matches two closed outlines point by point and returns the mean cost of the pairs.

    A first path, from point 0 to point 0, serves to find its cheapest pair. The second one starts after this pair, so
    that it does not matter where the outlines begin. Of the pairs of one point the cheapest is counted.

    Args:
        cost: float64 [n1, n2], not negative.

    Returns:
        The mean cost of the one-to-one pairs.
    """
    path = cheapest_path(cost)
    pairs = path[:-1] if len(path) > 1 else path
    shift = pairs[np.argmin(cost[tuple(pairs.T)])] + 1
    pairs = (cheapest_path(np.roll(cost, -shift, axis=(0, 1))) + shift) % cost.shape
    for side in (0, 1):
        order = np.lexsort((cost[tuple(pairs.T)], pairs[:, side]))
        pairs = pairs[order][np.unique(pairs[order, side], return_index=True)[1]]
    return float(cost[tuple(pairs.T)].mean())
