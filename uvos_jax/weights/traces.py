"""What each system's reference files name: from their inputs to tensors by their names, in PyTorch's layout."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.models.raft.model import pad_to_eight, unpad
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


def _f2net(model, variables, inputs, expected):
    side, means = 473, jnp.asarray(model.preprocess.mean)
    frames = [jnp.asarray(smooth_noise(int(seed), side, side) * 255) - means for seed in inputs["seeds"]]
    anchor, frame = frames[0][None], frames[2][None]  # the published network takes the second and ignores it
    batch = {"anchor": anchor, "frame": frame, "previous": _nhwc(inputs["prev_gauss"]),
             "center": jnp.asarray(inputs["ct"]) / 4}  # pixels of the frame there, of the heat map here
    outputs, inner = jax.jit(model.apply)(variables, batch)
    maps = {"maxpool": "stem", "l1": "layer1", "l2": "layer2", "l3": "layer3", "l4": "layer4"}
    made = {f"cur_{theirs}": _nchw(inner[ours])[1:, :8, ::4, ::4] for theirs, ours in maps.items()}
    made |= {"ref_s16": _nchw(anchor)[..., ::16, ::16], "cur_s16": _nchw(frame)[..., ::16, ::16]}
    half = {"ref_aspp_c32": inner["embed"][:1, ..., :32], "cur_aspp_c32": inner["embed"][1:, ..., :32],
            "cls_in_c32": inner["fused"][..., :32], "up_c16": inner["up"][..., :16]}
    made |= {name: _nchw(x)[..., ::2, ::2] for name, x in half.items()}
    made |= {"heat_fc": _nchw(inner["fresh"]), "heat": _nchw(outputs["heat_logits"]),
             "ca_logits": _nchw(inner["channel_logits"])}
    for name, logits in (("pred", outputs["logits"]), ("temp", outputs["static_logits"])):
        made[name] = _nchw(jax.nn.sigmoid(resize_bilinear(logits, (side, side), align_corners=False)))
    return made


def _cfbi(model, variables, inputs, expected):
    references, objects = len(inputs["ref"]), int(inputs["obj_num"]) + 1
    model = model.clone(max_objects=max(1, objects - 1), references=references)
    frames = jnp.concatenate([_nhwc(inputs[name]) for name in ("ref", "prev", "cur")])
    labels = [jnp.asarray(x, jnp.int32) for x in (*inputs["ref_label"], *inputs["prev_label"])]  # each [1, h, w]

    def step(model, frames):
        stages = model._embed(frames, False)
        features = [{"embed": x[None], "low": y[None]} for x, y in zip(stages["embed"], stages["layer1"], strict=True)]
        state = model.init_state(features[0], labels[0])
        for its, given in zip(features[1:references], labels[1:references], strict=True):
            state = model.commit(state, its, given, {}, given)
        state = model.commit(state, features[references], labels[-1], {})
        state = state.replace(count=jnp.full(1, objects - 1))
        return stages, model.predict(state, features[-1])[0], model.predict_train(state, features[-1])[1]

    stages, logits, inner = jax.jit(lambda *args: model.apply(*args, method=step))(variables, frames)
    logits = logits[..., :objects]
    names = {"low": "layer1", "l2": "layer2", "l3": "layer3", "l4": "layer4", "aspp": "aspp", "dec": "decoded",
             "emb": "embed"}
    places = {"ref": slice(0, references), "prev": slice(references, -1), "cur": slice(-1, None)}
    made = {f"{frame}_{theirs}": _nchw(stages[ours][place]) for frame, place in places.items()
            for theirs, ours in names.items()}
    names = {"prehead_in": "matches", "prehead_out": "prehead", "ce_aspp": "ensembler_aspp"}
    names |= {f"ce_layer{i}": f"block{i}" for i in range(1, 9)}
    made |= {theirs: _nchw(inner[ours][:objects]) for theirs, ours in names.items()}
    made |= {"att_head": inner["instance"][:objects], "logits_s4": _nchw(logits)}
    if "prob" in expected:
        made["prob"] = _nchw(model.to_native(logits, expected["prob"].shape[-2:]))
    return made


def smooth_noise(seed: int, height: int, width: int, cell: int = 16) -> np.ndarray:
    """The pictures from which some reference files were made: smooth random colors with a little noise.

    Args:
      seed: of ``PCG64``.
      height: in pixels.
      width: in pixels.
      cell: distance of the random colors between which it is interpolated, in pixels.

    Returns:
      ``[height, width, 3]`` float32 in 0..1.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    x = rng.random((3, height // cell + 2, width // cell + 2))
    for axis, size in ((1, height), (2, width)):
        place = np.linspace(0, x.shape[axis] - 1, size)
        below = np.minimum(np.floor(place), x.shape[axis] - 2).astype(int)
        part = (place - below).reshape((-1, 1) if axis == 1 else (-1,))
        x = x.take(below, axis) * (1 - part) + x.take(below + 1, axis) * part
    x = np.clip(x + 0.02 * rng.standard_normal((3, height, width)), 0, 1)
    return np.moveaxis(x, 0, -1).astype(np.float32)


def _nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def _nchw(x):
    return jnp.moveaxis(x, -1, 1)


TRACES: dict[str, Trace] = {
    "adnet": Trace("adnet", ("ref", "cur"), _adnet),
    "cfbi": Trace("cfbi", ("ref", "ref_label", "prev", "prev_label", "cur", "obj_num"), _cfbi),
    "dpa": Trace("dpa", ("image", "flow", "ref_images", "ref_flows"), _dpa),
    "f2net": Trace("f2net", ("seeds", "ct", "prev_gauss"), _f2net, {"prior_from": "truth"}),
    "raft_large": Trace("raft", ("image1", "image2", "iters"), _raft, {"net": "large"}),
    "raft_small": Trace("raft", ("image1", "image2", "iters"), _raft, {"net": "small"}),
}
