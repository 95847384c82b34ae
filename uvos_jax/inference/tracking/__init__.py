"""Unsupervised multi-object tracking: the engine and the host-side association of D-Net and T-Net."""
