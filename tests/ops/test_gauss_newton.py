"""Gauss-Newton and conjugate gradients against dense solutions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from tests.helpers.least_squares import krylov_minimizer
from uvos_jax.ops.gauss_newton import conjugate_gradient, gauss_newton

RNG = np.random.default_rng(0)
DESIGN = RNG.standard_normal((12, 5))
OBSERVED = RNG.standard_normal(12)


def _residuals(parameters):
    """Residuals of a linear problem with five unknowns in two leaves."""
    x = jnp.concatenate([parameters["a"], parameters["b"].ravel()])
    return jnp.asarray(DESIGN, jnp.float32) @ x - jnp.asarray(OBSERVED, jnp.float32)


def _flat(parameters):
    return np.concatenate([np.asarray(parameters["a"]), np.asarray(parameters["b"]).ravel()])


@jax.jit
def _solve(matrix, target, iterations, preconditioner):
    return conjugate_gradient(lambda x: matrix @ x, target, iterations, preconditioner)


START = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[3.0], [1.0]])}
SCALES = {"a": jnp.float32(0.5), "b": jnp.array([[2.0], [3.0]])}


@pytest.mark.parametrize("preconditioner", [None, SCALES])
def test_linear_problem_is_solved_in_one_step(preconditioner):
    found = jax.jit(lambda start: gauss_newton(_residuals, start, (5,), preconditioner))(START)
    np.testing.assert_allclose(_flat(found), np.linalg.lstsq(DESIGN, OBSERVED)[0], atol=2e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_iterates_minimize_over_krylov_space(iterations):
    matrix, target = DESIGN.T @ DESIGN, DESIGN.T @ OBSERVED
    scales = np.array([0.5, 0.5, 0.5, 2, 3])
    found = _solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(target, jnp.float32), iterations,
                   jnp.asarray(scales, jnp.float32))
    np.testing.assert_allclose(found, krylov_minimizer(matrix, target, iterations, scales), atol=2e-5)


def test_nonlinear_problem_converges_to_scipy_solution():
    times = np.linspace(0, 2, 15)
    seen = 2 * np.exp(-1.3 * times) + 0.3 * np.sin(7 * times)  # no curve of the model fits, so residuals remain

    def residuals(parameters):
        height, rate = parameters
        return height * jnp.exp(rate * jnp.asarray(times, jnp.float32)) - jnp.asarray(seen, jnp.float32)

    best = least_squares(lambda p: p[0] * np.exp(p[1] * times) - seen, [1.0, -0.5], xtol=1e-12).x
    found = gauss_newton(residuals, (jnp.float32(1), jnp.float32(-0.5)), (2,) * 12)
    np.testing.assert_allclose(found, best, atol=1e-4)
    assert np.abs(np.array(gauss_newton(residuals, (jnp.float32(1), jnp.float32(-0.5)), (2,))) - best).max() > 0.01


def test_slope_gives_weighted_least_squares():
    weights = np.linspace(0.1, 3, 12)
    found = gauss_newton(lambda p: jnp.asarray(DESIGN, jnp.float32) @ p, jnp.zeros(5), (5,),
                         slope=lambda o: jnp.asarray(weights, jnp.float32) * (o - jnp.asarray(OBSERVED, jnp.float32)))
    root = np.sqrt(weights)
    np.testing.assert_allclose(found, np.linalg.lstsq(DESIGN * root[:, None], OBSERVED * root)[0], atol=2e-5)


def test_null_space_direction_is_not_updated():
    wide = np.diag([3.0, 1.0, 0.0])
    found = conjugate_gradient(lambda x: jnp.asarray(wide, jnp.float32) @ x, jnp.array([3.0, 2.0, 0.0]), 2)
    np.testing.assert_allclose(found, [1, 2, 0], atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_degenerate_system_gives_zeros_not_nan(factor):
    # A zero target, and a zero matrix with a nonzero target.
    found = conjugate_gradient(lambda x: factor * x, (1 - factor) * jnp.ones(3), 4)
    np.testing.assert_array_equal(found, np.zeros(3))


def test_extra_iterations_keep_exact_solution():
    found = conjugate_gradient(lambda x: 2 * x, jnp.array([2.0, 4.0]), 6)
    np.testing.assert_array_equal(found, [1, 2])
    there = gauss_newton(lambda x: x - 1, jnp.ones(2), (3, 3))
    np.testing.assert_array_equal(there, [1, 1])


def test_vmap_equals_loop_over_problems():
    targets = jnp.asarray(RNG.standard_normal((4, 12)), jnp.float32).at[2].set(0)
    # Singular values from 1 to 2: five unconverged iterations would otherwise amplify rounding errors.
    design = jnp.asarray(np.linalg.qr(DESIGN)[0] * np.linspace(1, 2, 5), jnp.float32)

    @jax.jit
    def solve(target):
        return gauss_newton(lambda p: design @ p - target, jnp.ones(5), (2, 3))

    np.testing.assert_allclose(jax.vmap(solve)(targets), jnp.stack([solve(t) for t in targets]), atol=1e-5)
