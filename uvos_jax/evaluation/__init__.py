"""Benchmark metrics and protocols: J, F, T, saliency, region and track scores.

Uses NumPy, SciPy and OpenCV, not JAX.
"""
