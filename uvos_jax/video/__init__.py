"""Reading videos and masks, writing results. It knows nothing of models and needs no JAX."""

from uvos_jax.video.masks import PALETTE, encode_mask, read_mask, write_mask
from uvos_jax.video.output import ResultWriter, write_json
from uvos_jax.video.overlay import VideoWriter, draw_overlay
from uvos_jax.video.reader import Frame, Source, open_source

__all__ = [
    "PALETTE",
    "Frame",
    "ResultWriter",
    "Source",
    "VideoWriter",
    "draw_overlay",
    "encode_mask",
    "open_source",
    "read_mask",
    "write_json",
    "write_mask",
]
