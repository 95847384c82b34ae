"""Datasets: their layouts on disk, conversion, and clips for training as NumPy arrays.

TensorFlow is imported in this package only, and lazily.
"""

import os

# TensorFlow reads these at import. Without them it logs to standard error, about oneDNN among others. Here it reads
# and writes records only, so that its faster matrix products are not missed; errors still raise Python exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
