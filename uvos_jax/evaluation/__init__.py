"""Scores as the papers count them: J, F, T, saliency, regions and tracks. NumPy, SciPy and OpenCV; no JAX."""
