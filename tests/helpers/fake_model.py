"""Base of the small models that stand for a system in tests: frames in [0, 1] at their native size, one weight."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.models import Model
from uvos_jax.ops.preprocess import Preprocess


class FakeModel(Model):
    """The parts of the contract that are the same in all of them."""

    variant: str = "paper"
    dtype: jnp.dtype = jnp.float32

    PREPROCESS = Preprocess("RGB", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __call__(self, batch, train=False):
        return self.encode(batch), {}

    @nn.nowrap
    def frame_size(self, native_size, scale=1.0):
        return native_size

    @nn.nowrap
    def example_batch(self):
        return {name: jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32) for name in self.inputs}
