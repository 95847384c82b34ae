"""Models with weights, and optical flow estimators, from the names and paths that a user gives."""

from pathlib import Path

import jax
import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.inference.flow.estimators import FlowEstimator, cached_estimator, dis_estimator, raft_estimator
from uvos_jax.inference.flow.folder import list_flow_files
from uvos_jax.models import Model, build, system
from uvos_jax.weights import checkpoints
from uvos_jax.weights.convert import expected_variables, from_torch, unwrap
from uvos_jax.weights.files import SUFFIXES, read_state_dict
from uvos_jax.weights.packaged import packaged_names

METHODS = ("dis", "raft")
_LARGE_RAFT_KEY = "update_block.mask.0.weight"  # the small network has no such layer


def load_model(name: str | None, weights: str | Path, **overrides) -> tuple[str, Model, dict]:
    """Builds a model and reads its weights.

    Args:
        name: System; None takes the one that the checkpoint directory names.
        weights: Checkpoint directory; published ``.pth``, ``.safetensors`` or ``.npz`` state_dict; or ``"random"`` for
            untrained weights.
        **overrides: Hyper-parameters of the model.

    Returns:
        ``(name, model, variables)`` with NumPy leaves.

    Raises:
        UserError: The weights cannot be read, or do not belong to this model.
    """
    path = Path(weights)
    if str(weights) != "random" and not (str(weights) and path.exists()):
        known = () if name == "raft" else packaged_names()
        ours = f", packaged weights ({', '.join(known)})" if known else ""
        raise UserError(f"There are no weights '{weights}': give a checkpoint directory, a file"
                        f" ({', '.join(SUFFIXES)}){ours} or 'random'.{nearest_hint(str(weights), known)}")
    if path.is_dir():
        stored, model, variables = checkpoints.load(path, **overrides)
        if name not in (None, stored):
            raise UserError(f"'{path}' holds weights of {stored}, not of {name}.")
        return stored, model, variables
    if name is None:
        raise UserError(f"Weights '{weights}' need a model. Give --model (name= in Python); only checkpoint directories"
                        " store it.")
    if str(weights) == "random":
        model = build(name, **overrides)
        return name, model, random_variables(model)
    return name, *from_published(name, path, **overrides)


def from_published(name: str, path: Path, **overrides) -> tuple[Model, dict]:
    """Builds the model of a published state_dict and converts the weights; chooses between RAFT's two networks.

    Args:
        name: System.
        path: ``.pth``, ``.safetensors`` or ``.npz`` file.
        **overrides: Hyper-parameters of the model.

    Returns:
        ``(model, variables)`` with NumPy leaves.

    Raises:
        UserError: The file cannot be read or does not fit the model.
    """
    build(name, **overrides)  # reports a wrong hyper-parameter before the file is read
    state_dict = unwrap(read_state_dict(path))
    if name == "raft":
        overrides = {"net": "large" if _LARGE_RAFT_KEY in state_dict else "small"} | overrides
    return build(name, **overrides), from_torch(name, state_dict, **overrides)


def random_variables(model: Model) -> dict:
    """Returns untrained weights, equal in every call.

    They are drawn in NumPy, leaf by leaf, because compiling ``init`` of a deep network takes longer than running it.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        module, name = path[-2].key, path[-1].key
        if name == "kernel":
            kernel = rng.standard_normal(leaf.shape, np.float32) * np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
            # Kernels of a single output channel sum to zero, so that foreground is predicted in some pixels only.
            return kernel - kernel.mean() if leaf.shape[-1] == 1 else kernel
        # Residual branches start small, as in trained networks; a hundred layers at full scale would overflow.
        value = 0.2 if (module, name) == ("bn3", "scale") else float(name in ("scale", "var"))
        return np.full(leaf.shape, value, np.float32)

    return jax.tree_util.tree_map_with_path(draw, expected_variables(model))


def load_flow(flow: str | Path, weights: str | Path | None = None,
              cache: str | Path | None = None) -> FlowEstimator | Path:
    """Returns a flow estimator, or a folder of stored flow.

    Args:
        flow: ``"dis"``, ``"raft"``, or a folder of flow files named after the frames.
        weights: Weights of RAFT, large or small; see :func:`load_model`.
        cache: Folder in which computed flow is stored for later runs.

    Returns:
        The estimator, or the folder.

    Raises:
        UserError: A value cannot be used, or two do not go together.
    """
    if weights is not None and flow != "raft":
        raise UserError(f"Flow from '{flow}' uses no weights. Leave them out, or choose raft.")
    if flow not in METHODS:
        if not Path(flow).is_dir():
            raise UserError(f"Unknown flow '{flow}'. Give {', '.join(METHODS)} or a folder of flow"
                            f" files.{nearest_hint(str(flow), METHODS)}")
        if cache is not None:
            raise UserError(f"The flow in '{flow}' is read from files and needs no cache. Leave out --flow-cache.")
        list_flow_files(Path(flow))
        return Path(flow)
    method = dis_estimator
    if flow == "raft":
        if weights is None:
            raise UserError("No weights of RAFT are packaged. Give a published .pth or a checkpoint directory"
                            " (--flow-weights; --weights of 'uvos flow'), or use dis.")
        system("raft")
        method = raft_estimator(*load_model("raft", weights)[1:])
    return method if cache is None else cached_estimator(method, cache)
