"""The published code of CFBI: frame sizes, parameter names, and the run on a reference file."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvos_jax.models.base import Model, Rules, nchw, nhwc
from uvos_jax.nn import resnet

_LARGEST = 1040  # pixels of a side at scale 1


def frame_size(native_size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Returns the network's ``(height, width)``: native size, at most 1,040 pixels a side, times ``scale``.

    Sides are rounded to ``16 k + 1``, halves to even k. With several scales the published code lowers the limit to 800
    pixels; here it stays.
    """
    ratio = min(1.0, _LARGEST / max(native_size)) * scale
    return tuple(16 * max(1, round((int(n * ratio) - 1) / 16)) + 1 for n in native_size)


def torch_rules(model: Model) -> Rules:
    """Returns the name rules for the published checkpoints (761 keys, 8 of which are second names of an array)."""
    del model
    deeplab, head = "feature_extracter.", "dynamic_seghead."
    return (
        *resnet.torch_rules("backbone", f"{deeplab}backbone."),
        *((f"decoder/aspp/branch{i}/{part}", f"{deeplab}aspp.aspp{i + 1}.{name}", layout)
          for i in range(4) for part, name, layout in (("conv", "atrous_conv", "conv"), ("bn", "bn", "norm"))),
        ("decoder/aspp/pool/conv", f"{deeplab}aspp.global_avg_pool.1", "conv"),
        ("decoder/aspp/pool/bn", f"{deeplab}aspp.global_avg_pool.2", "norm"),
        ("decoder/aspp/project/conv", f"{deeplab}aspp.conv1", "conv"),
        ("decoder/aspp/project/bn", f"{deeplab}aspp.bn1", "norm"),
        ("decoder/low/conv", f"{deeplab}decoder.conv1", "conv"),
        ("decoder/low/bn", f"{deeplab}decoder.bn1", "norm"),
        ("decoder/merge1_conv", f"{deeplab}decoder.last_conv.0", "conv"),
        ("decoder/merge1_bn", f"{deeplab}decoder.last_conv.1", "norm"),
        ("decoder/merge2/conv", f"{deeplab}decoder.last_conv.4", "conv"),
        ("decoder/merge2/bn", f"{deeplab}decoder.last_conv.5", "norm"),
        ("embed/depthwise/conv", "seperate_conv", "conv"),
        ("embed/depthwise/norm", "bn1", "norm"),
        ("embed/pointwise/conv", "embedding_conv", "conv"),
        ("embed/pointwise/norm", "bn2", "norm"),
        *((rf"semantic_embedding\.{i}\.(weight|bias)", rf"{name}.\1", "alias")
          for i, name in ((0, "seperate_conv"), (1, "bn1"), (3, "embedding_conv"), (4, "bn2"))),
        ("bias", "", "match_bias"),
        ("head/prehead/conv", "dynamic_prehead.conv", "conv"),
        ("head/prehead/norm", "dynamic_prehead.bn", "norm"),
        (r"head/gate(\d+)/linear", rf"{head}IA\1.IA", "linear"),
        (r"head/block(\d)/gate", rf"{head}layer\1.GCT1", "gate"),
        (r"head/block(\d)/conv(\d)", rf"{head}layer\1.conv\2", "conv"),
        (r"head/block(\d)/bn(\d)", rf"{head}layer\1.bn\2", "norm"),
        (r"head/block(\d)/downsample_conv", rf"{head}layer\1.downsample.0", "conv"),
        (r"head/block(\d)/downsample_bn", rf"{head}layer\1.downsample.1", "norm"),
        *((f"head/aspp/branch{i}{part}", f"{head}ASPP.aspp{i + 1}.{name}", layout)
          for i in range(4) for part, name, layout in (
              ("/conv", "atrous_conv", "conv"), ("/norm", "bn", "norm"), ("_gate", "GCT", "gate"))),
        ("head/aspp/pool/conv", f"{head}ASPP.global_avg_pool.1", "conv"),
        ("head/aspp/project_gate", f"{head}ASPP.GCT", "gate"),
        ("head/aspp/project/conv", f"{head}ASPP.conv1", "conv"),
        ("head/aspp/project/norm", f"{head}ASPP.bn1", "norm"),
        ("head/fine_gate", f"{head}GCT_sc", "gate"),
        ("head/fine/conv", f"{head}conv_sc", "conv"),
        ("head/fine/norm", f"{head}bn_sc", "norm"),
        ("head/merge1_conv", f"{head}conv1", "conv"),
        ("head/merge1_bn", f"{head}bn1", "norm"),
        ("head/merge2/conv", f"{head}conv2", "conv"),
        ("head/merge2/norm", f"{head}bn2", "norm"),
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
        stages = model.embed_frames(frames, False)
        features = [{"embed": x[None], "low": y[None]} for x, y in zip(stages["embed"], stages["layer1"], strict=True)]
        state = model.init_state(features[0], labels[0])
        for reference, given in zip(features[1:references], labels[1:references], strict=True):
            state = model.commit(state, reference, given, {}, given)
        state = model.commit(state, features[references], labels[-1], {})
        state = state.replace(count=jnp.full(1, objects - 1))
        return stages, model.predict(state, features[-1])[0], model.predict_train(state, features[-1])[1]

    stages, logits, of_objects = jax.jit(lambda *args: model.apply(*args, method=step))(variables, frames)
    logits = logits[..., :objects]
    names = {"low": "layer1", "l2": "layer2", "l3": "layer3", "l4": "layer4", "aspp": "aspp", "dec": "decoded",
             "emb": "embed"}
    rows = {"ref": slice(0, references), "prev": slice(references, -1), "cur": slice(-1, None)}
    tensors = {f"{frame}_{theirs}": nchw(stages[ours][row]) for frame, row in rows.items()
               for theirs, ours in names.items()}
    names = {"prehead_in": "matches", "prehead_out": "prehead", "ce_aspp": "ensembler_aspp"}
    names |= {f"ce_layer{i}": f"block{i}" for i in range(1, 9)}
    tensors |= {theirs: nchw(of_objects[ours][:objects]) for theirs, ours in names.items()}
    tensors |= {"att_head": of_objects["instance"][:objects], "logits_s4": nchw(logits)}
    if "prob" in expected:
        tensors["prob"] = nchw(model.to_native(logits, expected["prob"].shape[-2:]))
    return tensors
