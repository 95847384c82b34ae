"""Optical flow: estimators and folders of flow files."""
