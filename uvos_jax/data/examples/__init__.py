"""Training examples: sampling, augmentation and batching."""
