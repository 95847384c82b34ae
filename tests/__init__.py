"""Tests of uvos_jax; folders mirror the package."""
