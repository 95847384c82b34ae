"""One training step, as the program of one device; ``launch.Launcher`` runs it on many."""

import contextlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from uvos_jax.errors import UserError
from uvos_jax.nn.layers import BatchNorm
from uvos_jax.training.optimizers import OptimizerState, Schedule
from uvos_jax.training.state import TrainState

BATCH_NORMS = ("sync", "local", "frozen")
Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(model: nn.Module, tx: optax.GradientTransformation, schedule: Schedule, *,
                    batch_norm: str = "sync", accumulate: int = 1, ema_decay: float | None = None,
                    axis_name: str | None = None) -> Step:
    """Builds ``step(state, clip_batch) -> (state, metrics)``.

    The loss is the mean over the whole batch of the model's per-example losses, so the result does not depend on how
    the batch lies on devices. Where it does by nature: dropout draws differ between device counts, and ``local`` batch
    norm sees its device's examples only.

    Args:
      model: of the model contract.
      tx: optimizer, see ``optimizers.make_optimizer``.
      schedule: the learning rate that ``tx`` follows, for the metric.
      batch_norm: ``"sync"``: statistics of the whole batch; ``"local"``: of each device's part, running statistics
        averaged over devices; ``"frozen"``: running statistics normalize and stay (dropout stays on).
      accumulate: micro-batches whose gradients are averaged for one update, to save memory. Every micro-batch is
        normalized by its own statistics, which update the running ones one after the other. Micro-batch ``i`` takes
        every ``accumulate``-th example, so it holds the same ones on any number of devices.
      ema_decay: weight of the past in the moving average of parameters and running statistics, at step ``t`` (1 + t) /
        (10 + t) at most; None or 0 keeps none.
      axis_name: mapped axis over devices, or None where the program sees the whole batch.

    Returns:
      The step. Metrics are float32 scalars, equal on every device: ``loss``, ``loss/<part>``, ``grad_norm`` (of the
      averaged gradient of all parameters, before clipping) and ``learning_rate``.

    Raises:
      UserError: an unknown ``batch_norm``; while tracing, a batch that cannot be cut into ``accumulate`` parts.
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
        """Gradient, new running statistics and metrics of this device's examples."""
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
            raise ValueError("ema_decay and the state disagree on whether a moving average is kept")
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
            # Short at first, so that the random start is soon forgotten.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, state.ema, 1 - decay)
        # A phase starts a new optimizer, whose schedule starts anew while the step goes on.
        count = state.opt_state.count if isinstance(state.opt_state, OptimizerState) else state.step
        metrics |= {"grad_norm": _norm(grads), "learning_rate": jnp.asarray(schedule(count), jnp.float32)}
        return state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state,
                             ema=ema), metrics

    # A program that sees the whole batch has no "own" statistics of a device; the launcher refuses it.
    step.per_device = batch_norm == "local"
    return step


def _micro_batches(x, parts):
    """``[b, ...] -> [parts, b / parts, ...]``, every ``parts``-th example: a batch sharded along ``b`` stays so."""
    if x.shape[0] % parts:
        raise UserError(f"{x.shape[0]} examples a device cannot be accumulated in {parts} equal parts;"
                        " change batch_size or accumulate.")
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def _norm(tree):
    return jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(tree)))


def _freeze(call, args, kwargs, context):
    """Calls every batch norm as in evaluation."""
    if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
        return call(args[0], train=False)
    return call(*args, **kwargs)
