"""``python -m uvos_jax`` is ``uvos``."""

from uvos_jax.cli import main

main()
