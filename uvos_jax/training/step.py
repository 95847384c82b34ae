"""The training step of one device; ``launchers.Launcher`` runs it on many."""

import contextlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from uvos_jax.errors import UserError
from uvos_jax.nn.layers import BatchNorm
from uvos_jax.training.optimizers import Schedule
from uvos_jax.training.state import TrainState

BATCH_NORMS = ("sync", "local", "frozen")
Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(model: nn.Module, tx: optax.GradientTransformation, schedule: Schedule, *,
                    batch_norm: str = "sync", accumulate: int = 1, ema_decay: float | None = None,
                    axis_name: str | None = None, first_step: int = 0) -> Step:
    """Builds ``step(state, clip_batch) -> (state, metrics)``.

    The loss is the mean of the model's per-example losses over the whole batch, so the result does not depend on how
    the batch is split over devices. There are two exceptions: dropout masks differ between device counts, and
    ``local`` batch norm uses the examples of its device only.

    Args:
        model: Implements the model contract (``models.base``).
        tx: Optimizer, see ``optimizers.make_optimizer``.
        schedule: Learning rate that ``tx`` applies, for the metric.
        batch_norm: ``"sync"``: statistics of the whole batch. ``"local"``: statistics of each device's part; running
            statistics are averaged over devices. ``"frozen"``: running statistics normalize and stay unchanged
            (dropout stays active).
        accumulate: Number of micro-batches whose gradients are averaged for one update, to save memory. Each
            micro-batch is normalized by its own statistics and updates the running statistics in turn. Micro-batch
            ``i`` takes every ``accumulate``-th example, so it has the same examples on any number of devices.
        ema_decay: Decay of the moving average of parameters and running statistics, at step ``t`` at most
            (1 + t) / (10 + t); None or 0 disables it.
        axis_name: Mapped device axis, or None if the program sees the whole batch.
        first_step: Global step at which ``schedule`` starts.

    Returns:
        The step. Metrics are float32 ``[]``, equal on every device: ``loss``, ``loss/<part>``, ``grad_norm`` (of the
        averaged gradient of all parameters, before clipping) and ``learning_rate``.

    Raises:
        UserError: ``batch_norm`` is unknown; while tracing: the batch cannot be split into ``accumulate`` parts.
    """
    if batch_norm not in BATCH_NORMS:
        raise UserError(f"batch_norm must be one of {', '.join(BATCH_NORMS)}, not {batch_norm!r}.")
    if accumulate < 1:
        raise UserError(f"accumulate must be at least 1, not {accumulate}.")
    model = model.clone(axis_name=axis_name if batch_norm == "sync" else None)

    def mean(tree):
        return lax.pmean(tree, axis_name) if axis_name else tree

    def loss(params, batch_stats, clips, key, step):
        batch = model.training_batch(clips)
        variables = {"params": params, "batch_stats": batch_stats}
        with nn.intercept_methods(_freeze) if batch_norm == "frozen" else contextlib.nullcontext():
            (outputs, _), updated = model.apply(variables, batch, True, rngs={"dropout": key}, mutable=["batch_stats"])
        losses, parts = model.loss(outputs, batch, step)
        metrics = {"loss": losses.mean()} | {f"loss/{name}": part.mean() for name, part in parts.items()}
        return losses.mean(), (dict(updated.get("batch_stats", {})), metrics)

    def gradients(state, clips, key):
        """Returns the gradient, new running statistics and metrics of this device's examples."""
        gradient = jax.grad(loss, has_aux=True)
        if accumulate == 1:
            grads, (batch_stats, metrics) = gradient(state.params, state.batch_stats, clips, key, state.step)
            return grads, batch_stats, metrics

        def micro_step(carry, part):
            batch_stats, total = carry
            clips, i = part
            grads, (batch_stats, metrics) = gradient(state.params, batch_stats, clips, jax.random.fold_in(key, i),
                                                     state.step)
            return (batch_stats, jax.tree.map(jnp.add, total, grads)), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        parts = jax.tree.map(lambda x: _micro_batches(x, accumulate), dict(clips))
        (batch_stats, total), metrics = lax.scan(micro_step, (state.batch_stats, zeros),
                                                 (parts, jnp.arange(accumulate)))
        return (jax.tree.map(lambda g: g / accumulate, total), batch_stats,
                jax.tree.map(lambda m: m.mean(), metrics))

    def step(state, clip_batch):
        if bool(ema_decay) != (state.ema is not None):
            raise ValueError("ema_decay does not match the state: both or neither must have a moving average")
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        key = jax.random.fold_in(key, lax.axis_index(axis_name) if axis_name else 0)
        grads, batch_stats, metrics = gradients(state, clip_batch, key)
        grads, metrics = mean((grads, metrics))
        if batch_norm == "local":
            batch_stats = mean(batch_stats)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None
        if ema_decay:
            # A short average at first, so that the random initialization is soon forgotten.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, state.ema, 1 - decay)
        metrics |= {"grad_norm": optax.tree.norm(grads),  # the current name of optax.global_norm
                    "learning_rate": jnp.asarray(schedule(state.step - first_step), jnp.float32)}
        return state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state,
                             ema=ema), metrics

    # The jit launcher refuses such a step: its program sees the whole batch, not one device's part.
    step.per_device = batch_norm == "local"
    return step


def _micro_batches(x, parts):
    """Splits ``[b, ...]`` into ``[parts, b / parts, ...]`` by every ``parts``-th example.

    A batch that is sharded along ``b`` stays so.
    """
    if x.shape[0] % parts:
        raise UserError(f"{x.shape[0]} examples per device are not divisible by accumulate={parts}. Change"
                        " batch_size or accumulate.")
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def _freeze(call, args, kwargs, context):
    """Calls every batch norm in evaluation mode."""
    if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
        return call(args[0], train=False)
    return call(*args, **kwargs)
