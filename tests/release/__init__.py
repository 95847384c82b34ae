"""Exhaustive checks before a release; see docs/release_checks.md."""
