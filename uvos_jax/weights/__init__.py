"""Conversion of PyTorch weights, checkpoints, packaged weights and parity with reference tensors."""

from uvos_jax.weights.backbones import backbone_from_torch
from uvos_jax.weights.convert import from_torch, unwrap
from uvos_jax.weights.files import read_state_dict

__all__ = ["backbone_from_torch", "from_torch", "read_state_dict", "unwrap"]
