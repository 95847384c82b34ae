"""T-Net's target models: the appearance of each tracked object, learned while the video runs.

Sec. 3.2 of the D-Net and T-Net paper uses the target model of FRTM (Robinson et al., CVPR 2020): a 1x1 convolution
from c to d channels, then a 3x3 convolution to a single score, without biases or a nonlinearity between them. Both
layers are fitted to the object's first samples, later the second one alone to a memory of weighted samples. The
objective is

  sum over samples a_j |w_j (U s_j - y_j)|^2 / 2 + |1e-4 P|^2 / 2 + |1e-2 F|^2 / 2

with scores s, labels y at the size of the frame, pixel weights w computed from the labels, the bilinear resizing U, and
the layers P and F.

The published code resizes scores in every iteration. Here U and w are folded into the normal equations of a label: U
reads two neighbors in each direction, so ``U' w^2 U`` couples a feature pixel with its eight neighbors only. Nine small
maps (``normal``) and ``U' w^2 y`` (``rhs``) contain everything that the solver needs of a label, in a sixth of its
bytes. The layers are linear, so a product with ``P F`` maps c channels directly to nine maps, one for each tap. Both
forms are exact; they differ from the published code by rounding.

All functions are pure, have fixed shapes, and do not depend on the number of targets. Donate ``targets`` when compiling
them: its memory is large.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from uvos_jax.nn.layers import torch_default
from uvos_jax.ops.gauss_newton import gauss_newton
from uvos_jax.ops.resize import resize_matrix

FEWEST = 10  # fewest foreground pixels of a label; a label with fewer is ignored
_BALANCE = 0.1  # smallest share of foreground in the pixel weights
_RATE = 0.1  # learning rate: a sample's weight falls by a factor 0.9 with each later sample
# Of the first and the second layer. FRTM uses the same numbers for regularization and preconditioning.
_SCALES = (1e-4, 1e-2)
# Conjugate gradient iterations of each Gauss-Newton step: both layers at the start, the second one in later updates.
_BOTH = (5, 10, 10, 10, 10)
_SECOND = (10,)


@flax.struct.dataclass
class Targets:
    """Target models of a video, in s slots.

    Attributes:
        project: ``[s, c, d]`` float32, first layer.
        filter: ``[s, 3, 3, d, 1]`` float32, second layer.
        samples: ``[s, m, h, w, d]`` float32, memory: features after the first layer.
        normal: ``[s, m, h, w, 9]`` float32, matrix of the samples' normal equations, see ``normal_equations``.
        rhs: ``[s, m, h, w]`` float32, right-hand side of the samples' normal equations.
        weights: ``[s, m]`` float32 weights of the samples, of sum 1; 0 for unused ones.
        newest: ``[s]`` float32, weight of the newest sample without doubling; 0 while only the first samples exist.
        alive: ``[s]`` bool, whether the slot has a target.
    """

    project: jax.Array
    filter: jax.Array
    samples: jax.Array
    normal: jax.Array
    rhs: jax.Array
    weights: jax.Array
    newest: jax.Array
    alive: jax.Array


def empty_targets(slots: int, memory: int, feature_shape: tuple[int, int, int], channels: int) -> Targets:
    """Returns slots without targets.

    Args:
        slots: s, number of slots.
        memory: m, number of samples kept of each target (FRTM: 80).
        feature_shape: (h, w, c) of the features.
        channels: d, channels between the two layers (FRTM: 96).
    """
    h, w, c = feature_shape
    zeros = jnp.zeros
    return Targets(
        project=zeros((slots, c, channels)), filter=zeros((slots, 3, 3, channels, 1)),
        samples=zeros((slots, memory, h, w, channels)), normal=zeros((slots, memory, h, w, 9)),
        rhs=zeros((slots, memory, h, w)), weights=zeros((slots, memory)), newest=zeros(slots),
        alive=zeros(slots, bool))


def start_target(targets: Targets, slot: jax.Array, features: jax.Array, labels: jax.Array, key: jax.Array) -> Targets:
    """Fits a new target model and puts it into a slot, replacing its content.

    FRTM's initialization: random layers, five Gauss-Newton steps on both layers with the samples, then the second layer
    alone, as in ``update_targets``. Five steps from random layers are chaotic in float32: another order of summation
    ends at different layers that fit equally well.

    Args:
        targets: Target models of the video.
        slot: int32.
        features: ``[k, h, w, c]`` float features of k samples, at most as many as the memory holds; the first sample is
            the frame itself and counts twice.
        labels: ``[k, H, W]`` of any size: uint8 with 255 for certain foreground, or float in 0..1.
        key: PRNG key of the layers.

    Raises:
        ValueError: There are more samples than the memory holds.
    """
    count = len(features)
    if count > targets.weights.shape[1]:
        raise ValueError(f"{count} samples do not fit into a memory of {targets.weights.shape[1]}. Increase memory.")
    first, second = jax.random.split(key)
    features = features.astype(jnp.float32)
    normal, rhs = normal_equations(labels, features.shape[1:3])
    weights = jnp.ones(count).at[0].add(1) / (count + 1)
    project, kernel = fit_layers(features, normal, rhs, weights,
                                 torch_default(first, targets.project.shape[1:], jnp.float32),
                                 torch_default(second, targets.filter.shape[1:], jnp.float32))
    samples = _project(features, project)
    kernel = fit_filter(samples, normal, rhs, weights, kernel)
    return Targets(
        project=targets.project.at[slot].set(project), filter=targets.filter.at[slot].set(kernel),
        samples=targets.samples.at[slot, :count].set(samples), normal=targets.normal.at[slot, :count].set(normal),
        rhs=targets.rhs.at[slot, :count].set(rhs),
        weights=targets.weights.at[slot].set(jnp.zeros_like(targets.weights[0]).at[:count].set(weights)),
        newest=targets.newest.at[slot].set(0), alive=targets.alive.at[slot].set(True))


def score_targets(targets: Targets, features: jax.Array) -> jax.Array:
    """Scores every pixel of a frame for each target.

    Args:
        targets: Target models of the video.
        features: ``[h, w, c]`` float features of the frame.

    Returns:
        ``[s, h, w]`` float32: about 1 on a target and 0 elsewhere, but not bounded; 0 in slots without a target.
    """
    taps = jax.vmap(_taps)(targets.filter, targets.project)
    maps = jnp.einsum("hwc,snc->shwn", features.astype(jnp.float32), taps, precision="highest")
    return jnp.where(targets.alive[:, None, None], _sum_of_taps(maps), 0)


def add_sample(targets: Targets, features: jax.Array, labels: jax.Array, due: jax.Array, doubled: jax.Array) -> Targets:
    """Adds a frame to the memories of some targets, in place of their samples with the lowest weight.

    The paper's weights are ``a_j = a_{j-1} / (1 - g)``, ``a_0 = g``, normalized to a sum of 1, as FRTM's published code
    computes them. Ours: g is FRTM's 0.1, and the next weight is computed from the weight without doubling, since
    repeated doubling of a target that is verified in every frame would let the last frames outweigh all others.

    Args:
        targets: Target models of the video.
        features: ``[h, w, c]`` float features of the frame.
        labels: ``[s, H, W]`` of any size: uint8 with 255 for certain foreground, or float in 0..1.
        due: ``[s]`` bool, which targets get the sample. As published, labels with less than ``FEWEST`` foreground
            pixels are ignored.
        doubled: ``[s]`` bool, whose sample counts twice.
    """
    s, m = targets.weights.shape
    due = due & targets.alive & (_foreground(labels).sum((1, 2)) >= FEWEST)
    features = features.astype(jnp.float32)[None]

    def prepare(target):
        due, project, label = target
        shapes = [jax.ShapeDtypeStruct(x.shape[2:], x.dtype) for x in (targets.samples, targets.normal, targets.rhs)]
        return lax.cond(due,
                        lambda: tuple(x[0] for x in (_project(features, project),
                                                     *normal_equations(label[None], features.shape[1:3]))),
                        lambda: tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes))

    # One after the other, so that targets which are not due cost nothing.
    sample, normal, rhs = lax.map(prepare, (due, targets.project, labels))
    index = targets.weights.argmin(1)
    is_first = targets.newest == 0
    newest = jnp.where(is_first, _RATE, targets.newest / (1 - _RATE))
    weights = jnp.where(is_first[:, None], targets.weights / (1 - _RATE), targets.weights)
    weights = jnp.where(jnp.arange(m) == index[:, None], (newest * jnp.where(doubled, 2, 1))[:, None], weights)
    total = weights.sum(1)
    entry = (jnp.where(due, jnp.arange(s), s), index)

    def write(memory, new):
        return memory.at[entry].set(new, mode="drop")

    return targets.replace(
        samples=write(targets.samples, sample), normal=write(targets.normal, normal), rhs=write(targets.rhs, rhs),
        weights=jnp.where(due[:, None], weights / total[:, None], targets.weights),
        newest=jnp.where(due, newest / total, targets.newest))


def update_targets(targets: Targets, slots: jax.Array, valid: jax.Array) -> Targets:
    """Fits the second layer of some targets to their memories, starting from its current value.

    Args:
        targets: Target models of the video.
        slots: ``[k]`` int32; valid entries are all different.
        valid: ``[k]`` bool; invalid entries and slots without a target change nothing, but cost the same time.
    """
    fitted = jax.vmap(fit_filter)(*(x[slots] for x in (targets.samples, targets.normal, targets.rhs, targets.weights,
                                                        targets.filter)))
    index = jnp.where(valid & targets.alive[slots], slots, len(targets.alive))
    return targets.replace(filter=targets.filter.at[index].set(fitted, mode="drop"))


def merge_scores(scores: jax.Array, alive: jax.Array) -> jax.Array:
    """Merges the scores of all targets and the background into probabilities.

    FRTM's soft aggregation: the background's probability is one minus that of the strongest target, and a softmax runs
    over the odds. The paper does not say how a coarse score becomes a mask; ours: scores are clipped to 0..1 and used
    as probabilities.

    Args:
        scores: ``[s, H, W]`` float.
        alive: ``[s]`` bool, which slots have a target.

    Returns:
        ``[s + 1, H, W]`` float32 probabilities, background first; 0 for slots without a target. The most probable is a
        target exactly where one scores above 0.5.
    """
    tiny = 1e-7
    alive = alive[:, None, None]
    scores = jnp.clip(jnp.where(alive, scores.astype(jnp.float32), 0), tiny, 1 - tiny)
    probabilities = jnp.concatenate([1 - scores.max(0, keepdims=True), scores])
    odds = probabilities / (1 - probabilities)
    return jax.nn.softmax(jnp.where(jnp.pad(alive, ((1, 0), (0, 0), (0, 0)), constant_values=True), odds, -jnp.inf), 0)


def pixel_weights(labels: jax.Array) -> jax.Array:
    """Returns FRTM's ``hinge`` weights, which give foreground at least a tenth of the total weight.

    Args:
        labels: ``[k, H, W]``: uint8 with 255 for certain foreground, or float in 0..1.

    Returns:
        ``[k, H, W]`` float32: one weight for foreground and one for background, whose squares have the mean 1; all 1
        for a label with less than ``FEWEST`` foreground pixels.
    """
    mask = _foreground(labels)
    count = mask.sum((1, 2), keepdims=True)
    share = jnp.where(count < FEWEST, _BALANCE, count / mask[0].size)
    wanted = jnp.maximum(share, _BALANCE)
    background = jnp.where(share < 1, (1 - wanted) / jnp.where(share < 1, 1 - share, 1), 0)
    return jnp.sqrt(jnp.where(mask, wanted / share, background))


def normal_equations(labels: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Returns the normal equations of labels: ``A = U' w^2 U`` and ``b = U' w^2 y``, see the module's docstring.

    Args:
        labels: ``[k, H, W]``: uint8 with 255 for certain foreground, or float in 0..1.
        size: (h, w) of the scores, which U resizes to the size of the labels with half-pixel centers.

    Returns:
        A as ``[k, h, w, 9]`` float32, the factors of a pixel's 3x3 neighbors, row by row; and b as ``[k, h, w]``.
    """
    y = labels.astype(jnp.float32) / (255 if labels.dtype == jnp.uint8 else 1)
    squares = jnp.square(pixel_weights(labels))
    rows, columns = (resize_matrix(n_in, n_out, "bilinear", align_corners=False)
                     for n_in, n_out in zip(size, labels.shape[1:], strict=True))
    # Joint contribution to each resized pixel of a pixel and, in turn, its neighbor before, itself, its neighbor after.
    pairs = [jnp.stack([matrix * jnp.pad(matrix, ((0, 0), (1, 1)))[:, i:i + matrix.shape[1]] for i in range(3)])
             for matrix in (rows, columns)]
    normal = jnp.einsum("iyh,kyx,jxw->khwij", pairs[0], squares, pairs[1], precision="highest")
    rhs = jnp.einsum("yh,kyx,xw->khw", rows, squares * y, columns, precision="highest")
    return normal.reshape(*normal.shape[:3], 9), rhs


def fit_layers(features: jax.Array, normal: jax.Array, rhs: jax.Array, weights: jax.Array, project: jax.Array,
               kernel: jax.Array, iterations: tuple[int, ...] = _BOTH) -> tuple[jax.Array, jax.Array]:
    """Fits both layers of one target to samples.

    Args:
        features: ``[k, h, w, c]`` float32.
        normal: ``[k, h, w, 9]`` of the samples, see ``normal_equations``.
        rhs: ``[k, h, w]`` of the samples.
        weights: ``[k]`` of the samples.
        project: ``[c, d]`` initial first layer.
        kernel: ``[3, 3, d, 1]`` initial second layer.
        iterations: Conjugate gradient iterations of each Gauss-Newton step.

    Returns:
        ``project`` and ``kernel``, fitted.
    """
    def outputs(layers):
        return _scores(features, _taps(layers[1], layers[0])), *layers

    return gauss_newton(outputs, (project, kernel), iterations, _SCALES, _gradient(normal, rhs, weights, _SCALES))


def fit_filter(samples: jax.Array, normal: jax.Array, rhs: jax.Array, weights: jax.Array, kernel: jax.Array
               ) -> jax.Array:
    """Fits the second layer of one target to its memory; arguments as of ``fit_layers``, samples ``[m, h, w, d]``."""
    return gauss_newton(lambda layers: (_scores(samples, _taps(layers[0])), *layers), (kernel,), _SECOND,
                        _SCALES[1:], _gradient(normal, rhs, weights, _SCALES[1:]))[0]


def _gradient(normal, rhs, weights, scales):
    """Returns the gradient of the objective with respect to (scores, *layers), as a function of these."""
    def gradient(outputs):
        scores, *layers = outputs
        neighbors = jnp.stack(_shifted(jnp.broadcast_to(scores[..., None], normal.shape)), -1)
        of_scores = weights[:, None, None] * ((normal * neighbors).sum(-1) - rhs)
        return of_scores, *(scale**2 * layer for scale, layer in zip(scales, layers, strict=True))

    return gradient


def _scores(x, taps):
    """``[k, h, w, c]`` by ``[9, c]`` to ``[k, h, w]``.

    The order of the axes matters: with any other one, the product or its transpose takes two to six times as long on a
    CPU.
    """
    return _sum_of_taps(jnp.einsum("khwc,nc->khwn", x, taps, precision="highest"))


def _sum_of_taps(maps):
    """Sums the nine maps ``[..., h, w, 9]`` of a 3x3 kernel's taps, each shifted to its tap."""
    return sum(_shifted(maps))


def _shifted(maps):
    """Shifts each of nine maps ``[..., h, w, 9]`` to its tap of a 3x3 kernel; zeros beyond the borders."""
    h, w, _ = maps.shape[-3:]
    maps = jnp.pad(maps, [(0, 0)] * (maps.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    return [maps[..., i:i + h, j:j + w, 3 * i + j] for i in range(3) for j in range(3)]


def _taps(kernel, project=None):
    """Returns a kernel ``[3, 3, d, 1]`` as taps ``[9, d]``; combined with the first layer ``[c, d]``, ``[9, c]``."""
    taps = kernel.reshape(9, -1)
    return taps if project is None else jnp.einsum("nd,cd->nc", taps, project, precision="highest")


def _project(features, project):
    return jnp.einsum("khwc,cd->khwd", features, project, precision="highest")


def _foreground(labels):
    return labels > (127 if labels.dtype == jnp.uint8 else 0.5)
