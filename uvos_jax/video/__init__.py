"""Reading videos and masks, and writing results. Independent of models and of JAX."""

from uvos_jax.video.discovery import list_sources
from uvos_jax.video.frames import Frame, Source
from uvos_jax.video.mask_io import PALETTE, encode_mask, read_mask, write_mask
from uvos_jax.video.rendering import OverlayStyle, draw_overlay, parse_overlay_style
from uvos_jax.video.result_writer import OutputOptions, ResultWriter, write_json
from uvos_jax.video.sources import ClipOptions, open_source
from uvos_jax.video.video_writer import VideoWriter

__all__ = [
    "PALETTE",
    "ClipOptions",
    "Frame",
    "OutputOptions",
    "OverlayStyle",
    "ResultWriter",
    "Source",
    "VideoWriter",
    "draw_overlay",
    "encode_mask",
    "list_sources",
    "open_source",
    "parse_overlay_style",
    "read_mask",
    "write_json",
    "write_mask",
]
