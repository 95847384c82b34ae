"""Reading videos and masks, writing results. It knows nothing of models and needs no JAX."""

from uvos_jax.video.discovery import list_sources
from uvos_jax.video.frames import Frame, Source
from uvos_jax.video.mask_io import PALETTE, encode_mask, read_mask, write_mask
from uvos_jax.video.rendering import Look, draw_overlay, look_of
from uvos_jax.video.result_writer import ResultWriter, write_json
from uvos_jax.video.sources import open_source
from uvos_jax.video.video_writer import VideoWriter

__all__ = [
    "PALETTE",
    "Frame",
    "Look",
    "ResultWriter",
    "Source",
    "VideoWriter",
    "draw_overlay",
    "encode_mask",
    "list_sources",
    "look_of",
    "open_source",
    "read_mask",
    "write_json",
    "write_mask",
]
