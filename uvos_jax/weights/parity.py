"""Numerical parity with reference tensors of the published code.

A reference file is an ``.npz`` of inputs, named intermediate tensors and outputs (NCHW, from PyTorch), the strings
``system`` and ``variant`` and the number ``tolerance``. Weights are not stored: a JSON manifest lists every state_dict
key with its shape, and the values are drawn from a generator seeded by the key (:func:`weights_of`).

The name of a tensor may end in ``_cN`` (first N channels), ``_sN`` (every N-th pixel of both axes) or ``_rowsN`` (first
N rows of an attention matrix).
"""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.models import build, parity_traces
from uvos_jax.weights.convert import from_torch

_MOST_WEIGHTS = 2**27
_META = ("system", "variant", "tolerance")
_SUFFIX = re.compile(r"(?P<base>.+?)(?:_(?:c(?P<c>\d+)|s(?P<s>\d+)|rows(?P<rows>\d+)))?")


@dataclasses.dataclass(frozen=True)
class TensorComparison:
    """TensorComparison of one tensor.

    Attributes:
        name: Name in the reference file.
        error: Largest absolute difference divided by the reference's largest absolute value; NaN if not comparable.
        tolerance: Largest accepted error.
        ok: Whether the error is within the tolerance.
        note: Why the tensor is not comparable, or empty.
    """

    name: str
    error: float
    tolerance: float
    ok: bool
    note: str = ""


def weights_of(manifest: Mapping) -> dict[str, np.ndarray]:
    """Generates the state_dict of a manifest.

    For every key, ``PCG64(crc32(key))`` draws in float64: batch counters are 0, running variances
    ``1 + 0.1 U(0, 1)``, running means and biases ``0.05 N(0, 1)``, one-dimensional weights ``1 + 0.05 N(0, 1)``, other
    weights ``N(0, 2 / fan_in)``, anything else ``0.1 N(0, 1)``; cast to float32, then multiplied by the factor of each
    ``scale`` entry whose expression matches the whole key. Keys in ``alias`` take the value of the key they name.

    Args:
        manifest: ``{"keys": {key: shape}, "scale": [[expression, factor]], "alias": {key: key}}``.

    Returns:
        float32 arrays (int64 for batch counters) by key.

    Raises:
        TypeError: The manifest has another form; also ValueError, KeyError, AttributeError and re.error.
    """
    scales = [(re.compile(expression), np.float32(factor)) for expression, factor in manifest.get("scale", [])]
    alias = manifest.get("alias", {})
    count = sum(abs(math.prod(shape)) for shape in manifest["keys"].values())
    if count > _MOST_WEIGHTS:
        raise ValueError(f"its shapes have {count:.3g} weights in total, more than {_MOST_WEIGHTS:.3g}")
    tensors = {}
    for key, shape in manifest["keys"].items():
        if key in alias:
            continue
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
        if key.endswith("num_batches_tracked"):
            tensors[key] = np.zeros(shape, np.int64)
            continue
        if key.endswith(".running_var"):
            value = 1 + 0.1 * rng.random(shape)
        elif key.endswith((".running_mean", ".bias")):
            value = 0.05 * rng.standard_normal(shape)
        elif key.endswith(".weight") and len(shape) == 1:
            value = 1 + 0.05 * rng.standard_normal(shape)
        elif key.endswith(".weight"):
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            value = 0.1 * rng.standard_normal(shape)
        value = np.asarray(value, np.float32)
        for expression, factor in scales:
            if expression.fullmatch(key):
                value = value * factor
        tensors[key] = value
    return tensors | {key: tensors[target] for key, target in alias.items()}


def check(reference: str | Path, manifest: str | Path | None = None, variant: str | None = None,
          report: Callable[[TensorComparison], None] = lambda _: None) -> list[TensorComparison]:
    """Compares a model with all tensors of a reference file in float32.

    Args:
        reference: ``.npz`` file.
        manifest: JSON manifest; None for ``<system>_manifest.json`` beside the reference.
        variant: Variant of the model; None for the one in the file.
        report: Called with each comparison.

    Returns:
        A comparison for each tensor that is not an input; at least one.

    Raises:
        UserError: A file is missing or has another format, or the weights do not fit the model.
    """
    tensors, meta = _read_reference(Path(reference))
    content = _read_manifest(Path(reference), manifest, meta["system"])
    try:
        weights = weights_of(content)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, re.error) as error:
        raise UserError(f"The manifest for '{reference}' has an invalid rule ({type(error).__name__}: {error})."
                        ) from error
    variant = variant or meta["variant"]
    traces = parity_traces()
    if meta["system"] not in traces:
        raise UserError(f"Unknown system '{meta['system']}' in '{reference}'; valid systems: {', '.join(traces)}.")
    name, trace = traces[meta["system"]]
    overrides = {**trace.overrides, "variant": variant}
    model = build(name, **overrides)
    variables = from_torch(name, weights, **overrides)
    inputs = {name: tensors[name] for name in trace.inputs if name in tensors}
    if len(inputs) < len(trace.inputs):
        lacking = ", ".join(name for name in trace.inputs if name not in inputs)
        raise UserError(f"'{reference}' lacks the inputs {lacking} of {meta['system']}.")
    expected = {name: value for name, value in tensors.items() if name not in inputs}
    if not expected:
        raise UserError(f"'{reference}' has no tensor to compare besides its inputs.")
    try:
        made = trace.run(model, jax.tree.map(jax.numpy.asarray, variables), inputs, expected)
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"The inputs in '{reference}' do not fit {meta['system']}. They must be NCHW and of equal size."
                        ) from error
    results = []
    for name, value in expected.items():
        results.append(_compare(name, value, made, meta["tolerance"]))
        report(results[-1])
    return results


def _compare(name, expected, made, tolerance):
    suffix = _SUFFIX.fullmatch(name)
    ours = made.get(name, made.get(suffix["base"]))
    if ours is None:
        return TensorComparison(name, np.nan, tolerance, False, "the model has no tensor of that name")
    ours = np.asarray(ours(int(suffix["rows"]) if suffix["rows"] else None) if callable(ours) else ours)
    if name not in made:
        if suffix["c"]:
            ours = ours[:, :int(suffix["c"])]
        if suffix["s"]:
            ours = ours[..., ::int(suffix["s"]), ::int(suffix["s"])]
    if ours.shape != expected.shape:
        return TensorComparison(name, np.nan, tolerance, False, f"shape {ours.shape}, not {expected.shape}")
    # For an all-zero reference the error is absolute.
    scale = float(np.abs(expected).max(initial=0)) or 1.0
    error = float(np.abs(ours.astype(np.float64) - expected).max(initial=0)) / scale
    return TensorComparison(name, error, tolerance, bool(error <= tolerance))


def _read_reference(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            tensors = dict(file)
    except FileNotFoundError:
        raise UserError(f"There is no reference file '{path}'.") from None
    except Exception as error:  # zip and NumPy header errors of many types
        raise UserError(f"'{path}' is not a readable .npz file.") from error
    lacking = [name for name in _META if name not in tensors]
    if lacking:
        raise UserError(f"'{path}' is not a reference file of a whole network: it lacks {', '.join(lacking)}.")
    try:
        meta = {"system": str(tensors.pop("system")), "variant": str(tensors.pop("variant")),
                "tolerance": float(tensors.pop("tolerance"))}
    except (TypeError, ValueError) as error:
        raise UserError(f"The tolerance in '{path}' is not a number.") from error
    return tensors, meta


def _read_manifest(reference, manifest, system_name):
    path = Path(manifest) if manifest else reference.with_name(f"{system_name}_manifest.json")
    try:
        content = json.loads(path.read_text())
        content["keys"].items()
    except FileNotFoundError:
        raise UserError(f"There is no manifest '{path}'. Give it with --manifest.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"'{path}' is not a manifest: it must be JSON with 'keys', a dict of shapes.") from error
    return content
