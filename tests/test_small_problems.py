"""The solvers under the rules on the Gram matrix, where many pivots and steps are needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from maml_jax.aggregation import small_problems

X64 = jax.config.jax_enable_x64


def gradients(kind, num_problems=100, num_tasks=16, seed=1):
    """Rank 10 and 8 of 16: on the way, variables enter that must leave again."""
    rng = np.random.default_rng(seed)
    if kind == "rank 10":
        return rng.normal(size=(num_problems, num_tasks, 10))
    if kind == "rank 8":
        rows = rng.normal(size=(num_problems, num_tasks, 8))
        return rows @ rng.normal(size=(8, 40))
    common = rng.normal(size=(num_problems, 1, 40))
    signs = np.sign(rng.normal(size=(num_problems, num_tasks, 1)))
    return 0.15 * rng.normal(size=(num_problems, num_tasks, 40)) + signs * common


@jax.jit
@jax.vmap
def project(gram):
    """λ of the mean's projection on the dual cone, for unit gradients."""
    lengths, cosines = small_problems.unit_rows(gram)
    linear = cosines @ lengths / len(lengths)
    return small_problems.nonnegative_minimum(cosines, linear, size=lengths.mean())


@pytest.mark.parametrize("kind", ["rank 10", "rank 8", "two camps"])
def test_nonnegative_minimum_is_that_of_nnls(kind):
    """SciPy's NNLS on the gradients themselves, one hundred problems side by side.

    In float32 the Gram matrix itself is the limit: of nearly dependent gradients it knows less.
    """
    rows = gradients(kind)
    got = np.asarray(project(jnp.asarray(rows @ rows.transpose(0, 2, 1))), float)
    assert (got >= 0).all()
    errors = []
    for weights, grads in zip(got, rows, strict=True):
        units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
        want = nnls(units.T, -grads.mean(0), maxiter=10_000)[0] @ units
        size = np.sqrt(np.square(grads).sum(1).mean())
        errors.append(np.linalg.norm(weights @ units - want) / size)
    assert np.median(errors) < (1e-14 if X64 else 1e-5)
    assert np.max(errors) < (1e-8 if X64 else 0.1)


def test_nonnegative_minimum_that_does_not_exist():
    """½ (x₁ - x₂)² - x₁ - x₂ has none: rounding can make such a problem. It stays finite."""
    opposite = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    got = small_problems.nonnegative_minimum(opposite, jnp.array([-1.0, -1.0]), size=1.0)
    np.testing.assert_allclose(got, [1, 0])


def test_bargain_from_far_away():
    """K x ∘ x = 1 and x > 0: undamped, Newton's method loses its way in some of these."""
    units = np.random.default_rng(0).normal(size=(1000, 12, 14))
    units /= np.linalg.norm(units, axis=2, keepdims=True)
    cosines = jnp.asarray(units @ units.transpose(0, 2, 1))
    points = jax.jit(jax.vmap(small_problems.bargain))(cosines)
    assert (points > 0).all()
    products = points * jnp.einsum("bij,bj->bi", cosines, points)
    np.testing.assert_allclose(products, 1, atol=1e-9 if X64 else 1e-2)


def test_spectrum_tells_rounding_from_rank():
    rows = gradients("rank 8", 1)[0]
    _, _, kept = small_problems.spectrum(jnp.asarray(rows @ rows.T), jnp.asarray(16))
    assert kept.sum() == 8
