"""Video object segmentation in JAX: published systems, from a video to masks in one command.

    import uvos_jax
    segmenter = uvos_jax.load("adnet", weights="checkpoint_directory_or_file")
    for frame, mask in segmenter.stream("my.mp4"):
        ...

Importing this package imports neither JAX nor anything heavier. Calling ``load`` does, and so does the first use of the
other public names.
"""

import importlib
from typing import TYPE_CHECKING, Any

from uvos_jax._version import __version__
from uvos_jax.api import load
from uvos_jax.errors import UserError

if TYPE_CHECKING:
    from uvos_jax.inference.jobs.segment import segment_to_folder
    from uvos_jax.inference.prompt_options import PromptOptions
    from uvos_jax.inference.segmenter import FrameResult, Segmenter
    from uvos_jax.video import ClipOptions, OutputOptions

__all__ = [
    "ClipOptions",
    "FrameResult",
    "OutputOptions",
    "PromptOptions",
    "Segmenter",
    "UserError",
    "__version__",
    "load",
    "segment_to_folder",
]

_MODULES = {
    "ClipOptions": "uvos_jax.video",
    "FrameResult": "uvos_jax.inference.segmenter",
    "OutputOptions": "uvos_jax.video",
    "PromptOptions": "uvos_jax.inference.prompt_options",
    "Segmenter": "uvos_jax.inference.segmenter",
    "segment_to_folder": "uvos_jax.inference.jobs.segment",
}
_SUBMODULES = ("data", "evaluation", "inference", "models", "nn", "ops", "training", "video", "weights")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"uvos_jax.{name}")
    raise AttributeError(f"module 'uvos_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
