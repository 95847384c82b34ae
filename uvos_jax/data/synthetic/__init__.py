"""Generated clips with exact labels and optical flow."""
