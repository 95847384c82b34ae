"""Learning-rate schedules and optimizers that follow PyTorch's update rules, with parameter groups.

All five papers trained in PyTorch, so their learning rates and decays mean what ``torch.optim`` makes of them:
``sgd`` and ``adam`` add ``weight_decay * parameter`` to the gradient (coupled decay), ``adamw`` shrinks the parameter
beside the step, momentum has no dampening, and the learning rate multiplies the finished momentum buffer.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from uvos_jax.config_schema import (
    REQUIRED,
    check_options,
    choice,
    flag,
    fraction,
    number,
    one_or_more,
    optional,
    pattern,
    positive,
    sections,
    whole,
)
from uvos_jax.errors import UserError, nearest_hint

Schedule = Callable[[jax.Array], jax.Array]

_SCHEDULE = {
    "name": choice(REQUIRED, ("constant", "poly", "cosine", "one_cycle")), "lr": optional(positive(None)),
    "peak": optional(positive(None)), "steps": optional(whole(None, 1)), "warmup": optional(whole(0, 0)),
    "end": optional(number(0.0)), "power": number(0.9), "pct_start": fraction(0.3), "div_factor": positive(25.0),
    "final_div_factor": positive(1e4), "anneal": choice("cosine", ("cosine", "linear")),
}
_OPTIMIZER = {
    "name": choice(REQUIRED, ("sgd", "adam", "adamw")), "momentum": fraction(0.9, one=False),
    "b1": fraction(0.9, one=False), "b2": fraction(0.999, one=False), "eps": positive(1e-8),
    "weight_decay": optional(number(0.0)), "clip_norm": optional(positive(None)), "groups": optional(sections(())),
}
_GROUP = {"match": pattern(REQUIRED), "lr": one_or_more(number(1.0)), "decay": flag(True)}


class OptimizerState(NamedTuple):
    """What an optimizer of :func:`make_optimizer` remembers.

    Attributes:
      count: int32 ``[]``, updates made so far; the schedule's position.
      inner: optax's moments, by path of the parameter; frozen parameters have none.
    """

    count: jax.Array
    inner: Any


def schedule(config: Mapping, total_steps: int) -> Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    ``poly`` is ``lr (1 - t / steps)^power``, never below ``end`` (DeepLab's rule; the papers' horizon may lie past the
    end of training); ``cosine`` falls from ``lr`` to ``end`` as ``CosineAnnealingLR``; ``one_cycle`` rises from
    ``lr / div_factor`` over ``pct_start`` of the steps and falls to ``lr / (div_factor final_div_factor)``, both along
    a cosine or a line (``anneal``), as ``OneCycleLR``. Past the horizon the last value stays.

    Args:
      config: ``{"name": one of constant, poly, cosine, one_cycle; "lr" (or "peak"); "steps": horizon, by default
        total_steps; "warmup": 0, first steps, in which the rate rises linearly from 0, the rest follows over the
        remaining horizon; "end": 0.0; "power": 0.9; "pct_start": 0.3; "div_factor": 25.0; "final_div_factor": 1e4;
        "anneal": "cosine" or "linear"}``.
      total_steps: steps of the phase.

    Raises:
      UserError: an unknown name or key, or a number that makes no schedule.
    """
    config = check_options(config, _SCHEDULE, "schedule")
    name, peak, end = config["name"], config["lr"] or config["peak"], config["end"] or 0.0
    if (config["lr"] is None) == (config["peak"] is None):
        raise UserError("The schedule configuration needs lr, or peak, which is the same; not both.")
    if end > peak:
        raise UserError(f"schedule.end ({end}) must not be above the learning rate ({peak}).")
    steps, warmup = config["steps"] or total_steps, config["warmup"] or 0
    if steps <= warmup:
        raise UserError(f"The rate rises for schedule.warmup={warmup} steps of {steps}: shorten the warm-up, or"
                        " train longer.")
    if name == "one_cycle":
        if warmup:
            raise UserError("The one_cycle schedule rises by itself; set schedule.warmup to 0 and use"
                            " schedule.pct_start.")
        return _one_cycle(peak, steps, config["pct_start"], config["div_factor"], config["final_div_factor"],
                          config["anneal"])
    power = config["power"]

    def rate(count):
        count = jnp.asarray(count, jnp.float32)
        t = jnp.clip((count - warmup) / (steps - warmup), 0.0, 1.0)
        value = {"constant": lambda: jnp.full_like(t, peak),
                 "poly": lambda: jnp.maximum(peak * (1 - t) ** power, end),
                 "cosine": lambda: end + (peak - end) * (1 + jnp.cos(jnp.pi * t)) / 2}[name]()
        return jnp.where(count < warmup, peak * count / max(warmup, 1), value)

    return rate


def _one_cycle(peak, steps, pct_start, div_factor, final_div_factor, anneal):
    start, end = peak / div_factor, peak / div_factor / final_div_factor
    top = pct_start * steps - 1  # PyTorch's last position of the rise; the first is 0
    if not (0 < top < steps - 1):
        raise UserError(f"schedule.pct_start {pct_start} leaves no room to rise and to fall in {steps} steps.")

    def between(a, b, t):
        t = jnp.clip(t, 0.0, 1.0)
        return b + (a - b) * ((1 + jnp.cos(jnp.pi * t)) / 2 if anneal == "cosine" else 1 - t)

    def rate(count):
        count = jnp.asarray(count, jnp.float32)
        return jnp.where(count <= top, between(start, peak, count / top),
                         between(peak, end, (count - top) / (steps - 1 - top)))

    return rate


def make_optimizer(config: Mapping, schedule: Schedule, params: Mapping, first_step: int = 0
                   ) -> optax.GradientTransformation:
    """Builds the optimizer of a phase.

    An update is: gradients of all trainable parameters clipped together to ``clip_norm``, coupled decay, moments,
    decoupled decay (``adamw``), learning rate times the group's multiplier. Frozen parameters get an update of exactly
    zero, have no moments and do not count in the norm.

    Args:
      config: ``{"name": "sgd" | "adam" | "adamw", "momentum": 0.9, "b1": 0.9, "b2": 0.999, "eps": 1e-8,
        "weight_decay": 0.0, "clip_norm": None, "groups": []}``. A group is ``{"match": regular expression on the
        whole path "module/name/kernel", "lr": multiplier (0 freezes), "decay": bool}``; the first that matches counts,
        a parameter that none matches has ``lr`` 1 and decays. Of a list of multipliers, global step ``t`` takes entry
        ``t % len``, in step with data by turns; momentum and moments gather the gradients of all steps.
      schedule: learning rate by number of updates, see :func:`schedule`.
      params: nested dict of arrays or ``ShapeDtypeStruct``s; only its paths are read.
      first_step: global step of the first update.

    Raises:
      UserError: an unknown name or key, or a group without a parameter.
    """
    config = check_options(config, _OPTIMIZER, "optimizer")
    groups = _assign([check_options(group, _GROUP, "optimizer.groups") for group in config["groups"] or ()],
                     list(flatten_dict(params, sep="/")))
    turns = {path: tuple(np.atleast_1d(group["lr"]).tolist()) for path, group in groups.items()}
    multipliers = {path: factors for path, factors in turns.items() if any(factors)}
    if not multipliers:
        raise UserError("optimizer.groups freezes every parameter; leave one group with an lr other than 0.")
    decay = optax.add_decayed_weights(config["weight_decay"] or 0.0,
                                      {path: groups[path]["decay"] for path in multipliers})
    adam = optax.scale_by_adam(config["b1"], config["b2"], config["eps"])
    rule = {"sgd": (decay, optax.trace(config["momentum"])), "adam": (decay, adam), "adamw": (adam, decay)}
    clip = [optax.clip_by_global_norm(config["clip_norm"])] if config["clip_norm"] else []
    inner = optax.chain(*clip, *rule[config["name"]])

    def trainable(tree):
        flat = flatten_dict(tree, sep="/")
        return {path: flat[path] for path in multipliers}

    def init(params):
        return OptimizerState(jnp.zeros([], jnp.int32), inner.init(trainable(params)))

    def update(grads, state, params):
        updates, moments = inner.update(trainable(grads), state.inner, trainable(params))
        rate, step = schedule(state.count), first_step + state.count
        rates = {factors: rate * jnp.asarray(factors, jnp.float32)[step % len(factors)]
                 for factors in set(multipliers.values())}
        full = {path: -rates[multipliers[path]] * updates[path] if path in multipliers else jnp.zeros_like(grad)
                for path, grad in flatten_dict(grads, sep="/").items()}
        return unflatten_dict(full, sep="/"), OptimizerState(state.count + 1, moments)

    return optax.GradientTransformation(init, update)


def _assign(groups, paths):
    """The first group that matches each path, or an empty one; every group must get a path."""
    first, matched = {}, set()
    for path in paths:
        hits = [i for i, group in enumerate(groups) if re.fullmatch(group["match"], path)]
        matched.update(hits)
        first[path] = hits[0] if hits else None
    for i, group in enumerate(groups):
        if i not in matched:
            raise UserError(f"optimizer.groups: {group['match']!r} matches no parameter; it must match a whole path"
                            f" such as '{paths[0]}'.{nearest_hint(group['match'], paths)}")
        if i not in first.values():
            raise UserError(f"optimizer.groups: every parameter that '{group['match']}' matches belongs to an"
                            " earlier group; put the special group before the general one.")
    return {path: groups[i] if i is not None else {"lr": 1.0, "decay": True} for path, i in first.items()}
