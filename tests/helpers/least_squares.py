"""Reference solution for conjugate gradients: dense least squares in float64."""

import numpy as np


def krylov_minimizer(matrix, target, iterations, preconditioner=1.0):
    """The best ``x`` that ``iterations`` of preconditioned conjugate gradients can reach from zero.

    They minimize ``x' A x / 2 - b' x`` over the Krylov space of (A / M, b / M), here spanned and solved in.

    Args:
      matrix: A, float64 ``[n, n]``, symmetric.
      target: b, float64 ``[n]``.
      iterations: dimension of the space.
      preconditioner: diagonal of M.
    """
    basis, vector = [], target / preconditioner
    for _ in range(iterations):
        for _ in range(2):  # once is not enough where vectors nearly agree
            for known in basis:
                vector = vector - known @ vector * known
        basis.append(vector / np.linalg.norm(vector))
        vector = matrix @ basis[-1] / preconditioner
    space = np.stack(basis, 1)
    return space @ np.linalg.solve(space.T @ matrix @ space, space.T @ target)
