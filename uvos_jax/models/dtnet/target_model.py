"""T-Net's target models: what each followed object looks like, learned while the video runs.

Sec. 3.2 of the D-Net and T-Net paper takes the target model of FRTM (Robinson et al., CVPR 2020): a 1x1 convolution
from c to d channels, then a 3x3 one to a single score, with no bias and nothing between them. Both are fitted to the
object's first samples, later the second one alone to a memory of weighted samples. What is minimized is

  sum over samples a_j |w_j (U s_j - y_j)|^2 / 2 + |1e-4 P|^2 / 2 + |1e-2 F|^2 / 2

with scores s, labels y at the frame's size, pixel weights w from the labels, and the bilinear resizing U.

The published code resizes scores at every step. Here U and w are worked into what the minimizer needs of a label: U
reads two neighbors in each direction, so ``U' w^2 U`` couples a feature pixel with its eight neighbors only, and
nine small maps (``normal``) and ``U' w^2 y`` (``pull``) say all there is to say of a label, in a sixth of its bytes.
The layers are linear too, so from c channels a product with ``P F`` leads straight to nine maps, one for each tap.
Both forms are exact; what differs from the published code is rounding.

All functions are pure, of fixed shapes, and indifferent to how many targets there are: whoever compiles them should
donate ``targets``, whose memory is large.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.nn.layers import torch_default
from uvos_jax.ops.gauss_newton import gauss_newton
from uvos_jax.ops.resize import resize_matrix

FEWEST = 10  # foreground pixels of a label: one with fewer teaches nothing
_BALANCE = 0.1  # share of the pixel weights that foreground has at least
_RATE = 0.1  # of learning: weights fall by 0.9 with each sample that follows
# Of the first and the second layer. FRTM regularises and preconditions with the same numbers.
_SCALES = (1e-4, 1e-2)
# Conjugate gradients of each Gauss-Newton step: of both layers at the start, of the second one alone ever after.
_BOTH = (5, 10, 10, 10, 10)
_SECOND = (10,)


@flax.struct.dataclass
class Targets:
    """The targets of a video, s places for them.

    Attributes:
      project: ``[s, c, d]`` float32, first layer.
      filter: ``[s, 3, 3, d, 1]`` float32, second layer.
      samples: ``[s, m, h, w, d]`` float32, memory: features after the first layer.
      normal: ``[s, m, h, w, 9]`` float32, what the samples' pixel weights amount to: see ``normal_equations``.
      pull: ``[s, m, h, w]`` float32, what their labels amount to.
      weights: ``[s, m]`` float32, of the samples, of sum 1; 0 where there is none.
      newest: ``[s]`` float32, weight that the last remembered sample would have if nothing was doubled; 0 as long as
        there are only those of the start.
      alive: ``[s]`` bool, whether the place is taken.
    """

    project: jax.Array
    filter: jax.Array
    samples: jax.Array
    normal: jax.Array
    pull: jax.Array
    weights: jax.Array
    newest: jax.Array
    alive: jax.Array


def empty_targets(slots: int, memory: int, feature_shape: tuple[int, int, int], channels: int) -> Targets:
    """Places without targets.

    Args:
      slots: s, places.
      memory: m, samples that are kept of each target (FRTM: 80).
      feature_shape: (h, w, c) of the features.
      channels: d, between the two layers (FRTM: 96).
    """
    h, w, c = feature_shape
    zeros = jnp.zeros
    return Targets(
        project=zeros((slots, c, channels)), filter=zeros((slots, 3, 3, channels, 1)),
        samples=zeros((slots, memory, h, w, channels)), normal=zeros((slots, memory, h, w, 9)),
        pull=zeros((slots, memory, h, w)), weights=zeros((slots, memory)), newest=zeros(slots),
        alive=zeros(slots, bool))


def start_target(targets: Targets, slot: jax.Array, features: jax.Array, labels: jax.Array, key: jax.Array) -> Targets:
    """Puts a new target into a place, whatever was there before.

    FRTM's initialization: both layers from random numbers by five Gauss-Newton steps on the samples, then the second
    layer alone, as ``update_targets`` does. Five steps from chance are chaotic in float32: another order of summation
    ends at other layers that are as good.

    Args:
      targets: of the video.
      slot: int32, the place.
      features: ``[k, h, w, c]`` float of k samples, at most as many as the memory holds; the first is the frame itself
        and counts twice.
      labels: ``[k, H, W]`` of any size, uint8 where 255 is certain, or float in 0..1.
      key: PRNG key of the layers.
    """
    count = len(features)
    if count > targets.weights.shape[1]:
        raise ValueError(f"{count} samples do not fit into a memory of {targets.weights.shape[1]}")
    first, second = jax.random.split(key)
    features = features.astype(jnp.float32)
    normal, pull = normal_equations(labels, features.shape[1:3])
    weights = jnp.ones(count).at[0].add(1) / (count + 1)
    project, kernel = fit_layers(features, normal, pull, weights,
                                 torch_default(first, targets.project.shape[1:], jnp.float32),
                                 torch_default(second, targets.filter.shape[1:], jnp.float32))
    samples = _project(features, project)
    kernel = fit_filter(samples, normal, pull, weights, kernel)
    return Targets(
        project=targets.project.at[slot].set(project), filter=targets.filter.at[slot].set(kernel),
        samples=targets.samples.at[slot, :count].set(samples), normal=targets.normal.at[slot, :count].set(normal),
        pull=targets.pull.at[slot, :count].set(pull),
        weights=targets.weights.at[slot].set(jnp.zeros_like(targets.weights[0]).at[:count].set(weights)),
        newest=targets.newest.at[slot].set(0), alive=targets.alive.at[slot].set(True))


def score_targets(targets: Targets, features: jax.Array) -> jax.Array:
    """How much every pixel looks like each target.

    Args:
      targets: of the video.
      features: ``[h, w, c]`` float of a frame.

    Returns:
      ``[s, h, w]`` float32: about 1 on a target and 0 elsewhere, but not bounded; 0 where there is no target.
    """
    taps = jax.vmap(_taps)(targets.filter, targets.project)
    maps = jnp.einsum("hwc,snc->shwn", features.astype(jnp.float32), taps, precision="highest")
    return jnp.where(targets.alive[:, None, None], _gathered(maps), 0)


def remember(targets: Targets, features: jax.Array, labels: jax.Array, due: jax.Array, doubled: jax.Array) -> Targets:
    """Adds a frame to the memories of some targets, in place of their least weighted samples.

    The paper's weights ``a_j = a_{j-1} / (1 - g)``, ``a_0 = g``, brought to a sum of 1, as FRTM's published code
    computes them. Ours: g is FRTM's 0.1, and a doubled weight is not what the next one is reckoned from, since the
    doublings of a target that is verified again and again would let the last frames outweigh all others.

    Args:
      targets: of the video.
      features: ``[h, w, c]`` float of the frame.
      labels: ``[s, H, W]`` of any size, uint8 where 255 is certain, or float in 0..1.
      due: ``[s]`` bool, which targets. As published, those without ``FEWEST`` pixels of foreground stay as they are.
      doubled: ``[s]`` bool, whose sample counts twice.
    """
    s, m = targets.weights.shape
    due = due & targets.alive & (_foreground(labels).sum((1, 2)) >= FEWEST)
    features = features.astype(jnp.float32)[None]

    def prepare(each):
        due, project, label = each
        shapes = [jax.ShapeDtypeStruct(x.shape[2:], x.dtype) for x in (targets.samples, targets.normal, targets.pull)]
        return lax.cond(due,
                        lambda: tuple(x[0] for x in (_project(features, project),
                                                     *normal_equations(label[None], features.shape[1:3]))),
                        lambda: tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes))

    # One after the other, so that those which are not due cost nothing.
    sample, normal, pull = lax.map(prepare, (due, targets.project, labels))
    place = targets.weights.argmin(1)
    fresh = targets.newest == 0
    newest = jnp.where(fresh, _RATE, targets.newest / (1 - _RATE))
    weights = jnp.where(fresh[:, None], targets.weights / (1 - _RATE), targets.weights)
    weights = jnp.where(jnp.arange(m) == place[:, None], (newest * jnp.where(doubled, 2, 1))[:, None], weights)
    total = weights.sum(1)
    at = (jnp.where(due, jnp.arange(s), s), place)

    def put(memory, new):
        return memory.at[at].set(new, mode="drop")

    return targets.replace(
        samples=put(targets.samples, sample), normal=put(targets.normal, normal), pull=put(targets.pull, pull),
        weights=jnp.where(due[:, None], weights / total[:, None], targets.weights),
        newest=jnp.where(due, newest / total, targets.newest))


def update_targets(targets: Targets, slots: jax.Array, valid: jax.Array) -> Targets:
    """Fits the second layer of some targets to their memories, beginning from what it is.

    Args:
      targets: of the video.
      slots: ``[k]`` int32, places, those of valid entries all different.
      valid: ``[k]`` bool; the other entries, and those of places without a target, change nothing, but cost as much.
    """
    fitted = jax.vmap(fit_filter)(*(x[slots] for x in (targets.samples, targets.normal, targets.pull, targets.weights,
                                                        targets.filter)))
    place = jnp.where(valid & targets.alive[slots], slots, len(targets.alive))
    return targets.replace(filter=targets.filter.at[place].set(fitted, mode="drop"))


def merge_scores(scores: jax.Array, alive: jax.Array) -> jax.Array:
    """Makes the scores of targets compete with each other and with the background.

    FRTM's soft aggregation: the background is what the strongest target leaves, and a softmax runs over the odds. The
    paper does not say how a coarse score becomes a mask; ours: scores are cut to 0..1 and read as probabilities.

    Args:
      scores: ``[s, H, W]`` float.
      alive: ``[s]`` bool, which of them take part.

    Returns:
      ``[s + 1, H, W]`` float32 probabilities, the background first; 0 of those that take no part. The likeliest is a
      target exactly where one scores above 0.5.
    """
    tiny = 1e-7
    alive = alive[:, None, None]
    scores = jnp.clip(jnp.where(alive, scores.astype(jnp.float32), 0), tiny, 1 - tiny)
    chances = jnp.concatenate([1 - scores.max(0, keepdims=True), scores])
    odds = chances / (1 - chances)
    return jax.nn.softmax(jnp.where(jnp.pad(alive, ((1, 0), (0, 0), (0, 0)), constant_values=True), odds, -jnp.inf), 0)


def pixel_weights(labels: jax.Array) -> jax.Array:
    """FRTM's ``hinge`` weights, by which small objects count as if they filled a tenth of the frame.

    Args:
      labels: ``[k, H, W]``, uint8 where 255 is certain, or float in 0..1.

    Returns:
      ``[k, H, W]`` float32, of a weight for foreground and one for background, whose squares have the mean 1; all 1
      for a label with fewer than ``FEWEST`` pixels of foreground.
    """
    mask = _foreground(labels)
    count = mask.sum((1, 2), keepdims=True)
    share = jnp.where(count < FEWEST, _BALANCE, count / mask[0].size)
    wanted = jnp.maximum(share, _BALANCE)
    rest = jnp.where(share < 1, (1 - wanted) / jnp.where(share < 1, 1 - share, 1), 0)
    return jnp.sqrt(jnp.where(mask, wanted / share, rest))


def normal_equations(labels: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """What the minimizer needs of labels: ``A = U' w^2 U`` and ``b = U' w^2 y``, see the module's text.

    Args:
      labels: ``[k, H, W]``, uint8 where 255 is certain, or float in 0..1.
      size: (h, w) of the scores, which U resizes to the labels' size with half-pixel centers.

    Returns:
      ``[k, h, w, 9]`` float32, by which a pixel's 3x3 neighbors are multiplied, row by row; and ``[k, h, w]``.
    """
    y = labels.astype(jnp.float32) / (255 if labels.dtype == jnp.uint8 else 1)
    squares = jnp.square(pixel_weights(labels))
    rows, columns = (resize_matrix(n_in, n_out, "bilinear", align_corners=False)
                     for n_in, n_out in zip(size, labels.shape[1:], strict=True))
    # What a pixel and its neighbor before, itself, its neighbor behind contribute to each resized pixel together.
    pairs = [jnp.stack([matrix * jnp.pad(matrix, ((0, 0), (1, 1)))[:, i:i + matrix.shape[1]] for i in range(3)])
             for matrix in (rows, columns)]
    normal = jnp.einsum("iyh,kyx,jxw->khwij", pairs[0], squares, pairs[1], precision="highest")
    pull = jnp.einsum("yh,kyx,xw->khw", rows, squares * y, columns, precision="highest")
    return normal.reshape(*normal.shape[:3], 9), pull


def fit_layers(features: jax.Array, normal: jax.Array, pull: jax.Array, weights: jax.Array, project: jax.Array,
               kernel: jax.Array, iterations: tuple[int, ...] = _BOTH) -> tuple[jax.Array, jax.Array]:
    """Fits both layers of one target to samples.

    Args:
      features: ``[k, h, w, c]`` float32.
      normal: ``[k, h, w, 9]`` of the samples.
      pull: ``[k, h, w]`` of the samples.
      weights: ``[k]`` of the samples.
      project: ``[c, d]`` to begin with.
      kernel: ``[3, 3, d, 1]`` to begin with.
      iterations: conjugate gradients of each Gauss-Newton step.

    Returns:
      ``project`` and ``kernel``, fitted.
    """
    def outputs(layers):
        return _scores(features, _taps(layers[1], layers[0])), *layers

    return gauss_newton(outputs, (project, kernel), iterations, _SCALES, _slope(normal, pull, weights, _SCALES))


def fit_filter(samples: jax.Array, normal: jax.Array, pull: jax.Array, weights: jax.Array, kernel: jax.Array
               ) -> jax.Array:
    """Fits the second layer of one target to its memory; arguments as of ``fit_layers``, samples ``[m, h, w, d]``."""
    return gauss_newton(lambda layers: (_scores(samples, _taps(layers[0])), *layers), (kernel,), _SECOND,
                        _SCALES[1:], _slope(normal, pull, weights, _SCALES[1:]))[0]


def _slope(normal, pull, weights, scales):
    """The gradient of what is minimized with respect to (scores, *layers)."""
    def slope(outputs):
        scores, *layers = outputs
        around = jnp.stack(_shifted(jnp.broadcast_to(scores[..., None], normal.shape)), -1)
        left = weights[:, None, None] * ((normal * around).sum(-1) - pull)
        return left, *(scale**2 * layer for scale, layer in zip(scales, layers, strict=True))

    return slope


def _scores(x, taps):
    """``[k, h, w, c]`` by ``[9, c]`` to ``[k, h, w]``.

    The order of the axes matters: with any other one the product, or its transpose, takes a CPU two to six times as
    long.
    """
    return _gathered(jnp.einsum("khwc,nc->khwn", x, taps, precision="highest"))


def _gathered(maps):
    """What the nine maps ``[..., h, w, 9]`` of a 3x3 kernel's taps add up to."""
    return sum(_shifted(maps))


def _shifted(maps):
    """Of nine maps ``[..., h, w, 9]``, what a pixel sees where each tap of a 3x3 kernel lies; zeros beyond the ends."""
    h, w, _ = maps.shape[-3:]
    maps = jnp.pad(maps, [(0, 0)] * (maps.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    return [maps[..., i:i + h, j:j + w, 3 * i + j] for i in range(3) for j in range(3)]


def _taps(kernel, project=None):
    """A kernel ``[3, 3, d, 1]`` as taps ``[9, d]``, or with the layer ``[c, d]`` before it as ``[9, c]``."""
    taps = kernel.reshape(9, -1)
    return taps if project is None else jnp.einsum("nd,cd->nc", taps, project, precision="highest")


def _project(features, project):
    return jnp.einsum("khwc,cd->khwd", features, project, precision="highest")


def _foreground(labels):
    return labels > (127 if labels.dtype == jnp.uint8 else 0.5)
