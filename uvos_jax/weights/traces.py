"""What each system's reference files name: from their inputs to tensors by their names, in PyTorch's layout."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvos_jax.models.raft import pad_to_eight, unpad
from uvos_jax.ops.attention import attention_weights
from uvos_jax.ops.resize import resize_bilinear


class Trace(NamedTuple):
    """How to run one system for comparison.

    Attributes:
      model: name of the model.
      inputs: names of the input tensors in the file.
      run: ``(model, variables, inputs, expected) -> {name: array}``, arrays as PyTorch lays them out; in place of an
        attention matrix a function of how many of its rows are wanted (None: all).
      overrides: hyper-parameters of the model, beside the variant that the file names.
    """

    model: str
    inputs: tuple[str, ...]
    run: Callable[[Any, dict, Mapping, Mapping], dict]
    overrides: Mapping[str, Any] = {}


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


def _raft(model, variables, inputs, expected):
    del expected
    first, padding = pad_to_eight(_nhwc(inputs["image1"]))
    second, _ = pad_to_eight(_nhwc(inputs["image2"]))
    forward = jax.jit(model.apply, static_argnames="iterations")
    batch = {"first": first, "second": second}
    once, inner = forward(variables, batch, iterations=1)
    outputs, _ = forward(variables, batch, iterations=int(inputs["iters"]))
    top, bottom, left, right = padding
    made = {"fmap1": inner["fmap1"], "fmap2": inner["fmap2"], "cnet": inner["cnet"], "net_iter1": inner["net"],
            "delta_iter1": once["low"], "flow_up_iter1": once["flow"], "flow_low": outputs["low"],
            "flow_up": outputs["flow"], "flow_unpadded": unpad(outputs["flow"], padding)}
    made = {name: _nchw(value) for name, value in made.items()}
    # These two names stand for every fifth, sixth or eighth channel.
    made["cnet_c32"] = made["cnet"][:, ::made["cnet"].shape[1] // 32]
    made["corr_iter1"] = _nchw(inner["corr"])[:, ::6]
    return made | {"pad": jnp.array([left, right, top, bottom])}


def _dpa(model, variables, inputs, expected):
    del expected
    batch = {"frame": _nhwc(inputs["image"]), "flow": _nhwc(inputs["flow"])}
    for name, theirs in (("frame", "ref_images"), ("flow", "ref_flows")):  # references lie side by side in the channels
        references = inputs[theirs].reshape(len(inputs[theirs]), -1, 3, *inputs[theirs].shape[2:])
        batch[f"reference_{name}"] = jnp.moveaxis(jnp.asarray(references), 2, -1)
    outputs, inner = jax.jit(model.apply)(variables, batch)
    names = {"fuse6": "fused6", "fuse5": "fused5", "fuse4": "fused4", "m56": "merged5", "m45": "merged4"}
    for ours, theirs in (("appearance", "rgb"), ("motion", "flow")):
        names |= {f"{theirs}_sq4": f"{ours}_query4", f"{theirs}_sq5": f"{ours}_query5",
                  f"dam4_{theirs}": f"{ours}_ima4", f"dam5_{theirs}": f"{ours}_ima5", f"{theirs}_tam": f"{ours}_ifa",
                  f"{theirs}_comp6": f"{ours}_coarse", f"{theirs}_aspp": f"{ours}_context"}
    # "_c": the first 16 channels, or all where there are no more than 32.
    made = {f"{theirs}_c": _nchw(inner[ours]) for theirs, ours in names.items() if ours in inner}
    made = {name: x if x.shape[1] <= 32 else x[:, :16] for name, x in made.items()}
    size = batch["frame"].shape[1:3]
    for i, logits in zip((4, 3, 2, 1), outputs["logits"], strict=True):
        whole = _nchw(resize_bilinear(jax.nn.sigmoid(logits), size, align_corners=True))
        made[f"pred{i}"] = whole if i == 1 else whole[..., ::2, ::2]
    return made


def _nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def _nchw(x):
    return jnp.moveaxis(x, -1, 1)


TRACES: dict[str, Trace] = {
    "adnet": Trace("adnet", ("ref", "cur"), _adnet),
    "dpa": Trace("dpa", ("image", "flow", "ref_images", "ref_flows"), _dpa),
    "raft_large": Trace("raft", ("image1", "image2", "iters"), _raft, {"net": "large"}),
    "raft_small": Trace("raft", ("image1", "image2", "iters"), _raft, {"net": "small"}),
}
