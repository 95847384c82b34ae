"""Benchmarks, component times and operation counts."""
