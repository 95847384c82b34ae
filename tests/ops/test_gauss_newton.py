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
    """A linear problem of five unknowns in two leaves."""
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
def test_a_linear_problem_is_solved_in_one_step(preconditioner):
    found = jax.jit(lambda start: gauss_newton(_residuals, start, (5,), preconditioner))(START)
    np.testing.assert_allclose(_flat(found), np.linalg.lstsq(DESIGN, OBSERVED)[0], atol=2e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_each_iteration_finds_the_best_of_its_krylov_space(iterations):
    matrix, target = DESIGN.T @ DESIGN, DESIGN.T @ OBSERVED
    scales = np.array([0.5, 0.5, 0.5, 2, 3])
    found = _solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(target, jnp.float32), iterations,
                   jnp.asarray(scales, jnp.float32))
    np.testing.assert_allclose(found, krylov_minimizer(matrix, target, iterations, scales), atol=2e-5)


def test_several_steps_go_down_a_curved_problem_to_where_scipy_ends():
    times = np.linspace(0, 2, 15)
    seen = 2 * np.exp(-1.3 * times) + 0.3 * np.sin(7 * times)  # so that no curve fits and residuals stay

    def residuals(parameters):
        height, rate = parameters
        return height * jnp.exp(rate * jnp.asarray(times, jnp.float32)) - jnp.asarray(seen, jnp.float32)

    best = least_squares(lambda p: p[0] * np.exp(p[1] * times) - seen, [1.0, -0.5], xtol=1e-12).x
    found = gauss_newton(residuals, (jnp.float32(1), jnp.float32(-0.5)), (2,) * 12)
    np.testing.assert_allclose(found, best, atol=1e-4)
    assert np.abs(np.array(gauss_newton(residuals, (jnp.float32(1), jnp.float32(-0.5)), (2,))) - best).max() > 0.01


def test_a_slope_stands_for_weights():
    weights = np.linspace(0.1, 3, 12)
    found = gauss_newton(lambda p: jnp.asarray(DESIGN, jnp.float32) @ p, jnp.zeros(5), (5,),
                         slope=lambda o: jnp.asarray(weights, jnp.float32) * (o - jnp.asarray(OBSERVED, jnp.float32)))
    root = np.sqrt(weights)
    np.testing.assert_allclose(found, np.linalg.lstsq(DESIGN * root[:, None], OBSERVED * root)[0], atol=2e-5)


def test_of_directions_that_nothing_depends_on_none_is_taken():
    wide = np.diag([3.0, 1.0, 0.0])
    found = conjugate_gradient(lambda x: jnp.asarray(wide, jnp.float32) @ x, jnp.array([3.0, 2.0, 0.0]), 2)
    np.testing.assert_allclose(found, [1, 2, 0], atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_nothing_to_solve_gives_zeros_not_nan(factor):
    # No target; and a target that no x comes nearer to.
    found = conjugate_gradient(lambda x: factor * x, (1 - factor) * jnp.ones(3), 4)
    np.testing.assert_array_equal(found, np.zeros(3))


def test_solved_exactly_it_stays():
    found = conjugate_gradient(lambda x: 2 * x, jnp.array([2.0, 4.0]), 6)
    np.testing.assert_array_equal(found, [1, 2])
    there = gauss_newton(lambda x: x - 1, jnp.ones(2), (3, 3))
    np.testing.assert_array_equal(there, [1, 1])


def test_mapped_over_problems_it_finds_what_it_finds_one_by_one():
    targets = jnp.asarray(RNG.standard_normal((4, 12)), jnp.float32).at[2].set(0)
    # Singular values from 1 to 2, or five unfinished iterations would magnify how sums are rounded.
    design = jnp.asarray(np.linalg.qr(DESIGN)[0] * np.linspace(1, 2, 5), jnp.float32)

    @jax.jit
    def solve(target):
        return gauss_newton(lambda p: design @ p - target, jnp.ones(5), (2, 3))

    np.testing.assert_allclose(jax.vmap(solve)(targets), jnp.stack([solve(t) for t in targets]), atol=1e-5)
