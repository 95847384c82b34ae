"""Layouts of the published datasets and their ground truth."""
