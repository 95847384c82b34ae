"""Atrous spatial pyramid pooling (Chen et al. 2017)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import BatchNorm, Conv
from uvos_jax.ops.pooling import global_average_pool


class ASPP(nn.Module):
    """A 1x1 branch, dilated 3x3 branches and image pooling, concatenated and, in most networks, projected by a 1x1.

    Branch ``i`` is ``branch{i}_conv``, ``branch{i}_bn``; image pooling is ``pool_*``, the projection ``project_*``.

    Attributes:
      features: channels of every branch and of the result.
      dilations: of the 3x3 branches.
      activation: after every normalization.
      use_bias: whether the convolutions have a bias, as some published ones do.
      project: False returns the branches as they lie side by side, ``len(dilations) + 2`` times ``features`` channels.
      pool_first: whether image pooling comes before the other branches in the channels.
      axis_name: see ``BatchNorm``.
      dtype: type of the computation.
    """

    features: int
    dilations: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    use_bias: bool = False
    project: bool = True
    pool_first: bool = False
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, features]``, or more channels without ``project``."""
        def unit(x, name, **kwargs):
            x = Conv(self.features, use_bias=self.use_bias, dtype=self.dtype, name=f"{name}_conv", **kwargs)(x)
            x = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=f"{name}_bn")(x, train)
            return self.activation(x)

        branches = [unit(x, "branch0", kernel=1)]
        branches += [unit(x, f"branch{i}", dilation=d) for i, d in enumerate(self.dilations, 1)]
        # One pixel, resized to the map by any rule, is that pixel everywhere.
        pooled = unit(global_average_pool(x), "pool", kernel=1)
        branches.insert(0 if self.pool_first else len(branches), jnp.broadcast_to(pooled, branches[0].shape))
        x = jnp.concatenate(branches, -1)
        return unit(x, "project", kernel=1) if self.project else x
