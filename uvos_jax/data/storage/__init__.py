"""Converted datasets: records, TFDS builders and random access."""
