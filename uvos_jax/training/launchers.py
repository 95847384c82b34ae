"""Runs one per-device step on many devices, in three ways that give the same numbers.

- ``pmap``: each process maps the step over its own devices.
- ``shard_map``: the same step on one global batch that lies in shards on all devices.
- ``jit``: the step without an axis name on the global batch; the compiler splits the work.

State is the same on every device; a run may change launcher and number of devices between steps through
:meth:`Launcher.to_host` and :meth:`Launcher.place_state`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvos_jax.errors import UserError, nearest_hint

KINDS = ("pmap", "shard_map", "jit")
AXIS = "data"


class Launcher:
    """One way to run a step on devices.

    Attributes:
      kind: one of ``KINDS``.
      devices: all devices, those of process 0 first.
      local_devices: those of this process.
      size: number of devices over all processes.
    """

    def __init__(self, kind: str, devices: Sequence[jax.Device] | None = None):
        """Args: ``kind``, one of ``KINDS``; ``devices``, of all processes, by default every one there is."""
        if kind not in KINDS:
            raise UserError(f"launcher must be one of {', '.join(KINDS)}, not {kind!r}."
                            f"{nearest_hint(str(kind), KINDS)}")
        self.kind = kind
        # By process, so that the global batch is the processes' batches one after the other.
        self.devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
        self.local_devices = [d for d in self.devices if d.process_index == jax.process_index()]
        self.size = len(self.devices)
        # pmap takes host-local arrays, the other two global ones. Auto: Linen does not trace with explicit axes.
        self._mesh = Mesh(np.array(self.local_devices if kind == "pmap" else self.devices), (AXIS,),
                          axis_types=(AxisType.Auto,))
        self._same, self._split = NamedSharding(self._mesh, P()), NamedSharding(self._mesh, P(AXIS))

    def compile(self, step_factory: Callable[[str | None], Callable]) -> Callable:
        """Returns ``call(state, batch) -> (state, metrics)`` on placed arguments; the given state is used up.

        Args:
          step_factory: makes a step for an axis name (None for ``jit``), calling ``make_train_step``.

        Raises:
          UserError: the step wants each device's own batch statistics, and ``jit`` on many devices has none.
        """
        step = step_factory(None if self.kind == "jit" else AXIS)
        if self.kind == "pmap":
            return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0,
                            devices=self.devices)
        if self.kind == "shard_map":
            # With check_vma on, gradients of replicated parameters come summed already; pmean leaves them n times too
            # large, without an error. pmap itself turns it off.
            step = jax.shard_map(step, mesh=self._mesh, in_specs=(P(), P(AXIS)), out_specs=(P(), P()), check_vma=False)
        elif self.size > 1 and getattr(step, "per_device", False):
            raise UserError("batch_norm 'local' needs a launcher that runs the step on each device: pmap or shard_map.")
        return jax.jit(step, in_shardings=(self._same, self._split), out_shardings=(self._same, self._same),
                       donate_argnums=0)

    def place_state(self, state: Any) -> Any:
        """Copies a state (a pytree of NumPy or JAX arrays, the same on every process) to every device.

        The copy is the step's to consume; the given arrays stay valid. On the mesh even for pmap: a state on a single
        device dies in the first donating call.
        """
        def place(x):
            x = np.array(x)  # own memory, which the caller cannot see change
            return jax.make_array_from_callback(x.shape, self._same, lambda index: x[index])

        return jax.tree.map(place, state)

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Distributes this process's part of a batch over its devices, in order.

        Args:
          batch: arrays ``[b, ...]`` with ``b`` divisible by the process's number of devices.

        Returns:
          What a compiled step takes: ``[devices, b / devices, ...]`` for pmap, else global ``[processes * b, ...]``.

        Raises:
          UserError: the examples cannot be shared out equally.
        """
        n = len(self.local_devices)
        for x in batch.values():
            if len(x) % n:
                raise UserError(f"A batch of {len(x)} examples cannot be shared out equally on {n} devices;"
                                f" make batch_size a multiple of {self.size}.")
        if self.kind == "pmap":
            return {name: jax.device_put(x.reshape(n, len(x) // n, *x.shape[1:]), self._split)
                    for name, x in batch.items()}
        return {name: jax.make_array_from_process_local_data(self._split, x) for name, x in batch.items()}

    def to_host(self, state: Any) -> Any:
        """Returns the state as one global tree of NumPy arrays, the same whatever the launcher."""
        # A copy: what np.asarray gives on a CPU is the device's own memory, which the next step overwrites.
        return jax.tree.map(np.array, state)
