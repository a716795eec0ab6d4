"""Pooling against numpy, and its derivatives against what they must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.pooling import max_pool, mean_pool


def images(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 5, 6, 3)))


def windows(x):
    return np.asarray(x)[:, :4].reshape(2, 2, 2, 3, 2, 3)


@pytest.mark.parametrize(("pool", "name"), [(max_pool, "max"), (mean_pool, "mean")])
def test_values_match_numpy_without_the_odd_row(pool, name, tolerance):
    want = getattr(windows(images()), name)(axis=(2, 4))
    np.testing.assert_allclose(jax.jit(pool)(images()), want, rtol=0, atol=tolerance)


def test_gradient_goes_to_the_largest_entry(tolerance):
    """Oracle: the entries that equal the maximum of their window; there are no ties here."""
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 3, 3)))
    _, pull_back = jax.vjp(max_pool, images())
    (got,) = pull_back(cotangent)
    largest = windows(images()) == windows(images()).max(axis=(2, 4), keepdims=True)
    want = np.zeros((2, 5, 6, 3))
    want[:, :4] = (largest * np.asarray(cotangent)[:, :, None, :, None]).reshape(2, 4, 6, 3)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def test_forward_mode_agrees_with_reverse_mode_at_second_order(tolerance):
    def loss(x):
        return jnp.sum(jnp.sin(max_pool(x)) * max_pool(x**2))

    x, v = images(), images(1)
    forward = jax.jvp(jax.grad(loss), (x,), (v,))[1]
    reverse = jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), v))(x)
    np.testing.assert_allclose(forward, reverse, rtol=0, atol=10 * tolerance)
    assert np.abs(forward).max() > 0.1


def test_ties_send_the_gradient_to_one_entry():
    grads = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    assert sorted(grads.ravel().tolist()) == [0.0, 0.0, 0.0, 1.0]
