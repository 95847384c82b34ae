"""Debug figures of AD-Net: its pixel embeddings over a video (Figures 1, 3 and 10 of the paper)."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.ops.attention import attention_weights
from uvos_jax.ops.preprocess import preprocess
from uvos_jax.ops.resize import resize_nearest
from uvos_jax.video import Source, read_mask

_SAMPLES = 12  # frames, spread over the video
_POINTS = 8  # anchor pixels whose matches are drawn


def check(model: nn.Module) -> None:
    """Raises ``UserError`` for a model without embeddings."""
    if model.net == "base":
        raise UserError("--debug draws AD-Net's pixel embeddings, which this model lacks. Leave it out.")


def write(segmenter: Segmenter, source: Source, results: Path, count: int) -> list[Path]:
    """Draws matches of anchor pixels in a later frame, and the drift of the foreground's mean embedding.

    Encodes twelve frames. Arguments and result are those of ``write_figures``: ``matches.png`` and ``drift.png``.
    """
    wanted = set(np.linspace(0, count - 1, min(count, _SAMPLES)).round().astype(int).tolist())
    frames = [(i, frame) for i, frame in enumerate(source) if i in wanted]
    masks = [read_mask(results / "masks" / f"{frame.name}.png") == 1 for _, frame in frames]
    size = segmenter.model.frame_size(frames[0][1].image.shape[:2])

    @jax.jit
    def embed(variables, image):
        x = preprocess(image[None], size, segmenter.model.preprocess)
        return segmenter.model.apply(variables, {"frame": x}, method="encode")["embed"][0].astype(jnp.float32)

    embeddings = [np.asarray(embed(segmenter.variables, frame.image)) for _, frame in frames]
    folder = results / "debug"
    later = max(1, round(0.75 * (len(frames) - 1))) if len(frames) > 1 else 0
    _draw_matches(folder / "matches.png", frames[0], frames[later], masks[0], embeddings[0], embeddings[later])
    _draw_drift(folder / "drift.png", [i for i, _ in frames], masks, embeddings)
    return [folder / "matches.png", folder / "drift.png"]


def spread_points(mask: np.ndarray, count: int) -> np.ndarray:
    """Returns points inside a mask by farthest point sampling, from the middle point in reading order.

    Args:
        mask: ``[h, w]`` bool; an empty mask counts as full.
        count: Maximum number of points.

    Returns:
        int ``[n, 2]``, row and column, ``n <= count``.
    """
    inside = np.argwhere(mask if mask.any() else np.ones_like(mask))
    chosen = [inside[len(inside) // 2]]
    distance = np.full(len(inside), np.inf)
    while len(chosen) < min(count, len(inside)):
        distance = np.minimum(distance, np.square(inside - chosen[-1]).sum(1))
        chosen.append(inside[distance.argmax()])
    return np.stack(chosen)


def match(points: np.ndarray, anchor: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the maxima of the anchor diffusion (Eq. 1) of anchor pixels in another frame.

    Args:
        points: ``[n, 2]`` rows and columns in the feature map of the anchor.
        anchor: ``[h, w, c]`` embedding of the anchor frame.
        frame: ``[h, w, c]`` embedding of the other frame.

    Returns:
        ``[n, 2]`` rows and columns in the other feature map, and their weights ``[n]``.
    """
    queries = anchor[points[:, 0], points[:, 1]]
    keys = frame.reshape(-1, frame.shape[-1])
    weights = np.asarray(attention_weights(queries[None], keys[None], scale=keys.shape[-1] ** -0.5)[0])
    best = weights.argmax(1)
    return np.stack(np.unravel_index(best, frame.shape[:2]), 1), weights.max(1)


def _draw_matches(path, anchor, later, mask, anchor_embed, later_embed):
    import matplotlib.pyplot as plt
    from matplotlib.patches import ConnectionPatch

    shape = anchor_embed.shape[:2]
    native = np.asarray(anchor[1].image.shape[:2])
    small = np.asarray(resize_nearest(mask[..., None], shape))[..., 0]
    points = spread_points(small, _POINTS)
    found, weights = match(points, anchor_embed, later_embed)
    # align_corners: corner features lie on corner pixels.
    to_pixels = (native - 1) / np.maximum(np.asarray(shape) - 1, 1)
    figure, axes = plt.subplots(1, 2, figsize=(16, 16 * native[0] / native[1] / 2 + 0.8), layout="constrained")
    if mask.any() and not mask.all():
        axes[0].contour(mask, [0.5], colors="white", linewidths=1)
    weights = f"best matches (weights {weights.min():.2g} to {weights.max():.2g})"
    titles = ("anchor with mask outline", weights)
    for axis, (index, frame), title in zip(axes, (anchor, later), titles, strict=True):
        axis.imshow(frame.image)
        axis.set_title(f"{title}: frame {index} ({frame.name})")
        axis.set_axis_off()
    colors = plt.get_cmap("hsv")(np.linspace(0, 1, len(points), endpoint=False))
    for start, end, color in zip(points * to_pixels, found * to_pixels, colors, strict=True):
        for axis, place in zip(axes, (start, end), strict=True):
            axis.plot(*place[::-1], "o", color=color, markeredgecolor="white", markersize=9, clip_on=False)
        figure.add_artist(ConnectionPatch(start[::-1], end[::-1], "data", "data", axesA=axes[0], axesB=axes[1],
                                          color=color, lw=1))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw_drift(path, indices, masks, embeddings):
    """Distances of the mean foreground embedding, relative to foreground and background of the anchor."""
    import matplotlib.pyplot as plt

    small = [np.asarray(resize_nearest(mask[..., None], e.shape[:2]))[..., 0]
             for mask, e in zip(masks, embeddings, strict=True)]
    foreground = np.stack([_mean(e, m) for e, m in zip(embeddings, small, strict=True)])
    background = np.stack([_mean(e, ~m) for e, m in zip(embeddings, small, strict=True)])
    unit = np.linalg.norm(foreground[0] - background[0])
    unit = unit if unit > 0 else 1.0  # NaN stays NaN: without foreground in the anchor nothing is drawn
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axis.plot(indices, np.linalg.norm(foreground - foreground[0], axis=1) / unit, "o-", label="to the anchor")
    axis.plot(indices[1:], np.linalg.norm(np.diff(foreground, axis=0), axis=1) / unit, "s--",
              label="to the previous sample")
    axis.plot(indices, np.linalg.norm(foreground - background, axis=1) / unit, ":", color="gray",
              label="to the background of the same frame")
    if np.isnan(foreground).any():
        axis.set_title("frames without foreground are omitted")
    axis.set(xlabel="frame", ylabel="distance of the mean foreground embedding", ylim=(0, None))
    axis.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _mean(embedding, mask):
    return embedding[mask].mean(0) if mask.any() else np.full(embedding.shape[-1], np.nan, np.float32)
