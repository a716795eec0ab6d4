"""The norm that pools: against normalising first and pooling then, up to second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.normalisation import BatchStatisticsNorm
from maml_jax.pooling import max_pool

NORM = BatchStatisticsNorm()


def arrays():
    """Images, of an odd height, and parameters with a scale of either sign and of 0."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(2 * rng.normal(size=(4, 5, 6, 3)) + 1)
    scale, bias = jnp.array([1.5, -2.0, 0.0]), jnp.array([0.3, -0.1, 0.2])
    return {"params": {"scale": scale, "bias": bias}}, x


def pooled(variables, x, mask):
    return NORM.apply(variables, x, mask, pool=max_pool)


def normalised_and_pooled(variables, x, mask):
    return max_pool(NORM.apply(variables, x, mask))


@pytest.mark.parametrize("masked", [False, True])
def test_values_are_those_of_pooling_what_is_normalised(masked, tolerance):
    variables, x = arrays()
    mask = jnp.array([True, False, True, True]) if masked else None
    got, want = (f(variables, x, mask) for f in (pooled, normalised_and_pooled))
    np.testing.assert_allclose(got, want, rtol=0, atol=10 * tolerance)


def derivatives(f, variables, x, mask):
    def loss(variables, x):
        return jnp.sum(jnp.sin(f(variables, x, mask)))

    def squared(variables, x):
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss, (0, 1))(variables, x)))

    return [jax.jit(jax.grad(g, (0, 1)))(variables, x) for g in (loss, squared)]


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_are_those_of_pooling_what_is_normalised(masked, tolerance):
    """Not those at a scale of 0, where all that is pooled is equal."""
    variables, x = arrays()
    variables["params"]["scale"] = jnp.array([1.5, -2.0, 0.5])
    mask = jnp.array([True, False, True, True]) if masked else None
    results = [derivatives(f, variables, x, mask) for f in (pooled, normalised_and_pooled)]
    for got, want in zip(*(jax.tree.leaves(result) for result in results), strict=True):
        limit = 100 * tolerance * float(jnp.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=limit)


@pytest.mark.parametrize("seed", range(8))
def test_variance_of_a_large_mean_is_never_negative(seed):
    """E[x²] - mean² may round to below 0; values and derivatives must stay finite."""
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(64, 1)) * 1e-3 + 1000, jnp.float32)
    variables = NORM.init(jax.random.key(0), x)
    y, gradient = jax.value_and_grad(lambda x: NORM.apply(variables, x).sum())(x)
    assert jnp.isfinite(y)
    assert jnp.isfinite(gradient).all()


def test_a_mean_of_many_deviations_costs_little_accuracy():
    """Oracle: numpy in float64, for a mean of 30 standard deviations."""
    x = np.random.default_rng(0).normal(size=(64, 2)) + 30
    variables = NORM.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    got = NORM.apply(variables, jnp.asarray(x, jnp.float32))
    want = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3)


def test_no_example_is_no_error():
    variables = NORM.init(jax.random.key(0), jnp.ones((2, 3)))
    assert NORM.apply(variables, jnp.ones((0, 4, 3))).shape == (0, 4, 3)


def test_pooled_bfloat16_keeps_its_dtype():
    variables, x = arrays()
    got = pooled(variables, x.astype(jnp.bfloat16), None)
    assert got.dtype == jnp.bfloat16
    want = normalised_and_pooled(variables, x.astype(jnp.bfloat16).astype(x.dtype), None)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=0.05)
