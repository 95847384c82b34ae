"""What each system's reference files name: from their inputs to tensors by their names, in PyTorch's layout."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvos_jax.ops.attention import attention_weights
from uvos_jax.ops.resize import resize_bilinear


class Trace(NamedTuple):
    """How to run one system for comparison.

    Attributes:
      model: name of the model.
      inputs: names of the input tensors in the file.
      run: ``(model, variables, inputs, expected) -> {name: array}``, arrays as PyTorch lays them out; in place of an
        attention matrix a function of how many of its rows are wanted (None: all).
    """

    model: str
    inputs: tuple[str, ...]
    run: Callable[[Any, dict, Mapping, Mapping], dict]


def _adnet(model, variables, inputs, expected):
    batch = {"anchor": _nhwc(inputs["ref"]), "frame": _nhwc(inputs["cur"])}
    outputs, inner = jax.jit(model.apply)(variables, batch)
    b = batch["frame"].shape[0]
    made = {}
    for name in ("stem", "layer1", "layer2", "layer3", "layer4", "aspp", "embed", "aux"):
        stacked = _nchw(inner[name])
        made[f"ref_{name}"], made[f"cur_{name}"] = stacked[:b], stacked[b:]
    anchor, frame = (x.reshape(b, -1, x.shape[-1]) for x in jnp.split(inner["embed"], 2))

    def rows_of(queries):
        return lambda rows: attention_weights(queries[:, :rows], frame, scale=frame.shape[-1] ** -0.5)

    made |= {"P_anchor": rows_of(anchor), "P_intra": rows_of(frame), "logit": _nchw(outputs["logits"])}
    made |= {f"feat_{name}": _nchw(inner[f"diffused_{name}"]) for name in ("anchor", "intra")
             if f"diffused_{name}" in inner}
    if "logit_up" in expected:  # at the size of the annotation, which only the reference knows
        size = expected["logit_up"].shape[-2:]
        made["logit_up"] = _nchw(resize_bilinear(outputs["logits"], size, align_corners=True))
    return made


def _nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def _nchw(x):
    return jnp.moveaxis(x, -1, 1)


TRACES: dict[str, Trace] = {
    "adnet": Trace("adnet", ("ref", "cur"), _adnet),
}
