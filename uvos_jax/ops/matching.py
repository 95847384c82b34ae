"""Matching of pixel embeddings by distance per object: global (whole references) and local (windows).

Sec. 3.2 of CFBI (Yang et al., ECCV 2020). Squared distances become values by ``2 sigmoid(|p - q|^2 + bias) - 1``, and
each pixel keeps the minimum over the pixels of each object. At 480x854 and stride 4 a frame has 25,000 pixels, and the
distance matrix of two frames takes 2.6 GB; neither that matrix nor a copy per object is ever stored.

All functions take a single example; use ``jax.vmap`` for a batch. Objects are numbered 0 (background) to ``objects -
1``; a label outside that range belongs to no object.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.ops.resize import resize_bilinear, resize_nearest

FAR = 5e4  # squared distance to an absent object, as published
_EPSILON = 1e-5  # added to pixel counts, as published


@flax.struct.dataclass
class ObjectTiles:
    """Reference pixels in tiles of one object each, so that one minimum serves a whole tile.

    Attributes:
        keys: ``[tiles, rows, c]`` float, zeros in unused rows.
        norms: ``[tiles, rows]`` float32, squared lengths of the keys; infinity in unused rows.
        source: ``[tiles, rows]`` int32, the index of the original pixel; -1 in unused rows.
        owner: ``[tiles]`` int32, the object.
        used: int32, the number of non-empty tiles; the others come last.
    """

    keys: jax.Array
    norms: jax.Array
    source: jax.Array
    owner: jax.Array
    used: jax.Array


def match_value(distance: jax.Array, bias: jax.Array) -> jax.Array:
    """Maps squared distances, with the learned bias of their object, to match values (Eq. 1 and 2).

    Args:
        distance: Any shape, float32.
        bias: A shape that broadcasts to it.

    Returns:
        ``2 sigmoid(distance + bias) - 1``; at bias 0 from 0 for equal pixels to 1.
    """
    return 2 * jax.nn.sigmoid(distance + bias) - 1


def group_by_object(keys: jax.Array, labels: jax.Array, objects: int, tile: int = 1024) -> ObjectTiles:
    """Sorts reference pixels by object, once for all query pixels.

    Args:
        keys: ``[k, c]`` float.
        labels: ``[k]`` int; pixels of no object are left out.
        objects: Number of objects including the background.
        tile: Pixels per tile.

    Returns:
        ``ceil(k / tile) + objects`` tiles for any object sizes.
    """
    labels = jnp.where((labels >= 0) & (labels < objects), labels, objects).astype(jnp.int32)
    order = jnp.argsort(labels, stable=True).astype(jnp.int32)
    counts = jnp.bincount(labels, length=objects + 1)
    wanted = -(-counts[:objects] // tile)  # tiles of each object
    tiles = -(-labels.shape[0] // tile) + objects
    # An object's pixels start at a tile boundary; pixels of no object get an index past the end and are dropped.
    first = jnp.append((jnp.cumsum(wanted) - wanted) * tile, tiles * tile)
    rank = jnp.arange(labels.shape[0]) - (jnp.cumsum(counts) - counts)[labels[order]]
    row = first[labels[order]] + rank
    rows = jnp.asarray(keys)[order]

    def scatter(empty, values):
        return empty.at[row].set(values, mode="drop").reshape(tiles, tile, *values.shape[1:])

    owner = jnp.searchsorted(jnp.cumsum(wanted), jnp.arange(tiles), side="right")
    return ObjectTiles(scatter(jnp.zeros((tiles * tile, rows.shape[1]), rows.dtype), rows),
                       scatter(jnp.full(tiles * tile, jnp.inf), _norms(rows)),
                       scatter(jnp.full(tiles * tile, -1, jnp.int32), order),
                       jnp.minimum(owner, objects - 1).astype(jnp.int32), wanted.sum().astype(jnp.int32))


def nearest_distance(query: jax.Array, reference: ObjectTiles, objects: int, tile: int = 1024) -> jax.Array:
    """Computes the squared distance of every pixel to the nearest reference pixel of each object (Eq. 3).

    One pass over the distances, tile by tile. The work grows with the number of reference pixels, not of objects; empty
    tiles are not visited. It has no gradient; see :func:`global_distance`.

    Embeddings in bfloat16 are multiplied as such and summed in float32, without further rounding.

    Args:
        query: ``[n, c]`` float, dtype of the keys.
        reference: Tiles from :func:`group_by_object`.
        objects: Number of objects including the background.
        tile: Query pixels processed at a time.

    Returns:
        ``[n, objects]`` float32, ``FAR`` for an object without pixels.
    """
    def update(best, score, i):
        return best.at[reference.owner[i]].min(score.min(-1))

    query = jnp.asarray(query)
    best = _search(query, reference, tile, lambda rows: jnp.full((objects, rows), jnp.inf), update)
    return jnp.where(jnp.isinf(best), FAR, jnp.maximum(best + _norms(query)[:, None], 0))


def global_distance_no_grad(query: jax.Array, keys: jax.Array, labels: jax.Array, objects: int) -> jax.Array:
    """Computes :func:`global_distance` faster, without a gradient."""
    return nearest_distance(query, group_by_object(keys, labels, objects), objects)


def global_distance(query: jax.Array, keys: jax.Array, labels: jax.Array, objects: int, tile: int = 1024) -> jax.Array:
    """Computes :func:`nearest_distance` from plain reference pixels with a gradient, for training.

    The search itself is not differentiable; the distances to the pixels it finds are computed again, so the gradient
    reaches the one nearest pixel of each object, as with PyTorch's ``min``.

    Args:
        query: ``[n, c]`` float.
        keys: ``[k, c]`` float.
        labels: ``[k]`` int.
        objects: Number of objects including the background.
        tile: Query and reference pixels processed at a time.

    Returns:
        ``[n, objects]`` float32.
    """
    query, keys = jnp.asarray(query, jnp.float32), jnp.asarray(keys, jnp.float32)
    reference = group_by_object(lax.stop_gradient(keys), labels, objects, tile)

    def update(best, score, i):
        distance, index = best
        o, at = reference.owner[i], score.argmin(-1)
        least = jnp.take_along_axis(score, at[:, None], 1)[:, 0]
        better = least < distance[o]
        return (distance.at[o].set(jnp.where(better, least, distance[o])),
                index.at[o].set(jnp.where(better, reference.source[i][at], index[o])))

    def start(rows):
        return jnp.full((objects, rows), jnp.inf), jnp.full((objects, rows), -1, jnp.int32)

    _, index = _search(lax.stop_gradient(query), reference, tile, start, update)
    distance = jnp.square(query[:, None] - keys[jnp.maximum(index, 0)]).sum(-1)
    return jnp.where(index >= 0, distance, FAR)


def _norms(x):
    return jnp.square(x.astype(jnp.float32)).sum(-1)


def _search(query, reference, tile, start, update):
    """Passes ``update`` the distances of each tile of queries to each reference tile.

    The queries' squared lengths are left out of the distances. ``start(rows)`` and ``update(best, score [rows,
    reference rows], index of the reference tile)`` are pytrees of ``[objects, rows]``; the leaves of the result are
    ``[n, objects]``.
    """
    n, c = query.shape
    count = -(-n // tile)
    rows = -(-n // count)

    def one_tile(q):
        def one(i, best):
            dots = jnp.dot(q, reference.keys[i].T, precision=lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
                           preferred_element_type=jnp.float32)
            return update(best, reference.norms[i] - 2 * dots, i)

        return lax.fori_loop(0, reference.used, one, start(rows))

    best = lax.map(one_tile, jnp.pad(query, ((0, count * rows - n), (0, 0))).reshape(count, rows, c))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2).reshape(count * rows, -1)[:n], best)


def local_distance(query: jax.Array, previous: jax.Array, labels: jax.Array, objects: int, windows: tuple[int, ...],
                   used: jax.Array | None = None) -> jax.Array:
    """Computes the squared distance of every pixel to the nearest pixel of each object within windows.

    One pass over the largest window, row by row; the smaller ones are its central part.

    Args:
        query: ``[h, w, c]`` float.
        previous: ``[h, w, c]`` float, the other frame.
        labels: ``[h, w]`` int, of the other frame.
        objects: Number of objects including the background.
        windows: Radius of each window in pixels.
        used: int32; only objects below it are searched, the others get ``FAR``. It excludes a gradient.

    Returns:
        ``[h, w, objects, len(windows)]`` float32, ``FAR`` for an object without a pixel in the window.
    """
    h, w, _ = query.shape
    r = max(windows)
    query = jnp.asarray(query, jnp.float32)
    previous = jnp.pad(jnp.asarray(previous, jnp.float32), ((r, r), (0, 0), (0, 0)))
    norms = jnp.square(previous).sum(-1)
    labels = jnp.pad(jnp.asarray(labels, jnp.int32), r, constant_values=-1)

    @jax.checkpoint
    def one_row(y):
        q = query[y]
        rows, row_norms = (lax.dynamic_slice_in_dim(x, y, 2 * r + 1) for x in (previous, norms))
        dots = jnp.einsum("dkc,xc->dxk", rows, q, precision=lax.Precision.HIGHEST)
        distance = _diagonals(jnp.square(q).sum(-1)[:, None] + row_norms[:, None] - 2 * dots, r)
        near = lax.dynamic_slice_in_dim(labels, y, 2 * r + 1)
        near = jnp.stack([near[:, i:i + w] for i in range(2 * r + 1)], 1)  # [dy, dx, x]

        def least(o):
            return _least(jnp.where(near == o, distance, FAR), windows)

        if used is None:
            return jnp.stack([least(o) for o in range(objects)])
        return lax.fori_loop(0, used, lambda o, out: out.at[o].set(least(o)), jnp.full((objects, len(windows), w), FAR))

    least = lax.map(one_row, jnp.arange(h))  # [h, objects, windows, w]
    return jnp.maximum(jnp.moveaxis(least, 3, 1), 0)


def local_distance_at_half_size(query: jax.Array, previous: jax.Array, labels: jax.Array, objects: int,
                                windows: tuple[int, ...], used: jax.Array | None = None, *,
                                align_corners: bool = False) -> jax.Array:
    """Computes :func:`local_distance` of frames at half their size, as in the published code.

    Args:
        query: ``[h, w, c]`` float; resized with aligned corners.
        previous: ``[h, w, c]`` float, the other frame; resized with aligned corners.
        labels: ``[h, w]`` int, of the other frame.
        objects: Number of objects including the background.
        windows: Radius of each window in pixels of the half size.
        used: See :func:`local_distance`.
        align_corners: How labels are resized; see ``resize_nearest``.

    Returns:
        ``[h // 2 + 1, w // 2 + 1, objects, len(windows)]`` float32.
    """
    half = tuple(n // 2 + 1 for n in labels.shape)
    small = [resize_bilinear(x.astype(jnp.float32), half, align_corners=True) for x in (query, previous)]
    labels = resize_nearest(labels[..., None], half, align_corners=align_corners)[..., 0]
    return local_distance(*small, labels, objects, windows, used)


def _diagonals(x, r):
    """Gathers for every ``x`` the ``k`` from ``x - r`` to ``x + r``: ``[d, x, k] -> [d, 2 r + 1, x]``.

    Values outside the image are zeros.
    """
    d, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (r, r))).reshape(d, -1)
    # Reshaping to rows one element longer shifts each row one position further.
    x = jnp.pad(x, ((0, 0), (0, w))).reshape(d, w, w + 2 * r + 1)
    return jnp.swapaxes(x[..., :2 * r + 1], 1, 2)


def _least(x, windows):
    """Computes minima over the central part of each window size.

    The shapes are ``[2 r + 1, 2 r + 1, w] -> [len(windows), w]``.
    """
    r = x.shape[0] // 2
    return jnp.stack([x[r - n:r + n + 1, r - n:r + n + 1].min((0, 1)) for n in windows])


def background_value(values: jax.Array, ids: jax.Array) -> jax.Array:
    """Computes for each object the minimum of the values of all others, its background match.

    Args:
        values: ``[..., objects, k]``.
        ids: ``[objects]`` bool, which objects exist.

    Returns:
        The same shape; with a single object its own values, as published.
    """
    present = jnp.where(ids[:, None], values, jnp.inf)
    objects = values.shape[-2]
    least = present.min(-2, keepdims=True)
    at = present.argmin(-2, keepdims=True)
    own = jnp.arange(objects)[:, None] == at
    second = jnp.where(own, jnp.inf, present).min(-2, keepdims=True)
    others = jnp.where(own, second, least)
    return jnp.where(ids.sum() > 1, others, values)


def object_means(x: jax.Array, labels: jax.Array, objects: int) -> jax.Array:
    """Computes the mean embedding of each object's pixels and of all other pixels (Sec. 3.4).

    Args:
        x: ``[n, c]`` float.
        labels: ``[n]`` int.
        objects: Number of objects including the background.

    Returns:
        ``[objects, 2 c]`` float32, own mean and mean of the others; zeros for the mean of no pixels.
    """
    own = jax.nn.one_hot(labels, objects)
    sums = jnp.dot(own.T, jnp.asarray(x, jnp.float32), precision=lax.Precision.HIGHEST)
    counts = own.sum(0)[:, None]
    return jnp.concatenate([sums / (counts + _EPSILON), (sums.sum(0) - sums) / (counts.sum() - counts + _EPSILON)], -1)
