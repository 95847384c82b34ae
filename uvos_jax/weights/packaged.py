"""Trained weights inside the package, so that the first command needs nothing else.

Each is one ``.safetensors`` file, named as ``--weights`` takes it, whose header tells what the weights are and where
they come from. Kernels are stored as float16; what has one value a channel stays float32: it is small, and running
variances exceed float16.
"""

import contextlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save

import uvos_jax
from uvos_jax.atomic_io import atomic_write
from uvos_jax.errors import UserError
from uvos_jax.models import hyper_parameters
from uvos_jax.weights import checkpoints, compatibility
from uvos_jax.weights.convert import expected_variables

ASSETS = resources.files("uvos_jax") / "assets"
DEFAULT = "default"
_SUFFIX = ".safetensors"
_KEY = "uvos"  # of our JSON in the file's header
_NEEDED = {"model", "hyper_parameters", "sha256", "origin", "license"}


def packaged_names() -> tuple[str, ...]:
    """What ``--weights`` may name, the default first; it is among them even if its file is missing."""
    files = ASSETS.iterdir() if ASSETS.is_dir() else ()
    found = sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))
    return (DEFAULT, *(name for name in found if name != DEFAULT))


def load_packaged(weights: str = DEFAULT, **overrides) -> tuple[str, nn.Module, dict]:
    """Reads a network of the package.

    Args:
        weights: One of ``packaged_names()``.
        **overrides: Hyper-parameters to change, as ``checkpoints.load`` takes them.

    Returns:
        ``(name, model, variables)`` with float32 NumPy leaves.

    Raises:
        UserError: If the installation lacks the file or it is damaged, or an override does not fit the weights.
    """
    meta, arrays = _read(weights)
    name, model = meta["model"], checkpoints.rebuild(meta["model"], meta["hyper_parameters"], overrides,
                                                     "the packaged weights")
    variables = _variables(meta, arrays)
    if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, expected_variables(model)):
        raise _damaged()
    return name, model, variables


def about(weights: str = DEFAULT) -> dict[str, Any]:
    """What a network of the package is, without reading its weights.

    Args:
        weights: One of ``packaged_names()``.

    Returns:
        ``{"model", "variant", "hyper_parameters", "origin", "license", "scores", "sha256", "uvos_jax"}``; origin and
        license are sentences, scores fractions of one by the name of what they were measured on.
    """
    return _read(weights, arrays=False)[0]


def recognized(sha256: str) -> str | None:
    """The name of the weights in the package that have this digest; None if there are none."""
    for name in packaged_names():
        with contextlib.suppress(UserError):  # a damaged file is no matter to who has weights of their own
            if sha256 in (about(name)["sha256"], _current_digest(name)):
                return name
    return None


def _current_digest(weights):
    """Returns the digest of packaged weights under current names, or None where the header's is that already."""
    if not compatibility.is_from_0_1(about(weights)):
        return None
    return checkpoints.digest(_variables(*_read(weights)))


def _variables(meta, arrays):
    """Returns float32 variables under current names; raises ``UserError`` unless the stored digest is theirs."""
    variables = unflatten_dict({key: value.astype(np.float32) for key, value in arrays.items()}, sep="/")
    if checkpoints.digest(variables) != meta["sha256"]:  # computed over the stored names
        raise _damaged()
    if compatibility.is_from_0_1(meta):
        variables = compatibility.current_variables(meta["model"], variables)
    return variables


def pack(directory: str | Path, file: str | Path, *, origin: str, license: str, scores: dict[str, Any]) -> None:
    """Writes the weights of a checkpoint directory as a file like those of the package.

    Args:
        directory: As written by ``checkpoints.save``.
        file: The ``.safetensors`` file to write; an existing one is replaced.
        origin: What the weights were trained on and by which command, for the reader of the header.
        license: Of the weights.
        scores: What they reach, ``{what: {measure: fraction of one}}``.

    Raises:
        UserError: If the directory is no checkpoint.
    """
    name, model, variables = checkpoints.load(directory)
    stored = {key: value.astype(np.float16) if value.ndim > 1 else value
              for key, value in flatten_dict(variables, sep="/").items()}
    if not all(np.isfinite(value).all() for value in stored.values()):
        raise ValueError(f"weights of '{directory}' are beyond float16")
    # The digest is of what load_packaged returns, kernels rounded to float16.
    loaded = unflatten_dict({key: value.astype(np.float32) for key, value in stored.items()}, sep="/")
    meta = {"model": name, "variant": model.variant, "hyper_parameters": hyper_parameters(model), "origin": origin,
            "license": license, "scores": scores, "sha256": checkpoints.digest(loaded),
            "uvos_jax": uvos_jax.__version__}
    atomic_write(file, save(stored, metadata={_KEY: json.dumps(meta)}))


def _read(weights: str, arrays: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and, if asked, the arrays as they are stored, by path."""
    try:
        # A real file even where the package is imported from an archive.
        with resources.as_file(ASSETS / f"{weights}{_SUFFIX}") as path, safe_open(path, "numpy") as file:
            meta = json.loads(file.metadata()[_KEY])
            meta = compatibility.current_metadata(meta)
            if not (isinstance(meta["hyper_parameters"], dict) and meta.keys() >= _NEEDED):
                raise ValueError("the header is not whole")
            return meta, {key: file.get_tensor(key) for key in file.keys()} if arrays else {}  # noqa: SIM118
    except Exception as error:  # safetensors has kinds of its own beside OSError and KeyError
        raise _damaged() from error


def _damaged() -> UserError:
    return UserError("The weights in the package are missing or damaged; install uvos-jax anew, or give --weights.")
