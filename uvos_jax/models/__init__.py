"""The published systems, a package each, and the table of their names (``registry``).

Every model implements the contract of ``base.Model``; see ``docs/contract.md``.
"""

from uvos_jax.models.base import Model
from uvos_jax.models.registry import SYSTEMS, System, build, hyper_parameters, parity_traces, system, systems_for

__all__ = ["SYSTEMS", "Model", "System", "build", "hyper_parameters", "parity_traces", "system", "systems_for"]
