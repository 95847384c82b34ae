"""Opening other people's weight files: ``.pth``, ``.safetensors`` and ``.npz``, never running what is inside."""

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.extras import install_command

_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
_LARGEST_VIEW = 2**24  # numbers
SUFFIXES = (".safetensors", ".npz", *_TORCH_SUFFIXES)


def read_state_dict(path: str | Path) -> dict:
    """Reads the arrays of a weight file.

    Args:
        path: ``.safetensors`` or ``.npz`` (no torch needed), or a PyTorch file, which needs torch installed and is
            opened with ``weights_only=True``: NumPy scalars and ``argparse.Namespace`` are let through, as training
            scripts store them, anything else that would execute code is refused.

    Returns:
        Whatever mapping the file holds, its tensors as NumPy arrays (float16 and bfloat16 as float32).

    Raises:
        UserError: If the file is missing, damaged, of an unknown kind, unsafe, or torch is needed and absent.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weight file '{path}'.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"'{path.name}' is not a weight file this library reads: use {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file  # bfloat16 arrives as ml_dtypes'

            tensors = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                tensors = dict(file)
        else:
            tensors = _read_torch(path)
        if not isinstance(tensors, Mapping):
            raise UserError(f"'{path.name}' holds a {type(tensors).__name__}, not a table of named weights.")
        return _to_numpy(tensors)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"'{path.name}' asks for more memory than there is: it is damaged, or too large for this"
                        " machine.") from error
    except Exception as error:  # three parsers on a damaged file raise whatever they like
        raise UserError(f"'{path.name}' cannot be read as weights ({type(error).__name__}: {_first_line(error)}).") \
            from error


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(f"Opening '{path.name}' needs PyTorch, not installed here. Run: {install_command('torch')},"
                        " or convert the file to .safetensors where PyTorch is installed.") from None
    # NumPy scalars and arrays name their reconstruction functions, which moved in NumPy 2; both spellings occur.
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    allowed = [argparse.Namespace, np.dtype, np.ndarray, scalar, (scalar, "numpy.core.multiarray.scalar"),
               array, (array, "numpy.core.multiarray._reconstruct"),
               *{type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.bool_)}]
    try:
        # What torch warns of in odd files is said below in one sentence, if they cannot be read.
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):
            raise UserError(f"'{path.name}' cannot be read as weights: it is damaged or no PyTorch file.") from error
        raise UserError(f"'{path.name}' is refused: it holds Python objects whose loading could execute code. Save"
                        " only the state_dict, where you trust the file, and try again.") from error


def _to_numpy(tensors):
    return {str(key): _leaf(value) for key, value in tensors.items()}


def _leaf(value):
    if isinstance(value, Mapping):
        return _to_numpy(value)
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach()
        # A view may repeat the few numbers that are stored without end.
        if value.numel() > max(_LARGEST_VIEW, value.untyped_storage().nbytes()):
            raise ValueError(f"a tensor {list(value.shape)} is larger than what is stored of it")
        value = (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fV":
        with np.errstate(over="ignore"):  # infinities are found where weights are put to use
            return value.astype(np.float32)
    return value


def _first_line(error):
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200].rstrip(".")
