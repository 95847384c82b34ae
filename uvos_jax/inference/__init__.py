"""Drives a model through a video."""

from uvos_jax.inference.segmenter import Segmenter, load

__all__ = ["Segmenter", "load"]
