"""Multi-host training: joining the processes, and sums over them."""

import os

import jax
import numpy as np

from uvos_jax.errors import UserError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Joins the processes of a multi-host run; call it before anything else uses a device.

    With ``JAX_COORDINATOR_ADDRESS`` (host:port of process 0), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` set, these
    are used. Otherwise JAX detects its cluster environments (TPU pods, SLURM, Open MPI, Kubernetes); without one the
    process runs alone. CPU processes communicate by gloo, JAX's default. A second call does nothing.

    Raises:
        UserError: The variables are incomplete or invalid, or JAX was used before.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if given:
        _join(given)
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:
        # JAX is running already, as in a notebook: too late to join a cluster, and fine for a single process.
        if _cluster_size() > 1:
            raise UserError("This process belongs to a cluster job, but JAX was used before it could join the others;"
                            " call uvos_jax.training.distributed.initialize() first.") from error


def sum_over_processes(values: np.ndarray, process_count: int) -> np.ndarray:
    """Sums an array over all processes, each of which must call this.

    Args:
        values: float64, of the same shape in all processes.
        process_count: Number of processes.

    Returns:
        The float64 sum, bit-identical in every process.
    """
    if process_count == 1:
        return values
    from jax.experimental import multihost_utils

    # As words: JAX would gather float64 as float32.
    words = np.ascontiguousarray(values).view(np.uint32)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(words))
    return gathered.view(np.float64).reshape(process_count, *values.shape).sum(0)


def _join(given):
    missing = [name for name in _VARIABLES if name not in given]
    if missing:
        raise UserError(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} set, but {' and '.join(missing)}"
                        f" {'is' if len(missing) == 1 else 'are'} not; set all three, or none for a single process.")
    address, *numbers = (given[name] for name in _VARIABLES)
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise UserError(f"JAX_COORDINATOR_ADDRESS must be host:port, such as 10.0.0.1:1234, not '{address}'.")
    if not all(number.isdecimal() for number in numbers) or not int(numbers[1]) < int(numbers[0]):
        raise UserError("JAX_NUM_PROCESSES must be a positive number and JAX_PROCESS_ID one from 0 to one less,"
                        f" not '{numbers[0]}' and '{numbers[1]}'.")
    try:
        jax.distributed.initialize(address, int(numbers[0]), int(numbers[1]), cluster_detection_method="deactivate")
    except RuntimeError as error:
        if "before" not in str(error):
            raise
        raise UserError("JAX_COORDINATOR_ADDRESS is set, but JAX was used before this process could join the others;"
                        " call uvos_jax.training.distributed.initialize() first.") from error


def _cluster_size():
    """Returns the number of processes of the surrounding job according to environment variables."""
    sizes = [int(os.environ.get(name, "1")) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    return max(*sizes, len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")))
