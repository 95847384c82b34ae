"""Atrous spatial pyramid pooling (Chen et al. 2017)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import ConvNorm, Policy
from uvos_jax.ops.pooling import global_average_pool


class ASPP(nn.Module):
    """A 1x1 branch, dilated 3x3 branches and image pooling, concatenated and usually projected by a 1x1 convolution.

    Submodules: ``branch0`` (1x1), ``branch1`` and up (dilated 3x3), ``pool``, ``project``, each a ``ConvNorm``.

    Attributes:
        features: Channels of every branch and of the result.
        dilations: Dilations of the 3x3 branches, in pixels.
        activation: Applied after every normalization.
        use_bias: Whether the convolutions have a bias, as in some published checkpoints.
        project: Whether to project the branches; otherwise the result is their concatenation, of
            ``(len(dilations) + 2) * features`` channels.
        pool_first: Whether image pooling precedes the other branches in the concatenation.
        policy: See ``Policy``.
    """

    features: int
    dilations: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    use_bias: bool = False
    project: bool = True
    pool_first: bool = False
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[b, h, w, c] -> [b, h, w, features]``, or more channels without ``project``."""
        def unit(name, kernel, dilation=1):
            return ConvNorm(self.features, kernel, dilation=dilation, use_bias=self.use_bias,
                            activation=self.activation, policy=self.policy, name=name)

        branches = [unit("branch0", 1)(x, train)]
        branches += [unit(f"branch{i}", 3, dilation)(x, train) for i, dilation in enumerate(self.dilations, 1)]
        # The pooled map is a single pixel; every resizing rule would broadcast it.
        pooled = unit("pool", 1)(global_average_pool(x), train)
        branches.insert(0 if self.pool_first else len(branches), jnp.broadcast_to(pooled, branches[0].shape))
        x = jnp.concatenate(branches, -1)
        return unit("project", 1)(x, train) if self.project else x
