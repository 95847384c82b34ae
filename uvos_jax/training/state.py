"""Everything a training run remembers, as one pytree of plain arrays."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """State of a run after ``step`` steps; also the position in the data, which is a function of the step.

    Attributes:
      step: int32 ``[]``, steps made so far in all phases.
      params: float32 parameters, whatever type the model computes in.
      batch_stats: float32 running statistics, ``{}`` for a model without.
      opt_state: of the optimizer.
      ema: exponential moving average of ``{"params", "batch_stats"}``, or None: averaged parameters normalized by the
        latest statistics would not fit each other while the learning rate is high.
      key: uint32 ``[n]``, data of the PRNG key from which every step derives its own.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    key: jax.Array


def create_state(model: nn.Module, tx: optax.GradientTransformation, variables: Mapping | None, seed: int | jax.Array,
                 ema: bool = False) -> TrainState:
    """The state before the first step; traceable, so ``jax.eval_shape`` gives its shapes without memory.

    Args:
      model: of the model contract.
      tx: optimizer, see ``optimizers.make_optimizer``.
      variables: ``{"params": ..., "batch_stats": ...}`` to start from, or None for the model's random initialization.
      seed: of the initialization and of every random number in the steps (dropout).
      ema: whether a moving average is kept.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    if variables is None:
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), model.example_batch())
        variables = jax.jit(model.init)(init_key, example)  # compiled, the forward pass that nobody reads falls away
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), dict(variables["params"]))
    batch_stats = dict(variables.get("batch_stats", {}))
    return TrainState(
        step=jnp.zeros([], jnp.int32), params=params, batch_stats=batch_stats, opt_state=tx.init(params),
        # A copy: a donated buffer may appear only once.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None,
        key=jax.random.key_data(key))
