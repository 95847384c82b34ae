"""Schedules and optimizers against PyTorch; parameter groups, freezing and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from uvos_jax.errors import UserError
from uvos_jax.training.optimizers import make_optimizer, make_schedule

SHAPES = {"backbone/conv/kernel": (3, 4), "backbone/bn/scale": (4,), "head/conv/kernel": (4, 2), "head/conv/bias": (2,)}


def _arrays(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: (scale * rng.normal(size=shape)).astype(np.float64) for path, shape in SHAPES.items()}


def _nested(flat):
    out = {}
    for path, x in flat.items():
        a, b, c = path.split("/")
        out.setdefault(a, {}).setdefault(b, {})[c] = jnp.asarray(x)
    return out


def _flat(tree):
    return {f"{a}/{b}/{c}": np.asarray(x) for a, bs in tree.items() for b, cs in bs.items() for c, x in cs.items()}


def _ours(config, rate, steps, scale=1.0, first=0):
    # In float32, 1 - 0.999^t of optax is off by 1e-5 in the first steps; PyTorch computes it in float64.
    with jax.enable_x64(True):
        return _updates(config, rate, steps, scale, first)


def _updates(config, rate, steps, scale, first):
    params = _nested(_arrays(0))
    tx = make_optimizer(config, rate, params, first)
    state, seen = tx.init(params), []
    for step in range(steps):
        updates, state = jax.jit(tx.update)(_nested(_arrays(step + 1, scale)), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        seen.append(_flat(params))
    return seen, state


def _theirs(torch, make, rate, steps, *, scale=1.0, clip=None, frozen=(), alternating=None):
    """Applies the same gradients with ``torch.optim``.

    ``make(parameters by path)`` returns the optimizer, whose learning rates are factors of ``rate``. If given,
    ``alternating(step)`` returns the factors of a step instead.
    """
    params = {path: torch.nn.Parameter(torch.from_numpy(x.copy())) for path, x in _arrays(0).items()}
    optimizer, seen = make(params), []
    factors = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for path, grad in _arrays(step + 1, scale).items():
            params[path].grad = None if path in frozen else torch.from_numpy(grad)
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        for group, factor in zip(optimizer.param_groups, alternating(step) if alternating else factors, strict=True):
            group["lr"] = factor * rate[step]
        optimizer.step()
        seen.append({path: p.detach().numpy().copy() for path, p in params.items()})
    return seen


def _assert_same(ours, theirs):
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for path in SHAPES:
            np.testing.assert_allclose(a[path], b[path], rtol=2e-6, atol=2e-6, err_msg=f"step {step}, {path}")


RATE = {"name": "poly", "lr": 0.1, "steps": 25}
RATES = [0.1 * (1 - t / 25) ** 0.9 for t in range(20)]


@pytest.mark.torch
@pytest.mark.parametrize(("config", "name", "options"), [
    ({"name": "sgd", "weight_decay": 5e-2}, "SGD", {"momentum": 0.9, "weight_decay": 5e-2}),
    ({"name": "sgd", "momentum": 0.5}, "SGD", {"momentum": 0.5}),
    ({"name": "adam", "weight_decay": 5e-2}, "Adam", {"weight_decay": 5e-2}),
    ({"name": "adam", "b1": 0.8, "b2": 0.95, "eps": 1e-3}, "Adam", {"betas": (0.8, 0.95), "eps": 1e-3}),
    ({"name": "adamw", "weight_decay": 0.3}, "AdamW", {"weight_decay": 0.3}),
])
def test_optimizers_equal_torch(torch, config, name, options):
    ours, state = _ours(config, make_schedule(RATE, 25), 20)
    _assert_same(ours, _theirs(torch, lambda p: getattr(torch.optim, name)(p.values(), lr=1.0, **options), RATES, 20))
    counts = optax.tree_utils.tree_get_all_with_path(state, "count")
    assert counts and all(count == 20 for _, count in counts)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_groups_and_clipping_equal_torch(torch, name):
    config = ConfigDict({"name": name, "weight_decay": 0.1, "clip_norm": 2.0, "groups": [
        {"match": "backbone/conv/.*", "lr": 0.0},
        {"match": ".*/(scale|bias)", "decay": False},
        {"match": "head/.*", "lr": 10},
    ]})
    ours, _ = _ours(config, make_schedule(RATE, 25), 20)

    def make(p):
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
        options = {"momentum": 0.9} if name == "sgd" else {}
        return kind([{"params": [p["backbone/bn/scale"], p["head/conv/bias"]], "lr": 1.0, "weight_decay": 0.0},
                     {"params": [p["head/conv/kernel"]], "lr": 10.0, "weight_decay": 0.1}], lr=1.0, **options)

    _assert_same(ours, _theirs(torch, make, RATES, 20, clip=2.0, frozen=("backbone/conv/kernel",)))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_alternating_rates_equal_torch(torch, name):
    config = {"name": name, "weight_decay": 0.1, "groups": [
        {"match": "backbone/.*", "lr": [1.0, 0.01, 0.01]}, {"match": ".*/bias", "lr": [0.0, 2.0]},
        {"match": ".*", "lr": 10.0}]}
    ours, _ = _ours(config, make_schedule(RATE, 25), 20, first=4)  # global steps 4, 5, ...
    options = {"momentum": 0.9} if name == "sgd" else {}

    def make(p):
        groups = [[p["backbone/conv/kernel"], p["backbone/bn/scale"]], [p["head/conv/bias"]], [p["head/conv/kernel"]]]
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
        return kind([{"params": group} for group in groups], lr=1.0, weight_decay=0.1, **options)

    def alternating(step):
        return (1.0 if step % 3 == 2 else 0.01), (2.0 if step % 2 else 0.0), 10.0

    _assert_same(ours, _theirs(torch, make, RATES, 20, alternating=alternating))


def test_alternating_rates_equal_hand_computed_values():
    rate = make_schedule({"name": "constant", "lr": 1.0}, 9)
    groups = [{"match": "backbone/.*", "lr": [2.0, 0.0, 0.5]}, {"match": "head/.*", "lr": [0.0, 0.0]}]
    seen, state = _ours({"name": "sgd", "momentum": 0.0, "groups": groups}, rate, 4, first=7)  # 7, 8, 9, 10
    start, grads = _arrays(0), [_arrays(step + 1) for step in range(4)]
    path = "backbone/conv/kernel"
    value = start[path]
    for step, factor in enumerate((0.0, 0.5, 2.0, 0.0)):
        value = value - factor * grads[step][path]
        np.testing.assert_allclose(seen[step][path], value, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(seen[-1]["head/conv/bias"], start["head/conv/bias"])
    # Parameters whose factors are all 0 have no momentum.
    assert len([leaf for leaf in jax.tree.leaves(state) if leaf.ndim]) == 2


def test_clipping_does_not_change_small_gradients():
    rate = make_schedule({"name": "constant", "lr": 0.1}, 9)
    clipped, _ = _ours({"name": "sgd", "clip_norm": 1.0}, rate, 3, scale=1e-3)
    free, _ = _ours({"name": "sgd"}, rate, 3, scale=1e-3)
    for path in SHAPES:
        np.testing.assert_array_equal(clipped[-1][path], free[-1][path])


def test_frozen_parameters_do_not_change_and_have_no_moments():
    config = {"name": "adam", "weight_decay": 0.5, "groups": [{"match": "backbone/.*", "lr": 0}]}
    seen, state = _ours(config, make_schedule(RATE, 25), 3)
    start = _arrays(0)
    for path in SHAPES:
        assert np.array_equal(seen[-1][path], start[path]) == path.startswith("backbone/")
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [SHAPES["head/conv/kernel"], SHAPES["head/conv/bias"]])


def test_first_matching_group_applies():
    rate = make_schedule({"name": "constant", "lr": 1.0}, 9)
    groups = [{"match": ".*/bias", "lr": 2.0}, {"match": "head/.*", "lr": 3.0}]
    seen, _ = _ours({"name": "sgd", "groups": groups}, rate, 1)
    start, grad = _arrays(0), _arrays(1)
    for path, factor in (("head/conv/bias", 2), ("head/conv/kernel", 3), ("backbone/bn/scale", 1)):
        np.testing.assert_allclose(seen[0][path], start[path] - factor * grad[path], rtol=1e-6, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("config", "make"), [
    ({"name": "poly", "lr": 0.3, "power": 0.9, "steps": 30},
     lambda o, s: s.PolynomialLR(o, total_iters=30, power=0.9)),
    ({"name": "poly", "lr": 0.3, "power": 2, "steps": 12}, lambda o, s: s.PolynomialLR(o, total_iters=12, power=2)),
    ({"name": "cosine", "lr": 0.3, "end": 0.01}, lambda o, s: s.CosineAnnealingLR(o, T_max=25, eta_min=0.01)),
    ({"name": "one_cycle", "peak": 0.3}, lambda o, s: s.OneCycleLR(o, max_lr=0.3, total_steps=25)),
    ({"name": "one_cycle", "lr": 0.3, "steps": 30, "pct_start": 0.11, "div_factor": 4.0, "final_div_factor": 7.0},
     lambda o, s: s.OneCycleLR(o, 0.3, total_steps=30, pct_start=0.11, div_factor=4.0, final_div_factor=7.0)),
    ({"name": "one_cycle", "lr": 0.3, "pct_start": 0.15, "anneal": "linear"},
     lambda o, s: s.OneCycleLR(o, 0.3, total_steps=25, pct_start=0.15, cycle_momentum=False,
                               anneal_strategy="linear")),
    ({"name": "constant", "lr": 0.3}, lambda o, s: s.ConstantLR(o, factor=1.0)),
    ({"name": "poly", "lr": 0.3, "warmup": 5, "steps": 20, "power": 0.9},
     lambda o, s: s.SequentialLR(o, [s.LinearLR(o, 1e-9, total_iters=5), s.PolynomialLR(o, 15, 0.9)], [5])),
])
def test_schedules_equal_torch(torch, config, make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler, theirs = make(optimizer, torch.optim.lr_scheduler), []
    for _ in range(25):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = [float(make_schedule(config, 25)(step)) for step in range(25)]
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=3e-8)


def test_schedules_equal_hand_computed_values():
    poly = make_schedule({"name": "poly", "lr": 0.005, "steps": 40000}, 30000)  # AD-Net: longer than training
    assert float(poly(0)) == pytest.approx(0.005)
    assert float(poly(30000)) == pytest.approx(0.005 * 0.25 ** 0.9, rel=1e-5)
    clamped = make_schedule({"name": "poly", "lr": 0.1, "end": 0.02, "steps": 10}, 10)
    assert [float(clamped(t)) for t in (9, 10, 99)] == pytest.approx([0.02] * 3)
    cosine = make_schedule({"name": "cosine", "lr": 1.0, "end": 0.2, "warmup": 4}, 14)
    assert [float(cosine(t)) for t in (0, 1, 4, 9, 14, 50)] == pytest.approx([0, 0.25, 1, 0.6, 0.2, 0.2])


@pytest.mark.parametrize(("config", "says"), [
    ({"name": "polly", "lr": 1.0}, "one of constant, poly, cosine, one_cycle, not 'polly'.* Did you mean 'poly'"),
    ({"name": "poly", "lr": 1.0, "powr": 1}, "Did you mean 'power'"),
    ({"name": "poly"}, "needs either lr or peak"),
    ({"name": "poly", "lr": 1.0, "peak": 1.0}, "needs either lr or peak"),
    *(({"name": "poly", "lr": lr}, "lr must be None or a number above 0")
      for lr in (-1.0, 0, True, "x", float("inf"), float("nan"), 10**400)),
    ({"name": "poly", "lr": 1.0, "end": 2.0}, "must not be above"),
    *(({"name": "poly", "lr": 1.0} | change, f"schedule configuration's {next(iter(change))} must be")
      for change in ({"power": "x"}, {"power": None}, {"power": -1}, {"steps": "x"}, {"steps": 2.5}, {"steps": 0},
                     {"warmup": "x"}, {"warmup": -1}, {"end": "x"}, {"pct_start": "x"}, {"div_factor": 0},
                     {"final_div_factor": 0}, {"name": 3}, {"name": ["poly"]})),
    (3, "must be a dict"),
    ({"name": "poly", "lr": 1.0, "warmup": 10}, "Shorten the warm-up"),
    ({"name": "one_cycle", "lr": 1.0, "warmup": 2}, "its own warm-up"),
    ({"name": "one_cycle", "lr": 1.0, "pct_start": 0.05}, "no room"),
])
def test_bad_schedules_are_errors(config, says):
    with pytest.raises(UserError, match=says):
        make_schedule(config, 10)


@pytest.mark.parametrize(("config", "says"), [
    ({"name": "sdg"}, "one of sgd, adam, adamw, not 'sdg'.* Did you mean 'sgd'"),
    *(({"name": "sgd"} | change, f"optimizer configuration's {next(iter(change))} must be")
      for change in ({"momentum": "x"}, {"momentum": 5}, {"momentum": -1}, {"weight_decay": "x"}, {"weight_decay": -1},
                     {"clip_norm": "x"}, {"clip_norm": -1}, {"b1": 2}, {"eps": 0}, {"groups": [".*"]},
                     {"groups": {"match": ".*"}})),
    *(({"name": "sgd", "groups": [{"match": ".*"} | change]}, f"groups configuration's {next(iter(change))} must be")
      for change in ({"lr": "x"}, {"lr": -1}, {"lr": float("inf")}, {"decay": "no"}, {"match": 3}, {"lr": []},
                     {"lr": [1.0, -1.0]}, {"lr": [[1.0]]}, {"lr": [1.0, None]})),
    ({"name": "sgd", "groups": [{"match": ".*", "lr": [-1]}]},
     r"^The optimizer.groups configuration's lr must be a number of at least 0, or a list of such values,"
     r" not \[-1\]\.$"),
    ({"name": "sgd", "moment": 0.9}, "Did you mean 'momentum'"),
    ({"name": "sgd", "groups": [{"match": "backbone"}]}, "'backbone' matches no parameter"),
    ({"name": "sgd", "groups": [{"match": ".*"}, {"match": "head/.*"}]}, "earlier group"),
    ({"name": "sgd", "groups": [{"match": "("}]}, "regular expression"),
    ({"name": "sgd", "groups": [{"lr": 2.0}]}, "Missing key 'match'"),
    ({"name": "sgd", "groups": [{"match": ".*", "lrs": 2.0}]}, "Unknown key 'lrs'"),
    ({"name": "sgd", "groups": [{"match": ".*", "lr": 0}]}, "freezes every parameter"),
    ({"name": "sgd", "groups": [{"match": ".*", "lr": [0, 0.0]}]}, "freezes every parameter"),
])
def test_bad_optimizers_are_errors(config, says):
    with pytest.raises(UserError, match=says):
        make_optimizer(config, make_schedule(RATE, 25), _nested(_arrays(0)))
