"""Debug figures of DPA: features before and after IMA and IFA (Figures 1 and 5 of the paper)."""

import contextlib
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.inference.flow.folder import with_flow
from uvos_jax.inference.reference_frames import read_reference_frames, select_reference_frames
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.ops.preprocess import preprocess
from uvos_jax.video import Source, read_mask

_SAMPLES = 4  # frames, spread over the video
_STREAMS = ("appearance", "motion")
# Names of the intermediates without the stream, and the column titles.
_COLUMNS = {"block4": "block 4", "ima4": "block 4 after IMA", "block5": "block 5", "ima5": "block 5 after IMA",
            "ifa": "block 5 after IFA"}


def check(model: nn.Module) -> None:
    """Raises ``UserError`` for a model without IMA and IFA."""
    official = model.variant != "paper"
    if not (official or model.ifa or (model.ima and model.streams == "both")):
        raise UserError("--debug draws IMA and IFA, which this model lacks. Leave it out.")


def write(segmenter: Segmenter, source: Source, results: Path, count: int) -> list[Path]:
    """Draws the features of both streams before and after the attention modules, for a few frames.

    Encodes these frames and the reference frames again. Arguments and result are those of ``write_figures``:
    ``features.png``.
    """
    references = select_reference_frames(segmenter.model, source)
    reference_images, reference_flows = read_reference_frames(source, references, segmenter.flow)
    wanted = set(np.linspace(0, count - 1, min(count, _SAMPLES)).round().astype(int).tolist())
    rows = []
    with contextlib.closing(iter(source)) as frames:
        for i, (frame, flow) in enumerate(with_flow(frames, segmenter.flow, False, wanted.__contains__)):
            if i not in wanted:
                continue
            images = np.concatenate([frame.image[None], reference_images])
            flows = None if flow is None else np.concatenate([flow[None], reference_flows])
            shown, maps = jax.tree.map(np.asarray, _features(segmenter.model, segmenter.variables, images, flows))
            mask = read_mask(results / "masks" / f"{frame.name}.png") == 1
            rows += [(f"frame {i} ({frame.name})\n{stream}", frame.image if stream == "appearance" else shown, mask,
                      {key: maps.get(f"{stream}_{key}") for key in _COLUMNS})
                     for stream in _STREAMS if f"{stream}_block5" in maps]
    path = results / "debug" / "features.png"
    _draw(path, rows, f"references: frames {', '.join(map(str, references.indices))}")
    return [path]


@partial(jax.jit, static_argnums=0)
def _features(model, variables, images, flows):
    """Flow input of the first frame, and its features by name, averaged over channels."""
    size = model.frame_size(images.shape[1:3])
    inputs = {"frame": preprocess(images, size, model.preprocess)}
    if flows is not None:
        inputs["flow"] = model.flow_input(flows, size)  # in 0..1 up to rounding
    batch = {name: x[:1] for name, x in inputs.items()}
    batch |= {f"reference_{name}": x[None, 1:] for name, x in inputs.items()}
    _, intermediates = model.apply(variables, batch, train=False)
    maps = {f"{stream}_{key}": intermediates[f"{stream}_{key}"][0].astype(jnp.float32).mean(-1)
            for stream in _STREAMS for key in _COLUMNS if f"{stream}_{key}" in intermediates}
    return None if flows is None else jnp.clip(inputs["flow"][0], 0, 1), maps


def _draw(path, rows, title):
    import matplotlib.pyplot as plt

    keys = [key for key in _COLUMNS if any(maps[key] is not None for *_, maps in rows)]
    height, width = rows[0][2].shape
    size = 2.4 * (1 + len(keys)), 2.4 * height / width * len(rows) + 0.8
    figure, axes = plt.subplots(len(rows), 1 + len(keys), figsize=size, squeeze=False, layout="constrained")
    for line, (name, picture, mask, maps) in zip(axes, rows, strict=True):
        line[0].imshow(picture, extent=(0, width, height, 0))
        if mask.any() and not mask.all():
            line[0].contour(np.arange(width) + 0.5, np.arange(height) + 0.5, mask, [0.5], colors="red", linewidths=1)
        line[0].set_ylabel(name, fontsize=8)
        for axis, key in zip(line[1:], keys, strict=True):
            axis.set_axis_off() if maps[key] is None else axis.imshow(maps[key], cmap="viridis", aspect="auto",
                                                                      extent=(0, width, height, 0))
        for axis in line:
            axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[0], ["frame or its flow, mask outlined", *(_COLUMNS[key] for key in keys)], strict=True):
        axis.set_title(name, fontsize=8)
    figure.suptitle(f"channel mean, each map scaled to its own range; {title}", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)
