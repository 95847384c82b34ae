"""Random variables of small models, bounded so that a network of any depth stays in range."""

import jax
import numpy as np


def bounded(shapes, seed: int = 0, damp=lambda names: 1.0):
    """Draws variables leaf by leaf, in the order of the tree.

    Args:
        shapes: Tree of shapes, as ``expected_variables`` returns it.
        seed: Seed of NumPy's generator.
        damp: Factor of a leaf that is no kernel, by the names on its path: residual branches have to start small.

    Returns:
        The tree with float32 arrays: kernels with the variance of He et al., scales, variances and slopes in
        0.5 to 1.5, all others in -0.3 to 0.3.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [part.key for part in path]
        if names[-1] == "kernel":
            return (rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
        low, high = (0.5, 1.5) if names[-1] in ("scale", "var", "alpha") else (-0.3, 0.3)
        return (damp(names) * rng.uniform(low, high, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def small_residuals(names: list[str]) -> float:
    """Damps the last normalization of a residual branch to a fifth."""
    return 0.2 if "bn3" in names else 1.0
