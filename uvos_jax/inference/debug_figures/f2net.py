"""Debug figures of F2Net: predicted centers and the attention prior (Figure 6 of the paper)."""

import contextlib
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.models.f2net.modules import STRIDE
from uvos_jax.ops.preprocess import preprocess
from uvos_jax.video import Source, read_mask

_SAMPLES = 4  # frames whose maps are drawn, spread over the video
_PER_FRAME = ("center", "score", "found")  # values kept for every frame


def check(model: nn.Module) -> None:
    """Raises ``UserError`` for a model without center prediction."""
    if "lost" not in model.notes:
        raise UserError(f"--debug draws predicted centers, and net '{model.net}' predicts none. Leave it out.")


def write(segmenter: Segmenter, source: Source, results: Path, count: int) -> list[Path]:
    """Draws the maps of a few frames, and the center of all frames.

    Runs the network over the video again in one view, with the written masks in place of its own. Arguments and result
    are those of ``write_figures``: ``centers.png`` and ``track.png``.
    """
    model, variables = segmenter.model, segmenter.variables
    wanted = set(np.linspace(0, count - 1, min(count, _SAMPLES)).round().astype(int).tolist())
    state, rows, indices, seen = None, [], [], []
    with contextlib.closing(iter(source)) as frames:
        for i, frame in enumerate(frames):
            features = _encode(model, variables, frame.image)
            if state is None:
                state = model.apply(variables, features, method="init_state")
            mask = read_mask(results / "masks" / f"{frame.name}.png") == 1
            now, aux = _step(model, variables, state, features, mask[None].astype(np.uint8))
            if i in wanted:
                n = int(state.track.count[0])
                maps = {name: np.asarray(aux[name][0, ..., 0], np.float32) for name in ("heat", "prior")}
                rows.append((f"frame {i} ({frame.name})", frame.image, mask, maps, aux,
                             np.asarray(state.track.centers[0, -n:] if n else state.track.centers[0, :0])))
            if frame.broken is None:  # broken frames do not change the state, as in the run
                state = now
                indices.append(i)
                seen.append([np.asarray(aux[name][0]) for name in _PER_FRAME])
    scale = np.divide(mask.shape, model.frame_size(mask.shape))[::-1]
    folder = results / "debug"
    _draw_maps(folder / "centers.png", rows, scale)
    _draw_track(folder / "track.png", indices, seen, scale, max(mask.shape), model.min_peak_score)
    return [folder / "centers.png", folder / "track.png"]


def to_pixels(cells: np.ndarray, stride: int, scale: np.ndarray) -> np.ndarray:
    """Maps cells of a feature map to pixels of the frame.

    Args:
        cells: ``[..., 2]``, x and y in the map; its first cell lies on the first pixel of the network input.
        stride: Pixels of the network input per cell.
        scale: ``[2]``, pixels of the frame per pixel of the network input, in x and y.

    Returns:
        ``[..., 2]``, x and y in the frame; the center of its first pixel is (0, 0).
    """
    return (stride * cells + 0.5) * scale - 0.5


@partial(jax.jit, static_argnums=0)
def _encode(model, variables, image):
    x = preprocess(image[None], model.frame_size(image.shape[:2]), model.preprocess)
    return model.apply(variables, {"frame": x}, method="encode")


@partial(jax.jit, static_argnums=0)
def _step(model, variables, state, features, labels):
    """The state after a frame, and the auxiliary outputs."""
    _, aux = model.apply(variables, state, features, method="predict")
    return model.apply(variables, state, features, labels, aux, method="commit"), aux


def _draw_maps(path, rows, scale):
    import matplotlib.pyplot as plt

    height, width = rows[0][2].shape
    size = 11, 11 * height / width * len(rows) / 3 + 0.8
    figure, axes = plt.subplots(len(rows), 3, figsize=size, squeeze=False, layout="constrained")
    for line, (name, image, mask, maps, aux, track) in zip(axes, rows, strict=True):
        gray = image.mean(-1) / 255
        for axis, key, stride in zip(line, ("heat", "prior"), (STRIDE, 2 * STRIDE), strict=False):
            axis.imshow(gray, cmap="gray", vmin=0, vmax=1)
            corners = np.array([[-0.5, -0.5], np.subtract(maps[key].shape[::-1], 0.5)])
            (left, top), (right, bottom) = to_pixels(corners, stride, scale)
            axis.imshow(maps[key], cmap="inferno", vmin=0, vmax=1, alpha=0.8 * np.clip(maps[key], 0, 1),
                        extent=(left, right, bottom, top))
        found, score = bool(aux["found"][0]), float(aux["score"][0])
        center = np.asarray(aux["center"])
        way = to_pixels(np.concatenate([track, center]), STRIDE, scale)
        line[0].plot(*way.T, "-", color="deepskyblue", lw=1)
        line[0].plot(*way[:-1].T, ".", color="deepskyblue", ms=4)
        line[0].plot(*way[-1], "o" if found else "x", color="lime", markeredgecolor="black" if found else "lime", ms=8)
        line[0].set_title(f"center {'scores' if found else 'lost, best score'} {score:.2g}", fontsize=8)
        line[1].set_title("prior" if found else "no prior", fontsize=8)
        line[2].imshow(image)
        if mask.any() and not mask.all():
            line[2].contour(mask, [0.5], colors="red", linewidths=1)
        line[2].set_title("mask", fontsize=8)
        line[0].set_ylabel(name, fontsize=8)
        for axis in line:
            axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    figure.suptitle("left: heat map, center and the earlier centers it is selected by; middle: Gaussian prior;"
                    " color scale from 0 (transparent) to 1 (yellow)", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_track(path, indices, seen, scale, longest, threshold):
    import matplotlib.pyplot as plt

    centers, scores, found = (np.array(column) for column in zip(*seen, strict=True))
    places = to_pixels(centers, STRIDE, scale)
    indices = np.array(indices)
    figure, (where, how) = plt.subplots(2, 1, sharex=True, figsize=(9, 5.5), height_ratios=(2, 1),
                                        layout="constrained")
    for values, name, color in zip(places.T, "xy", ("tab:blue", "tab:orange"), strict=True):
        where.plot(indices, values, "-", color=color, lw=1, label=name)
        where.plot(indices[found], values[found], ".", color=color, ms=4)
    how.plot(indices, scores, "-", color="black", lw=1)
    how.axhline(threshold, color="gray", ls=":", label=f"threshold, {threshold:g}")
    for axis in (where, how):
        for n, index in enumerate(indices[~found]):
            axis.axvspan(index - 0.5, index + 0.5, color="tab:red", alpha=0.25, lw=0, label="" if n else "lost")
    where.set(ylabel="center, pixels of the frame", ylim=(0, longest))
    how.set(xlabel="frame", ylabel="score", ylim=(0, 1.02))
    where.legend(), how.legend(loc="lower left")
    figure.savefig(path, dpi=100)
    plt.close(figure)
