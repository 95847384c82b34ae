"""Reading of weight files (``.pth``, ``.safetensors``, ``.npz``) without executing code in them."""

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError, error_reason
from uvos_jax.extras import install_command

_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
_LARGEST_VIEW = 2**24  # numbers
SUFFIXES = (".safetensors", ".npz", *_TORCH_SUFFIXES)


class _OversizedViewError(ValueError):
    """A tensor is a view that is larger than its storage, so that a copy could fill the memory."""


def read_state_dict(path: str | Path) -> dict:
    """Reads the arrays of a weight file.

    Args:
        path: ``.safetensors`` or ``.npz`` file, or a PyTorch file, which requires torch and is opened with
            ``weights_only=True``. NumPy scalars and ``argparse.Namespace`` are allowed, because training scripts store
            them; other objects that could execute code are refused.

    Returns:
        The mapping in the file, with tensors as NumPy arrays (float16 and bfloat16 as float32).

    Raises:
        UserError: The file is missing, damaged, unsafe or of an unknown type, or torch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weight file '{path}'. Check the path.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"'{path.name}' is not a weight file of a supported type. Use one of {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file  # bfloat16 as in ml_dtypes

            tensors = load_file(path)
        elif path.suffix == ".npz":
            if not zipfile.is_zipfile(path):  # np.load would suggest to allow pickled data
                raise _unreadable(path)
            with np.load(path, allow_pickle=False) as file:
                tensors = dict(file)
        else:
            tensors = _read_torch(path)
        if not isinstance(tensors, Mapping):
            raise UserError(f"'{path.name}' holds a {type(tensors).__name__}, not a dict of named weights.")
        return _to_numpy(tensors)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"Out of memory while reading '{path.name}': it is damaged or too large for this machine."
                        ) from error
    except _OversizedViewError as error:
        raise UserError(f"'{path.name}' cannot be read as weights: {error}. Save its tensors again.") from error
    except PermissionError as error:
        raise UserError(f"'{path}' cannot be read as weights: {error_reason(error)}.") from error
    except Exception as error:  # on damaged files the three parsers raise exceptions of many types
        raise _unreadable(path) from error


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(f"Reading '{path.name}' requires PyTorch. Run: {install_command('torch')}, or convert the file"
                        " to .safetensors where PyTorch is installed.") from None
    # NumPy scalars and arrays are stored with their reconstruction functions, which NumPy 2 moved; both names occur.
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    allowed = [argparse.Namespace, np.dtype, np.ndarray, scalar, (scalar, "numpy.core.multiarray.scalar"),
               array, (array, "numpy.core.multiarray._reconstruct"),
               *{type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.bool_)}]
    try:
        # Files that cannot be read raise an error below; torch's warnings about them add nothing.
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):
            raise _unreadable(path) from error
        raise UserError(f"'{path.name}' is refused: it holds Python objects that could execute code when loaded. If"
                        " you trust the file, load it elsewhere, save only its state_dict and try again.") from error


def _to_numpy(tensors):
    return {str(key): _leaf(value) for key, value in tensors.items()}


def _leaf(value):
    if isinstance(value, Mapping):
        return _to_numpy(value)
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach()
        # A view can be far larger than its storage.
        if value.numel() > max(_LARGEST_VIEW, value.untyped_storage().nbytes()):
            raise _OversizedViewError(f"a tensor {list(value.shape)} is larger than its storage")
        value = (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fV":
        with np.errstate(over="ignore"):  # infinities are detected on conversion
            return value.astype(np.float32)
    return value


def _unreadable(path):
    kind = {".safetensors": "a .safetensors file", ".npz": "an .npz file"}.get(path.suffix, "a PyTorch file")
    return UserError(f"'{path.name}' cannot be read as weights: it is damaged or not {kind}. Give a complete PyTorch,"
                     " .safetensors or .npz file.")
