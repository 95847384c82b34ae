"""Runs one per-device step on many devices, in three ways with the same results.

- ``pmap``: each process maps the step over its own devices.
- ``shard_map``: the same step on one global batch that is sharded over all devices.
- ``jit``: the step without an axis name on the global batch; the compiler partitions the work.

The state is replicated. A run may change launcher and number of devices between steps by ``Launcher.to_host`` and
``Launcher.place_state``.
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
        kind: One of ``KINDS``.
        devices: All devices, those of process 0 first.
        local_devices: Devices of this process.
        size: Number of devices of all processes.
    """

    def __init__(self, kind: str, devices: Sequence[jax.Device] | None = None):
        """Prepares the device mesh.

        Args:
            kind: One of ``KINDS``.
            devices: Devices of all processes; by default ``jax.devices()``.

        Raises:
            UserError: ``kind`` is unknown.
        """
        if kind not in KINDS:
            raise UserError(f"launcher must be one of {', '.join(KINDS)}, not {kind!r}."
                            f"{nearest_hint(str(kind), KINDS)}")
        self.kind = kind
        # Sorted by process, so that the global batch is the concatenation of the processes' batches.
        self.devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
        self.local_devices = [d for d in self.devices if d.process_index == jax.process_index()]
        self.size = len(self.devices)
        # pmap takes host-local arrays, the others global ones. Auto: Linen cannot be traced with explicit axes.
        self._mesh = Mesh(np.array(self.local_devices if kind == "pmap" else self.devices), (AXIS,),
                          axis_types=(AxisType.Auto,))
        self._replicated, self._sharded = NamedSharding(self._mesh, P()), NamedSharding(self._mesh, P(AXIS))

    def compile(self, step_factory: Callable[[str | None], Callable]) -> Callable:
        """Returns ``call(state, batch) -> (state, metrics)`` on placed arguments; it donates the state.

        Args:
            step_factory: Makes a step for an axis name (None for ``jit``), by ``make_train_step``.

        Raises:
            UserError: The step needs batch statistics per device, which ``jit`` on several devices does not have.
        """
        step = step_factory(None if self.kind == "jit" else AXIS)
        if self.kind == "pmap":
            return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0,
                            devices=self.devices)
        if self.kind == "shard_map":
            # With check_vma on, gradients of replicated parameters are summed already and pmean leaves them n times too
            # large, without an error. pmap turns it off by itself.
            step = jax.shard_map(step, mesh=self._mesh, in_specs=(P(), P(AXIS)), out_specs=(P(), P()), check_vma=False)
        elif self.size > 1 and getattr(step, "per_device", False):
            raise UserError("batch_norm 'local' needs a launcher that runs the step per device: pmap or shard_map.")
        return jax.jit(step, in_shardings=(self._replicated, self._sharded),
                       out_shardings=(self._replicated, self._replicated), donate_argnums=0)

    def place_state(self, state: Any) -> Any:
        """Copies a state (a pytree of NumPy or JAX arrays, the same on every process) to every device.

        The step donates the copy; the given arrays stay valid. The copy is on the mesh even for pmap, because a state
        on a single device is deleted by the first donating call.
        """
        def place(x):
            x = np.array(x)  # a copy, because the arrays may share the caller's memory
            return jax.make_array_from_callback(x.shape, self._replicated, lambda index: x[index])

        return jax.tree.map(place, state)

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Distributes this process's part of a batch over its devices, in order.

        Args:
            batch: Arrays ``[b, ...]`` with ``b`` divisible by the number of devices of this process.

        Returns:
            The input of a compiled step: ``[devices, b / devices, ...]`` for pmap, otherwise global
            ``[processes * b, ...]``.

        Raises:
            UserError: ``b`` is not divisible.
        """
        n = len(self.local_devices)
        for x in batch.values():
            if len(x) % n:
                raise UserError(f"A batch of {len(x)} examples cannot be divided among {n} devices; make batch_size"
                                f" a multiple of {self.size}.")
        if self.kind == "pmap":
            return {name: jax.device_put(x.reshape(n, len(x) // n, *x.shape[1:]), self._sharded)
                    for name, x in batch.items()}
        return {name: jax.make_array_from_process_local_data(self._sharded, x) for name, x in batch.items()}

    def to_host(self, state: Any) -> Any:
        """Returns the state as one global tree of NumPy arrays, the same for every launcher."""
        # A copy: on a CPU np.asarray returns the device's own memory, which the next step overwrites.
        return jax.tree.map(np.array, state)
