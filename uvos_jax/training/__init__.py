"""Training: state, step, launchers, loop; takes any iterator of NumPy batches."""
