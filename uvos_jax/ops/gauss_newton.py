"""Matrix-free least squares by Gauss-Newton steps, each solved with conjugate gradients.

Parameters are any pytree of float32 arrays, with one inner product over all of its leaves. Derivatives are
Jacobian-vector and vector-Jacobian products, so nothing larger than the parameters and the outputs is stored. Iteration
counts are fixed, so the solver compiles once and maps over many problems (``jax.vmap``).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any


def gauss_newton(outputs: Callable[[Tree], Tree], start: Tree, iterations: Sequence[int],
                 preconditioner: Tree | None = None, slope: Callable[[Tree], Tree] | None = None) -> Tree:
    """Minimizes half the squared norm of residuals, or another convex quadratic of a model's outputs.

    Sec. 3.2 of FRTM (Robinson et al., CVPR 2020). Every step linearizes the outputs, then solves the normal equations
    by ``conjugate_gradient`` from zero. The published code carries the last direction into the next step with a weight
    of 1e-34; here every step starts without one.

    Args:
        outputs: Differentiable function of the parameters; without ``slope`` it returns the residuals.
        start: Initial parameters.
        iterations: Conjugate gradient iterations of each Gauss-Newton step.
        preconditioner: See :func:`conjugate_gradient`.
        slope: Affine function from the outputs ``o`` to the gradient ``A o - b`` of the objective ``o' A o / 2 - b'
            o``, with ``A`` symmetric positive semidefinite. None for the identity.

    Returns:
        Parameters, structured as ``start``.
    """
    slope = slope or (lambda o: o)

    def step(parameters, count):
        values, forward = jax.linearize(outputs, parameters)
        backward = jax.linear_transpose(forward, parameters)
        gradient, curve = jax.linearize(slope, values)
        delta = conjugate_gradient(lambda v: backward(curve(forward(v)))[0],
                                  jax.tree.map(jnp.negative, backward(gradient)[0]), count, preconditioner)
        return jax.tree.map(jnp.add, parameters, delta), None

    # A scan, because compile time would grow with the number of unrolled steps.
    return lax.scan(step, start, jnp.array(iterations, jnp.int32))[0]


def conjugate_gradient(product: Callable[[Tree], Tree], target: Tree, iterations: int | jax.Array,
                       preconditioner: Tree | None = None) -> Tree:
    """Solves ``A x = target`` from ``x = 0`` by preconditioned conjugate gradients.

    The direction is updated by the Polak-Ribière rule, clamped at zero, as in the published code of FRTM: under
    rounding errors it discards a direction that no longer helps.

    Args:
        product: Maps ``x`` to ``A x``, with ``A`` symmetric positive semidefinite.
        target: Right-hand side.
        iterations: Number of iterations; there is no early stop.
        preconditioner: Positive divisor of the residuals, structured as ``target``, of shapes that broadcast; None for
            1.

    Returns:
        ``x``, structured as ``target``. Once the residual is exactly zero ``x`` no longer changes; a zero ``target``
        gives zeros.
    """
    def precondition(residual):
        return residual if preconditioner is None else jax.tree.map(jnp.divide, residual, preconditioner)

    def iterate(_, carry):
        x, residual, direction, rho = carry
        image = product(direction)
        alpha = _ratio(rho, _inner(direction, image))
        x = _plus(x, alpha, direction)
        new_residual = _plus(residual, -alpha, image)
        preconditioned = precondition(new_residual)
        new_rho = _inner(new_residual, preconditioned)
        beta = jnp.maximum(_ratio(new_rho - _inner(residual, preconditioned), rho), 0)
        return x, new_residual, _plus(preconditioned, beta, direction), new_rho

    direction = precondition(target)
    carry = jax.tree.map(jnp.zeros_like, target), target, direction, _inner(target, direction)
    return lax.fori_loop(0, iterations, iterate, carry)[0]


def _inner(a, b):
    """Returns the inner product over all leaves."""
    products = jax.tree.map(lambda u, v: jnp.vdot(u, v, precision=lax.Precision.HIGHEST), a, b)
    return sum(jax.tree.leaves(products))


def _plus(a, factor, b):
    return jax.tree.map(lambda u, v: u + factor * v, a, b)


def _ratio(a, b):
    """Returns ``a / b``, or 0 where ``b`` is not positive."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
