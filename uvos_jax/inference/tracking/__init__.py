"""Inference of D-Net and T-Net: discovery, association and target models."""
