"""Video object segmentation in JAX: published systems, from a video to masks in one command.

    import uvos_jax
    segmenter = uvos_jax.load("adnet", weights="checkpoint_directory_or_file")
    for frame, mask in segmenter.stream("my.mp4"):
        ...

Importing this package loads neither JAX nor anything heavier; calling ``load`` does.
"""

import importlib

from uvos_jax._version import __version__
from uvos_jax.api import load
from uvos_jax.errors import UserError

__all__ = ["Segmenter", "UserError", "__version__", "load"]


def __getattr__(name):
    if name == "Segmenter":
        return importlib.import_module("uvos_jax.inference").Segmenter
    if name in ("models", "weights", "video"):
        return importlib.import_module(f"uvos_jax.{name}")
    raise AttributeError(f"module 'uvos_jax' has no attribute '{name}'")
