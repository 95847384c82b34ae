"""Initialization of distributed training by environment variables. test_launchers.py runs two real processes."""

import subprocess
import sys

import jax
import pytest

from uvos_jax.errors import UserError
from uvos_jax.training import distributed

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (*VARIABLES, "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)


def test_process_without_a_cluster_runs_alone():
    code = ("from uvos_jax.training import distributed; distributed.initialize(); import jax;"
            " print(jax.distributed.is_initialized(), jax.process_count())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"]


def test_initializing_after_using_jax_has_no_effect_without_a_cluster():
    jax.devices()
    distributed.initialize()
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(("name", "value"), [
    ("SLURM_STEP_NUM_TASKS", "2"), ("OMPI_COMM_WORLD_SIZE", "8"), ("TPU_WORKER_HOSTNAMES", "a,b")])
def test_joining_a_cluster_after_using_jax_is_an_error(monkeypatch, name, value):
    jax.devices()
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="initialize\\(\\) first"):
        distributed.initialize()


@pytest.mark.parametrize(("values", "says"), [
    (("10.0.0.1:1234", None, None), "JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES and JAX_PROCESS_ID are not"),
    (("10.0.0.1:1234", "2", None), "are set, but JAX_PROCESS_ID is not"),
    ((None, "2", "0"), "but JAX_COORDINATOR_ADDRESS is not"),
    (("10.0.0.1", "2", "0"), "host:port"),
    (("10.0.0.1:port", "2", "0"), "host:port"),
    (("10.0.0.1:1234", "two", "0"), "positive number"),
    (("10.0.0.1:1234", "2", "2"), "from 0 to one less"),
    (("10.0.0.1:1234", "2", "-1"), "from 0 to one less"),
    (("10.0.0.1:1234", "2", "1"), "initialize\\(\\) first"),
])
def test_bad_variables_are_errors(monkeypatch, values, says):
    jax.devices()
    for name, value in zip(VARIABLES, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        distributed.initialize()
