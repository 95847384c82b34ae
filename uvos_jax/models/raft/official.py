"""Name rules for the published RAFT checkpoints, and the parity trace."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvos_jax.models.base import Model, Rules, nchw, nhwc
from uvos_jax.models.raft import encoder
from uvos_jax.models.raft.padding import pad_to_eight, unpad


def torch_rules(model: Model) -> Rules:
    """Returns the name rules for the published checkpoints, large (179 keys) and small (106 keys)."""
    del model
    return (
        *encoder.torch_rules("fnet"),
        *encoder.torch_rules("cnet"),
        (r"update/motion/(\w+)", r"update_block.encoder.\1", "conv"),
        (r"update/gru/(\w+)", r"update_block.gru.\1", "conv"),
        (r"update/flow_conv(\d)", r"update_block.flow_head.conv\1", "conv"),
        ("update/mask_conv1", "update_block.mask.0", "conv"),
        ("update/mask_conv2", "update_block.mask.2", "conv"),
    )


def trace(model: Model, variables: dict, inputs: Mapping, expected: Mapping) -> dict:
    """Runs RAFT on the inputs of a reference file; see ``ParityTrace``."""
    del expected
    first, padding = pad_to_eight(nhwc(inputs["image1"]))
    second, _ = pad_to_eight(nhwc(inputs["image2"]))
    forward = jax.jit(model.apply, static_argnames="iterations")
    batch = {"first": first, "second": second}
    once, inner = forward(variables, batch, iterations=1)
    outputs, _ = forward(variables, batch, iterations=int(inputs["iters"]))
    top, bottom, left, right = padding
    made = {"fmap1": inner["fmap1"], "fmap2": inner["fmap2"], "cnet": inner["cnet"], "net_iter1": inner["net"],
            "delta_iter1": once["low"], "flow_up_iter1": once["flow"], "flow_low": outputs["low"],
            "flow_up": outputs["flow"], "flow_unpadded": unpad(outputs["flow"], padding)}
    made = {name: nchw(value) for name, value in made.items()}
    # The reference stores every 5th or 8th channel under the first name and every 6th under the second.
    made["cnet_c32"] = made["cnet"][:, ::made["cnet"].shape[1] // 32]
    made["corr_iter1"] = nchw(inner["corr"])[:, ::6]
    return made | {"pad": jnp.array([left, right, top, bottom])}
