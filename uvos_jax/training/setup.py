"""Setup of a phase: model, optimizer, compiled step and initial state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from uvos_jax.errors import UserError
from uvos_jax.models import build
from uvos_jax.training.launchers import Launcher
from uvos_jax.training.optimizers import make_optimizer, make_schedule
from uvos_jax.training.phases import Phase, transfer
from uvos_jax.training.state import TrainState, create_state
from uvos_jax.training.step import make_train_step
from uvos_jax.weights import backbone_from_torch, checkpoints, from_torch, read_state_dict
from uvos_jax.weights.convert import expected_variables
from uvos_jax.weights.packaged import load_packaged, packaged_names


class Setup(NamedTuple):
    """Model and optimizer of a phase.

    Attributes:
        model: The model, with the phase's fields and the run's precision.
        tx: Optimizer.
        schedule: Learning rate by number of updates in the phase.
        state: Shapes of the training state.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    schedule: Callable
    state: TrainState


def setup(config: dict[str, Any], phase: Phase) -> Setup:
    """Builds model and optimizer of a phase; computes no arrays.

    Raises:
        UserError: The model, optimizer or schedule of the configuration cannot be used.
    """
    fields = {key: value for key, value in phase.model.items() if key != "name"}
    model = build(phase.model["name"], **({"dtype": config["precision"]} | fields))
    expected = expected_variables(model)
    try:
        rate = make_schedule(phase.schedule, phase.stop - phase.start)
    except UserError as error:
        raise UserError(f"Phase '{phase.name}': {error}") from error
    tx = make_optimizer(phase.optimizer, rate, expected["params"], phase.start)
    state = jax.eval_shape(lambda: create_state(model, tx, None, config["seed"], bool(config["ema_decay"])))
    return Setup(model, tx, rate, state)


def compile_step(config: dict[str, Any], phase: Phase, parts: Setup, launcher: Launcher) -> Callable:
    """Returns the phase's step on a launcher: ``(placed state, placed batch) -> (state, metrics)``."""
    return launcher.compile(lambda axis_name: make_train_step(
        parts.model, parts.tx, parts.schedule, batch_norm=phase.batch_norm, accumulate=config["accumulate"],
        ema_decay=config["ema_decay"] or None, axis_name=axis_name, first_step=phase.start))


def first_state(config: dict[str, Any], parts: Setup) -> TrainState:
    """Returns the state of step 0 as NumPy arrays: initialized by the seed, with the pretrained weights of ``init``.

    Raises:
        UserError: The pretrained weights cannot be read or do not match the model.
    """
    start = {"backbone": "", "target_backbone": "", "weights": ""} | config["init"]
    variables = None
    if any(start.values()):
        variables = _initialized(config, parts)
    if start["weights"]:
        variables = _pretrained(start["weights"], config, variables)
    if start["backbone"]:
        variables = backbone_from_torch(variables, read_state_dict(start["backbone"]), *parts.model.backbones)
    if start["target_backbone"]:
        variables = backbone_from_torch(variables, read_state_dict(start["target_backbone"]), "target_backbone")
    return _state(config, parts, variables)


def check_transfer(before: Setup, parts: Setup, phase: Phase) -> None:
    """Checks that a phase can start from the variables of the previous one; computes no arrays.

    Raises:
        UserError: See ``phases.transfer``.
    """
    shapes = [{"params": each.state.params, "batch_stats": each.state.batch_stats} for each in (before, parts)]
    transfer(shapes[0], shapes[1], lambda: shapes[1], phase.transfer, phase.name)


def next_state(config: dict[str, Any], parts: Setup, phase: Phase, before: TrainState) -> TrainState:
    """Returns the state at the start of a later phase: a new optimizer and transferred variables.

    Args:
        config: A checked configuration.
        parts: Setup of the phase.
        phase: The phase, whose ``transfer`` rules apply.
        before: NumPy state at the end of the previous phase.
    """
    expected = {"params": parts.state.params, "batch_stats": parts.state.batch_stats}
    variables = transfer({"params": before.params, "batch_stats": before.batch_stats}, expected,
                      lambda: _initialized(config, parts), phase.transfer, phase.name)
    state = _state(config, parts, {"batch_stats": {}} | variables)
    if before.ema is not None:
        averages = transfer(before.ema, expected, lambda: variables, phase.transfer, phase.name)
        state = state.replace(ema={"batch_stats": {}} | averages)
    return state.replace(step=before.step, key=before.key)


def inference_variables(state: TrainState) -> dict[str, Any]:
    """Returns the variables for inference: the moving averages if there are any, else the latest ones."""
    variables = state.ema or {"params": state.params, "batch_stats": state.batch_stats}
    return {name: tree for name, tree in variables.items() if tree}


def _state(config, parts, variables):
    # The seed is an argument, so that runs with another seed find the compiled program in the cache.
    create = jax.jit(lambda v, seed: create_state(parts.model, parts.tx, v, seed, bool(config["ema_decay"])))
    return jax.tree.map(np.asarray, create(variables, np.uint32(config["seed"])))


def _initialized(config, parts):
    state = _state(config, parts, None)
    return {"params": state.params, "batch_stats": state.batch_stats}


def _pretrained(source, config, expected):
    """Reads variables from a checkpoint directory, a published file or the package; shapes must match exactly."""
    name = config["model"]["name"]
    if source in packaged_names() or Path(source).is_dir():
        stored, _, variables = load_packaged(source) if source in packaged_names() else checkpoints.load(source)
        variables = {"batch_stats": {}} | variables
        if stored != name:
            raise UserError(f"init.weights: '{source}' holds weights of {stored}, not of {name}.")
        if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, expected):
            raise UserError(f"init.weights: the weights in '{source}' have other hyper-parameters.")
        return variables
    fields = {key: value for key, value in config["model"].items() if key != "name"}
    return from_torch(name, read_state_dict(source), **fields)
