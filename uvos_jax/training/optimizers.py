"""Learning-rate schedules and optimizers with parameter groups, built on optax.

The papers trained in PyTorch, so learning rates and weight decays have the meaning of ``torch.optim``: ``sgd`` and
``adam`` add ``weight_decay * parameter`` to the gradient (coupled decay), ``adamw`` subtracts the decay apart from the
moments, momentum has no dampening, and the learning rate multiplies the finished momentum buffer. The tests compare
every rule with PyTorch step by step.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from uvos_jax.config_schema import (
    REQUIRED,
    boolean,
    check_options,
    choice,
    fraction,
    integer,
    mappings,
    number,
    one_or_more,
    optional,
    positive,
    regex,
)
from uvos_jax.errors import UserError, nearest_hint, pluralize

Schedule = Callable[[jax.Array], jax.Array]

_SCHEDULE = {
    "name": choice(REQUIRED, ("constant", "poly", "cosine", "one_cycle")), "lr": optional(positive(None)),
    "peak": optional(positive(None)), "steps": optional(integer(None, 1)), "warmup": optional(integer(0, 0)),
    "end": optional(number(0.0)), "power": number(0.9), "pct_start": fraction(0.3), "div_factor": positive(25.0),
    "final_div_factor": positive(1e4), "anneal": choice("cosine", ("cosine", "linear")),
}
_OPTIMIZER = {
    "name": choice(REQUIRED, ("sgd", "adam", "adamw")), "momentum": fraction(0.9, one=False),
    "b1": fraction(0.9, one=False), "b2": fraction(0.999, one=False), "eps": positive(1e-8),
    "weight_decay": optional(number(0.0)), "clip_norm": optional(positive(None)), "groups": optional(mappings(())),
}
_GROUP = {"match": regex(REQUIRED), "lr": one_or_more(number(1.0)), "decay": boolean(True)}
_UNMATCHED = {"lr": 1.0, "decay": True}  # the group of parameters that no pattern matches
_FROZEN = "frozen"


def make_schedule(config: Mapping, total_steps: int) -> Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    The schedules, with ``t`` the number of updates:

    - ``constant``: ``lr``.
    - ``poly``: ``lr (1 - t / steps)^power``, at least ``end`` (DeepLab). The horizon ``steps`` may exceed the training.
    - ``cosine``: half a cosine from ``lr`` to ``end``, as ``CosineAnnealingLR``.
    - ``one_cycle``: rises from ``lr / div_factor`` over ``pct_start`` of the steps, then falls to
      ``lr / (div_factor final_div_factor)``, along cosines or lines (``anneal``), as ``OneCycleLR``.

    After the horizon the rate keeps its last value.

    Args:
        config: ``{"name": schedule, "lr" (or "peak"): highest rate, "steps": horizon, default total_steps,
            "warmup": 0, number of first steps with a rate that rises linearly from 0, which are part of the horizon,
            "end": 0.0, "power": 0.9, "pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4,
            "anneal": "cosine" or "linear"}``.
        total_steps: Steps of the phase.

    Returns:
        A function from the number of updates, int32 ``[]``, to the rate, float32 ``[]``.

    Raises:
        UserError: A name or key is unknown, or the numbers contradict each other.
    """
    config = check_options(config, _SCHEDULE, "schedule")
    name, peak, end = config["name"], config["lr"] or config["peak"], config["end"] or 0.0
    if (config["lr"] is None) == (config["peak"] is None):
        raise UserError("The schedule configuration needs either lr or peak (the same value), and not both.")
    if end > peak:
        raise UserError(f"schedule.end ({end}) must not be above the learning rate ({peak}).")
    steps, warmup = config["steps"] or total_steps, config["warmup"] or 0
    if steps <= warmup:
        raise UserError(f"schedule.warmup={warmup} does not end within {pluralize(steps, 'step')}. Shorten the warm-up"
                        " or train longer.")
    if name == "one_cycle":
        if warmup:
            raise UserError("The one_cycle schedule has its own warm-up; set schedule.warmup to 0 and use"
                            " schedule.pct_start.")
        return _one_cycle(peak, steps, config["pct_start"], config["div_factor"], config["final_div_factor"],
                          config["anneal"])
    if name == "constant":
        rate = optax.constant_schedule(peak)
    elif name == "poly":
        power = optax.polynomial_schedule(peak, 0.0, config["power"], steps - warmup)

        def rate(count):
            return jnp.maximum(power(count), end)
    else:
        rate = optax.cosine_decay_schedule(peak, steps - warmup, end / peak)
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rate], [warmup])
    return lambda count: jnp.asarray(rate(count), jnp.float32)


def _one_cycle(peak, steps, pct_start, div_factor, final_div_factor, anneal):
    """``OneCycleLR`` of PyTorch.

    optax's one-cycle schedules cannot replace it: they put the peak at ``int(pct_start * steps)`` and the end at
    ``steps``, PyTorch at ``pct_start * steps - 1``, which may be fractional, and at ``steps - 1``.
    """
    start, end = peak / div_factor, peak / div_factor / final_div_factor
    top = pct_start * steps - 1
    if not (0 < top < steps - 1):
        raise UserError(f"schedule.pct_start {pct_start} leaves no room to rise and to fall in"
                        f" {pluralize(steps, 'step')}. Change pct_start, or train longer.")

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

    One update: clip the gradients of all trainable parameters together to the norm ``clip_norm``, add the coupled
    decay, update the moments, add the decoupled decay (``adamw``), and multiply by the learning rate times the factor
    of the parameter's group. Frozen parameters have updates of exactly zero and no moments, and do not count in the
    norm.

    Args:
        config: ``{"name": "sgd" | "adam" | "adamw", "momentum": 0.9, "b1": 0.9, "b2": 0.999, "eps": 1e-8,
            "weight_decay": 0.0, "clip_norm": None, "groups": []}``. A group is ``{"match": regular expression on the
            whole path "module/name/kernel", "lr": factor (0 freezes), "decay": bool}``. The first matching group of a
            parameter applies; without one, its factor is 1 and it decays. A list of factors alternates: global step
            ``t`` takes entry ``t % len``, in step with alternating data. Moments accumulate the gradients of all steps.
        schedule: Learning rate by number of updates, see ``make_schedule``.
        params: Nested dict of arrays or ``ShapeDtypeStruct``; only its paths are read.
        first_step: Global step of the first update.

    Returns:
        The optimizer.

    Raises:
        UserError: A name or key is unknown, a group has no parameter, or no parameter is trainable.
    """
    config = check_options(config, _OPTIMIZER, "optimizer")
    groups = [check_options(group, _GROUP, "optimizer.groups") for group in config["groups"] or ()]
    numbers = _assign_groups(groups, list(flatten_dict(params, sep="/")))
    groups.append(_UNMATCHED)
    used = {number for number in numbers.values() if np.any(groups[number]["lr"])}
    if not used:
        raise UserError("optimizer.groups freezes every parameter; leave one group with an lr other than 0.")
    rules = {f"group{number}": _group_optimizer(config, groups[number], schedule, first_step) for number in used}
    labels = unflatten_dict({path: f"group{number}" if number in used else _FROZEN for path, number in numbers.items()},
                            sep="/")
    optimizer = optax.multi_transform(rules | {_FROZEN: optax.set_to_zero()}, labels)
    if not config["clip_norm"]:
        return optimizer
    trainable = jax.tree.map(lambda label: label != _FROZEN, labels)
    return optax.chain(optax.masked(optax.clip_by_global_norm(config["clip_norm"]), trainable), optimizer)


def _group_optimizer(config, group, schedule, first_step):
    """The update rule of a parameter group, learning rate included."""
    factors = np.atleast_1d(np.asarray(group["lr"], np.float32))

    def negative_rate(count):
        return -schedule(count) * jnp.asarray(factors)[(first_step + count) % len(factors)]

    decay = optax.add_decayed_weights(config["weight_decay"] or 0.0) if group["decay"] else optax.identity()
    adam = optax.scale_by_adam(config["b1"], config["b2"], config["eps"])
    rule = {"sgd": (decay, optax.trace(config["momentum"])), "adam": (decay, adam), "adamw": (adam, decay)}
    return optax.chain(*rule[config["name"]], optax.scale_by_schedule(negative_rate))


def _assign_groups(groups: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> dict[str, int]:
    """Returns the number of the first group that matches each path; ``len(groups)`` if none does.

    Raises:
        UserError: A group gets no path.
    """
    first, matched = {}, set()
    for path in paths:
        hits = [i for i, group in enumerate(groups) if re.fullmatch(group["match"], path)]
        matched.update(hits)
        first[path] = hits[0] if hits else len(groups)
    for i, group in enumerate(groups):
        if i not in matched:
            raise UserError(f"optimizer.groups: {group['match']!r} matches no parameter; it must match a whole path"
                            f" such as '{paths[0]}'.{nearest_hint(group['match'], paths)}")
        if i not in first.values():
            raise UserError(f"optimizer.groups: every parameter that '{group['match']}' matches belongs to an"
                            " earlier group; put the special group before the general one.")
    return first
