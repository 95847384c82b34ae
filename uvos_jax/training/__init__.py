"""Training: configuration, phases, step, launchers and loop, for any iterator of NumPy batches."""
