"""Datasets: how they lie on disk, conversion, clips for training; yields NumPy.

TensorFlow is imported in this folder alone, and lazily.
"""
