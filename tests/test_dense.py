"""The dense layer's product, against `lax.dot_general` as the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from maml_jax.dense import dot_general

MATRICES = (((1,), (0,)), ((), ()))


def normal(seed, shape, dtype=None):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def derivatives(product):
    """Values, gradients, a jvp and the gradient of a contraction of the gradients."""

    def loss(x, w):
        return jnp.sum(jnp.sin(product(x, w, MATRICES)))

    def contraction(x, w):
        return sum(jnp.sum(jnp.cos(g)) for g in jax.grad(loss, (0, 1))(x, w))

    def all_of_them(x, w):
        tangents = jax.jvp(loss, (x, w), (jnp.cos(x), jnp.sin(w)))[1]
        return (
            loss(x, w),
            jax.grad(loss, (0, 1))(x, w),
            tangents,
            jax.grad(contraction, (0, 1))(x, w),
        )

    return all_of_them


@pytest.mark.parametrize(("shared_x", "shared_w"), [(0, 0), (None, 0), (0, None), (None, None)])
def test_derivatives_match_lax_for_many_tasks(shared_x, shared_w, tolerance):
    x = normal(0, (5, 4) if shared_x is None else (3, 5, 4))
    w = normal(1, (4, 6) if shared_w is None else (3, 4, 6))
    sides = [derivatives(product) for product in (dot_general, lax.dot_general)]
    if (shared_x, shared_w) != (None, None):
        sides = [jax.vmap(side, (shared_x, shared_w)) for side in sides]
    results = [jax.tree.leaves(jax.jit(side)(x, w)) for side in sides]
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=100 * tolerance)


OTHERS = {
    "transposed": ((4, 5), (4, 6), (((0,), (0,)), ((), ())), {}),
    "three dimensions": ((2, 5, 4), (4, 6), (((2,), (0,)), ((), ())), {}),
    "batched": ((2, 5, 4), (2, 4, 6), (((2,), (1,)), ((0,), (0,))), {}),
    "wider result": (
        (5, 4),
        (4, 6),
        MATRICES,
        {"preferred_element_type": jnp.float32},
    ),
    "precision of each": ((5, 4), (4, 6), MATRICES, {"precision": ("highest", "highest")}),
    "no example": ((0, 4), (4, 6), MATRICES, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_are_those_of_lax(name):
    x_shape, w_shape, numbers, options = OTHERS[name]
    x, w = (normal(i, shape, jnp.bfloat16) for i, shape in enumerate((x_shape, w_shape)))
    got, want = (f(x, w, numbers, **options) for f in (dot_general, lax.dot_general))
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_a_replicated_kernel_gets_the_gradient_of_all_devices(tolerance):
    """Oracle: `lax.dot_general` under `shard_map`; inputs per device, then kernels per device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("tasks",))
    split, whole = jax.sharding.PartitionSpec("tasks"), jax.sharding.PartitionSpec()
    x, w = normal(0, (4, 4)), normal(1, (4, 6))

    def gradients(product, specs):
        def here(x, w):
            return jax.grad(lambda *a: jnp.sum(jnp.sin(product(*a, MATRICES))), (0, 1))(x, w)

        return jax.jit(jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=specs))(x, w)

    got, want = (gradients(f, (split, whole)) for f in (dot_general, lax.dot_general))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=100 * tolerance)


def test_precision_is_that_of_the_place_of_the_call():
    x, w = normal(0, (5, 4)), normal(1, (4, 6))

    def precise(x, w):
        with jax.default_matmul_precision("highest"):
            return dot_general(x, w, MATRICES)

    text = jax.jit(precise).trace(x, w).lower(lowering_platforms=("tpu",)).as_text()
    assert "HIGHEST" in text


def test_flax_layer_takes_it_for_inputs_of_any_rank(tolerance):
    """Oracle: the same layer with its default."""
    for shape in ((5, 4), (2, 5, 4)):
        x = normal(0, shape)
        ours, oracle = nn.Dense(3, dot_general=dot_general), nn.Dense(3)
        params = oracle.init(jax.random.key(0), x)
        np.testing.assert_allclose(
            ours.apply(params, x), oracle.apply(params, x), rtol=0, atol=10 * tolerance
        )
