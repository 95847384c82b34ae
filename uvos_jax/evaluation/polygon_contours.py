"""Polygonal contours of masks for the temporal stability measure of DAVIS-2016.

Reproduces PolyCont, the library that the published programs call, including the details of its arithmetic that decide
which of several equally distant vertices is kept: Douglas-Peucker computes the projection fraction in single precision;
straight runs are simplified by the same code with a small tolerance, which may keep points within a run; the points
of a divided segment are computed by repeated addition. Where two pixels touch diagonally (a junction), the contour is
split into loops that pass each junction once. Of loops with equally many vertices the first one is used, as in MATLAB
(the Python program uses the last); loops without junctions come first, from the bottom of the image upwards.
"""

import itertools

import numpy as np

_MAX_SEGMENT = 3.0  # pixels; longer segments of a contour are divided
# Tolerances of the two simplification passes, in half pixels: collinear points first, then 1.5 pixels.
_COLLINEAR_TOLERANCE, _POLYGON_TOLERANCE = 0.1, 3.0
_RIGHT, _DOWN, _LEFT, _UP = range(4)


def longest_contour(mask: np.ndarray) -> np.ndarray | None:
    """Traces the contour loop with the most vertices and divides its segments to at most three pixels.

    Args:
        mask: bool [h, w].

    Returns:
        float64 [n, 2], (x, y) of pixel corners, with the last point equal to the first; None if there is no loop.

    Raises:
        ValueError: The mask is not bool [h, w].
    """
    loops = mask_polygons(mask)
    return _resample(max(loops, key=len)) if loops else None


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Traces the contour of a mask as simplified closed polygons.

    Args:
        mask: bool [h, w].

    Returns:
        Polygons, float64 [n, 2] each with n > 3: (x, y) of pixel corners, with the last point equal to the first. On
        the screen, outer polygons run clockwise and holes counter-clockwise.

    Raises:
        ValueError: The mask is not bool [h, w].
    """
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"mask must be bool [h, w], not {mask.dtype} {list(mask.shape)}")
    if not mask.any():
        return []
    corners, neighbors = _turning_corners(mask)
    loops = _trace(neighbors)
    points = corners[np.concatenate([np.array(loop) for loop in loops])]
    lengths = np.array([len(loop) for loop in loops])
    is_hole = _are_holes(mask, points, lengths)
    points, lengths = _unit_steps(points, lengths)
    points, lengths = _simplify(2.0 * points, lengths, _COLLINEAR_TOLERANCE)
    points, lengths = _simplify(points, lengths, _POLYGON_TOLERANCE)
    ends = np.cumsum(lengths)
    result = []
    for first, end, hole in zip(ends - lengths, ends, is_hole, strict=True):
        if end - first <= 3:
            continue
        loop = points[first:end] / 2
        x, y = loop.T
        clockwise = np.sum(np.diff(y) * (x[1:] + x[:-1])) > 0
        result.append(loop if clockwise != hole else loop[::-1])
    return result


def _turning_corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists the pixel corners at which the contour turns or crosses itself, in raster order.

    Returns:
        Corners, int [n, 2], (x, y); and neighbors, int [n, 4], the index of the next corner along the contour to the
        right, below, to the left and above, or -1.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    padded = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 2)
    down = padded[1:, :-1] != padded[1:, 1:]
    right = padded[:-1, 1:] != padded[1:, 1:]
    up, left = np.zeros_like(down), np.zeros_like(right)
    up[1:], left[:, 1:] = down[:-1], right[:, :-1]
    y, x = np.nonzero((up | down) & (left | right))
    n = len(y)
    by_column = np.lexsort((y, x))
    above, below = np.empty(n, int), np.empty(n, int)
    below[by_column[:-1]], above[by_column[1:]] = by_column[1:], by_column[:-1]
    index = np.arange(n)
    neighbors = np.empty((n, 4), int)
    for direction, edge, neighbor in ((_RIGHT, right, index + 1), (_DOWN, down, below),
                                      (_LEFT, left, index - 1), (_UP, up, above)):
        neighbors[:, direction] = np.where(edge[y, x], neighbor, -1)
    return np.stack([x + columns[0] - 1, y + rows[0] - 1], axis=1), neighbors


def _trace(neighbors: np.ndarray) -> list[list[int]]:
    """Joins corners to closed loops, in the order of PolyCont; the last corner of a loop equals its first."""
    is_junction = (neighbors >= 0).all(1)
    vertical = np.where(neighbors[:, _DOWN] >= 0, neighbors[:, _DOWN], neighbors[:, _UP])
    horizontal = np.where(neighbors[:, _RIGHT] >= 0, neighbors[:, _RIGHT], neighbors[:, _LEFT])
    onward = (vertical.tolist(), horizontal.tolist())
    visited = is_junction.tolist()
    pieces = _pieces(neighbors, is_junction, onward, visited)
    loops = []
    for start in range(len(visited)):
        if visited[start]:
            continue
        loop, corner, turn = [start], onward[0][start], 1
        visited[start] = True
        while corner != start:
            visited[corner] = True
            loop.append(corner)
            corner, turn = onward[turn][corner], 1 - turn
        loop.append(start)
        loops.append(loop)
    return loops[::-1] + _cycles(pieces)


def _pieces(
    neighbors: np.ndarray, is_junction: np.ndarray, onward: tuple[list[int], list[int]], visited: list[bool]
) -> list[tuple[list[int], int, int]]:
    """Follows the contour from junction to junction and marks the corners on the way as visited.

    Returns:
        For each piece, its corners and the directions in which it leaves its first and its last junction.
    """
    ends = {int(j): neighbors[j].tolist() for j in np.flatnonzero(is_junction)}
    used = set()
    pieces = []
    for junction in reversed(ends):
        for direction in (_UP, _LEFT, _DOWN, _RIGHT):
            if (junction, direction) in used:
                continue
            path, corner, turn = [junction], ends[junction][direction], 1 - direction % 2
            while corner not in ends:
                visited[corner] = True
                path.append(corner)
                turn = 1 - turn
                corner = onward[turn][corner]
            if len(path) == 1:
                back = (direction + 2) % 4
            else:  # a turning corner has one neighbor per axis, so the direction back is opposite to its neighbor's
                forward = _RIGHT if turn else _DOWN
                back = forward + 2 if neighbors[path[-1], forward] == corner else forward
            path.append(corner)
            used |= {(junction, direction), (corner, back)}
            pieces.append((path, direction, back))
    return pieces


def _cycles(pieces: list[tuple[list[int], int, int]]) -> list[list[int]]:
    """Joins pieces to loops that pass each junction once: turn at each junction, close a loop when one is revisited.

    Junctions are processed in the order of PolyCont's hash map: the last found first.
    """
    waiting: dict[int, list[int]] = {}
    for number, (path, _, _) in enumerate(pieces):
        for junction in {path[0], path[-1]}:
            waiting.setdefault(junction, []).append(number)
    waiting = {junction: waiting[junction] for junction in sorted(waiting, reverse=True)}
    loops = []
    while waiting:
        at = next(iter(waiting))
        number = waiting[at][0]
        trail: list[tuple[int, int]] = []
        index_of: dict[int, int] = {}
        while True:
            path, _, _ = pieces[number]
            for junction in {path[0], path[-1]}:
                waiting[junction].remove(number)
                if not waiting[junction]:
                    del waiting[junction]
            index_of[at] = len(trail)
            trail.append((at, number))
            at = path[-1] if path[0] == at else path[0]
            if at in index_of:
                loop = [at]
                for junction, part in trail[index_of[at] :]:
                    corners = pieces[part][0]
                    loop += corners[1:] if corners[0] == junction else corners[-2::-1]
                    if junction != at:
                        del index_of[junction]
                loops.append(loop)
                del trail[index_of.pop(at) :]
                if not trail:
                    break
                number = trail[-1][1]
            options = waiting[at]
            goes_straight = _axis(pieces[options[0]], at) == _axis(pieces[number], at)
            number = options[1] if goes_straight and len(options) > 1 else options[0]
    return loops


def _axis(piece: tuple[list[int], int, int], junction: int) -> int:
    path, leaving, arriving = piece
    return (leaving if path[0] == junction else arriving) % 2


def _are_holes(mask: np.ndarray, points: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns, for each loop, whether the pixels along its inner side are background, bool [k]."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    x, y = points.T
    double_area = x * np.roll(y, -1) - np.roll(x, -1) * y
    double_area[ends - 1] = 0
    side = np.sign(np.add.reduceat(double_area, starts))  # 1 where the inner side is to the right
    step = np.sign(points[starts + 1] - points[starts])
    inward = np.stack([-step[:, 1], step[:, 0]], axis=1) * side[:, None]
    column, row = np.floor(points[starts] + 0.5 * (step + inward)).astype(int).T
    return ~mask[row, column]


def _unit_steps(points: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inserts all pixel corners between the turning corners of the loops."""
    ends = np.cumsum(lengths)
    step = np.roll(points, -1, axis=0) - points
    step[ends - 1] = 0
    count = np.maximum(np.abs(step).sum(1), 1)  # the last point of a loop is kept once
    first = np.cumsum(count) - count
    along = np.arange(count.sum()) - np.repeat(first, count)
    unit = np.repeat(np.sign(step), count, axis=0)
    return np.repeat(points, count, axis=0) + along[:, None] * unit, np.add.reduceat(count, ends - lengths)


def _simplify(points: np.ndarray, lengths: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Thins closed loops and simplifies them by Douglas-Peucker with the distance to the segment, all loops at once.

    Args:
        points: float64 [n, 2], integers, the concatenated loops.
        lengths: int [k], number of points of each loop.
        tolerance: Points within this distance of the simplified loop are removed.

    Returns:
        The remaining points, and their number in each loop.
    """
    points, lengths = _thin(points, lengths, tolerance)
    last = np.cumsum(lengths) - 1
    first = last - lengths + 1
    kept = np.zeros(len(points), bool)
    kept[first] = kept[last] = True
    a, b = first, last  # ends of the sections that remain to be split
    while True:
        a, b = a[b - a > 1], b[b - a > 1]
        if not len(a):
            break
        count = b - a - 1
        start = np.cumsum(count) - count
        inner = np.arange(count.sum()) - np.repeat(start - a - 1, count)
        squared = _squared_distance(points[inner], *(np.repeat(points[end], count, axis=0) for end in (a, b)))
        largest = np.maximum.reduceat(squared, start)
        # Of equally distant points the last one is kept.
        farthest = np.maximum.reduceat(np.where(squared == np.repeat(largest, count), inner, -1), start)
        split = largest > tolerance * tolerance
        a, b, farthest = a[split], b[split], farthest[split]
        kept[farthest] = True
        a, b = np.concatenate([a, farthest]), np.concatenate([farthest, b])
    return points[kept], np.add.reduceat(kept.astype(int), first)


def _thin(points: np.ndarray, lengths: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Removes points within the tolerance of the previous kept point; the ends of a loop are kept."""
    ends = np.cumsum(lengths)
    near = np.hypot(*np.diff(points, axis=0).T) < tolerance
    if not near.any():
        return points, lengths
    kept = np.ones(len(points), bool)
    xs, ys = points.T.tolist()
    limit = tolerance * tolerance
    for first, last in zip((ends - lengths).tolist(), (ends - 1).tolist(), strict=True):
        x, y = xs[first], ys[first]
        for i in range(first + 1, last):
            if (xs[i] - x) ** 2 + (ys[i] - y) ** 2 < limit:
                kept[i] = False
            else:
                x, y = xs[i], ys[i]
    return points[kept], np.add.reduceat(kept.astype(int), ends - lengths)


def _squared_distance(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Computes squared distances of points to segments, all [n, 2], with the rounding of PolyCont; returns [n]."""
    segment = end - start
    along = ((point - start) * segment).sum(1)
    length = (segment * segment).sum(1)
    # PolyCont stores this fraction in single precision, which decides between equally distant points.
    fraction = along.astype(np.float32) / np.where(length == 0, 1, length).astype(np.float32)
    foot = start + fraction.astype(np.float64)[:, None] * segment
    foot = np.where((along >= length)[:, None], end, foot)
    foot = np.where((along <= 0)[:, None], start, foot)
    return ((point - foot) ** 2).sum(1)


def _resample(loop: np.ndarray) -> np.ndarray:
    """Divides segments longer than ``_MAX_SEGMENT`` into equal parts."""
    pieces = [loop[:1]]
    for start, end in itertools.pairwise(loop):
        step = end - start
        parts = max(1, int(np.ceil(np.sqrt((step * step).sum()) / _MAX_SEGMENT)))
        # Added up instead of multiplied, as in PolyCont: rounding decides on which side of an axis a point lies.
        steps = np.vstack([start, np.broadcast_to(step / parts, (parts - 1, 2))])
        pieces += [np.cumsum(steps, axis=0)[1:], end[None]]
    return np.concatenate(pieces)
