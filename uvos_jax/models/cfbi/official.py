"""What CFBI's published code has of its own: the size of its frames, and the names of its parameters."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvos_jax.models.base import Model, Rules, nchw, nhwc
from uvos_jax.nn import resnet

_LARGEST = 1040  # pixels of a side at scale 1


def frame_size(native_size: tuple[int, int], scale: float) -> tuple[int, int]:
    """The frame's own size, at most 1,040 pixels a side, times ``scale``: sides ``16 k + 1``, halves to the even k.

    With several scales the published code lowers the limit to 800 pixels; here it stays.
    """
    ratio = min(1.0, _LARGEST / max(native_size)) * scale
    return tuple(16 * max(1, round((int(n * ratio) - 1) / 16)) + 1 for n in native_size)


def torch_rules(model: Model) -> Rules:
    """Name rules for the published checkpoints (761 keys, of which 8 name an array for the second time)."""
    del model
    deeplab, head = "feature_extracter.", "dynamic_seghead."
    branches = [(rf"{ours}/branch{i}[_/]{part}", f"{theirs}aspp{i + 1}.{name}", layout)
                for ours, theirs in (("decoder/aspp", f"{deeplab}aspp."), ("head/aspp", f"{head}ASPP."))
                for i in range(4)
                for part, name, layout in (
                    ("conv", "atrous_conv", "conv"), ("bn", "bn", "norm"), ("gate", "GCT", "gate"))]
    return (
        *resnet.torch_rules("backbone", f"{deeplab}backbone."),
        *branches,
        ("decoder/aspp/pool/conv", f"{deeplab}aspp.global_avg_pool.1", "conv"),
        ("decoder/aspp/pool/bn", f"{deeplab}aspp.global_avg_pool.2", "norm"),
        ("decoder/aspp/project/conv", f"{deeplab}aspp.conv1", "conv"),
        ("decoder/aspp/project/bn", f"{deeplab}aspp.bn1", "norm"),
        ("decoder/low_conv", f"{deeplab}decoder.conv1", "conv"),
        ("decoder/low_bn", f"{deeplab}decoder.bn1", "norm"),
        ("decoder/merge1_conv", f"{deeplab}decoder.last_conv.0", "conv"),
        ("decoder/merge1_bn", f"{deeplab}decoder.last_conv.1", "norm"),
        ("decoder/merge2_conv", f"{deeplab}decoder.last_conv.4", "conv"),
        ("decoder/merge2_bn", f"{deeplab}decoder.last_conv.5", "norm"),
        ("embed_depthwise", "seperate_conv", "conv"),
        (r"embed_bn(\d)", r"bn\1", "norm"),
        ("embed_conv", "embedding_conv", "conv"),
        *((rf"semantic_embedding\.{i}\.(weight|bias)", rf"{name}.\1", "alias")
          for i, name in ((0, "seperate_conv"), (1, "bn1"), (3, "embedding_conv"), (4, "bn2"))),
        ("bias", "", "match_bias"),
        ("head/prehead_(conv)", r"dynamic_prehead.\1", "conv"),
        ("head/prehead_(bn)", r"dynamic_prehead.\1", "norm"),
        (r"head/gate(\d+)/linear", rf"{head}IA\1.IA", "linear"),
        (r"head/block(\d)/gate", rf"{head}layer\1.GCT1", "gate"),
        (r"head/block(\d)/conv(\d)", rf"{head}layer\1.conv\2", "conv"),
        (r"head/block(\d)/bn(\d)", rf"{head}layer\1.bn\2", "norm"),
        (r"head/block(\d)/downsample_conv", rf"{head}layer\1.downsample.0", "conv"),
        (r"head/block(\d)/downsample_bn", rf"{head}layer\1.downsample.1", "norm"),
        ("head/aspp/pool_conv", f"{head}ASPP.global_avg_pool.1", "conv"),
        ("head/aspp/project_gate", f"{head}ASPP.GCT", "gate"),
        ("head/aspp/project_conv", f"{head}ASPP.conv1", "conv"),
        ("head/aspp/project_bn", f"{head}ASPP.bn1", "norm"),
        ("head/fine_gate", f"{head}GCT_sc", "gate"),
        ("head/fine_conv", f"{head}conv_sc", "conv"),
        ("head/fine_bn", f"{head}bn_sc", "norm"),
        (r"head/merge(\d)_conv", rf"{head}conv\1", "conv"),
        (r"head/merge(\d)_bn", rf"{head}bn\1", "norm"),
        ("head/foreground", f"{head}IA_final_fg", "linear"),
        ("head/background", f"{head}IA_final_bg", "linear"),
    )


def trace(model: Model, variables: dict, inputs: Mapping, expected: Mapping) -> dict:
    """Runs CFBI on the inputs of a reference file; see ``ParityTrace``."""
    references, objects = len(inputs["ref"]), int(inputs["obj_num"]) + 1
    model = model.clone(max_objects=max(1, objects - 1), references=references)
    frames = jnp.concatenate([nhwc(inputs[name]) for name in ("ref", "prev", "cur")])
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
    made = {f"{frame}_{theirs}": nchw(stages[ours][place]) for frame, place in places.items()
            for theirs, ours in names.items()}
    names = {"prehead_in": "matches", "prehead_out": "prehead", "ce_aspp": "ensembler_aspp"}
    names |= {f"ce_layer{i}": f"block{i}" for i in range(1, 9)}
    made |= {theirs: nchw(inner[ours][:objects]) for theirs, ours in names.items()}
    made |= {"att_head": inner["instance"][:objects], "logits_s4": nchw(logits)}
    if "prob" in expected:
        made["prob"] = nchw(model.to_native(logits, expected["prob"].shape[-2:]))
    return made
