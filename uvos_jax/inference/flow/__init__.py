"""Optical flow estimators and folders of stored flow."""
