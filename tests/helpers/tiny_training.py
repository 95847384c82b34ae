"""A shallow network of the model contract, clips for it, and training runs in separate processes.

A deep untrained network amplifies rounding until runs that are equal look different, so launchers are compared on
this one. A helper of the tests.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import compilation
from tests.helpers.paths import REPOSITORY
from uvos_jax.nn.layers import BatchNorm, Conv, Policy
from uvos_jax.ops.losses import binary_cross_entropy
from uvos_jax.training import optimizers
from uvos_jax.training.launchers import Launcher
from uvos_jax.training.state import create_state
from uvos_jax.training.step import make_train_step

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
SCHEDULE = {"name": "poly", "lr": 0.02, "steps": 40}


class TinyNet(nn.Module):
    """Two convolutions with a batch norm between, on the first frame of a clip."""

    dropout: float = 0.0
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch, train=False):
        x = Conv(6, stride=2, dtype=self.dtype, name="conv1")(batch["frame"])
        x = nn.relu(BatchNorm(policy=Policy(self.dtype, self.axis_name), name="bn1")(x, train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {"logits": Conv(1, 1, use_bias=True, dtype=self.dtype, name="conv2")(x)}, {}

    @nn.nowrap
    def training_batch(self, clip):
        return {"frame": clip["frames"][:, 0].astype(jnp.float32) / 255,
                "mask": clip["labels"][:, 0, ::2, ::2, None] > 0}

    @nn.nowrap
    def loss(self, outputs, batch, step):
        del step
        value = binary_cross_entropy(outputs["logits"], batch["mask"])
        return value, {"bce": value}

    @nn.nowrap
    def example_batch(self):
        return {"frame": jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)}


def clips(step: int, batch_size: int = 16, size: int = 16) -> dict:
    """Returns the clip batch of a step: noise with a square of random brightness and position in every example."""
    rng = np.random.default_rng([7, step])
    frames = rng.integers(0, 120, (batch_size, 1, size, size, 3), dtype=np.uint8)
    labels = np.zeros((batch_size, 1, size, size), np.uint8)
    for i, (y, x) in enumerate(rng.integers(0, size // 2, (batch_size, 2))):
        labels[i, :, y:y + size // 2, x:x + size // 2] = 1
    frames += labels[..., None] * rng.integers(40, 130, (batch_size, 1, 1, 1, 3), dtype=np.uint8)
    return {"frames": frames, "labels": labels,
            "example": np.arange(batch_size, dtype=np.int64) + step * batch_size}


def parts(model=None, *, optimizer=SGD, schedule=SCHEDULE, seed=3, ema=False, variables=None, **options):
    """Returns an initial state (NumPy; ``variables`` or NumPy's draws) and ``factory(axis_name) -> step`` for it."""
    model = TinyNet() if model is None else model
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example_batch())
    # NumPy draws, because compiling JAX's takes longer than the steps of a test.
    variables = variables or {
        "params": jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape), shapes["params"]),
        "batch_stats": jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes["batch_stats"])}
    rate = optimizers.make_schedule(schedule, 40)
    tx = optimizers.make_optimizer(optimizer, rate, shapes["params"])
    state = create_state(model, tx, variables, seed, ema)
    return jax.tree.map(np.array, state), lambda axis: make_train_step(model, tx, rate, axis_name=axis, **options)


def run(launcher: Launcher, state, factory, steps, batches=clips, call=None):
    """Runs ``steps`` (an iterable of step numbers); returns the last state as NumPy, and each step's metrics.

    ``call`` is ``launcher.compile(factory)`` if it exists already.
    """
    call, state, seen = call or launcher.compile(factory), launcher.place_state(state), []
    share = slice(None)
    if jax.process_count() > 1:
        b = len(batches(0)["frames"]) // jax.process_count()
        share = slice(jax.process_index() * b, (jax.process_index() + 1) * b)
    for step in steps:
        batch = {name: x[share] for name, x in batches(step).items()}
        state, metrics = call(state, launcher.place_batch(batch))
        seen.append(metrics)
    return launcher.to_host(state), {name: np.array([float(m[name]) for m in seen]) for name in seen[0]}


def in_processes(module: str, output: Path, *, devices: int, processes: int = 1, function: str = "main") -> None:
    """Runs ``module.function(output)`` in new processes with emulated CPU devices; their failure fails the test."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY),
                   "XLA_FLAGS": f"{compilation.FLAGS} --xla_force_host_platform_device_count={devices}"}
    started = []
    for i in range(processes):
        joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes),
                  "JAX_PROCESS_ID": str(i)} if processes > 1 else {}
        code = f"import sys, {module}; {module}.{function}(sys.argv[1])"
        started.append(subprocess.Popen([sys.executable, "-c", code, str(output)], env=environment | joined,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        said = [p.communicate(timeout=300)[0] for p in started]
    finally:
        for p in started:
            p.kill()
    for p, text in zip(started, said, strict=True):
        assert p.returncode == 0, text
