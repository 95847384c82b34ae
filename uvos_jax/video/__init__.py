"""Reading videos and masks, writing results. It knows nothing of models and needs no JAX."""

from uvos_jax.video.discovery import list_sources
from uvos_jax.video.frames import Frame, Source
from uvos_jax.video.mask_io import PALETTE, encode_mask, read_mask, write_mask
from uvos_jax.video.rendering import OverlayStyle, draw_overlay, overlay_style
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
    "overlay_style",
    "read_mask",
    "write_json",
    "write_mask",
]
