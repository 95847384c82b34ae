"""Least squares without a matrix: Gauss-Newton steps, each solved by a fixed number of conjugate gradients.

Parameters are any pytree of float32 arrays; one inner product runs over all of its leaves. Derivatives are
Jacobian-vector products in both directions, so nothing larger than the parameters and the outputs is ever stored.
Iteration counts are fixed: compiled once, and mapped over many problems at once (``jax.vmap``).
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

    Sec. 3.2 of FRTM (Robinson et al., CVPR 2020). Every step linearises the outputs, then solves the normal equations
    by ``conjugate_gradient`` from zero. The published code carries the last direction into the next step with a weight
    of 1e-34; here every step begins anew.

    Args:
      outputs: differentiable function of the parameters; without ``slope`` it returns the residuals.
      start: parameters to begin with.
      iterations: conjugate gradient iterations of each Gauss-Newton step.
      preconditioner: see ``conjugate_gradient``.
      slope: affine function from the outputs ``o`` to the gradient ``A o - b`` of what is minimized,
        ``o' A o / 2 - b' o`` with ``A`` symmetric and without negative eigenvalues. None: ``o`` itself.

    Returns:
      Parameters, structured as ``start``.
    """
    slope = slope or (lambda o: o)

    def improve(parameters, count):
        values, forward = jax.linearize(outputs, parameters)
        backward = jax.linear_transpose(forward, parameters)
        gradient, curve = jax.linearize(slope, values)
        step = conjugate_gradient(lambda v: backward(curve(forward(v)))[0],
                                  jax.tree.map(jnp.negative, backward(gradient)[0]), count, preconditioner)
        return jax.tree.map(jnp.add, parameters, step), None

    # A scan, since unrolled steps would compile as many times as long.
    return lax.scan(improve, start, jnp.array(iterations, jnp.int32))[0]


def conjugate_gradient(product: Callable[[Tree], Tree], target: Tree, iterations: int | jax.Array,
                       preconditioner: Tree | None = None) -> Tree:
    """Solves ``A x = target`` from ``x = 0`` by preconditioned conjugate gradients.

    The direction is renewed by Polak and Ribiere's rule, clamped at zero, as FRTM's published code does: with rounding
    errors it forgets a direction that no longer helps.

    Args:
      product: ``x`` to ``A x``, with ``A`` symmetric and without negative eigenvalues.
      target: right-hand side.
      iterations: how many, all of which are done.
      preconditioner: what residuals are divided by, above 0, structured as ``target``, of shapes that broadcast; None
        for 1.

    Returns:
      ``x``, structured as ``target``. Once the residual is exactly zero ``x`` stays as it is; a zero ``target`` gives
      zeros.
    """
    def precondition(residual):
        return residual if preconditioner is None else jax.tree.map(jnp.divide, residual, preconditioner)

    def iterate(_, carry):
        x, residual, direction, rho = carry
        image = product(direction)
        length = _ratio(rho, _inner(direction, image))
        x = _plus(x, length, direction)
        left = _plus(residual, -length, image)
        improved = precondition(left)
        rho_left = _inner(left, improved)
        keep = jnp.maximum(_ratio(rho_left - _inner(residual, improved), rho), 0)
        return x, left, _plus(improved, keep, direction), rho_left

    direction = precondition(target)
    carry = jax.tree.map(jnp.zeros_like, target), target, direction, _inner(target, direction)
    return lax.fori_loop(0, iterations, iterate, carry)[0]


def _inner(a, b):
    """The inner product over all leaves."""
    products = jax.tree.map(lambda u, v: jnp.vdot(u, v, precision=lax.Precision.HIGHEST), a, b)
    return sum(jax.tree.leaves(products))


def _plus(a, factor, b):
    return jax.tree.map(lambda u, v: u + factor * v, a, b)


def _ratio(a, b):
    """``a / b``, but 0 where nothing is left to divide by."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
