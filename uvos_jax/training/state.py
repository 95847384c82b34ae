"""The state of a training run, as one pytree of arrays."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """State of a run after ``step`` steps. The position in the data is a function of the step.

    Attributes:
        step: int32 ``[]``, number of finished steps in all phases.
        params: float32 parameters, also where the model computes in another type.
        batch_stats: float32 running statistics, ``{}`` for a model without any.
        opt_state: State of the optimizer.
        ema: Exponential moving average of ``{"params", "batch_stats"}``, or None. Statistics are averaged, too: the
            latest ones do not match averaged parameters while the learning rate is high.
        key: uint32 ``[n]``, data of the PRNG key from which each step derives its own.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    key: jax.Array


def create_state(model: nn.Module, tx: optax.GradientTransformation, variables: Mapping | None, seed: int | jax.Array,
                 ema: bool = False) -> TrainState:
    """Returns the state before the first step. It is traceable: ``jax.eval_shape`` gives the shapes without memory.

    Args:
        model: Implements the model contract (``models.base``).
        tx: Optimizer, see ``optimizers.make_optimizer``.
        variables: ``{"params": ..., "batch_stats": ...}`` to start from, or None for the model's random initialization.
        seed: Seed of the initialization and of all random numbers in the steps (dropout).
        ema: Whether to keep a moving average.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    if variables is None:
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), model.example_batch())
        variables = jax.jit(model.init)(init_key, example)  # jit removes the unused forward pass
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), dict(variables["params"]))
    batch_stats = dict(variables.get("batch_stats", {}))
    return TrainState(
        step=jnp.zeros([], jnp.int32), params=params, batch_stats=batch_stats, opt_state=tx.init(params),
        # A copy: a donated buffer must not appear twice.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None,
        key=jax.random.key_data(key))
