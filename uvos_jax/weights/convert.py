r"""Conversion of PyTorch state_dicts to Flax variables by name rules.

The conversion is strict: every variable must have a key, and every key a variable.

A rule is ``(pattern, key, layout)``. The pattern matches the whole path of a Flax module (``backbone/layer1_0/conv1``).
The key is the name of the PyTorch module, with back-references to the pattern (``features.layer\1.\2.conv\3``). The
first matching rule applies. The layout says how the arrays correspond:

- ``conv``: ``weight`` OIHW -> ``kernel`` HWIO (depthwise and grouped too), ``bias``.
- ``linear``: ``weight`` (out, in) -> ``kernel`` (in, out), ``bias``.
- ``edge``: ``weight`` (out, in, 1, 1) -> ``kernel`` (in, out): a 1x1 convolution that is a dense layer here.
- ``norm``: ``weight, bias, running_mean, running_var`` -> ``scale, bias, mean, var``.
- ``abn``: as ``norm``, with scale ``|weight| + 1e-5``, which in-place activated batch norm (in-place ABN) uses.
- ``prelu``: ``weight`` -> ``slope``.
- ``gate``: ``alpha, gamma, beta`` (1, c, 1, 1) -> the same (c).
- ``match_bias``: ``bg_bias, fg_bias`` (1, 1, 1, 1) -> ``background, foreground`` (1), top-level parameters in PyTorch.
- ``alias``: no Flax module; the pattern matches a key that the published code saves twice, and the key is the other
  name. Either may be missing; if both exist they must be equal.
- ``unused``: no Flax module; the pattern matches saved keys that the published network does not use.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from uvos_jax.errors import UserError
from uvos_jax.models import Model, build

Rules = Sequence[tuple[str, str, str]]
_ABN_EPSILON = np.float32(1e-5)
# Counters of PyTorch's batch norm; not used here.
_IGNORED = re.compile(r".*\bnum_batches_tracked")


def _as_is(x):
    return x


def _hwio(x):
    return x.transpose(2, 3, 1, 0)


def _io(x):
    return x[:, :, 0, 0].T


def _channels(x):
    return x[0, :, 0, 0]


_NORM = {"scale": ("weight", _as_is), "bias": ("bias", _as_is), "mean": ("running_mean", _as_is),
         "var": ("running_var", _as_is)}
_LAYOUTS: dict[str, dict[str, tuple[str, Callable]]] = {
    "conv": {"kernel": ("weight", _hwio), "bias": ("bias", _as_is)},
    "linear": {"kernel": ("weight", np.transpose), "bias": ("bias", _as_is)},
    "edge": {"kernel": ("weight", _io)},
    "norm": _NORM,
    "prelu": {"slope": ("weight", _as_is)},
    "gate": {name: (name, _channels) for name in ("alpha", "gamma", "beta")},
    "match_bias": {"background": ("bg_bias", _channels), "foreground": ("fg_bias", _channels)},
    "abn": _NORM | {"scale": ("weight", lambda x: np.abs(x) + _ABN_EPSILON)},
}


def from_torch(name: str, state_dict: Mapping[str, np.ndarray], **overrides) -> dict:
    """Converts a published checkpoint to variables of ``models.build(name, **overrides)``.

    Args:
        name: Name of the system, e.g. ``"adnet"``.
        state_dict: Arrays by PyTorch key; wrappers and ``module.`` prefixes are removed first (:func:`unwrap`).
        **overrides: Hyper-parameters of the model.

    Returns:
        ``{"params": ..., "batch_stats": ...}`` of float32 NumPy arrays.

    Raises:
        UserError: Keys are missing, extra or misshapen; the message lists at most ten of each kind.
    """
    model = build(name, **overrides)
    rules = model.torch_rules()
    if rules is None:
        raise UserError(f"Cannot convert weights for {name}: its authors have published none. Give a checkpoint"
                        " directory of this library.")
    return convert(expected_variables(model), unwrap(state_dict), rules, what=name)


def expected_variables(model: Model) -> dict:
    """Returns the shapes of a model's variables as ``ShapeDtypeStruct``s, without computing anything.

    Equal models are traced once per process, because tracing takes seconds. The caller owns the returned tree.
    """
    return jax.tree.map(lambda shape: shape, _traced_variables(model))


@functools.lru_cache(maxsize=128)
def _traced_variables(model: Model) -> dict:
    return jax.eval_shape(model.init, jax.random.key(0), model.example_batch())


def convert(expected: dict, state_dict: Mapping[str, np.ndarray], rules: Rules, what: str) -> dict:
    """Fills the tree ``expected`` from ``state_dict``.

    Args:
        expected: Variables as arrays or ``ShapeDtypeStruct``.
        state_dict: Arrays by PyTorch key, unwrapped.
        rules: See the module docstring.
        what: Name of the model, for messages.

    Returns:
        A tree like ``expected`` of float32 NumPy arrays.

    Raises:
        UserError: See :func:`from_torch`.
    """
    state_dict = _without_aliases(state_dict, rules, what)
    variables, missing, misshapen, used = {}, [], [], set()
    for path, leaf in flatten_dict(expected).items():
        key, layout = _their_key(path, rules)
        if key not in state_dict:
            missing.append(key)
            continue
        used.add(key)
        theirs = state_dict[key]
        if not isinstance(theirs, np.ndarray) or theirs.dtype.kind not in "fiu" or not np.isfinite(theirs).all():
            raise UserError(f"'{key}' of this checkpoint for {what} is not an array of finite real numbers.")
        wanted = _their_shape(leaf.shape, layout)
        if theirs.shape != wanted:
            misshapen.append(f"{key} {list(theirs.shape)}, not {list(wanted)}")
            continue
        variables[path] = np.ascontiguousarray(layout(theirs), dtype=np.float32)
    unused = [_IGNORED, *(re.compile(pattern) for pattern, _, layout in rules if layout == "unused")]
    extra = [key for key in state_dict if key not in used and not any(p.fullmatch(key) for p in unused)]
    if missing or extra or misshapen:
        kinds = (("keys missing", missing), ("keys too many", extra), ("misshapen", misshapen))
        parts = [f"{len(keys)} {title if len(keys) > 1 else title.replace('keys', 'key')} ({_first_ten(keys)})"
                 for title, keys in kinds if keys]
        raise UserError(f"This checkpoint does not fit {what}: {'; '.join(parts)}."
                        " Check --model, --variant and the hyper-parameters it was trained with.")
    return unflatten_dict(variables)


def _without_aliases(state_dict, rules, what):
    """Returns the state_dict with every array under a single key."""
    kept = dict(state_dict)
    for pattern, name, layout in rules:
        for key in [key for key in kept if layout == "alias" and re.fullmatch(pattern, key)]:
            first, second = re.fullmatch(pattern, key).expand(name), kept.pop(key)
            if not np.array_equal(kept.setdefault(first, second), second):
                raise UserError(f"'{key}' and '{first}' of this checkpoint for {what} differ, but are the same array"
                                " in the published code.")
    return kept


def unwrap(state_dict: Mapping) -> dict[str, np.ndarray]:
    """Removes ``{"state_dict" | "model" | "model_state_dict": ...}`` wrappers and ``module.`` prefixes."""
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            return unwrap(state_dict[wrapper])
    while state_dict and all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return dict(state_dict)


def expected_torch_shapes(name: str, **overrides) -> dict[str, tuple[int, ...]]:
    """Returns the keys and shapes that :func:`from_torch` expects for ``name`` with these hyper-parameters."""
    model = build(name, **overrides)
    rules = model.torch_rules()
    wanted = {}
    for path, leaf in flatten_dict(expected_variables(model)).items():
        key, layout = _their_key(path, rules)
        wanted[key] = _their_shape(leaf.shape, layout)
    return wanted


def _their_key(path, rules):
    """Returns the PyTorch key of a variable, and the function that converts the PyTorch array."""
    *modules, leaf = path[1:]  # path[0] is the collection
    module = "/".join(modules)
    for pattern, key, layout in rules:
        match = re.fullmatch(pattern, module)
        if match and leaf in _LAYOUTS.get(layout, ()):
            theirs, transform = _LAYOUTS[layout][leaf]
            return f"{match.expand(key)}.{theirs}".lstrip("."), transform
    raise AssertionError(f"no name rule covers {'/'.join(path)}")


def _their_shape(shape, layout):
    if layout is _hwio:
        h, w, c_in, c_out = shape
        return c_out, c_in, h, w
    if layout is _io:
        return *shape[::-1], 1, 1
    if layout is _channels:
        return 1, *shape, 1, 1
    return shape[::-1] if layout is np.transpose else shape


def _first_ten(keys):
    return ", ".join(keys[:10]) + (", ..." if len(keys) > 10 else "")
