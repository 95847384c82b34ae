"""The outline of a mask as a polygon, as the temporal stability of DAVIS-2016 wants it.

The rules are those of PolyCont, the library that the published programs call. Accidents of its arithmetic decide which
of several equally good vertices stay, and are kept: Douglas-Peucker projects with a fraction in single precision;
straight runs are simplified with a small tolerance by the same code, which may leave points within a run; the points
of a cut segment are added up step by step. Where the corners of two pixels touch, the outline is split into loops that
pass each junction once. Of loops with equally many vertices the first one counts, as in Matlab (Python: the last);
loops without junctions come first, from the bottom of the image upwards.
"""

import itertools

import numpy as np

_SPACING = 3.0  # pixels; longer segments of an outline are cut
# Tolerances of the two simplifications, in doubled coordinates: straight runs first, then 1.5 pixels.
_STRAIGHT, _TOLERANCE = 0.1, 3.0
_RIGHT, _DOWN, _LEFT, _UP = range(4)


def outline(mask: np.ndarray) -> np.ndarray | None:
    """Traces the loop with most vertices, and cuts its segments to at most three pixels.

    Args:
        mask: bool [h, w].

    Returns:
        float64 [n, 2], pixel corners as (x, y), the last one equal to the first; None without a loop.

    Raises:
        ValueError: The mask is not bool [h, w].
    """
    loops = polygons(mask)
    return _cut(max(loops, key=len)) if loops else None


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Traces the simplified closed loops between a mask and its background.

    Args:
        mask: bool [h, w].

    Returns:
        float64 [n, 2] each, n > 3, pixel corners as (x, y), the last one equal to the first. Seen on the screen,
        outer loops run clockwise and holes counter-clockwise.

    Raises:
        ValueError: The mask is not bool [h, w].
    """
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"a mask must be bool [h, w], not {mask.dtype} {list(mask.shape)}")
    if not mask.any():
        return []
    corners, neighbors = _turning_corners(mask)
    loops = _trace(neighbors)
    points = corners[np.concatenate([np.array(loop) for loop in loops])]
    lengths = np.array([len(loop) for loop in loops])
    is_hole = _are_holes(mask, points, lengths)
    points, lengths = _unit_steps(points, lengths)
    points, lengths = _simplify(2.0 * points, lengths, _STRAIGHT)
    points, lengths = _simplify(points, lengths, _TOLERANCE)
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
    """Lists the corners of pixels at which the outline turns or crosses itself, in raster order.

    Returns:
        int [n, 2], (x, y), and int [n, 4]: the corner reached to the right, below, to the left, above, or -1.
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
    for direction, edge, there in ((_RIGHT, right, index + 1), (_DOWN, down, below),
                                   (_LEFT, left, index - 1), (_UP, up, above)):
        neighbors[:, direction] = np.where(edge[y, x], there, -1)
    return np.stack([x + columns[0] - 1, y + rows[0] - 1], axis=1), neighbors


def _trace(neighbors: np.ndarray) -> list[list[int]]:
    """Joins corners to closed loops, in the order of the original; the last corner of a loop is its first."""
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
    """Follows the outline from junction to junction; marks what it passes as visited.

    Returns:
        The corners of each piece, and the direction in which it leaves its first and, seen from there, last junction.
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
            else:  # a turning corner has one neighbor each way, so it lies on the side where the junction is not
                forward = _RIGHT if turn else _DOWN
                back = forward + 2 if neighbors[path[-1], forward] == corner else forward
            path.append(corner)
            used |= {(junction, direction), (corner, back)}
            pieces.append((path, direction, back))
    return pieces


def _cycles(pieces: list[tuple[list[int], int, int]]) -> list[list[int]]:
    """Joins pieces to loops that pass a junction once: turn at every junction, cut a loop off when one comes back.

    The order of junctions is that of the hash map of the original: those found last come first.
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
        place: dict[int, int] = {}
        while True:
            path, _, _ = pieces[number]
            for junction in {path[0], path[-1]}:
                waiting[junction].remove(number)
                if not waiting[junction]:
                    del waiting[junction]
            place[at] = len(trail)
            trail.append((at, number))
            at = path[-1] if path[0] == at else path[0]
            if at in place:
                loop = [at]
                for junction, part in trail[place[at] :]:
                    corners = pieces[part][0]
                    loop += corners[1:] if corners[0] == junction else corners[-2::-1]
                    if junction != at:
                        del place[junction]
                loops.append(loop)
                del trail[place.pop(at) :]
                if not trail:
                    break
                number = trail[-1][1]
            options = waiting[at]
            is_straight = _axis(pieces[options[0]], at) == _axis(pieces[number], at)
            number = options[1] if is_straight and len(options) > 1 else options[0]
    return loops


def _axis(piece: tuple[list[int], int, int], junction: int) -> int:
    path, leaving, arriving = piece
    return (leaving if path[0] == junction else arriving) % 2


def _are_holes(mask: np.ndarray, points: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tells of each loop whether the pixels along its inner side are background."""
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
    """Lists every pixel corner along loops that are given by their turns."""
    ends = np.cumsum(lengths)
    step = np.roll(points, -1, axis=0) - points
    step[ends - 1] = 0
    count = np.maximum(np.abs(step).sum(1), 1)  # the last point of a loop stays a single one
    first = np.cumsum(count) - count
    along = np.arange(count.sum()) - np.repeat(first, count)
    unit = np.repeat(np.sign(step), count, axis=0)
    return np.repeat(points, count, axis=0) + along[:, None] * unit, np.add.reduceat(count, ends - lengths)


def _simplify(points: np.ndarray, lengths: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Thins and simplifies (Douglas-Peucker, distance to the segment) closed loops, all of them side by side.

    Args:
        points: float64 [n, 2], whole numbers, the loops one after the other.
        lengths: int [k], points per loop.
        tolerance: Points nearer than this to the simplified loop go.

    Returns:
        The remaining points and their number per loop.
    """
    points, lengths = _thin(points, lengths, tolerance)
    last = np.cumsum(lengths) - 1
    first = last - lengths + 1
    kept = np.zeros(len(points), bool)
    kept[first] = kept[last] = True
    a, b = first, last  # the ends of the stretches still to be looked at
    while True:
        a, b = a[b - a > 1], b[b - a > 1]
        if not len(a):
            break
        count = b - a - 1
        start = np.cumsum(count) - count
        inner = np.arange(count.sum()) - np.repeat(start - a - 1, count)
        squared = _squared_distance(points[inner], *(np.repeat(points[end], count, axis=0) for end in (a, b)))
        largest = np.maximum.reduceat(squared, start)
        # Of equally far points the last one.
        farthest = np.maximum.reduceat(np.where(squared == np.repeat(largest, count), inner, -1), start)
        split = largest > tolerance * tolerance
        a, b, farthest = a[split], b[split], farthest[split]
        kept[farthest] = True
        a, b = np.concatenate([a, farthest]), np.concatenate([farthest, b])
    return points[kept], np.add.reduceat(kept.astype(int), first)


def _thin(points: np.ndarray, lengths: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Drops points that are nearer than the tolerance to the last point kept; the ends of a loop stay."""
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
    """Squared distance of points to segments, all [n, 2], with the rounding of the original."""
    segment = end - start
    along = ((point - start) * segment).sum(1)
    length = (segment * segment).sum(1)
    # The original keeps this fraction in single precision, which decides between equally far points.
    fraction = along.astype(np.float32) / np.where(length == 0, 1, length).astype(np.float32)
    foot = start + fraction.astype(np.float64)[:, None] * segment
    foot = np.where((along >= length)[:, None], end, foot)
    foot = np.where((along <= 0)[:, None], start, foot)
    return ((point - foot) ** 2).sum(1)


def _cut(loop: np.ndarray) -> np.ndarray:
    """Cuts segments longer than the spacing into equal parts."""
    pieces = [loop[:1]]
    for start, end in itertools.pairwise(loop):
        step = end - start
        parts = max(1, int(np.ceil(np.sqrt((step * step).sum()) / _SPACING)))
        # Added up and not multiplied, as the original does: rounding decides on which side of an axis a point lies.
        steps = np.vstack([start, np.broadcast_to(step / parts, (parts - 1, 2))])
        pieces += [np.cumsum(steps, axis=0)[1:], end[None]]
    return np.concatenate(pieces)
