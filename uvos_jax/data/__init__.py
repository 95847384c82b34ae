"""Datasets: their layouts on disk, conversion, and clips for training as NumPy arrays.

TensorFlow is imported in this package only, and lazily.
"""

import os

# Read by TensorFlow at import; without them it logs to standard error (oneDNN and others). Values set by the user are
# kept. TensorFlow only reads and writes records here, so oneDNN is not needed; errors still raise Python exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
