"""Trained weights that ship with the package.

Each is a ``.safetensors`` file named as in ``--weights``. Its header describes the weights and their origin. Kernels
are stored as float16. Arrays with one value per channel stay float32: they are small, and running variances exceed
float16.
"""

import contextlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save

import uvos_jax
from uvos_jax.atomic_io import atomic_write
from uvos_jax.errors import UserError
from uvos_jax.models import Model, hyper_parameters
from uvos_jax.weights import checkpoints, compatibility
from uvos_jax.weights.convert import expected_variables

ASSETS = resources.files("uvos_jax") / "assets"
DEFAULT = "default"
_SUFFIX = ".safetensors"
_KEY = "uvos"  # of our JSON in the file's header
_NEEDED = {"model", "hyper_parameters", "sha256", "origin", "license"}


def packaged_names() -> tuple[str, ...]:
    """Returns the names of packaged weights, the default first; it is listed even if its file is missing."""
    files = ASSETS.iterdir() if ASSETS.is_dir() else ()
    found = sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))
    return (DEFAULT, *(name for name in found if name != DEFAULT))


def load_packaged(weights: str = DEFAULT, **overrides) -> tuple[str, Model, dict]:
    """Reads packaged weights and builds their model.

    Args:
        weights: One of ``packaged_names()``.
        **overrides: Hyper-parameters to change, see ``checkpoints.load``.

    Returns:
        ``(name, model, variables)`` with float32 NumPy leaves.

    Raises:
        UserError: The file is missing or damaged, or an override would change the weights.
    """
    meta, arrays = _read(weights)
    name, model = meta["model"], checkpoints.rebuild(meta["model"], meta["hyper_parameters"], overrides,
                                                     "the packaged weights")
    variables = _variables(meta, arrays)
    if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, expected_variables(model)):
        raise _damaged()
    return name, model, variables


def about(weights: str = DEFAULT) -> dict[str, Any]:
    """Reads the description of packaged weights, without the weights.

    Args:
        weights: One of ``packaged_names()``.

    Returns:
        Dict with keys "model", "variant", "hyper_parameters", "origin", "license", "scores", "sha256" and "uvos_jax".
        Origin and license are text; scores are fractions of one, by dataset and measure.
    """
    return _read(weights, arrays=False)[0]


def recognized(sha256: str) -> str | None:
    """Returns the name of the packaged weights with this digest, or None."""
    for name in packaged_names():
        with contextlib.suppress(UserError):  # a damaged file does not concern other weights
            if sha256 in (about(name)["sha256"], _current_digest(name)):
                return name
    return None


def _current_digest(weights):
    """Returns the digest of packaged weights under current names, or None if it equals the header's."""
    if not compatibility.is_from_0_1(about(weights)):
        return None
    return checkpoints.digest(_variables(*_read(weights)))


def _variables(meta, arrays):
    """Returns float32 variables under current names; raises ``UserError`` if the digest does not match."""
    variables = unflatten_dict({key: value.astype(np.float32) for key, value in arrays.items()}, sep="/")
    if checkpoints.digest(variables) != meta["sha256"]:  # computed over the stored names
        raise _damaged()
    if compatibility.is_from_0_1(meta):
        variables = compatibility.current_variables(meta["model"], variables)
    return variables


def pack(directory: str | Path, file: str | Path, *, origin: str, license: str, scores: dict[str, Any]) -> None:
    """Writes the weights of a checkpoint directory in the format of packaged weights.

    Args:
        directory: Directory written by ``checkpoints.save``.
        file: ``.safetensors`` file to write; an existing one is replaced.
        origin: Training data and command, stored in the header.
        license: License of the weights.
        scores: Scores as fractions of one, ``{dataset: {measure: score}}``.

    Raises:
        UserError: The directory is not a checkpoint.
        ValueError: A weight exceeds the range of float16.
    """
    name, model, variables = checkpoints.load(directory)
    stored = {key: value.astype(np.float16) if value.ndim > 1 else value
              for key, value in flatten_dict(variables, sep="/").items()}
    if not all(np.isfinite(value).all() for value in stored.values()):
        raise ValueError(f"weights of '{directory}' are beyond float16")
    # The digest covers the result of load_packaged, with kernels rounded to float16.
    loaded = unflatten_dict({key: value.astype(np.float32) for key, value in stored.items()}, sep="/")
    meta = {"model": name, "variant": model.variant, "hyper_parameters": hyper_parameters(model), "origin": origin,
            "license": license, "scores": scores, "sha256": checkpoints.digest(loaded),
            "uvos_jax": uvos_jax.__version__}
    atomic_write(file, save(stored, metadata={_KEY: json.dumps(meta)}))


def _read(weights: str, arrays: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the header and, if ``arrays``, the stored arrays by path."""
    try:
        # A file on disk even if the package is imported from an archive.
        with resources.as_file(ASSETS / f"{weights}{_SUFFIX}") as path, safe_open(path, "numpy") as file:
            meta = json.loads(file.metadata()[_KEY])
            meta = compatibility.current_metadata(meta)
            if not (isinstance(meta["hyper_parameters"], dict) and meta.keys() >= _NEEDED):
                raise ValueError("incomplete header")
            return meta, {key: file.get_tensor(key) for key in file.keys()} if arrays else {}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own types besides OSError and KeyError
        raise _damaged() from error


def _damaged() -> UserError:
    return UserError("The packaged weights are missing or damaged. Reinstall uvos-jax, or give --weights.")
