"""Reading videos and masks, writing results. It knows nothing of models and needs no JAX."""

from uvos_jax.video.listing import list_sources
from uvos_jax.video.look import Look, look_of
from uvos_jax.video.masks import PALETTE, encode_mask, read_mask, write_mask
from uvos_jax.video.output import ResultWriter, write_json
from uvos_jax.video.overlay import draw_overlay
from uvos_jax.video.reader import open_source
from uvos_jax.video.source import Frame, Source
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
