"""Public functions that import JAX when they are called, so that importing them is instant."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvos_jax.inference.segmenter import Segmenter


def load(name: str | None = None, weights: str | Path | None = None, *, scales: tuple[float, ...] = (1.0,),
         flip: bool = False, precision: str = "float32", flow: str | Path | None = None,
         flow_weights: str | Path | None = None, flow_cache: str | Path | None = None, **overrides) -> "Segmenter":
    """Load a model with its weights.

    Without ``name`` and ``weights``, this is the default network of the package.

    Args:
        name: System, such as ``"adnet"``; None takes the one that the weights name.
        weights: A checkpoint directory; a published ``.pth``, ``.safetensors`` or ``.npz`` file; the name of weights in
            the package, such as ``"synthetic"``; or ``"random"`` for untrained weights, to test a setup.
        scales: Test-time scales; their scores are averaged.
        flip: Whether to average over horizontally flipped frames, too.
        precision: ``"float32"``, the reference, or ``"bfloat16"``, faster on accelerators.
        flow: Source of the optical flow, for models that need it: ``"dis"`` (default, needs no weights), ``"raft"``, or
            a folder of flow files named as the frames.
        flow_weights: Weights of RAFT, in any form that ``weights`` takes.
        flow_cache: Folder in which computed flow is kept for the next run.
        **overrides: Hyper-parameters of the model, such as ``variant="official"`` or ``short_side=241``.

    Returns:
        The model with its weights, ready to segment videos.

    Raises:
        UserError: An argument cannot be used.
    """
    from uvos_jax.inference import segmenter

    return segmenter.load(name, weights, scales=scales, flip=flip, precision=precision, flow=flow,
                          flow_weights=flow_weights, flow_cache=flow_cache, **overrides)
